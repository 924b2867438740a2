# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage cell_v2`` as a shell sees it: the records, what is printed, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from cellmw.cell import CELL0_UUID
from cellmw.credentials import KeyRepository, is_encrypted
from cellmw.store import Store

if TYPE_CHECKING:
    from tests.commands import Manage

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

INSTANCE = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01"

CELL1 = [
    "--transport-url",
    "rabbit://user:s3cret@host1:5672/",
    "--database_connection",
    "mysql+pymysql://nova:s3cret@db/cell1",
]


# --- cell_v2 create_cell


def test_create_cell_is_silent(manage: Manage, store: Store) -> None:
    """A cell is recorded as it was typed, and nothing is printed."""
    assert manage("cell_v2", "create_cell", "--name", "cell1", *CELL1) == (0, "", "")
    (cell,) = store.list_cells()
    assert (cell.name, cell.disabled) == ("cell1", False)
    assert cell.reveal_transport_url() == CELL1[1]
    assert cell.reveal_database_connection() == CELL1[3]


def test_create_cell_prints_the_uuid_when_asked(manage: Manage, store: Store) -> None:
    """--verbose prints the uuid and nothing else, for scripts."""
    answer = manage("cell_v2", "create_cell", "--verbose", *CELL1)
    assert answer == (0, f"{store.list_cells()[0].uuid}\n", "")


def test_create_cell_disabled(manage: Manage, store: Store) -> None:
    """A cell can be recorded as disabled."""
    manage("cell_v2", "create_cell", "--disabled", *CELL1)
    assert store.list_cells()[0].disabled


def test_create_cell_takes_both_spellings(manage: Manage) -> None:
    """Dashes and underscores are the same in an option."""
    options = ["--transport_url", CELL1[1], "--database-connection", CELL1[3]]
    assert manage("cell_v2", "create_cell", *options).exit_code == 0


def test_create_cell_from_the_configuration(configuration: Path, manage: Manage, store: Store) -> None:
    """What is not typed comes from the service's own options, and stdout has nothing of it."""
    with configuration.open("a") as file:
        file.write(f"[DEFAULT]\ntransport_url = {CELL1[1]}\n[database]\nconnection = {CELL1[3]}\n")
    answer = manage("cell_v2", "create_cell", "--verbose")
    (cell,) = store.list_cells()
    assert (answer.exit_code, answer.out) == (0, f"{cell.uuid}\n")
    assert (cell.reveal_transport_url(), cell.reveal_database_connection()) == (CELL1[1], CELL1[3])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x" * 256, "more than 255 characters"),
        ("cell1\ncell2", "control character"),
        ("\x1b[31mcell1", "control character"),
        ("cell\udcff", "not UTF-8"),
    ],
    ids=ascii,
)
def test_create_cell_refuses_names(manage: Manage, store: Store, name: str, reason: str) -> None:
    """A name that a server's column does not take, or that is no single line, is refused on every database."""
    answer = manage("cell_v2", "create_cell", "--name", name, *CELL1)
    assert (answer.exit_code, answer.err.count("\n"), reason in answer.err, store.list_cells()) == (1, 1, True, [])
    assert manage("cell_v2", "ensure_cell", "--name", name, *CELL1).err == answer.err
    uuid = manage("cell_v2", "create_cell", "--name", "Zoë-日本-" + "x" * 240, "--verbose", *CELL1).out.strip()
    assert manage("cell_v2", "update_cell", "--cell_uuid", uuid, "--name", name) == (2, "", answer.err)


@pytest.mark.parametrize("which", [1, 3])
def test_create_cell_refuses_urls_that_are_no_text(manage: Manage, store: Store, which: int) -> None:
    """Bytes that are no UTF-8 are refused before anything is done with them."""
    urls = [*CELL1]
    urls[which] += "\udcff"
    answer = manage("cell_v2", "create_cell", *urls)
    assert (answer.exit_code, "is not UTF-8" in answer.err, store.list_cells()) == (1, True, [])


def test_uuid_that_is_no_text(manage: Manage) -> None:
    """Nor are they looked up."""
    answer = manage("cell_v2", "delete_cell", "--cell_uuid", "\udcff")
    assert answer == (
        255,
        "",
        "cellmw-manage: the API database does not take what is to be looked up or written: it is not UTF-8\n",
    )


