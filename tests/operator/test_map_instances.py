# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage cell_v2 map_instances`` on servers: killed, twice at a time, and while others map instances, too."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from cellmw import engines
from cellmw.exceptions import InstanceMapped
from cellmw.store import Store, migrations
from cellmw.store.models import instance_mappings
from tests.nova_cell import NovaCell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cellmw.cell import Cell

INSTANCES = 8000
BATCH = 250
KILLS = 4

PROGRAM = f"""
import sys
from cellmw.admin.instance_mapping import InstanceMapper
from cellmw.cmd.manage import main
InstanceMapper.batches.__defaults__ = (None, {BATCH})
sys.exit(main())
"""
"""The command with smaller batches, so that there are more moments to be killed at."""


@pytest.fixture
def store(api_url: str) -> Iterator[Store]:
    """The API database."""
    with Store(engines.make_engine(api_url, {}, pre_ping=False)) as store:
        migrations.sync(store.engine)
        yield store


@pytest.fixture
def cell(store: Store, new_cell_url: Callable[[], str]) -> Cell:
    """A cell on the other server."""
    return store.create_cell(name="cell1", transport_url="none:///", database_connection=new_cell_url())


@pytest.fixture
def other_cell(store: Store) -> Cell:
    """Another cell, whose database nobody looks into."""
    return store.create_cell(name="cell2", transport_url="none:///", database_connection="sqlite:////nowhere")


@pytest.fixture
def nova_cell(cell: Cell) -> NovaCell:
    """The database of the cell."""
    return NovaCell(cell.reveal_database_connection())


@pytest.fixture
def instances(nova_cell: NovaCell) -> dict[str, str]:
    """The instances of the cell, and the project of each; every tenth is deleted."""
    projects = {str(uuid.uuid4()): f"p{number % 7}" for number in range(INSTANCES)}
    by_project: dict[tuple[str, int], list[str]] = {}
    for number, (each, project) in enumerate(projects.items()):
        by_project.setdefault((project, number % 10 == 0), []).append(each)
    for (project, deleted), uuids in by_project.items():
        nova_cell.add_instances(uuids, project_id=project, user_id=f"user of {project}", deleted=deleted)
    return projects


@pytest.fixture
def begin(api_url: str, cell: Cell, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Begin the command in a process of its own."""
    configuration = tmp_path / "cellmw.conf"
    configuration.write_text(f"[api_database]\nconnection = {api_url}\n")
    arguments = ["--config-file", str(configuration), "cell_v2", "map_instances", "--cell_uuid", cell.uuid]
    processes: list[subprocess.Popen[str]] = []

    def begin() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROGRAM, *arguments, "-f", "json"]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for the command, and return what it has done."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    (row,) = json.loads(out)
    found: dict[str, Any] = row
    return found


def count(store: Store) -> int:
    """Return how many mappings there are."""
    with store.engine.connect() as connection:
        return connection.scalars(sa.select(sa.func.count()).select_from(instance_mappings)).one()


def mapped(store: Store) -> dict[str, tuple[int, str, str, bool]]:
    """Return all mappings, each of which has to be there once."""
    columns = instance_mappings.c
    rows = sa.select(
        columns.instance_uuid, columns.cell_id, columns.project_id, columns.user_id, columns.queued_for_delete
    )
    with store.engine.connect() as connection:
        found = connection.execute(rows).all()
    mappings = {row[0]: (row[1], row[2], row[3], bool(row[4])) for row in found}
    assert len(mappings) == len(found)
    return mappings


def right(cell: Cell, instances: dict[str, str]) -> dict[str, tuple[int, str, str, bool]]:
    """Return the mappings as they have to be."""
    return {each: (cell.id, project, f"user of {project}", False) for each, project in instances.items()}


def test_killed_again_and_again(
    store: Store, cell: Cell, instances: dict[str, str], begin: Callable[[], subprocess.Popen[str]]
) -> None:
    """Killed at any moment it goes on where it was: each instance is mapped once, and none is dealt with twice."""
    chances = random.Random()
    there = 0
    for goal in sorted(chances.sample(range(1, INSTANCES - 8 * BATCH), KILLS)):
        process = begin()
        goal = max(goal, there + 1)
        while count(store) < goal:
            assert process.poll() is None, process.communicate()
        process.kill()
        process.wait()
        there = count(store)
        assert there % BATCH == 0
    assert there < INSTANCES
    done = ended(begin())
    assert 0 < done["Instances"] < INSTANCES
    assert done["Instances"] == done["Mapped"]
    assert mapped(store) == right(cell, instances)
    assert store.find_progress(f"map_instances/{cell.uuid}") is None


def test_two_at_the_same_time(
    store: Store, cell: Cell, instances: dict[str, str], begin: Callable[[], subprocess.Popen[str]]
) -> None:
    """Two that map the same cell get in each other's way nowhere: both end well, and each instance is mapped once."""
    for process in [begin(), begin()]:
        ended(process)
    assert mapped(store) == right(cell, instances)


def test_while_somebody_else_maps_them(
    store: Store,
    cell: Cell,
    other_cell: Cell,
    instances: dict[str, str],
    begin: Callable[[], subprocess.Popen[str]],
) -> None:
    """What somebody else maps at the same time, wherever to, stays as it is; all others are mapped once."""
    process = begin()
    while not count(store):
        assert process.poll() is None, process.communicate()
    mine = set()
    for each in itertools.islice(reversed(instances), 0, None, 3):
        if process.poll() is not None:
            break
        try:
            store.create_instance(each, project_id="mine", user_id="me", cell_id=other_cell.id)
        except InstanceMapped:
            continue
        mine.add(each)
    done = ended(process)
    assert mine
    assert mapped(store) == right(cell, instances) | dict.fromkeys(mine, (other_cell.id, "mine", "me", False))
    assert done["Instances"] == INSTANCES


def test_while_instances_come(
    store: Store,
    cell: Cell,
    nova_cell: NovaCell,
    instances: dict[str, str],
    begin: Callable[[], subprocess.Popen[str]],
) -> None:
    """Instances that come meanwhile are mapped by this run, or by the next one."""
    process = begin()
    late: dict[str, str] = {}
    while not count(store):
        assert process.poll() is None, process.communicate()
    while process.poll() is None and len(late) < BATCH:
        each = str(uuid.uuid4())
        nova_cell.add_instances([each], project_id="late", user_id="user of late")
        late[each] = "late"
    ended(process)
    ended(begin())
    assert late
    assert mapped(store) == right(cell, instances | late)
