# SPDX-License-Identifier: Apache-2.0
"""Instances that are mapped many at a time, and how far that is, on SQLite; tests/services runs the same on servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from oslo_utils import timeutils, uuidutils
from sqlalchemy import event

from cellmw.exceptions import StoreUnavailable
from cellmw.store import InstanceMapping
from cellmw.store.instances import NOVA_MARKER
from cellmw.store.models import instance_mappings, progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cellmw.store import Store

TASK = "map_instances/5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01"


@pytest.fixture
def cell_ids(store: Store) -> list[int]:
    """The ids of two cells."""
    urls = [(f"rabbit://host{number}/", f"sqlite:///{number}.db") for number in (1, 2)]
    return [store.create_cell(name=None, transport_url=url, database_connection=place).id for url, place in urls]


def mappings_to(cell_id: int, number: int) -> list[InstanceMapping]:
    """Return mappings of new instances."""
    return [InstanceMapping(uuidutils.generate_uuid(), cell_id, "p", "u", False) for _ in range(number)]


def everything(store: Store) -> set[InstanceMapping]:
    """Return all mappings."""
    return set(store.list_instances(limit=10_000))


# --- many at a time


def test_many_are_mapped(store: Store, cell_ids: list[int]) -> None:
    """More than a statement has parameters for are mapped at once, each as it was given."""
    wanted = mappings_to(cell_ids[0], 2500)
    assert store.map_instances(wanted) == []
    assert everything(store) == set(wanted)


def test_time_of_a_bulk(store: Store, cell_ids: list[int]) -> None:
    """A mapping that was made with many others has a time, as any other."""
    store.map_instances(mappings_to(cell_ids[0], 2))
    with store.engine.connect() as connection:
        times = connection.scalars(sa.select(instance_mappings.c.created_at)).all()
    assert None not in times


def test_mapped_ones_stay_as_they_are(store: Store, cell_ids: list[int]) -> None:
    """What is mapped already is returned, whichever cell it is mapped to, and not changed."""
    here, there, new = mappings_to(cell_ids[0], 3)
    elsewhere = there._replace(cell_id=cell_ids[1], queued_for_delete=True)
    store.map_instances([here, elsewhere])
    assert set(store.map_instances([here, there, new])) == {here, elsewhere}
    assert everything(store) == {here, elsewhere, new}


def test_mapped_by_somebody_else_at_this_moment(store: Store, cell_ids: list[int]) -> None:
    """What is mapped between the look and the insert stays as it is; the others are mapped all the same."""
    late, new = mappings_to(cell_ids[0], 2)
    elsewhere = late._replace(cell_id=cell_ids[1])
    rows = iter([elsewhere])

    def come_between(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("INSERT INTO instance_mappings") and (mapping := next(rows, None)):
            connection.execute(sa.insert(instance_mappings), mapping._asdict())

    event.listen(store.engine, "before_cursor_execute", come_between)
    store.map_instances([late, new])
    event.remove(store.engine, "before_cursor_execute", come_between)
    assert everything(store) == {elsewhere, new}


def test_progress_is_written_with_the_batch(store: Store, cell_ids: list[int]) -> None:
    """How far a task is is known as soon as its batch is there, and forgotten when it is done."""
    assert store.find_progress(TASK) is None
    for position in ("1", "2"):
        store.map_instances(mappings_to(cell_ids[0], 1), task=TASK, position=position)
        assert store.find_progress(TASK) == position
    store.forget_progress(TASK)
    assert store.find_progress(TASK) is None


def test_progress_without_a_batch(store: Store) -> None:
    """A task goes on where there was nothing to map, too."""
    assert store.map_instances([], task=TASK, position="7") == []
    assert store.find_progress(TASK) == "7"


def test_progress_of_a_batch_that_fails(store: Store, cell_ids: list[int]) -> None:
    """Where the instances can't be mapped the task is not further than before."""
    store.map_instances([], task=TASK, position="1")
    broken = mappings_to(cell_ids[0], 1)[0]._replace(project_id=None)  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailable):
        store.map_instances([broken], task=TASK, position="2")
    assert store.find_progress(TASK) == "1"


def test_progress_has_a_time(store: Store) -> None:
    """When a task was at work last can be seen."""
    began_at = timeutils.utcnow().replace(microsecond=0)
    for position in ("1", "2"):
        store.map_instances([], task=TASK, position=position)
    with store.engine.connect() as connection:
        assert connection.scalars(sa.select(progress.c.updated_at)).one() >= began_at


def test_release_without_the_table(store: Store) -> None:
    """An API database that was synced by an older release says what to do."""
    progress.drop(store.engine)
    with pytest.raises(StoreUnavailable, match="api_db sync"):
        store.find_progress(TASK)


