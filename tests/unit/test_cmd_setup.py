# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage cell_v2 map_cell_and_hosts`` and ``simple_cell_setup``, as a shell sees them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cellmw.cell import CELL0_UUID
from cellmw.store import Store
from tests.nova_cell import NovaCell

if TYPE_CHECKING:
    from pathlib import Path

    from tests.commands import Answer, Manage

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

INSTANCES = [f"5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a0{number}" for number in range(3)]

QUEUE = "rabbit://nova:s3cret-Hw31@host1:5672/"


@pytest.fixture
def configuration(store: Store, tmp_path: Path) -> Path:
    """The configuration of a service that knows no cells."""
    path = tmp_path / "cellmw.conf"
    path.write_text(
        f"[DEFAULT]\ntransport_url = {QUEUE}\n"
        f"[database]\nconnection = sqlite:///{tmp_path}/nova.sqlite\n"
        f"[api_database]\nconnection = sqlite:///{tmp_path}/api.sqlite\n"
    )
    return path


@pytest.fixture
def nova(tmp_path: Path) -> NovaCell:
    """What is in ``[database] connection``."""
    return NovaCell(f"sqlite:///{tmp_path}/nova.sqlite")


@pytest.fixture
def at_cell0(tmp_path: Path) -> NovaCell:
    """The database where cell0 is by default, with its tables."""
    return NovaCell(f"sqlite:///{tmp_path}/nova.sqlite_cell0")


@pytest.mark.parametrize("command", ["map_cell_and_hosts", "simple_cell_setup"])
def test_no_database(cell_v2: Manage, configuration: Path, store: Store, command: str) -> None:
    """Without [database] connection nothing is recorded, and it is not said to give an option that there is not."""
    configuration.write_text(configuration.read_text().replace("[database]\nconnection", "[database]\n# connection"))
    answer = cell_v2(command)
    assert answer == (
        1,
        "",
        "cellmw-manage: no database URL: set [database] connection to the one with the hosts\n",
    )
    assert store.list_cells() == []


def test_name_that_no_cell_can_have(cell_v2: Manage, store: Store, nova: NovaCell) -> None:
    """A name is checked before a host is looked for."""
    nova.add_hosts(["compute1"])
    answer = cell_v2("map_cell_and_hosts", "--name", "x" * 256)
    assert (answer.exit_code, answer.err.count("\n"), "255 characters" in answer.err) == (1, 1, True)
    assert store.list_cells() == []


def notes(answer: Answer) -> list[str]:
    """Return the lines that the command has printed besides, without those of a log."""
    return [
        line.removeprefix("cellmw-manage: ") for line in answer.err.splitlines() if line.startswith("cellmw-manage: ")
    ]


def names(store: Store) -> dict[str, str | None]:
    """Return the name of the cell of each host that is mapped."""
    return {mapping.host: store.get_cell(mapping.cell_id).name for mapping in store.list_hosts()}


# --- map_cell_and_hosts


def test_new_cell(cell_v2: Manage, nova: NovaCell, store: Store, tmp_path: Path) -> None:
    """The cell is recorded with the service's own URLs and the name, and its hosts are mapped and marked."""
    nova.add_hosts(["a", "b"])
    answer = cell_v2("map_cell_and_hosts", "--name", "cell1")
    (cell,) = store.list_cells()
    assert (answer.exit_code, answer.out) == (0, "")
    assert notes(answer) == [
        f"cell {cell.uuid} is recorded, with the database of [database] connection",
        f"hosts mapped to cell {cell.uuid}: 2",
    ]
    assert (cell.name, cell.disabled) == ("cell1", False)
    assert cell.reveal_transport_url() == QUEUE
    assert cell.reveal_database_connection() == f"sqlite:///{tmp_path}/nova.sqlite"
    assert (names(store), nova.marks()) == ({"a": "cell1", "b": "cell1"}, {"a": 1, "b": 1})


def test_typed_transport_url(cell_v2: Manage, nova: NovaCell, store: Store) -> None:
    """A transport URL that is typed comes before the configured one, and may be a template."""
    nova.add_hosts(["a"])
    assert cell_v2("map_cell_and_hosts", "--transport-url", "rabbit://nova:s3cret-Hw32@host2:{port}/").exit_code == 0
    assert store.list_cells()[0].reveal_transport_url() == "rabbit://nova:s3cret-Hw32@host2:{port}/"