def test_create_cell_without_a_transport(manage: Manage) -> None:
    """Without a transport URL, typed or configured, nothing is recorded: oslo.messaging's default is no cell's."""
    answer = manage("cell_v2", "create_cell", *CELL1[2:])
    assert (answer.exit_code, "--transport-url" in answer.err) == (1, True)


def test_create_cell_without_a_database(manage: Manage) -> None:
    """Without a database URL, typed or configured, nothing is recorded."""
    answer = manage("cell_v2", "create_cell", *CELL1[:2])
    assert (answer.exit_code, "--database_connection" in answer.err) == (1, True)


@pytest.mark.parametrize(
    ("transport_url", "database_connection"),
    [
        ("s3cret", CELL1[3]),
        ("rabbit://user:s3cret/word@host:5672/", CELL1[3]),
        ("rabbit://user:s3cret@host:port/", CELL1[3]),
        ("rabbit://user:s3cret@[host/", CELL1[3]),
        (CELL1[1], "s3cret"),
        (CELL1[1], "mysql+pymysql://nova:s3cret"),
        (CELL1[1], "mysql+pymysql://nova:x@s3cret@db/cell1"),
        (CELL1[1], "nosuchdatabase://nova:s3cret@db/cell1"),
    ],
)
def test_create_cell_refuses_urls_that_nobody_can_read(
    manage: Manage, store: Store, transport_url: str, database_connection: str
) -> None:
    """A malformed URL is refused with the reason, in one line, and never stored or shown."""
    urls = ["--transport-url", transport_url, "--database_connection", database_connection]
    answer = manage("cell_v2", "create_cell", *urls)
    assert (answer.exit_code, answer.err.count("\n"), store.list_cells()) == (1, 1, [])
    assert "s3cret" not in answer.err


TEMPLATES = [
    "--transport-url",
    "rabbit://{username1}:{password1}@{hostname1}:{port1},{username2}:{password2}@{hostname2}/{path}",
    "--database_connection",
    "{scheme}://{username}:{password}@{hostname}:{port}/cell1?{query}",
]


def test_create_cell_takes_templates(configuration: Path, manage: Manage, store: Store) -> None:
    """A template is checked as what it is filled in to, and recorded as it is."""
    with configuration.open("a") as file:
        file.write("[DEFAULT]\ntransport_url = rabbit://u:s3cret@h1:1,u:s3cret@h2//\n")
        file.write(f"[database]\nconnection = {CELL1[3]}\n")
    assert manage("cell_v2", "create_cell", *TEMPLATES) == (0, "", "")
    (cell,) = store.list_cells()
    assert [cell.reveal_transport_url(), cell.reveal_database_connection()] == TEMPLATES[1::2]


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ("", "set [DEFAULT] transport_url to what the services have there"),
        ("rabbit://u:s3cret@h1/", "from [DEFAULT] transport_url: {hostname2}: the default URL has only 1 host"),
        ("rabbit://u:s3%2Fcret@h1,u:s3cret@h2/", "a / in a password"),
    ],
)
def test_create_cell_refuses_templates(
    configuration: Path, manage: Manage, store: Store, own: str, reason: str
) -> None:
    """A template that can't be filled in, or not to a URL that a cell can have, is refused."""
    with configuration.open("a") as file:
        file.write(f"[DEFAULT]\ntransport_url = {own}\n" if own else "")
    answer = manage("cell_v2", "create_cell", *TEMPLATES[:2], *CELL1[2:])
    assert (answer.exit_code, reason in answer.err, store.list_cells()) == (1, True, [])
    assert "s3" not in answer.err


def test_create_cell_keeps_braces(configuration: Path, manage: Manage, store: Store) -> None:
    """Braces in a configured URL are none of a template; two that were typed are one, as in Nova, with a note."""
    with configuration.open("a") as file:
        file.write("[DEFAULT]\ntransport_url = rabbit://u:s3{username}@h/\n")
    typed = manage("cell_v2", "create_cell", "--database_connection", "mysql+pymysql://u:s3{{@db/cell1")
    assert (typed.exit_code, "two braces" in typed.err, "s3" in typed.err) == (0, True, False)
    assert store.list_cells()[0].reveal_transport_url() == "rabbit://u:s3%7Busername%7D@h/"


