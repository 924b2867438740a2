# SPDX-License-Identifier: Apache-2.0
"""A URL that is complete -> where it leads, whoever logs in there and with whatever options.

Names are compared as they are: that two of them are the same machine is not found out.
"""

from __future__ import annotations

import os
from urllib.parse import unquote

import sqlalchemy
from sqlalchemy import exc

from cellmw.cell import NO_TRANSPORT_SCHEME
from cellmw.exceptions import UrlRefused
from cellmw.urls.parts import Host, Parts, split, split_host, split_hosts

_AMQP_PORT = 5672
"""Where the driver connects to by default, with TLS as well."""

_RABBIT = ("rabbit", "kombu+amqp", "kombu+amqps", "kombu+pyamqp")

_PORTS = {"mysql": 3306, "postgresql": 5432}

_SAME_SERVERS = {"mariadb": "mysql"}

_KINDS = {"mysql": "MariaDB or MySQL", "postgresql": "PostgreSQL", "sqlite": "SQLite"}


def transport_place(url: str) -> frozenset[tuple[str, int, str]]:
    """Return host, port and virtual host of each host; empty for ``none:///``.

    Of drivers other than RabbitMQ's, none of which has several hosts that are one, the host has the driver in front.

    :raises UrlRefused: if it can't be read
    """
    if url.startswith(NO_TRANSPORT_SCHEME):
        return frozenset()
    parts = split(url)
    if parts is None or (parts.authority is None and parts.path):
        raise UrlRefused("it is no URL")
    if "@" in parts.path:  # which is behind what was taken for the hosts: of a password that nobody has encoded
        raise UrlRefused("it has an @ behind its hosts")
    hosts = [split_host(host) for host in split_hosts(parts.authority or "")]
    vhost = unquote(parts.path.removeprefix("/")) or "/"
    return frozenset((*_queue(parts, host), vhost) for host in hosts or [split_host("")])


def _queue(parts: Parts, host: Host) -> tuple[str, int]:
    scheme = parts.scheme.lower()
    if scheme not in _RABBIT:
        return f"{scheme}://{host.hostname}", _port(host.port, 0)
    return host.hostname.lower() or "localhost", _port(host.port, _AMQP_PORT)


def _port(port: str | None, default: int) -> int:
    try:
        return int(port or default)
    except ValueError:
        raise UrlRefused("its port is not a number") from None


def database_place(url: str) -> tuple[object, ...]:
    """Return server, host, port and name of the database; of SQLite, the file.

    :raises UrlRefused: if it can't be read
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except (exc.ArgumentError, ValueError):
        raise UrlRefused("it is not one that SQLAlchemy can read") from None
    backend = _SAME_SERVERS.get(parsed.get_backend_name(), parsed.get_backend_name())
    if backend == "sqlite":
        return backend, _file(parsed)
    return backend, _server(parsed), parsed.port or parsed.query.get("port") or _PORTS.get(backend), parsed.database


def server_kind(server: object) -> str:
    """Return what people call a server, as :func:`database_place` has it."""
    return _KINDS.get(str(server), str(server))


def harmless(host: object) -> str:
    """Return a name without what stands in front of an @: of a URL that nobody has encoded that is a password's end."""
    return str(host).rpartition("@")[2]


def _server(url: sqlalchemy.URL) -> str:
    """Return where the drivers look, which the query can say, too."""
    socket = url.query.get("unix_socket") or url.query.get("host")
    if socket:
        return str(socket)
    return (url.host or "").lower() or str(
        url.query.get("service") or url.query.get("read_default_file") or "localhost"
    )


def _file(url: sqlalchemy.URL) -> str:
    name = url.database or ":memory:"
    return name if name == ":memory:" else os.path.realpath(name)