def test_uuid_is_printed(cell_v2: Manage, nova: NovaCell, store: Store) -> None:
    """With --verbose the uuid of the cell is on stdout if there was something to do."""
    nova.add_hosts(["a"])
    answer = cell_v2("map_cell_and_hosts", "--verbose")
    assert answer.out == f"{store.list_cells()[0].uuid}\n"
    assert cell_v2("map_cell_and_hosts", "--verbose").out == ""


def test_rows(cell_v2: Manage, nova: NovaCell, store: Store) -> None:
    """The hosts are there as rows."""
    nova.add_hosts(["a"])
    answer = cell_v2("map_cell_and_hosts", "--name", "cell1", "-f", "json")
    row = {"Hostname": "a", "Cell Name": "cell1", "Cell UUID": store.list_cells()[0].uuid, "State": "mapped"}
    assert json.loads(answer.out) == [row]


def test_no_hosts(cell_v2: Manage, nova: NovaCell, store: Store) -> None:
    """Without hosts no cell is recorded; that is no failure."""
    answer = cell_v2("map_cell_and_hosts")
    assert (answer.exit_code, answer.out, store.list_cells()) == (0, "", [])
    assert notes(answer) == ["no host is in [database] connection yet: run this again when the first one is"]


def test_again(cell_v2: Manage, nova: NovaCell, store: Store) -> None:
    """Run again it changes nothing, and maps what is new to the same cell."""
    nova.add_hosts(["a"])
    cell_v2("map_cell_and_hosts", "--name", "cell1")
    answer = cell_v2("map_cell_and_hosts", "--name", "another")
    assert (answer.exit_code, notes(answer)) == (0, ["no host was to be mapped"])
    nova.add_hosts(["b"])
    assert cell_v2("map_cell_and_hosts").exit_code == 0
    assert names(store) == {"a": "cell1", "b": "cell1"}
    assert len(store.list_cells()) == 1


def test_cell_that_is_recorded_already(cell_v2: Manage, nova: NovaCell, store: Store, tmp_path: Path) -> None:
    """A cell that create_cell has recorded is taken, however its database is written; nova-manage makes a second."""
    nova.add_hosts(["a"])
    database = f"sqlite:///{tmp_path}/../{tmp_path.name}/nova.sqlite?timeout=5"
    store.create_cell(name="mine", transport_url="rabbit://other/", database_connection=database)
    assert cell_v2("map_cell_and_hosts", "--name", "cell1").exit_code == 0
    assert names(store) == {"a": "mine"}
    assert len(store.list_cells()) == 1


def test_cell_of_which_nobody_knows_where_it_is(cell_v2: Manage, nova: NovaCell, store: Store) -> None:
    """A record that can't be made out is none of the same database, and no reason to stop."""
    nova.add_hosts(["a"])
    store.create_cell(name="lost", transport_url="rabbit://other/", database_connection="env:NOT_THERE_AT_ALL")
    assert cell_v2("map_cell_and_hosts", "--name", "cell1").exit_code == 0
    assert names(store) == {"a": "cell1"}


def test_cell_of_the_mapped_hosts(cell_v2: Manage, nova: NovaCell, store: Store, tmp_path: Path) -> None:
    """Where no cell is recorded with the database, the one is taken whose hosts these are, if it has them all."""
    nova.add_hosts(["a", "b"])
    (tmp_path / "alias.sqlite").hardlink_to(tmp_path / "nova.sqlite")
    cell = store.create_cell(
        name="alias", transport_url="rabbit://other/", database_connection=f"sqlite:///{tmp_path}/alias.sqlite"
    )
    store.create_host("a", cell_id=cell.id)
    assert cell_v2("map_cell_and_hosts").exit_code == 0
    assert names(store) == {"a": "alias", "b": "alias"}
    assert len(store.list_cells()) == 1


