# SPDX-License-Identifier: Apache-2.0
"""Database URL and options -> SQLAlchemy engine, with oslo.db's conventions.

An engine made here has oslo.db's error classes, SQL mode and fork guard. It differs from oslo.db's own in three ways:
making it opens no connection, a SQLite file gets a real pool (oslo.db reconnects for every transaction), and a SQLite
writer takes its lock at the beginning (a deferred one can fail with "database is locked" half-way).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import sqlalchemy
from oslo_db.sqlalchemy import engines as oslo_engines
from sqlalchemy import event, exc, pool

from cellmw.bounds import BoundedPool
from cellmw.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection, Engine

_SECRET_NAME = re.compile(r"pass|pwd|secret|token", re.IGNORECASE)

WRITER = {"cellmw_writer": True}
"""Execution options of connections that are going to write: ``engine.execution_options(**WRITER)``."""


def make_engine(url: str, options: Mapping[str, Any], *, pre_ping: bool) -> Engine:
    """Make an engine for this URL; nothing is connected to yet.

    :param url: a SQLAlchemy URL with its password
    :param options: keyword arguments of ``oslo_db.sqlalchemy.engines.create_engine``
    :param pre_ping: whether a pooled connection is tested before each use, for a round trip more
    :raises ConfigError: if the URL is malformed or its driver is not installed; the message shows no part of it but
        the driver's name
    """

    def engine_target(parsed: sqlalchemy.URL, **arguments: Any) -> tuple[Engine, Engine]:
        parsed, secrets = _without_secrets(parsed)
        arguments["connect_args"] = arguments.get("connect_args", {}) | secrets
        if arguments.get("poolclass") is pool.NullPool:
            arguments |= _queue_pool_arguments(options)
        if arguments.get("poolclass", pool.NullPool) is pool.NullPool:
            arguments["poolclass"] = BoundedPool
        engine = sqlalchemy.create_engine(parsed, **arguments | {"pool_pre_ping": pre_ping})
        if engine.dialect.name == "sqlite":
            event.listen(engine, "begin", _lock_for_writing)
        return engine, engine

    try:
        # thread_checkin would sleep(0) at each checkin, for eventlet's sake; max_retries=0 keeps it from connecting
        engine: Engine = oslo_engines.create_engine(
            _with_driver(sqlalchemy.make_url(url)),
            **options,
            thread_checkin=False,
            max_retries=0,
            _engine_target=engine_target,
        )
    except exc.NoSuchModuleError:
        raise ConfigError(f"no SQLAlchemy dialect is installed for {_driver_name(url)!r} databases") from None
    except ImportError as missing:
        raise ConfigError(f"the driver of {_driver_name(url)!r} databases is not installed: {missing.name}") from None
    except (exc.ArgumentError, ValueError, TypeError):
        # their messages can quote the URL, with its password
        raise ConfigError("its database URL is not one that SQLAlchemy can read") from None
    return engine


def _with_driver(url: sqlalchemy.URL) -> sqlalchemy.URL:
    """Name the driver that SQLAlchemy would choose: oslo.db logs a URL that names none."""
    if "+" in url.drivername:
        return url
    return url.set(drivername=f"{url.drivername}+{url.get_driver_name()}")


def _without_secrets(url: sqlalchemy.URL) -> tuple[sqlalchemy.URL, dict[str, Any]]:
    """Take out what an engine would show of its URL: SQLAlchemy masks the password, and nothing in the query."""
    secrets = {name: value for name, value in url.query.items() if _SECRET_NAME.search(name)}
    return url.difference_update_query(secrets), secrets


def _queue_pool_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    names = {"max_pool_size": "pool_size", "max_overflow": "max_overflow", "pool_timeout": "pool_timeout"}
    return {names[key]: value for key, value in options.items() if key in names and value is not None}


def _lock_for_writing(connection: Connection) -> None:
    """Begin a writer's transaction before oslo.db's own listener, which then leaves it alone, begins a deferred one."""
    if connection.get_execution_options().get("cellmw_writer") and "in_transaction" not in connection.info:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.info["in_transaction"] = True


def _driver_name(url: str) -> str:
    return url.partition(":")[0]
