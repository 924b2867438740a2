# SPDX-License-Identifier: Apache-2.0
"""Whether a broker answers, as far as that can be told without telling it anything.

The brokers are sockets of the test's own, which say what a broker would, or nothing.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from contextlib import ExitStack, suppress
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from cellmw.handshake import Address, NoAnswer, shake_hands, unverified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HEADER = b"AMQP\x00\x00\x09\x01"

START = b"\x01\x00\x00\x00\x00\x01\xf6"

SHORT = 0.3
"""Seconds for which an answer is waited for that does not come."""

SLACK = 0.5


class Somebody:
    """Listens at a port and says one thing to whoever connects. Lives as long as its test.

    :ivar heard: what was said to it
    """

    def __init__(self, answer: bytes | None, tls: ssl.SSLContext | None = None) -> None:
        self.heard = b""
        self._answer = answer
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    @property
    def address(self) -> Address:
        """Where it listens."""
        return Address("127.0.0.1", self._listener.getsockname()[1])

    def close(self) -> None:
        """Say nothing any more."""
        self._over.set()
        with suppress(OSError):
            socket.create_connection(self.address).close()
        self._thread.join()
        self._listener.close()

    def _listen(self) -> None:
        while not self._over.is_set():
            plain, _ = self._listener.accept()
            with plain, suppress(OSError), self._wrapped(plain) as connection:
                self.heard += connection.recv(100)
                if self._answer is None:
                    self._over.wait()
                    continue
                # in two parts, as a network may bring it
                connection.sendall(self._answer[:1])
                connection.sendall(self._answer[1:])

    def _wrapped(self, plain: socket.socket) -> socket.socket:
        return plain if self._tls is None else self._tls.wrap_socket(plain, server_side=True)


@pytest.fixture
def somebody() -> Iterator[Callable[..., Somebody]]:
    """Have somebody listen, who gives this answer, or none."""
    with ExitStack() as ends:

        def new(answer: bytes | None, tls: ssl.SSLContext | None = None) -> Somebody:
            listening = Somebody(answer, tls)
            ends.callback(listening.close)
            return listening

        yield new


@pytest.fixture
def nobody() -> Address:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return Address("127.0.0.1", listener.getsockname()[1])


def test_answers(somebody: Callable[..., Somebody]) -> None:
    """A broker that begins to talk answers, and was told no more than which protocol."""
    broker = somebody(START)
    shake_hands([broker.address], None)
    assert broker.heard == HEADER


@pytest.mark.parametrize("answer", [b"", b"\x01", b"HTTP/1.1 400"], ids=["nothing", "half", "else"])
def test_no_broker(somebody: Callable[..., Somebody], answer: bytes) -> None:
    """What closes the connection, or talks of something else, is no broker."""
    with pytest.raises(NoAnswer):
        shake_hands([somebody(answer).address], None)


def test_silence(somebody: Callable[..., Somebody]) -> None:
    """A broker that takes the connection and says nothing does not answer, and is not waited for any longer."""
    begun = monotonic()
    with pytest.raises(TimeoutError):
        shake_hands([somebody(None).address], None, SHORT)
    assert SHORT <= monotonic() - begun < SHORT + SLACK


def test_refused(nobody: Address) -> None:
    """Where nobody listens nobody answers."""
    with pytest.raises(ConnectionRefusedError):
        shake_hands([nobody], None)


def test_any_of_several(somebody: Callable[..., Somebody], nobody: Address) -> None:
    """One host that answers is enough, wherever it stands, and the others leave it its time."""
    silent, broker = somebody(None), somebody(START)
    begun = monotonic()
    shake_hands([nobody, silent.address, broker.address], None, 4 * SHORT)
    assert monotonic() - begun < 3.6 * SHORT
    shake_hands([broker.address, nobody], None)
    with pytest.raises(TimeoutError):
        shake_hands([nobody, silent.address], None, SHORT)


@pytest.fixture
def certificate(tmp_path: Path) -> ssl.SSLContext:
    """A server's side of TLS, by whom nobody has ever heard of."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", "/CN=nobody", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def test_tls(somebody: Callable[..., Somebody], certificate: ssl.SSLContext) -> None:
    """Over TLS it is the same, whoever it is that answers."""
    broker = somebody(START, certificate)
    shake_hands([broker.address], unverified())
    assert broker.heard == HEADER
    with pytest.raises(NoAnswer):
        shake_hands([somebody(b"", certificate).address], unverified())


def test_tls_silence(somebody: Callable[..., Somebody], certificate: ssl.SSLContext) -> None:
    """A broker that does not even begin with TLS does not answer, and is not waited for any longer."""
    with pytest.raises(TimeoutError):
        shake_hands([somebody(None).address], unverified(), SHORT)
    with pytest.raises(TimeoutError):
        shake_hands([somebody(None, certificate).address], unverified(), SHORT)


@pytest.mark.parametrize("wants", ["another version", "a certificate"])
def test_tls_of_another_kind(somebody: Callable[..., Somebody], certificate: ssl.SSLContext, wants: str) -> None:
    """One that says no to our TLS answers: what is wrong is something else."""
    ours = unverified()
    ours.maximum_version = ssl.TLSVersion.TLSv1_2
    if wants == "a certificate":
        certificate.verify_mode = ssl.CERT_REQUIRED
    else:
        certificate.minimum_version = ssl.TLSVersion.TLSv1_3
    shake_hands([somebody(START, certificate).address], ours)