def test_cell_of_the_mapped_hosts_is_another(cell_v2: Manage, nova: NovaCell, store: Store, tmp_path: Path) -> None:
    """A host that is not in the database of the cell of the others is not mapped to it."""
    nova.add_hosts(["a", "b"])
    NovaCell(f"sqlite:///{tmp_path}/other.sqlite").add_hosts(["a"], mapped=1)
    cell = store.create_cell(
        name="other", transport_url="rabbit://other/", database_connection=f"sqlite:///{tmp_path}/other.sqlite"
    )
    store.create_host("a", cell_id=cell.id)
    answer = cell_v2("map_cell_and_hosts", "-f", "json")
    assert (answer.exit_code, names(store), len(store.list_cells())) == (3, {"a": "other"}, 1)
    assert [(row["Hostname"], row["State"]) for row in json.loads(answer.out)] == [("a", "already"), ("b", "refused")]
    assert notes(answer)[0] == (
        "not mapped: b: in [database] connection, and not in the database of cell other, "
        "which others of there are mapped to"
    )


def test_hosts_of_several_cells(cell_v2: Manage, nova: NovaCell, store: Store) -> None:
    """Where the hosts are mapped to several cells, none of which has the database, nobody knows which it is."""
    nova.add_hosts(["a", "b", "c"])
    for name, host in (("one", "a"), ("two", "b")):
        cell = store.create_cell(
            name=name, transport_url=f"rabbit://{name}/", database_connection=f"sqlite:///{name}.db"
        )
        store.create_host(host, cell_id=cell.id)
    answer = cell_v2("map_cell_and_hosts")
    assert (answer.exit_code, len(store.list_hosts()), len(store.list_cells())) == (3, 2, 2)
    assert notes(answer) == [
        "hosts that are in [database] connection are mapped to several cells: one, two; delete those that are wrong"
    ]


def test_queue_of_another_cell(cell_v2: Manage, nova: NovaCell, store: Store) -> None:
    """A new cell is refused that would share its queue with another."""
    nova.add_hosts(["a"])
    store.create_cell(name="other", transport_url=QUEUE, database_connection="sqlite:////other.db")
    for how in ([], ["--dry-run"]):
        answer = cell_v2("map_cell_and_hosts", *how)
        assert (answer.exit_code, len(store.list_cells()), store.list_hosts()) == (2, 1, [])
        assert notes(answer) == ["cell other has that message queue already"]


def test_braces_in_the_configured_url(cell_v2: Manage, configuration: Path, store: Store, tmp_path: Path) -> None:
    """A brace in the service's own URL is no template, and the cell is known again by it."""
    NovaCell(f"sqlite:///{tmp_path}/no{{va}}.sqlite").add_hosts(["a"])
    configuration.write_text(configuration.read_text().replace("/nova.sqlite", "/no{va}.sqlite"))
    assert [cell_v2("map_cell_and_hosts").exit_code for _ in range(2)] == [0, 0]
    (cell,) = store.list_cells()
    assert [mapping.host for mapping in store.list_hosts(cell.id)] == ["a"]


def test_database_of_cell0(cell_v2: Manage, nova: NovaCell, store: Store, tmp_path: Path) -> None:
    """The database of cell0 can't be that of a cell with hosts."""
    nova.add_hosts(["a"])
    database = f"sqlite:///{tmp_path}/nova.sqlite"
    store.create_cell(name="cell0", uuid=CELL0_UUID, transport_url="none:///", database_connection=database)
    assert cell_v2("map_cell_and_hosts").exit_code == 2
    assert store.list_hosts() == []


@pytest.mark.parametrize("command", ["map_cell_and_hosts", "simple_cell_setup"])
@pytest.mark.parametrize("missing", ["transport_url", "connection"])
def test_missing_url(
    cell_v2: Manage, nova: NovaCell, configuration: Path, store: Store, command: str, missing: str
) -> None:
    """Without a URL the option is named, and nothing is recorded."""
    nova.add_hosts(["a"])
    lines = configuration.read_text().splitlines()
    configuration.write_text("\n".join(line for line in lines if not line.startswith(missing) or "api" in line))
    answer = cell_v2(command)
    assert (answer.exit_code, answer.out, store.list_cells()) == (1, "", [])
    assert [missing in line for line in notes(answer)] == [True]