def test_create_cell_without_a_queue(configuration: Path, manage: Manage) -> None:
    """A cell can do without a queue where somebody says so, not where it is only configured."""
    with configuration.open("a") as file:
        file.write("[DEFAULT]\ntransport_url = none:///\n")
    assert manage("cell_v2", "create_cell", *CELL1[2:]).exit_code == 1
    answer = manage("cell_v2", "create_cell", "--transport-url", "none:///", *CELL1[2:])
    assert (answer.exit_code, "no message queue" in answer.err) == (0, True)


def test_create_cell_warns(manage: Manage) -> None:
    """What is doubtful about a URL is noted, and the cell recorded."""
    answer = manage("cell_v2", "create_cell", "--transport-url", "rabbit://u:s3cret@h/?ssl=true", *CELL1[2:])
    assert (answer.exit_code, answer.out, "ssl_ca_file" in answer.err) == (0, "", True)


def test_create_cell_by_reference(manage: Manage, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference is recorded and shown as it is, once what it leads to has passed."""
    urls = ["--transport-url", "env:CELLMW_TEST_QUEUE", *CELL1[2:]]
    unset = manage("cell_v2", "create_cell", *urls)
    monkeypatch.setenv("CELLMW_TEST_QUEUE", "rabbit://u:s3cret@h#/")
    wrong = manage("cell_v2", "create_cell", *urls)
    assert (unset.exit_code, wrong.exit_code, store.list_cells()) == (1, 1, [])
    monkeypatch.setenv("CELLMW_TEST_QUEUE", "rabbit://u:s3cret@h/")
    assert manage("cell_v2", "create_cell", *urls) == (0, "", "")
    assert "env:CELLMW_TEST_QUEUE" in manage("cell_v2", "list_cells").out


def test_create_cell_encrypts(configuration: Path, tmp_path: Path, manage: Manage, store: Store) -> None:
    """Where there are keys, URLs are recorded encrypted, and shown as the id of their key."""
    keys = KeyRepository(str(tmp_path / "keys"))
    keys.setup()
    with configuration.open("a") as file:
        file.write(f"[cellmw]\ncredential_keys = {keys.folder}\n")
    assert manage("cell_v2", "create_cell", *CELL1).exit_code == 0
    assert manage("cell_v2", "create_cell", *CELL1).exit_code == 2
    assert manage("cell_v2", "map_cell0", "--database_connection", f"{CELL1[3]}_cell0").exit_code == 0
    assert is_encrypted(store.list_cells()[0].reveal_transport_url())
    shown = json.loads(manage("cell_v2", "list_cells", "-f", "json").out)
    encrypted = f"encrypted with key {keys.load().primary.id}"
    assert [cell["Database Connection"] for cell in shown] == [encrypted] * 2
    assert [cell["Transport URL"] for cell in shown] == [encrypted, "none:///"]


def test_create_cell_encrypts_nothing_that_nova_reads(
    configuration: Path, tmp_path: Path, manage: Manage, store: Store
) -> None:
    """In an API database that Nova uses nothing is recorded that Nova could not read."""
    KeyRepository(str(tmp_path / "keys")).setup()
    with configuration.open("a") as file:
        file.write(f"[cellmw]\ncredential_keys = {tmp_path}/keys\n")
    with store.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('b30f573d3377')")
    for command in (("create_cell", *CELL1), ("map_cell0", "--database_connection", CELL1[3])):
        answer = manage("cell_v2", *command)
        assert (answer.exit_code, "unset [cellmw] credential_keys" in answer.err) == (1, True)
    assert store.list_cells() == []


def test_list_cells_shows_a_broken_envelope(manage: Manage, store: Store) -> None:
    """An envelope that was cut off is shown as that."""
    store.create_cell(name="cell1", transport_url="cellmw:fernet:cut", database_connection="x")
    answer = manage("cell_v2", "list_cells", "-f", "value", "-c", "Transport URL")
    assert answer == (0, "encrypted, and cut off or changed\n", "")


@pytest.mark.parametrize(
    "shared",
    [
        ["--transport-url", "rabbit://other:x@HOST1/?heartbeat_rate=3"],
        ["--transport-url", "rabbit://u:p@host3:1,u:p@host1/"],
        ["--database_connection", "mysql+pymysql://other:x@DB:3306/cell1?charset=utf8"],
    ],
)
def test_create_cell_refuses_what_leads_to_the_same_place(manage: Manage, store: Store, shared: list[str]) -> None:
    """The same queue or database, written in another way, is refused like the same URL."""
    manage("cell_v2", "create_cell", "--name", "one", *CELL1)
    own = ["--transport-url", "rabbit://host2/", "--database_connection", "mysql+pymysql://db/cell2"]
    answer = manage("cell_v2", "create_cell", *own, *shared)
    assert (answer.exit_code, "cell one has that" in answer.err, len(store.list_cells())) == (2, True, 1)


def test_create_cell_beside_one_that_nobody_can_read(manage: Manage, store: Store) -> None:
    """A cell whose URLs can't be made out is not compared with, and that is noted."""
    store.create_cell(name="odd", transport_url="env:CELLMW_UNSET", database_connection="mysql://u:s3cret")
    answer = manage("cell_v2", "create_cell", *CELL1)
    assert (answer.exit_code, answer.err.count("cell odd:"), "s3cret" in answer.err) == (0, 2, False)


@pytest.mark.parametrize("shared", [CELL1[:2], CELL1[2:]])
def test_create_cell_refuses_what_another_cell_has(manage: Manage, shared: list[str]) -> None:
    """Two cells with the same queue or database are refused with 2, as by nova-manage."""
    manage("cell_v2", "create_cell", *CELL1)
    own = ["--transport-url", "rabbit://host2/", "--database_connection", "mysql+pymysql://db/cell2"]
    answer = manage("cell_v2", "create_cell", *own, *shared)
    assert (answer.exit_code, answer.err.count("\n"), "s3cret" in answer.err) == (2, 1, False)


# --- cell_v2 list_cells


def test_list_cells_masks_passwords(manage: Manage) -> None:
    """No format and no option shows a password."""
    manage("cell_v2", "create_cell", "--name", "cell1", *CELL1)
    for options in ([], ["--verbose"], ["-f", "json"], ["-f", "yaml"], ["-f", "csv"], ["-f", "value", "--verbose"]):
        answer = manage("cell_v2", "list_cells", *options)
        assert (answer.exit_code, "user:***@host1" in answer.out, "s3cret" in answer.out) == (0, True, False)


def test_list_cells_for_scripts(manage: Manage, store: Store) -> None:
    """As json, a cell has the columns of nova-manage."""
    manage("cell_v2", "create_cell", "--name", "cell1", *CELL1)
    assert json.loads(manage("cell_v2", "list_cells", "-f", "json").out) == [
        {
            "Name": "cell1",
            "UUID": store.list_cells()[0].uuid,
            "Transport URL": "rabbit://user:***@host1:5672/",
            "Database Connection": "mysql+pymysql://nova:***@db/cell1",
            "Disabled": False,
        }
    ]


def test_list_cells_by_name(manage: Manage) -> None:
    """Cells are sorted by name, those without one first."""
    for name, number in (("b", 1), ("a", 2), (None, 3)):
        urls = ["--transport-url", f"rabbit://host{number}/", "--database_connection", f"mysql+pymysql://db/{number}"]
        manage("cell_v2", "create_cell", *(["--name", name] if name else []), *urls)
    assert manage("cell_v2", "list_cells", "-f", "value", "-c", "Name").out == "\na\nb\n"


def test_list_cells_shows_a_cell_without_urls(manage: Manage, store: Store) -> None:
    """A record that somebody left incomplete is listed all the same."""
    manage("cell_v2", "create_cell", "--name", "cell1", *CELL1)
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE cell_mappings SET transport_url = NULL")
    assert json.loads(manage("cell_v2", "list_cells", "-f", "json").out)[0]["Transport URL"] == ""


# --- cell_v2 map_cell0


def test_map_cell0(manage: Manage, store: Store) -> None:
    """cell0 has its uuid, its name, the database that was typed, and no message queue."""
    assert manage("cell_v2", "map_cell0", "--database_connection", "mysql+pymysql://nova:s3cret@db/nova_cell0") == (
        0,
        "",
        "",
    )
    cell0 = store.get_cell(CELL0_UUID)
    assert (cell0.name, cell0.has_transport) == ("cell0", False)
    assert cell0.reveal_database_connection() == "mysql+pymysql://nova:s3cret@db/nova_cell0"


@pytest.mark.parametrize(
    ("connection", "of_cell0"),
    [
        ("mysql+pymysql://nova:s3cret@db/nova?charset=utf8", "mysql+pymysql://nova:s3cret@db/nova_cell0?charset=utf8"),
        ("postgresql://nova:p%40%2Fss@db:5433/nova", "postgresql://nova:p%40%2Fss@db:5433/nova_cell0"),
        ("sqlite:////var/lib/nova.db", "sqlite:////var/lib/nova.db_cell0"),
    ],
)
def test_map_cell0_from_the_configuration(
    configuration: Path, manage: Manage, store: Store, connection: str, of_cell0: str
) -> None:
    """By default cell0's database is called after the service's own, its password still encoded."""
    with configuration.open("a") as file:
        file.write(f"[database]\nconnection = {connection}\n")
    assert manage("cell_v2", "map_cell0").exit_code == 0
    cell0 = store.get_cell(CELL0_UUID).reveal_database_connection()
    assert sa.make_url(cell0) == sa.make_url(of_cell0)


def test_map_cell0_again(manage: Manage, store: Store) -> None:
    """A second map_cell0 changes nothing, and succeeds."""
    manage("cell_v2", "map_cell0", "--database_connection", "mysql+pymysql://db/nova_cell0")
    assert manage("cell_v2", "map_cell0", "--database_connection", "mysql+pymysql://db/other").exit_code == 0
    assert store.get_cell(CELL0_UUID).reveal_database_connection() == "mysql+pymysql://db/nova_cell0"


def test_map_cell0_on_another_cells_database(manage: Manage) -> None:
    """cell0 needs a database of its own."""
    manage("cell_v2", "create_cell", *CELL1)
    for connection in (CELL1[3], "mysql+pymysql://other@DB:3306/cell1"):
        assert manage("cell_v2", "map_cell0", "--database_connection", connection).exit_code == 2


def test_map_cell0_without_a_database(manage: Manage) -> None:
    """Without a database URL, typed or configured, nothing is recorded."""
    answer = manage("cell_v2", "map_cell0")
    assert (answer.exit_code, "--database_connection" in answer.err) == (1, True)


# --- cell_v2 delete_cell


@pytest.fixture
def uuid(manage: Manage, store: Store) -> str:
    """The uuid of a cell."""
    manage("cell_v2", "create_cell", *CELL1)
    return store.list_cells()[0].uuid


def test_delete_cell(manage: Manage, store: Store, uuid: str) -> None:
    """A cell that nothing is mapped to is deleted."""
    assert manage("cell_v2", "delete_cell", "--cell_uuid", uuid) == (0, "", "")
    assert store.list_cells() == []


def test_delete_an_unknown_cell(manage: Manage) -> None:
    """A cell that is not recorded exits with 1."""
    assert manage("cell_v2", "delete_cell", "--cell_uuid", INSTANCE).exit_code == 1


def test_delete_cell_with_hosts(manage: Manage, store: Store, uuid: str) -> None:
    """Hosts exit with 2, and --force forgets them."""
    store.create_host("compute1", cell_id=store.get_cell(uuid).id)
    refused = manage("cell_v2", "delete_cell", "--cell_uuid", uuid)
    forced = manage("cell_v2", "delete_cell", "--force", "--cell_uuid", uuid)
    assert (refused.exit_code, forced.exit_code, store.list_hosts()) == (2, 0, [])


def test_delete_cell_with_hosts_and_instances(manage: Manage, store: Store, uuid: str) -> None:
    """Where --force would be of no use it is not named."""
    cell_id = store.get_cell(uuid).id
    store.create_host("compute1", cell_id=cell_id)
    store.create_instance(INSTANCE, project_id="project", cell_id=cell_id)
    answer = manage("cell_v2", "delete_cell", "--cell_uuid", uuid)
    assert (answer.exit_code, "delete the instances" in answer.err, "--force" in answer.err) == (2, True, False)


def test_delete_cell_with_instances(manage: Manage, store: Store, uuid: str) -> None:
    """Instances exit with 3, forced or not."""
    store.create_instance(INSTANCE, project_id="p", cell_id=store.get_cell(uuid).id)
    refused = manage("cell_v2", "delete_cell", "--cell_uuid", uuid)
    forced = manage("cell_v2", "delete_cell", "--force", "--cell_uuid", uuid)
    assert (refused.exit_code, forced.exit_code, len(store.list_instances())) == (3, 3, 1)


def test_delete_cell_with_deleted_instances(manage: Manage, store: Store, uuid: str) -> None:
    """Instances that are queued for deletion exit with 4, and --force forgets them."""
    store.create_instance(INSTANCE, project_id="p", cell_id=store.get_cell(uuid).id)
    store.update_instance(INSTANCE, queued_for_delete=True)
    refused = manage("cell_v2", "delete_cell", "--cell_uuid", uuid)
    forced = manage("cell_v2", "delete_cell", "--force", "--cell_uuid", uuid)
    assert (refused.exit_code, forced.exit_code, store.list_instances()) == (4, 0, [])


def test_delete_cell_by_a_dry_run(manage: Manage, store: Store, uuid: str) -> None:
    """A dry run has the exit codes of the real one, and deletes nothing."""
    store.create_host("compute1", cell_id=store.get_cell(uuid).id)
    assert manage("cell_v2", "delete_cell", "--dry-run", "--cell_uuid", uuid).exit_code == 2
    answer = manage("cell_v2", "delete_cell", "--dry-run", "--force", "--cell_uuid", uuid)
    assert answer == (0, f"cell {uuid} would be forgotten\n", "")
    assert (len(store.list_cells()), len(store.list_hosts())) == (1, 1)


# --- new cells by a dry run, and outcomes for scripts


@pytest.mark.parametrize(
    ("command", "name"),
    [(["create_cell", "--name", "cell1", *CELL1], "cell1"), (["map_cell0", *CELL1[2:]], "cell0")],
)
def test_new_cell_by_a_dry_run(manage: Manage, store: Store, command: list[str], name: str) -> None:
    """A dry run says that there would be a cell, and records none; a cell that would be refused is."""
    answer = manage("cell_v2", *command, "--dry-run")
    assert (answer.exit_code, "would be recorded" in answer.out, store.list_cells()) == (0, True, [])
    (row,) = json.loads(manage("cell_v2", *command, "--dry-run", "-f", "json").out)
    assert (row["Name"], row["Outcome"], row["Changed"]) == (name, "would be created", True)
    store.create_cell(name="x", transport_url="none:///", database_connection=CELL1[3])
    assert manage("cell_v2", *command, "--dry-run").exit_code == 2


def test_outcomes_for_scripts(manage: Manage, store: Store) -> None:
    """With a format, each command that changes a record has one row, which says whether it did."""
    (created,) = json.loads(manage("cell_v2", "create_cell", "--name", "cell1", *CELL1, "-f", "json").out)
    (cell,) = store.list_cells()
    assert created == {"Name": "cell1", "UUID": cell.uuid, "Outcome": "created", "Columns": "", "Changed": True}
    cell0 = ["map_cell0", "--database_connection", "mysql+pymysql://db/nova_cell0", "-f", "value"]
    assert manage("cell_v2", *cell0, "-c", "Outcome").out == "created\n"
    assert manage("cell_v2", *cell0, "-c", "Changed").out == "False\n"
    deleted = manage("cell_v2", "delete_cell", "--cell_uuid", cell.uuid, "-f", "csv")
    assert deleted.out.splitlines()[1] == f'"cell1","{cell.uuid}","deleted","",True'


# --- cell_v2 update_cell


def record(store: Store, uuid: str) -> tuple[object, ...]:
    """What stands in the record of a cell."""
    cell = store.get_cell(uuid)
    return cell.name, cell.disabled, cell.reveal_transport_url(), cell.reveal_database_connection()


RECORD = (None, False, CELL1[1], CELL1[3])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--name", "new"], ("new", *RECORD[1:])),
        (["--disable"], (None, True, *RECORD[2:])),
        (["--transport-url", "rabbit://u:s3cret@h2/"], (None, False, "rabbit://u:s3cret@h2/", CELL1[3])),
        (["--transport_url", "none:///"], (None, False, "none:///", CELL1[3])),
        (["--database_connection", "mysql+pymysql://db/2"], (*RECORD[:3], "mysql+pymysql://db/2")),
        (["--database-connection", "mysql+pymysql://db/2", "--name", "n"], ("n", *RECORD[1:3], "mysql+pymysql://db/2")),
    ],
)
def test_update_cell(manage: Manage, store: Store, uuid: str, options: list[str], expected: tuple[object, ...]) -> None:
    """What is given is changed, and nothing else; stdout stays empty, and stderr says when services follow."""
    dry = manage("cell_v2", "update_cell", "--cell_uuid", uuid, *options, "--dry-run")
    assert (dry.exit_code, "would be changed" in dry.out, record(store, uuid)) == (0, True, RECORD)
    answer = manage("cell_v2", "update_cell", "--cell_uuid", uuid, *options)
    assert (answer.exit_code, answer.out, "within 10 s" in answer.err) == (0, "", True)
    assert ("SIGHUP" in answer.err) == ("--disable" in options)
    assert record(store, uuid) == expected
    assert "s3cret" not in answer.err + dry.err + dry.out


