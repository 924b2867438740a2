# SPDX-License-Identifier: Apache-2.0
"""The open handles of a cell: how they are opened and closed, and what their errors show."""

from __future__ import annotations

import importlib.util
import threading
import traceback
from typing import TYPE_CHECKING, Any

import oslo_messaging
import pytest
from oslo_config import cfg
from oslo_db.sqlalchemy import orm
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import InvalidRequestError

from cellmw.breaker import ProbedBreaker
from cellmw.cell import Cell
from cellmw.exceptions import CellMisconfigured
from cellmw.handles import Handles
from cellmw.queues import message_queue as queue_module

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET = "s3" + "cret"  # in two parts: a traceback quotes the line
THREADS = 16


def cell(transport_url: str | None = "memory://cell9/", database_connection: str | None = "sqlite://") -> Cell:
    """Return a cell with these URLs."""
    return Cell(9, "uuid-9", "cell9", False, transport_url, database_connection)


class Recorder:
    """A queue, or a database, that records its end. It may fail in it."""

    def __init__(self, closed: list[str], name: str, error: Exception | None = None) -> None:
        self._closed = closed
        self._name = name
        self._error = error
        self.breaker = ProbedBreaker(name, lambda: None, 1.0)

    def close(self) -> None:
        self._closed.append(self._name)
        if self._error:
            raise self._error


@pytest.fixture
def closed() -> list[str]:
    """What was closed, in order."""
    return []


def recording(closed: list[str], conf: cfg.ConfigOpts, **errors: Exception) -> Handles:
    """Return handles that record what is closed."""
    queue, database = (Recorder(closed, name, errors.get(name)) for name in ("transport", "engine"))
    return Handles(cell(), conf, queue, database)  # type: ignore[arg-type]


def test_opening_connects_to_nothing(
    conf: cfg.ConfigOpts, tmp_path: Path, open_handles: Callable[[Cell], Handles]
) -> None:
    """Opening a cell's handles opens no connection, makes no file and starts no thread."""
    threads = set(threading.enumerate())
    opened = open_handles(cell("rabbit://u:p@127.0.0.1:1/", f"sqlite:///{tmp_path}/new.sqlite"))
    assert (list(tmp_path.iterdir()), set(threading.enumerate()) - threads) == ([], set())
    assert opened.engine.pool.checkedin() == 0


def test_handles_know_their_cell(handles1: Handles, cell1: Cell, conf: cfg.ConfigOpts) -> None:
    """Handles say whose they are and by what options they go."""
    assert handles1.cell == cell1
    assert handles1.conf is conf
    assert isinstance(handles1.transport, oslo_messaging.transport.RPCTransport)


@pytest.mark.parametrize("url", ["none:", "none:///"])
def test_cell_without_a_queue(open_handles: Callable[[Cell], Handles], url: str) -> None:
    """A cell that has no message queue has handles without a transport."""
    assert open_handles(cell(url)).transport is None


def test_connections_are_tested(handles1: Handles) -> None:
    """A pooled connection to a cell is tested before it is used."""
    assert handles1.engine.pool._pre_ping


def test_pool_options(conf: cfg.ConfigOpts) -> None:
    """The cells' pools are as large as the options say."""
    opened = Handles.open(cell(database_connection="sqlite:///file"), conf, {"max_pool_size": 3, "max_overflow": 1})
    assert (opened.engine.pool.size(), opened.engine.pool._max_overflow) == (3, 1)
    opened.close()


def test_reader_and_writer_share_the_pool(handles1: Handles) -> None:
    """Sessions of readers and of writers use the connections of one pool."""
    with handles1.database.reader.maker() as reader, handles1.database.writer.maker() as writer:
        reader.connection()
        writer.connection()
        assert handles1.engine.pool.checkedout() == 2


@pytest.mark.parametrize("source", ["reader", "writer", "async_reader"])
def test_closed_session_stays_closed(handles1: Handles, source: str) -> None:
    """A session that was closed does not open itself again, as SQLAlchemy's sessions do by default."""
    session = getattr(handles1.database, source).maker()
    session.close()
    with pytest.raises(InvalidRequestError, match="closed"):
        session.execute(text("SELECT 1"))


def test_sessions_are_those_of_oslo_db(handles1: Handles) -> None:
    """Apart from that, sessions are made as oslo.db makes them: a new version that makes other ones is noticed."""
    theirs = orm.get_maker(handles1.engine)
    del theirs.kw["autocommit"]  # False, which SQLAlchemy has no other value for
    for ours in (handles1.database.reader.maker, handles1.database.writer.maker):
        assert ours.kw | {"bind": None} == theirs.kw | {"bind": None, "close_resets_only": False}
        assert issubclass(ours.class_, orm.Session)


def test_replica(conf: cfg.ConfigOpts, tmp_path: Path) -> None:
    """A read replica has an engine of its own, which connects to nothing either, and is closed with the others."""
    opened = Handles.open(cell(), conf, {}, replica=f"sqlite:///{tmp_path}/replica.sqlite")
    assert opened.database.replica is not opened.engine
    assert opened.database.async_reader.maker.kw["bind"] is opened.database.replica
    assert list(tmp_path.iterdir()) == []
    opened.close()


