# SPDX-License-Identifier: Apache-2.0
"""In which words it is said what was wrong. The TLS is real, between two ends in memory."""

from __future__ import annotations

import socket
import ssl
from functools import partial
from typing import TYPE_CHECKING

import amqp
import kombu.exceptions
import oslo_messaging
import pytest
from amqp.exceptions import MessageNacked

from cellmw.queues.causes import cause_of, is_hang_up, root_of
from tests.servers.certificates import Authority

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "sesame"


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Who has signed what is sound."""
    return Authority("ours")


def client(authority: Authority) -> ssl.SSLContext:
    """Return a client's side of TLS that trusts this authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.certificate)
    return context


def server(authority: Authority, folder: Path, *, host: str = "broker", expired: bool = False) -> ssl.SSLContext:
    """Return a server's side of TLS, by a certificate of this authority's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.for_server(host, expired=expired).write(folder, "server"))
    return context


def talk(client: ssl.SSLContext, server: ssl.SSLContext, host: str = "broker") -> None:
    """Shake hands, and have the client wait for what the server says."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [client.wrap_bio(down, up, server_hostname=host), server.wrap_bio(up, down, server_side=True)]
    for side in sides * 3:
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError:
            if side is sides[0]:
                raise
    try:
        sides[0].read(1)
    except ssl.SSLWantReadError:
        """Nothing is said."""


def said(client: ssl.SSLContext, server: ssl.SSLContext, host: str = "broker") -> str:
    """Return the cause of what the client gets."""
    with pytest.raises(ssl.SSLError) as raised:
        talk(client, server, host)
    wrapped = kombu.exceptions.OperationalError(str(raised.value))
    wrapped.__cause__ = raised.value
    return cause_of(wrapped)


UNTRUSTED = "its certificate is not signed by a CA that is trusted here: ssl_ca_file"


def test_sound(authority: Authority, tmp_path: Path) -> None:
    """With a certificate that is sound nothing is wrong."""
    talk(client(authority), server(authority, tmp_path))


def test_expired(authority: Authority, tmp_path: Path) -> None:
    """A certificate that has expired is said to have."""
    assert said(client(authority), server(authority, tmp_path, expired=True)) == "its certificate has expired"


@pytest.mark.parametrize("host", ["other", "10.0.0.1"])
def test_other_host(authority: Authority, tmp_path: Path, host: str) -> None:
    """A certificate for another name, or another address, is said to be."""
    cause = said(client(authority), server(authority, tmp_path), host)
    assert cause == "its certificate is for another host"


def test_untrusted(authority: Authority, tmp_path: Path) -> None:
    """A certificate that somebody else has signed is said to be."""
    assert said(client(Authority("another")), server(authority, tmp_path)) == UNTRUSTED


def test_for_a_client(authority: Authority, tmp_path: Path) -> None:
    """A certificate that is not for a server is said not to be."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.for_client("broker").write(tmp_path, "client"))
    assert said(client(authority), context) == "its certificate is not one for a server"


@pytest.mark.parametrize(
    ("version", "cause"),
    [
        (ssl.TLSVersion.TLSv1_3, "it wants a certificate from us: ssl_cert_file and ssl_key_file"),
        (
            ssl.TLSVersion.TLSv1_2,
            "it refuses TLS with us; or it wants a certificate from us: ssl_cert_file and ssl_key_file",
        ),
    ],
)
def test_wants_ours(authority: Authority, tmp_path: Path, version: ssl.TLSVersion, cause: str) -> None:
    """A broker that wants a certificate from us is said to."""
    strict = server(authority, tmp_path)
    strict.verify_mode = ssl.CERT_REQUIRED
    strict.maximum_version = version
    assert said(client(authority), strict) == cause


def test_refuses_ours(authority: Authority, tmp_path: Path) -> None:
    """A broker that does not know who has signed our certificate is said not to take it."""
    strict = server(authority, tmp_path)
    strict.verify_mode = ssl.CERT_REQUIRED
    strict.load_verify_locations(cadata=Authority("another").certificate)
    ours = client(authority)
    ours.load_cert_chain(*authority.for_client("us").write(tmp_path, "us"))
    assert said(ours, strict) == "it does not take the certificate that it gets from us: ssl_cert_file"


def test_other_version(authority: Authority, tmp_path: Path) -> None:
    """A broker with which we have no version of TLS in common is said to be."""
    new, old = server(authority, tmp_path), client(authority)
    new.minimum_version = ssl.TLSVersion.TLSv1_3
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert said(old, new) == "it speaks another version of TLS"


def test_no_tls(authority: Authority) -> None:
    """What answers in another protocol does not speak TLS."""
    incoming = ssl.MemoryBIO()
    incoming.write(b"AMQP\x00\x00\x09\x01")
    with pytest.raises(ssl.SSLError) as raised:
        client(authority).wrap_bio(incoming, ssl.MemoryBIO(), server_hostname="broker").do_handshake()
    assert cause_of(raised.value) == "it does not speak TLS, and its URL asks for that: ssl=true"


UNREADABLE = "a file of its TLS options can't be read: ssl_ca_file, ssl_cert_file or ssl_key_file"

UNUSABLE = "a file of its TLS options is not what it should be: ssl_ca_file, ssl_cert_file or ssl_key_file"


@pytest.mark.parametrize(
    ("ca", "certificate", "key", "cause"),
    [
        ("none", "", "", UNREADABLE),
        ("", "none", "", UNREADABLE),
        ("text", "", "", UNUSABLE),
        ("", "text", "", UNUSABLE),
        ("", "us.pem", "server.key", UNUSABLE),
    ],
    ids=["no CA", "no certificate", "CA of text", "certificate of text", "another key"],
)
def test_files(authority: Authority, tmp_path: Path, ca: str, certificate: str, key: str, cause: str) -> None:
    """A file that is not there, or not what it should be, is said to be, with the options that can be meant."""
    authority.for_client("us").write(tmp_path, "us")
    authority.for_server("broker").write(tmp_path, "server")
    (tmp_path / "text").write_text(SECRET)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load = (
        partial(context.load_verify_locations, tmp_path / ca)
        if ca
        else partial(context.load_cert_chain, tmp_path / certificate, tmp_path / key if key else None)
    )
    with pytest.raises(OSError) as raised:  # noqa: PT011 - the words are what is looked at
        load()
    assert cause_of(raised.value) == cause


def unverified_because(code: int, message: str) -> ssl.SSLCertVerificationError:
    """Return OpenSSL's error with this number."""
    error = ssl.SSLCertVerificationError(1, f"verify failed: {message}")
    error.verify_code, error.verify_message = code, message
    return error


