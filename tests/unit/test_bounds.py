# SPDX-License-Identifier: Apache-2.0
"""The bounds of an engine: each thing that waits ends by the deadline, and what is no matter of time stays as it is.

What takes long in a SQLite is a statement that it works on until it is interrupted; what takes long in connecting is a
driver that the test holds.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import ExitStack, closing
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from oslo_db import exception as db_exc
from sqlalchemy import event, exc, text

from cellmw import bounds as module
from cellmw import database, deploy
from cellmw.bounds import BoundedEngine, cause, has_no_place
from cellmw.context import RequestContext, target
from cellmw.crew import MAX_STUCK
from cellmw.deadline import after
from cellmw.exceptions import CellUnavailable, DeadlineExceeded, LeaseClosed
from cellmw.handles import Handles
from cellmw.lease import Lease
from cellmw.limits import Limits
from tests.unit.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from oslo_config import cfg
    from sqlalchemy.orm import Session

    from cellmw.cell import Cell
    from cellmw.store import Store

    Open = Callable[..., Handles]

ENDLESS = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")
"""A statement that SQLite works on until it is interrupted."""

SHORT = 0.05

INSERT = text("INSERT INTO this_cell VALUES ('new')")
COUNT = text("SELECT count(*) FROM this_cell")


@pytest.fixture
def open_(conf: cfg.ConfigOpts, cell1: Cell) -> Iterator[Open]:
    """Open the handles of cell1, whose engine has these options."""
    with ExitStack() as opened:

        def open_handles(cell: Cell = cell1, replica: str | None = None, limits: Any = None, **options: Any) -> Handles:
            handles = Handles.open(cell, conf, options, replica=replica, limits=limits or Limits())
            opened.callback(handles.close)
            return handles

        yield open_handles


@pytest.fixture
def handles(open_: Open) -> Handles:
    """The handles of cell1."""
    return open_()


@pytest.fixture
def statements(handles: Handles) -> list[str]:
    """What arrives at the SQLite of cell1."""
    arrived: list[str] = []
    event.listen(handles.engine, "connect", lambda connection, _: connection.set_trace_callback(arrived.append))
    return arrived


def aimed(lease: Lease) -> RequestContext:
    """A context that is aimed at a cell by this lease."""
    context = RequestContext(overwrite=False)
    target(context, lease)
    return context


def count(lease: Lease) -> int:
    """Read, in a block of its own."""
    with database.reader(aimed(lease)) as session:
        return int(session.scalar(COUNT))


def checked(handles: Handles) -> tuple[int, int]:
    """How many connections of the pool are out, and how many are in it."""
    pool: Any = handles.engine.pool
    return pool.checkedout(), pool.checkedin()


# before there is a connection


def test_known_to_be_down(handles: Handles) -> None:
    """Where the database is known not to answer no connection is taken, and the error says why it is."""
    with Lease(handles) as lease:
        handles.database.breaker.is_open, handles.database.breaker.cause = True, "TimeoutError"
        with pytest.raises(
            CellUnavailable, match=r"cell cell1: its database does not answer \(TimeoutError\)"
        ) as error:
            count(lease)
        assert (error.value.resource, error.value.cause, checked(handles)) == ("database", "TimeoutError", (0, 0))
        handles.database.breaker.is_open = False
        assert count(lease) == 1


def test_engine_of_a_view(handles: Handles) -> None:
    """The engine that a view gives is bounded, whatever is made of it, and of no use after the release."""
    with Lease(handles) as lease:
        view = aimed(lease).db_connection
        engines = [view.reader.get_engine(), view.writer.get_engine(), view.reader.get_sessionmaker()().get_bind()]
        engines += [engine.execution_options(isolation_level="AUTOCOMMIT") for engine in engines]
        engines += [engine.execution_options(logging_token="more") for engine in engines]
        assert {type(engine) for engine in engines} == {BoundedEngine}
        lease.deadline = after(-1)
        for engine in engines:
            with engine.connect() as connection, pytest.raises(DeadlineExceeded):
                connection.execute(COUNT)
        lease.deadline = None
        for engine in engines:
            with engine.connect() as connection:
                assert connection.scalar(COUNT) == 1
    for engine in engines:
        with pytest.raises(LeaseClosed):
            engine.connect()
    assert checked(handles)[0] == 0


def test_place_in_the_pool(open_: Open) -> None:
    """A place in the pool is waited for until the deadline, and not longer."""
    handles = open_(limits=Limits(max_connections=1))
    with Lease(handles) as first, first.handles.engine.connect():
        deadline = after(SHORT)
        with (
            Lease(handles, deadline=deadline) as lease,
            pytest.raises(DeadlineExceeded, match="a connection of the pool in the database of cell cell1"),
        ):
            count(lease)
        assert after(0) >= deadline


def test_pool_timeout(open_: Open) -> None:
    """The pool's own limit, where it is shorter, comes first."""
    handles = open_(limits=Limits(max_connections=1), pool_timeout=SHORT)
    with Lease(handles, deadline=after(PATIENCE)) as lease, handles.engine.connect():
        begun = monotonic()
        with pytest.raises(DeadlineExceeded):
            count(lease)
        assert SHORT <= monotonic() - begun < PATIENCE / 2