@pytest.mark.parametrize("command", ["map_cell_and_hosts", "simple_cell_setup"])
def test_url_that_nobody_can_use(cell_v2: Manage, nova: NovaCell, store: Store, command: str) -> None:
    """A URL that no cell can have is refused before anything is done."""
    nova.add_hosts(["a"])
    assert cell_v2(command, "--transport-url", "nonsense").exit_code == 1
    assert store.list_cells() == []


def test_database_that_is_down(cell_v2: Manage, configuration: Path, store: Store, tmp_path: Path) -> None:
    """Where the database does not answer nothing is recorded."""
    configuration.write_text(configuration.read_text().replace("/nova.sqlite", "/none/there.sqlite"))
    answer = cell_v2("map_cell_and_hosts")
    assert (answer.exit_code, store.list_cells()) == (255, [])
    assert notes(answer) == ["cell of [database] connection: its database does not answer (OperationalError)"]


def test_recorded_cell_that_is_down(cell_v2: Manage, configuration: Path, store: Store, tmp_path: Path) -> None:
    """Nor is it taken for one without hosts where it is recorded already."""
    configuration.write_text(configuration.read_text().replace("/nova.sqlite", "/none/there.sqlite"))
    database = f"sqlite:///{tmp_path}/none/there.sqlite"
    store.create_cell(name="down", transport_url="rabbit://other/", database_connection=database)
    trouble = "cell down: its database does not answer (OperationalError): its hosts were not looked at"
    answer = cell_v2("map_cell_and_hosts")
    assert (answer.exit_code, notes(answer)) == (255, [trouble])
    answer = cell_v2("simple_cell_setup")
    assert (answer.exit_code, notes(answer)[-1]) == (255, trouble)


@pytest.mark.parametrize("recorded", [False, True])
def test_dry_run(cell_v2: Manage, nova: NovaCell, store: Store, tmp_path: Path, recorded: bool) -> None:
    """A dry run says what would be mapped, and changes nothing."""
    nova.add_hosts(["a"])
    uuid = ""
    if recorded:
        uuid = store.create_cell(
            name="new", transport_url="rabbit://other/", database_connection=f"sqlite:///{tmp_path}/nova.sqlite"
        ).uuid
    answer = cell_v2("map_cell_and_hosts", "--name", "new", "--dry-run", "--verbose", "-f", "json")
    row = {"Hostname": "a", "Cell Name": "new", "Cell UUID": uuid, "State": "would be mapped"}
    assert (answer.exit_code, json.loads(answer.out)) == (0, [row])
    assert notes(answer) == [f"hosts that would be mapped to {f'cell {uuid}' if recorded else 'a new cell'}: 1"]
    assert (len(store.list_cells()), store.list_hosts(), nova.marks()) == (recorded, [], {"a": 0})


# --- simple_cell_setup


def test_whole_setup(cell_v2: Manage, nova: NovaCell, at_cell0: NovaCell, store: Store, tmp_path: Path) -> None:
    """cell0 and the cell are recorded, and hosts and instances mapped to the cell."""
    nova.add_hosts(["a", "b"])
    for uuid in INSTANCES:
        nova.add_instance(uuid, "a")
    answer = cell_v2("simple_cell_setup")
    cell0, cell = store.list_cells()
    assert (answer.exit_code, answer.out) == (0, "")
    assert (cell0.uuid, cell0.name) == (CELL0_UUID, "cell0")
    assert cell0.reveal_database_connection() == f"sqlite:///{tmp_path}/nova.sqlite_cell0"
    assert {mapping.cell_id for mapping in store.list_hosts()} == {cell.id}
    assert [mapping.instance_uuid for mapping in store.list_instances(cell_id=cell.id)] == INSTANCES
    assert not any("cell0" in line for line in notes(answer))


def test_whole_setup_again(cell_v2: Manage, nova: NovaCell, at_cell0: NovaCell, store: Store) -> None:
    """Run again it changes nothing."""
    nova.add_hosts(["a"]).add_instance(INSTANCES[0], "a")
    cell_v2("simple_cell_setup")
    before = (store.list_cells(), store.list_hosts(), store.list_instances(), nova.marks())
    answer = cell_v2("simple_cell_setup")
    assert (answer.exit_code, answer.out) == (0, "")
    assert (store.list_cells(), store.list_hosts(), store.list_instances(), nova.marks()) == before
    assert notes(answer)[:2] == ["cell0 is recorded already, and was left as it is", "no host was to be mapped"]