def test_no_replica(handles1: Handles) -> None:
    """Where there is no replica, the database itself stands in for it."""
    assert handles1.database.replica is handles1.engine


def test_replica_is_closed(conf: cfg.ConfigOpts, tmp_path: Path, closed: list[str]) -> None:
    """Closing handles closes the replica's pool as well, also where closing the database's own fails."""
    opened = Handles.open(cell(), conf, {}, replica=f"sqlite:///{tmp_path}/replica.sqlite")

    def fail(engine: Engine) -> None:
        closed.append("engine")
        raise RuntimeError

    event.listen(opened.engine, "engine_disposed", fail)
    event.listen(opened.database.replica, "engine_disposed", lambda engine: closed.append("replica"))
    opened.close()
    assert sorted(closed) == ["engine", "replica"]


def test_bad_replica(conf: cfg.ConfigOpts) -> None:
    """A replica whose URL can't be used is an error of its cell, and shows no secret."""
    with pytest.raises(CellMisconfigured, match="cell cell9: ") as caught:
        Handles.open(cell(), conf, {}, replica=f"nosuch://u:{SECRET}@h/d")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_close_closes_both(conf: cfg.ConfigOpts, closed: list[str]) -> None:
    """Closing handles closes the transport and the pool."""
    recording(closed, conf).close()
    assert sorted(closed) == ["engine", "transport"]


def test_closes_in_reverse_order(conf: cfg.ConfigOpts, closed: list[str]) -> None:
    """What was opened last is closed first."""
    recording(closed, conf).close()
    assert closed == ["transport", "engine"]


def test_closes_once(conf: cfg.ConfigOpts, closed: list[str]) -> None:
    """Closing handles again does nothing."""
    opened = recording(closed, conf)
    opened.close()
    closed.clear()
    opened.close()
    assert closed == []


def test_closes_once_from_many_threads(
    conf: cfg.ConfigOpts, closed: list[str], together: Callable[[int, Callable[[int], Any]], list[Any]]
) -> None:
    """Threads that close the same handles at the same time close each of them once."""
    for _ in range(20):
        closed.clear()
        opened = recording(closed, conf)
        assert together(THREADS, lambda number, opened=opened: opened.close()) == [None] * THREADS
        assert sorted(closed) == ["engine", "transport"]


@pytest.mark.parametrize("failing", ["transport", "engine"])
@pytest.mark.parametrize("error", [RuntimeError("broken"), IndexError("pop from an empty list")], ids=repr)
def test_failing_close(
    conf: cfg.ConfigOpts, closed: list[str], caplog: pytest.LogCaptureFixture, failing: str, error: Exception
) -> None:
    """One close that fails is logged with the cell's name, and does not skip the other."""
    recording(closed, conf, **{failing: error}).close()
    assert sorted(closed) == ["engine", "transport"]
    assert caplog.messages == ["cell cell9: closing a handle failed"]
    assert str(error) in caplog.text


def test_repr(open_handles: Callable[[Cell], Handles]) -> None:
    """Handles show their cell, how many leases there are, and whether they are open; no URL."""
    opened = open_handles(cell(f"rabbit://u:{SECRET}@h/", f"mysql+pymysql://u:{SECRET}@h/d"))
    opened.leases.add(1)
    before = repr(opened)
    opened.close()
    assert (before, repr(opened)) == (
        "<Handles cell=cell9 leases=1 stuck=0 open>",
        "<Handles cell=cell9 leases=1 stuck=0 closed>",
    )


def test_what_is_down(open_handles: Callable[[Cell], Handles]) -> None:
    """Handles know which of the two is down, and show it."""
    opened = open_handles(cell())
    assert opened.queue is not None
    opened.queue.breaker.failed("a test")
    assert (opened.down, repr(opened)) == (("queue",), "<Handles cell=cell9 leases=0 stuck=0 down=queue open>")
    opened.database.breaker.failed("a test")
    assert opened.down == ("database", "queue")
    opened.queue.breaker.succeeded()
    opened.database.breaker.succeeded()
    assert opened.down == ()


def test_what_is_stuck(open_handles: Callable[[Cell], Handles]) -> None:
    """Handles count the threads that are stuck in the driver or in the library."""
    opened = open_handles(cell())
    assert opened.queue is not None
    opened.queue.stuck.add(1)
    opened.database.reader.bounds.stuck.update({1, 2})
    assert opened.stuck == 3


def test_memory_transport_is_closed(handles1: Handles) -> None:
    """A closed transport sends nothing more."""
    client = oslo_messaging.get_rpc_client(handles1.transport, oslo_messaging.Target(topic="compute"))
    handles1.close()
    with pytest.raises(oslo_messaging.ClientSendError):
        client.cast({}, "reboot")


