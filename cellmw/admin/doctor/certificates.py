# SPDX-License-Identifier: Apache-2.0
"""Servers that are spoken to by TLS -> when their certificates end.

A database begins with TLS in the middle of its own protocol. So much of that is here as it takes to see the
certificate; no user and no password is sent.
"""

from __future__ import annotations

import datetime
import socket
import struct
from typing import TYPE_CHECKING

import sqlalchemy
from cryptography import x509
from sqlalchemy import exc

from cellmw.admin.doctor.finding import Finding, Severity
from cellmw.deadline import after, left
from cellmw.queues.handshake import Address, unverified
from cellmw.urls import database_place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHECK = "certificates"

SOON = datetime.timedelta(days=30)
"""How long before its end a certificate should have been renewed."""

_RENEW = "renew it, and have the server read it anew"

_POSTGRESQL_WANTS_TLS = struct.pack(">II", 8, 80877103)
"""PostgreSQL's SSLRequest: its length, and a number that is no version of the protocol."""

_MYSQL_WANTS_TLS = struct.pack("<I", 32 | 1 << 24) + struct.pack("<IIB23x", 0x200 | 0x800 | 0x8000, 2**24 - 1, 33)
"""MySQL's: a packet of 32 bytes, the second one, with what we can do: its protocol since 4.1, TLS, real passwords."""

_PORTS = {"mysql": 3306, "postgresql": 5432}

_SSL_MODES = ("require", "verify-ca", "verify-full")
"""Of PostgreSQL's, those that take nothing but TLS."""


def judge(cell: str, whose: str, certificate: bytes, now: datetime.datetime) -> Iterator[Finding]:
    """Tell whether a certificate is valid now, and for a while.

    :param cell: the name of the cell
    :param whose: what has shown it, as in ``the broker host1:5672``
    :param certificate: in DER
    :param now: with a time zone
    """
    read = x509.load_der_x509_certificate(certificate)
    begins, ends = read.not_valid_before_utc, read.not_valid_after_utc
    if ends <= now:
        what = f"{whose}: its certificate has expired on {ends:%Y-%m-%d}"
        yield Finding(Severity.ERROR, cell, CHECK, what, _RENEW)
    elif begins > now:
        what = f"{whose}: its certificate is not valid before {begins:%Y-%m-%d %H:%M} UTC"
        yield Finding(Severity.ERROR, cell, CHECK, what, "see to the clocks of its host and of the one that has signed")
    elif ends - now < SOON:
        days = (ends - now).days
        what = f"{whose}: its certificate ends in {days} {'day' if days == 1 else 'days'}, on {ends:%Y-%m-%d}"
        yield Finding(Severity.WARNING, cell, CHECK, what, _RENEW)


def servers(url: str) -> list[Address]:
    """Return where the servers of a database listen: libpq takes several. None where the URL asks for no TLS.

    :raises UrlRefused: if it can't be read
    """
    backend, *_ = database_place(url)
    parsed = sqlalchemy.make_url(url)
    if backend not in _BEGINNINGS or not _wants_tls(parsed):
        return []
    try:
        # which has the hosts as the driver gets them, however they stand in the URL
        _, arguments = parsed.get_dialect()().create_connect_args(parsed)
        hosts = str(arguments.get("host") or "").split(",")
        ports = str(arguments.get("port") or "").split(",")
        ports = ports * len(hosts) if len(ports) == 1 else ports
        found = [Address(host, int(port or _PORTS[str(backend)])) for host, port in zip(hosts, ports, strict=True)]
    except (exc.SQLAlchemyError, ImportError, TypeError, ValueError):
        return []  # of such a URL other checks tell
    return [address for address in found if address.host and not address.host.startswith("/")]


def of_database(url: str, server: Address, patience: float) -> bytes | None:
    """Return the certificate that one of the servers of a database shows, in DER; None where it has no TLS.

    :raises OSError: if it shows none in time
    """
    backend, *_ = database_place(url)
    deadline = after(patience)
    with socket.create_connection(server, timeout=max(0.001, left(deadline))) as plain:
        plain.settimeout(max(0.001, left(deadline)))
        if not _BEGINNINGS[str(backend)](plain):
            return None
        with unverified().wrap_socket(plain, server_hostname=server.host) as connection:
            return connection.getpeercert(binary_form=True)


def _wants_tls(url: sqlalchemy.URL) -> bool:
    if url.get_backend_name() == "postgresql":
        return url.query.get("sslmode") in _SSL_MODES
    return any(name.startswith("ssl") and name != "ssl_disabled" for name in url.query)


def _begin_postgresql(plain: socket.socket) -> bool:
    plain.sendall(_POSTGRESQL_WANTS_TLS)
    return plain.recv(1) == b"S"


def _begin_mysql(plain: socket.socket) -> bool:
    """Read the greeting, which a server that has no TLS would go on waiting after."""
    header = _read(plain, 4)
    greeting = _read(plain, header[0] | header[1] << 8 | header[2] << 16)
    # version, text up to a zero byte, connection id, 8 bytes of scramble and a filler: what the server can do
    at = greeting.find(b"\0", 1) + 1 + 4 + 8 + 1
    if greeting[:1] != b"\x0a" or not int.from_bytes(greeting[at : at + 2], "little") & 0x800:
        return False
    plain.sendall(_MYSQL_WANTS_TLS)
    return True


def _read(plain: socket.socket, size: int) -> bytes:
    read = b""
    while len(read) < size:
        received = plain.recv(size - len(read))
        if not received:
            raise ConnectionResetError
        read += received
    return read


_BEGINNINGS: dict[str, Callable[[socket.socket], bool]] = {
    "mysql": _begin_mysql,
    "postgresql": _begin_postgresql,
}
