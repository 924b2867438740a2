# SPDX-License-Identifier: Apache-2.0
"""Lease: one request's claim on a cell's handles, and the views of them that the request gets to see.

A view looks up the handles through its lease each time it is used, so that after the release it has nothing of the cell
left, wherever it escaped to. What can't be taken back: a transaction that another thread is in the middle of (it stays
that thread's to end).
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from operator import length_hint
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import oslo_messaging
from oslo_db.sqlalchemy import enginefacade
from sqlalchemy.orm import Session, sessionmaker

from cellmw.body import ALL
from cellmw.bounds import BoundedEngine, cause, has_no_place
from cellmw.deadline import after
from cellmw.exceptions import CellHasNoTransport, CellsClosed, CellUnavailable, DeadlineExceeded, LeaseClosed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy import Connection, Engine

    from cellmw.cell import Cell
    from cellmw.cell_database import Source
    from cellmw.deadline import Deadline
    from cellmw.handles import Handles
    from cellmw.queues.cell_queue import CellQueue

LOG = logging.getLogger(__name__)

T = TypeVar("T")

_REGISTERING = threading.Lock()
"""Held while a lease gets the place for its first session, which two threads may want at once."""


def _renew_lock() -> None:
    global _REGISTERING
    _REGISTERING = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)

_LAST_PATIENCE = 1.0
"""Seconds that a wait may take which begins after the release: what is left to do is to give back a connection."""

_TAKEN = 0.0
"""The deadline of a lease that was taken away: for statements that begin after that. Those that have begun are cut."""

_NOT_PORTABLE = "the handles of a cell stay in their process and in their request: they can't be pickled or deep-copied"


class Lease:
    """A claim on the open handles of a cell. Lives as long as one request, or one ``cells.target()`` block.

    ``release()`` ends it exactly once, from whichever thread comes first.

    :ivar cell: whose handles they are
    :ivar instance_uuid: the instance that the request is for; empty outside a request
    :ivar deadline: the moment by which everything has to be done; None where each wait has a length of its own
    :ivar chunks: one for each chunk that the response may still have; not set before its body is there
    """

    __slots__ = ("_handles", "_made", "_sessions", "cell", "chunks", "deadline", "instance_uuid")

    chunks: Iterator[bool]

    def __init__(self, handles: Handles, instance_uuid: str = "", deadline: Deadline | None = None) -> None:
        self.cell: Cell = handles.cell
        self.instance_uuid = instance_uuid
        self.deadline = deadline
        self._handles: Handles | None = handles
        self._made: dict[object, Any] | None = None
        self._sessions: weakref.WeakKeyDictionary[Any, int] | None = None
        handles.leases.add(id(self))

    @property
    def handles(self) -> Handles:
        """The handles, while the lease is open.

        :raises LeaseClosed: after the release
        :raises CellsClosed: after all cells were closed
        """
        handles = self._handles
        if handles is None:
            raise LeaseClosed(self.cell)
        if handles.closed:
            raise CellsClosed
        return handles

    @property
    def down(self) -> tuple[str, ...]:
        """Which of ``"database"`` and ``"queue"`` are known not to answer; after the release nothing is known."""
        handles = self._handles
        return () if handles is None else handles.down

    def until(self) -> Deadline:
        """Return the deadline of a wait that begins now.

        After the first chunk of the response, and outside a request, each wait has a length of its own.

        :raises CellsClosed: in a child process, which has only inherited the lease
        """
        handles = self._handles
        if handles is not None and handles.disowned:
            raise CellsClosed
        if self.deadline is not None and not (hasattr(self, "chunks") and length_hint(self.chunks) < ALL):
            return self.deadline
        return after(_LAST_PATIENCE if handles is None else handles.patience)

    def once(self, key: object, make: Callable[[], T]) -> T:
        """Return what this lease has under the key, made on first use; it has nothing of it left after the release.

        :raises LeaseClosed: after the release
        """
        self.handles  # noqa: B018 - raises
        if self._made is None:
            self._made = {}
        made: T = self._made[key] if key in self._made else self._made.setdefault(key, make())
        return made

    def engine(self, source: Source) -> BoundedEngine:
        """Return the engine that connects to this place under this lease.

        :raises LeaseClosed: after the release
        """
        return self.once(source, lambda: source.bounds.claimed(source.engine, _DatabaseClaim(self, source)))

    def register(self, session: Session | Connection) -> None:
        """Remember a session that was opened under this lease, so that the release finds those left open.

        :raises LeaseClosed: if the release came first; the session is closed then
        """
        with _REGISTERING:
            if self._sessions is None:
                self._sessions = weakref.WeakKeyDictionary()
        self._sessions[session] = threading.get_ident()
        if self._handles is None:
            session.close()
            raise LeaseClosed(self.cell)

    def release(self) -> None:
        """Give the claim back: every view raises LeaseClosed from now on. A second call does nothing.

        Nor does one in a child process: what is open under the lease is its parent's.
        """
        handles = self._handles
        if handles is None or handles.disowned:
            return
        try:
            handles.leases.remove(id(self))
        except KeyError:  # another thread came first, and may not have come as far as this
            self._handles = None
            return
        made, self._handles, self._made = self._made, None, None
        handles.used_at = monotonic()
        if handles.ended is not None:
            handles.ended(handles)
        if made is not None:
            for each in tuple(made.values()):
                if isinstance(each, BoundedEngine):
                    # another thread may be inside a statement, which is not to go on for as long as it likes
                    each.end_all()
        if self._sessions is not None:
            taken = self.deadline == _TAKEN
            # by their references, which are listed in one step: another thread may be opening one more
            for reference in self._sessions.keyrefs():
                session = reference()
                if session is not None and not (taken and self._sessions[session] != threading.get_ident()):
                    _end_session(session, self._sessions[session], self.cell)

    def take_away(self) -> None:
        """Release it while another thread is at work with it: whatever that waits for, and begins to wait for, ends.

        Its session is its own to close, which it does as soon as it finds out.
        """
        self.deadline = _TAKEN
        self.release()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Lease cell={self.cell} {'closed' if self._handles is None else 'open'}>"


def _end_session(session: Session | Connection, thread: int, cell: Cell) -> None:
    busy = session.in_transaction()
    if thread != threading.get_ident():
        if busy:
            LOG.warning("cell %s: another thread still has a session open, which is its own to close", cell)
        return
    if busy:
        LOG.warning("cell %s: a session was left open at the end of the request; it is rolled back and closed", cell)
    try:
        try:
            if busy:
                session.rollback()
        finally:
            session.close()  # one between two transactions, too: it would go on in the cell
    except Exception:
        LOG.warning("cell %s: closing a session that was left open failed", cell, exc_info=True)


class _StaysHere:
    """Refuses to be pickled or deep-copied."""

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(_NOT_PORTABLE)


class TransportView(_StaysHere, oslo_messaging.transport.RPCTransport):
    """What a request sees of its cell's transport: an RPCTransport for clients and notifiers, not for servers.

    Lives as long as whatever refers to it, and works as long as its lease is open.
    """

    _lease: Lease

    @property
    def conf(self) -> Any:
        """The ConfigOpts that the transport was made with."""
        return self._lease.handles.conf

    @property
    def _driver(self) -> Any:
        transport: Any = self._lease.handles.transport
        return transport._driver

    @property
    def _queue(self) -> CellQueue:
        # there is one: a cell without it has no such view
        return cast("CellQueue", self._lease.handles.queue)

    def _send(self, *args: Any, **kwargs: Any) -> Any:
        return self._queue.send(self._lease.until(), *args, **kwargs)

    def _send_notification(self, *args: Any, **kwargs: Any) -> Any:
        return self._queue.send_notification(self._lease.until(), *args, **kwargs)

    def client(self, key: object, make: Callable[[], oslo_messaging.RPCClient]) -> oslo_messaging.RPCClient:
        """Return the client that this lease has for ``key``, made on first use."""
        return self._lease.once(key, make)

    def _listen(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError(f"{self!r} can't serve: a server outlives every request and takes a transport of its own")

    _listen_for_notifications = _listen

    def cleanup(self) -> NoReturn:
        """Refuse: the transport is shared with every other request for the cell."""
        raise TypeError(f"{self!r} can't be cleaned up: the transport is shared with other requests")

    def __repr__(self) -> str:
        return f"<TransportView {self._lease!r}>"


class NoTransport(_StaysHere, oslo_messaging.transport.RPCTransport):
    """What a request sees as the transport of a cell that has none: every use of it raises CellHasNoTransport.

    Lives as long as whatever refers to it, and ends with no lease: Nova's ``set_target_cell`` takes what it finds on
    the context of its first request for cell0, and puts it on those of all later ones.
    """

    def __init__(self, cell: Cell, conf: Any) -> None:
        # not super().__init__(): it takes a driver
        self._cell = cell
        self.conf = conf

    @property
    def _driver(self) -> NoReturn:
        raise CellHasNoTransport(self._cell)

    def __repr__(self) -> str:
        return f"<NoTransport cell={self._cell}>"


class _Itself:
    """An attribute that is the object it is read from, unless the object has one of its own under that name."""

    def __get__(self, instance: object, owner: type) -> object:
        return instance


class DatabaseView(_StaysHere, type(enginefacade.transaction_context())):  # type: ignore[misc] # oslo.db gives the class no name
    """What a request sees of its cell's database: an oslo.db transaction context, with ``.reader``, ``.writer``, ...

    Lives as long as whatever refers to it, and works as long as its lease is open, a kept ``.reader`` and a function
    decorated with it included. It can't be configured or patched: what it stands for is shared with other requests.
    """

    # What the base class's constructor sets on the modified views (``.reader``) that oslo.db makes from the first one.
    _allow_async = _connection = _independent = _is_global_manager = _savepoint = False
    _mode = _replace_global_factory = None
    _root: Any = _Itself()

    _lease: Lease
    _leased_factory: _LeasedFactory | None = None

    @property
    def _factory(self) -> _LeasedFactory:
        root = self._root
        root._lease.handles  # noqa: B018 - raises when the lease is closed
        factory: _LeasedFactory | None = root._leased_factory
        if factory is None:
            # one for each lease, whichever thread comes first: by it oslo.db tells if a block joins the one around it
            factory = vars(root).setdefault("_leased_factory", _LeasedFactory(root._lease))
        return factory

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError(f"{self!r} can't be changed: the database is shared with other requests")

    append_on_engine_create = configure = dispose_pool = make_new_manager = patch_engine = patch_factory = _refuse

    def __repr__(self) -> str:
        return f"<DatabaseView {self._root._lease!r}>"


class _LeasedFactory(type(enginefacade.transaction_context()._factory)):  # type: ignore[misc] # it has no public name
    """Gives oslo.db's blocks their sessions, from the leased handles. Lives as long as its view; one for each lease."""

    _started = True
    _transaction_ctx_cfg: Mapping[str, bool] = MappingProxyType(
        {"rollback_reader_sessions": False, "flush_on_subtransaction": False}
    )

    def __init__(self, lease: Lease) -> None:
        # not super().__init__(): nothing of what it prepares is for handles that are open already
        self._lease = lease

    def get_writer_engine(self) -> Engine:
        return self._lease.engine(self._lease.handles.database.writer)

    def get_reader_engine(self) -> Engine:
        return self._lease.engine(self._lease.handles.database.async_reader)

    def get_writer_maker(self) -> sessionmaker[Session]:
        return self._maker(self._lease.handles.database.writer)

    def get_reader_maker(self) -> sessionmaker[Session]:
        return self._maker(self._lease.handles.database.async_reader)

    def _create_session(self, mode: object, bind: Connection | None = None) -> Session:
        source = self._lease.handles.database.source(mode)
        session = source.maker(bind=self._lease.engine(source) if bind is None else bind)
        self._lease.register(session)
        return session

    def _create_connection(self, mode: object) -> Connection:
        connection = self._lease.engine(self._lease.handles.database.source(mode)).connect()
        self._lease.register(connection)
        return connection

    def _maker(self, source: Source) -> sessionmaker[Session]:
        return _LeasedSessionmaker(self._lease, source.maker, self._lease.engine(source))