def test_pool_that_is_made_anew(open_: Open) -> None:
    """An engine that was disposed of keeps its bounds, with its new pool."""
    handles = open_(limits=Limits(max_connections=1))
    handles.engine.dispose()
    begun = monotonic()
    lease = Lease(handles, deadline=after(SHORT))
    with lease, handles.engine.connect(), pytest.raises(DeadlineExceeded, match="of the pool"):
        count(lease)
    assert monotonic() - begun < PATIENCE
    lease = Lease(handles, deadline=after(SHORT))
    with lease, database.reader(aimed(lease)) as session, pytest.raises(DeadlineExceeded, match="a statement"):
        session.execute(ENDLESS)


# a connection that is there


def test_overdue_statement(handles: Handles, statements: list[str]) -> None:
    """A statement that comes too late is not sent; what was begun is rolled back, and the connection stays sound."""
    with Lease(handles) as lease:
        with database.writer(aimed(lease)) as session:
            session.execute(INSERT)
            connection = session.connection().connection.dbapi_connection
            lease.deadline = after(-1)
            with pytest.raises(DeadlineExceeded, match="a statement in the database of cell cell1"):
                session.execute(COUNT)
            session.rollback()
        assert [each.split()[0] for each in statements if "PRAGMA" not in each] == ["BEGIN", "INSERT", "ROLLBACK"]
        assert checked(handles) == (0, 1)
        lease.deadline = None
        with database.reader(aimed(lease)) as session:
            assert session.connection().connection.dbapi_connection is connection
            assert session.scalar(COUNT) == 1


def test_statement_is_cut(handles: Handles) -> None:
    """A statement that takes too long is cut, and the session can be rolled back and used; no other one is harmed."""
    with Lease(handles) as lease, Lease(handles) as other:
        with database.reader(aimed(other)) as sound, database.reader(aimed(lease)) as session:
            sound.execute(COUNT)
            lease.deadline = after(SHORT)
            with pytest.raises(DeadlineExceeded, match="a statement in the database of cell cell1"):
                session.execute(ENDLESS)
            session.rollback()
            lease.deadline = None
            assert session.scalar(COUNT) == sound.scalar(COUNT) == 1
        assert handles.engine.pool._invalidate_time == 0
        assert not handles.database.breaker.is_open


def test_connection_is_lost(handles: Handles) -> None:
    """A statement that finds its connection lost is an outage, and the session can be rolled back and used."""
    with Lease(handles) as lease, database.writer(aimed(lease)) as session:
        session.execute(INSERT)
        session.connection().connection.dbapi_connection.close()
        with pytest.raises(CellUnavailable, match="its database"):
            session.execute(INSERT)
        session.rollback()
        assert session.scalar(COUNT) == 1


