# SPDX-License-Identifier: Apache-2.0
"""Addresses of a RabbitMQ -> whether one of them answers: the first frame that a broker sends, and no more.

No user, no password and no message is sent, and nothing is waited for longer than a bound, so that it can be asked of a
broker that is frozen, or behind a network that swallows everything.
"""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, NamedTuple

from cellmw.deadline import after, left

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cellmw.deadline import Deadline

PATIENCE = 2.0
"""Seconds that all addresses together have."""

_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"

_START = b"\x01\x00\x00"
"""What a frame begins with that is a method and for no channel, as the broker's first one is."""


class Address(NamedTuple):
    """Where a broker listens."""

    host: str
    port: int


class NoAnswer(Exception):
    """Something listens there, and it is no broker, or one that is not well."""


def shake_hands(addresses: Sequence[Address], tls: ssl.SSLContext | None, patience: float = PATIENCE) -> None:
    """Return if a broker answers at one of these addresses.

    :raises OSError: if none does in time: what the last one has failed with
    :raises NoAnswer: if what answers is no broker
    """
    deadline = after(patience)
    for number, address in enumerate(addresses):
        # one that swallows everything leaves the others their share
        share = left(deadline) / (len(addresses) - number)
        try:
            _shake_hands(address, tls, after(share))
        except (OSError, NoAnswer) as error:
            if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
                return  # somebody is there to say that it is not the TLS that was agreed on
            if number == len(addresses) - 1:
                raise
        else:
            return


def unverified() -> ssl.SSLContext:
    """Return what makes a TLS connection to anybody: who it is does not matter as long as nothing is told."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _shake_hands(address: Address, tls: ssl.SSLContext | None, deadline: Deadline) -> None:
    with socket.create_connection(address, timeout=_some(deadline)) as plain:
        plain.settimeout(_some(deadline))
        with plain if tls is None else tls.wrap_socket(plain, server_hostname=address.host) as connection:
            connection.settimeout(_some(deadline))
            connection.sendall(_PROTOCOL_HEADER)
            answer = b""
            while len(answer) < len(_START):
                connection.settimeout(_some(deadline))
                received = connection.recv(len(_START) - len(answer))
                if not received:
                    raise NoAnswer
                answer += received
            if answer != _START:
                raise NoAnswer


def _some(deadline: Deadline) -> float:
    # 0.0 would be "don't wait", and is an error of another kind
    return max(0.001, left(deadline))
