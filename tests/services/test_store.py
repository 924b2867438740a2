# SPDX-License-Identifier: Apache-2.0
"""The store's tests of tests/unit, on MariaDB and PostgreSQL, and what only a server does."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from cellmw import engines
from cellmw.cell import Cell
from cellmw.exceptions import CellChanged, CellExists, CellInUse, CellNotFound, InstanceMapped, StoreUnavailable
from cellmw.store import InstanceMapping, Store, migrations
from cellmw.store.cells import _LOCK
from cellmw.store.models import cell_mappings
from tests.servers.locks import PATIENCE, wait_for_waiters
from tests.unit.test_store_cells import *  # noqa: F403 - every test there, with the store from here
from tests.unit.test_store_cells import create
from tests.unit.test_store_holds import *  # noqa: F403
from tests.unit.test_store_hosts import *  # noqa: F403
from tests.unit.test_store_instances import *  # noqa: F403
from tests.unit.test_store_progress import *  # noqa: F403

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from sqlalchemy import Engine

INSTANCE = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01"

OTHERS = {
    "mysql": "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()",
    "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
}

KILL = {"mysql": "KILL CONNECTION {}", "postgresql": "SELECT pg_terminate_backend({}, 5000)"}


@pytest.fixture(params=["mariadb_url", "postgresql_url"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database of a server."""
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """An empty store, with room for three idle connections."""
    engine = engines.make_engine(url, {"max_pool_size": 3}, pre_ping=False)
    migrations.sync(engine)
    with Store(engine) as store:
        yield store


@pytest.fixture
def server(url: str) -> Iterator[Engine]:
    """The server's side: an engine of our own on the same database."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    yield engine
    engine.dispose()


def drop_connections(server: Engine) -> int:
    """End every connection to the database but our own, as a server or a proxy does with idle ones."""
    dialect = server.dialect.name
    with server.connect() as connection:
        others = connection.exec_driver_sql(OTHERS[dialect]).scalars().all()
        for other in others:
            connection.exec_driver_sql(KILL[dialect].format(other))
        while connection.exec_driver_sql(OTHERS[dialect]).scalars().all():
            pass
    return len(others)


def fill_pool(store: Store) -> None:
    """Leave three idle connections in the pool."""
    with store.engine.connect() as one, store.engine.connect() as two, store.engine.connect() as three:
        for connection in (one, two, three):
            connection.exec_driver_sql("SELECT 1")


def test_update_waits_for_who_changes_the_cell(store: Store, server: Engine) -> None:
    """What was read is compared with what another transaction is about to commit."""
    cell = create(store, 1)
    with ThreadPoolExecutor(1) as thread, server.execution_options(isolation_level="READ COMMITTED").connect() as other:
        other.execute(sa.update(cell_mappings).values(transport_url="rabbit://moved/"))
        update = thread.submit(store.update_cell, cell.uuid, transport_url="rabbit://x/", read=cell)
        wait_for_waiters(server, work=update)
        other.commit()
        with pytest.raises(CellChanged):
            update.result()
    assert store.get_cell(cell.uuid).reveal_transport_url() == "rabbit://moved/"


# whatever the server does by default
LOOSE = {
    "mysql": {"init_command": "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"},
    "postgresql": {"options": r"-c default_transaction_isolation=repeatable\ read"},
}


def loose(store: Store) -> Store:
    """The same store, where transactions are isolated in the way that lets most through."""
    url = store.engine.url.update_query_dict(LOOSE[store.engine.dialect.name])
    options = {"max_pool_size": 6}
    return Store(engines.make_engine(url.render_as_string(hide_password=False), options, pre_ping=False))


@pytest.mark.parametrize("there", [0, 2], ids=["none", "some"])
@pytest.mark.parametrize("isolated", [lambda store: store, loose], ids=["by default", "loosely"])
def test_cells_that_are_recorded_at_the_same_moment(
    store: Store, isolated: Callable[[Store], Store], there: int
) -> None:
    """Of many who record cells with one database exactly one does, whether there are other cells or not."""
    for number in range(there):
        create(store, number)
    count = 6
    barrier = threading.Barrier(count)

    def record(number: int) -> Cell:
        barrier.wait(PATIENCE)
        return writer.create_cell(
            name=f"new{number}", transport_url=f"rabbit://new{number}/", database_connection="sqlite:///new.db"
        )

    with isolated(store) as writer:
        for _ in range(5):
            with ThreadPoolExecutor(count) as threads:
                calls = [threads.submit(record, number) for number in range(count)]
            errors = [call.exception() for call in calls]
            new = store.list_cells()[there:]
            assert [cell.name for cell in new] == [f"new{errors.index(None)}"]
            refusals = {str(error) for error in errors if error is not None}
            assert refusals == {f"cell {new[0].uuid} has that database connection already"}
            assert sum(isinstance(error, CellExists) for error in errors) == count - 1
            store.delete_cell(new[0].uuid)


@pytest.mark.parametrize("there", [0, 1], ids=["none", "some"])
@pytest.mark.parametrize("isolated", [lambda store: store, loose], ids=["by default", "loosely"])
def test_cell_that_is_recorded_while_another_is(
    store: Store, server: Engine, isolated: Callable[[Store], Store], there: int
) -> None:
    """Whoever checks the records has them for itself until its own is there, and the next one's check sees that."""
    if there:
        create(store, 1)
    seen: list[list[str | None]] = []
    with isolated(store) as writer, ThreadPoolExecutor(1) as thread:
        later: list[Future[Cell]] = []

        def look(cells: Sequence[Cell]) -> None:
            seen.append([cell.name for cell in cells])
            if not later:
                later.append(thread.submit(create, writer, 2))
                wait_for_waiters(server, work=later[0])

        try:
            writer.create_cell(
                name="new", transport_url="rabbit://x/", database_connection="sqlite:///2.db", check=look
            )
            refused = False
        except CellExists:  # where there is none MariaDB lets both in, and ends the first for the other one
            refused = True
        assert (later[0].exception() is None) == refused
    before = ["cell1"] * there
    assert [cell.name for cell in store.list_cells()] == [*before, "cell2" if refused else "new"]
    assert seen[0] == before
    assert not refused or not there


