# SPDX-License-Identifier: Apache-2.0
"""What becomes of a database failure: one more attempt, or an error that says what to do and shows nothing."""

from __future__ import annotations

import contextlib
import sqlite3
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event

from cellmw import engines
from cellmw.deadline import after
from cellmw.exceptions import InstanceMapped, StoreUnavailable
from cellmw.limits import Limits
from cellmw.store import Store, migrations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Engine

INSTANCE = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """An engine on a synced database, with room for two connections."""
    options = {"max_pool_size": 2, "max_overflow": 0, "pool_timeout": 0}
    engine = engines.make_engine(f"sqlite:///{tmp_path}/api.db", options, pre_ping=False)
    migrations.sync(engine)
    yield engine
    engine.dispose()


@pytest.fixture(params=[None, Limits()], ids=["unbounded", "bounded"])
def limits(request: pytest.FixtureRequest) -> Limits | None:
    """What bounds the waits: nothing, as for an operator's command, or what does so in a service."""
    limits: Limits | None = request.param
    return limits


@pytest.fixture
def connections(engine: Engine) -> list[Any]:
    """The driver's connections, in the order in which they were opened from now on."""
    opened: list[Any] = []
    event.listen(engine, "connect", lambda connection, record: opened.append(connection))
    engine.dispose()
    return opened


def fill_pool(engine: Engine) -> None:
    """Leave two idle connections in the pool."""
    with engine.connect(), engine.connect():
        pass


def test_read_survives_dropped_connections(engine: Engine, connections: list[Any], limits: Limits | None) -> None:
    """A read that meets a dropped connection is answered on a fresh one, though every pooled one was dropped."""
    store = Store(engine, limits)
    fill_pool(engine)
    for connection in connections[:]:
        connection.close()
    assert store.find_instance(INSTANCE) is None
    assert len(connections) == 3


def test_write_survives_dropped_connections(engine: Engine, connections: list[Any], limits: Limits | None) -> None:
    """A write that had not begun to commit is done on a fresh connection, once."""
    store = Store(engine, limits)
    fill_pool(engine)
    for connection in connections[:]:
        connection.close()
    store.create_instance(INSTANCE, project_id="p")
    with pytest.raises(InstanceMapped):
        store.create_instance(INSTANCE, project_id="p")


def test_closed_while_it_is_read(engine: Engine, connections: list[Any], limits: Limits | None) -> None:
    """What is out when the store is closed, and what upkeep that goes on connects after that, is closed, too."""
    store = Store(engine, limits)
    with engine.connect():
        store.close()
        connections[0].execute("SELECT 1")
    assert store.find_instance(INSTANCE) is None
    assert len(connections) == 2
    for connection in connections:
        with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
            connection.execute("SELECT 1")


def test_no_third_attempt(engine: Engine, connections: list[Any], limits: Limits | None) -> None:
    """A database that drops the fresh connection, too, is down."""
    store = Store(engine, limits)
    event.listen(engine, "engine_connect", lambda connection: connection.connection.dbapi_connection.close())
    with pytest.raises(StoreUnavailable, match="does not answer"):
        store.find_instance(INSTANCE)
    assert len(connections) == 2


def test_commit_is_never_repeated(engine: Engine, connections: list[Any], limits: Limits | None) -> None:
    """A connection that is lost while it commits leaves open what happened, so nothing is written again."""
    store = Store(engine, limits)
    event.listen(store._writer, "commit", lambda connection: connection.connection.dbapi_connection.close())
    with pytest.raises(StoreUnavailable):
        store.create_instance(INSTANCE, project_id="p")
    assert len(connections) == 1


def test_database_that_somebody_else_writes(engine: Engine) -> None:
    """A file that somebody else is writing to all the time is said to be locked, with what to do."""
    url = engine.url.update_query_dict({"timeout": "0.01"}).render_as_string(hide_password=False)
    with (
        contextlib.closing(sqlite3.connect(str(engine.url.database), isolation_level=None)) as other,
        Store(engines.make_engine(url, {}, pre_ping=False)) as store,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match=r"locked .*: run it again"):
            store.create_instance(INSTANCE, project_id="p")
        other.execute("ROLLBACK")
        store.create_instance(INSTANCE, project_id="p")


