# SPDX-License-Identifier: Apache-2.0
"""The lease, and the views through which a request sees its cell's handles: what they do, and that they end."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import sys
import threading
import types
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import oslo_messaging
import pytest
from oslo_config import cfg
from oslo_db.sqlalchemy import enginefacade
from oslo_messaging.transport import RPCTransport, Transport
from sqlalchemy import event, exc, text
from sqlalchemy.orm import Session

from cellmw import lease as lease_module
from cellmw.context import RequestContext, target
from cellmw.engines import WRITER
from cellmw.exceptions import CellHasNoTransport, CellsClosed, LeaseClosed
from cellmw.handles import Handles
from cellmw.lease import DatabaseView, Lease, NoTransport, TransportView, lease_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from cellmw.cell import Cell
    from cellmw.watch import Wait

    from .conftest import Queue

    Where = Callable[[Any], str]
    InThread = Callable[[Callable[[], Any]], Any]
    Together = Callable[[int, Callable[[int], Any]], list[Any]]

PATIENCE = 20
TARGET = oslo_messaging.Target(topic="compute")

Manager = type(enginefacade.transaction_context())
Factory = type(enginefacade.transaction_context()._factory)


def views(lease: Lease) -> tuple[DatabaseView, TransportView]:
    """Return what a context that is aimed by this lease has."""
    context: Any = RequestContext(overwrite=False)
    target(context, lease)
    return context.db_connection, context.mq_connection


@pytest.fixture
def database(context: RequestContext) -> DatabaseView:
    """The view of cell1's database that is on the context."""
    assert context.db_connection is not None
    return context.db_connection


@pytest.fixture
def transport(context: RequestContext) -> TransportView:
    """The view of cell1's transport that is on the context."""
    assert context.mq_connection is not None
    return context.mq_connection


@pytest.fixture
def default_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A transaction context of a service, on a database of its own."""
    manager = enginefacade.transaction_context()
    manager.configure(connection=f"sqlite:///{tmp_path}/default.sqlite")
    with manager.writer.using(RequestContext()) as session:
        session.execute(text("CREATE TABLE this_cell (name VARCHAR(255))"))
        session.execute(text("INSERT INTO this_cell VALUES ('default')"))
    return manager


@pytest.fixture
def replicated(cell1: Cell, conf: cfg.ConfigOpts, new_cell: Callable[..., Cell]) -> Iterator[Callable[..., Any]]:
    """Aim a context at cell1 with a read replica, which says so."""
    replica = new_cell("replica").reveal_database_connection()
    with ExitStack() as opened:

        def aim(**options: Any) -> RequestContext:
            handles = Handles.open(cell1, conf, {}, replica=replica, **options)
            opened.callback(handles.close)
            context = RequestContext(overwrite=False)
            target(context, opened.enter_context(Lease(handles)))
            return context

        yield aim


def names(handles: Handles) -> list[str]:
    """Return what stands in a cell's table."""
    with handles.engine.connect() as connection:
        return list(connection.execute(text("SELECT name FROM this_cell")).scalars())


INSERT = text("INSERT INTO this_cell VALUES ('new')")

ENDLESS = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")
"""A statement that SQLite works on until it is interrupted."""


def insert_and_fail(block: AbstractContextManager[Session]) -> None:
    """Write something in a block that fails."""
    with block as session:
        session.execute(INSERT)
        raise ZeroDivisionError


# The lease


def test_lease_is_counted(handles1: Handles) -> None:
    """Handles know how many leases are open on them."""
    first, second = Lease(handles1), Lease(handles1)
    assert len(handles1.leases) == 2
    first.release()
    assert len(handles1.leases) == 1
    second.release()
    assert len(handles1.leases) == 0


def test_lease_has_the_handles(handles1: Handles, cell1: Cell) -> None:
    """An open lease leads to the handles, and knows their cell."""
    with Lease(handles1) as lease:
        assert lease.handles is handles1
    assert lease.cell == cell1


def test_lease_knows_its_instance(handles1: Handles) -> None:
    """A lease for a request knows which instance that is for; one outside a request is for none."""
    with Lease(handles1, "uuid") as for_a_request, Lease(handles1) as outside:
        assert (for_a_request.instance_uuid, outside.instance_uuid) == ("uuid", "")


def test_released_lease(lease: Lease) -> None:
    """A lease that was released raises LeaseClosed, with the cell's name, on every use."""
    lease.release()
    with pytest.raises(LeaseClosed, match="cell cell1"):
        _ = lease.handles
    with pytest.raises(LeaseClosed, match="cell cell1"):
        lease.once("key", object)


def test_closed_handles(lease: Lease, handles1: Handles, context: RequestContext) -> None:
    """A lease that is still open when all cells are closed leads nowhere, and can be released."""
    handles1.close()
    with pytest.raises(CellsClosed), context.db_connection.reader.using(context):
        pass
    with pytest.raises(CellsClosed):
        _client(context)
    lease.release()
    with pytest.raises(LeaseClosed):
        _ = lease.handles


def test_release_is_once(handles1: Handles) -> None:
    """A second release does nothing, to this lease and to others."""
    lease, other = Lease(handles1), Lease(handles1)
    lease.release()
    lease.release()
    assert len(handles1.leases) == 1
    other.release()


def test_block_releases(handles1: Handles) -> None:
    """A lease is a context manager, which releases also where the block fails."""
    with pytest.raises(ZeroDivisionError), Lease(handles1) as lease:
        raise ZeroDivisionError
    assert repr(lease) == "<Lease cell=cell1 closed>"


def test_repr(lease: Lease) -> None:
    """A lease shows its cell and whether it is open."""
    assert repr(lease) == "<Lease cell=cell1 open>"


