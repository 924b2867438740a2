# SPDX-License-Identifier: Apache-2.0
"""What the engines have of oslo.db, and what they do differently."""

from __future__ import annotations

import inspect
import sqlite3
import threading
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from oslo_db import exception as db_exc
from oslo_db.sqlalchemy import engines as oslo_engines
from sqlalchemy import event, exc, pool, text

from cellmw.engines import WRITER, make_engine
from cellmw.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Engine

THREADS = 16


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a SQLite file with an empty table."""
    file = tmp_path / "test.sqlite"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE numbers (number INTEGER UNIQUE)")
    connection.close()
    return f"sqlite:///{file}"


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """An engine on that file, with room for every thread."""
    engine = make_engine(url, {"max_pool_size": THREADS}, pre_ping=False)
    yield engine
    engine.dispose()


def begun(engine: Engine) -> list[str]:
    """Record the statements that begin a transaction."""
    statements: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def record(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        if statement.startswith("BEGIN"):
            statements.append(statement)

    return statements


def test_making_connects_to_nothing(tmp_path: Path) -> None:
    """Making an engine opens no connection: not even a SQLite file is made."""
    make_engine(f"sqlite:///{tmp_path}/new.sqlite", {}, pre_ping=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["mysql+pymysql://u:p@127.0.0.1:1/d", "postgresql+psycopg://u:p@127.0.0.1:1/d"])
def test_making_does_not_look_for_the_server(url: str) -> None:
    """Making an engine succeeds where no server answers."""
    assert isinstance(make_engine(url, {}, pre_ping=True).pool, pool.QueuePool)


@pytest.mark.parametrize("pre_ping", [True, False])
def test_pre_ping(url: str, pre_ping: bool) -> None:
    """Whether pooled connections are tested is the caller's choice, and not oslo.db's."""
    assert make_engine(url, {}, pre_ping=pre_ping).pool._pre_ping is pre_ping


def test_sqlite_file_has_a_pool(url: str) -> None:
    """A SQLite file is opened once and not for each transaction; the options of its pool count."""
    opened: list[Any] = []
    engine = make_engine(url, {"max_pool_size": 3, "max_overflow": 2, "pool_timeout": 0}, pre_ping=False)
    event.listen(engine, "connect", lambda connection, record: opened.append(connection))
    for _ in range(3):
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    assert isinstance(engine.pool, pool.QueuePool)
    assert (engine.pool.size(), engine.pool._max_overflow, engine.pool.timeout()) == (3, 2, 0)
    assert len(opened) == 1
    engine.dispose()


def test_unset_options_are_left_to_sqlalchemy(url: str) -> None:
    """An option that is not set, as oslo.db has some, does not become a pool's None."""
    engine = make_engine(url, {"max_pool_size": None, "max_overflow": None, "pool_timeout": None}, pre_ping=False)
    assert engine.pool.size() == 5


def test_memory_database_is_one_database() -> None:
    """All connections of an engine to ``sqlite://`` see the same database."""
    engine = make_engine("sqlite://", {}, pre_ping=False)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x INTEGER)"))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM t")).scalar_one() == 0
    engine.dispose()


def test_errors_are_those_of_oslo_db(engine: Engine) -> None:
    """An error of the driver arrives as oslo.db's class for it."""
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO numbers VALUES (1)"))
        with pytest.raises(db_exc.DBDuplicateEntry):
            connection.execute(text("INSERT INTO numbers VALUES (1)"))


def test_no_yield_at_checkin(url: str) -> None:
    """oslo.db's sleep(0) at each checkin, which only eventlet needs, is left out."""
    assert oslo_engines._thread_yield not in list(make_engine(url, {}, pre_ping=False).pool.dispatch.checkin)


def test_reader_begins_deferred(engine: Engine) -> None:
    """A reader's transaction takes no lock before its first statement."""
    statements = begun(engine)
    with engine.begin() as connection:
        connection.execute(text("SELECT 1"))
    assert statements == ["BEGIN"]


def test_writer_begins_immediate(engine: Engine) -> None:
    """A writer's transaction takes the lock when it begins, and each one does."""
    statements = begun(engine)
    writer = engine.execution_options(**WRITER)
    for _ in range(2):
        with writer.begin() as connection:
            connection.execute(text("SELECT 1"))
    assert statements == ["BEGIN IMMEDIATE"] * 2


def test_reader_after_writer(engine: Engine) -> None:
    """A pooled connection that a writer had begins deferred again for a reader, also after a roll-back."""
    writer = engine.execution_options(**WRITER)
    with pytest.raises(ZeroDivisionError), writer.begin():
        raise ZeroDivisionError
    statements = begun(engine)
    with engine.begin() as connection:
        connection.execute(text("SELECT 1"))
    assert statements == ["BEGIN"]


