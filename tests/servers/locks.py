# SPDX-License-Identifier: Apache-2.0
"""A database -> the moment from which somebody in it waits for a lock."""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import Future

    from sqlalchemy import Engine

PATIENCE = 60

_WAITING = {
    "mysql": "SELECT count(*) FROM information_schema.processlist LEFT JOIN information_schema.innodb_trx"
    " ON trx_mysql_thread_id = id WHERE db = DATABASE()"
    " AND (trx_state = 'LOCK WAIT' OR state LIKE 'Waiting for table%%')",
    "postgresql": "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock'",
}

_PAUSE = 0.15
"""Seconds between two looks: what InnoDB shows of its transactions is as old as it is until nobody looks for 0.1 s."""


def wait_for_waiters(engine: Engine, count: int = 1, work: Future[Any] | None = None) -> None:
    """Return as soon as so many connections to this database wait for a lock.

    :param work: what is to wait; it has to be under way until then
    """
    deadline = monotonic() + PATIENCE
    question = _WAITING[engine.dialect.name]
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        while (waiting := connection.exec_driver_sql(question).scalar_one()) < count:
            assert monotonic() < deadline, f"only {waiting} wait"
            assert work is None or not work.done()
            threading.Event().wait(_PAUSE)
