# SPDX-License-Identifier: Apache-2.0
"""A URL -> its parts, as they stand there: nothing is decoded, and nothing is checked."""

from __future__ import annotations

import re
from typing import NamedTuple

_URL = re.compile(
    r"(?P<scheme>[^:/?#]*):(?://(?P<authority>[^/?#]*))?(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?:#(?P<fragment>.*))?",
    re.DOTALL,
)

_BRACKETED = re.compile(r"\[(?P<hostname>[^\[\]]*)\](?::(?P<port>.*))?", re.DOTALL)


class Parts(NamedTuple):
    """What a URL consists of. None is what is not there, as opposed to what is empty."""

    scheme: str
    authority: str | None
    path: str
    query: str | None
    fragment: str | None


class Host(NamedTuple):
    """One of the hosts of a URL, with who is to log in there."""

    username: str | None
    password: str | None
    hostname: str
    port: str | None


def split(url: str) -> Parts | None:
    """Return the parts of a URL, or None where there is not even a colon."""
    parts = _URL.fullmatch(url)
    return None if parts is None else Parts(**parts.groupdict())


def split_hosts(authority: str) -> list[str]:
    """Return the hosts of an authority, as oslo.messaging has several, each with its credentials.

    A comma in a password, which a database URL may have, separates no hosts: the first one of several has credentials
    or none has.
    """
    hosts = authority.split(",")
    if "@" in authority and "@" not in hosts[0]:
        return [authority]
    return [host for host in hosts if host]


def split_host(host: str) -> Host:
    """Return the parts of one host. The last @ is the one in front of its name."""
    userinfo, at, place = host.rpartition("@")
    username, colon, password = userinfo.partition(":")
    hostname, port = _split_place(place)
    return Host(username if at else None, password if colon else None, hostname, port)


def _split_place(place: str) -> tuple[str, str | None]:
    if bracketed := _BRACKETED.fullmatch(place):
        return bracketed["hostname"], bracketed["port"]
    if place.count(":") != 1:
        return place, None  # an IPv6 address that has lost its brackets has no port
    hostname, _, port = place.partition(":")
    return hostname, port