def test_update_cell_with_nothing_to_change(configuration: Path, manage: Manage, store: Store, uuid: str) -> None:
    """Without arguments, with empty ones and with those that are recorded nothing changes, whatever is configured."""
    with configuration.open("a") as file:
        file.write("[DEFAULT]\ntransport_url = rabbit://other/\n[database]\nconnection = mysql+pymysql://other/x\n")
    for options in ([], ["--name", "", "--transport-url", ""], CELL1, ["--enable"]):
        answer = manage("cell_v2", "update_cell", "--cell-uuid", uuid, *options)
        assert answer == (0, f"cell {uuid}: nothing to change\n", "")
        assert record(store, uuid) == RECORD


def test_update_cell_enables(manage: Manage, store: Store, uuid: str) -> None:
    """A disabled cell is enabled again; each time it is said that it is served as before."""
    for option, disabled in (("--disable", True), ("--enable", False)):
        answer = manage("cell_v2", "update_cell", "--cell_uuid", uuid, option)
        assert (answer.exit_code, store.get_cell(uuid).disabled) == (0, disabled)
        assert ("served as before" in answer.err, "SIGHUP" in answer.err) == (True, True)


def test_update_cell_for_scripts(manage: Manage, uuid: str) -> None:
    """The row has the new name, the columns that were changed, and whether any was."""
    command = ["cell_v2", "update_cell", "--cell_uuid", uuid, "--name", "n", "--disable", "-f", "json"]
    (changed,), (unchanged,) = json.loads(manage(*command).out), json.loads(manage(*command).out)
    assert changed == {"Name": "n", "UUID": uuid, "Outcome": "changed", "Columns": "name, disabled", "Changed": True}
    assert unchanged == {"Name": "n", "UUID": uuid, "Outcome": "unchanged", "Columns": "", "Changed": False}


