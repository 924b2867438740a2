# SPDX-License-Identifier: Apache-2.0
"""A cell's database: how many connections it may have, what its replica shares with it, and its end."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from oslo_db.sqlalchemy import enginefacade
from sqlalchemy import text

from cellmw.cell_database import CellDatabase
from cellmw.exceptions import CellMisconfigured
from cellmw.limits import Limits
from tests.unit.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cellmw.cell import Cell

READER, ASYNC_READER, WRITER = enginefacade._READER, enginefacade._ASYNC_READER, enginefacade._WRITER


@pytest.fixture
def open_database(cell1: Cell) -> Iterator[Callable[..., CellDatabase]]:
    """Open the database of cell1; the options are those of its engine."""
    opened: list[CellDatabase] = []

    def open_(limits: Limits | None = None, replica: str | None = None, **options: Any) -> CellDatabase:
        keywords = {"synchronous_reader": options.pop("synchronous_reader", True)}
        opened.append(CellDatabase.open(cell1, options, limits or Limits(), replica=replica, **keywords))
        return opened[-1]

    yield open_
    for database in opened:
        database.close()


@pytest.mark.parametrize(
    ("most", "options", "size", "overflow"),
    [
        (15, {}, 5, 10),
        (3, {}, 3, 0),
        (15, {"max_pool_size": 10}, 10, 5),
        (15, {"max_pool_size": 50, "max_overflow": 50}, 15, 0),
        (15, {"max_overflow": 2}, 5, 2),
        (15, {"max_overflow": 0}, 5, 0),
        (1, {"max_pool_size": 0}, 1, 0),
        (15, {"max_overflow": -1}, 5, 10),
    ],
)
def test_connections(
    open_database: Callable[..., CellDatabase], most: int, options: dict[str, int], size: int, overflow: int
) -> None:
    """The options say how many connections there are, and the limit how many there are at most."""
    pool: Any = open_database(Limits(max_connections=most), **options).engine.pool
    assert (pool.size(), pool._max_overflow) == (size, overflow)


@pytest.mark.parametrize(
    ("synchronous", "on_the_replica"), [(True, [False, True, False]), (False, [True, True, False])]
)
def test_source(
    open_database: Callable[..., CellDatabase], cell2: Cell, synchronous: bool, on_the_replica: list[bool]
) -> None:
    """Who reads with ``async_`` does so at the replica, other readers where the option says, and writers never."""
    url = cell2.reveal_database_connection()
    database = open_database(replica=url, synchronous_reader=synchronous)
    sources = [database.source(mode) for mode in (READER, ASYNC_READER, WRITER)]
    assert [source.engine.url == database.replica.url for source in sources] == on_the_replica
    assert database.replica is not database.engine


def test_probe(open_database: Callable[..., CellDatabase]) -> None:
    """A probe asks the database itself, by a connection of its own that it closes."""
    database = open_database(max_pool_size=1, max_overflow=0)
    with database.engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        database.breaker.suspect()
        for thread in threading.enumerate():
            if thread.name == "cellmw-probe":
                thread.join(PATIENCE)
        database.reader.bounds.probe()
        assert not database.breaker.is_open
        pool: Any = database.engine.pool
        assert (pool.checkedout(), pool.checkedin()) == (1, 0)


def test_unusable_replica(open_database: Callable[..., CellDatabase]) -> None:
    """A replica whose URL can't be used is a mistake in the cell, and the message does not show it."""
    with pytest.raises(CellMisconfigured, match="cell cell1: no SQLAlchemy dialect") as error:
        open_database(replica="nosuch://user:s3cret@host/")
    assert "s3cret" not in str(error.value)


def test_close(open_database: Callable[..., CellDatabase], cell2: Cell) -> None:
    """Its end closes all idle connections, and ends the probes, those of the replica included."""
    database = open_database(replica=cell2.reveal_database_connection())
    for engine in (database.engine, database.replica):
        with engine.connect():
            pass
    pools: list[Any] = [database.engine.pool, database.replica.pool]
    assert [pool.checkedin() for pool in pools] == [1, 1]
    database.close()
    assert [engine.pool.checkedin() for engine in (database.engine, database.replica)] == [0, 0]
    for source in (database.reader, database.async_reader):
        source.breaker.failed("TimeoutError")
        assert not source.breaker.is_open
