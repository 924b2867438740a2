# SPDX-License-Identifier: Apache-2.0
"""What is found, and where: what only a database without foreign keys can have, and what takes a second look."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cellmw.admin import access
from cellmw.admin.cell_tables import CellTables
from cellmw.admin.verification import CHANGED, DANGLING, LEFT, REPAIRED, UNMAPPED, Verification
from tests.nova_cell import NovaCell
from tests.unit.test_cmd_verify import World, uuids

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from oslo_config import cfg

    from cellmw.cells import Cells
    from cellmw.store import Store
    from cellmw.store.instances import DatedMapping


@pytest.fixture
def world(store: Store, tmp_path: Path) -> World:
    """Two cells."""
    files = iter(("one", "two"))
    return World(store, lambda: f"sqlite:///{tmp_path}/{next(files)}.sqlite")


@pytest.fixture
def cells(conf: cfg.ConfigOpts, world: World) -> Iterator[Cells]:
    """The cells as a command has them."""
    with access.open_cells(conf) as cells:
        yield cells


@pytest.fixture
def look(conf: cfg.ConfigOpts, cells: Cells) -> Callable[..., Verification]:
    """Look at everything."""

    def look(**options: bool) -> Verification:
        looking = Verification(cells, CellTables(conf), **options)  # type: ignore[arg-type]
        looking.begin()
        looked_at = sum(looking.pages())
        assert looked_at == looking.total
        return looking

    return look


def test_mapping_to_a_cell_without_a_record(world: World, look: Callable[..., Verification]) -> None:
    """A mapping to a cell that has no record stays where the instance is in no other, as it may be in that."""
    (dangling,) = uuids(1)
    world.map(dangling, 77)
    looking = look(repair=True)
    assert [(finding.kind, finding.mapped_to, outcome) for finding, outcome in looking.shown] == [(DANGLING, 77, LEFT)]
    assert (looking.remaining, world.mapped()) == (1, {dangling: 77})


def test_instance_whose_cell_has_no_record(world: World, look: Callable[..., Verification]) -> None:
    """An instance that is in a cell, and mapped to one without a record, is mapped to the one that it is in."""
    (dangling,) = uuids(1)
    world.two.add_instances([dangling])
    world.map(dangling, 77)
    looking = look(repair=True)
    assert [(finding.kind, outcome) for finding, outcome in looking.shown] == [(DANGLING, REPAIRED)]
    assert (looking.remaining, world.mapped()) == (0, {dangling: world.cell2.id})


def test_several_deleted_rows(world: World, look: Callable[..., Verification]) -> None:
    """Where several cells have an instance as a deleted one it is not said to which of them it is to be mapped."""
    (deleted,) = uuids(1)
    world.one.add_instances([deleted], deleted=1)
    world.two.add_instances([deleted], deleted=1)
    world.map(deleted, 77)
    looking = look(repair=True)
    assert [outcome for _, outcome in looking.shown] == [LEFT]
    assert world.mapped() == {deleted: 77}


@pytest.fixture
def meanwhile(
    conf: cfg.ConfigOpts, cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Counter[tuple[str, str]]]:
    """Repair while something happens, once, before the second look, or after its look at the mappings."""

    def repair(
        before: Callable[[], object] = lambda: None, after: Callable[[], object] = lambda: None
    ) -> Counter[tuple[str, str]]:
        date_instances = cells.store.date_instances

        def second_look(uuids: Sequence[str]) -> list[DatedMapping]:
            monkeypatch.undo()
            before()
            found = date_instances(uuids)
            after()
            return found

        monkeypatch.setattr(cells.store, "date_instances", second_look)
        looking = Verification(cells, CellTables(conf), repair=True)
        looking.begin()
        list(looking.pages())
        assert looking.silent == {}
        return looking.counts

    return repair


def test_deleted_between_two_looks(world: World, meanwhile: Callable[..., object]) -> None:
    """An instance that is deleted before the second look was none to be mapped."""
    (late,) = uuids(1)
    world.one.add_instances([late])
    assert meanwhile(before=lambda: world.one.run("UPDATE instances SET deleted = id")) == {}
    assert world.mapped() == {}


@pytest.mark.parametrize("deleted", [0, 1])
def test_there_between_two_looks(world: World, meanwhile: Callable[..., object], deleted: int) -> None:
    """A mapping whose instance is there at the second look is right."""
    (late,) = uuids(1)
    world.map(late, world.cell1.id)
    assert meanwhile(before=lambda: world.one.add_instances([late], deleted=deleted)) == {}
    assert world.mapped() == {late: world.cell1.id}


def test_mapped_after_two_looks(world: World, meanwhile: Callable[..., object]) -> None:
    """An instance that somebody maps before the repair does stays as it was mapped."""
    (late,) = uuids(1)
    world.one.add_instances([late])
    assert meanwhile(after=lambda: world.map(late, world.cell2.id)) == {(UNMAPPED, CHANGED): 1}
    assert world.mapped() == {late: world.cell2.id}


def test_replica(world: World, conf: cfg.ConfigOpts, cells: Cells, tmp_path: Path) -> None:
    """What a repair goes by is not asked of a replica, which may be behind."""
    (mapped,) = uuids(1)
    world.one.add_instances([mapped])
    world.map(mapped, world.cell1.id)
    NovaCell(replica := f"sqlite:///{tmp_path}/replica.sqlite")
    conf.set_override("slave_connections", {"cell1": replica}, group="cellmw_database")
    conf.set_override("synchronous_reader", False, group="cellmw_database")
    remaining = []
    for repair in (False, True):
        looking = Verification(cells, CellTables(conf), repair=repair)
        looking.begin()
        list(looking.pages())
        remaining.append(looking.remaining)
    assert remaining == [1, 0]
    assert world.mapped() == {mapped: world.cell1.id}


def test_capitals(world: World, look: Callable[..., Verification]) -> None:
    """A mapping that is written in capitals is one of the same instance."""
    (mapped,) = uuids(1)
    world.one.add_instances([mapped])
    world.map(mapped.upper(), world.cell1.id)
    assert "orphaned" not in {kind for kind, _ in look().counts}


def test_repaired_mapping_is_not_remembered(world: World, cells: Cells, look: Callable[..., Verification]) -> None:
    """What the process knew of an instance is forgotten with the repair of its mapping."""
    (wrong,) = uuids(1)
    world.two.add_instances([wrong])
    world.map(wrong, world.cell1.id)
    assert cells.locate(wrong).cell_id == world.cell1.id
    look(repair=True)
    assert cells.locate(wrong).cell_id == world.cell2.id
