# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a fresh database or vhost on a real server for each test, dropped when the test has ended.

The servers themselves are in ``tests/conftest.py``.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests import servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import sqlalchemy


@pytest.fixture
def new_postgresql_url(postgresql_server: sqlalchemy.URL) -> Iterator[Callable[[], str]]:
    """Each call creates an empty PostgreSQL database and returns its URL; all are dropped after the test."""
    with ExitStack() as databases:
        yield lambda: databases.enter_context(servers.postgresql_database(postgresql_server))


@pytest.fixture
def new_mariadb_url(mariadb_server: sqlalchemy.URL) -> Iterator[Callable[[], str]]:
    """Each call creates an empty MariaDB database and returns its URL; all are dropped after the test."""
    with ExitStack() as databases:
        yield lambda: databases.enter_context(servers.mariadb_database(mariadb_server))


@pytest.fixture
def new_rabbit_url(rabbitmq_server: servers.Broker) -> Iterator[Callable[[], str]]:
    """Each call creates an empty vhost and returns its transport URL; all are deleted after the test."""
    with ExitStack() as vhosts:
        yield lambda: vhosts.enter_context(rabbitmq_server.vhost())


@pytest.fixture
def postgresql_url(new_postgresql_url: Callable[[], str]) -> str:
    """The URL of an empty PostgreSQL database."""
    return new_postgresql_url()


@pytest.fixture
def mariadb_url(new_mariadb_url: Callable[[], str]) -> str:
    """The URL of an empty MariaDB database."""
    return new_mariadb_url()


@pytest.fixture
def rabbit_url(new_rabbit_url: Callable[[], str]) -> str:
    """The transport URL of an empty RabbitMQ vhost."""
    return new_rabbit_url()
