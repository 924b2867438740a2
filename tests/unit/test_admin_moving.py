# SPDX-License-Identifier: Apache-2.0
"""Moving instances: when they are held back, what is changed, and what becomes of a move that ends early."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from oslo_config import cfg
from oslo_utils import timeutils

from cellmw.admin import moving
from cellmw.admin.access import open_cells
from cellmw.admin.moving import HoldLost, HoldTaken, Move, Moved, Pace
from cellmw.exceptions import InstanceNotMapped
from cellmw.store import migrations

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cellmw.cell import Cell
    from cellmw.cells import Cells

PACE = Pace(told=5.0, ended=10.0, over=20.0)


@pytest.fixture
def cells(conf: cfg.ConfigOpts, tmp_path: Path) -> Iterator[Cells]:
    """Two cells, and the instances a and b in the first."""
    conf.set_override("connection", f"sqlite:///{tmp_path}/api.db", group="api_database")
    with closing(open_cells(conf)) as cells:
        migrations.sync(cells.store.engine)
        for name in ("cell1", "cell2"):
            cells.store.create_cell(
                name=name, transport_url=f"memory://{name}/", database_connection=f"sqlite:///{tmp_path}/{name}.db"
            )
        for uuid in ("a", "b"):
            cells.store.create_instance(uuid, project_id="p", cell_id=cells.get("cell1").id)
        yield cells


@pytest.fixture
def cell2(cells: Cells) -> Cell:
    """Where they are to go."""
    return cells.get("cell2")


def _cell_of(cells: Cells, uuid: str) -> str:
    return str(cells.get(cells.store.get_instance(uuid).cell_id or 0))


def _held(cells: Cells) -> list[str]:
    return [held.instance_uuid for held in cells.store.list_held().instances]


def test_pace(conf: cfg.ConfigOpts) -> None:
    """It is that of the configuration: requests may take longer than mappings are kept, and the other way round."""
    for ttl, deadline, over in ((60.0, 30.0, 60.0), (10.0, 30.0, 30.0)):
        values = {"refresh_interval": 10.0, "mapping_ttl": ttl, "request_deadline": deadline}
        moving.deploy.settings(conf)
        for name, value in values.items():
            conf.set_override(name, value, group="cellmw")
        assert Pace.of(conf) == Pace(12.0, deadline, over)


def test_whole_move(cells: Cells, cell2: Cell) -> None:
    """The instances are held back until the end, mapped to the cell meanwhile, and let go."""
    with Move(cells, ["a", "b"], cell2, PACE) as move:
        move.hold()
        assert (_held(cells), _cell_of(cells, "a")) == (["a", "b"], "cell1")
        before = cells.get("cell1").id
        assert move.change() == [Moved("a", before, "moved"), Moved("b", before, "moved")]
        assert (_held(cells), _cell_of(cells, "a"), _cell_of(cells, "b")) == (["a", "b"], "cell2", "cell2")
        move.let_go()
    assert _held(cells) == []


def test_hold_outlasts_the_move(cells: Cells, cell2: Cell) -> None:
    """The hold ends by itself, later than the move takes with clocks that differ by a minute."""
    move = Move(cells, ["a"], cell2, PACE)
    began = timeutils.utcnow()
    move.hold()
    (held,) = cells.store.list_held().instances
    assert held.until == move.until
    assert timedelta(seconds=85) <= held.until - began <= timedelta(seconds=90)


def test_interrupted_before_the_change(cells: Cells, cell2: Cell) -> None:
    """A move that ends before anything was changed lets the instances go at once."""
    with Move(cells, ["a"], cell2, PACE) as move:
        move.hold()
    assert (_held(cells), _cell_of(cells, "a")) == ([], "cell1")


def test_interrupted_after_the_change(cells: Cells, cell2: Cell) -> None:
    """One that ends after that does not: a worker may still go by the old mapping."""
    with Move(cells, ["a"], cell2, PACE) as move:
        move.hold()
        move.change()
    assert (_held(cells), _cell_of(cells, "a")) == (["a"], "cell2")


def test_changed_by_somebody_else(cells: Cells, cell2: Cell) -> None:
    """A mapping that is not as it was read is left as it is."""
    cell3 = cells.store.create_cell(name="cell3", transport_url="memory://3/", database_connection="sqlite:///3.db")
    with Move(cells, ["a", "b"], cell2, PACE) as move:
        move.hold()
        cells.store.update_instance("a", cell_id=cell3.id)
        assert [done.outcome for done in move.change()] == ["changed meanwhile", "moved"]
        move.let_go()
    assert (_cell_of(cells, "a"), _cell_of(cells, "b")) == ("cell3", "cell2")


@pytest.fixture
def cell3(cells: Cells) -> Cell:
    """Where somebody else wants them."""
    return cells.store.create_cell(name="cell3", transport_url="memory://3/", database_connection="sqlite:///3.db")


def test_begun_by_somebody_else(cells: Cells, cell2: Cell, cell3: Cell) -> None:
    """Of two moves the later one goes on; the other one, whose hold that was, changes nothing."""
    with Move(cells, ["a", "b"], cell2, PACE) as move:
        move.hold()
        with Move(cells, ["a"], cell3, PACE) as later:
            later.hold()
            with pytest.raises(HoldTaken, match="somebody else has begun to move instance a"):
                move.change()
            assert [done.outcome for done in later.change()] == ["moved"]
            later.let_go()
    assert (_cell_of(cells, "a"), _cell_of(cells, "b"), _held(cells)) == ("cell3", "cell1", [])


def test_begun_and_given_up_by_somebody_else(cells: Cells, cell2: Cell, cell3: Cell) -> None:
    """A later move that is given up leaves the instances held back, and the move that was begun before goes on."""
    with Move(cells, ["a"], cell2, PACE) as move:
        move.hold()
        with Move(cells, ["a"], cell3, PACE) as later:
            later.hold()
        assert _held(cells) == ["a"]
        assert [done.outcome for done in move.change()] == ["moved"]
        with Move(cells, ["a"], cell3, PACE) as later:
            later.hold()
        assert _held(cells) == ["a"]
        move.let_go()
    assert (_cell_of(cells, "a"), _held(cells)) == ("cell2", [])


def test_shorter_than_that_of_somebody_else(cells: Cells, cell2: Cell, cell3: Cell) -> None:
    """A move that goes by shorter times lets nobody through whom another one still keeps away."""
    with Move(cells, ["a"], cell2, PACE) as move:
        move.hold()
        move.change()
        shorter = Move(cells, ["a"], cell3, Pace(0.0, 0.0, 0.0))
        shorter.hold()
        assert shorter.held_by_others == move.until < shorter.until
        shorter.change()
        shorter.let_go()
        assert _held(cells) == ["a"]
        move.let_go()
    assert (_cell_of(cells, "a"), _held(cells)) == ("cell3", [])


def test_let_go_by_somebody_else(cells: Cells, cell2: Cell) -> None:
    """Nothing is changed for an instance that is not held back any more, whoever has seen to that."""
    with Move(cells, ["a"], cell2, PACE) as move:
        move.hold()
        cells.store.let_go_instances(["a"], move._hold)
        with pytest.raises(HoldTaken, match="or has let it go"):
            move.change()
    assert _cell_of(cells, "a") == "cell1"


def test_there_already(cells: Cells, cell2: Cell) -> None:
    """An instance that is mapped to the cell already needs no move."""
    cells.store.update_instance("a", cell_id=cell2.id)
    assert [Move(cells, uuids, cell2, PACE).is_needed for uuids in (["a"], ["a", "b"])] == [False, True]
    with Move(cells, ["a", "b"], cell2, PACE) as move:
        move.hold()
        assert [done.outcome for done in move.change()] == ["unchanged", "moved"]


def test_named_twice(cells: Cells, cell2: Cell) -> None:
    """An instance that is named twice is moved once."""
    with Move(cells, ["a", "a"], cell2, PACE) as move:
        move.hold()
        assert [done.outcome for done in move.change()] == ["moved"]


def test_not_mapped(cells: Cells, cell2: Cell) -> None:
    """Where one of them has no mapping nothing is begun."""
    with pytest.raises(InstanceNotMapped, match="nope"):
        Move(cells, ["a", "nope"], cell2, PACE)
    assert _held(cells) == []


def test_too_late(cells: Cells, cell2: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that was suspended for longer than the hold lasts changes nothing."""
    with Move(cells, ["a"], cell2, PACE) as move:
        move.hold()
        late = move.until - timedelta(seconds=PACE.over - 1)
        monkeypatch.setattr(timeutils, "utcnow", lambda: late)
        with pytest.raises(HoldLost, match="start anew"):
            move.change()
    assert (_held(cells), _cell_of(cells, "a")) == ([], "cell1")