def test_update_cell_by_a_uuid_in_capitals(manage: Manage, store: Store, uuid: str) -> None:
    """A cell is found however its uuid is typed."""
    assert manage("cell_v2", "update_cell", "--cell_uuid", uuid.upper(), "--name", "new").exit_code == 0
    assert store.get_cell(uuid).name == "new"


def test_update_an_unknown_cell(manage: Manage) -> None:
    """A cell that is not recorded exits with 1, whatever else is wrong."""
    answer = manage("cell_v2", "update_cell", "--cell_uuid", INSTANCE, "--enable", "--disable")
    assert (answer.exit_code, answer.err.count("\n")) == (1, 1)


@pytest.mark.parametrize(
    "bad",
    [
        ["--transport-url", "rabbit://user:s3cret/word@host:5672/"],
        ["--database_connection", "mysql+pymysql://nova:s3cret"],
        ["--transport-url", "env:CELLMW_UNSET"],
        ["--transport-url", "rabbit://{username}:s3cret@h/"],
    ],
)
def test_update_cell_refuses_urls_that_nobody_can_read(manage: Manage, store: Store, uuid: str, bad: list[str]) -> None:
    """A URL that nobody could use exits with 2, and nothing is changed, not even what could be."""
    answer = manage("cell_v2", "update_cell", "--cell_uuid", uuid, "--name", "new", *bad)
    assert (answer.exit_code, answer.err.count("\n"), record(store, uuid)) == (2, 1, RECORD)
    assert "s3cret" not in answer.err


