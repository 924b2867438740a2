# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL, MariaDB and RabbitMQ for tests and benchmarks: a server -> a fresh database or vhost for each user.

``postgresql()``, ``mariadb()`` and ``rabbitmq()`` are the server that answers at its usual address or, where none does,
a private one, which is started from installed programs and gone when their block ends. What the variables say comes
before what is usual:

====================================== ======================================================
``CELLMW_TEST_POSTGRESQL``             ``postgresql+psycopg://postgres@127.0.0.1:5432/postgres``
``CELLMW_TEST_MARIADB``                ``mysql+pymysql://root@127.0.0.1:3306/``
``CELLMW_TEST_RABBITMQ``               ``rabbit://guest:guest@127.0.0.1:5672/``
``CELLMW_TEST_RABBITMQCTL``            ``rabbitmqctl``, run on the broker's own machine
``CELLMW_TEST_SERVICES``               ``required``: fail where a test would skip
====================================== ======================================================

``addresses.py`` has the servers that run already, ``private.py`` what the private ones have in common.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar

from tests.servers import private_mariadb, private_postgresql, private_rabbitmq
from tests.servers.addresses import (
    Broker,
    ServerMissing,
    mariadb_database,
    mariadb_server,
    postgresql_database,
    postgresql_server,
    rabbitmq_server,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import sqlalchemy

__all__ = [
    "Broker",
    "ServerMissing",
    "mariadb",
    "mariadb_database",
    "mariadb_server",
    "postgresql",
    "postgresql_database",
    "postgresql_server",
    "rabbitmq",
    "rabbitmq_server",
]

T = TypeVar("T")


def postgresql() -> AbstractContextManager[sqlalchemy.URL]:
    """A PostgreSQL server, as a user who may create databases.

    :raises ServerMissing: on entering, if none answers and none can be started
    """
    return _found_or_started(postgresql_server, private_postgresql.started)


def mariadb() -> AbstractContextManager[sqlalchemy.URL]:
    """A MariaDB server, as a user who may create databases.

    :raises ServerMissing: on entering, if none answers and none can be started
    """
    return _found_or_started(mariadb_server, private_mariadb.started)


def rabbitmq() -> AbstractContextManager[Broker]:
    """A RabbitMQ server that takes new vhosts.

    :raises ServerMissing: on entering, if none answers and none can be started
    """
    return _found_or_started(rabbitmq_server, private_rabbitmq.started)


@contextmanager
def _found_or_started(find: Callable[[], T], started: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
    with ExitStack() as stack:
        try:
            server = find()
        except ServerMissing as missing:
            try:
                server = stack.enter_context(started())
            except ServerMissing as not_started:
                raise ServerMissing(f"{missing}; {not_started}") from not_started
        yield server
