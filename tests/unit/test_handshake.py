# SPDX-License-Identifier: Apache-2.0
"""Whether and how a broker answers, as far as that can be told without telling it anything.

The brokers are sockets of the test's own, which say what a broker would, or nothing.
"""

from __future__ import annotations

import socket
import ssl
import struct
from contextlib import ExitStack
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from amqp import serialization

from cellmw.queues.handshake import (
    PATIENCE,
    Address,
    NoAnswer,
    certificate_of,
    cluster_names,
    objection,
    shake_hands,
    speaks_plainly,
    speaks_tls,
    unverified,
)
from tests.servers.certificates import Authority
from tests.unit.somebody import Somebody

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HEADER = b"AMQP\x00\x00\x09\x01"

START = b"\x01\x00\x00\x00\x00\x01\xf6"

SHORT = 0.2
"""Seconds for which an answer is waited for that does not come."""

SLACK = 0.5


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


@pytest.mark.parametrize("host", ["a..b", f"{'a' * 64}.example"])
def test_no_name(somebody: Callable[..., Somebody], host: str) -> None:
    """What can't be the name of a host has no address, and leaves the others theirs."""
    with pytest.raises(socket.gaierror):
        shake_hands([Address(host, 5672)], None)
    shake_hands([Address(host, 5672), somebody(START).address], None)


def test_any_of_several(somebody: Callable[..., Somebody], nobody: Address) -> None:
    """One host that answers is enough, wherever it stands, and the others leave it its time."""
    silent, broker = somebody(None), somebody(START)
    begun = monotonic()
    shake_hands([nobody, silent.address, broker.address], None, 4 * SHORT)
    assert monotonic() - begun < 3.6 * SHORT
    shake_hands([broker.address, nobody], None)
    with pytest.raises(TimeoutError):
        shake_hands([nobody, silent.address], None, SHORT)


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Who has signed all certificates."""
    return Authority("nobody has heard of it")


@pytest.fixture
def certificate(authority: Authority, tmp_path: Path) -> ssl.SSLContext:
    """A server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.for_server("127.0.0.1").write(tmp_path, "server"))
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
    """One that says no to our TLS does not answer, and what it says is told."""
    ours = unverified()
    ours.maximum_version = ssl.TLSVersion.TLSv1_2
    if wants == "a certificate":
        certificate.verify_mode = ssl.CERT_REQUIRED
    else:
        certificate.minimum_version = ssl.TLSVersion.TLSv1_3
    with pytest.raises(ssl.SSLError, match="ALERT"):
        shake_hands([somebody(START, certificate).address], ours)


def test_tls_by_somebody_else(somebody: Callable[..., Somebody], certificate: ssl.SSLContext) -> None:
    """One whose certificate is not what we want does not answer."""
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands([somebody(START, certificate).address], ours)


def test_tls_by_who_it_is(
    somebody: Callable[..., Somebody], certificate: ssl.SSLContext, authority: Authority, nobody: Address
) -> None:
    """A certificate is compared with the host that was asked, and not with another one."""
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ours.load_verify_locations(cadata=authority.certificate)
    broker = somebody(START, certificate)
    shake_hands([nobody, broker.address], ours)
    with pytest.raises(ssl.SSLCertVerificationError, match="localhost"):
        shake_hands([Address("localhost", broker.address.port)], ours)


# -- what else can be told ---------------------------------------------------------------------------------------------


def start_of(properties: dict[str, Any], method: bytes = b"\x00\x0a\x00\x0a", size: int | None = None) -> bytes:
    """Return the first frame of a broker with these properties."""
    payload = method + serialization.dumps("ooFSS", (0, 9, properties, "PLAIN", "en_US"))
    return b"\x01\x00\x00" + struct.pack(">I", len(payload) if size is None else size) + payload + b"\xce"