@pytest.mark.parametrize(
    "shared",
    [["--transport-url", "rabbit://other:x@H2/"], ["--database_connection", "mysql+pymysql://other@DB:3306/cell2"]],
)
def test_update_cell_refuses_what_another_cell_has(manage: Manage, store: Store, uuid: str, shared: list[str]) -> None:
    """The queue or the database of another cell exits with 3, however it is written; one's own is no other's."""
    store.create_cell(name="two", transport_url="rabbit://h2/", database_connection="mysql+pymysql://db/cell2")
    for dry in ([], ["--dry-run"]):
        answer = manage("cell_v2", "update_cell", "--cell_uuid", uuid, *shared, *dry)
        assert (answer.exit_code, "cell two has that" in answer.err, record(store, uuid)) == (3, True, RECORD)
    own = ["--transport-url", "rabbit://other:s3cret@HOST1/", "--database_connection", f"{CELL1[3]}?charset=utf8"]
    assert manage("cell_v2", "update_cell", "--cell_uuid", uuid, *own).exit_code == 0


def test_update_cell_to_two_states(manage: Manage, store: Store, uuid: str) -> None:
    """--enable with --disable exits with 4, and changes nothing."""
    answer = manage("cell_v2", "update_cell", "--cell_uuid", uuid, "--name", "n", "--enable", "--disable")
    assert (answer.exit_code, record(store, uuid)) == (4, RECORD)


