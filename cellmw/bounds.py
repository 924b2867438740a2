# SPDX-License-Identifier: Apache-2.0
"""Bounds: engine + claim -> an engine whose every wait ends when the claim says.

What can wait: the pool for a place, connecting, the ping and all that is done to a new connection, each statement, each
fetch from a cursor that the server keeps, COMMIT and ROLLBACK. A statement that the server still works on when nobody
waits for it any more is ended by the server itself, which is told how long one may take.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import re
import sqlite3
import threading
import weakref
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, cast

from oslo_db.sqlalchemy import exc_filters
from sqlalchemy import Connection, event, exc, pool
from sqlalchemy.engine.base import OptionEngine

from cellmw import forks
from cellmw.crew import MAX_STUCK
from cellmw.deadline import after, left
from cellmw.exceptions import CellmwError, CellsClosed, DeadlineExceeded
from cellmw.watch import Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy import Engine
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.pool import PoolProxiedConnection

    from cellmw.deadline import Deadline
    from cellmw.limits import Limits

T = TypeVar("T")

LOG = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5
"""Seconds after which a driver gives up connecting, where its URL says nothing else."""

PROBE_TIMEOUT = 2
"""Seconds within which a database has to answer a probe. Less than that libpq does not count."""

_ROLLBACK_GRACE = 0.5
"""Seconds that ROLLBACK has in any case: a connection that is sound is worth that much after the deadline."""

_KEY = "cellmw_claim"

_BUSY_KEY = "cellmw_busy_timeout"

_SQLITE_BUSY_TIMEOUT = 5.0
"""Seconds for which Python's SQLite connections wait for a lock by default."""

_TIMED_OUT = {"57014", 1969, 3024}
"""What a server says that ended a statement for its time: PostgreSQL, MariaDB, MySQL."""

_NO_PLACE = {"53300", 1040, 1203, 1226}
"""What a server says that has as many connections as it may have: those that are there go on working."""

_LOCKED = {"55P03", 1205}
"""What a server says that has waited for a lock as long as one may."""

_FORBIDDEN = {"42501", "25006", 1142, 1143, 1290, 1792, 1836}
"""What a server says that does not let this user do it, or is read-only."""

_NO_PLACE_TEXT = re.compile("too many (clients|connections)|connection slots are reserved")
"""What PostgreSQL says then: where a connection could not be made psycopg has no SQLSTATE."""


class Claim(Protocol):
    """Who uses an engine, and until when."""

    def check(self) -> None:
        """Raise what there is to raise where a connection may not be taken."""

    def until(self) -> Deadline:
        """Return the deadline of a wait that begins now."""

    def slow(self) -> None:
        """A wait takes long; the watch's thread says so."""

    def expired(self, doing: str) -> Exception:
        """Return the error for something that was not done in time."""

    def lost(self, error: BaseException, *, connecting: bool) -> Exception | None:
        """Return the error for a connection that could not be made, or was lost, None for the driver's own."""