# --- pages


def test_pages_of_mappings(store: Store, cell_ids: list[int]) -> None:
    """Mappings come in pages, each once, with the time at which they were written last."""
    wanted = mappings_to(cell_ids[0], 5)
    store.map_instances(wanted)
    found = []
    after = None
    while page := store.page_instances(2, after):
        found += page
        after = page[-1].key
    assert [each.mapping for each in found] == wanted
    assert all(each.written_at is not None for each in found)


def test_pages_of_one_cell(store: Store, cell_ids: list[int]) -> None:
    """Pages may be of the mappings to one cell."""
    here, there = mappings_to(cell_ids[0], 1), mappings_to(cell_ids[1], 1)
    store.map_instances(here + there)
    assert [each.mapping for each in store.page_instances(9, cell_id=cell_ids[1])] == there


def test_when_a_mapping_was_written(store: Store, cell_ids: list[int]) -> None:
    """A mapping is as old as its last change."""
    mapping = mappings_to(cell_ids[0], 1)[0]
    store.map_instances([mapping])
    with store.engine.begin() as connection:
        old = timeutils.utcnow().replace(microsecond=0, year=2000)
        connection.execute(sa.update(instance_mappings).values(created_at=old, updated_at=None))
    (before,) = store.date_instances([mapping.instance_uuid])
    store.update_instance(mapping.instance_uuid, cell_id=cell_ids[1])
    (after,) = store.date_instances([mapping.instance_uuid, uuidutils.generate_uuid()])
    assert (before.written_at, before.mapping) == (old, mapping)
    assert after.written_at is not None
    assert after.written_at.year > 2000


# --- changes


@pytest.fixture
def read(store: Store, cell_ids: list[int]) -> Iterator[InstanceMapping]:
    """A mapping as it was read."""
    mapping = mappings_to(cell_ids[0], 1)[0]
    store.map_instances([mapping])
    return mapping


def test_change(store: Store, cell_ids: list[int], read: InstanceMapping) -> None:
    """A mapping that is still as it was read is changed as a whole."""
    wanted = InstanceMapping(read.instance_uuid, cell_ids[1], "q", "v", True)
    assert store.change_instances([(read, wanted)]) == [True]
    assert store.get_instance(read.instance_uuid) == wanted


def test_forget(store: Store, read: InstanceMapping) -> None:
    """A mapping that is still as it was read is forgotten."""
    assert store.change_instances([(read, None)]) == [True]
    assert store.find_instance(read.instance_uuid) is None


@pytest.mark.parametrize(
    "values", [{"cell_id": None}, {"project_id": "q"}, {"user_id": None}, {"user_id": "v"}, {"queued_for_delete": True}]
)
def test_changed_meanwhile(
    store: Store,
    cell_ids: list[int],
    read: InstanceMapping,
    values: dict[str, Any],
) -> None:
    """A mapping that is not as it was read stays as it is, others are changed all the same."""
    now = store.update_instance(read.instance_uuid, **values)
    other = mappings_to(cell_ids[0], 1)[0]
    store.map_instances([other])
    changes = [(read, read._replace(cell_id=cell_ids[1])), (read, None), (other, None)]
    assert store.change_instances(changes) == [False, False, True]
    assert everything(store) == {now}


def test_change_where_nothing_was(store: Store, cell_ids: list[int], read: InstanceMapping) -> None:
    """What is NULL in a mapping is compared as well: no cell, no user, and nothing said of its deletion."""
    with store.engine.begin() as connection:
        connection.execute(sa.update(instance_mappings).values(cell_id=None, user_id=None, queued_for_delete=None))
    (building,) = store.find_instances([read.instance_uuid])
    wanted = building._replace(cell_id=cell_ids[1])
    assert store.change_instances([(building, wanted)]) == [True]
    assert store.get_instance(read.instance_uuid) == wanted


# --- the row that nova-manage goes on by


def test_novas_marker_is_no_instance(store: Store, cell_ids: list[int]) -> None:
    """The row that nova-manage keeps among the mappings is listed nowhere, until it is forgotten."""
    marker = "5d5fdd4b 0d4a 4b7c 8a1e 0f6f3d4e1a01"
    store.create_instance(marker, project_id=NOVA_MARKER, user_id=NOVA_MARKER)
    mapped = mappings_to(cell_ids[0], 1)
    store.map_instances(mapped)
    assert everything(store) == set(mapped)
    assert [each.mapping for each in store.page_instances(9)] == mapped
    assert store.count_instances() == {cell_ids[0]: 1}
    assert store.find_instance(marker) is not None
    store.forget_nova_marker()
    assert store.find_instance(marker) is None
    assert everything(store) == set(mapped)
