# SPDX-License-Identifier: Apache-2.0
"""The cell records, on SQLite; tests/services runs the same on servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from cellmw import engines
from cellmw.cell import CELL0_UUID, Cell
from cellmw.exceptions import CellChanged, CellExists, CellInUse, CellNotFound
from cellmw.store import Store, cells, migrations
from cellmw.store.models import cell_mappings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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


def test_update_of_what_is_as_it_was_read(store: Store) -> None:
    """An update that says what was read is made where that is still so, whatever else has changed of the cell."""
    cell = create(store, 1)
    store.update_cell(cell.uuid, disabled=True)
    assert store.update_cell(cell.uuid, name="new", read=cell).name == "new"


def test_update_of_what_has_changed(store: Store) -> None:
    """Where a URL is another than the one that was read, be it by the case of one letter, nothing is changed."""
    cell = create(store, 1)
    changed = store.update_cell(cell.uuid, transport_url="rabbit://user:PASSWORD@host1:5672/")
    with pytest.raises(CellChanged) as caught:
        store.update_cell(cell.uuid, transport_url="rabbit://x/", read=cell)
    assert (store.get_cell(cell.uuid).fingerprint, caught.value.cell) == (changed.fingerprint, cell.uuid)


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


def brought(number: int, uuid: str | None = None, **fields: object) -> Cell:
    """A cell that comes from elsewhere, with its id."""
    record = {
        "id": number,
        "uuid": uuid or f"{number:08}{INSTANCE[8:]}",
        "name": f"cell{number}",
        "disabled": False,
        "transport_url": f"rabbit://user:password@host{number}:5672/",
        "database_connection": f"sqlite:///{number}.db",
    }
    return Cell(**record | fields)


def outcomes(done: list[cells.Imported]) -> list[tuple[int, str, tuple[str, ...]]]:
    """What became of the cells, by their ids."""
    return [(imported.cell.id, imported.outcome, imported.changed) for imported in done]


def recorded(store: Store) -> list[tuple[object, ...]]:
    """Everything that is recorded of the cells."""
    return [(cell.id, cell.uuid, cell.name, cell.disabled, cell.fingerprint) for cell in store.list_cells()]


def test_imported_cells_have_their_ids(store: Store) -> None:
    """What is imported is recorded as it came, and the next cell gets an id that is free."""
    cell0 = brought(9, CELL0_UUID, name=None, transport_url="none:///", disabled=True)
    done = store.import_cells([cell0, brought(4)])
    assert outcomes(done) == [(4, "created", ()), (9, "created", ())]
    assert [(cell.id, cell.fingerprint) for cell in store.list_cells()] == [
        (4, brought(4).fingerprint),
        (9, cell0.fingerprint),
    ]
    assert (store.list_cells()[1].name, store.list_cells()[1].disabled) == (None, True)
    assert create(store, 1).id == 10


def test_import_changes_what_is_different(store: Store) -> None:
    """An import touches what it has to, and nothing when it is run again."""
    store.import_cells([brought(1), brought(2), brought(3), brought(4)])
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE cell_mappings SET disabled = NULL WHERE id = 1")
    wanted = [brought(1), brought(2, disabled=True, name=None), brought(3, database_connection="sqlite:///new.db")]
    done = store.import_cells(wanted)
    assert outcomes(done) == [
        (1, "unchanged", ()),
        (2, "updated", ("name", "disabled")),
        (3, "updated", ("database_connection",)),
        (4, "left alone", ()),
    ]
    assert [cell.fingerprint for cell in store.list_cells()] == [cell.fingerprint for cell in (*wanted, brought(4))]
    assert {outcome for _, outcome, _ in outcomes(store.import_cells(wanted))} == {"unchanged", "left alone"}
    with store.engine.connect() as connection:
        rows = connection.execute(sa.select(cell_mappings).order_by(cell_mappings.c.id)).all()
    assert [row.updated_at is None for row in rows] == [True, False, False, True]


def test_import_can_swap_urls(store: Store) -> None:
    """What counts is what the cells have when all is done: two of them may get each other's database."""
    store.import_cells([brought(1), brought(2)])
    swapped = [brought(1, database_connection="sqlite:///2.db"), brought(2, database_connection="sqlite:///1.db")]
    store.import_cells(swapped)
    assert [cell.fingerprint for cell in store.list_cells()] == [cell.fingerprint for cell in swapped]