def test_each_wait_has_a_length_of_its_own(open_: Open) -> None:
    """Where there is no deadline each wait may take as long as the others, however many there were."""
    handles = open_(limits=Limits(patience=0.2))
    with Lease(handles) as lease, database.reader(aimed(lease)) as session:
        begun = monotonic()
        while monotonic() - begun < 0.4:
            session.execute(COUNT)
        with pytest.raises(DeadlineExceeded):
            session.execute(ENDLESS)


def test_claim_ends_with_the_connection(handles: Handles) -> None:
    """What a lease had to say of a connection is forgotten when it goes back: the next user has a time of its own."""
    with Lease(handles, deadline=after(PATIENCE)) as lease:
        count(lease)
        lease.deadline = after(-1)
        with Lease(handles) as other, database.writer(aimed(other)) as session:
            session.execute(INSERT)
        with handles.engine.begin() as connection:
            assert connection.scalar(COUNT) == 2
    assert checked(handles) == (0, 1)


def busy_timeout(session: Session) -> int:
    """How many milliseconds SQLite waits for a lock."""
    return int(session.scalar(text("PRAGMA busy_timeout")))


def test_busy_timeout(handles: Handles) -> None:
    """A SQLite waits for a lock as long as there is time, and whoever has the connection next waits as ever."""
    seen = []
    for seconds in (2.0, None, 1.0, 3600.0):
        deadline = None if seconds is None else after(seconds)
        with Lease(handles, deadline=deadline) as lease, database.reader(aimed(lease)) as session:
            seen.append(busy_timeout(session))
    assert 1000 < seen[0] <= 2000
    assert 500 < seen[2] <= 1000
    assert (seen[1], seen[3]) == (5000, 5000)
    assert checked(handles) == (0, 1)


