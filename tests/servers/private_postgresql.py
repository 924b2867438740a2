# SPDX-License-Identifier: Apache-2.0
"""A private PostgreSQL server, as fast as one may be that has nothing to keep."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import sqlalchemy
from sqlalchemy import exc

from tests.servers.addresses import POSTGRESQL, answer
from tests.servers.private import Home, Process, free_ports, program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.certificates import Certificate

FOLDERS = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin")
"""Where distributions keep what is not for PATH."""


@contextmanager
def started() -> Iterator[sqlalchemy.URL]:
    """The address of a server that is gone when the block ends."""
    with started_with_process() as (url, _):
        yield url


@contextmanager
def started_with_process(certificate: Certificate | None = None) -> Iterator[tuple[sqlalchemy.URL, Process]]:
    """The address of such a server, and its process.

    :param certificate: what it shows to who speaks TLS to it; without one it speaks none
    """
    initdb, postgres = (program(name, "postgresql", *FOLDERS) for name in ("initdb", "postgres"))
    (port,) = free_ports(1)
    url = sqlalchemy.make_url(POSTGRESQL).set(port=port)
    with Home("PostgreSQL") as home:
        data = str(home.path / "data")
        how = ["--auth=trust", f"--username={url.username}", "--encoding=UTF8", "--locale=C", "--no-sync"]
        home.run(initdb, "--pgdata", data, *how)
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        if certificate is not None:
            paths = (home.write(f"server.{kind}", text) for kind, text in zip(("pem", "key"), certificate, strict=True))
            settings |= {"ssl": "on"} | dict(zip(("ssl_cert_file", "ssl_key_file"), map(str, paths), strict=True))
        process = home.start(
            *(postgres, "-D", data, "-p", str(port)),
            *(f"--{name}={value}" for name, value in settings.items()),
            # ends at once and, other than by SIGKILL, together with its children and its shared memory
            end=signal.SIGQUIT,
            answers=lambda: answer(url),
            unless=(exc.DBAPIError,),
        )
        yield url, process
