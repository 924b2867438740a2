# SPDX-License-Identifier: Apache-2.0
"""A cell's database: the engines that all requests share, and whether they are known not to answer."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from oslo_db.sqlalchemy import enginefacade, orm
from sqlalchemy.orm import sessionmaker

from cellmw.bounds import Bounds
from cellmw.breaker import ProbedBreaker
from cellmw.engines import WRITER, make_engine
from cellmw.exceptions import CellMisconfigured, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from cellmw.cell import Cell
    from cellmw.limits import Limits


_POOL_SIZE = 5
"""How many connections a pool keeps, where no option says so."""


class Source:
    """One place to read from or to write to. Lives as long as the cell's handles.

    :ivar engine: its engine, for connections that nothing bounds
    :ivar bounds: what bounds those of requests
    :ivar maker: makes sessions on it
    :ivar breaker: open while it is known not to answer
    """

    def __init__(self, engine: Engine, bounds: Bounds, breaker: ProbedBreaker) -> None:
        self.engine = engine
        self.bounds = bounds
        self.breaker = breaker
        self.maker = _session_maker(engine)


class CellDatabase:
    """A cell's database, with its read replica where it has one. Lives as long as the cell's handles.

    :ivar engine: readers and writers use the same pool of connections
    :ivar replica: the engine of the read replica, or of the database itself where it has none
    :ivar synchronous_reader: whether readers that don't say ``async_`` keep to the database itself
    :ivar breaker: open while the database, not its replica, is known not to answer
    """

    def __init__(self, reader: Source, writer: Source, async_reader: Source, *, synchronous_reader: bool) -> None:
        self.reader = reader
        self.writer = writer
        self.async_reader = async_reader
        self.synchronous_reader = synchronous_reader
        self.breaker = reader.breaker

    @classmethod
    def open(
        cls,
        cell: Cell,
        options: Mapping[str, Any],
        limits: Limits,
        *,
        replica: str | None = None,
        synchronous_reader: bool = True,
    ) -> CellDatabase:
        """Make the engines; nothing is connected to yet.

        :param options: keyword arguments of ``oslo_db.sqlalchemy.engines.create_engine``
        :param replica: the URL of the database's read replica
        :raises CellMisconfigured: if a URL is missing, malformed or names a driver that isn't installed
        """
        try:
            reader = _source(cell.reveal_database_connection(), options, limits, f"cell {cell}: its database")
            async_reader = reader
            if replica is not None:
                async_reader = _source(replica, options, limits, f"cell {cell}: the replica of its database")
        except ConfigError as wrong:
            raise CellMisconfigured(cell, str(wrong)) from None
        writer = Source(reader.engine.execution_options(**WRITER), reader.bounds, reader.breaker)
        return cls(reader, writer, async_reader, synchronous_reader=synchronous_reader)

    @property
    def engine(self) -> Engine:
        """The engine of the database itself."""
        return self.reader.engine

    @property
    def replica(self) -> Engine:
        """The engine of the read replica, or of the database itself where it has none."""
        return self.async_reader.engine

    @property
    def stuck(self) -> int:
        """How many threads are stuck in connecting."""
        return sum(len(bounds.stuck) for bounds in {self.reader.bounds, self.async_reader.bounds})

    def source(self, mode: object) -> Source:
        """Return where a block of this mode of oslo.db's enginefacade reads and writes."""
        if mode is enginefacade._WRITER:
            return self.writer
        if mode is enginefacade._READER and self.synchronous_reader:
            return self.reader
        return self.async_reader

    def disown(self) -> None:
        """Have nobody in a child process use the connections that it has inherited."""
        for source in {self.reader, self.async_reader}:
            source.bounds.disown()

    def close(self) -> None:
        """Close the pools."""
        with contextlib.ExitStack() as closing:
            for source in {self.reader, self.async_reader}:
                source.breaker.close()
                closing.callback(source.engine.dispose)


def _source(url: str, options: Mapping[str, Any], limits: Limits, what: str) -> Source:
    size = min(options.get("max_pool_size") or _POOL_SIZE, limits.max_connections)
    rest = limits.max_connections - size
    overflow = options.get("max_overflow")
    if overflow is None or not 0 <= overflow <= rest:
        overflow = rest
    engine = make_engine(url, {**options, "max_pool_size": size, "max_overflow": overflow}, pre_ping=True)
    bounds = Bounds(engine, limits)
    return Source(engine, bounds, ProbedBreaker(what, bounds.probe, limits.probe_interval))


def _session_maker(engine: Engine) -> sessionmaker[Session]:
    # what oslo.db's own maker passes, and that a session which was closed stays so: by default it opens itself again
    return sessionmaker(
        bind=engine,
        class_=orm.Session,
        query_cls=orm.Query,
        expire_on_commit=False,
        close_resets_only=False,
    )