def test_setup_without_hosts(cell_v2: Manage, nova: NovaCell, at_cell0: NovaCell, store: Store) -> None:
    """Without hosts there is cell0 and nothing else, and that is a failure."""
    nova.add_instance(INSTANCES[0], "a")
    answer = cell_v2("simple_cell_setup")
    assert (answer.exit_code, answer.out) == (1, "")
    assert [cell.uuid for cell in store.list_cells()] == [CELL0_UUID]
    assert (store.list_hosts(), store.list_instances()) == ([], [])


def test_setup_without_hosts_in_a_recorded_cell(cell_v2: Manage, nova: NovaCell, store: Store, tmp_path: Path) -> None:
    """That the cell is recorded does not make it one with hosts."""
    database = f"sqlite:///{tmp_path}/nova.sqlite"
    store.create_cell(name="mine", transport_url="rabbit://other/", database_connection=database)
    assert cell_v2("simple_cell_setup").exit_code == 1
    assert cell_v2("map_cell_and_hosts").exit_code == 0


def test_cell0_without_tables(cell_v2: Manage, nova: NovaCell, tmp_path: Path) -> None:
    """That the tables of cell0 are missing is said, with what makes them, and keeps nothing from being done."""
    nova.add_hosts(["a"])
    answer = cell_v2("simple_cell_setup")
    assert answer.exit_code == 0
    assert notes(answer)[0] == (
        "cell cell0: the cell's database has no table 'instances': make it, or set [cellmw_tables] instances_table: "
        "no instance can be kept there yet; see that the database is there, and make its tables "
        "(Nova: `nova-manage db sync`)"
    )


def test_cell0_that_is_down(cell_v2: Manage, nova: NovaCell, store: Store, tmp_path: Path) -> None:
    """So is it that the database of cell0 is not there."""
    nova.add_hosts(["a"])
    database = f"sqlite:///{tmp_path}/none/there.sqlite"
    store.create_cell(name="cell0", uuid=CELL0_UUID, transport_url="none:///", database_connection=database)
    answer = cell_v2("simple_cell_setup")
    assert (answer.exit_code, len(store.list_hosts())) == (0, 1)
    assert notes(answer)[1].startswith("cell cell0: its database does not answer (OperationalError): no instance can")


def test_setup_dry_run(cell_v2: Manage, nova: NovaCell, store: Store) -> None:
    """A dry run of all of it changes nothing, before and after there is a cell."""
    nova.add_hosts(["a"]).add_instance(INSTANCES[0], "a")
    answer = cell_v2("simple_cell_setup", "--dry-run")
    assert (answer.exit_code, store.list_cells(), nova.marks()) == (0, [], {"a": 0})
    assert notes(answer) == ["cell0 would be recorded", "hosts that would be mapped to a new cell: 1"]
    cell_v2("map_cell_and_hosts")
    assert cell_v2("simple_cell_setup", "--dry-run").exit_code == 0
    assert (len(store.list_cells()), store.list_instances()) == (1, [])


def test_setup_with_refused_hosts(cell_v2: Manage, nova: NovaCell, store: Store, tmp_path: Path) -> None:
    """Where it is not clear whose the hosts are no instance is mapped."""
    nova.add_hosts(["a", "b"]).add_instance(INSTANCES[0], "a")
    other = f"sqlite:///{tmp_path}/other.sqlite"
    NovaCell(other).add_hosts(["a"]).add_instance(INSTANCES[0], "a")
    cell = store.create_cell(name="other", transport_url="rabbit://other/", database_connection=other)
    store.create_host("a", cell_id=cell.id)
    assert cell_v2("simple_cell_setup").exit_code == 3
    assert store.list_instances() == []


def test_setup_with_instances_of_nobody(cell_v2: Manage, nova: NovaCell, at_cell0: NovaCell, store: Store) -> None:
    """The exit code of map_instances is that of the setup."""
    nova.add_hosts(["a"]).add_instance(INSTANCES[0], "a").run("UPDATE instances SET project_id = NULL")
    assert cell_v2("simple_cell_setup").exit_code == 3
