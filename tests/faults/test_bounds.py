# SPDX-License-Identifier: Apache-2.0
"""The bounds of an engine on real servers: ones that work, ones that are frozen in the midst, ones that are killed.

A server that is frozen goes on taking what is sent to it, and answers nothing.
"""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from oslo_config import cfg
from oslo_db import exception as db_exc
from sqlalchemy import exc, text

from cellmw import RequestContext, database
from cellmw.bounds import CONNECT_TIMEOUT
from cellmw.cell import Cell
from cellmw.context import target
from cellmw.deadline import after
from cellmw.engines import make_engine
from cellmw.exceptions import CellUnavailable, DeadlineExceeded, LeaseClosed, StoreUnavailable
from cellmw.handles import Handles
from cellmw.lease import Lease
from cellmw.limits import Limits
from cellmw.store import Store, models
from tests.conftest import found
from tests.servers import private_mariadb, private_postgresql
from tests.servers.addresses import administration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers.private import Process

    Open = Callable[..., Handles]

PATIENCE = 20.0
"""Seconds after which a test gives up on what has to come; a test that passes never waits for them."""

SOON = 0.5
"""Seconds until the deadline of what is to be cut."""

PROBE_INTERVAL = 0.5

SLEEP = {"postgresql": "SELECT pg_sleep(30)", "mysql": "SELECT SLEEP(30)"}
ROWS = {
    "postgresql": "SELECT repeat('x', 1000) FROM generate_series(1, 100000)",
    "mysql": "SELECT repeat('x', 1000) FROM seq_1_to_100000",
}
WHO = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT connection_id()"}