class RecordingSession:
    """Stands for a session that was left open. Records how often a release has come to it."""

    def __init__(self) -> None:
        self.asked = 0
        self.rolled_back = 0

    def in_transaction(self) -> bool:
        self.asked += 1
        return True

    def rollback(self) -> None:
        self.rolled_back += 1

    def close(self) -> None:
        pass


class HeldUp(set[int]):
    """Leases, of which the first that is released is held up in the middle of that. Lives as long as the test."""

    def __init__(self) -> None:
        super().__init__()
        self.removed, self.go_on = threading.Event(), threading.Event()

    def remove(self, element: int) -> None:
        super().remove(element)
        self.removed.set()
        assert self.go_on.wait(PATIENCE)


def test_release_while_another_thread_does_it(handles1: Handles) -> None:
    """Whoever comes second finds the lease closed when it returns, however far the first one has come."""
    handles1.leases = leases = HeldUp()
    lease = Lease(handles1)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(lease.release)
        assert leases.removed.wait(PATIENCE)
        lease.release()
        try:
            with pytest.raises(LeaseClosed):
                _ = lease.handles
        finally:
            leases.go_on.set()
        first.result(PATIENCE)


def test_release_by_many_threads(handles1: Handles, together: Together) -> None:
    """Of threads that release a lease at the same moment one does it, and nothing is done twice."""
    for _ in range(50):
        session = RecordingSession()
        lease = Lease(handles1)
        lease.register(session)  # type: ignore[arg-type]
        assert together(2, lambda number, lease=lease: lease.release()) == [None, None]
        assert session.asked == 1
        assert len(handles1.leases) == 0


# The database


def test_reader(database: DatabaseView, context: RequestContext, where: Where) -> None:
    """A reader's block has a session on the cell's database."""
    with database.reader.using(context) as session:
        assert where(session) == "cell1"
        assert context.session is session


@pytest.mark.parametrize("modifiers", ["reader", "writer", "async_", "reader.independent", "reader.allow_async"])
def test_modifiers(database: DatabaseView, context: RequestContext, where: Where, modifiers: str) -> None:
    """The modifiers of oslo.db's transaction contexts work as they do there."""
    view: Any = database
    for modifier in modifiers.split("."):
        view = getattr(view, modifier)
    with view.using(context) as session:
        assert where(session) == "cell1"


def test_replica(replicated: Callable[..., Any], where: Where) -> None:
    """An asynchronous reader reads from the replica; readers and writers keep to the database itself."""
    context = replicated()
    view = context.db_connection
    seen = {}
    for name, modified in [("reader", view.reader), ("writer", view.writer), ("async_", view.async_)]:
        with modified.using(context) as session:
            by_session = where(session)
        with modified.connection.using(context) as connection:
            seen[name] = (by_session, where(connection))
    assert seen == {"reader": ("cell1", "cell1"), "writer": ("cell1", "cell1"), "async_": ("replica", "replica")}


def test_replica_for_every_reader(replicated: Callable[..., Any], where: Where) -> None:
    """Where readers need not see what was just written, all of them read from the replica."""
    context = replicated(synchronous_reader=False)
    with context.db_connection.reader.using(context) as session:
        assert where(session) == "replica"
    with context.db_connection.writer.using(context) as session:
        assert where(session) == "cell1"


def test_replica_after_the_release(replicated: Callable[..., Any]) -> None:
    """After the release there is no way to the replica either."""
    context = replicated()
    lease_of(context.db_connection).release()
    with pytest.raises(LeaseClosed), context.db_connection.async_.using(context):
        pass


def test_replace(database: DatabaseView, context: RequestContext, where: Where) -> None:
    """Under ``replace`` what goes to the service's own database goes to the cell's."""
    with database.reader.replace.using(context), enginefacade.reader.using(context) as session:
        assert where(session) == "cell1"


def test_writer_commits(database: DatabaseView, context: RequestContext, handles1: Handles) -> None:
    """A writer's block commits at its end."""
    with database.writer.using(context) as session:
        session.execute(INSERT)
    assert names(handles1) == ["cell1", "new"]


def test_writer_rolls_back(database: DatabaseView, context: RequestContext, handles1: Handles) -> None:
    """A writer's block that fails leaves nothing behind."""
    with pytest.raises(ZeroDivisionError):
        insert_and_fail(database.writer.using(context))
    assert names(handles1) == ["cell1"]


def test_reader_commits_nothing(database: DatabaseView, context: RequestContext, handles1: Handles) -> None:
    """What a reader writes is rolled back."""
    with database.reader.using(context) as session:
        session.execute(INSERT)
    assert names(handles1) == ["cell1"]


@pytest.mark.parametrize("mode", ["reader", "writer"])
def test_connection(database: DatabaseView, context: RequestContext, where: Where, mode: str) -> None:
    """A block can ask for a Core connection instead of a session."""
    with getattr(database, mode).connection.using(context) as connection:
        assert where(connection) == "cell1"
        assert context.connection is connection


