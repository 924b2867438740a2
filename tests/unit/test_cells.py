# SPDX-License-Identifier: Apache-2.0
"""The one door to all cells."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from cellmw import conf as options
from cellmw import deploy
from cellmw.cells import Cells
from cellmw.context import RequestContext
from cellmw.exceptions import (
    CellBusy,
    CellMisconfigured,
    CellNotFound,
    CellsClosed,
    InstanceNotMapped,
    LeaseClosed,
    StoreUnavailable,
)
from cellmw.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from oslo_config import cfg

    from cellmw.cell import Cell

    Where = Callable[[Any], str]

UUID = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9"
PATIENCE = 20


def test_get(cells: Cells, cell1: Cell, cell2: Cell) -> None:
    """A cell is got by its id, its uuid or its name."""
    for ref in (cell2.id, cell2.uuid, cell2.name):
        assert cells.get(ref) == cell2
        assert cells.get(ref).fingerprint == cell2.fingerprint


@pytest.mark.parametrize("ref", [99, "nosuch", "00000000-0000-0000-0000-000000000000", ""])
def test_get_unknown(cells: Cells, cell1: Cell, ref: int | str) -> None:
    """A cell that has no record is an error that says what was asked for."""
    with pytest.raises(CellNotFound) as caught:
        cells.get(ref)
    assert caught.value.cell == ref


def test_name_is_no_id(cells: Cells, new_cell: Callable[..., Cell]) -> None:
    """A cell whose name is a number is not the cell with that id."""
    new_cell("first")
    called_one = new_cell("1")
    assert cells.get("1") == called_one
    assert cells.get(1).name == "first"


def test_uuid_goes_before_the_name(cells: Cells, new_cell: Callable[..., Cell], cell1: Cell) -> None:
    """A cell that is called by another cell's uuid does not hide that cell."""
    new_cell(cell1.uuid)
    assert cells.get(cell1.uuid) == cell1


def test_ambiguous_name(cells: Cells, store: Store, cell1: Cell, cell2: Cell) -> None:
    """Of two cells with one name neither is got by it: a guess could be the wrong cell."""
    store.update_cell(cell2.uuid, name="cell1")
    with pytest.raises(CellNotFound):
        cells.get("cell1")
    assert cells.get(cell1.uuid).id == cell1.id


def test_new_cell_is_found(cells: Cells, cell1: Cell, new_cell: Callable[..., Cell]) -> None:
    """A cell that was created since is there from its first use on."""
    cells.get(cell1.id)
    new = new_cell("new")
    assert cells.get(new.id) == new


def test_all(cells: Cells, cell1: Cell, cell0: Cell, new_cell: Callable[..., Cell]) -> None:
    """Every cell is listed, by id, disabled ones and cell0 included, as they are now."""
    assert [cell.name for cell in cells.all()] == ["cell1", "cell0"]
    new_cell("new", disabled=True)
    assert [cell.name for cell in cells.all()] == ["cell1", "cell0", "new"]


def test_all_lists_nameless_cells(cells: Cells, new_cell: Callable[..., Cell], store: Store) -> None:
    """Cells without a name are cells, too."""
    for name in ("a", "b"):
        store.update_cell(new_cell(name).uuid, name=None)
    assert [cell.name for cell in cells.all()] == [None, None]


def test_locate(cells: Cells, store: Store, cell1: Cell) -> None:
    """An instance is located by its mapping, which leads to its cell."""
    store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    assert cells.get(cells.locate(UUID).cell_id) == cell1


def test_locate_unmapped(cells: Cells) -> None:
    """An instance that has no mapping is an error that names it, each time."""
    for _ in range(2):
        with pytest.raises(InstanceNotMapped, match=UUID):
            cells.locate(UUID)


def test_locate_building(cells: Cells) -> None:
    """An instance that is still being built has a mapping without a cell."""
    cells.mappings.create(UUID, project_id="project")
    assert cells.locate(UUID).cell_id is None


def test_locate_is_never_behind_a_write(cells: Cells, cell1: Cell) -> None:
    """What was written through the cells is what the next look-up says."""
    cells.mappings.create(UUID, project_id="project")
    cells.locate(UUID)
    cells.mappings.schedule(UUID, cell1)
    assert cells.locate(UUID).cell_id == cell1.id
    cells.mappings.delete(UUID)
    with pytest.raises(InstanceNotMapped):
        cells.locate(UUID)


