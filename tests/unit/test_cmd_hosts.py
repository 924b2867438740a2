# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage cell_v2`` with hosts, as a shell sees it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cellmw.cell import CELL0_UUID
from cellmw.store import Store, models
from tests.nova_cell import NovaCell

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cellmw.cell import Cell
    from tests.commands import Answer, Manage

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

INSTANCE = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01"

NOBODY = "5d5fdd4b-0000-4b7c-8a1e-0f6f3d4e1a02"


def table(answer: Answer) -> list[dict[str, str]]:
    """Read what a command has shown as json."""
    rows: list[dict[str, str]] = json.loads(answer.out)
    return rows


def notes(answer: Answer) -> list[str]:
    """Return the lines that the command has printed besides, without those of a log."""
    return [line for line in answer.err.splitlines() if line.startswith("cellmw-manage: ")]


# --- discover_hosts


def test_discover(cell_v2: Manage, nova1: NovaCell, nova2: NovaCell, cell1: Cell, cell2: Cell) -> None:
    """New hosts are shown with their cells."""
    nova1.add_hosts(["b"])
    nova2.add_hosts(["a"])
    answer = cell_v2("discover_hosts", "-f", "json")
    assert (answer.exit_code, notes(answer)) == (0, [])
    assert table(answer) == [
        {"Hostname": "a", "Cell Name": "cell2", "Cell UUID": cell2.uuid, "State": "mapped"},
        {"Hostname": "b", "Cell Name": "cell1", "Cell UUID": cell1.uuid, "State": "mapped"},
    ]


def test_discover_nothing(cell_v2: Manage, nova1: NovaCell) -> None:
    """Where there is nothing new nothing is shown, and that is no failure."""
    nova1.add_hosts(["a"])
    assert "| a        | cell1" in cell_v2("discover_hosts").out
    answer = cell_v2("discover_hosts")
    assert (answer.exit_code, answer.out, notes(answer)) == (0, "", [])
    assert table(cell_v2("discover_hosts", "-f", "json")) == []


def test_discover_verbose(cell_v2: Manage, nova1: NovaCell, nova2: NovaCell, cell0: Cell) -> None:
    """In full those are shown as well that were mapped before, and how many of each there are is said."""
    nova1.add_hosts(["a"])
    cell_v2("discover_hosts")
    nova2.add_hosts(["b"])
    answer = cell_v2("discover_hosts", "--verbose", "-f", "json")
    assert [(row["Hostname"], row["State"]) for row in table(answer)] == [("a", "already"), ("b", "mapped")]
    assert notes(answer) == ["cellmw-manage: hosts in 2 cells: 1 mapped, 1 already, 0 elsewhere, 0 refused"]


def test_discover_strictly(cell_v2: Manage, nova1: NovaCell) -> None:
    """With --strict it is a failure where no host is new."""
    nova1.add_hosts(["a"])
    first, second = (cell_v2("discover_hosts", "--strict") for _ in range(2))
    assert (first.exit_code, notes(first)) == (0, [])
    assert (second.exit_code, second.out, notes(second)) == (1, "", ["cellmw-manage: there is no new host"])


def test_discover_dry(cell_v2: Manage, nova1: NovaCell, store: Store) -> None:
    """A dry run shows what would be mapped, and exits as the run would."""
    nova1.add_hosts(["a"])
    answer = cell_v2("discover_hosts", "--dry-run", "--strict", "-f", "json")
    assert (answer.exit_code, table(answer)[0]["State"]) == (0, "would be mapped")
    assert (store.list_hosts(), nova1.marks()) == ([], {"a": 0})


def test_discover_in_one_cell(cell_v2: Manage, nova1: NovaCell, nova2: NovaCell, cell2: Cell, store: Store) -> None:
    """With --cell_uuid no other cell is looked into."""
    nova1.add_hosts(["a"])
    nova2.add_hosts(["b"])
    assert cell_v2("discover_hosts", "--cell_uuid", cell2.uuid).exit_code == 0
    assert [mapping.host for mapping in store.list_hosts()] == ["b"]


def test_discover_in_an_unknown_cell(cell_v2: Manage) -> None:
    """A cell that is not there is an error like any other, as in nova-manage."""
    answer = cell_v2("discover_hosts", "--cell_uuid", NOBODY)
    assert (answer.exit_code, notes(answer)) == (255, [f"cellmw-manage: no cell '{NOBODY}' is recorded"])


