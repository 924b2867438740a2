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
from oslo_config import cfg

from cellmw import engines
from cellmw.cmd.command import Command
from cellmw.cmd.manage import Manage as Program
from cellmw.cmd.manage import main
from cellmw.store import Store, migrations
from tests import nova_schema
from tests.commands import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.commands import Manage

pytestmark = pytest.mark.usefixtures("logging_as_it_was")


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


@pytest.mark.parametrize("command", ["cell_v2 list_cells", "cell_v2 discover_hosts", "doctor", "layout", "verify"])
def test_configuration_of_a_cell_level_service(configuration: Path, manage: Manage, command: str) -> None:
    """By that of a service in a cell the API database is out of reach: that is one line, and not in the log as well."""
    urls = (
        f"[DEFAULT]\ntransport_url = memory://cell1/\n[database]\nconnection = sqlite:///{configuration.parent}/cell1\n"
    )
    configuration.write_text(f"{configuration.read_text()}{urls}[cellmw]\nrole = cell\n")
    answer = manage(*command.split())
    assert (answer.exit_code, answer.out) == (255, "")
    assert answer.err == (
        "cellmw-manage: the API database is out of reach of a cell-level service: do it in one with role = api in "
        "[cellmw]\n"
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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[api_database]\nconnection=sqlite:///api.db\npassword s3cret\n", "line 3: No ':' or '=' found"),
        (b"[api_database]\nconnection = mysql://u:s3cret\xff@h/", "not UTF-8"),
        (b"[api_database]\nconnection = mysql+pymysql://u:pa$s3cret@h/", "write $$ for a $"),
        (b"[api_database]\nconnection = mysql+pymysql://u:pa$$w@h/\nmax_pool_size = many", "max_pool_size"),
        (b"[DEFAULT]\nlog_file = /no/such/folder/cellmw.log", "/no/such/folder/cellmw.log"),
        (b"[DEFAULT]\ndefault_log_levels = cellmw", "options for logging"),
        (b"[DEFAULT]\nuse_syslog = true\nsyslog_log_facility = nope", "options for logging"),
    ],
    ids=["no option", "no text", "dollar", "no number", "no log", "no level", "no facility"],
)
def test_configuration_that_nobody_can_read(configuration: Path, unsynced: Manage, content: bytes, reason: str) -> None:
    """What is wrong with a configuration file is one line, which has nothing of its secrets."""
    configuration.write_bytes(content)
    answer = unsynced("cell_v2", "list_cells")
    assert (answer.exit_code, answer.out, answer.err.count("\n"), reason in answer.err) == (255, "", 1, True)
    assert "s3cret" not in answer.err


