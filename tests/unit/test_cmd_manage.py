# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage`` as a shell sees it: what it prints, where, and its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from cellmw import engines
from cellmw.cell import CELL0_UUID
from cellmw.cmd.manage import main
from cellmw.credentials import KeyRepository, is_encrypted
from cellmw.store import Store, migrations
from tests import nova_schema
from tests.commands import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.commands import Answer

    Manage = Callable[..., Answer]

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

INSTANCE = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01"

CELL1 = [
    "--transport-url",
    "rabbit://user:s3cret@host1:5672/",
    "--database_connection",
    "mysql+pymysql://nova:s3cret@db/cell1",
]


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """A configuration file with nothing but the API database in it."""
    path = tmp_path / "cellmw.conf"
    path.write_text(f"[api_database]\nconnection = sqlite:///{tmp_path}/api.db\n")
    return path


@pytest.fixture
def unsynced(configuration: Path, capsys: pytest.CaptureFixture[str]) -> Manage:
    """Runs a command on an API database that was never synced."""

    return partial(run, capsys, configuration)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """The API database behind the commands."""
    with Store(engines.make_engine(f"sqlite:///{tmp_path}/api.db", {}, pre_ping=False)) as store:
        yield store


@pytest.fixture
def manage(unsynced: Manage, store: Store) -> Manage:
    """Runs a command on an empty API database."""
    migrations.sync(store.engine)
    return unsynced


# --- the program


def test_script_prints_nothing_but_its_answer(configuration: Path) -> None:
    """The installed script prints its result on stdout and nothing on stderr."""
    script = Path(sys.executable).with_name("cellmw-manage")
    command = [str(script), "--config-file", str(configuration), "api_db", "sync"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"the API database is at {migrations.newest()}\n", "")


def test_error_is_one_line_without_traceback(unsynced: Manage) -> None:
    """A failure is one line on stderr that says what to do, with an exit code that is not zero."""
    answer = unsynced("cell_v2", "list_cells")
    assert answer == (
        255,
        "",
        "cellmw-manage: the API database has no tables for cells yet: run `cellmw-manage api_db sync`\n",
    )


def test_unconfigured_database(configuration: Path, unsynced: Manage) -> None:
    """Without an API database every command says which option to set."""
    configuration.write_text("")
    answer = unsynced("cell_v2", "list_cells")
    assert answer.exit_code == 255
    assert answer.err == (
        "cellmw-manage: [api_database] connection is not set: set it to the URL of the API database\n"
    )


def test_database_url_that_nobody_can_read(configuration: Path, unsynced: Manage) -> None:
    """A malformed URL in the configuration is named by its option and not shown."""
    configuration.write_text("[api_database]\nconnection = mysql//nova:s3cret@db/api\n")
    answer = unsynced("api_db", "sync")
    assert (answer.exit_code, answer.err.count("\n"), "[api_database] connection" in answer.err) == (255, 1, True)
    assert "s3cret" not in answer.err


def test_missing_configuration_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A configuration file that is not there is one line."""
    assert main(["--config-file", f"{tmp_path}/none.conf", "cell_v2", "list_cells"]) == 255
    assert capsys.readouterr().err.count("\n") == 1


def test_configuration_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--config-dir is taken as by every oslo program."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "1.conf").write_text(f"[api_database]\nconnection = sqlite:///{tmp_path}/api.db\n")
    assert main(["--config-dir", f"{tmp_path}/etc", "api_db", "sync"]) == 0


def test_debug_shows_the_traceback(configuration: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """oslo.log's --debug is taken, and shows what an error came from."""
    assert main(["--debug", "--config-file", str(configuration), "cell_v2", "list_cells"]) == 255
    printed = capsys.readouterr()
    assert ("no such table" in printed.err, printed.out) == (True, "")


@pytest.mark.parametrize("arguments", [[], ["nope"], ["cell_v2"], ["cell_v2", "nope"], ["cell_v2", "delete_cell"]])
def test_arguments_that_nobody_can_read(manage: Manage, arguments: list[str]) -> None:
    """No command, half of one, an unknown one and a missing option exit with 2, as in nova-manage."""
    assert manage(*arguments).exit_code == 2


@pytest.mark.parametrize("arguments", [["-h"], ["cell_v2", "-h"], ["cell_v2", "create_cell", "--help"], ["help"]])
def test_help(manage: Manage, arguments: list[str]) -> None:
    """Help is there for the program, a family and a command."""
    answer = manage(*arguments)
    assert (answer.exit_code, answer.err) == (0, "")
    assert "create_cell" in answer.out


# --- api_db


def test_sync_says_the_version(unsynced: Manage) -> None:
    """Sync prints where the database is now."""
    assert unsynced("api_db", "sync") == (0, f"the API database is at {migrations.newest()}\n", "")


def test_sync_on_a_database_of_novas(unsynced: Manage, store: Store) -> None:
    """On a database that Nova manages, sync says that it left Nova's tables alone, and succeeds."""
    nova_schema.create_as_nova_does(store.engine)
    answer = unsynced("api_db", "sync")
    assert (answer.exit_code, answer.out.startswith("Nova's tables are left as they are;")) == (0, True)


def test_sync_to_an_unknown_version(unsynced: Manage) -> None:
    """A revision that there is not is an error."""
    assert unsynced("api_db", "sync", "17").exit_code == 255


def test_version(manage: Manage) -> None:
    """The version is printed alone, for scripts."""
    assert manage("api_db", "version") == (0, f"{migrations.newest()}\n", "")


def test_version_of_a_database_that_was_never_synced(unsynced: Manage) -> None:
    """None is what nova-manage prints there, too; what to do is said on stderr."""
    answer = unsynced("api_db", "version")
    assert (answer.exit_code, answer.out, "api_db sync" in answer.err) == (0, "None\n", True)


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
