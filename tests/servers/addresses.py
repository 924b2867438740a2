# SPDX-License-Identifier: Apache-2.0
"""Addresses of servers that run already -> a fresh database or vhost for each user, dropped afterwards.

What a user gets is empty and its own, whatever else runs on that server.
"""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

import sqlalchemy
from sqlalchemy import exc, pool

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection

POSTGRESQL = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
MARIADB = "mysql+pymysql://root@127.0.0.1:3306/"
RABBITMQ = "rabbit://guest:guest@127.0.0.1:5672/"

CONNECT_TIMEOUT = 5
RABBITMQCTL_TIMEOUT = 60


class ServerMissing(Exception):
    """A server does not answer, or does not let us do what has to be done; the message says what to do."""


def _missing(what: str, variable: str, reason: object) -> ServerMissing:
    return ServerMissing(f"{what} is missing: start it, or name another one by {variable} ({str(reason).strip()})")


def _new_name() -> str:
    return f"cellmw_test_{secrets.token_hex(6)}"


@contextmanager
def administration(url: sqlalchemy.URL) -> Iterator[Connection]:
    """A connection outside any transaction, as CREATE DATABASE wants it on PostgreSQL."""
    engine = sqlalchemy.create_engine(
        url,
        poolclass=pool.NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args={"connect_timeout": CONNECT_TIMEOUT},
    )
    with engine.connect() as connection:
        yield connection


def answer(url: sqlalchemy.URL) -> None:
    """Connect to a database server.

    :raises sqlalchemy.exc.DBAPIError: if it does not answer
    """
    with administration(url):
        """A connection, which is closed."""


def _database_server(what: str, variable: str, default: str) -> sqlalchemy.URL:
    """The address of a database server that answers."""
    url = sqlalchemy.make_url(os.environ.get(variable, default))
    try:
        answer(url)
    except (exc.DBAPIError, ImportError) as error:
        raise _missing(what, variable, getattr(error, "orig", error)) from error
    return url


@contextmanager
def postgresql_database(server: sqlalchemy.URL) -> Iterator[str]:
    """An empty database, as a URL; what is still connected to it in the end is cut."""
    name = _new_name()
    with administration(server) as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        # it trusts whoever comes, and is told a password all the same: where that shows, the test fails
        password = server.password or secrets.token_hex(12)
        yield server.set(database=name, password=password).render_as_string(hide_password=False)
    finally:
        with administration(server) as connection:
            connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@contextmanager
def mariadb_database(server: sqlalchemy.URL) -> Iterator[str]:
    """An empty database, as a URL; what is still connected to it in the end is cut."""
    name = _new_name()
    with administration(server) as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        with administration(server) as connection:
            _drop_mariadb_database(connection, name)


def _drop_mariadb_database(connection: Connection, name: str) -> None:
    """Drop it even where a transaction was left open in it, for which DROP DATABASE alone would wait a day."""
    sessions = connection.exec_driver_sql("SELECT id FROM information_schema.processlist WHERE db = %s", (name,))
    for session in sessions.scalars().all():
        # a session that has ended since is what was wanted
        with suppress(exc.OperationalError):
            connection.exec_driver_sql(f"KILL {session:d}")
    connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name}")


class Broker:
    """A RabbitMQ server that answers. Lives as long as the test run; makes and drops vhosts."""

    def __init__(self, address: SplitResult, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        """Take it as it is.

        :param address: its URL, with a user that exists
        :param command: what runs rabbitmqctl for it
        :param environment: what it is run in, if not in ours
        """
        self._address = address
        self._command = command
        self._environment = environment

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._address.port or 5672

    @contextmanager
    def own_user(self) -> Iterator[None]:
        """Let vhosts be those of a user with a password like no other, until the block ends."""
        name, before = _new_name(), self._address
        self.administer("add_user", name, password := secrets.token_hex(12))
        try:
            host = before.netloc.rpartition("@")[2]
            self._address = before._replace(netloc=f"{name}:{password}@{host}")
            yield
        finally:
            self._address = before
            self.administer("delete_user", name)

    @contextmanager
    def vhost(self) -> Iterator[str]:
        """A fresh vhost, as a transport URL; its connections are closed with it."""
        name = _new_name()
        self.administer("add_vhost", name)
        try:
            self.administer("set_permissions", "-p", name, unquote(self._address.username or "guest"), *[".*"] * 3)
            yield self._address._replace(path=f"/{name}").geturl()
        finally:
            self.administer("delete_vhost", name)

    def administer(self, *arguments: str) -> str:
        """Run rabbitmqctl.

        :returns: what it prints
        :raises ServerMissing: if it can't be run, or fails
        """
        try:
            done = subprocess.run(
                [*self._command, "--quiet", *arguments],
                check=True,
                capture_output=True,
                text=True,
                timeout=RABBITMQCTL_TIMEOUT,
                env=self._environment,
            )
        except subprocess.CalledProcessError as failed:
            reason = f"{arguments[0]}: {(failed.stderr or failed.stdout).strip()}"
            raise _missing("rabbitmqctl with the right to make vhosts", "CELLMW_TEST_RABBITMQCTL", reason) from failed
        except OSError as error:
            raise _missing("rabbitmqctl", "CELLMW_TEST_RABBITMQCTL", error) from error
        return done.stdout


def postgresql_server() -> sqlalchemy.URL:
    """Return the address of a PostgreSQL server that answers, as a user who may create databases.

    :raises ServerMissing: if none does
    """
    return _database_server("PostgreSQL", "CELLMW_TEST_POSTGRESQL", POSTGRESQL)


def mariadb_server() -> sqlalchemy.URL:
    """Return the address of a MariaDB server that answers, as a user who may create databases.

    :raises ServerMissing: if none does
    """
    return _database_server("MariaDB", "CELLMW_TEST_MARIADB", MARIADB)


def rabbitmq_server() -> Broker:
    """Return a RabbitMQ server that answers and takes new vhosts.

    :raises ServerMissing: if none does
    """
    address = urlsplit(os.environ.get("CELLMW_TEST_RABBITMQ", RABBITMQ))
    try:
        socket.create_connection((address.hostname, address.port or 5672), timeout=CONNECT_TIMEOUT).close()
    except OSError as error:
        raise _missing("RabbitMQ", "CELLMW_TEST_RABBITMQ", error) from error
    broker = Broker(address, shlex.split(os.environ.get("CELLMW_TEST_RABBITMQCTL", "rabbitmqctl")))
    broker.administer("list_vhosts")
    return broker