def test_savepoint_in_a_writer(engine: Engine) -> None:
    """A savepoint inside a writer's transaction is no second transaction."""
    statements = begun(engine)
    with engine.execution_options(**WRITER).begin() as connection, connection.begin_nested():
        connection.execute(text("INSERT INTO numbers VALUES (1)"))
    assert statements == ["BEGIN IMMEDIATE"]


def test_writer_that_gets_no_lock(url: str) -> None:
    """A writer that can't have the lock fails when it begins, and its connection is good for the next one."""
    engine = make_engine(f"{url}?timeout=0", {"max_pool_size": 2}, pre_ping=False)
    writer = engine.execution_options(**WRITER)
    with writer.begin(), pytest.raises(exc.OperationalError, match="database is locked"), writer.begin():
        pass
    with writer.begin() as connection:
        connection.execute(text("INSERT INTO numbers VALUES (1)"))
    engine.dispose()


def test_select_then_insert(engine: Engine, together: Callable[[int, Callable[[int], Any]], list[Any]]) -> None:
    """Writers that select and then insert, in 16 threads at a time, never meet a database that is locked."""
    writer = engine.execution_options(**WRITER)
    rounds = 8

    def count_up(_: int) -> None:
        for _ in range(rounds):
            with writer.begin() as connection:
                last = connection.execute(text("SELECT max(number) FROM numbers")).scalar_one() or 0
                connection.execute(text("INSERT INTO numbers VALUES (:number)"), {"number": last + 1})

    assert together(THREADS, count_up) == [None] * THREADS
    with engine.connect() as connection:
        assert connection.execute(text("SELECT max(number) FROM numbers")).scalar_one() == THREADS * rounds


SECRET = "s3" + "cret"  # in two parts: a traceback quotes the line

BAD = [
    ("no URL at all", SECRET),
    ("no scheme", f"://u:{SECRET}@h/d"),
    ("unknown dialect", f"nosuch://u:{SECRET}@h/d"),
    ("unknown driver", f"mysql+nosuch://u:{SECRET}@h/d"),
    ("driver that is not installed", f"mssql+pyodbc://u:{SECRET}@h/d"),
    ("async driver that is not installed", f"postgresql+asyncpg://u:{SECRET}@h/d"),
    ("port that is none", f"mysql+pymysql://u:{SECRET}@h:port/d"),
    ("two ports", f"postgresql+psycopg://u:{SECRET}@h:1:2/d"),
    ("SQLite with a host", f"sqlite://u:{SECRET}@h/d"),
    ("SQLite option that is no number", f"sqlite:///d?timeout={SECRET}"),
    ("MySQL option that is no number", f"mysql+pymysql://u:{SECRET}@h/d?connect_timeout={SECRET}"),
    ("unknown plugin", f"mysql+pymysql://u:p@h/d?plugin={SECRET}"),
    ("template", f"{{scheme}}://u:{SECRET}@h/d"),
]


@pytest.mark.parametrize("url", [url for _, url in BAD], ids=[name for name, _ in BAD])
def test_bad_url(url: str) -> None:
    """A URL that can't be used is a ConfigError, and its whole traceback shows nothing of the URL's secrets."""
    with pytest.raises(ConfigError) as caught:
        make_engine(url, {}, pre_ping=False)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_missing_driver_is_named() -> None:
    """Where only the driver is missing the message says which."""
    with pytest.raises(ConfigError, match="the driver of 'mssql\\+pyodbc' databases is not installed: pyodbc"):
        make_engine("mssql+pyodbc://u:p@h/d", {}, pre_ping=False)


def test_password_that_nobody_encoded(caplog: pytest.LogCaptureFixture) -> None:
    """A password with an @ in it, which is parsed into the host, is in no log."""
    with pytest.raises(ConfigError):
        make_engine(f"oracle://u:first@{SECRET}@h/d", {}, pre_ping=False)
    assert SECRET not in caplog.text


def test_oslo_db_takes_what_is_leaned_on() -> None:
    """oslo.db lets an engine be made by a function of ours, and tells a transaction that has begun by this key."""
    parameters = inspect.signature(oslo_engines.create_engine).parameters
    assert {"_engine_target", "thread_checkin", "max_retries"} <= parameters.keys()
    assert '"in_transaction"' in inspect.getsource(oslo_engines)


def test_threads_share_an_engine(engine: Engine, in_thread: Callable[[Callable[[], Any]], Any]) -> None:
    """A pooled connection that one thread has opened is used by another."""
    with engine.connect():
        first = threading.get_ident()
    assert first != in_thread(threading.get_ident)
    assert in_thread(lambda: engine.connect().close()) is None
    assert engine.pool.checkedin() == 1
