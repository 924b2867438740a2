# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the real servers, and a fresh database or vhost on them for each test, dropped when it has ended.

A server that does not answer is started for the test run, and ended with it. Where it is not installed either the test
is skipped; where ``CELLMW_TEST_SERVICES`` is ``required`` it fails. ``tests/servers`` says how to name other servers.

In a test every warning is an error. What two libraries say of themselves while they are imported is not about us, so
that is done here: oslo.messaging imports oslo.service, which imports the deprecated eventlet, and WebOb the deprecated
cgi.
"""

from __future__ import annotations

import os
import signal
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import oslo_context.context
import pytest
from oslo_config import cfg

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import oslo_messaging  # noqa: F401
    import webob  # noqa: F401

from cellmw.conf import register_opts
from tests import servers
from tests.logs import logging_undone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import sqlalchemy

T = TypeVar("T")

pytest_plugins = ["tests.leaks"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell has what it runs in the background ignore Ctrl-C, and so would all that the tests start there
    signal.signal(signal.SIGINT, signal.default_int_handler)


def found(server: Callable[[], T]) -> T:
    """Return the server; where it is missing, skip, or fail where servers are required."""
    try:
        return server()
    except servers.ServerMissing as missing:
        if os.environ.get("CELLMW_TEST_SERVICES") == "required":
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))


@pytest.fixture(autouse=True)
def no_current_context() -> Iterator[None]:
    """oslo.context remembers the newest context of each thread: that of one test is none of the next one's."""
    yield
    vars(oslo_context.context._request_store).pop("context", None)


@pytest.fixture
def conf() -> cfg.ConfigOpts:
    """A configuration of the test's own, with every option registered and no file read."""
    conf = cfg.ConfigOpts()
    conf([], project="cellmw", default_config_files=[], default_config_dirs=[])
    register_opts(conf)
    return conf


@pytest.fixture
def logging_as_it_was() -> Iterator[None]:
    """Undo in the end what oslo.log sets up for the process, as a command does."""
    with logging_undone():
        yield


@pytest.fixture(scope="module")
def stopped() -> Iterator[list[Any]]:
    """Servers that were stopped: to wait for one takes the library a second, so all are waited for at once."""
    servers: list[Any] = []
    yield servers
    with ThreadPoolExecutor(len(servers)) as threads:
        list(threads.map(lambda server: server.wait(), servers))


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[sqlalchemy.URL]:
    """The address of a PostgreSQL server, as a user who may create databases."""
    with ExitStack() as stack:
        yield found(lambda: stack.enter_context(servers.postgresql()))


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[sqlalchemy.URL]:
    """The address of a MariaDB server, as a user who may create databases."""
    with ExitStack() as stack:
        yield found(lambda: stack.enter_context(servers.mariadb()))


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[servers.Broker]:
    """A RabbitMQ server that takes new vhosts."""
    with ExitStack() as stack:
        broker = found(lambda: stack.enter_context(servers.rabbitmq()))
        stack.enter_context(broker.own_user())
        yield broker


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
