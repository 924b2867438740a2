# SPDX-License-Identifier: Apache-2.0
"""A private MariaDB server, as fast as one may be that has nothing to keep."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import sqlalchemy
from sqlalchemy import exc

from tests.servers.addresses import MARIADB, answer
from tests.servers.private import Home, Process, free_ports, program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.certificates import Certificate

FOLDERS = ("usr/libexec", "usr/sbin")
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
    install, mariadbd = (program(name, "mariadb", *FOLDERS) for name in ("mariadb-install-db", "mariadbd"))
    (port,) = free_ports(1)
    url = sqlalchemy.make_url(MARIADB).set(port=port)
    with Home("MariaDB") as home:
        data = f"--datadir={home.path}/data"
        small = "--innodb-log-file-size=8M"
        # no defaults: what this machine's own server is told is none of ours
        home.run(install, "--no-defaults", data, small, "--auth-root-authentication-method=normal", "--skip-test-db")
        tls = []
        if certificate is not None:
            paths = (home.write(f"server.{kind}", text) for kind, text in zip(("pem", "key"), certificate, strict=True))
            tls = [f"--ssl-{kind}={path}" for kind, path in zip(("cert", "key"), paths, strict=True)]
        process = home.start(
            *(mariadbd, "--no-defaults", data, small, "--bind-address=127.0.0.1", f"--port={port}"),
            *(f"--socket={home.path}/socket", f"--pid-file={home.path}/pid", "--skip-name-resolve"),
            *("--innodb-flush-log-at-trx-commit=0", "--skip-innodb-doublewrite"),
            *tls,
            answers=lambda: answer(url),
            unless=(exc.DBAPIError,),
        )
        yield url, process
