# SPDX-License-Identifier: Apache-2.0
"""The cell records, on SQLite; tests/services runs the same on servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from cellmw import engines
from cellmw.cell import CELL0_UUID
from cellmw.exceptions import CellExists, CellInUse, CellNotFound
from cellmw.store import Store, migrations
from cellmw.store.models import cell_mappings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cellmw.cell import Cell

INSTANCE = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    engine = engines.make_engine(f"sqlite:///{tmp_path}/api.db", {}, pre_ping=False)
    migrations.sync(engine)
    with Store(engine) as store:
        yield store


def create(store: Store, number: int) -> Cell:
    """Record a cell."""
    return store.create_cell(
        name=f"cell{number}",
        transport_url=f"rabbit://user:password@host{number}:5672/",
        database_connection=f"sqlite:///{number}.db",
    )


def test_created_cell_can_be_read(store: Store) -> None:
    """What create_cell returns is what is read back, URLs included."""
    cell = create(store, 1)
    found = store.get_cell(cell.uuid)
    assert (found, found.fingerprint) == (cell, cell.fingerprint)


def test_cell_by_id(store: Store) -> None:
    """A number is an id."""
    cell = create(store, 1)
    assert store.get_cell(cell.id) == cell


@pytest.mark.parametrize("ref", [7, CELL0_UUID])
def test_unknown_cell(store: Store, ref: int | str) -> None:
    """A cell that is not recorded is not found, and the error says which."""
    with pytest.raises(CellNotFound) as caught:
        store.get_cell(ref)
    assert caught.value.cell == ref


def test_cells_are_listed_by_id(store: Store) -> None:
    """Cells come in the order in which they were recorded."""
    assert [create(store, number) for number in (3, 1, 2)] == store.list_cells()


def test_uuid_can_be_given(store: Store) -> None:
    """A cell takes the uuid that it is given, as cell0 has to."""
    cell = store.create_cell(
        name="cell0", transport_url="none:///", database_connection="sqlite:///0.db", uuid=CELL0_UUID
    )
    assert cell.uuid == CELL0_UUID


def test_created_at_is_filled_in(store: Store) -> None:
    """A new record has its time of creation, and none of an update."""
    create(store, 1)
    with store.engine.connect() as connection:
        row = connection.execute(sa.select(cell_mappings)).one()
    assert (row.created_at is None, row.updated_at is None) == (False, True)


def test_same_uuid_is_refused(store: Store) -> None:
    """A uuid belongs to one cell."""
    cell = create(store, 1)
    with pytest.raises(CellExists, match=cell.uuid):
        store.create_cell(name="x", transport_url="rabbit://x/", database_connection="sqlite:///x.db", uuid=cell.uuid)


def test_same_transport_is_refused(store: Store) -> None:
    """Two cells with one queue would get each other's messages."""
    create(store, 1)
    with pytest.raises(CellExists, match="transport URL"):
        store.create_cell(
            name="x", transport_url="rabbit://user:password@host1:5672/", database_connection="sqlite:///x.db"
        )


def test_same_database_is_refused(store: Store) -> None:
    """Two cells with one database would have each other's instances."""
    create(store, 1)
    with pytest.raises(CellExists, match="database"):
        store.create_cell(name="x", transport_url="rabbit://x/", database_connection="sqlite:///1.db")


def test_having_no_transport_is_not_sharing_one(store: Store) -> None:
    """Any number of cells may have no message queue."""
    for number in range(2):
        store.create_cell(name=None, transport_url="none:///", database_connection=f"sqlite:///{number}.db")
    assert len(store.list_cells()) == 2


def test_refusal_shows_no_url(store: Store) -> None:
    """The error that names the other cell leaves its URLs out."""
    create(store, 1)
    with pytest.raises(CellExists) as caught:
        create(store, 1)
    assert "://" not in str(caught.value)