@pytest.mark.parametrize(("mode", "begin"), [("reader", "BEGIN"), ("writer", "BEGIN IMMEDIATE")])
@pytest.mark.parametrize("kind", ["session", "connection"])
def test_writers_lock_first(
    database: DatabaseView, context: RequestContext, handles1: Handles, mode: str, begin: str, kind: str
) -> None:
    """On SQLite a writer takes its lock when it begins, a reader does not."""
    statements: list[str] = []
    event.listen(handles1.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    view = getattr(database, mode)
    with (view.connection if kind == "connection" else view).using(context) as connection:
        connection.execute(text("SELECT 1"))
    assert statements == [begin, "SELECT 1"]


def test_select_then_insert(handles1: Handles, together: Together) -> None:
    """Writers' blocks that select and then insert, in 16 threads, never meet a database that is locked."""

    def insert(number: int) -> None:
        with Lease(handles1) as lease:
            context = RequestContext(overwrite=False)
            target(context, lease)
            for _ in range(8):
                with context.db_connection.writer.using(context) as session:
                    count = session.execute(text("SELECT count(*) FROM this_cell")).scalar_one()
                    session.execute(text("INSERT INTO this_cell VALUES (:name)"), {"name": str(count)})

    assert together(16, insert) == [None] * 16
    assert sorted(map(int, names(handles1)[1:])) == list(range(1, 129))


def test_decorated_function(database: DatabaseView, context: RequestContext, where: Where) -> None:
    """A function that is decorated with a view has a session on the cell, its context by position or by name."""

    @database.reader
    def name_of(context: RequestContext) -> str:
        return where(context.session)

    assert name_of(context) == name_of(context=context) == "cell1"


def test_blocks_join(database: DatabaseView, context: RequestContext) -> None:
    """A block inside another one of the same lease is part of its transaction."""
    with database.writer.using(context) as outer, database.reader.using(context) as inner:
        assert inner is outer


def test_independent_block(database: DatabaseView, context: RequestContext) -> None:
    """An independent block inside another one has a transaction of its own."""
    with database.reader.using(context) as outer, database.reader.independent.using(context) as inner:
        assert inner is not outer


def test_savepoint(database: DatabaseView, context: RequestContext, handles1: Handles) -> None:
    """A savepoint that fails leaves the transaction around it whole."""
    with database.writer.using(context) as session:
        session.execute(INSERT)
        with pytest.raises(ZeroDivisionError):
            insert_and_fail(database.writer.savepoint.using(context))
    assert names(handles1) == ["cell1", "new"]


def test_leases_do_not_join(handles1: Handles, context: RequestContext, database: DatabaseView) -> None:
    """A block of another lease, though on the same cell, is no part of the transaction around it."""
    with Lease(handles1) as second:
        other, _ = views(second)
        with database.reader.using(context) as outer, other.reader.using(context) as inner:
            assert inner is not outer


def test_nested_over_several_databases(
    database: DatabaseView, handles2: Handles, default_database: Any, context: RequestContext, where: Where
) -> None:
    """Blocks on different databases nest over one context, and each level is back when the one inside it has ended."""

    def here() -> str:
        return where(context.session)

    with Lease(handles2) as lease2:
        other, _ = views(lease2)
        with default_database.reader.using(context):
            with database.reader.using(context):
                with default_database.reader.using(context):
                    with other.reader.using(context):
                        assert here() == "cell2"
                        with database.reader.using(context):
                            assert here() == "cell1"
                        assert here() == "cell2"
                    assert here() == "default"
                assert here() == "cell1"
            assert here() == "default"


def test_threads_do_not_join(database: DatabaseView, context: RequestContext, in_thread: InThread) -> None:
    """A block in another thread has a transaction of its own, though the context is the same."""

    def other() -> Session:
        with database.reader.using(context) as session:
            return session

    with database.reader.using(context) as session:
        assert in_thread(other) is not session


def test_threads_have_one_factory(
    lease: Lease, together: Together, monkeypatch: pytest.MonkeyPatch, context: RequestContext
) -> None:
    """Two threads that are the first to use a view use one factory: by its identity blocks tell if they join."""
    meet = threading.Barrier(2)

    class SlowFactory(lease_module._LeasedFactory):
        def __init__(self, lease: Lease) -> None:
            super().__init__(lease)
            meet.wait(PATIENCE)

    monkeypatch.setattr(lease_module, "_LeasedFactory", SlowFactory)
    database, _ = views(lease)
    first, second = together(2, lambda number: database._factory)
    assert first is second is database._factory


def test_get_engine(database: DatabaseView, where: Where) -> None:
    """Nova's get_engine() works, by reader and by writer."""
    for view in (database.reader, database.writer):
        with view.get_engine().connect() as connection:
            assert where(connection) == "cell1"


def test_engine_of_the_writer(database: DatabaseView) -> None:
    """The engine that a writer gives begins as a writer does."""
    assert database.writer.get_engine().get_execution_options() == WRITER


def test_engine_of_an_unmodified_view(database: DatabaseView) -> None:
    """As with oslo.db's own, an engine is for reading or for writing."""
    with pytest.raises(ValueError, match="WRITER or READER"):
        database.get_engine()


def test_started(database: DatabaseView) -> None:
    """A view is started: nothing reads [database] of cfg.CONF for it."""
    assert database.is_started
    assert database.reader.is_started


@pytest.mark.parametrize(
    "change",
    [
        lambda view: view.configure(connection="sqlite://"),
        lambda view: view.append_on_engine_create(print),
        lambda view: view.dispose_pool(),
        lambda view: view.make_new_manager(),
        lambda view: view.patch_engine(None),
        lambda view: view.patch_factory(enginefacade.transaction_context()),
    ],
    ids=["configure", "append_on_engine_create", "dispose_pool", "make_new_manager", "patch_engine", "patch_factory"],
)
@pytest.mark.parametrize("modifier", ["", "reader", "writer"])
def test_view_can_not_be_changed(database: DatabaseView, change: Callable[[Any], Any], modifier: str) -> None:
    """A view refuses what would change the database for other requests."""
    with pytest.raises(TypeError, match="can't be changed: the database is shared"):
        change(getattr(database, modifier) if modifier else database)


def test_view_is_a_transaction_context(database: DatabaseView) -> None:
    """A view is what oslo.db and Nova take for a transaction context, with modifiers too."""
    assert isinstance(database, Manager)
    assert isinstance(database.writer.independent, Manager)


def test_view_shows_its_lease(database: DatabaseView, transport: TransportView, lease: Lease) -> None:
    """A view, with modifiers too, shows its cell and whether it is still good."""
    shown = [database, database.reader, transport]
    assert [repr(view) for view in shown] == [
        "<DatabaseView <Lease cell=cell1 open>>",
        "<DatabaseView <Lease cell=cell1 open>>",
        "<TransportView <Lease cell=cell1 open>>",
    ]
    lease.release()
    assert all("closed" in repr(view) for view in shown)


# The transport


def test_view_is_an_rpc_transport(transport: TransportView) -> None:
    """A view is what oslo.messaging's clients, and Nova's, check for."""
    assert isinstance(transport, RPCTransport)


def test_client_of_a_view(transport: TransportView, queue_of: Callable[[Cell], Queue], cell1: Cell) -> None:
    """What a client on a view sends arrives in the cell's queue."""
    queue = queue_of(cell1)
    oslo_messaging.get_rpc_client(transport, TARGET).cast({"user": "u"}, "reboot", instance_uuid="i")
    context, message = queue.next()
    assert context["user"] == "u"
    assert (message["method"], message["args"]) == ("reboot", {"instance_uuid": "i"})


def test_notifier_of_a_view(transport: TransportView, handles1: Handles) -> None:
    """A notifier works on a view."""
    notifier = oslo_messaging.Notifier(transport, "api", driver="messagingv2", topics=["notifications"])
    notifier.info({}, "instance.reboot", {"uuid": "i"})
    targets = [(oslo_messaging.Target(topic="notifications"), "info")]
    listener = handles1.transport._driver.listen_for_notifications(targets, None, 1, None)._poll_style_listener
    (notification,) = listener.poll(timeout=PATIENCE)
    assert "instance.reboot" in str(notification.message)


def test_conf_of_a_view(transport: TransportView, conf: cfg.ConfigOpts) -> None:
    """A view has the configuration of the transport that it stands for."""
    assert transport.conf is conf


def test_view_requires_features(transport: TransportView) -> None:
    """A view answers for the features of the cell's driver."""
    transport._require_driver_features(requeue=True)


def test_client_is_made_once(transport: TransportView, lease: Lease) -> None:
    """A lease has one client for each that asks for one, made on first use."""
    made: list[object] = []

    def make() -> Any:
        made.append(object())
        return made[-1]

    first, second = object(), object()
    assert transport.client(first, make) is transport.client(first, make)
    assert transport.client(second, make) is not transport.client(first, make)
    assert len(made) == 2


def test_view_does_not_serve(transport: TransportView) -> None:
    """A server on a view, which would outlive the request, is refused when it starts."""
    server = oslo_messaging.get_rpc_server(transport, TARGET(server="s"), [object()])
    with pytest.raises(TypeError, match="can't serve"):
        server.start()


def test_view_does_not_listen(transport: TransportView) -> None:
    """A notification listener on a view is refused as well."""
    with pytest.raises(TypeError, match="can't serve"):
        transport._listen_for_notifications([(TARGET, "info")], None, 1, None)


def test_view_is_not_cleaned_up(transport: TransportView, handles1: Handles) -> None:
    """Cleaning a view up is refused: other requests send through the same transport."""
    with pytest.raises(TypeError, match="shared with other requests"):
        transport.cleanup()
    oslo_messaging.get_rpc_client(handles1.transport, TARGET).cast({}, "reboot")


@pytest.fixture
def no_transport(handles0: Handles) -> Iterator[NoTransport]:
    """What stands for the transport that cell0 does not have."""
    with Lease(handles0) as lease:
        yield views(lease)[1]


def test_cell_without_a_queue(no_transport: NoTransport, handles1: Handles) -> None:
    """Where the cell has no queue a client can be made, and prepared; each use of it says so."""
    client = oslo_messaging.get_rpc_client(no_transport, TARGET)
    for caller in (client, client.prepare(server="host")):
        with pytest.raises(CellHasNoTransport, match="cell cell0"):
            caller.cast({}, "reboot")
        with pytest.raises(CellHasNoTransport, match="cell cell0"):
            caller.call({}, "reboot")


def test_first_cell_without_a_queue(no_transport: NoTransport) -> None:
    """It says so also where no cell with a queue has been opened yet."""
    with pytest.raises(CellHasNoTransport):
        oslo_messaging.get_rpc_client(no_transport, TARGET).cast({}, "reboot")


def test_cell_without_a_queue_after_the_lease(handles0: Handles) -> None:
    """That there is no queue holds after the request, too: whoever keeps its transport can never reach another's."""
    with Lease(handles0) as lease:
        transport = views(lease)[1]
    client = oslo_messaging.get_rpc_client(transport, TARGET)
    with pytest.raises(CellHasNoTransport):
        client.cast({}, "reboot")


def test_no_transport_stays_here(no_transport: NoTransport) -> None:
    """It is no more portable than a transport, and says what it is."""
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(no_transport)
    assert repr(no_transport) == "<NoTransport cell=cell0>"


# What escapes: how a database or a queue could be kept for longer than the request


class Context(RequestContext):
    """A context as services have them."""

    def elevated(self) -> Context:
        """Return a copy that is an admin's."""
        copied = copy.copy(self)
        copied.is_admin = True
        return copied


def read(view: Any, context: RequestContext) -> str:
    """Return the name of the cell that a view leads to."""
    with view.using(context) as connection:
        return str(connection.execute(text("SELECT name FROM this_cell")).scalar_one())


def _decorated(context: RequestContext) -> Callable[[], Any]:
    @context.db_connection.reader
    def name_of(context: RequestContext) -> str:
        return str(context.session.execute(text("SELECT name FROM this_cell")).scalar_one())

    return lambda: name_of(context)


def _decorated_unmodified(context: RequestContext) -> Callable[[], Any]:
    @context.db_connection
    def nothing(context: RequestContext) -> str:
        return "cell1"

    return lambda: nothing(context)


def _closure(context: RequestContext) -> Callable[[], Any]:
    view = context.db_connection
    return lambda: read(view.reader, RequestContext(overwrite=False))


def _kept(modifiers: str) -> Callable[[RequestContext], Callable[[], Any]]:
    def keep(context: RequestContext) -> Callable[[], Any]:
        view: Any = context.db_connection
        for modifier in modifiers.split("."):
            view = getattr(view, modifier)
        return lambda: read(view, context)

    return keep


def _copied(duplicate: Callable[[Any], RequestContext]) -> Callable[[RequestContext], Callable[[], Any]]:
    def keep(context: RequestContext) -> Callable[[], Any]:
        copied = duplicate(context)
        return lambda: read(copied.db_connection.reader, copied)

    return keep


def _used_before(context: RequestContext) -> Callable[[], Any]:
    read(context.db_connection.reader, context)
    return lambda: read(context.db_connection.reader, context)


def _get_engine(context: RequestContext) -> Callable[[], Any]:
    return lambda: context.db_connection.writer.get_engine() and "cell1"


def _get_sessionmaker(context: RequestContext) -> Callable[[], Any]:
    return lambda: context.db_connection.writer.get_sessionmaker() and "cell1"


def _replacing(context: RequestContext) -> Callable[[], Any]:
    view = context.db_connection.reader.replace

    def use() -> Any:
        with view.using(context):
            return read(enginefacade.reader, context)

    return use


DATABASE_ESCAPES: dict[str, Callable[[Any], Callable[[], Any]]] = {
    "context": lambda context: lambda: read(context.db_connection.reader, context),
    "context that was used": _used_before,
    "closure": _closure,
    "kept reader": _kept("reader"),
    "kept writer": _kept("writer"),
    "kept modifiers": _kept("writer.independent"),
    "kept connection": _kept("reader.connection"),
    "kept async reader": _kept("async_"),
    "decorated function": _decorated,
    "function decorated with the view itself": _decorated_unmodified,
    "copy.copy": _copied(copy.copy),
    "elevated": _copied(lambda context: context.elevated()),
    "copy of an elevated": _copied(lambda context: copy.copy(context.elevated())),
    "replaced global": _replacing,
    "get_engine": _get_engine,
    "get_sessionmaker": _get_sessionmaker,
}


def _client(context: RequestContext) -> Any:
    return oslo_messaging.get_rpc_client(context.mq_connection, TARGET)


QUEUE_ESCAPES: dict[str, Callable[[Any], Callable[[], Any]]] = {
    "context": lambda context: lambda: _client(context).cast({}, "reboot"),
    "kept client": lambda context: (client := _client(context)) and (lambda: client.cast({}, "reboot")),
    "kept client, call": lambda context: (
        (client := _client(context).prepare(timeout=0)) and (lambda: _swallow_timeout(client))
    ),
    "prepared client": lambda context: (
        (client := _client(context).prepare(server="host")) and (lambda: client.cast({}, "reboot"))
    ),
    "client that is prepared late": lambda context: (
        (client := _client(context)) and (lambda: client.prepare(fanout=True).cast({}, "reboot"))
    ),
    "copy.copy": lambda context: (copied := copy.copy(context)) and (lambda: _client(copied).cast({}, "reboot")),
    "elevated": lambda context: (copied := context.elevated()) and (lambda: _client(copied).cast({}, "reboot")),
    "client of the lease": lambda context: lambda: context.mq_connection.client("key", lambda: _client(context)),
    "transport": lambda context: lambda: context.mq_connection._send(TARGET, {}, {}),
    "notification": lambda context: lambda: context.mq_connection._send_notification(TARGET, {}, {}, 2.0),
    "conf": lambda context: lambda: context.mq_connection.conf,
}


def _swallow_timeout(client: Any) -> None:
    try:
        client.call({}, "reboot")
    except oslo_messaging.MessagingTimeout:
        return


@pytest.fixture
def escapable(lease: Lease) -> Context:
    """A service's context, aimed at cell1."""
    context = Context(overwrite=False)
    target(context, lease)
    return context


@pytest.mark.parametrize("escape", DATABASE_ESCAPES.values(), ids=DATABASE_ESCAPES.keys())
def test_database_that_escaped(
    escape: Callable[[Any], Callable[[], Any]], escapable: Context, lease: Lease, in_thread: InThread
) -> None:
    """Wherever a view of the database escaped to, it works until the release and raises LeaseClosed after it."""
    use = escape(escapable)
    assert use() == in_thread(use) == "cell1"
    lease.release()
    with pytest.raises(LeaseClosed, match="cell cell1"):
        use()
    with pytest.raises(LeaseClosed, match="cell cell1"):
        in_thread(use)


@pytest.mark.parametrize("escape", QUEUE_ESCAPES.values(), ids=QUEUE_ESCAPES.keys())
def test_queue_that_escaped(
    escape: Callable[[Any], Callable[[], Any]], escapable: Context, lease: Lease, in_thread: InThread
) -> None:
    """Wherever a view of the transport escaped to, it works until the release and raises LeaseClosed after it."""
    use = escape(escapable)
    use()
    in_thread(use)
    lease.release()
    with pytest.raises(LeaseClosed, match="cell cell1"):
        use()
    with pytest.raises(LeaseClosed, match="cell cell1"):
        in_thread(use)


def test_nothing_is_sent_late(
    escapable: Context, lease: Lease, queue_of: Callable[[Cell], Queue], cell1: Cell, caplog: pytest.LogCaptureFixture
) -> None:
    """A message that is sent after the release does not arrive, a notifier's included, which logs the error."""
    queue = queue_of(cell1)
    client = _client(escapable)
    notifier = oslo_messaging.Notifier(escapable.mq_connection, "api", driver="messagingv2", topics=["compute"])
    lease.release()
    with pytest.raises(LeaseClosed):
        client.cast({}, "reboot")
    notifier.info({}, "instance.reboot", {})
    assert queue.is_empty
    assert "the lease on cell cell1 has been released" in caplog.text


def test_block_that_was_not_entered(database: DatabaseView, context: RequestContext, lease: Lease) -> None:
    """A block that was asked for in time and is entered late is refused."""
    block = database.reader.using(context)
    lease.release()
    with pytest.raises(LeaseClosed), block:
        pass


def test_block_inside_one_that_goes_on(database: DatabaseView, context: RequestContext, lease: Lease) -> None:
    """A block inside one whose lease has ended is refused, though the session around it was open already."""
    with database.reader.using(context):
        lease.release()
        with pytest.raises(LeaseClosed), database.reader.using(context):
            pass


def test_sessionmaker(database: DatabaseView, handles1: Handles, where: Where) -> None:
    """A sessionmaker that was asked for makes sessions on the cell, for reading and for writing."""
    with database.reader.get_sessionmaker()() as session:
        assert where(session) == "cell1"
    with database.writer.get_sessionmaker().begin() as session:
        session.execute(INSERT)
    assert names(handles1) == ["cell1", "new"]


def test_kept_sessionmaker(database: DatabaseView, lease: Lease) -> None:
    """A sessionmaker that was kept makes no session after the release."""
    make = database.writer.get_sessionmaker()
    lease.release()
    with pytest.raises(LeaseClosed):
        make()


def test_session_of_a_sessionmaker_that_was_left_open(
    database: DatabaseView, lease: Lease, handles1: Handles, caplog: pytest.LogCaptureFixture
) -> None:
    """A session that a sessionmaker has made, and that was left open, is ended with the request as well."""
    session = database.writer.get_sessionmaker()()
    session.execute(INSERT)
    lease.release()
    assert caplog.messages == [LEFT_OPEN]
    assert handles1.engine.pool.checkedout() == 0
    with pytest.raises(exc.InvalidRequestError, match="permanently closed"):
        session.execute(INSERT)


def test_sessionmaker_is_the_requests_own(database: DatabaseView, handles1: Handles) -> None:
    """Who reconfigures the sessionmaker of a request does not change that of others."""
    database.reader.get_sessionmaker().configure(info={"mine": True})
    with Lease(handles1) as other:
        assert "info" not in views(other)[0].reader.get_sessionmaker().kw


def test_released_views_hold_nothing(conf: cfg.ConfigOpts, cell1: Cell) -> None:
    """After the release nothing that a request may have kept keeps the cell's handles alive."""
    handles = Handles.open(cell1, conf, {})
    lease = Lease(handles)
    context = Context(overwrite=False)
    target(context, lease)
    read(context.db_connection.writer, context)
    client = context.mq_connection.client("key", lambda: _client(context))
    client.cast({}, "reboot")
    kept = [lease, context, context.db_connection.reader, context.db_connection._factory, client, client.prepare()]
    lease.release()
    handles.close()
    ends = [weakref.ref(handles), weakref.ref(handles.engine), weakref.ref(handles.transport)]
    del handles
    gc.collect()
    assert [end() for end in ends] == [None] * 3
    assert len(kept) == 6


# What leaves the process


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.deepcopy, copy.copy], ids=["pickle", "deepcopy", "copy"])
@pytest.mark.parametrize("which", ["database", "database.reader", "transport"])
def test_views_are_not_portable(
    database: DatabaseView, transport: TransportView, duplicate: Callable[[Any], Any], which: str
) -> None:
    """A view can't be pickled or copied; the error says why."""
    view = {"database": database, "database.reader": database.reader, "transport": transport}[which]
    with pytest.raises(TypeError, match="stay in their process and in their request"):
        duplicate(view)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_protocol_pickles_a_view(transport: TransportView, protocol: int) -> None:
    """No protocol of pickle is a way around that."""
    with pytest.raises(TypeError, match="stay in their process"):
        pickle.dumps(transport, protocol)


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.deepcopy], ids=["pickle", "deepcopy"])
def test_targeted_context_is_not_portable(context: RequestContext, duplicate: Callable[[Any], Any]) -> None:
    """A context that has views can be copied, but not pickled or deep-copied."""
    with pytest.raises(TypeError, match="stay in their process"):
        duplicate(context)


