# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage cell_v2`` with instances, as a shell sees it."""

from __future__ import annotations

import json
import uuid
from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, insert

from cellmw import engines
from cellmw.admin import instance_mapping
from cellmw.store import InstanceMapping, Store
from cellmw.store.instances import NOVA_MARKER
from cellmw.store.models import instance_mappings, progress
from tests.nova_cell import NovaCell

if TYPE_CHECKING:
    from collections.abc import Callable

    from cellmw.cell import Cell
    from tests.commands import Manage

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

NOBODY = "5d5fdd4b-0000-4b7c-8a1e-0f6f3d4e1a02"


def uuids(number: int) -> list[str]:
    """Return new uuids."""
    return [str(uuid.uuid4()) for _ in range(number)]


@pytest.fixture
def map_cell1(cell_v2: Manage, cell1: Cell) -> Manage:
    """Maps the instances of cell1."""
    return partial(cell_v2, "map_instances", "--cell_uuid", cell1.uuid)


def mapped(store: Store) -> dict[str, InstanceMapping]:
    """Return all mappings by their instances."""
    return {mapping.instance_uuid: mapping for mapping in store.list_instances(limit=100_000)}


# --- cell_v2 map_instances


def test_all_are_mapped(store: Store, map_cell1: Manage, cell1: Cell, nova1: NovaCell) -> None:
    """Every instance gets a mapping with its cell, project and user; nothing is said of its deletion, as in Nova."""
    living, deleted = uuids(3), uuids(2)
    nova1.add_instances(living, project_id="p1", user_id="u1").add_instances(deleted, deleted=1)
    answer = map_cell1()
    assert answer.exit_code == 0
    assert mapped(store) == {each: InstanceMapping(each, cell1.id, "p1", "u1", False) for each in living} | {
        each: InstanceMapping(each, cell1.id, "p", "u", False) for each in deleted
    }
    assert answer.out.startswith("cell cell1: 5 instances, 5 mapped, ")
    assert answer.out.endswith("that was all of them\n")


def test_hidden_ones_are_not_mapped(store: Store, map_cell1: Manage, nova1: NovaCell) -> None:
    """The copy of an instance that is on its way between two cells gets no mapping."""
    nova1.add_instances(uuids(1), hidden=True)
    assert map_cell1().exit_code == 0
    assert mapped(store) == {}


def test_empty_cell(store: Store, map_cell1: Manage, nova1: NovaCell) -> None:
    """A cell without instances has all of them mapped."""
    assert (map_cell1().exit_code, mapped(store)) == (0, {})


def test_again(store: Store, map_cell1: Manage, nova1: NovaCell) -> None:
    """Once all are mapped the next run begins anew, and finds what has lost its mapping since then."""
    found = uuids(3)
    nova1.add_instances(found)
    map_cell1()
    store.delete_instance(found[0])
    answer = map_cell1("-f", "json")
    assert answer.exit_code == 0
    assert json.loads(answer.out)[0]["Mapped"] == 1
    assert mapped(store).keys() == set(found)


def test_max_count(store: Store, map_cell1: Manage, nova1: NovaCell) -> None:
    """With --max-count it exits with 1 as long as there may be more, and each run goes on where the last has ended."""
    found = uuids(5)
    nova1.add_instances(found)
    codes, counts = [], []
    for _ in range(3):
        codes.append(map_cell1("--max-count", "2").exit_code)
        counts.append(len(mapped(store)))
    assert (codes, counts) == ([1, 1, 0], [2, 4, 5])


def test_max_count_to_the_last(store: Store, map_cell1: Manage, nova1: NovaCell) -> None:
    """As in nova-manage, that the count was just enough shows in the next run only."""
    nova1.add_instances(uuids(2))
    answers = [map_cell1("--max-count", "2") for _ in range(2)]
    assert [answer.exit_code for answer in answers] == [1, 0]
    assert "2 of 2 instances" in answers[0].err