def test_update_changes_what_is_given(store: Store) -> None:
    """What an update does not name stays as it was."""
    cell = create(store, 1)
    changed = store.update_cell(cell.uuid, name="new", disabled=True)
    assert (changed.name, changed.disabled, changed.fingerprint) == ("new", True, cell.fingerprint)


def test_update_can_take_a_name_away(store: Store) -> None:
    """None is a name that can be given."""
    cell = create(store, 1)
    assert store.update_cell(cell.uuid, name=None).name is None


def test_update_of_nothing_changes_nothing(store: Store) -> None:
    """An update that names nothing leaves the record alone."""
    cell = create(store, 1)
    assert store.update_cell(cell.uuid) == cell


def test_update_of_an_unknown_cell(store: Store) -> None:
    """There is nothing to update in a cell that is not recorded."""
    with pytest.raises(CellNotFound):
        store.update_cell(CELL0_UUID, name="x")


def test_update_to_its_own_url(store: Store) -> None:
    """A cell may be given what it has already."""
    cell = create(store, 1)
    assert store.update_cell(cell.uuid, database_connection="sqlite:///1.db").fingerprint == cell.fingerprint


def test_update_to_another_cells_url_is_refused(store: Store) -> None:
    """An update may not make two cells share a database."""
    create(store, 1)
    cell = create(store, 2)
    with pytest.raises(CellExists):
        store.update_cell(cell.uuid, database_connection="sqlite:///1.db")


def test_refused_update_changes_nothing(store: Store) -> None:
    """A refused update is refused as a whole."""
    create(store, 1)
    cell = create(store, 2)
    with pytest.raises(CellExists):
        store.update_cell(cell.uuid, name="new", database_connection="sqlite:///1.db")
    assert store.get_cell(cell.uuid).name == "cell2"


def test_delete_an_empty_cell(store: Store) -> None:
    """A cell that nothing is mapped to can be deleted."""
    store.delete_cell(create(store, 1).uuid)
    assert store.list_cells() == []


def test_delete_an_unknown_cell(store: Store) -> None:
    """There is nothing to delete of a cell that is not recorded."""
    with pytest.raises(CellNotFound):
        store.delete_cell(CELL0_UUID)


@pytest.fixture
def used_cell(store: Store) -> Cell:
    """A cell with one host and one instance that is queued for deletion."""
    cell = create(store, 1)
    store.create_host("compute1", cell_id=cell.id)
    store.create_instance(INSTANCE, project_id="project1", cell_id=cell.id)
    store.update_instance(INSTANCE, queued_for_delete=True)
    return cell


def test_delete_refuses_a_cell_in_use(store: Store, used_cell: Cell) -> None:
    """The refusal names everything that is still mapped."""
    with pytest.raises(CellInUse) as caught:
        store.delete_cell(used_cell.uuid)
    assert caught.value.mapped == ("hosts", "deleted instances")


def test_force_deletes_what_nobody_lives_in(store: Store, used_cell: Cell) -> None:
    """Hosts and instances that are queued for deletion go with their cell when forced."""
    store.delete_cell(used_cell.uuid, force=True)
    assert (store.list_cells(), store.list_hosts(), store.list_instances()) == ([], [], [])


def test_force_never_deletes_a_living_instance(store: Store, used_cell: Cell) -> None:
    """One instance that nobody wants deleted keeps the cell, and all its mappings, even when forced."""
    store.update_instance(INSTANCE, queued_for_delete=False)
    with pytest.raises(CellInUse) as caught:
        store.delete_cell(used_cell.uuid, force=True)
    assert caught.value.mapped == ("instances",)
    assert store.get_host("compute1").cell_id == used_cell.id


def test_force_leaves_other_cells_alone(store: Store, used_cell: Cell) -> None:
    """Only the mappings of the deleted cell go."""
    other = create(store, 2)
    store.create_host("compute2", cell_id=other.id)
    store.delete_cell(used_cell.uuid, force=True)
    assert [mapping.host for mapping in store.list_hosts()] == ["compute2"]