# Sessions that were left open


LEFT_OPEN = "cell cell1: a session was left open at the end of the request; it is rolled back and closed"


def test_session_that_was_left_open(
    database: DatabaseView, context: RequestContext, lease: Lease, handles1: Handles, caplog: pytest.LogCaptureFixture
) -> None:
    """A session that is open at the release is rolled back and closed for good, with a warning."""
    block = database.writer.using(context)
    session = block.__enter__()
    session.execute(INSERT)
    lease.release()
    assert caplog.messages == [LEFT_OPEN]
    assert handles1.engine.pool.checkedout() == 0
    with pytest.raises(exc.InvalidRequestError, match="permanently closed"):
        session.execute(INSERT)
    with pytest.raises(exc.InvalidRequestError):
        block.__exit__(None, None, None)
    assert names(handles1) == ["cell1"]


def test_connection_that_was_left_open(
    database: DatabaseView, context: RequestContext, lease: Lease, handles1: Handles, caplog: pytest.LogCaptureFixture
) -> None:
    """A Core connection that is open at the release is rolled back and closed, with a warning."""
    block = database.writer.connection.using(context)
    connection = block.__enter__()
    connection.execute(INSERT)
    lease.release()
    assert caplog.messages == [LEFT_OPEN]
    assert handles1.engine.pool.checkedout() == 0
    with pytest.raises(exc.ResourceClosedError):
        connection.execute(INSERT)
    with pytest.raises((exc.InvalidRequestError, exc.SAWarning)):
        block.__exit__(None, None, None)
    assert names(handles1) == ["cell1"]


