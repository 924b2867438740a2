# SPDX-License-Identifier: Apache-2.0
"""The records of what is held back, on SQLite; tests/services runs the same on servers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from cellmw import engines
from cellmw.store import Held, Hold, Store, migrations
from cellmw.store.models import held_instances
from tests import nova_schema
from tests.unit.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
LATER = NOW + timedelta(days=365)


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Store]:
    """A store on a database without tables."""
    with Store(engines.make_engine(f"sqlite:///{tmp_path}/api.db", {}, pre_ping=False)) as store:
        yield store


@pytest.fixture
def store(empty: Store) -> Store:
    """A store in which nothing is held back."""
    migrations.sync(empty.engine)
    return empty


def _instances(store: Store) -> dict[str, datetime]:
    return {held.instance_uuid: held.until for held in store.list_held().instances}


def test_nothing_is_held_back(store: Store) -> None:
    """In the beginning there is nothing."""
    assert store.list_held() == Held((), ())


def test_database_that_was_never_synced(empty: Store) -> None:
    """Nova's own database, to which we have added nothing, holds nothing back."""
    nova_schema.create_as_nova_does(empty.engine)
    assert empty.list_held() == Held((), ())


def test_drained(store: Store) -> None:
    """A drained cell is listed with the reason and the time."""
    assert store.drain_cell("cell-1", "a new server")
    (drained,) = store.list_held().cells
    assert (drained.cell_uuid, drained.reason) == ("cell-1", "a new server")
    assert timedelta(0) <= datetime.now(UTC).replace(tzinfo=None) - drained.since < timedelta(minutes=1)


def test_drained_twice(store: Store) -> None:
    """The second one says so, and what the first has recorded stays."""
    store.drain_cell("cell-1", "first")
    assert not store.drain_cell("cell-1", "second")
    assert [drained.reason for drained in store.list_held().cells] == ["first"]


def test_undrained(store: Store) -> None:
    """Undraining takes away that cell alone, and says whether there was something to take away."""
    store.drain_cell("cell-1")
    store.drain_cell("cell-2")
    assert [store.undrain_cell("cell-1"), store.undrain_cell("cell-1")] == [True, False]
    assert [drained.cell_uuid for drained in store.list_held().cells] == ["cell-2"]


def test_held(store: Store) -> None:
    """Instances are listed with the end of the hold."""
    store.hold_instances(["a", "b"], LATER)
    assert _instances(store) == {"a": LATER, "b": LATER}


def test_held_again(store: Store) -> None:
    """Whoever holds an instance last says until when."""
    store.hold_instances(["a", "b"], NOW)
    store.hold_instances(["b"], LATER)
    assert _instances(store) == {"a": NOW, "b": LATER}


def test_let_go(store: Store) -> None:
    """Instances that are let go are not listed any more; others stay."""
    hold = store.hold_instances(["a", "b", "c"], LATER)
    store.let_go_instances(["a", "b"], hold)
    assert _instances(store) == {"c": LATER}


def test_held_by_somebody_else(store: Store) -> None:
    """What somebody else has held since is not let go."""
    hold = store.hold_instances(["a"], NOW)
    store.hold_instances(["a"], LATER)
    store.let_go_instances(["a"], hold)
    assert _instances(store) == {"a": LATER}


@pytest.mark.parametrize("until", [LATER - timedelta(minutes=1), LATER])
def test_held_by_two(store: Store, until: datetime) -> None:
    """A hold that takes the place of another one lasts longer, and gives it back with its end."""
    first = store.hold_instances(["a"], LATER)
    second = store.hold_instances(["a", "b"], until)
    assert (first, second) == (Hold(LATER, {}), Hold(LATER + timedelta(seconds=1), {"a": LATER}))
    assert _instances(store) == {"a": second.until, "b": second.until}
    store.let_go_instances(["a", "b"], second)
    assert _instances(store) == {"a": LATER}
    store.let_go_instances(["a"], first)
    assert _instances(store) == {}


def test_held_by_many_at_the_same_moment(store: Store) -> None:
    """Of many that begin at once each takes the place of the one before it, and none fails or is passed over."""
    count, uuids = 6, ["a", "b", "c"]
    barrier = threading.Barrier(count)

    def hold(number: int) -> Hold:
        barrier.wait(PATIENCE)
        return store.hold_instances(uuids if number % 2 else uuids[::-1], LATER)

    with ThreadPoolExecutor(count) as threads:
        holds = list(threads.map(hold, range(count)))
    ends = [LATER + timedelta(seconds=seconds) for seconds in range(count)]
    assert sorted(hold.until for hold in holds) == ends
    assert [hold.before for hold in sorted(holds)] == [{}, *(dict.fromkeys(uuids, end) for end in ends[:-1])]
    assert set(_instances(store).values()) == {ends[-1]}


def test_since(store: Store) -> None:
    """An old row does not make a hold look older than it is."""
    store.hold_instances(["a"], NOW)
    with store.engine.begin() as connection:
        connection.execute(held_instances.update().values(created_at=NOW - timedelta(hours=3)))
    store.hold_instances(["a"], LATER)
    (held,) = store.list_held().instances
    assert held.since >= NOW


def test_many(store: Store) -> None:
    """There may be more than a statement takes, and some more than once."""
    uuids = [f"instance-{number}" for number in range(3000)]
    hold = store.hold_instances([*uuids, *uuids[:10]], LATER)
    assert len(_instances(store)) == 3000
    second = store.hold_instances(uuids, LATER)
    store.let_go_instances(uuids, second)
    assert set(_instances(store).values()) == {LATER}
    store.let_go_instances(uuids, hold)
    assert _instances(store) == {}


def test_what_was_left_over_is_removed(store: Store) -> None:
    """A hold whose time was up yesterday goes with the next one; a newer one can still be seen."""
    store.hold_instances(["old"], NOW - timedelta(days=1, minutes=1))
    store.hold_instances(["newer"], NOW - timedelta(hours=23))
    store.hold_instances(["a"], LATER)
    assert sorted(_instances(store)) == ["a", "newer"]