class Bounds:
    """What bounds the waits on one engine. Lives as long as the engine.

    :ivar stuck: an entry for each thread that is stuck in connecting, and that nobody waits for any more
    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        """Take the engine over, before anything is connected."""
        self.stuck: set[object] = set()
        self._engine = engine
        self.watch = limits.watch
        self._crew = limits.crew
        self._patience = limits.patience
        self._here = threading.local()  # the wait of a thread that is getting a connection
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._is_sqlite = engine.dialect.name == "sqlite"
        dialect: Any = engine.dialect
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            setattr(dialect, name, self._bounded_execute(getattr(dialect, name)))
        # oslo.db's listener raises some errors, and no other listener gets to see those: ours calls it
        event.remove(engine, "handle_error", exc_filters.handler)
        event.listen(engine, "handle_error", _translate, retval=True)
        if not self._is_sqlite:  # whose only waits are statements, and locks
            dialect.do_ping = self._bounded_ping(dialect.do_ping)
            dialect.do_commit = self._bounded_end(dialect.do_commit, grace=0.0)
            dialect.do_rollback = self._bounded_end(dialect.do_rollback, grace=_ROLLBACK_GRACE)
            event.listen(engine, "do_connect", self._connect)
            event.listen(engine, "checkin", _forget_claim)
            event.listen(engine, "connect", self._tell_server)
            event.listen(engine, "connect", lambda connection, _: self._connections.add(connection))
        if isinstance(engine.pool, BoundedPool):
            engine.pool.here = self._here

    def disown(self) -> None:
        """Have nobody in a child process use the connections that it has inherited."""
        for connection in tuple(self._connections):
            forks.defuse(connection)
        forks.park((self._engine.pool, tuple(self._connections)))

    def claimed(self, engine: Engine, claim: Claim) -> BoundedEngine:
        """Return the engine as somebody uses it whose waits end by this claim.

        :param engine: the one that was taken over, or one made of it by ``execution_options()``
        """
        bounded = BoundedEngine(engine, {})
        bounded.bounds = self
        bounded.claim = claim
        return bounded

    def probe(self) -> None:
        """Connect and have one statement executed, outside the pool.

        :raises Exception: if that fails, within a few seconds, unless all that is missing is a place
        """
        try:
            self._probe()
        except self._engine.dialect.loaded_dbapi.Error as error:
            if not has_no_place(error):
                raise

    def _probe(self) -> None:
        wait = self._here.wait = Wait(after(PROBE_TIMEOUT), _nothing)
        self._here.claim = None
        self.watch.begin(wait)
        try:
            connection: Any = self._engine.pool._creator()  # type: ignore[call-arg]
            wait.connection = connection
            try:
                with contextlib.closing(connection.cursor()) as cursor:
                    cursor.execute("SELECT 1")
                    cursor.fetchall()
            finally:
                connection.close()
        finally:
            self.watch.end(wait)
            self._here.wait = None

    def connect(self, engine: BoundedEngine) -> PoolProxiedConnection:
        """Take a connection from the pool, which may have to make one."""
        claim = engine.claim
        claim.check()
        wait = Wait(claim.until(), claim.slow, owner=claim)
        here = self._here
        here.wait, here.claim = wait, claim
        if not self._is_sqlite:
            self.watch.begin(wait)
        try:
            connection = engine.pool.connect()
        except exc.TimeoutError as crowded:
            raise claim.expired("a connection of the pool") from crowded
        except self._engine.dialect.loaded_dbapi.Error as error:
            if wait.was_cut:
                raise claim.expired("a connection") from error
            raise
        finally:
            if not self._is_sqlite:
                self.watch.end(wait)
            here.wait = here.claim = None
        if self._is_sqlite:
            _wait_for_locks(connection, left(wait.deadline))
        else:
            connection.info[_KEY] = claim
        return connection

    def _connect(self, dialect: Any, record: object, arguments: list[Any], named: dict[str, Any]) -> Any:
        """Connect, in the event of SQLAlchemy that may do so in its place."""
        wait: Wait | None = getattr(self._here, "wait", None)
        if wait is None:
            return None
        claim: Claim | None = self._here.claim
        self._set_timeouts(dialect.driver, named, probing=claim is None)
        if claim is None:
            return None
        if not left(wait.deadline):
            raise claim.expired("a connection")
        if len(self.stuck) >= MAX_STUCK:
            raise claim.lost(TimeoutError(), connecting=True) or claim.expired("a connection")
        try:
            wait.connection = self._crew.run(
                lambda: dialect.connect(*arguments, **named),
                wait.deadline,
                self.stuck,
                "",
                late=lambda connection: connection.close(),
            )
        except DeadlineExceeded:
            claim.slow()
            expired = claim.expired("a connection")
            LOG.warning("%s; %d threads are stuck there", expired, len(self.stuck))
            raise expired from None
        return wait.connection

    def _set_timeouts(self, driver: str, named: dict[str, Any], *, probing: bool) -> None:
        timeouts = {"connect_timeout": CONNECT_TIMEOUT}
        if driver in ("pymysql", "mysqldb"):
            timeouts |= dict.fromkeys(("read_timeout", "write_timeout"), math.ceil(self._patience))
        for name, seconds in timeouts.items():
            if probing:
                named[name] = PROBE_TIMEOUT
            else:
                named.setdefault(name, seconds)

    def _tell_server(self, connection: Any, record: object) -> None:
        """Tell the server how long a statement may take."""
        milliseconds = math.ceil(self._patience * 1000)
        if self._engine.dialect.name == "postgresql":
            statement = f"SET statement_timeout = {milliseconds}"
        elif "mariadb" in connection.get_server_info().lower():
            statement = f"SET SESSION max_statement_time = {self._patience}"
        else:
            statement = f"SET SESSION max_execution_time = {milliseconds}"
        with contextlib.closing(connection.cursor()) as cursor:
            cursor.execute(statement)
        if self._engine.dialect.name == "postgresql":
            connection.commit()  # where a SET is a part of the transaction

    def _bounded_execute(self, execute: Callable[..., T]) -> Callable[..., T]:
        def bounded(cursor: Any, *arguments: Any) -> T:
            context = arguments[-1]
            on: Any = getattr(context, "root_connection", None)
            if on is None or not isinstance(on.engine, BoundedEngine) or arguments[0] == "BEGIN":
                return execute(cursor, *arguments)  # of SQLite's statements the only one that never waits
            claim, connection = on.engine.claim, on.connection.dbapi_connection
            result = self._wait(claim, connection, "a statement", execute, cursor, *arguments)
            if context._is_server_side:
                wait = functools.partial(self._wait, claim, connection, "a statement")
                context.cursor = _BoundedCursor(cursor, wait)
            return result

        return bounded

    def _bounded_ping(self, ping: Callable[[Any], bool]) -> Callable[[Any], bool]:
        def bounded(connection: Any) -> bool:
            wait: Wait | None = getattr(self._here, "wait", None)
            if wait is not None:
                wait.connection = connection
            return ping(connection)

        return bounded

    def _bounded_end(self, end: Callable[[Any], None], grace: float) -> Callable[[Any], None]:
        def bounded(connection: Any) -> None:
            record = getattr(connection, "_connection_record", None)  # a connection that the driver made has none
            claim = record.info.get(_KEY) if record is not None else None
            if claim is None:
                end(connection)
            else:
                self._wait(claim, connection.dbapi_connection, "COMMIT or ROLLBACK", end, connection, grace=grace)

        return bounded

    def _wait(
        self, claim: Claim, connection: Any, doing: str, do: Callable[..., T], *arguments: Any, grace: float = 0.0
    ) -> T:
        try:
            deadline = claim.until()
        except CellsClosed:
            if grace:
                return cast("T", None)  # a ROLLBACK is its parent's to send
            raise
        if left(deadline) <= grace:
            if not grace:
                raise claim.expired(doing)
            deadline = after(grace)
        wait = Wait(deadline, claim.slow, connection, claim)
        self.watch.begin(wait)
        try:
            return do(*arguments)
        except Exception as error:
            if wait.was_cut:
                error.cellmw_expired = doing  # type: ignore[attr-defined] # for _translate, which gets to see no more
            raise
        finally:
            self.watch.end(wait)


class _BoundedConnection(Connection):
    """A connection of a bounded engine. Lives as long as its block."""

    @property
    def info(self) -> Any:
        # oslo.db asks a SQLite's for it at the end of a transaction, also of one that was lost with its connection
        return {} if self.invalidated else super().info


class BoundedEngine(OptionEngine):
    """An engine as one lease, or the store, uses it; its pool is shared. Lives as long as that."""

    _sqla_logger_namespace = "sqlalchemy.engine.Engine"
    _connection_cls = _BoundedConnection
    _has_events = True  # oslo.db listens to every engine; the base class would look it up for each of them
    bounds: Bounds
    claim: Claim

    def __init__(self, proxied: Engine, execution_options: Mapping[str, Any]) -> None:
        super().__init__(proxied, execution_options)
        # its own would pass each event on to this one, one after the other
        self.dispatch = proxied.dispatch
        if isinstance(proxied, BoundedEngine):
            self.bounds, self.claim = proxied.bounds, proxied.claim

    def end_all(self) -> None:
        """Have every wait under this claim cut: it is over."""
        self.bounds.watch.end_all(self.claim)

    def raw_connection(self) -> PoolProxiedConnection:
        """Take a connection from the pool, as long as the claim allows."""
        return self.bounds.connect(self)


BoundedEngine._option_cls = BoundedEngine


class BoundedPool(pool.QueuePool):
    """A pool whose places are waited for until the deadline of whoever wants one. Lives as long as its engine.

    What is out when it is disposed of is closed when it comes back; SQLAlchemy's own would keep it for nobody.
    """

    _sqla_logger_namespace = "sqlalchemy.pool.impl.QueuePool"
    here: threading.local | None = None
    _is_over = False

    @property
    def _timeout(self) -> float:
        wait: Wait | None = getattr(self.here, "wait", None)
        return self._longest if wait is None else min(self._longest, left(wait.deadline))

    @_timeout.setter
    def _timeout(self, longest: float) -> None:
        self._longest = longest

    def recreate(self) -> Self:
        new = cast("Self", super().recreate())
        new.here = self.here
        return new

    def dispose(self) -> None:
        self._is_over = True
        super().dispose()

    def _do_return_conn(self, record: pool.ConnectionPoolEntry) -> None:
        super()._do_return_conn(record)  # first, or what comes back while it is being disposed of would stay
        if self._is_over:
            super().dispose()


class _BoundedCursor:
    """A cursor whose rows the server keeps until they are fetched: each fetch may wait. Lives as long as its result."""

    def __init__(self, cursor: Any, wait: Callable[..., Any]) -> None:
        self._cursor = cursor
        self._wait = wait

    def fetchone(self) -> Any:
        return self._fetch(self._cursor.fetchone)

    def fetchmany(self, *size: int) -> Any:
        return self._fetch(self._cursor.fetchmany, *size)

    def fetchall(self) -> Any:
        return self._fetch(self._cursor.fetchall)

    def close(self) -> None:
        self._fetch(self._cursor.close, grace=_ROLLBACK_GRACE)

    def _fetch(self, fetch: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return self._wait(fetch, *arguments, **options)
        except Exception:
            result: Any = getattr(self._cursor, "_result", None)
            if getattr(result, "unbuffered_active", False) and not self._cursor.connection.open:
                # PyMySQL would read the rest of the rows from a connection that it has lost, when this is freed
                result.unbuffered_active = False
            raise

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchone, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


def has_no_place(error: BaseException) -> bool:
    """Tell whether the server has refused a connection because it has too many: it is not down."""
    return _code(error) in _NO_PLACE or _NO_PLACE_TEXT.search(str(error)) is not None


def has_no_lock(error: BaseException) -> bool:
    """Tell whether somebody else has locked what was wanted, for longer than one may wait for it."""
    # SQLite's extended codes have the plain one in their last byte
    return _code(error) in _LOCKED or getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def is_forbidden(error: BaseException) -> bool:
    """Tell whether it is not granted to the user, or nobody may write there."""
    return _code(error) in _FORBIDDEN or getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_READONLY


def drivers_error(error: BaseException) -> BaseException:
    """Return the error of the driver that oslo.db and SQLAlchemy have wrapped, or this one where they have not."""
    found: BaseException = getattr(getattr(error, "inner_exception", None) or error, "orig", None) or error
    return found


def cause(error: BaseException) -> str:
    """Name the error without its message, in which a driver may quote a URL."""
    return f"{type(error).__name__} {_code(error) or ''}".rstrip()


def _translate(context: ExceptionContext) -> BaseException | None:
    """Say in our own words what has become of a wait, and in oslo.db's what else went wrong."""
    engine, error = context.engine, context.original_exception
    if isinstance(error, CellmwError):
        return None  # oslo.db would make a DBError of it
    if not isinstance(engine, BoundedEngine) or context.sqlalchemy_exception is None:
        return cast("BaseException | None", exc_filters.handler(context))
    doing = getattr(error, "cellmw_expired", "a statement" if _code(error) in _TIMED_OUT else None)
    if doing is not None:
        # this connection is lost, others need not be
        context.invalidate_pool_on_disconnect = False
        return engine.claim.expired(doing)
    connecting = context.connection is None
    theirs: BaseException | None = None
    try:
        theirs = exc_filters.handler(context)
    except exc.SQLAlchemyError as raised:
        theirs = raised
    if connecting or context.is_disconnect:
        # some that SQLAlchemy does not know for a lost connection, oslo.db does
        return engine.claim.lost(error, connecting=connecting) or theirs
    return theirs


def _code(error: BaseException) -> object:
    """Return the number or the SQLSTATE that a driver's error has, None where it has none."""
    number = next((argument for argument in error.args[:1] if isinstance(argument, int)), None)
    return number or getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def _forget_claim(_: object, record: Any) -> None:
    record.info.pop(_KEY, None)


def _wait_for_locks(connection: PoolProxiedConnection, seconds: float) -> None:
    """Let SQLite wait for a lock as long as there is time; there is nothing else about it that can be cut."""
    wanted = min(seconds, _SQLITE_BUSY_TIMEOUT)
    if connection.info.get(_BUSY_KEY, _SQLITE_BUSY_TIMEOUT) != wanted:
        connection.info[_BUSY_KEY] = wanted
        connection.cursor().execute(f"PRAGMA busy_timeout = {math.ceil(wanted * 1000)}").close()


def _nothing() -> None:
    """A probe that is slow is a probe that fails."""
