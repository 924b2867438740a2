# SPDX-License-Identifier: Apache-2.0
"""The instance mappings, on SQLite; tests/services runs the same on servers."""

from __future__ import annotations

import uuid
from itertools import chain
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event

from cellmw import engines
from cellmw.exceptions import InstanceMapped, InstanceNotMapped
from cellmw.store import InstanceMapping, Store, migrations
from cellmw.store.models import instance_mappings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sized
    from pathlib import Path

INSTANCE = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01"
OTHER = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a02"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with two cells."""
    engine = engines.make_engine(f"sqlite:///{tmp_path}/api.db", {}, pre_ping=False)
    migrations.sync(engine)
    with Store(engine) as store:
        yield store


@pytest.fixture
def cells(store: Store) -> list[int]:
    """The ids of two cells."""
    return [
        store.create_cell(
            name=None, transport_url=f"rabbit://host{number}/", database_connection=f"sqlite:///{number}.db"
        ).id
        for number in (1, 2)
    ]


def test_created_mapping_is_found(store: Store, cells: list[int]) -> None:
    """What create_instance returns is what is found."""
    created = store.create_instance(INSTANCE, project_id="p", user_id="u", cell_id=cells[0])
    assert store.find_instance(INSTANCE) == created == InstanceMapping(INSTANCE, cells[0], "p", "u", False)


def test_nothing_is_found_of_an_unknown_instance(store: Store) -> None:
    """To look for an instance that is not mapped is no error."""
    assert store.find_instance(INSTANCE) is None


def test_instance_without_a_cell(store: Store) -> None:
    """An instance that is being scheduled is mapped to no cell."""
    store.create_instance(INSTANCE, project_id="p")
    assert store.find_instance(INSTANCE) == InstanceMapping(INSTANCE, None, "p", None, False)


def test_null_in_queued_for_delete_means_no(store: Store) -> None:
    """Rows that Nova wrote before it had that column are not deleted."""
    with store.engine.begin() as connection:
        values = {"instance_uuid": INSTANCE, "project_id": "p", "queued_for_delete": None}
        connection.execute(instance_mappings.insert().values(values))
    mapping = store.find_instance(INSTANCE)
    assert mapping is not None
    assert mapping.queued_for_delete is False


def test_get_returns_what_find_does(store: Store) -> None:
    """A mapping that is there is the same by either method."""
    store.create_instance(INSTANCE, project_id="p")
    assert store.get_instance(INSTANCE) == store.find_instance(INSTANCE)


def test_get_an_unknown_instance(store: Store) -> None:
    """To get what is not mapped is an error that carries the uuid."""
    with pytest.raises(InstanceNotMapped) as caught:
        store.get_instance(INSTANCE)
    assert caught.value.instance_uuid == INSTANCE


def test_mapping_twice_is_refused(store: Store) -> None:
    """An instance has one mapping."""
    store.create_instance(INSTANCE, project_id="p")
    with pytest.raises(InstanceMapped) as caught:
        store.create_instance(INSTANCE, project_id="other")
    assert caught.value.instance_uuid == INSTANCE


def test_update_changes_what_is_given(store: Store, cells: list[int]) -> None:
    """Scheduling sets the cell and leaves the owner alone."""
    store.create_instance(INSTANCE, project_id="p", user_id="u")
    assert store.update_instance(INSTANCE, cell_id=cells[1]) == InstanceMapping(INSTANCE, cells[1], "p", "u", False)


def test_update_can_take_the_cell_away(store: Store, cells: list[int]) -> None:
    """None is a cell that can be given: the instance is being scheduled again."""
    store.create_instance(INSTANCE, project_id="p", cell_id=cells[0])
    assert store.update_instance(INSTANCE, cell_id=None).cell_id is None


def test_update_of_everything(store: Store) -> None:
    """Owner and state can be changed, too."""
    store.create_instance(INSTANCE, project_id="p")
    changed = store.update_instance(INSTANCE, project_id="p2", user_id="u2", queued_for_delete=True)
    assert changed == store.find_instance(INSTANCE) == InstanceMapping(INSTANCE, None, "p2", "u2", True)


def test_update_of_an_unknown_instance(store: Store) -> None:
    """There is nothing to update where nothing is mapped."""
    with pytest.raises(InstanceNotMapped):
        store.update_instance(INSTANCE, queued_for_delete=True)


def test_deleted_mapping_is_gone(store: Store) -> None:
    """A deleted mapping is not found, and another stays."""
    store.create_instance(INSTANCE, project_id="p")
    store.create_instance(OTHER, project_id="p")
    store.delete_instance(INSTANCE)
    assert [mapping.instance_uuid for mapping in store.list_instances()] == [OTHER]


def test_delete_an_unknown_instance(store: Store) -> None:
    """To delete what is not mapped is an error."""
    with pytest.raises(InstanceNotMapped):
        store.delete_instance(INSTANCE)


def test_pages_have_every_mapping_once(store: Store) -> None:
    """Page by page, each from the end of the one before, every mapping comes once."""
    uuids = [str(uuid.uuid4()) for _ in range(10)]
    for instance in uuids:
        store.create_instance(instance, project_id="p")
    pages = []
    marker = None
    while page := store.list_instances(limit=4, marker=marker):
        pages.append([mapping.instance_uuid for mapping in page])
        marker = pages[-1][-1]
    assert [len(page) for page in pages] == [4, 4, 2]
    assert list(chain(*pages)) == sorted(uuids)


