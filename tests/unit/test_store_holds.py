# SPDX-License-Identifier: Apache-2.0
"""The records of what is held back, on SQLite; tests/services runs the same on servers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from cellmw import engines
from cellmw.store import Held, Store, migrations
from tests import nova_schema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
LATER = NOW + timedelta(minutes=2)


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
    store.hold_instances(["a", "b", "c"], LATER)
    store.let_go_instances(["a", "b"], LATER)
    assert _instances(store) == {"c": LATER}


def test_held_by_somebody_else(store: Store) -> None:
    """What somebody else has held since is not let go."""
    store.hold_instances(["a"], NOW)
    store.hold_instances(["a"], LATER)
    store.let_go_instances(["a"], NOW)
    assert _instances(store) == {"a": LATER}


def test_what_was_left_over_is_removed(store: Store) -> None:
    """A hold whose time was up yesterday goes with the next one; a newer one can still be seen."""
    store.hold_instances(["old"], NOW - timedelta(days=1, minutes=1))
    store.hold_instances(["newer"], NOW - timedelta(hours=23))
    store.hold_instances(["a"], LATER)
    assert sorted(_instances(store)) == ["a", "newer"]