def test_update_cell_to_a_name_that_is_too_long(manage: Manage, store: Store, uuid: str) -> None:
    """A name that the column does not take exits with 2, on SQLite, which would take it, too."""
    assert manage("cell_v2", "update_cell", "--cell_uuid", uuid, "--name", "n" * 255).exit_code == 0
    answer = manage("cell_v2", "update_cell", "--cell_uuid", uuid, "--name", "n" * 256)
    assert (answer.exit_code, len(store.get_cell(uuid).name or "")) == (2, 255)


@pytest.mark.parametrize("state", ["--enable", "--disable"])
def test_update_the_state_of_cell0(manage: Manage, store: Store, state: str) -> None:
    """cell0 has no state: 5."""
    manage("cell_v2", "map_cell0", "--database_connection", "mysql+pymysql://db/nova_cell0")
    answer = manage("cell_v2", "update_cell", "--cell_uuid", CELL0_UUID, state)
    assert (answer.exit_code, store.get_cell(CELL0_UUID).disabled) == (5, False)


def test_update_cell_while_it_is_changed(
    manage: Manage, store: Store, uuid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody else has changed since it was read is not overwritten: 2; and where the cell is gone: 1."""
    work = [
        lambda: store.update_cell(uuid, transport_url="rabbit://moved/"),
        lambda: store.delete_cell(uuid),
    ]
    update = Store.update_cell

    def change_before(self: Store, *args: object, **values: object) -> object:
        monkeypatch.setattr(Store, "update_cell", update)
        work.pop(0)()
        return update(self, *args, **values)

    for exit_code in (2, 1):
        monkeypatch.setattr(Store, "update_cell", change_before)
        answer = manage("cell_v2", "update_cell", "--cell_uuid", uuid, "--name", "new")
        assert (answer.exit_code, answer.err.count("\n")) == (exit_code, 1)
        assert [cell.name for cell in store.list_cells()] in ([None], [])


def test_update_cell_beside_one_that_nobody_can_read(manage: Manage, store: Store, uuid: str) -> None:
    """Of a cell whose URLs can't be made out only that is noted which would have been compared."""
    store.create_cell(name="odd", transport_url="env:CELLMW_UNSET", database_connection="env:CELLMW_UNSET_TOO")
    for options, noted in (
        (["--name", "n"], 0),
        (["--transport-url", "rabbit://h2/"], 1),
        (["--database_connection", "mysql+pymysql://db/2"], 1),
    ):
        answer = manage("cell_v2", "update_cell", "--cell_uuid", uuid, *options)
        assert (answer.exit_code, answer.err.count("was not compared")) == (0, noted)


def test_update_cell_encrypts(configuration: Path, tmp_path: Path, manage: Manage, store: Store, uuid: str) -> None:
    """Where there are keys a new URL is recorded encrypted, and one that says the same is left as it is."""
    KeyRepository(str(tmp_path / "keys")).setup()
    with configuration.open("a") as file:
        file.write(f"[cellmw]\ncredential_keys = {tmp_path}/keys\n")
    assert "nothing to change" in manage("cell_v2", "update_cell", "--cell_uuid", uuid, *CELL1).out
    for said in ("", "nothing to change"):
        answer = manage("cell_v2", "update_cell", "--cell_uuid", uuid, "--transport-url", "rabbit://u:s3cret@h2/")
        assert (answer.exit_code, said in answer.out) == (0, True)
    _, _, transport, database = record(store, uuid)
    assert (is_encrypted(str(transport)), database) == (True, CELL1[3])


def test_update_a_cell_without_urls(manage: Manage, store: Store, uuid: str) -> None:
    """A record that somebody left incomplete can be completed."""
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE cell_mappings SET transport_url = NULL")
    assert manage("cell_v2", "update_cell", "--cell_uuid", uuid, *CELL1[:2]).exit_code == 0
    assert record(store, uuid) == RECORD