def test_discover_in_cell0(cell_v2: Manage, cell0: Cell) -> None:
    """cell0 has no hosts, which is said only to who asks for it."""
    assert cell_v2("discover_hosts") == (0, "", "")
    answer = cell_v2("discover_hosts", "--cell_uuid", CELL0_UUID)
    assert (answer.exit_code, notes(answer)) == (0, ["cellmw-manage: cell0 has no hosts, and was not looked at"])


def test_discover_by_service(cell_v2: Manage, nova1: NovaCell, store: Store) -> None:
    """With --by-service the hosts of services are mapped."""
    nova1.add_service("a", disabled=True).add_hosts(["b"])
    assert cell_v2("discover_hosts", "--by-service").exit_code == 0
    assert [mapping.host for mapping in store.list_hosts()] == ["a"]


def test_discover_elsewhere(cell_v2: Manage, nova1: NovaCell, cell2: Cell, store: Store) -> None:
    """Hosts of another cell are shown, and what to do is said once for all of them; it is no failure."""
    NovaCell(cell2.reveal_database_connection())
    nova1.add_hosts("abcdefg")
    store.create_hosts("abcdefg", cell_id=cell2.id)
    answer = cell_v2("discover_hosts", "-f", "json")
    assert (answer.exit_code, {row["State"] for row in table(answer)}) == (0, {"elsewhere"})
    assert notes(answer) == [
        "cellmw-manage: mapped to cell cell2, and left there: a, b, c, d, e and 2 more; "
        "`cellmw-manage cell_v2 delete_host` lets go of one that has moved"
    ]


def test_discover_twice(cell_v2: Manage, nova1: NovaCell, nova2: NovaCell) -> None:
    """A host of two cells is a failure, and is named once."""
    nova1.add_hosts(["a", "b"])
    nova2.add_hosts(["a"])
    answer = cell_v2("discover_hosts", "--strict", "-f", "json")
    assert (answer.exit_code, [row["State"] for row in table(answer)]) == (3, ["refused", "refused", "mapped"])
    assert notes(answer) == [
        "cellmw-manage: not mapped: a: cells cell1 and cell2 have a host of that name each: "
        "rename or delete all but one"
    ]


def test_discover_where_a_cell_is_down(
    cell_v2: Manage, nova1: NovaCell, new_cell: Callable[..., Cell], tmp_path: Path
) -> None:
    """The hosts of the other cells are mapped, and the exit code tells that some may be missing."""
    nova1.add_hosts(["a"])
    new_cell("cell9", database_connection=f"sqlite:///{tmp_path}/none/there.sqlite")
    answer = cell_v2("discover_hosts", "--strict", "-f", "json")
    assert (answer.exit_code, len(table(answer))) == (255, 1)
    assert notes(answer) == [
        "cellmw-manage: cell cell9: its database does not answer (OperationalError): its hosts were not looked at"
    ]
    assert cell_v2("discover_hosts", "--strict").exit_code == 255


# --- list_hosts


def test_list(cell_v2: Manage, store: Store, cell1: Cell, new_cell: Callable[..., Cell]) -> None:
    """Hosts are shown by name, those of a cell without a name as well."""
    nameless = new_cell("other")
    store.update_cell(nameless.uuid, name=None)
    store.create_hosts(["a", "c"], cell_id=cell1.id)
    store.create_host("b", cell_id=nameless.id)
    answer = cell_v2("list_hosts", "-f", "json")
    assert (answer.exit_code, answer.err) == (0, "")
    assert table(answer) == [
        {"Cell Name": "cell1", "Cell UUID": cell1.uuid, "Hostname": "a"},
        {"Cell Name": "", "Cell UUID": nameless.uuid, "Hostname": "b"},
        {"Cell Name": "cell1", "Cell UUID": cell1.uuid, "Hostname": "c"},
    ]


def test_list_of_one_cell(cell_v2: Manage, store: Store, cell1: Cell, cell2: Cell) -> None:
    """With --cell_uuid only its own are shown."""
    store.create_host("a", cell_id=cell1.id)
    store.create_host("b", cell_id=cell2.id)
    assert [row["Hostname"] for row in table(cell_v2("list_hosts", "--cell_uuid", cell2.uuid, "-f", "json"))] == ["b"]


def test_list_of_an_unknown_cell(cell_v2: Manage) -> None:
    """A cell that is not there is 1, as in nova-manage."""
    answer = cell_v2("list_hosts", "--cell_uuid", NOBODY)
    assert (answer.exit_code, answer.out, notes(answer)) == (1, "", [f"cellmw-manage: no cell '{NOBODY}' is recorded"])


