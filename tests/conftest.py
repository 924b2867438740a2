# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the real servers, for the tests that want some.

A server that does not answer is started for the test run, and ended with it. Where it is not installed either the test
is skipped; where ``CELLMW_TEST_SERVICES`` is ``required`` it fails. ``tests/servers`` says how to name other servers.

In a test every warning is an error. What two libraries say of themselves while they are imported is not about us, so
that is done here: oslo.messaging imports oslo.service, which imports the deprecated eventlet, and WebOb the deprecated
cgi.
"""

from __future__ import annotations

import os
import warnings
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import oslo_messaging  # noqa: F401
    import webob  # noqa: F401

from tests import servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import sqlalchemy

T = TypeVar("T")


def found(server: Callable[[], T]) -> T:
    """Return the server; where it is missing, skip, or fail where servers are required."""
    try:
        return server()
    except servers.ServerMissing as missing:
        if os.environ.get("CELLMW_TEST_SERVICES") == "required":
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))


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
        yield found(lambda: stack.enter_context(servers.rabbitmq()))