def test_refused_import_writes_nothing(store: Store) -> None:
    """An import that would take from a cell what is its own is refused as a whole, without a URL in the reason."""
    store.import_cells([brought(1), brought(2)])
    before = recorded(store)
    for intruder, reason in (
        (brought(1, CELL0_UUID), "the id of cell 00000001"),
        (brought(9, brought(1).uuid), "has the id 1 already"),
        (brought(9, database_connection="sqlite:///1.db"), "the database connection of cell 00000001"),
        (brought(9, transport_url=brought(1).reveal_transport_url()), "the transport URL of cell 00000001"),
        (brought(9, database_connection="sqlite:///8.db"), "the database connection of cell 00000008"),
        (brought(9, brought(8).uuid), "the uuid of cell 00000008"),
    ):
        with pytest.raises(CellExists, match=reason) as caught:
            store.import_cells([brought(2, name="new"), brought(8), intruder])
        assert recorded(store) == before
        assert "://" not in str(caught.value)


def test_import_while_another_cell_is_recorded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id that somebody takes between the checks and the writing is refused, and nothing is written."""
    store.import_cells([brought(1), brought(2)])
    before = recorded(store)
    monkeypatch.setattr(cells, "_check_import", lambda *_: None)
    with pytest.raises(CellExists, match="meanwhile"):
        store.import_cells([brought(2, name="new"), brought(1, CELL0_UUID)])
    assert recorded(store) == before


@pytest.mark.parametrize(
    "given",
    [
        {"name": "new"},
        {"disabled": True},
        {"transport_url": "rabbit://x/"},
        {"database_connection": "sqlite:///x.db"},
    ],
    ids=str,
)
def test_update_beside_cells_without_urls(store: Store, given: dict[str, Any]) -> None:
    """Cells that have no URL in their records have none in common: another one, or one of them, can be changed."""
    store.import_cells([brought(1), brought(2), brought(3)], with_urls=False)
    cell = create(store, 4)
    for each in (cell.uuid, brought(2).uuid):
        changed = store.update_cell(each, **given)
        assert {name: getattr(changed, name) for name in given if hasattr(changed, name)}.items() <= given.items()
        if "transport_url" in given or "database_connection" in given:
            store.delete_cell(each)


def test_import_without_urls(store: Store) -> None:
    """Without URLs the rows are there for mappings to refer to, and what was recorded of URLs is gone."""
    store.import_cells([brought(1), brought(2)])
    assert outcomes(store.import_cells([brought(2), brought(7), brought(8)], with_urls=False)) == [
        (1, "left alone", ()),
        (2, "updated", ("transport_url", "database_connection")),
        (7, "created", ()),
        (8, "created", ()),
    ]
    with store.engine.connect() as connection:
        urls = connection.execute(sa.select(cell_mappings.c.transport_url, cell_mappings.c.database_connection)).all()
    assert urls.count((None, None)) == 3
    store.create_instance(INSTANCE, project_id="project1", cell_id=7)
    store.create_host("compute1", cell_id=8)


def test_dry_run_of_an_import(store: Store) -> None:
    """A dry run finds out the same, and writes nothing."""
    store.import_cells([brought(1)])
    before = recorded(store)
    wanted = [brought(1, name="new"), brought(2)]
    done = outcomes(store.import_cells(wanted, dry_run=True))
    assert recorded(store) == before
    assert done == outcomes(store.import_cells(wanted))


def test_delete_a_cell_by_a_dry_run(store: Store, used_cell: Cell) -> None:
    """A dry run refuses what a real one would, and deletes nothing, forced or not."""
    with pytest.raises(CellInUse):
        store.delete_cell(used_cell.uuid, dry_run=True)
    spare = create(store, 9)
    store.delete_cell(spare.uuid, dry_run=True)
    store.delete_cell(spare.uuid, force=True, dry_run=True)
    assert spare in store.list_cells()


def test_deleted_cell_leaves_nothing_behind(store: Store) -> None:
    """A cell that gets the uuid of a deleted one is not drained, and no task goes on in it; other cells' tasks do."""
    gone, other = create(store, 1), create(store, 2)
    store.drain_cell(gone.uuid)
    for cell in (gone, other):
        store.map_instances([], task=f"map_instances/{cell.uuid}", position="7")
    store.delete_cell(gone.uuid)
    assert store.list_held().cells == ()
    assert [store.find_progress(f"map_instances/{cell.uuid}") for cell in (gone, other)] == [None, "7"]