def test_marker_may_be_gone(store: Store) -> None:
    """A mapping that is deleted between two pages does not end the listing."""
    store.create_instance(INSTANCE, project_id="p")
    store.create_instance(OTHER, project_id="p")
    store.delete_instance(INSTANCE)
    assert [mapping.instance_uuid for mapping in store.list_instances(marker=INSTANCE)] == [OTHER]


def test_list_of_one_cell(store: Store, cells: list[int]) -> None:
    """A listing can be of one cell only."""
    store.create_instance(INSTANCE, project_id="p", cell_id=cells[0])
    store.create_instance(OTHER, project_id="p", cell_id=cells[1])
    assert [mapping.instance_uuid for mapping in store.list_instances(cell_id=cells[1])] == [OTHER]


def test_list_of_one_project(store: Store) -> None:
    """A listing can be of one project only."""
    store.create_instance(INSTANCE, project_id="p1")
    store.create_instance(OTHER, project_id="p2")
    assert [mapping.instance_uuid for mapping in store.list_instances(project_id="p1")] == [INSTANCE]


def test_many_are_found_at_once(store: Store, cells: list[int]) -> None:
    """Of many instances those that are mapped are found, each once, also where they were named twice."""
    created = {store.create_instance(INSTANCE, project_id="p", cell_id=cells[0])}
    created.add(store.create_instance(OTHER, project_id="p"))
    unknown = [str(uuid.uuid4()) for _ in range(1000)]
    found = store.find_instances([OTHER, *unknown, INSTANCE, OTHER])
    assert (set(found), len(found)) == (created, 2)


@pytest.mark.parametrize(("count", "queries"), [(0, 0), (999, 1), (1000, 2), (2000, 3)])
def test_more_than_a_statement_takes(store: Store, count: int, queries: int) -> None:
    """However many are looked for, no statement has more parameters than every database takes; none asks nothing."""
    store.create_instance(INSTANCE, project_id="p")
    store.create_instance(OTHER, project_id="p")
    sizes: list[int] = []

    def measure(_: object, __: object, statement: str, parameters: Sized, *___: object) -> None:
        if " IN " in statement:
            sizes.append(len(parameters))

    uuids = [INSTANCE, *(str(uuid.uuid4()) for _ in range(count - 2)), OTHER] if count else []
    event.listen(store.engine, "before_cursor_execute", measure)
    try:
        found = {mapping.instance_uuid for mapping in store.find_instances(uuids)}
    finally:
        event.remove(store.engine, "before_cursor_execute", measure)
    assert found == {*uuids[:1], *uuids[-1:]}
    assert (len(sizes), sum(sizes), max(sizes, default=0) <= 999) == (queries, count, True)


def test_cells_of_a_project(store: Store, cells: list[int]) -> None:
    """The cells of a project are those of its instances, each once, by id."""
    homes = {"p": [cells[1], cells[0], cells[1], None], "p2": [*cells, cells[0]], "p3": [cells[1]], "p4": [None]}
    for project, cell_ids in homes.items():
        for cell_id in cell_ids:
            store.create_instance(str(uuid.uuid4()), project_id=project, cell_id=cell_id)
    assert [store.list_cell_ids(project) for project in (*homes, "p5")] == [cells, cells, cells[1:], [], []]


def test_cells_of_a_project_whose_instances_go(store: Store, cells: list[int]) -> None:
    """A cell counts as long as there is an instance in it that is not being deleted, old rows of Nova's included."""
    store.create_instance(INSTANCE, project_id="p", cell_id=cells[0])
    store.update_instance(INSTANCE, queued_for_delete=True)
    with store.engine.begin() as connection:
        values = {"instance_uuid": OTHER, "project_id": "p", "queued_for_delete": None, "cell_id": cells[1]}
        connection.execute(instance_mappings.insert().values(values))
    assert store.list_cell_ids("p") == [cells[1]]


def test_dates(store: Store) -> None:
    """When a mapping was made is there from the beginning, when it was changed with the first change."""
    assert store.find_dates(INSTANCE) == (None, None)
    store.create_instance(INSTANCE, project_id="project")
    made, changed = store.find_dates(INSTANCE)
    assert (made is not None, changed) == (True, None)
    store.update_instance(INSTANCE, queued_for_delete=True)
    assert store.find_dates(INSTANCE)[0] == made
    assert store.find_dates(INSTANCE)[1] is not None


def test_living_are_counted_by_cell(store: Store, cells: list[int]) -> None:
    """Instances whose deletion has begun are no living ones; what Nova wrote before there was such a thing is."""
    cell, _ = cells[:2]
    for number, cell_id in enumerate([cell, cell, cell, None]):
        store.create_instance(str(uuid.UUID(int=number)), project_id="p", cell_id=cell_id)
    store.update_instance(str(uuid.UUID(int=0)), queued_for_delete=True)
    with store.engine.begin() as connection:
        row = instance_mappings.c.instance_uuid == str(uuid.UUID(int=1))
        connection.execute(instance_mappings.update().where(row).values(queued_for_delete=None))
    assert store.count_living() == {cell: 2, None: 1}
    assert store.count_instances() == {cell: 3, None: 1}