def test_session_that_was_closed(
    database: DatabaseView, context: RequestContext, lease: Lease, caplog: pytest.LogCaptureFixture
) -> None:
    """A session that has ended in time is none of the release's business."""
    with database.writer.using(context) as session:
        session.execute(INSERT)
    lease.release()
    assert caplog.messages == []


def test_session_of_another_thread(
    database: DatabaseView,
    lease: Lease,
    handles1: Handles,
    in_thread: InThread,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A session that another thread has open at the release is left to that thread, with a warning."""
    opened, released = threading.Event(), threading.Event()

    def write() -> None:
        with database.writer.using(RequestContext(overwrite=False)) as session:
            session.connection()
            opened.set()
            assert released.wait(PATIENCE)
            session.execute(INSERT)

    thread = threading.Thread(target=write)
    thread.start()
    assert opened.wait(PATIENCE)
    lease.release()
    released.set()
    thread.join(PATIENCE)
    assert caplog.messages == ["cell cell1: another thread still has a session open, which is its own to close"]
    assert names(handles1) == ["cell1", "new"]


def test_take_away(
    database: DatabaseView, lease: Lease, handles1: Handles, in_thread: InThread, caplog: pytest.LogCaptureFixture
) -> None:
    """A lease that is taken away from a thread at work ends what that does next, and writes; it is no news."""

    def work() -> None:
        with database.writer.using(RequestContext(overwrite=False)) as session:
            session.execute(INSERT)
            in_thread(lease.take_away)
            session.execute(INSERT)

    with pytest.raises(LeaseClosed):
        work()
    assert caplog.messages == []
    assert names(handles1) == ["cell1"]


def test_release_in_another_thread(
    database: DatabaseView, context: RequestContext, lease: Lease, handles1: Handles, in_thread: InThread
) -> None:
    """A session stays its thread's own also where it is the release that happens in another thread."""
    with database.writer.using(context) as session:
        session.connection()
        in_thread(lease.release)
        session.execute(INSERT)
    assert names(handles1) == ["cell1", "new"]


def test_statement_of_another_thread(database: DatabaseView, lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that another thread is inside of at the release is ended: it is not to go on in the cell."""
    errors: list[BaseException] = []
    began = threading.Event()
    watch = lease.handles.database.reader.bounds.watch
    begin = watch.begin

    def begin_to_wait(wait: Wait) -> None:
        begin(wait)
        began.set()

    monkeypatch.setattr(watch, "begin", begin_to_wait)

    def count() -> None:
        with pytest.raises(LeaseClosed) as caught, database.reader.using(RequestContext(overwrite=False)) as session:
            session.execute(ENDLESS)
        errors.append(caught.value)

    thread = threading.Thread(target=count)
    thread.start()
    assert began.wait(PATIENCE)
    lease.release()
    thread.join(PATIENCE)
    assert len(errors) == 1


def test_session_without_a_connection(
    database: DatabaseView, context: RequestContext, lease: Lease, in_thread: InThread
) -> None:
    """A session that another thread has open, and that has no connection at the release, gets none after it."""
    with database.writer.using(context) as session:
        in_thread(lease.release)
        with pytest.raises(LeaseClosed):
            session.execute(INSERT)


def test_one_failing_end_does_not_skip_the_next(
    database: DatabaseView, lease: Lease, handles1: Handles, caplog: pytest.LogCaptureFixture
) -> None:
    """A session that can't be ended is logged, and the next one is ended all the same."""

    class BrokenSession(RecordingSession):
        def rollback(self) -> None:
            super().rollback()
            raise ZeroDivisionError

    sessions = [BrokenSession(), BrokenSession(), RecordingSession()]
    for session in sessions:
        lease.register(session)  # type: ignore[arg-type]
    lease.release()
    assert [session.rolled_back for session in sessions] == [1, 1, 1]
    assert caplog.messages.count("cell cell1: closing a session that was left open failed") == 2


def leave_open_on_a_lost_connection(context: RequestContext, blocks: ExitStack) -> Session:
    """Return a session that is still open when its connection is not."""
    block = context.db_connection.writer.using(context)
    session: Session = block.__enter__()
    blocks.push(lambda *error: block.gen.close())  # as where the handler's frame ends
    session.connection().connection.dbapi_connection.close()
    return session


@pytest.fixture
def blocks() -> Iterator[ExitStack]:
    """Blocks that a handler has left open; they end with the test."""
    with ExitStack() as blocks:
        yield blocks


def test_lost_connection(context: RequestContext, lease: Lease, handles1: Handles, blocks: ExitStack) -> None:
    """A session that was left open on a connection that is lost does not keep its place in the pool."""
    leave_open_on_a_lost_connection(context, blocks)
    lease.release()
    assert handles1.engine.pool.checkedout() == 0


def test_session_is_closed_where_it_can_not_be_rolled_back(
    context: RequestContext, lease: Lease, blocks: ExitStack
) -> None:
    """A session whose roll-back fails is closed all the same."""
    session = leave_open_on_a_lost_connection(context, blocks)
    lease.release()
    with pytest.raises(exc.InvalidRequestError, match="permanently closed"):
        session.execute(text("SELECT 1"))


def test_session_that_is_opened_during_the_release(lease: Lease) -> None:
    """A session that another thread opens at the moment of the release does not disturb the end of the others."""
    sessions = [RecordingSession() for _ in range(3)]
    for session in sessions:
        lease.register(session)  # type: ignore[arg-type]
    late: list[RecordingSession] = []

    def open_another(frame: types.FrameType, what: str, argument: object) -> None:
        # where the interpreter could switch to another thread: inside of what goes through the sessions
        if what == "return" and frame.f_code.co_filename == weakref.__file__ and not late:
            late.append(RecordingSession())
            with suppress(LeaseClosed):
                lease.register(late[0])  # type: ignore[arg-type]

    sys.setprofile(open_another)
    try:
        lease.release()
    finally:
        sys.setprofile(None)
    assert [session.rolled_back for session in sessions] == [1, 1, 1]


def test_forgotten_sessions_are_not_kept(lease: Lease) -> None:
    """A lease remembers a session as long as somebody has it."""
    session = RecordingSession()
    lease.register(session)  # type: ignore[arg-type]
    end = weakref.ref(session)
    del session
    assert end() is None


def test_lease_of(lease: Lease, handles1: Handles, database: DatabaseView, transport: TransportView) -> None:
    """A lease's own views lead to it, and to no other on the same cell; nothing else leads to any."""
    with Lease(handles1) as other:
        assert lease_of(database) is lease_of(transport) is lease
        assert [lease_of(view) for view in views(other)] == [other, other]
    for handle in (None, enginefacade.transaction_context(), handles1.transport, lease):
        assert lease_of(handle) is None


def test_lease_of_a_view_with_modifiers(database: DatabaseView) -> None:
    """A view with modifiers, which somebody has asked the lease's own view for, is not that one."""
    assert lease_of(database.writer) is None


# What is leaned on in oslo.db and oslo.messaging. Where one of these fails, read lease.py against the new version.


def test_oslo_db_transaction_context() -> None:
    """A transaction context has these methods and no others: a view decides for each whether it is safe."""
    assert {name for name in dir(Manager) if not name.startswith("_")} == {
        "allow_async",
        "append_on_engine_create",
        "async_",
        "configure",
        "connection",
        "dispose_pool",
        "get_engine",
        "get_sessionmaker",
        "independent",
        "is_started",
        "make_new_manager",
        "patch_engine",
        "patch_factory",
        "reader",
        "replace",
        "savepoint",
        "using",
        "writer",
    }


def test_oslo_db_transaction_context_state() -> None:
    """What a transaction context's constructor sets has the same value in a view, which does not call it."""
    state = vars(enginefacade.transaction_context())
    factory = state.pop("_root_factory")
    assert isinstance(factory, Factory)
    del state["_root"]
    assert {name: getattr(DatabaseView, name) for name in state} == state


def test_oslo_db_modifiers(database: DatabaseView) -> None:
    """A modifier makes a view of a view, and leads to the first one by this attribute."""
    assert type(database.writer.independent) is DatabaseView
    assert vars(database.writer.independent)["_root"] is database


def test_oslo_db_factory_methods() -> None:
    """A factory gives sessions and engines by these methods, with these arguments."""
    wanted = {
        "get_reader_engine": ["self"],
        "get_writer_engine": ["self"],
        "get_reader_maker": ["self"],
        "get_writer_maker": ["self"],
        "_create_session": ["self", "mode", "bind"],
        "_create_connection": ["self", "mode"],
    }
    for factory in (Factory, lease_module._LeasedFactory):
        assert {name: list(inspect.signature(getattr(factory, name)).parameters) for name in wanted} == wanted


def test_oslo_db_factory_state() -> None:
    """What a transaction reads of its factory is there, with oslo.db's own defaults."""
    theirs = enginefacade._TransactionFactory()
    assert dict(lease_module._LeasedFactory._transaction_ctx_cfg) == theirs._transaction_ctx_cfg
    assert type(theirs) is Factory
    source = inspect.getsource(enginefacade._AbstractTransactionContext.__init__)
    assert source.count("self.factory") == 2  # where it is set, and for _transaction_ctx_cfg


def test_oslo_db_symbols() -> None:
    """The modes are these."""
    assert {mode.name for mode in enginefacade._FacadeSymbols} == {"_ASYNC_READER", "_READER", "_WRITER"}
    assert enginefacade.transaction_context().writer._mode is enginefacade._WRITER


def test_oslo_messaging_transport() -> None:
    """A transport has these methods and no others: a view decides for each whether it is safe."""
    added = {name for name in dir(RPCTransport) if name not in dir(object)}
    assert added - {"__weakref__", "__dict__", "__module__"} == {
        "_listen",
        "_listen_for_notifications",
        "_require_driver_features",
        "_send",
        "_send_notification",
        "cleanup",
    }


def test_oslo_messaging_transport_state(handles1: Handles) -> None:
    """A transport's constructor sets these two attributes, which a view has as properties."""
    assert vars(handles1.transport).keys() == {"conf", "_driver"}
    assert all(isinstance(vars(TransportView)[name], property) for name in ("conf", "_driver"))


def test_oslo_messaging_sends_by_the_driver() -> None:
    """A transport sends by nothing but its driver, which it looks up each time."""
    for send in (Transport._send, Transport._send_notification):
        assert "self._driver.send" in inspect.getsource(send)


def test_session_between_two_transactions(
    database: DatabaseView, lease: Lease, caplog: pytest.LogCaptureFixture
) -> None:
    """A session that was left open after its commit is closed as well, with no word: it would go on in the cell."""
    session = database.writer.get_sessionmaker()()
    session.execute(INSERT)
    session.commit()
    lease.release()
    with pytest.raises(exc.InvalidRequestError, match="permanently closed"):
        session.execute(text("SELECT 1"))
    assert caplog.text == ""
