# SPDX-License-Identifier: Apache-2.0
"""What is held back: when it is read, and what counts while it can't be."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from cellmw import holds as holds_module
from cellmw.cell import Cell
from cellmw.exceptions import CellDrained, InstanceHeld, StoreUnavailable
from cellmw.holds import Holds
from cellmw.store import DrainedCell, Held, HeldInstance

if TYPE_CHECKING:
    from cellmw.deadline import Deadline

CELL = Cell(1, "uuid-1", "cell1", False, "memory://cell1/", "sqlite://")

NOW = datetime.now(UTC).replace(tzinfo=None)
LATER = NOW + timedelta(days=365)

DRAINED = Held((DrainedCell("uuid-1", NOW, None),), ())
HELD = Held((), (HeldInstance("a", NOW, LATER),))
NOTHING = Held((), ())


class Records:
    """Stands for the store: says what the test wants, and counts. Lives as long as the test."""

    def __init__(self) -> None:
        self.held = NOTHING
        self.readings: list[Deadline | None] = []
        self.is_down = False

    def check(self) -> None:
        """It may be known not to answer."""
        if self.is_down:
            raise StoreUnavailable("down")

    def list_held(self, deadline: Deadline | None = None) -> Held:
        """Answer."""
        self.readings.append(deadline)
        self.check()
        return self.held


class Clock:
    """Stands for the monotonic clock. Lives as long as the test."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def records() -> Records:
    """Nothing is held back."""
    return Records()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that the test sets."""
    clock = Clock()
    monkeypatch.setattr(holds_module, "monotonic", clock)
    return clock


@pytest.fixture
def holds(records: Records, clock: Clock) -> Holds:
    """What is known of them: nothing yet."""
    return Holds(records)  # type: ignore[arg-type]


def test_first_look(holds: Holds, records: Records) -> None:
    """What nobody has read yet is read for the first who asks, and for nobody after that."""
    holds.check_instance("a")
    holds.check_instance("b")
    holds.check_cell(CELL)
    assert len(records.readings) == 1


def test_drained(holds: Holds, records: Records) -> None:
    """Nobody is let into a drained cell."""
    records.held = DRAINED
    with pytest.raises(CellDrained, match="cell cell1 is drained"):
        holds.check_cell(CELL)
    holds.check_instance("a")


def test_held(holds: Holds, records: Records) -> None:
    """Nobody is let through to an instance that is being moved."""
    records.held = HELD
    with pytest.raises(InstanceHeld, match="a is held back while it is moved"):
        holds.check_instance("a")
    holds.check_instance("b")
    holds.check_cell(CELL)


def test_time_is_up(holds: Holds, records: Records) -> None:
    """A hold that nobody has come to the end of ends by itself."""
    records.held = Held((), (HeldInstance("a", NOW, NOW - timedelta(seconds=1)),))
    holds.check_instance("a")


def test_held_again(holds: Holds, records: Records, clock: Clock) -> None:
    """Whoever wants what is held back has it looked up, at most once a second, so that it is let go without delay."""
    records.held = HELD
    for _ in range(3):
        with pytest.raises(InstanceHeld):
            holds.check_instance("a")
    before = len(records.readings)
    records.held = NOTHING
    clock.now += 1.1
    holds.check_instance("a")
    assert (before, len(records.readings)) == (2, 3)


def test_undrained(holds: Holds, records: Records, clock: Clock) -> None:
    """So has whoever wants a drained cell."""
    records.held = DRAINED
    with pytest.raises(CellDrained):
        holds.check_cell(CELL)
    records.held = NOTHING
    clock.now += 1.1
    holds.check_cell(CELL)


def test_changes_are_told(holds: Holds, records: Records) -> None:
    """Each reading tells which instances were not held back before, or are not any more."""
    told: list[frozenset[str]] = []
    holds.changed = told.append  # type: ignore[assignment]
    records.held = HELD
    holds.read()
    records.held = Held((), (HeldInstance("b", NOW, LATER),))
    holds.read()
    holds.read()
    assert told == [{"a"}, {"a", "b"}, set()]


def test_what_is_known_counts(holds: Holds, records: Records, clock: Clock) -> None:
    """While the API database does not answer, what was read last counts, drained cells and instances alike."""
    records.held = Held(DRAINED.cells, HELD.instances)
    holds.read()
    records.is_down = True
    holds.keep_up()
    clock.now += 60
    with pytest.raises(InstanceHeld):
        holds.check_instance("a")
    with pytest.raises(CellDrained):
        holds.check_cell(CELL)


def test_nothing_is_known(holds: Holds, records: Records) -> None:
    """Where nothing was ever read nobody is kept waiting for long, and it is tried again for the next."""
    records.is_down = True
    holds.check_instance("a")
    records.is_down = False
    records.held = HELD
    with pytest.raises(InstanceHeld):
        holds.check_instance("a")


@pytest.mark.parametrize(("deadline", "until"), [(None, 1001.0), (1060.0, 1001.0), (1000.5, 1000.5)])
def test_first_look_is_short(holds: Holds, records: Records, deadline: Deadline | None, until: Deadline) -> None:
    """A request gives the first look a second at most, and no longer than it has."""
    holds.check_instance("a", deadline)
    assert records.readings == [until]


def test_older_reading_is_dropped(holds: Holds, records: Records) -> None:
    """A thread that comes back late with what was so before changes nothing."""

    class Late(Records):
        def list_held(self, deadline: Deadline | None = None) -> Held:
            if not self.readings:
                self.readings.append(deadline)
                holds.read()  # another one begins later, and is done before
                return NOTHING
            return HELD

    holds = Holds(Late())  # type: ignore[arg-type]
    holds.read()
    assert holds.instances == {"a"}


def test_nobody_is_held_back() -> None:
    """An operator's command, and a cell-level service, know of no such thing."""
    holds = Holds(None)
    holds.read()
    holds.keep_up()
    holds.check_instance("a")
    holds.check_cell(CELL)


def test_child_process(holds: Holds, records: Records) -> None:
    """A child goes on with what its parent knew."""
    records.held = HELD
    holds.read()
    records.is_down = True
    holds.begin_anew()
    with pytest.raises(InstanceHeld):
        holds.check_instance("a")


def test_child_process_that_was_idle(holds: Holds, records: Records) -> None:
    """But it reads anew before it relies on that: nobody has told it what came after."""
    holds.read()
    records.held = DRAINED
    holds.begin_anew()
    with pytest.raises(CellDrained):
        holds.check_cell(CELL)
    assert len(records.readings) == 2


def test_wanted(holds: Holds, records: Records) -> None:
    """It is told that somebody relies on it, before it is read for the first time."""
    readings: list[int] = []
    holds.wanted = lambda: readings.append(len(records.readings))
    holds.check_instance("a")
    holds.check_instance("b")
    assert readings == [0]