def test_rabbit_transport_that_was_never_used(open_handles: Callable[[Cell], Handles]) -> None:
    """A RabbitMQ transport that nothing was sent with is closed without a broker."""
    opened = open_handles(cell("rabbit://u:p@127.0.0.1:1/vhost"))
    opened.close()
    assert "closed" in repr(opened)


BAD_TRANSPORTS = [
    ("missing", None, "its transport URL is missing"),
    ("empty", "", "its transport URL is missing"),
    ("no URL", SECRET, "its transport URL is not one that oslo.messaging can read"),
    ("no scheme", f"://u:{SECRET}@h/", "its transport URL is not one that oslo.messaging can read"),
    ("unknown driver", f"nosuch://u:{SECRET}@h/", "no oslo.messaging driver 'nosuch' is installed"),
    ("port that is none", f"rabbit://u:{SECRET}@h:port/", "its transport URL is not one"),
    ("second port that is none", f"rabbit://u:p@h:1,u:{SECRET}@h:port/", "its transport URL is not one"),
    ("half an address", f"rabbit://u:{SECRET}@[::1/", "its transport URL is not one"),
    ("slash in the password", f"rabbit://u:a/{SECRET}@h/", "its transport URL is not one"),
    ("unknown option", f"rabbit://u:{SECRET}@h/?nosuch=1", "its transport URL is not one"),
    ("option that is no boolean", f"rabbit://u:{SECRET}@h/?ssl=perhaps", "its transport URL is not one"),
    ("option that is no number", f"rabbit://u:{SECRET}@h/?heartbeat_rate=x", "its transport URL is not one"),
    ("template", f"{{scheme}}://u:{SECRET}@h/", "its transport URL is not one"),
    ("queue without a name", f"memory://u:{SECRET}@/", "its transport URL is not one"),
]


@pytest.mark.parametrize(("case", "url", "reason"), BAD_TRANSPORTS, ids=[case[0] for case in BAD_TRANSPORTS])
def test_bad_transport_url(conf: cfg.ConfigOpts, case: str, url: str | None, reason: str) -> None:
    """A transport URL that can't be used is an error of that cell, and its whole traceback shows no secret."""
    with pytest.raises(CellMisconfigured, match=f"^cell cell9: {reason}") as caught:
        Handles.open(cell(url), conf, {})
    assert caught.value.cell.name == "cell9"
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.skipif(importlib.util.find_spec("confluent_kafka") is not None, reason="Kafka's client is installed here")
def test_transport_driver_without_its_library(conf: cfg.ConfigOpts) -> None:
    """A driver whose library is missing is one that isn't installed."""
    with pytest.raises(CellMisconfigured, match="kafka"):
        Handles.open(cell("kafka://h/"), conf, {})


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (None, "its database connection is missing"),
        ("", "its database connection is missing"),
        (SECRET, "its database URL is not one that SQLAlchemy can read"),
        (f"nosuch://u:{SECRET}@h/d", "no SQLAlchemy dialect is installed for 'nosuch' databases"),
        (f"mssql+pyodbc://u:{SECRET}@h/d", "the driver of 'mssql\\+pyodbc' databases is not installed: pyodbc"),
        (f"mysql+pymysql://u:{SECRET}@h:port/d", "its database URL is not one that SQLAlchemy can read"),
        (f"sqlite://u:{SECRET}@h/d", "its database URL is not one that SQLAlchemy can read"),
    ],
    ids=["missing", "empty", "no URL", "unknown dialect", "driver not installed", "port", "SQLite with a host"],
)
def test_bad_database_url(conf: cfg.ConfigOpts, url: str | None, reason: str) -> None:
    """A database URL that can't be used is an error of that cell, and its whole traceback shows no secret."""
    with pytest.raises(CellMisconfigured, match=f"^cell cell9: {reason}") as caught:
        Handles.open(cell(database_connection=url), conf, {})
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_private_configuration_can_send(conf: cfg.ConfigOpts, open_handles: Callable[[Cell], Handles]) -> None:
    """A transport on a configuration other than cfg.CONF finds the options that are registered there alone."""
    transport = open_handles(cell()).transport
    oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic="compute")).cast({}, "reboot")


@pytest.mark.parametrize("group", queue_module.GLOBAL_GROUPS)
def test_oslo_messaging_registers_what_is_leaned_on(group: str) -> None:
    """oslo.messaging registers these groups on cfg.CONF alone, and oslo.config keeps them in this shape."""
    registered = cfg.CONF._get_group(group)._opts
    assert registered
    assert all(isinstance(entry["opt"], cfg.Opt) for entry in registered.values())


def test_opening_in_many_threads(
    cell1: Cell,
    open_handles: Callable[[Cell], Handles],
    together: Callable[[int, Callable[[int], Any]], list[Any]],
) -> None:
    """Handles of many cells can be opened at the same time on one configuration."""
    opened = together(THREADS, lambda number: open_handles(cell(f"memory://cell{number}/")))
    assert [type(handles) for handles in opened] == [Handles] * THREADS
