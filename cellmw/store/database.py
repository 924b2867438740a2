# SPDX-License-Identifier: Apache-2.0
"""A piece of work with a connection -> one transaction in the API database, and what happens when it fails.

The queries themselves are in the files that are named for the tables.
"""

from __future__ import annotations

import contextlib
import enum
import threading
from itertools import islice
from typing import TYPE_CHECKING, Any, Self, TypeVar

import sqlalchemy
from oslo_db import exception as db_exc
from sqlalchemy import exc

from cellmw import engines, forks
from cellmw.bounds import Bounds, cause, drivers_error, has_no_lock, has_no_place, is_forbidden
from cellmw.breaker import ProbedBreaker
from cellmw.deadline import after
from cellmw.exceptions import DeadlineExceeded, StoreUnavailable
from cellmw.store import models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy import Connection, Engine

    from cellmw.deadline import Deadline
    from cellmw.limits import Limits

Key = TypeVar("Key")
Result = TypeVar("Result")

DATABASE_ERRORS = (db_exc.DBError, db_exc.DBInvalidUnicodeParameter, exc.SQLAlchemyError)
"""What a database failure is raised as: oslo.db translates what comes from a driver, and lets the rest through."""

_ODD_VALUE = "the API database does not take what is to be looked up or written"
"""What is said of what no column takes."""

_NO_ANSWER = "the API database does not answer, or refuses the connection"
"""What is said while it is down."""

AT_ONCE = 999
"""How many parameters a statement may have on every database: as many as a SQLite from before 3.32 takes."""

_ATTEMPTS = 10
"""How often a transaction is tried that another one is in the way of."""


class Unset(enum.Enum):
    """The type of :data:`UNSET`."""

    UNSET = "unset"


UNSET = Unset.UNSET
"""Stands for an argument that was not given, where None is a value that can be."""


def chunked(keys: Iterable[Key], most: int = AT_ONCE) -> list[list[Key]]:
    """Cut them up for statements, each of them once, in their order."""
    left = iter(dict.fromkeys(keys))
    return list(iter(lambda: list(islice(left, most)), []))


def given(**values: Any) -> dict[str, Any]:
    """Return those of the values that were given."""
    return {name: value for name, value in values.items() if value is not UNSET}