def test_list_without_record(cell_v2: Manage, store: Store) -> None:
    """A host whose cell has no record is shown without one, and the id is said."""
    store.create_host("a", cell_id=99)
    answer = cell_v2("list_hosts", "-f", "json")
    assert (answer.exit_code, table(answer)) == (0, [{"Cell Name": "", "Cell UUID": "", "Hostname": "a"}])
    assert notes(answer) == ["cellmw-manage: no cell is recorded for the ids 99, which hosts are mapped to"]


def test_list_of_many(cell_v2: Manage, store: Store, cell1: Cell) -> None:
    """The list has no end before the last host."""
    store.create_hosts((f"compute{number}" for number in range(2001)), cell_id=cell1.id)
    assert len(table(cell_v2("list_hosts", "-f", "json"))) == 2001


# --- delete_host


@pytest.fixture
def at_home(nova1: NovaCell, store: Store, cell1: Cell) -> NovaCell:
    """The database of cell1, with a host that is mapped to it."""
    store.create_host("a", cell_id=cell1.id)
    return nova1.add_hosts(["a"], mapped=1)


def test_delete(cell_v2: Manage, at_home: NovaCell, cell1: Cell, store: Store) -> None:
    """A host is deleted without a word, and found again by the next discovery."""
    answer = cell_v2("delete_host", "--cell_uuid", cell1.uuid, "--host", "a")
    assert answer[:2] == (0, "")
    assert (notes(answer), store.list_hosts(), at_home.marks()) == ([], [], {"a": 0})
    assert cell_v2("discover_hosts", "--strict").exit_code == 0


def test_delete_dry(cell_v2: Manage, at_home: NovaCell, cell1: Cell, store: Store) -> None:
    """A dry run only says that it can be done."""
    answer = cell_v2("delete_host", "--cell_uuid", cell1.uuid, "--host", "a", "--dry-run")
    assert answer[:2] == (0, "host 'a' would be forgotten\n")
    assert (len(store.list_hosts()), at_home.marks()) == (1, {"a": 1})


def test_delete_as_json(cell_v2: Manage, at_home: NovaCell, cell1: Cell) -> None:
    """What was done is there as a row."""
    answer = cell_v2("delete_host", "--cell_uuid", cell1.uuid, "--host", "a", "-f", "json")
    assert table(answer) == [{"Hostname": "a", "Cell UUID": cell1.uuid, "Outcome": "deleted"}]


def test_delete_exit_codes(cell_v2: Manage, at_home: NovaCell, cell1: Cell, cell2: Cell) -> None:
    """Each reason to refuse has the exit code that nova-manage has for it, and is one line."""

    def refusal(cell_uuid: str, host: str) -> tuple[int, list[str]]:
        answer = cell_v2("delete_host", "--cell_uuid", cell_uuid, "--host", host)
        assert answer.out == ""
        return answer.exit_code, notes(answer)

    assert refusal(NOBODY, "a") == (1, [f"cellmw-manage: no cell '{NOBODY}' is recorded"])
    assert refusal(cell1.uuid, "b") == (2, ["cellmw-manage: host 'b' has no mapping"])
    assert refusal(cell2.uuid, "a") == (3, ["cellmw-manage: host 'a' is not mapped to cell cell2, but to another"])
    at_home.add_instance(INSTANCE, "a")
    assert refusal(cell1.uuid, "a") == (4, ["cellmw-manage: there are instances on host 'a'"])


def test_delete_where_the_cell_is_down(
    cell_v2: Manage, new_cell: Callable[..., Cell], store: Store, tmp_path: Path
) -> None:
    """Where nobody knows whether the host is empty that is said, with what to do."""
    cell = new_cell("cell9", database_connection=f"sqlite:///{tmp_path}/none/there.sqlite")
    store.create_host("a", cell_id=cell.id)
    answer = cell_v2("delete_host", "--cell_uuid", cell.uuid, "--host", "a")
    assert (answer.exit_code, notes(answer)) == (
        255,
        [
            "cellmw-manage: cell cell9: its database does not answer (OperationalError): without its database nobody "
            "knows whether there are instances on 'a'; run this again when it answers"
        ],
    )
    assert len(store.list_hosts()) == 1


@pytest.mark.parametrize("command", ["discover_hosts", "list_hosts"])
def test_without_tables(cell_v2: Manage, store: Store, command: str) -> None:
    """Before the API database has its tables a command says how it gets them."""
    models.metadata.drop_all(store.engine)
    answer = cell_v2(command)
    assert (answer.exit_code, notes(answer)) == (
        255,
        ["cellmw-manage: the API database has no tables for cells yet: run `cellmw-manage api_db sync`"],
    )