def test_database_that_is_read_only(engine: Engine) -> None:
    """A file that may not be written says what to do about it, and can be read."""
    url = f"sqlite:///file:{engine.url.database}?mode=ro&uri=true"
    with Store(engines.make_engine(url, {}, pre_ping=False)) as store:
        assert store.find_instance(INSTANCE) is None
        with pytest.raises(StoreUnavailable, match="may not do that: have it granted"):
            store.create_instance(INSTANCE, project_id="p")


def test_text_that_is_none(engine: Engine) -> None:
    """What came from bytes that are no UTF-8 can't be looked up, and that is said."""
    with pytest.raises(StoreUnavailable, match="not UTF-8"):
        Store(engine).find_instance("\udcff")


def test_database_that_is_not_there(tmp_path: Path) -> None:
    """A database that can't be opened says that it has to be created."""
    with (
        Store(engines.make_engine(f"sqlite:///{tmp_path}/no/api.db", {}, pre_ping=False)) as store,
        pytest.raises(StoreUnavailable, match="create it"),
    ):
        store.list_cells()


def test_exhausted_pool(engine: Engine) -> None:
    """A store whose connections are all in use says which option may be too small."""
    store = Store(engine)
    with engine.connect(), engine.connect(), pytest.raises(StoreUnavailable, match="max_pool_size"):
        store.find_instance(INSTANCE)


def test_cause_is_chained(engine: Engine) -> None:
    """The driver's own error is there for the log."""
    engine.hide_parameters = False
    store = Store(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE cell_mappings")
    with pytest.raises(StoreUnavailable) as caught:
        store.list_cells()
    assert "no such table" in str(caught.value.__cause__)


def test_traceback_shows_no_url(engine: Engine) -> None:
    """Not even the whole chain of a failed write shows what was to be written."""
    store = Store(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE cell_mappings ADD COLUMN more INTEGER NOT NULL")
    password = "".join(reversed("terces"))  # a traceback quotes the source
    with pytest.raises(StoreUnavailable) as caught:
        store.create_cell(name="x", transport_url=f"rabbit://u:{password}@h/", database_connection="sqlite://")
    assert password not in "".join(traceback.format_exception(caught.value))


@pytest.fixture(autouse=True)
def quiet_oslo(caplog: pytest.LogCaptureFixture) -> None:
    """Keep what oslo.db says of errors that it wraps out of the output."""
    caplog.set_level("CRITICAL", "oslo_db")


def test_closes_once(engine: Engine) -> None:
    """A closed store says so, and closing it again does nothing."""
    with Store(engine) as store:
        before = repr(store)
    store.close()
    assert (before, repr(store)) == ("<Store sqlite open>", "<Store sqlite closed>")


def test_store_opens_nothing(tmp_path: Path) -> None:
    """Making a store connects to nothing."""
    Store(engines.make_engine(f"sqlite:///{tmp_path}/api.db", {}, pre_ping=False)).close()
    assert list(tmp_path.iterdir()) == []


PATIENCE = 20
"""Seconds after which a test gives up on what has to come; a test that passes never waits for them."""


def test_deadline_of_a_read(engine: Engine, in_thread: Callable[[Callable[[], Any]], Any]) -> None:
    """A read is bounded by its own deadline, which is nobody else's: neither another thread's nor that of the next."""
    with Store(engine, Limits()) as store:
        with pytest.raises(StoreUnavailable, match="the deadline passed while waiting for a statement"):
            store.find_instance(INSTANCE, after(-1))
        assert store.find_instance(INSTANCE) is None

        def other(connection: Any) -> Any:
            return in_thread(lambda: store.find_instance(INSTANCE))

        assert store._read(other, after(PATIENCE)) is None
        assert store.find_instance(INSTANCE, after(PATIENCE)) is None


def test_known_to_be_down(tmp_path: Path) -> None:
    """A database that can't be opened is known to be down from then on, which those ask who can't wait."""
    engine = engines.make_engine(f"sqlite:///{tmp_path}/no/api.db", {}, pre_ping=False)
    with Store(engine, Limits(probe_interval=3600)) as store:
        store.check()
        with pytest.raises(StoreUnavailable):
            store.list_cells()
        with pytest.raises(StoreUnavailable, match="does not answer"):
            store.check()
        assert store.breaker is not None
        store.breaker.succeeded()
        store.check()
