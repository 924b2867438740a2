# SPDX-License-Identifier: Apache-2.0
"""Addresses of a RabbitMQ -> whether one of them answers, and how: the first frame that a broker sends, and no more.

No user, no password and no message is sent, and nothing is waited for longer than a bound, so that it can be asked of a
broker that is frozen, or behind a network that swallows everything.
"""

from __future__ import annotations

import socket
import ssl
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import amqp
from amqp import serialization

from cellmw.deadline import after, left

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cellmw.deadline import Deadline

PATIENCE = 2.0
"""Seconds that all addresses together have."""

_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"

_START = b"\x01\x00\x00"
"""What a frame begins with that is a method and for no channel, as the broker's first one is."""

_SIZE = struct.Struct(">I")
"""What follows, in a frame, before its payload."""

_MAX_SIZE = 2**16
"""Bytes beyond which what says that it is a broker's first frame is none."""

_METHOD = b"\x00\x0a\x00\x0a"
"""What the payload of the first frame begins with: connection.start."""


class Address(NamedTuple):
    """Where a broker listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class NoAnswer(Exception):
    """Something listens there, and it is no broker, or one that is not well."""


def shake_hands(addresses: Sequence[Address], tls: ssl.SSLContext | None, patience: float = PATIENCE) -> None:
    """Return if a broker answers at one of these addresses.

    :raises OSError: if none does in time: what the last one has failed with, an ``ssl.SSLError`` where it was that
    :raises NoAnswer: if what answers is no broker
    """
    for number, (address, deadline) in enumerate(_shares(addresses, patience), 1):
        try:
            with _greeted(address, tls, deadline):
                return
        except (OSError, NoAnswer):
            if number == len(addresses):
                raise


def cluster_names(
    addresses: Sequence[Address], tls: ssl.SSLContext | None, patience: float = PATIENCE
) -> dict[Address, str]:
    """Return which cluster each of these brokers says that it is in; what does not answer in time is left out.

    A broker that nobody has told a name (``rabbitmqctl set_cluster_name``) says its own, also where it is one of
    several in a cluster, and two that are called alike on hosts that are called alike say the same. So names that
    differ don't prove that it is not one cluster, and equal ones don't prove that it is.
    """
    names = {}
    for address, deadline in _shares(addresses, patience):
        try:
            with _greeted(address, tls, deadline) as connection:
                name = _cluster_name(connection, deadline)
        except (OSError, NoAnswer):
            continue
        if name:
            names[address] = name
    return names


def speaks_tls(address: Address, patience: float) -> bool:
    """Tell whether what listens there takes part in TLS, in whatever way."""
    deadline = after(patience)
    try:
        with _connected(address, unverified(), deadline):
            return True
    except ssl.SSLError as error:
        # a "no" that was said in TLS; what comes from something else is WRONG_VERSION_NUMBER or the like
        return "ALERT" in (getattr(error, "reason", None) or "")
    except OSError:
        return False


def speaks_plainly(address: Address, patience: float) -> bool:
    """Tell whether what listens there is a broker that wants no TLS."""
    try:
        shake_hands([address], None, patience)
    except (OSError, NoAnswer):
        return False
    return True


def objection(address: Address, tls: ssl.SSLContext, patience: float) -> ssl.SSLError | None:
    """Return what is wrong with this TLS, as far as one that listens there says so; None if it says nothing.

    In TLS 1.3 what the other side thinks of our certificate comes after the handshake. Whoever speaks on at once can
    find the connection closed before it has read that; nothing is said here.
    """
    deadline = after(patience)
    try:
        with _connected(address, tls, deadline) as connection:
            connection.recv(1)
    except ssl.SSLError as error:
        return error
    except OSError:
        """It has nothing to say."""
    return None


def certificate_of(address: Address, tls: ssl.SSLContext, patience: float) -> bytes | None:
    """Return the certificate that one that listens there shows, in DER.

    :raises OSError: if it does not answer in time, or ends the handshake
    """
    deadline = after(patience)
    with _connected(address, tls, deadline) as connection:
        assert isinstance(connection, ssl.SSLSocket)
        return connection.getpeercert(binary_form=True)


def unverified() -> ssl.SSLContext:
    """Return what makes a TLS connection to anybody: who it is does not matter as long as nothing is told."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _shares(addresses: Sequence[Address], patience: float) -> Iterator[tuple[Address, Deadline]]:
    """Give each address its share of what is left: one that swallows everything leaves the others theirs."""
    deadline = after(patience)
    for number, address in enumerate(addresses):
        yield address, after(left(deadline) / (len(addresses) - number))


@contextmanager
def _connected(address: Address, tls: ssl.SSLContext | None, deadline: Deadline) -> Iterator[socket.socket]:
    with _reached(address, deadline) as plain:
        plain.settimeout(_some(deadline))
        with plain if tls is None else tls.wrap_socket(plain, server_hostname=address.host) as connection:
            connection.settimeout(_some(deadline))
            yield connection


def _reached(address: Address, deadline: Deadline) -> socket.socket:
    try:
        return socket.create_connection(address, timeout=_some(deadline))
    except UnicodeError:  # as of a..b, which can't even be asked for
        raise socket.gaierror(socket.EAI_NONAME, "no name of a host") from None


@contextmanager
def _greeted(address: Address, tls: ssl.SSLContext | None, deadline: Deadline) -> Iterator[socket.socket]:
    """A connection by which a broker has begun to talk."""
    with _connected(address, tls, deadline) as connection:
        connection.sendall(_PROTOCOL_HEADER)
        if _read(connection, len(_START), deadline) != _START:
            raise NoAnswer
        yield connection


def _cluster_name(connection: socket.socket, deadline: Deadline) -> str:
    (size,) = _SIZE.unpack(_read(connection, _SIZE.size, deadline))
    if size > _MAX_SIZE:
        raise NoAnswer
    payload = _read(connection, size, deadline)
    if not payload.startswith(_METHOD):
        raise NoAnswer
    try:
        (_, _, properties), _ = serialization.loads("ooF", payload, len(_METHOD))
    except (amqp.AMQPError, ValueError, LookupError, struct.error) as malformed:
        raise NoAnswer from malformed
    return str(properties.get("cluster_name", ""))


def _read(connection: socket.socket, size: int, deadline: Deadline) -> bytes:
    answer = b""
    while len(answer) < size:
        connection.settimeout(_some(deadline))
        received = connection.recv(size - len(answer))
        if not received:
            raise NoAnswer
        answer += received
    return answer


def _some(deadline: Deadline) -> float:
    # 0.0 would be "don't wait", and is an error of another kind
    return max(0.001, left(deadline))
