# SPDX-License-Identifier: Apache-2.0
"""The open handles of all cells: who opens them, who waits, and what closing does."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from cellmw import handles as handles_module
from cellmw import lease as lease_module
from cellmw import pool as pool_module
from cellmw.cell import Cell
from cellmw.deadline import after
from cellmw.exceptions import CellMisconfigured, CellsClosed, DeadlineExceeded
from cellmw.handles import Handles
from cellmw.holds import Holds
from cellmw.lease import Lease
from cellmw.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from oslo_config import cfg

    Together = Callable[[int, Callable[[int], Any]], list[Any]]

PATIENCE = 20

CELL1, CELL2 = (
    Cell(number, f"uuid-{number}", f"cell{number}", False, f"memory://cell{number}/", "sqlite://") for number in (1, 2)
)


class Opener:
    """Opens real handles. Records for whom; the opening of some cells is held up until a test lets it go on."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self.opened: list[Handles] = []
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.slow: set[int] = set()
        self._conf = conf

    def __call__(self, cell: Cell) -> Handles:
        if cell.id in self.slow:
            self.begun.release()
            assert self.go_on.wait(PATIENCE)
        handles = Handles.open(cell, self._conf, {})
        self.opened.append(handles)
        return handles

    @property
    def names(self) -> list[str]:
        """The names of the cells that were opened."""
        return [str(handles.cell) for handles in self.opened]


@pytest.fixture
def opener(conf: cfg.ConfigOpts) -> Iterator[Opener]:
    """An opener; what it opened is closed with the test."""
    opener = Opener(conf)
    yield opener
    for handles in opener.opened:
        handles.close()


@pytest.fixture
def pool(opener: Opener) -> Iterator[Pool]:
    """A pool with nothing open."""
    pool = Pool(opener)
    yield pool
    pool.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads to open cells in."""
    with ThreadPoolExecutor(4) as threads:
        yield threads


def test_nothing_is_open_at_first(pool: Pool, opener: Opener) -> None:
    """A new pool has opened nothing."""
    assert (pool.handles, opener.opened, pool.leases) == ({}, [], 0)


def test_opened_once(pool: Pool, opener: Opener) -> None:
    """A cell is opened on first use, and its handles are there from then on, by the id of the cell."""
    handles = pool.open(CELL1)
    assert pool.open(CELL1) is handles
    assert pool.handles == {1: handles}
    assert opener.names == ["cell1"]


def test_cells_have_handles_of_their_own(pool: Pool) -> None:
    """Handles are never shared by cells."""
    first, second = pool.open(CELL1), pool.open(CELL2)
    assert (first.cell, second.cell) == (CELL1, CELL2)
    assert first.engine is not second.engine


def test_one_opener_for_each_cell(pool: Pool, opener: Opener, together: Together) -> None:
    """However many threads want a cell at the same moment, one opens it and all get the same handles."""
    cells = [Cell(number, f"u{number}", None, False, f"memory://c{number}/", "sqlite://") for number in range(4)]
    got = together(32, lambda number: pool.open(cells[number % 4]))
    assert len(opener.opened) == 4
    assert all(handles is pool.handles[number % 4] for number, handles in enumerate(got))


def test_nobody_waits_for_another_cell(pool: Pool, opener: Opener, threads: ThreadPoolExecutor) -> None:
    """While one cell takes long to open, others are opened and used."""
    opener.slow.add(CELL1.id)
    slow = threads.submit(pool.open, CELL1)
    assert opener.begun.acquire(timeout=PATIENCE)
    assert pool.open(CELL2).cell == CELL2
    opener.go_on.set()
    assert slow.result(PATIENCE).cell == CELL1


def test_deadline(pool: Pool, opener: Opener, threads: ThreadPoolExecutor) -> None:
    """Who waits for a cell's opener gives up at the deadline; the opener goes on, and is not disturbed."""
    opener.slow.add(CELL1.id)
    slow = threads.submit(pool.open, CELL1, after(0))
    assert opener.begun.acquire(timeout=PATIENCE)
    with pytest.raises(DeadlineExceeded, match="waiting for cell cell1 to be opened"):
        pool.open(CELL1, after(0))
    opener.go_on.set()
    assert slow.result(PATIENCE) is pool.handles[CELL1.id]