def refused_because(reason: str | None) -> ssl.SSLError:
    """Return OpenSSL's error with this reason."""
    error = ssl.SSLError(1, "failed")
    error.reason = reason
    return error


def delivery_failure(inner: Exception) -> oslo_messaging.MessageDeliveryFailure:
    """Return what oslo.messaging makes of an error."""
    failure = oslo_messaging.MessageDeliveryFailure(f"Unable to connect to {SECRET}")
    failure.__context__ = kombu.exceptions.OperationalError(SECRET)
    failure.__context__.__cause__ = inner
    return failure


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (unverified_because(23, "certificate revoked"), "its certificate is revoked"),
        (unverified_because(9, "not yet"), "its certificate is not valid yet"),
        *((unverified_because(code, "of whom?"), UNTRUSTED) for code in (18, 19, 20, 21)),
        (
            unverified_because(66, "EE certificate key too weak"),
            "its certificate is refused: EE certificate key too weak",
        ),
        (refused_because("TLSV1_ALERT_INTERNAL_ERROR"), "SSLError TLSV1_ALERT_INTERNAL_ERROR"),
        (refused_because(None), "SSLError"),
        (ssl.SSLEOFError(8, "EOF"), "SSLEOFError"),
        (ConnectionRefusedError(111, SECRET), "ConnectionRefusedError"),
        (PermissionError(13, SECRET), UNREADABLE),
        (IsADirectoryError(21, SECRET), UNREADABLE),
        (TimeoutError(SECRET), "TimeoutError"),
        (socket.gaierror(-2, SECRET), "gaierror"),
        (OSError(113, SECRET), "OSError EHOSTUNREACH"),
        (amqp.AccessRefused(SECRET), "AccessRefused 403"),
        (MessageNacked(), "the broker has not taken the message"),
        (delivery_failure(amqp.NotAllowed(SECRET)), "NotAllowed 530"),
        (oslo_messaging.MessageDeliveryFailure(SECRET), "MessageDeliveryFailure"),
    ],
    ids=lambda value: "" if isinstance(value, Exception) else value,
)
def test_words(error: Exception, cause: str) -> None:
    """Every error has a few words, in which nothing of its message is that could quote a URL."""
    assert cause_of(error) == cause
    assert SECRET not in cause_of(error)


def test_root() -> None:
    """What was wrapped is found, however often it was; what was not is itself."""
    inner = ConnectionResetError()
    assert root_of(delivery_failure(inner)) is inner
    assert root_of(inner) is inner


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (ConnectionResetError(104, "reset"), True),
        (BrokenPipeError(32, "pipe"), True),
        (OSError("Server unexpectedly closed connection"), True),
        (ssl.SSLEOFError(8, "EOF"), True),
        (delivery_failure(ConnectionResetError()), True),
        (OSError(113, "no route"), False),
        (ConnectionRefusedError(111, "refused"), False),
        (TimeoutError(), False),
        (refused_because("WRONG_VERSION_NUMBER"), False),
        (amqp.AccessRefused(), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_hang_up(error: Exception, is_one: bool) -> None:
    """A connection that was ended without a word is known from one that was never there, and from a refusal."""
    assert is_hang_up(error) is is_one