class Database:
    """The way to the API database. Lives as long as the process; threads share it, each call takes its own connection.

    Pooled connections are not tested before they are used. A transaction that meets one which the server has dropped
    meanwhile is run once more on a fresh one: SQLAlchemy then distrusts every connection that is as old, so that the
    second attempt never meets another of them.

    :ivar breaker: open while the database is known not to answer; it stops nobody but those who :meth:`check` before.
        None where nothing bounds the waits
    """

    def __init__(self, engine: Engine, limits: Limits | None = None, again: Callable[[], Engine] | None = None) -> None:
        """Take an engine over, without connecting to anything.

        :param engine: as ``engines.make_engine`` makes it; close() disposes of it
        :param limits: what bounds the waits; without them a migration may take an hour
        :param again: makes another one like it, for a child process; without it a process that uses this may not fork
        """
        self.breaker: ProbedBreaker | None = None
        self._limits = limits
        self._again = again
        self._closed = False
        self._begin(engine)

    def _begin(self, engine: Engine) -> None:
        engine.hide_parameters = True  # the error of a failed INSERT would show the URLs of a cell
        self._engine = self._bounded = engine
        self._bounds: Bounds | None = None
        self._claim: _Claim | None = None
        if self._limits is not None:
            self._bounds = Bounds(self._engine, self._limits)
            self.breaker = ProbedBreaker("the API database", self._bounds.probe, self._limits.probe_interval)
            self._claim = _Claim(self.breaker, self._limits.patience)
            self._bounded = self._bounds.claimed(self._engine, self._claim)
        self._writer = self._bounded.execution_options(**engines.WRITER)

    def begin_anew(self) -> None:
        """Begin without a connection, in a child process."""
        if self._again is not None:
            if self._bounds is not None:
                self._bounds.disown()
            forks.park(self._engine)
            self._begin(self._again())

    @property
    def engine(self) -> Engine:
        """The engine, for the migrations."""
        return self._engine

    def close(self) -> None:
        """Close the pooled connections, and each other one when it comes back; later calls do nothing."""
        if not self._closed:
            self._closed = True
            if self.breaker is not None:
                self.breaker.close()
            self._engine.dispose()
            # upkeep that is under way may still connect, by the pool that has taken the other one's place
            self._engine.pool.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._engine.dialect.name} {'closed' if self._closed else 'open'}>"

    def check(self, ref: object = None) -> None:
        """Raise at once where it is known not to answer: for callers that can't wait.

        :param ref: what they want to know of
        :raises StoreUnavailable: unless it is worth a try
        """
        if self.breaker is not None and self.breaker.refuses():
            raise StoreUnavailable(_NO_ANSWER)

    def _read(self, work: Callable[[Connection], Result], deadline: Deadline | None = None) -> Result:
        if deadline is None or self._claim is None:
            return self._run(self._bounded, work)
        with self._claim.bounded(deadline):
            return self._run(self._bounded, work)

    def _write(self, work: Callable[[Connection], Result]) -> Result:
        return self._run(self._writer, work, writes=True)

    def _write_again(self, work: Callable[[Connection], Result], *others: type[Exception]) -> Result:
        """Write, and once more where the database has ended it for another transaction that it was in the way of.

        :param others: what is raised, besides, where another one was faster
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._write(work)
            except StoreUnavailable as error:
                if not isinstance(error.__cause__, (db_exc.DBDeadlock, *others)):
                    raise
        return self._write(work)

    def _run(
        self, engine: Engine, work: Callable[[Connection], Result], *, writes: bool = False, last: bool = False
    ) -> Result:
        connected = committing = False
        try:
            with engine.connect() as connection:
                connected = True
                result = work(connection)
                if writes:
                    committing = True
                    connection.commit()
                return result
        except DeadlineExceeded as overdue:
            raise StoreUnavailable(f"{_NO_ANSWER}: {overdue}") from overdue
        except DATABASE_ERRORS as error:
            # once COMMIT is on its way nobody knows whether it has arrived
            if last or not connected or committing or not _dropped(error):
                raise self._failure(error, connected) from error
        return self._run(engine, work, writes=writes, last=True)

    def _failure(self, error: Exception, connected: bool) -> StoreUnavailable:
        missing = self._missing_tables() if connected and not _dropped(error) else None
        if not missing:
            return failure(error)
        what = "has no tables for cells yet" if missing & models.NOVAS else "lacks tables of this release"
        return StoreUnavailable(f"the API database {what}: run `cellmw-manage api_db sync`")

    def _missing_tables(self) -> set[str]:
        try:
            return models.metadata.tables.keys() - set(sqlalchemy.inspect(self._bounded).get_table_names())
        except (*DATABASE_ERRORS, DeadlineExceeded):
            return set()


class _Claim:
    """The store as its connections know it: each thread has a deadline of its own. Lives as long as the store."""

    def __init__(self, breaker: ProbedBreaker, patience: float) -> None:
        self._breaker = breaker
        self._patience = patience
        self._here = threading.local()

    @contextlib.contextmanager
    def bounded(self, deadline: Deadline) -> Iterator[None]:
        """Have what this thread waits for end by the deadline."""
        self._here.deadline = deadline
        try:
            yield
        finally:
            self._here.deadline = None

    def check(self) -> None:
        """Whoever can't wait has asked the store itself."""

    def until(self) -> Deadline:
        """Return the deadline of a wait that begins now."""
        deadline: Deadline | None = getattr(self._here, "deadline", None)
        return after(self._patience) if deadline is None else deadline

    def slow(self) -> None:
        """A wait takes long."""
        self._breaker.suspect()

    def expired(self, doing: str) -> DeadlineExceeded:
        """Return the error for something that was not done in time."""
        return DeadlineExceeded(f"{doing} in the API database")

    def lost(self, error: BaseException, *, connecting: bool) -> None:
        """Note that a connection could not be made, or was lost; the error stays the driver's."""
        if connecting and not has_no_place(error):
            self._breaker.failed(cause(error))
        else:
            self._breaker.suspect()


def failure(error: Exception) -> StoreUnavailable:
    """Turn one of :data:`DATABASE_ERRORS` into ours, whose message quotes nothing of it."""
    if isinstance(error, db_exc.DBNonExistentDatabase):
        return StoreUnavailable("the API database does not exist: create it, then run `cellmw-manage api_db sync`")
    if isinstance(error, exc.TimeoutError):
        return StoreUnavailable("no connection to the API database became free: max_pool_size may be too small")
    if isinstance(error, db_exc.DBInvalidUnicodeParameter):
        return StoreUnavailable(f"{_ODD_VALUE}: it is not UTF-8")
    if is_locked(error):
        return StoreUnavailable("somebody else has locked what is to be written in the API database: run it again")
    if _dropped(error) or getattr(_untranslated(error), "statement", "") is None:
        return StoreUnavailable(_NO_ANSWER)
    if is_forbidden(drivers_error(error)):
        return StoreUnavailable("the user in [api_database] connection may not do that: have it granted to that user")
    if isinstance(_untranslated(error), exc.DataError):
        return StoreUnavailable(
            f"{_ODD_VALUE} ({_driver_error(error)}): it is too long, or has characters that its tables can't keep"
        )
    return StoreUnavailable(f"the API database failed: {_driver_error(error)}")


def is_locked(error: Exception) -> bool:
    """Tell whether one of :data:`DATABASE_ERRORS` says that a lock was waited for in vain."""
    return has_no_lock(drivers_error(error))


def _dropped(error: Exception) -> bool:
    return isinstance(error, db_exc.DBConnectionError) or getattr(error, "connection_invalidated", False)


def _untranslated(error: Exception) -> Exception:
    return getattr(error, "inner_exception", None) or error


def _driver_error(error: Exception) -> str:
    """Name the error without its message, in which a driver may quote what was to be written."""
    original = drivers_error(error)
    number = next((str(argument) for argument in original.args[:1] if isinstance(argument, int)), "")
    return f"{type(original).__name__} {number}".rstrip()