class _DatabaseClaim:
    """The lease as its database connections know it. Lives as long as the lease, or the last of them."""

    __slots__ = ("_breaker", "_lease", "until")

    def __init__(self, lease: Lease, source: Source) -> None:
        self._lease = lease
        self._breaker = source.breaker
        self.until = lease.until

    def check(self) -> None:
        """Raise what there is to raise where a connection may not be taken."""
        self._lease.handles  # noqa: B018 - raises when the lease is closed
        if self._breaker.refuses():
            raise CellUnavailable(self._lease.cell, "database", self._breaker.cause)

    def slow(self) -> None:
        """A wait takes long."""
        self._breaker.suspect()

    def expired(self, doing: str) -> DeadlineExceeded | LeaseClosed:
        """Return the error for something that was not done in time, or that the release has cut."""
        if self._lease._handles is None:
            return LeaseClosed(self._lease.cell)
        return DeadlineExceeded(f"{doing} in the database of cell {self._lease.cell}")

    def lost(self, error: BaseException, *, connecting: bool) -> CellUnavailable:
        """Return the error for a connection that could not be made, or was lost."""
        why = cause(error)
        if connecting and not has_no_place(error):
            self._breaker.failed(why)
        else:
            self._breaker.suspect()
        return CellUnavailable(self._lease.cell, "database", why)


class _LeasedSessionmaker(sessionmaker[Session]):
    """What a request gets that asks for a sessionmaker: its own, which ends with its lease."""

    def __init__(self, lease: Lease, shared: sessionmaker[Session], engine: Engine) -> None:
        super().__init__(class_=shared.class_, **shared.kw | {"bind": engine})
        self._lease = lease

    def __call__(self, **options: Any) -> Session:
        self._lease.handles  # noqa: B018 - raises when the lease is closed
        session = super().__call__(**options)
        self._lease.register(session)
        return session


new_view = object.__new__
"""Makes a view, whose ``_lease`` is then set, without a constructor: those of the base classes would keep the driver,
and prepare what is never used."""


def lease_of(handle: object) -> Lease | None:
    """Return the lease that this view was made under, None where it is no view of ours.

    A view with modifiers is none either: somebody has put it in the place of ours.
    """
    return getattr(handle, "_lease", None) if isinstance(handle, (DatabaseView, TransportView)) else None