def test_failing_opener(pool: Pool, opener: Opener) -> None:
    """A cell that could not be opened is tried again by the next who wants it."""
    bad = Cell(1, "uuid-1", "cell1", False, "memory://cell1/", None)
    for _ in range(2):
        with pytest.raises(CellMisconfigured, match="cell cell1"):
            pool.open(bad)
    assert pool.handles == {}
    assert pool.open(CELL1).cell == CELL1


def test_leases_are_counted(pool: Pool) -> None:
    """The pool knows how many leases are open over all cells."""
    with Lease(pool.open(CELL1)), Lease(pool.open(CELL1)), Lease(pool.open(CELL2)):
        assert pool.leases == 3
    assert pool.leases == 0


def test_close(pool: Pool, opener: Opener) -> None:
    """Closing the pool closes the handles of every cell."""
    pool.open(CELL1)
    pool.open(CELL2)
    pool.close()
    assert [repr(handles).split()[-1] for handles in opener.opened] == ["closed>"] * 2
    assert pool.handles == {}


def test_closes_once(pool: Pool) -> None:
    """Closing a pool again does nothing."""
    pool.open(CELL1)
    pool.close()
    pool.close()


def test_closed_for_good(pool: Pool, opener: Opener) -> None:
    """A closed pool opens nothing any more, so nothing is left open behind its back."""
    pool.open(CELL1)
    pool.close()
    for cell in (CELL1, CELL2):
        with pytest.raises(CellsClosed):
            pool.open(cell)
    assert opener.names == ["cell1"]


def test_closed_while_opening(pool: Pool, opener: Opener, threads: ThreadPoolExecutor) -> None:
    """Handles that are opened while the pool is being closed are closed as well, and who wanted them is told."""
    opener.slow.add(CELL1.id)
    slow = threads.submit(pool.open, CELL1)
    assert opener.begun.acquire(timeout=PATIENCE)
    pool.close()
    opener.go_on.set()
    assert isinstance(slow.exception(PATIENCE), CellsClosed)
    assert [repr(handles).split()[-1] for handles in opener.opened] == ["closed>"]
    assert pool.handles == {}


def test_lease_on_a_closed_pool(pool: Pool) -> None:
    """A lease that is still open finds its handles closed."""
    with Lease(pool.open(CELL1)) as lease:
        pool.close()
        with pytest.raises(CellsClosed):
            _ = lease.handles


# No more than so many


CELLS = [
    Cell(number, f"uuid-{number}", f"c{number}", False, f"memory://c{number}/", "sqlite://") for number in range(9)
]