@pytest.fixture(params=["postgresql", "mariadb"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database on a server that works."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def open_() -> Iterator[Open]:
    """Open the handles of a cell whose database is at this URL; nothing is left of them after the test."""
    with ExitStack() as opened:

        def open_handles(url: str, **options: Any) -> Handles:
            cell = Cell(1, "5e1ec7ed-0000-4000-8000-000000000001", "cell1", False, "none:///", url)
            limits = Limits(
                patience=options.pop("patience", 60.0),
                probe_interval=PROBE_INTERVAL,
                max_connections=options.pop("max_connections", 15),
            )
            handles = Handles.open(cell, cfg.ConfigOpts(), options, limits=limits)
            opened.callback(handles.close)
            return handles

        yield open_handles


@pytest.fixture
def handles(open_: Open, url: str) -> Handles:
    """The handles of a cell on a server that works."""
    return open_(url)


def aimed(lease: Lease) -> RequestContext:
    """A context that is aimed at the cell by this lease."""
    context = RequestContext(overwrite=False)
    target(context, lease)
    return context


def of(statements: dict[str, str], handles: Handles) -> sqlalchemy.TextClause:
    """The statement, as the server of this cell has it."""
    return text(statements[handles.engine.dialect.name])


def read(handles: Handles, seconds: float | None = PATIENCE, statement: str = "SELECT 1") -> Any:
    """Read, under a lease of its own that has so many seconds."""
    deadline = None if seconds is None else after(seconds)
    with Lease(handles, deadline=deadline) as lease, database.reader(aimed(lease)) as session:
        return session.scalar(text(statement))


def until(condition: Callable[[], object]) -> None:
    """Return when this holds, which others see to."""
    deadline = after(PATIENCE)
    while not condition():
        assert deadline > after(0), "it never came to hold"
        threading.Event().wait(0.01)


def ends_in_time(step: Callable[[], Any], error: type[Exception] = DeadlineExceeded) -> Exception:
    """Do this, whose deadline is soon, and see that it ends then; return the error that it ends with."""
    begun = monotonic()
    with pytest.raises(error) as caught:
        step()
    assert 0.9 * SOON <= monotonic() - begun < SOON + CONNECT_TIMEOUT / 2
    return caught.value


def checked_out(handles: Handles) -> int:
    """How many connections of the pool are out."""
    pool: Any = handles.engine.pool
    return int(pool.checkedout())


# servers that work


def test_server_is_told(handles: Handles, open_: Open, url: str) -> None:
    """Each new connection tells its server how long a statement may take."""
    statement = {"postgresql": "SHOW statement_timeout", "mysql": "SELECT @@max_statement_time"}
    for patience, told in ((60.0, {"postgresql": "1min", "mysql": 60}), (2.5, {"postgresql": "2500ms", "mysql": 2.5})):
        patient = open_(url, patience=patience)
        with patient.engine.connect() as first, patient.engine.connect() as second:
            seen = {connection.scalar(of(statement, patient)) for connection in (first, second)}
        assert seen == {told[patient.engine.dialect.name]}


def test_server_ends_it(open_: Open, url: str) -> None:
    """A statement that nobody cuts is ended by the server, and its connection stays in use."""
    handles = open_(url, patience=SOON)
    with Lease(handles, deadline=after(PATIENCE)) as lease, database.reader(aimed(lease)) as session:
        who = session.scalar(of(WHO, handles))
        ends_in_time(lambda: session.execute(of(SLEEP, handles)))
        session.rollback()
        assert session.scalar(of(WHO, handles)) == who


def test_statement_is_cut(handles: Handles) -> None:
    """A statement that takes too long is cut: its connection is lost, and no other one."""
    with Lease(handles) as other, database.reader(aimed(other)) as sound:
        who = sound.scalar(of(WHO, handles))
        with Lease(handles) as lease, database.reader(aimed(lease)) as session:
            cut = session.scalar(of(WHO, handles))
            lease.deadline = after(SOON)
            error = ends_in_time(lambda: session.execute(of(SLEEP, handles)))
            assert str(error).endswith("a statement in the database of cell cell1")
            session.rollback()
            lease.deadline = None
            assert session.scalar(of(WHO, handles)) not in (who, cut)
        assert sound.scalar(of(WHO, handles)) == who
    assert (handles.down, checked_out(handles)) == ((), 0)
    with handles.engine.connect() as first, handles.engine.connect() as second:
        assert who in {connection.scalar(of(WHO, handles)) for connection in (first, second)}


def test_overdue(handles: Handles) -> None:
    """A statement, or a COMMIT, that comes too late is not sent; the connection is rolled back and stays in use."""
    with Lease(handles) as lease:
        context = aimed(lease)
        with database.writer(context) as session:
            session.execute(text("CREATE TABLE t (id INT PRIMARY KEY)"))
        for late in (lambda session: session.execute(text("SELECT 1")), lambda session: session.commit()):
            with database.writer(context) as session:
                who = session.scalar(of(WHO, handles))
                session.execute(text("INSERT INTO t VALUES (1)"))
                lease.deadline = after(-1)
                with pytest.raises(DeadlineExceeded):
                    late(session)
                session.rollback()
                lease.deadline = None
            with database.reader(context) as session:
                assert session.scalar(of(WHO, handles)) == who
                assert session.scalar(text("SELECT count(*) FROM t")) == 0


def test_release_ends_it(handles: Handles) -> None:
    """What another thread is in the midst of when its lease is released ends soon, as what comes after that does."""
    lease = Lease(handles)
    context, reached = aimed(lease), threading.Event()

    def stay() -> None:
        with database.reader(context) as session:
            session.execute(text("SELECT 1"))
            reached.set()
            session.execute(of(SLEEP, handles))

    with ThreadPoolExecutor(1) as threads:
        staying = threads.submit(stay)
        assert reached.wait(PATIENCE)
        until(lambda: handles.database.reader.bounds.watch._waits)
        lease.release()
        assert isinstance(staying.exception(PATIENCE), LeaseClosed)
    assert checked_out(handles) == 0


WRONG = {
    "duplicate": "INSERT INTO parent VALUES (1)",
    "reference": "INSERT INTO child VALUES (99)",
    "null": "INSERT INTO parent VALUES (NULL)",
    "syntax": "SELEKT 1",
    "table": "SELECT * FROM nowhere",
    "column": "SELECT nothing FROM parent",
    "value": "INSERT INTO parent VALUES (99999999999)",
}


@pytest.mark.parametrize("wrong", list(WRONG))
def test_errors_of_oslo_db(handles: Handles, wrong: str) -> None:
    """An error that is no outage is what oslo.db makes of it where nothing is bounded."""
    plain = make_engine(handles.cell.reveal_database_connection(), {}, pre_ping=True)
    with plain.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE parent (id INT NOT NULL PRIMARY KEY)")
        connection.exec_driver_sql(
            "CREATE TABLE child (id INT, CONSTRAINT known FOREIGN KEY (id) REFERENCES parent (id))"
        )
        connection.exec_driver_sql("INSERT INTO parent VALUES (1)")
    errors = []
    with Lease(handles) as lease:
        for engine in (plain, lease.engine(handles.database.writer)):
            with engine.connect() as connection, pytest.raises((db_exc.DBError, exc.SQLAlchemyError)) as error:
                connection.execute(text(WRONG[wrong]))
            errors.append(error.value)
    plain.dispose()
    values = [{**vars(each)} for each in errors]
    for each in values:
        for name in ("inner_exception", "orig", "__notes__"):
            each.pop(name, None)
    assert type(errors[0]) is type(errors[1])
    assert str(errors[0]) == str(errors[1])
    assert repr(values[0]) == repr(values[1])
    assert handles.down == ()


def test_deadlock(handles: Handles) -> None:
    """Of two that wait for each other's locks one gets oslo.db's DBDeadlock, and the other goes on."""
    barrier = threading.Barrier(2)
    with handles.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (id INT PRIMARY KEY, n INT)")
        connection.exec_driver_sql("INSERT INTO t VALUES (1, 0), (2, 0)")

    def lock(first: int, second: int) -> None:
        with Lease(handles, deadline=after(PATIENCE)) as lease, database.writer(aimed(lease)) as session:
            for number in (first, second):
                session.execute(text("UPDATE t SET n = n + 1 WHERE id = :id"), {"id": number})
                if number == first:
                    barrier.wait(PATIENCE)

    with ThreadPoolExecutor(2) as threads:
        ends = [threads.submit(lock, 1, 2), threads.submit(lock, 2, 1)]
        errors = [end.exception(2 * PATIENCE) for end in ends]
    assert {type(error) for error in errors} == {db_exc.DBDeadlock, type(None)}
    assert read(handles, statement="SELECT sum(n) FROM t") == 2


FULL = {
    "postgresql": ("CREATE ROLE {name} LOGIN CONNECTION LIMIT 1 PASSWORD 'x'", "DROP ROLE {name}"),
    "mysql": (
        "CREATE USER {name}@'%%' IDENTIFIED BY 'x' WITH MAX_USER_CONNECTIONS 1",
        "DROP USER {name}@'%%'",
    ),
}


@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_full(open_: Open, request: pytest.FixtureRequest, server: str) -> None:
    """A server that has as many connections as it may have is there, and not down: who comes next asks it again."""
    address: sqlalchemy.URL = request.getfixturevalue(f"{server}_server")
    name = f"cellmw_test_{secrets.token_hex(6)}"
    create, drop = (statement.format(name=name) for statement in FULL[address.get_backend_name()])
    with administration(address) as administrator, ExitStack() as stack:
        administrator.exec_driver_sql(create)
        stack.callback(administrator.exec_driver_sql, drop)
        url = address.set(username=name, password="x")
        handles = open_(url.render_as_string(hide_password=False))
        stack.callback(handles.close)
        with handles.engine.connect():
            for _ in range(2):
                with pytest.raises(CellUnavailable):
                    read(handles)
                until(lambda: handles.down or not handles.database.breaker._probing)
                assert handles.down == ()
        assert read(handles) == 1


# servers that are taken away


@pytest.fixture(scope="module", params=[private_postgresql, private_mariadb], ids=["postgresql", "mariadb"])
def private(request: pytest.FixtureRequest) -> Iterator[tuple[str, Process]]:
    """The URL of a database on a server of these tests' own, and its process."""
    with ExitStack() as stack:
        url, process = found(lambda: stack.enter_context(request.param.started_with_process()))
        name = {"postgresql": "postgres", "mysql": "mysql"}[url.get_backend_name()]
        yield url.set(database=name).render_as_string(hide_password=False), process


@pytest.fixture
def process(private: tuple[str, Process]) -> Iterator[Process]:
    """The process of that server, which works again after the test."""
    _, process = private
    yield process
    process.thaw()
    process.wait_until_it_answers()


@pytest.fixture
def taken(open_: Open, private: tuple[str, Process], process: Process) -> Handles:
    """The handles of a cell on that server, with one connection in the pool."""
    handles = open_(private[0], connection_recycle_time=3600)
    read(handles)
    return handles


def recovers(handles: Handles) -> None:
    """See that the cell is back, by a probe, without a request that has to find out."""
    until(lambda: not handles.down)
    assert read(handles) == 1
    until(lambda: handles.database.stuck == 0)
    assert checked_out(handles) == 0


@pytest.mark.parametrize("what", ["statement", "commit", "fetch"])
def test_frozen_in_a_transaction(taken: Handles, process: Process, what: str) -> None:
    """A server that is frozen in a transaction holds nobody longer than until the deadline, whatever it is asked."""
    with Lease(taken) as lease, database.writer(aimed(lease)) as session:
        rows = session.execute(of(ROWS, taken), execution_options={"stream_results": True, "max_row_buffer": 10})
        rows.fetchmany(10)
        if what != "fetch":
            rows.close()
        process.freeze()
        lease.deadline = after(SOON)
        step = {
            "statement": lambda: session.execute(text("SELECT 1")),
            "commit": session.commit,
            "fetch": rows.fetchall,
        }[what]
        error = ends_in_time(step)
        assert "in the database of cell cell1" in str(error)
        rows.close()
        begun = monotonic()
        session.rollback()
        assert monotonic() - begun < SOON + CONNECT_TIMEOUT / 2
        lease.deadline = None
    process.thaw()
    recovers(taken)


def test_rollback_has_its_grace(taken: Handles, process: Process) -> None:
    """A server that is frozen holds a ROLLBACK that comes after the deadline for a moment only."""
    with Lease(taken) as lease:
        session = lease.handles.database.writer.maker(bind=lease.engine(taken.database.writer))
        session.execute(text("SELECT 1"))
        process.freeze()
        lease.deadline = after(-1)
        begun = monotonic()
        with pytest.raises(DeadlineExceeded, match="ROLLBACK"):
            session.rollback()
        assert 0.4 < monotonic() - begun < CONNECT_TIMEOUT / 2
        session.close()
    process.thaw()
    recovers(taken)


def test_frozen_before_a_request(taken: Handles, process: Process) -> None:
    """A server that was frozen before is found out by the ping of a pooled connection, and known to be down soon."""
    process.freeze()
    ends_in_time(lambda: read(taken, SOON))
    until(lambda: taken.down == ("database",))
    begun = monotonic()
    with pytest.raises(CellUnavailable):
        read(taken)
    assert monotonic() - begun < SOON
    process.thaw()
    recovers(taken)


def test_frozen_at_the_first_request(open_: Open, private: tuple[str, Process], process: Process) -> None:
    """A server that is frozen when somebody connects to it holds nobody longer than until the deadline."""
    handles = open_(private[0])
    process.freeze()
    ends_in_time(lambda: read(handles, SOON))
    until(lambda: handles.down == ("database",))
    process.thaw()
    recovers(handles)


def test_killed(taken: Handles, process: Process, caplog: pytest.LogCaptureFixture) -> None:
    """A server that is gone is down with the first request, and back with a probe; the log says each once."""
    caplog.set_level("INFO", "cellmw.breaker")
    process.kill()
    for _ in range(3):
        with pytest.raises(CellUnavailable) as error:
            read(taken)
        assert (error.value.resource, taken.down) == ("database", ("database",))
    process.restart()
    recovers(taken)
    lines = [record for record in caplog.records if record.name == "cellmw.breaker"]
    assert [line.levelname for line in lines] == ["WARNING", "INFO"]
    assert "127.0.0.1" not in "".join(line.getMessage() for line in lines)


@pytest.mark.parametrize("what", ["statement", "commit"])
def test_killed_in_a_transaction(taken: Handles, process: Process, what: str) -> None:
    """A server that goes in a transaction is an outage to the next statement, and the session can be rolled back."""
    with Lease(taken) as lease, database.writer(aimed(lease)) as session:
        session.execute(text("SELECT 1"))
        process.kill()
        with pytest.raises(CellUnavailable) as error:
            session.execute(text("SELECT 1")) if what == "statement" else session.commit()
        assert error.value.resource == "database"
        session.rollback()
        process.restart()
        until(lambda: not taken.down)
        assert session.scalar(text("SELECT 1")) == 1
    recovers(taken)


def test_store_on_a_frozen_server(private: tuple[str, Process], process: Process) -> None:
    """A look-up in an API database that is frozen ends at its deadline, and the API database is known to be down."""
    engine = make_engine(private[0], {}, pre_ping=False)
    models.metadata.create_all(engine)
    with Store(engine, Limits(probe_interval=PROBE_INTERVAL)) as store:
        assert store.list_cells() == []
        assert store.breaker is not None
        process.freeze()
        ends_in_time(
            lambda: store._read(lambda connection: connection.scalar(text("SELECT 1")), after(SOON)), StoreUnavailable
        )
        until(lambda: store.breaker is not None and store.breaker.is_open)
        with pytest.raises(StoreUnavailable):
            store.check()
        process.thaw()
        until(lambda: store.breaker is not None and not store.breaker.is_open)
        assert store.list_cells() == []
    models.metadata.drop_all(engine)
    engine.dispose()