def test_locked(handles: Handles, tmp_path: Path) -> None:
    """A writer that finds a SQLite locked gives up at its deadline."""
    with closing(sqlite3.connect(tmp_path / "cell1.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        begun = monotonic()
        with Lease(handles, deadline=after(SHORT)) as lease:
            engine = lease.engine(handles.database.writer)
            with engine.connect() as connection, pytest.raises((exc.OperationalError, DeadlineExceeded)):
                connection.execute(INSERT)
        assert SHORT <= monotonic() - begun < 5.0


# errors that are no matter of time

WRONG = {
    "duplicate": "INSERT INTO parent VALUES (1)",
    "reference": "INSERT INTO child VALUES (99)",
    "null": "INSERT INTO parent VALUES (NULL)",
    "syntax": "SELEKT 1",
    "table": "SELECT * FROM nowhere",
    "column": "SELECT nothing FROM parent",
    "parameter": "SELECT :missing",
    "value": "INSERT INTO child SELECT zeroblob(-1) / abs(-9223372036854775808)",
}


@pytest.mark.parametrize("wrong", list(WRONG))
def test_errors_of_oslo_db(open_: Open, wrong: str) -> None:
    """An error that is no outage is what oslo.db makes of it, to the last attribute."""
    handles = open_(sqlite_fk=True)
    with handles.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE parent (id INT NOT NULL PRIMARY KEY)")
        connection.exec_driver_sql("CREATE TABLE child (id INT REFERENCES parent)")
        connection.exec_driver_sql("INSERT INTO parent VALUES (1)")
    errors: list[Any] = []
    with Lease(handles) as lease:
        for engine in (handles.engine, lease.engine(handles.database.writer)):
            with engine.connect() as connection, pytest.raises((db_exc.DBError, exc.SQLAlchemyError)) as error:
                connection.execute(text(WRONG[wrong]))
            errors.append(error.value)
    plain, bounded = errors
    assert type(bounded) is type(plain)
    assert str(bounded) == str(plain)
    values = [{key: repr(value) for key, value in vars(each).items()} for each in errors]
    for each in values:
        each.pop("__notes__", None)
        each.pop("inner_exception", None)
        each.pop("orig", None)
    assert values[0] == values[1]
    assert not handles.database.breaker.is_open


@pytest.mark.parametrize(
    ("arguments", "attributes", "full", "named"),
    [
        ((1040, "Too many connections"), {}, True, "OperationalError 1040"),
        ((1203, "..."), {}, True, "OperationalError 1203"),
        ((1226, "..."), {}, True, "OperationalError 1226"),
        (("...",), {"sqlstate": "53300"}, True, "OperationalError 53300"),
        (("...",), {"pgcode": "53300"}, True, "OperationalError 53300"),
        ((2003, "Can't connect to mysql://user:s3cret@host/"), {}, False, "OperationalError 2003"),
        (('FATAL:  too many connections for role "s3cret"',), {"sqlstate": None}, True, "OperationalError"),
        (("connection to s3cret refused",), {"sqlstate": None}, False, "OperationalError"),
        ((), {}, False, "OperationalError"),
    ],
)
def test_cause(arguments: tuple[Any, ...], attributes: dict[str, Any], full: bool, named: str) -> None:
    """An error is named with its number and without its message; some say that the server is there, and full."""
    error = sqlite3.OperationalError(*arguments)
    vars(error).update(attributes)
    assert (has_no_place(error), cause(error)) == (full, named)


# connecting


class Driver:
    """A driver whose ``connect`` does what the test says. Records what it is called with. Lives as long as the test."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.closed: list[int] = []
        self.let_go = threading.Event()
        self.error: Exception | None = None

    def connect(self, *arguments: Any, **named: Any) -> Any:
        """Connect."""
        self.calls.append(named)
        number = len(self.calls)
        if self.error is None:
            assert self.let_go.wait(PATIENCE)
        closed = self.closed

        class Connection:
            def close(self) -> None:
                closed.append(number)

        if self.error is not None:
            raise self.error
        return Connection()


@pytest.fixture
def driver() -> Iterator[Driver]:
    """A driver that connects when the test lets it."""
    driver = Driver()
    yield driver
    driver.let_go.set()


@pytest.fixture
def on_driver(open_: Open, new_cell: Callable[..., Cell], driver: Driver) -> Callable[..., Handles]:
    """Open a cell whose database is connected to by that driver."""
    pytest.importorskip("psycopg")
    pytest.importorskip("pymysql")

    def open_on(url: str = "postgresql+psycopg://user:s3cret@host/db", **limits: Any) -> Handles:
        cell = new_cell("remote", database_connection=url)
        handles = open_(cell, limits=Limits(**limits))
        dialect: Any = handles.engine.dialect
        dialect.connect = driver.connect
        return handles

    return open_on


def until(condition: Callable[[], object]) -> None:
    """Return when this holds."""
    deadline = after(PATIENCE)
    while not condition():
        assert deadline > after(0), "it never came to hold"
        threading.Event().wait(0.001)


def test_connecting_is_left(on_driver: Callable[..., Handles], driver: Driver) -> None:
    """Connecting is left at the deadline; a connection that comes after that is closed, and counts until then."""
    handles = on_driver()
    deadline = after(SHORT)
    with Lease(handles, deadline=deadline) as lease, pytest.raises(DeadlineExceeded, match="a connection in"):
        count(lease)
    assert after(0) >= deadline
    assert (handles.database.stuck, driver.closed) == (1, [])
    driver.let_go.set()
    until(lambda: 1 in driver.closed)
    assert handles.database.stuck == 0


def test_few_are_stuck(on_driver: Callable[..., Handles], driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of threads that are stuck in connecting there are only a few: after them it is not tried, as it is down."""
    handles = on_driver()
    bounds = handles.database.reader.bounds
    # nobody is to find out by a probe what this finds out
    monkeypatch.setattr(handles.database.breaker, "suspect", lambda: None)
    for stuck in range(1, MAX_STUCK + 1):
        with Lease(handles, deadline=after(SHORT)) as lease, pytest.raises(DeadlineExceeded):
            count(lease)
        assert len(bounds.stuck) == stuck
    with Lease(handles, deadline=after(PATIENCE)) as lease, pytest.raises(CellUnavailable) as error:
        count(lease)
    assert error.value.cause == "TimeoutError"
    assert (handles.database.breaker.is_open, handles.down) == (True, ("database",))
    assert [call["connect_timeout"] for call in driver.calls].count(module.CONNECT_TIMEOUT) == MAX_STUCK
    driver.let_go.set()
    until(lambda: not bounds.stuck)


@pytest.mark.parametrize(
    ("url", "timeouts"),
    [
        ("postgresql+psycopg://h/d", {"connect_timeout": 5}),
        ("postgresql+psycopg://h/d?connect_timeout=9", {"connect_timeout": "9"}),
        ("mysql+pymysql://h/d", {"connect_timeout": 5, "read_timeout": 61, "write_timeout": 61}),
        (
            "mysql+pymysql://h/d?connect_timeout=9&read_timeout=3",
            {"connect_timeout": 9, "read_timeout": 3, "write_timeout": 61},
        ),
    ],
)
def test_timeouts(on_driver: Callable[..., Handles], driver: Driver, url: str, timeouts: dict[str, Any]) -> None:
    """A driver is told how long it may take, in so far as the URL does not say so itself."""
    driver.error = ZeroDivisionError()
    handles = on_driver(url, patience=60.5)
    with Lease(handles) as lease, pytest.raises((ZeroDivisionError, db_exc.DBError)):
        count(lease)
    assert {name: value for name, value in driver.calls[0].items() if "timeout" in name} == timeouts


@pytest.mark.shows_passwords("this driver quotes one, as none that there is does; its error is the cause of ours")
def test_refused(on_driver: Callable[..., Handles], driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    """A database that refuses a connection is down at once: whoever comes next does not try; nothing shows its URL."""
    import psycopg

    driver.error = psycopg.OperationalError("connection to user:s3cret@host refused")
    handles = on_driver()
    for _ in range(3):
        with Lease(handles) as lease, pytest.raises(CellUnavailable, match="its database") as error:
            count(lease)
        assert (error.value.resource, error.value.cause) == ("database", "OperationalError")
        assert "s3cret" not in str(error.value)
    assert [call["connect_timeout"] for call in driver.calls].count(module.CONNECT_TIMEOUT) == 1
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        "cell remote: its database does not answer, what needs it is refused until it does: OperationalError"
    ]


def test_full(on_driver: Callable[..., Handles], driver: Driver) -> None:
    """A database that has as many connections as it may have is there: it is refused, and asked again the next time."""
    import psycopg

    driver.error = psycopg.errors.TooManyConnections("too many connections for role")
    handles = on_driver()
    handles.database.breaker._probe = lambda: None
    for tries in (1, 2, 3):
        with Lease(handles) as lease, pytest.raises(CellUnavailable) as error:
            count(lease)
        assert error.value.cause == "TooManyConnections 53300"
        assert (len(driver.calls), handles.down) == (tries, ())


def test_replica_is_down(open_: Open, tmp_path: Path) -> None:
    """A replica that can't be reached is down by itself: the database goes on, and the request is told of no outage."""
    handles = open_(replica=f"sqlite:///{tmp_path}/none/replica.sqlite")
    with Lease(handles) as lease:
        context = aimed(lease)
        for _ in range(2):
            with pytest.raises(CellUnavailable), database.reader.async_(context) as session:
                session.execute(COUNT)
        assert handles.database.async_reader.breaker.is_open
        assert (count(lease), lease.down, handles.database.breaker.is_open) == (1, (), False)


# the store


def test_migrations_have_time(conf: cfg.ConfigOpts, store: Store) -> None:
    """A store that is made for an operator's command has no bounds; that of a service has, but for its plain engine."""
    with deploy.store(conf) as unbounded, deploy.store(conf, Limits(patience=SHORT)) as bounded:
        assert (unbounded.breaker, type(unbounded._bounded) is BoundedEngine) == (None, False)
        assert bounded.breaker is not None
        with bounded.engine.connect() as connection:
            assert connection.scalar(SLOW) > 0
        with bounded._bounded.connect() as connection, pytest.raises(DeadlineExceeded):
            connection.execute(ENDLESS)


SLOW = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000000) SELECT count(*) FROM n")
"""A statement that takes several times as long as :data:`SHORT`."""