@pytest.mark.parametrize("write", ["create", "update", "import"])
def test_cells_that_somebody_else_has_locked(
    store: Store, server: Engine, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    """A lock that is not given back is waited for only so long; the error says what to do, and nothing is written."""
    cell = create(store, 1)
    monkeypatch.setitem(_LOCK, "postgresql", (sa.text("SET LOCAL lock_timeout = 50"), *_LOCK["postgresql"][1:]))
    attempts: list[str] = []

    @sa.event.listens_for(store.engine, "connect")
    def hurry(connection: Any, record: object) -> None:
        if store.engine.dialect.name == "mysql":
            connection.cursor().execute("SET SESSION innodb_lock_wait_timeout = 1")

    @sa.event.listens_for(store.engine, "before_cursor_execute")
    def count(connection: object, cursor: object, statement: str, *_: object) -> None:
        if "LOCK TABLE" in statement or "FOR UPDATE" in statement:
            attempts.append(statement)

    writes: dict[str, Callable[[], object]] = {
        "create": lambda: create(store, 2),
        "update": lambda: store.update_cell(cell.uuid, transport_url="rabbit://x/"),
        "import": lambda: store.import_cells([Cell(7, INSTANCE, "new", False, "rabbit://x/", "sqlite:///x.db")]),
    }
    store.engine.dispose()
    with server.execution_options(isolation_level="READ COMMITTED").connect() as other:
        other.execute(sa.update(cell_mappings).values(name="x"))
        with pytest.raises(StoreUnavailable, match=r"locked .*: run it again"):
            writes[write]()
    assert len(attempts) == 1
    assert store.list_cells() == [cell]
    writes[write]()


def test_cells_can_be_read_while_one_is_recorded(store: Store) -> None:
    """Whoever records a cell keeps nobody from reading cells, and a dry run writes nothing and waits for nothing."""
    cell = create(store, 1)

    def look(cells: Sequence[Cell]) -> None:
        assert store.list_cells() == [cell]
        assert store.update_cell(cell.uuid) == cell
        assert len(store.import_cells([cell], dry_run=True)) == 1

    store.create_cell(name="new", transport_url="rabbit://x/", database_connection="sqlite:///x.db", check=look)


def test_read_survives_dropped_connections(store: Store, server: Engine) -> None:
    """A look-up is answered though the server has dropped every pooled connection."""
    store.create_instance(INSTANCE, project_id="p")
    fill_pool(store)
    assert drop_connections(server) == 3
    assert store.find_instance(INSTANCE) is not None


def test_write_survives_dropped_connections(store: Store, server: Engine) -> None:
    """A mapping is written, once, though the server has dropped every pooled connection."""
    fill_pool(store)
    assert drop_connections(server) == 3
    store.create_instance(INSTANCE, project_id="p")
    assert [mapping.instance_uuid for mapping in store.list_instances()] == [INSTANCE]


def test_pool_is_whole_after_a_drop(store: Store, server: Engine) -> None:
    """One attempt more is all that it takes: no later look-up meets another dropped connection."""
    fill_pool(store)
    drop_connections(server)
    errors: list[object] = []
    sa.event.listen(store.engine, "handle_error", lambda context: errors.append(context.original_exception))
    for _ in range(6):
        store.find_instance(INSTANCE)
    assert len(errors) == 1


def test_server_that_is_down(url: str) -> None:
    """A server that nobody listens for is unavailable, and the message has no URL."""
    down = sa.make_url(url).set(port=1).render_as_string(hide_password=False)
    with (
        Store(engines.make_engine(down, {}, pre_ping=False)) as store,
        pytest.raises(StoreUnavailable, match="does not answer"),
    ):
        store.find_instance(INSTANCE)


def test_password_that_is_wrong(url: str) -> None:
    """A server that refuses the connection is unavailable, and the message has no URL."""
    wrong = sa.make_url(url).set(username="cellmw_no_such_user", password="secret")
    with (
        Store(engines.make_engine(wrong.render_as_string(hide_password=False), {}, pre_ping=False)) as store,
        pytest.raises(StoreUnavailable, match="refuses the connection"),
    ):
        store.find_instance(INSTANCE)


READ_ONLY = {
    "mysql": {"init_command": "SET SESSION TRANSACTION READ ONLY"},
    "postgresql": {"options": "-c default_transaction_read_only=on"},
}


def test_user_who_may_only_read(store: Store) -> None:
    """Whoever may not write is told so, with what to do."""
    url = store.engine.url.update_query_dict(READ_ONLY[store.engine.dialect.name])
    with Store(engines.make_engine(url.render_as_string(hide_password=False), {}, pre_ping=False)) as reader:
        assert reader.list_cells() == []
        with pytest.raises(StoreUnavailable, match="may not do that: have it granted"):
            create(reader, 1)
    assert store.list_cells() == []


def test_name_that_is_too_long(store: Store) -> None:
    """What a column does not take is refused with the reason, and quoted nowhere."""
    with pytest.raises(StoreUnavailable, match="too long, or has characters") as caught:
        store.create_cell(name="x" * 256, transport_url="rabbit://x/", database_connection="sqlite:///x.db")
    assert "xx" not in str(caught.value)


def test_database_that_is_not_there(url: str) -> None:
    """A database that nobody created says so."""
    missing = sa.make_url(url).set(database="cellmw_test_no_such").render_as_string(hide_password=False)
    with (
        Store(engines.make_engine(missing, {}, pre_ping=False)) as store,
        pytest.raises(StoreUnavailable, match="create it"),
    ):
        store.find_instance(INSTANCE)


def test_instance_in_an_unknown_cell(store: Store) -> None:
    """A server does not let an instance be mapped to a cell that is not recorded."""
    with pytest.raises(CellNotFound):
        store.create_instance(INSTANCE, project_id="p", cell_id=7)


def test_instance_moved_to_an_unknown_cell(store: Store) -> None:
    """A server does not let an instance be moved to a cell that is not recorded."""
    store.create_instance(INSTANCE, project_id="p")
    with pytest.raises(CellNotFound):
        store.update_instance(INSTANCE, cell_id=7)


def test_host_in_an_unknown_cell(store: Store) -> None:
    """A server does not let a host be mapped to a cell that is not recorded."""
    with pytest.raises(CellNotFound):
        store.create_host("compute1", cell_id=7)


def test_host_that_comes_while_its_cell_goes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that is mapped after delete_cell has looked still keeps the cell."""
    cell = store.create_cell(name="x", transport_url="rabbit://x/", database_connection="sqlite:///x.db")
    store.create_host("compute1", cell_id=cell.id)
    monkeypatch.setattr("cellmw.store.cells._mapped_to", lambda connection, cell: [])
    with pytest.raises(CellInUse) as caught:
        store.delete_cell(cell.uuid)
    assert caught.value.mapped == ("hosts",)


def test_failed_write_leaves_the_connection_usable(store: Store) -> None:
    """A refused row does not spoil the next transaction."""
    store.create_instance(INSTANCE, project_id="p")
    with pytest.raises(InstanceMapped):
        store.create_instance(INSTANCE, project_id="p")
    assert store.find_instance(INSTANCE) is not None


def test_each_batch_has_its_plan(postgresql_url: str) -> None:
    """PostgreSQL keeps no plan for the look-up of a batch: one from when the table was small would read all of it."""
    engine = engines.make_engine(postgresql_url, {"max_pool_size": 1, "max_overflow": 0}, pre_ping=False)
    migrations.sync(engine)
    with Store(engine) as store:
        cell = create(store, 1)
        for number in range(20):
            uuid = f"5d5fdd4b-0d4a-4b7c-8a1e-{number:012d}"
            store.map_instances([InstanceMapping(uuid, cell.id, "p", "u", queued_for_delete=False)])
        with store.engine.connect() as connection:
            plans = sa.text(
                "SELECT sum(custom_plans), sum(generic_plans) FROM pg_prepared_statements "
                "WHERE statement LIKE 'SELECT%FROM instance_mappings%'"
            )
            custom, generic = connection.execute(plans).one()
            mode = connection.exec_driver_sql("SHOW plan_cache_mode").scalar()
    assert custom
    assert (generic, mode) == (0, "auto")