@pytest.fixture
def small_pool(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """A pool with room for two cells, in which time passes with each look at the clock."""
    clock = itertools.count(1.0)
    for module in (pool_module, handles_module, lease_module):
        monkeypatch.setattr(module, "monotonic", lambda: next(clock))
    pool = Pool(opener, max_open_cells=2)
    yield pool
    pool.close()


def _use(pool: Pool, number: int) -> Handles:
    with Lease(pool.open(CELLS[number])) as lease:
        return lease.handles


def test_least_recently_used(small_pool: Pool) -> None:
    """One cell more than may be open closes the one that nobody has used for longest."""
    for number in (1, 2, 1, 3):
        _use(small_pool, number)
    assert sorted(small_pool.handles) == [1, 3]
    _use(small_pool, 2)
    assert sorted(small_pool.handles) == [2, 3]


def test_never_one_that_is_leased(small_pool: Pool) -> None:
    """A cell that is in use is left open, however long ago that began."""
    with Lease(small_pool.open(CELLS[1])) as lease:
        for number in (2, 3, 4):
            _use(small_pool, number)
        assert sorted(small_pool.handles) == [1, 4]
        assert not lease.handles.closed


def test_room_is_waited_for(small_pool: Pool, threads: ThreadPoolExecutor) -> None:
    """Where all open cells are in use, who wants another waits until one of them is free."""
    leases = [Lease(small_pool.open(CELLS[number])) for number in (1, 2)]
    waiting = threading.Event()
    take_place = small_pool._take_place

    def look() -> bool:
        found = take_place()
        waiting.set()
        return found

    small_pool._take_place = look  # type: ignore[method-assign]
    third = threads.submit(small_pool.open, CELLS[3])
    assert waiting.wait(PATIENCE)
    assert not third.done()
    leases[1].release()
    assert third.result(PATIENCE).cell == CELLS[3]
    assert sorted(small_pool.handles) == [1, 3]
    leases[0].release()


def test_no_room_in_time(small_pool: Pool, opener: Opener) -> None:
    """That has a deadline, and opens nothing."""
    leases = [Lease(small_pool.open(CELLS[number])) for number in (1, 2)]
    with pytest.raises(DeadlineExceeded, match="one of 2 open cells to be free"):
        small_pool.open(CELLS[3], 0.0)
    assert opener.names == ["c1", "c2"]
    for lease in leases:
        lease.release()
    assert small_pool.open(CELLS[3]).cell == CELLS[3]


def test_room_is_given_back(small_pool: Pool) -> None:
    """A cell that can't be opened takes nobody's place."""
    for _ in range(3):
        with pytest.raises(CellMisconfigured):
            small_pool.open(Cell(8, "uuid-8", "c8", False, "memory://c8/", None))
    with Lease(small_pool.open(CELLS[1])), Lease(small_pool.open(CELLS[2])):
        assert sorted(small_pool.handles) == [1, 2]


def test_waiting_ends_with_the_pool(small_pool: Pool, threads: ThreadPoolExecutor) -> None:
    """Who waits for room while the pool is closed is told."""
    leases = [Lease(small_pool.open(CELLS[number])) for number in (1, 2)]
    third = threads.submit(small_pool.open, CELLS[3])
    small_pool.close()
    assert isinstance(third.exception(PATIENCE), CellsClosed)
    for lease in leases:
        lease.release()


def test_never_more_than_there_may_be(opener: Opener, together: Together) -> None:
    """However many threads want however many cells, no more than so many are in use at a time, and all get theirs."""
    pool = Pool(opener, max_open_cells=3)
    seen: list[int] = []

    def work(number: int) -> None:
        for step in range(30):
            with Lease(pool.open(CELLS[(number + step) % 9])) as lease:
                if not lease._handles.retired:  # type: ignore[union-attr]
                    seen.append(len(pool.handles))

    assert together(8, work) == [None] * 8
    assert max(seen) <= 3
    assert pool.leases == 0
    pool.close()


def test_idle(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that nobody has used for the idle timeout is closed; one that is in use, or was a moment ago, is not."""
    now = [0.0]
    for module in (pool_module, handles_module, lease_module):
        monkeypatch.setattr(module, "monotonic", lambda: now[0])
    pool = Pool(opener, idle_timeout=10)
    with Lease(pool.open(CELLS[1])):
        _use(pool, 2)
        now[0] = 5
        _use(pool, 3)
        now[0] = 10
        pool.retire_idle()
        assert sorted(pool.handles) == [1, 3]
    pool.retire_idle()
    assert sorted(pool.handles) == [1, 3]
    pool.close()


def test_never_idle(opener: Opener) -> None:
    """Without an idle timeout nothing is closed."""
    pool = Pool(opener)
    pool.open(CELLS[1]).used_at = -1e9
    pool.retire_idle()
    assert sorted(pool.handles) == [1]
    pool.close()


@pytest.fixture
def holds() -> Holds:
    """What is held back: nothing, until the test says so."""
    return Holds(None)


@pytest.fixture
def held_pool(opener: Opener, holds: Holds) -> Iterator[Pool]:
    """A pool that goes by that."""
    pool = Pool(opener, holds=holds)
    yield pool
    pool.close()


def test_drained(held_pool: Pool, holds: Holds) -> None:
    """What is open of a cell is retired as soon as the cell is drained, and open as long as its last lease."""
    kept, drained = held_pool.open(CELL2), held_pool.open(CELL1)
    lease = Lease(drained)
    holds.cells = frozenset([CELL1.uuid])
    held_pool.follow({1: CELL1, 2: CELL2})
    assert (drained.retired, drained.closed, kept.retired) == (True, False, False)
    lease.release()
    assert held_pool.handles == {2: kept}


def test_drained_while_opening(held_pool: Pool, holds: Holds, opener: Opener, threads: ThreadPoolExecutor) -> None:
    """A cell that is drained while it is opened is not kept open."""
    opener.slow.add(1)
    opening = threads.submit(held_pool.open, CELL1)
    assert opener.begun.acquire(timeout=PATIENCE)
    holds.cells = frozenset([CELL1.uuid])
    held_pool.follow({1: CELL1})
    opener.go_on.set()
    assert (opening.result(PATIENCE).retired, held_pool.handles) == (True, {})