def test_cluster_names(somebody: Callable[..., Somebody], certificate: ssl.SSLContext, nobody: Address) -> None:
    """Each broker that answers says the name of its cluster, and is told no more than which protocol."""
    capabilities = {"capabilities": {"publisher_confirms": True}}
    ones, others = (somebody(start_of(capabilities | {"cluster_name": name})) for name in ("ones", "others'"))
    silent = somebody(None)
    begun = monotonic()
    names = cluster_names([nobody, ones.address, silent.address, others.address], None, 3 * SHORT)
    assert names == {ones.address: "ones", others.address: "others'"}
    assert monotonic() - begun < 3 * SHORT
    assert ones.heard == HEADER
    encrypted = somebody(start_of({"cluster_name": "ones"}), certificate)
    assert cluster_names([encrypted.address], unverified()) == {encrypted.address: "ones"}
    assert cluster_names([], None) == {}


@pytest.mark.parametrize(
    "answer",
    [
        start_of({}),
        start_of({"cluster_name": "ones"}, method=b"\x00\x0a\x00\x0b"),
        start_of({"cluster_name": "ones"})[:30],
        start_of({"cluster_name": "ones", "more": "x" * 2**16}),
        start_of({"cluster_name": "ones"}, size=10),
        start_of({"cluster_name": "ones"}).replace(b"S", b"\xff"),
        b"HTTP/1.1 400 Bad Request",
    ],
    ids=["no name", "another method", "half", "too long", "too short", "of no type", "else"],
)
def test_no_cluster_name(somebody: Callable[..., Somebody], answer: bytes) -> None:
    """What says no name, or nothing that could be understood, is left out."""
    assert cluster_names([somebody(answer).address], None, SHORT) == {}


def test_speaks_tls(somebody: Callable[..., Somebody], certificate: ssl.SSLContext, nobody: Address) -> None:
    """What takes part in TLS speaks it, whatever it then says; what answers otherwise, or not, does not."""
    assert speaks_tls(somebody(START, certificate).address, PATIENCE)
    certificate.maximum_version = ssl.TLSVersion.TLSv1_2
    certificate.set_ciphers("AES128-SHA")  # which no key of ours goes with
    assert speaks_tls(somebody(START, certificate).address, PATIENCE)
    for answer in (START, b"", b"HTTP/1.1 400 Bad Request"):
        assert not speaks_tls(somebody(answer).address, PATIENCE)
    assert not speaks_tls(nobody, PATIENCE)
    begun = monotonic()
    assert not speaks_tls(somebody(None).address, SHORT)
    assert monotonic() - begun < SHORT + SLACK


def test_certificate_of(
    somebody: Callable[..., Somebody],
    certificate: ssl.SSLContext,
    authority: Authority,
    nobody: Address,
    tmp_path: Path,
) -> None:
    """Whoever speaks TLS shows a certificate, whoever has signed it; who does not shows none in time."""
    shown = certificate_of(somebody(START, certificate).address, unverified(), PATIENCE)
    assert shown == ssl.PEM_cert_to_DER_cert((tmp_path / "server.pem").read_text())
    for other in (somebody(b"HTTP").address, nobody):
        with pytest.raises(OSError):  # noqa: PT011 - any of them
            certificate_of(other, unverified(), PATIENCE)
    begun = monotonic()
    with pytest.raises(TimeoutError):
        certificate_of(somebody(None).address, unverified(), SHORT)
    assert monotonic() - begun < SHORT + SLACK


def test_speaks_plainly(somebody: Callable[..., Somebody], certificate: ssl.SSLContext, nobody: Address) -> None:
    """A broker without TLS does; what is no broker, or wants TLS, does not."""
    assert speaks_plainly(somebody(START).address, PATIENCE)
    for other in (somebody(b"HTTP").address, somebody(START, certificate).address, nobody):
        assert not speaks_plainly(other, PATIENCE)


def test_objection(somebody: Callable[..., Somebody], certificate: ssl.SSLContext, nobody: Address) -> None:
    """What a broker has against us is heard where it is said after the handshake, too."""
    assert objection(somebody(START, certificate).address, unverified(), SHORT) is None
    assert objection(nobody, unverified(), SHORT) is None
    certificate.verify_mode = ssl.CERT_REQUIRED
    said = objection(somebody(START, certificate).address, unverified(), PATIENCE)
    assert said is not None
    assert said.reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED"


@pytest.mark.parametrize(("host", "text"), [("one.example", "one.example:1"), ("::1", "[::1]:1")])
def test_address(host: str, text: str) -> None:
    """An address is written as in a URL."""
    assert str(Address(host, 1)) == text