def test_progress_of_max_count(map_cell1: Manage, nova1: NovaCell) -> None:
    """With --max-count that is how many there are to deal with."""
    nova1.add_instances(uuids(3))
    assert "2 of 2 instances" in map_cell1("--max-count", "2").err


@pytest.mark.parametrize("count", ["0", "-1", "some", "1.5", ""])
def test_max_count_that_is_none(map_cell1: Manage, nova1: NovaCell, count: str) -> None:
    """What is no number of instances exits with 127, as in nova-manage."""
    answer = map_cell1(f"--max-count={count}")
    assert (answer.exit_code, answer.out, answer.err.count("\n")) == (127, "", 1)


def test_in_batches(
    store: Store, map_cell1: Manage, cell1: Cell, nova1: NovaCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is mapped in one transaction with how far it is; when all are mapped nothing of that is left."""
    monkeypatch.setattr(instance_mapping.InstanceMapper.batches, "__defaults__", (None, 2))
    nova1.add_instances(uuids(5))
    assert map_cell1().exit_code == 0
    assert len(mapped(store)) == 5
    assert store.find_progress(f"map_instances/{cell1.uuid}") is None


def test_reset_is_remembered(store: Store, map_cell1: Manage, cell1: Cell, nova1: NovaCell) -> None:
    """A run with --reset that is interrupted before its first batch has begun anew all the same."""
    nova1.add_instances(uuids(3))
    map_cell1("--max-count", "2")
    nova1.run("DROP TABLE instances")
    assert map_cell1("--reset").exit_code == 255
    assert store.find_progress(f"map_instances/{cell1.uuid}") is None


def test_each_cell_has_its_own_place(
    store: Store, cell_v2: Manage, map_cell1: Manage, cell2: Cell, nova1: NovaCell, nova2: NovaCell
) -> None:
    """A run for another cell neither begins where one was interrupted, nor makes that one begin anew."""
    first, second = uuids(4), uuids(3)
    nova1.add_instances(first)
    nova2.add_instances(second)
    map_cell1("--max-count", "2")
    assert cell_v2("map_instances", "--cell_uuid", cell2.uuid).exit_code == 0
    assert mapped(store).keys() == {*first[:2], *second}
    answer = map_cell1("-f", "json")
    assert json.loads(answer.out)[0]["Instances"] == 2
    assert mapped(store).keys() == {*first, *second}


def test_reset(store: Store, map_cell1: Manage, nova1: NovaCell) -> None:
    """--reset begins anew, wherever an earlier run was interrupted."""
    found = uuids(3)
    nova1.add_instances(found)
    map_cell1("--max-count", "2")
    store.delete_instance(found[0])
    assert map_cell1("--max-count", "1", "--reset").exit_code == 1
    assert mapped(store).keys() == set(found[:2])
    assert json.loads(map_cell1("-f", "json").out)[0]["Instances"] == 2


def test_dry_run(store: Store, map_cell1: Manage, cell1: Cell, nova1: NovaCell) -> None:
    """A dry run says what would be mapped from where an earlier run has ended, and leaves that as it is."""
    found = uuids(4)
    nova1.add_instances(found)
    map_cell1("--max-count", "1")
    before = store.find_progress(f"map_instances/{cell1.uuid}")
    store.create_instance(found[1], project_id="p", cell_id=cell1.id)
    answer = map_cell1("--dry-run", "-f", "json")
    (row,) = json.loads(answer.out)
    assert answer.exit_code == 0
    assert (row["Instances"], row["Mapped"], row["Unchanged"], row["Complete"]) == (3, 2, 1, True)
    assert "would be mapped" in map_cell1("--dry-run").out
    assert mapped(store).keys() == set(found[:2])
    assert json.loads(map_cell1("--dry-run", "--reset", "-f", "json").out)[0]["Instances"] == 4
    assert map_cell1("--dry-run", "--max-count", "1").exit_code == 1
    assert store.find_progress(f"map_instances/{cell1.uuid}") == before


def test_rows_without_a_project(store: Store, map_cell1: Manage, nova1: NovaCell) -> None:
    """Instances of no project are counted, the first ones named, and all others mapped; it exits with 3."""
    nobodys, others = uuids(7), uuids(2)
    nova1.add_instances(others[:1]).add_instances(nobodys, project_id=None).add_instances(others[1:])
    answer = map_cell1()
    assert answer.exit_code == 3
    assert mapped(store).keys() == set(others)
    assert "7 instances can't be mapped" in answer.err
    assert ", ".join([*nobodys[:5], "..."]) in answer.err
    assert nobodys[5] not in answer.err


def test_rows_without_a_project_of_earlier_runs(store: Store, map_cell1: Manage, nova1: NovaCell) -> None:
    """What could not be mapped before an interruption is told of at the end, and is no reason to exit with 3 before."""
    nobodys = uuids(2)
    nova1.add_instances(nobodys[:1], project_id=None).add_instances(uuids(1))
    nova1.add_instances(nobodys[1:], project_id=None)
    assert map_cell1("--max-count", "2").exit_code == 1
    answer = map_cell1()
    assert answer.exit_code == 3
    assert "2 instances can't be mapped" in answer.err
    assert ", ".join(nobodys) in answer.err
    nova1.run("UPDATE instances SET project_id = 'p'")
    assert map_cell1().exit_code == 0
    assert mapped(store).keys() >= set(nobodys)


def test_rows_without_a_project_are_not_unchanged(map_cell1: Manage, nova1: NovaCell) -> None:
    """What has no mapping, and gets none, is not counted as mapped already."""
    nova1.add_instances(uuids(2), project_id=None).add_instances(uuids(3))
    (row,) = json.loads(map_cell1("-f", "json").out)
    assert (row["Instances"], row["Mapped"], row["Unchanged"], row["Without project"]) == (5, 3, 0, 2)
    (row,) = json.loads(map_cell1("-f", "json").out)
    assert (row["Instances"], row["Mapped"], row["Unchanged"], row["Without project"]) == (5, 0, 3, 2)


def test_mapped_to_another_cell(store: Store, map_cell1: Manage, cell1: Cell, cell2: Cell, nova1: NovaCell) -> None:
    """What is mapped to another cell, or to none yet, stays so, and is pointed out."""
    elsewhere, building, here = uuids(3)
    nova1.add_instances([elsewhere, building, here])
    store.create_instance(elsewhere, project_id="p", cell_id=cell2.id)
    store.create_instance(building, project_id="p")
    store.create_instance(here, project_id="p", cell_id=cell1.id)
    answer = map_cell1("-f", "json")
    (row,) = json.loads(answer.out)
    assert answer.exit_code == 0
    assert (row["Mapped"], row["Unchanged"], row["Elsewhere"]) == (0, 1, 2)
    assert "2 instances are mapped already, but not to cell cell1" in answer.err
    assert "verify" in answer.err
    assert [mapped(store)[each].cell_id for each in (elsewhere, building)] == [cell2.id, None]


def test_unknown_cell(cell_v2: Manage) -> None:
    """A cell that is not recorded exits with 255, as in nova-manage, and in one line."""
    answer = cell_v2("map_instances", "--cell_uuid", NOBODY)
    assert (answer.exit_code, answer.err) == (255, f"cellmw-manage: no cell '{NOBODY}' is recorded\n")


def test_cell_without_the_table(map_cell1: Manage) -> None:
    """A cell's database without the table says which option names another."""
    answer = map_cell1()
    assert (answer.exit_code, answer.err.count("\n")) == (255, 1)
    assert "[cellmw_tables] instances_table" in answer.err


def test_api_database_that_was_never_synced(store: Store, map_cell1: Manage, nova1: NovaCell) -> None:
    """Without the table that keeps how far it is, as in a database of Nova's alone, all are mapped at once."""
    progress.drop(store.engine)
    nova1.add_instances(uuids(2))
    assert map_cell1("--reset").exit_code == 0
    assert len(mapped(store)) == 2


def test_part_where_no_place_is_kept(store: Store, map_cell1: Manage, nova1: NovaCell) -> None:
    """Where a part is asked for the table has to be there: it says how to make it, and maps nothing."""
    progress.drop(store.engine)
    nova1.add_instances(uuids(2))
    answer = map_cell1("--max-count", "1")
    assert (answer.exit_code, answer.err.count("\n"), mapped(store)) == (255, 1, {})
    assert "`cellmw-manage api_db sync`" in answer.err


def test_novas_marker(store: Store, map_cell1: Manage, nova1: NovaCell) -> None:
    """Where nova-manage was interrupted is no instance, and stays there for nova-manage; --reset is for both."""
    found = uuids(3)
    nova1.add_instances(found)
    marker = found[0].replace("-", " ")
    store.create_instance(marker, project_id=NOVA_MARKER, user_id=NOVA_MARKER)
    assert map_cell1().exit_code == 0
    assert mapped(store).keys() == set(found)
    assert store.find_instance(marker) is not None
    assert map_cell1("--reset", "--dry-run").exit_code == 0
    assert store.find_instance(marker) is not None
    assert map_cell1("--reset").exit_code == 0
    assert store.find_instance(marker) is None


def test_ctrl_c(store: Store, map_cell1: Manage, nova1: NovaCell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C leaves whole batches, says how far it is, and the next run goes on there."""
    monkeypatch.setattr(instance_mapping.InstanceMapper.batches, "__defaults__", (None, 2))
    found = uuids(7)
    nova1.add_instances(found)
    inserts = 0

    def interrupt(connection: object, cursor: object, statement: str, *rest: object) -> None:
        nonlocal inserts
        inserts += "INTO instance_mappings" in statement
        if inserts == 3:
            raise KeyboardInterrupt

    make_engine = engines.make_engine

    def listened(*arguments: object, **options: object) -> object:
        engine = make_engine(*arguments, **options)  # type: ignore[arg-type]
        event.listen(engine, "before_cursor_execute", interrupt)
        return engine

    with monkeypatch.context() as patched:
        patched.setattr(engines, "make_engine", listened)
        answer = map_cell1()
    assert answer.exit_code == 130
    assert answer.err.endswith("interrupted: 4 instances are dealt with: run it again, and it goes on there\n")
    assert mapped(store).keys() == set(found[:4])
    assert json.loads(map_cell1("-f", "json").out)[0]["Instances"] == 3
    assert mapped(store).keys() == set(found)


# --- cell_v2 verify_instance


@pytest.fixture
def verify(cell_v2: Manage) -> Manage:
    """Verifies an instance."""
    return partial(cell_v2, "verify_instance", "--uuid")


def test_instance_in_its_cell(store: Store, verify: Manage, cell1: Cell, nova1: NovaCell) -> None:
    """An instance that is where it is mapped to exits with 0; its uuid may be written in capitals."""
    (found,) = uuids(1)
    nova1.add_instances([found])
    store.create_instance(found, project_id="p", cell_id=cell1.id)
    assert verify(found) == (0, f"instance {found} is in cell {cell1.uuid} (cell1)\n", "")
    assert verify(found.upper()).exit_code == 0


def test_hidden_instance(store: Store, verify: Manage, cell1: Cell, nova1: NovaCell) -> None:
    """An instance that is on its way between two cells is in the cell all the same, as in Nova."""
    (found,) = uuids(1)
    nova1.add_instances([found], hidden=True)
    store.create_instance(found, project_id="p", cell_id=cell1.id)
    assert verify(found).exit_code == 0


def test_instance_without_a_mapping(verify: Manage, cell1: Cell) -> None:
    """An instance that has no mapping exits with 1."""
    answer = verify(NOBODY)
    assert (answer.exit_code, answer.err) == (1, "")
    assert "no mapping" in answer.out


def test_instance_without_a_cell(store: Store, verify: Manage) -> None:
    """An instance that is being built exits with 2."""
    store.create_instance(NOBODY, project_id="p")
    assert verify(NOBODY).exit_code == 2


def test_deleted_instance(store: Store, verify: Manage, cell1: Cell, nova1: NovaCell) -> None:
    """An instance whose row is there as a deleted one exits with 3."""
    (found,) = uuids(1)
    nova1.add_instances([found], deleted=1)
    store.create_instance(found, project_id="p", cell_id=cell1.id)
    answer = verify(found)
    assert (answer.exit_code, "was deleted" in answer.out) == (3, True)


def test_instance_that_is_gone(store: Store, verify: Manage, cell1: Cell, nova1: NovaCell, nova2: NovaCell) -> None:
    """An instance that is in no cell any more exits with 4."""
    store.create_instance(NOBODY, project_id="p", cell_id=cell1.id)
    answer = verify(NOBODY)
    assert (answer.exit_code, answer.out.count("\n")) == (4, 2)
    assert "verify --repair" in answer.out


def test_instance_in_another_cell(
    store: Store, verify: Manage, cell1: Cell, cell2: Cell, nova1: NovaCell, nova2: NovaCell
) -> None:
    """An instance that is in another cell than it is mapped to exits with 4, as in Nova, and is told where it is."""
    (found,) = uuids(1)
    nova2.add_instances([found])
    store.create_instance(found, project_id="p", cell_id=cell1.id)
    answer = verify(found)
    assert answer.exit_code == 4
    assert f"instance {found} is in cell {cell2.uuid} (cell2)\n" in answer.out
    assert json.loads(verify(found, "-f", "json").out)[0]["Found in"] == "cell2"


def test_instance_that_may_be_where_nobody_answers(
    store: Store, verify: Manage, cell1: Cell, cell2: Cell, nova1: NovaCell
) -> None:
    """A cell that does not answer, when an instance is looked for everywhere, is named."""
    store.create_instance(NOBODY, project_id="p", cell_id=cell1.id)
    answer = verify(NOBODY)
    assert answer.exit_code == 4
    assert "cell cell2 does not answer" in answer.out
    assert "--repair" not in answer.out


def test_cell_that_does_not_answer(store: Store, verify: Manage, new_cell: Callable[..., Cell]) -> None:
    """A cell whose database does not answer is one line, and 255."""
    cell = new_cell("gone", database_connection="mysql+pymysql://nova:s3cret-pw@127.0.0.1:1/cell")
    store.create_instance(NOBODY, project_id="p", cell_id=cell.id)
    answer = verify(NOBODY)
    assert (answer.exit_code, answer.out) == (255, "")
    last = answer.err.splitlines()[-1]
    assert last == "cellmw-manage: cell gone: its database does not answer (OperationalError 2003)"


def test_cell_without_a_record(store: Store, verify: Manage) -> None:
    """A mapping to a cell that has no record is said in one line, with 255; nova-manage takes it for one without."""
    with store.engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
        connection.execute(insert(instance_mappings).values(instance_uuid=NOBODY, cell_id=77, project_id="p"))
    answer = verify(NOBODY)
    assert (answer.exit_code, answer.out, answer.err.count("\n")) == (255, "", 1)
    assert f"instance {NOBODY} is mapped to cell id 77, which has no record" in answer.err


@pytest.mark.parametrize("options", [[], ["-f", "json"]])
def test_quiet(store: Store, verify: Manage, cell1: Cell, nova1: NovaCell, nova2: NovaCell, options: list[str]) -> None:
    """With --quiet nothing is printed."""
    assert verify(NOBODY, "--quiet", *options) == (1, "", "")
    store.create_instance(NOBODY, project_id="p", cell_id=cell1.id)
    assert verify(NOBODY, "--quiet", *options) == (4, "", "")