def test_lease(cells: Cells, cell1: Cell) -> None:
    """A lease is on the shared handles of its cell."""
    with cells.lease(cell1.id) as first, cells.lease(cell1.id) as second:
        assert first.handles is second.handles
        assert cells.leases == 2
    assert cells.leases == 0


def test_lease_of_an_unknown_cell(cells: Cells) -> None:
    """There is no lease on a cell that has no record."""
    with pytest.raises(CellNotFound):
        cells.lease(99)
    assert cells.leases == 0


def test_lease_of_a_misconfigured_cell(cells: Cells, new_cell: Callable[..., Cell], cell1: Cell) -> None:
    """A cell whose URLs can't be used is an error for that cell alone."""
    bad = new_cell("bad", transport_url="nosuch://h/")
    with pytest.raises(CellMisconfigured, match="cell bad"):
        cells.lease(bad.id)
    with cells.lease(cell1.id):
        pass


def test_target(cells: Cells, cell1: Cell, where: Where) -> None:
    """For a block there is a copy of the context that is aimed at a cell; the context itself is as it was."""
    context = RequestContext(project_id="project", overwrite=False)
    with cells.target(context, cell1) as targeted:
        with targeted.db_connection.reader.using(targeted) as session:
            assert where(session) == "cell1"
        assert (targeted.cell_uuid, targeted.project_id) == (cell1.uuid, "project")
        assert context.db_connection is None
        assert cells.leases == 1
    assert cells.leases == 0


def test_target_after_the_block(cells: Cells, cell1: Cell) -> None:
    """After the block the copy raises LeaseClosed."""
    with cells.target(RequestContext(overwrite=False), cell1) as targeted:
        pass
    with pytest.raises(LeaseClosed), targeted.db_connection.reader.using(targeted):
        pass


def test_target_where_the_block_fails(cells: Cells, cell1: Cell) -> None:
    """A block that fails gives its lease back."""
    with pytest.raises(ZeroDivisionError), cells.target(RequestContext(overwrite=False), cell1):
        raise ZeroDivisionError
    assert cells.leases == 0


def test_target_inside_target(cells: Cells, cell1: Cell, cell2: Cell, where: Where) -> None:
    """A targeted context can be aimed at another cell for a block, also in the middle of a transaction."""
    with cells.target(RequestContext(overwrite=False), cell1) as first:
        with first.db_connection.writer.using(first) as outer, cells.target(first, cell2) as second:
            with second.db_connection.writer.using(second) as inner:
                assert (where(outer), where(inner)) == ("cell1", "cell2")
            assert first.session is outer
        with first.db_connection.reader.using(first) as session:
            assert where(session) == "cell1"


def test_target_that_can_not_be_copied(cells: Cells, cell1: Cell) -> None:
    """Where the context can't be targeted nothing stays leased."""

    class Slots:
        __slots__ = ()

    with pytest.raises(TypeError), cells.target(Slots(), cell1):
        pass
    assert cells.leases == 0


def test_close(cells: Cells, cell1: Cell) -> None:
    """Closing the cells closes all handles, and nothing can be leased any more."""
    with cells.lease(cell1.id) as lease:
        handles = lease.handles
    cells.close()
    cells.close()
    assert repr(handles) == "<Handles cell=cell1 leases=0 stuck=0 closed>"
    with pytest.raises(CellsClosed):
        cells.lease(cell1.id)


def test_nothing_is_opened_by_looking(cells: Cells, cell1: Cell) -> None:
    """Reading records opens no cell."""
    cells.all()
    cells.get(cell1.id)
    assert cells._open_handles == {}


def test_store_that_is_down(cells: Cells, store: Store, cell1: Cell) -> None:
    """A cell that is known and open is leased without the API database; what is not known needs it."""
    with cells.lease(cell1.id):
        pass
    with store.engine.begin() as connection:
        connection.execute(text("DROP TABLE cell_mappings"))
    with cells.lease(cell1.id):
        pass
    with pytest.raises(StoreUnavailable):
        cells.get("other")


def test_bulkhead(conf: cfg.ConfigOpts, cell1: Cell, cell2: Cell) -> None:
    """No more than so many requests are in one cell at a time; other cells don't notice."""
    conf.set_override("max_leases_per_cell", 2, options.GROUP)
    with closing(deploy.cells(conf)) as cells:
        with cells.lease(cell1.id), cells.lease(cell1.id):
            with pytest.raises(CellBusy, match="cell cell1: 2 requests use it already"):
                cells.lease(cell1.id)
            assert cells.leases == 2
            with cells.lease(cell2.id):
                pass
        with cells.lease(cell1.id):
            pass