def test_configuration_file_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A folder in the place of a file is one line, too."""
    assert main(["--config-file", str(tmp_path), "cell_v2", "list_cells"]) == 255
    printed = capsys.readouterr().err
    assert (printed.count("\n"), "Is a directory" in printed) == (1, True)


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


@pytest.mark.parametrize("words", ["nonsense", "cell_v2 nonsense"])
def test_help_with_what_there_is_not(manage: Manage, words: str) -> None:
    """Help with a command that there is not is refused in one line, with 2."""
    expected = f"cellmw-manage: there is no command {words!r}: `cellmw-manage help` shows them\n"
    assert manage("help", *words.split()) == (2, "", expected)


@pytest.mark.parametrize("words", ["cell_v2", "cell_v2 create_cell", "doctor", "complete", "help", "--help"])
def test_help_with_what_there_is(manage: Manage, words: str) -> None:
    """Help is there for families, for commands, and for itself."""
    answer = manage("help", *words.split())
    assert (answer.exit_code, answer.err) == (0, "")
    assert answer.out


@pytest.mark.parametrize("arguments", [["-h"], ["cell_v2", "-h"], ["cell_v2", "create_cell", "--help"], ["help"]])
def test_help(manage: Manage, arguments: list[str]) -> None:
    """Help is there for the program, a family and a command."""
    answer = manage(*arguments)
    assert (answer.exit_code, answer.err) == (0, "")
    assert "create_cell" in answer.out


# --- every command

ONLY_READ = {
    "api_db version",
    "budget",
    "cell_v2 list_cells",
    "cell_v2 list_held",
    "cell_v2 list_hosts",
    "cell_v2 verify_instance",
    "doctor",
    "explain",
    "layout",
}
"""The commands that have nothing to write, and need no dry run."""

CLIFFS = {"complete", "help"}
"""What shows commands and is none."""


def commands() -> dict[str, Command]:
    """All commands of the program, by name."""
    app = Program(cfg.ConfigOpts())
    names = {name for name, _ in app.command_manager} - CLIFFS
    return {name: app.command_manager.find_command(name.split())[0](app, None) for name in sorted(names)}


@pytest.mark.parametrize("name", commands())
def test_command_shows_its_rows_in_every_format(name: str) -> None:
    """Each command takes -f, with the same formats, and no option of its own stands in the way of that."""
    parser = commands()[name].get_parser(name)
    for option in ("-f", "--format"):
        action = parser._option_string_actions[option]
        assert (action.dest, set(action.choices)) == ("formatter", {"csv", "json", "table", "value", "yaml"})
    of_all = Command(Program(cfg.ConfigOpts()), None).get_parser(name)._option_string_actions
    assert {option: parser._option_string_actions[option].dest for option in of_all} == {
        option: action.dest for option, action in of_all.items()
    }


def test_command_that_writes_can_be_run_dry() -> None:
    """Each command takes --dry-run, in both spellings, but for those that are known to write nothing."""
    dry = {
        name
        for name, command in commands().items()
        if {"--dry-run", "--dry_run"} <= command.get_parser(name)._option_string_actions.keys()
    }
    assert commands().keys() - dry == ONLY_READ


def test_command_has_help_and_takes_both_spellings() -> None:
    """Each says what it does in a line, and takes its options with hyphens and with underscores."""
    for name, command in commands().items():
        assert command.get_description().partition("\n")[0].endswith("."), name
        options = command.get_parser(name)._option_string_actions.keys() - {"--fit-width", "--max-width"}
        generic = Command(command.app, None).get_parser(name)._option_string_actions.keys()
        own = {option for option in options - generic if "_" in option or "-" in option[2:]}
        assert {option[2:].replace("_", "-") for option in own if "_" in option} == {
            option[2:] for option in own if "_" not in option
        }, name


# --- api_db


def test_sync_says_the_version(unsynced: Manage) -> None:
    """Sync prints where the database is now."""
    assert unsynced("api_db", "sync") == (0, f"the API database is at {migrations.newest()}\n", "")


def test_sync_on_a_database_of_novas(unsynced: Manage, store: Store) -> None:
    """On a database that Nova manages, sync says that it left Nova's tables alone, and succeeds."""
    nova_schema.create_as_nova_does(store.engine)
    answer = unsynced("api_db", "sync")
    assert (answer.exit_code, answer.out.startswith("Nova's tables are left as they are;")) == (0, True)


def test_sync_by_a_dry_run(unsynced: Manage, store: Store) -> None:
    """A dry run says where the tables would go, and makes none; with nothing to do it says so, too."""
    newest = migrations.newest()
    said = f"the API database would go from None to {newest}\n"
    assert unsynced("api_db", "sync", "--dry-run") == (0, said, "")
    assert sa.inspect(store.engine).get_table_names() == []
    assert json.loads(unsynced("api_db", "sync", "-f", "json").out) == [
        {"Version": newest, "Before": None, "Nova": False}
    ]
    assert unsynced("api_db", "sync", "--dry_run") == (0, f"the API database is at {newest}\n", "")


def test_sync_by_a_dry_run_to_a_version(unsynced: Manage, store: Store) -> None:
    """A dry run knows of a revision that it is asked for, of one that it is past, and of one that there is not."""
    first = "5c1d0f8e2a47"
    assert unsynced("api_db", "sync", "--dry-run", first).out.endswith(f"from None to {first}\n")
    migrations.sync(store.engine)
    assert unsynced("api_db", "sync", "--dry-run", first).out == f"the API database is at {migrations.newest()}\n"
    assert unsynced("api_db", "sync", "--dry-run", "17").exit_code == 255


def test_sync_by_a_dry_run_on_old_tables(unsynced: Manage, store: Store) -> None:
    """What the real one would refuse a dry run refuses."""
    with store.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE cell_mappings (id INTEGER)")
    assert "without" in unsynced("api_db", "sync", "--dry-run").err


@pytest.mark.parametrize("version", ["17", "-1", "+1"])
def test_sync_to_an_unknown_version(unsynced: Manage, version: str) -> None:
    """A revision that there is not is an error, as is one that is counted from where the database is."""
    answer = unsynced("api_db", "sync", "--", version)
    assert (answer.exit_code, f"no revision '{version}'" in answer.err) == (255, True)


def test_version(manage: Manage) -> None:
    """The version is printed alone, for scripts."""
    assert manage("api_db", "version") == (0, f"{migrations.newest()}\n", "")


def test_version_of_a_database_that_was_never_synced(unsynced: Manage) -> None:
    """None is what nova-manage prints there, too; what to do is said on stderr."""
    answer = unsynced("api_db", "version")
    assert (answer.exit_code, answer.out, "api_db sync" in answer.err) == (0, "None\n", True)
