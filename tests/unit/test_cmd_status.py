# SPDX-License-Identifier: Apache-2.0
"""``cellmw-status upgrade check`` as a shell sees it: each check where all is well and where it is not."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from oslo_config import cfg
from oslo_upgradecheck import upgradecheck

from cellmw import conf as options
from cellmw import engines
from cellmw.admin import readiness
from cellmw.cell import CELL0_UUID
from cellmw.cmd.status import main
from cellmw.credentials import Credentials, KeyRepository
from cellmw.exceptions import StoreUnavailable
from cellmw.store import Store, migrations, models
from tests.unit.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.usefixtures("logging_as_it_was"),
    # oslo.upgradecheck makes its table by an old name of prettytable's
    pytest.mark.filterwarnings("ignore:the 'ALL' constant is deprecated:DeprecationWarning"),
]

PASSWORD = "s3cret-Lk7w"

INSTANCE = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01"

SUCCESS, WARNING, FAILURE = (int(code) for code in upgradecheck.Code)


class Deployment:
    """A configuration file and the API database that it names. Lives as long as the test."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Make tables with nothing in them."""
        self.folder = folder
        self.file = folder / "cellmw.conf"
        self.url = f"sqlite:///{folder}/api.db"
        self.store = Store(engines.make_engine(self.url, {"sqlite_synchronous": False}, pre_ping=False))
        self._capsys = capsys
        migrations.sync(self.store.engine)
        self.configure()

    def configure(self, *lines: str, url: str | None = None) -> None:
        """Write the configuration file."""
        self.file.write_text("\n".join(["[api_database]", f"connection = {url or self.url}", *lines, ""]))

    def create(self, name: str, **record: Any) -> Any:
        """Record a cell."""
        urls = {
            "transport_url": f"rabbit://nova:{PASSWORD}@mq-{name}:5672/",
            "database_connection": f"mysql+pymysql://nova:{PASSWORD}@db/{name}",
        }
        return self.store.create_cell(name=name, **urls | record)

    def run(self, *arguments: str) -> tuple[Any, str, str]:
        """Run the command; return its exit code and what it has printed."""
        try:
            code = main(["--config-file", str(self.file), *arguments])
        except SystemExit as error:
            code = error.code
        return code, *self._capsys.readouterr()

    def checks(self) -> dict[str, tuple[int, str | None]]:
        """Run the checks, and return the code and the details of each; nothing else is said."""
        code, out, err = self.run("upgrade", "check", "--json")
        checks = {check["check"]: (check["result"], check["details"]) for check in json.loads(out)["checks"]}
        assert (code, err) == (max(result for result, _ in checks.values()), "")
        return checks

    def sql(self, statement: str) -> None:
        """Do something to the API database that no command does."""
        with self.store.engine.begin() as connection:
            connection.execute(sa.text(statement))


@pytest.fixture
def deployment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Deployment]:
    """A deployment with cell0 and a cell, about which there is nothing to say."""
    deployment = Deployment(tmp_path, capsys)
    with deployment.store:
        deployment.create("cell0", uuid=CELL0_UUID, transport_url="none:///")
        deployment.create("cell1")
        yield deployment


# --- the program


def test_all_is_well(deployment: Deployment) -> None:
    """A deployment that this release can go on with passes every check, and the exit code is 0."""
    assert set(deployment.checks().values()) == {(SUCCESS, None)}


def test_installed_script(deployment: Deployment) -> None:
    """The script that is installed runs the checks, and says nothing on stderr."""
    script = Path(sys.executable).with_name("cellmw-status")
    command = [str(script), "--config-file", str(deployment.file), "upgrade", "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Result: Success") == 7


def test_worst_result_is_the_exit_code(deployment: Deployment) -> None:
    """A warning makes it 1, and a failure 2, whatever else there is."""
    deployment.configure("[cellmw]", "no_such_option = 1")
    assert deployment.run("upgrade", "check")[0] == WARNING
    deployment.configure("[cellmw]", "no_such_option = 1", "mapping_ttl = soon")
    assert deployment.run("upgrade", "check")[0] == FAILURE


def test_missing_configuration_file(deployment: Deployment) -> None:
    """Where nothing could be checked the exit code is 255, with one line that says why."""
    deployment.file.unlink()
    code, out, err = deployment.run("upgrade", "check")
    assert (code, out, err.count("\n"), "cellmw.conf" in err) == (255, "", 1, True)


def test_arguments_that_can_not_be_read(deployment: Deployment) -> None:
    """They are quoted without the passwords in them."""
    code, out, err = deployment.run("upgrade", "check", f"--json=mysql://nova:{PASSWORD}@db/api")
    assert (code, out, PASSWORD in err, "***" in err) == (2, "", False, True)


def test_log_that_can_not_be_set_up(deployment: Deployment) -> None:
    """A broken log configuration is one line, too."""
    code, _, err = deployment.run("--log-config-append", str(deployment.folder / "none"), "upgrade", "check")
    assert (code, err.count("\n")) == (255, 1)


def test_what_should_not_happen(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody has thought of is one line without a traceback, and 255."""
    monkeypatch.setattr(migrations, "newest", lambda: 1 / 0)
    code, out, err = deployment.run("upgrade", "check")
    assert (code, out) == (255, "")
    assert err == "cellmw-status: ZeroDivisionError, which should not happen: `cellmw-status --debug` shows where\n"


# --- the configuration


def test_option_that_does_not_exist(deployment: Deployment) -> None:
    """What nobody reads is named, with what it may have been meant for."""
    deployment.configure(
        "[cellmw]",
        "maping_ttl = 5",
        "[cellmw_tables]",
        "zzz = 1",
        "[nova]",
        "anything = 1",
        "[api_database]",
        "novas_own = 1",
    )
    code, details = deployment.checks()["Configuration"]
    assert code == WARNING
    assert details == (
        "[cellmw] maping_ttl is no option of this release, and has no effect: rename it to mapping_ttl, or remove it; "
        "[cellmw_tables] zzz is no option of this release, and has no effect: remove it"
    )


def test_option_in_a_folder(deployment: Deployment) -> None:
    """The files of --config-dir are looked through as well."""
    (deployment.folder / "more").mkdir()
    (deployment.folder / "more" / "1.conf").write_text("[cellmw_database]\nconnection = x\n")
    _, out, _ = deployment.run("--config-dir", str(deployment.folder / "more"), "upgrade", "check")
    assert "[cellmw_database] connection is no option" in out


def test_option_in_a_folder_that_nobody_named(deployment: Deployment) -> None:
    """So are those of the folders that are read where none is named, as /etc/cellmw/cellmw.conf.d."""
    (deployment.folder / "cellmw.conf.d").mkdir()
    (deployment.folder / "cellmw.conf.d" / "1.conf").write_text("[cellmw_database]\nconnection = x\n")
    conf = cfg.ConfigOpts()
    folders = [str(deployment.folder / "cellmw.conf.d")]
    conf([], project="cellmw", default_config_files=[str(deployment.file)], default_config_dirs=folders)
    with readiness.Readiness(conf) as checks:
        (found,) = checks.configuration()
    assert found.text.startswith("[cellmw_database] connection is no option")


def test_option_that_was_renamed(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old name still works, and is named with the new one."""
    opt = cfg.StrOpt("new_name", deprecated_name="old_name", deprecated_group="old")
    ours = options.list_opts()
    monkeypatch.setattr(options, "list_opts", lambda: [*ours, ("cellmw_new", [opt])])
    deployment.configure("[old]", "old_name = x", "other = y")
    assert deployment.checks()["Configuration"] == (
        WARNING,
        "[old] old_name is called [cellmw_new] new_name now: rename it",
    )


def test_values_that_options_do_not_take(deployment: Deployment) -> None:
    """Each is named, in whatever group, and the value of a secret option is not shown."""
    deployment.configure(
        "[cellmw]",
        "mapping_ttl = soon",
        "[cellmw_database]",
        "max_pool_size = many",
        f"slave_connections = {PASSWORD}",
    )
    code, details = deployment.checks()["Configuration"]
    assert code == FAILURE
    assert [name in details for name in ("mapping_ttl", "max_pool_size", "slave_connections", PASSWORD)] == [
        True
    ] * 3 + [False]


def test_values_that_do_not_go_together(deployment: Deployment) -> None:
    """What is checked when a filter is made is checked here."""
    deployment.configure("[cellmw]", "allowed_remote_exmods = cellmw.exceptions")
    assert deployment.checks()["Configuration"][0] == FAILURE


def test_shared_cache_that_can_not_be_shared(deployment: Deployment) -> None:
    """The options of the cache are checked where there is to be one."""
    deployment.configure("[cellmw]", "shared_cache = true", f"shared_cache_secret = {PASSWORD * 4}")
    code, details = deployment.checks()["Configuration"]
    assert (code, "[cache] enabled" in details) == (FAILURE, True)


def test_shared_cache(deployment: Deployment) -> None:
    """One that is configured passes; it is not connected to."""
    cache = ["[cache]", "enabled = true", "backend = dogpile.cache.pymemcache", "memcache_servers = 127.0.0.1:1"]
    deployment.configure("[cellmw]", "shared_cache = true", f"shared_cache_secret = {PASSWORD * 4}", *cache)
    assert deployment.checks()["Configuration"] == (SUCCESS, None)


# --- the API database


def test_api_database_is_not_configured(deployment: Deployment) -> None:
    """Without one the option is named."""
    deployment.file.write_text("")
    code, details = deployment.checks()["API database"]
    assert (code, "[api_database] connection is not set" in details) == (FAILURE, True)


def test_api_database_of_a_cell_level_service(deployment: Deployment) -> None:
    """With role = cell it says where to run it instead."""
    deployment.configure("[cellmw]", "role = cell")
    code, details = deployment.checks()["API database"]
    assert (code, "role = api" in details) == (FAILURE, True)


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "mysql+pymysql"])
def test_api_database_that_does_not_answer(deployment: Deployment, driver: str) -> None:
    """It is one line in one check, without its URL; those that need it say that they were not made."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        deployment.configure(url=f"{driver}://nova:{PASSWORD}@127.0.0.1:{port.getsockname()[1]}/api")
        checks = deployment.checks()
    assert checks.pop("API database") == (
        FAILURE,
        "the API database does not answer, or refuses the connection: nobody listens there: "
        "start it, open the way to it, or record another URL: [api_database] connection",
    )
    assert {check: code for check, (code, _) in checks.items()} == {
        "Configuration": SUCCESS,
        "Cells": WARNING,
        "Records of cells": WARNING,
        "Cells that are one": WARNING,
        "Mappings": WARNING,
        "Libraries": SUCCESS,
    }
    assert checks["Cells"][1] == "not checked, as it needs the API database"


def test_api_database_that_is_frozen(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes the connection and says nothing is waited for once, and not without an end."""
    monkeypatch.setattr(readiness, "_PATIENCE", 0.1)
    asked, list_cells = [], Store.list_cells
    monkeypatch.setattr(Store, "list_cells", lambda *arguments: asked.append(1) or list_cells(*arguments))
    with socket.create_server(("127.0.0.1", 0)) as server:
        deployment.configure(url=f"mysql+pymysql://nova:{PASSWORD}@127.0.0.1:{server.getsockname()[1]}/api")
        checks = deployment.checks()
    assert checks["API database"][0] == FAILURE
    assert checks["API database"][1].startswith("the API database does not answer")
    assert asked == [1]
    assert checks["Mappings"] == (WARNING, "not checked, as it needs the API database")


def test_api_database_that_the_driver_gives_up(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the driver has given up connecting the tables are not waited for as long as it would wait for them."""
    released = threading.Event()

    def refuse(*_: object) -> Any:
        raise StoreUnavailable("the API database does not answer, or refuses the connection")

    monkeypatch.setattr(readiness, "_PATIENCE", 0.1)
    monkeypatch.setattr(Store, "list_cells", refuse)
    monkeypatch.setattr(migrations, "version", lambda _: released.wait(PATIENCE) and None)
    checks = deployment.checks()
    released.set()
    assert checks["API database"][0] == FAILURE
    assert checks["API database"][1].startswith("the API database does not answer: the deadline passed")
    assert checks["Cells"] == (WARNING, "not checked, as it needs the API database")


def test_api_database_that_was_never_synced(deployment: Deployment) -> None:
    """It is said how to make its tables."""
    deployment.configure(url=f"sqlite:///{deployment.folder}/empty.db")
    assert deployment.checks()["API database"] == (
        FAILURE,
        "the API database was never synced: run `cellmw-manage api_db sync`",
    )


def test_api_database_of_an_older_release(deployment: Deployment, tmp_path: Path) -> None:
    """Both revisions are named, and how to get to the newer one."""
    deployment.configure(url=f"sqlite:///{tmp_path}/old.db")
    with Store(engines.make_engine(f"sqlite:///{tmp_path}/old.db", {}, pre_ping=False)) as store:
        migrations.sync(store.engine, "5c1d0f8e2a47")
    assert deployment.checks()["API database"] == (
        FAILURE,
        f"the API database is at 5c1d0f8e2a47, and this release is for {migrations.newest()}: "
        "run `cellmw-manage api_db sync`",
    )


def test_api_database_of_a_later_release(deployment: Deployment) -> None:
    """A revision that this release has never heard of is not synced away."""
    deployment.sql(f"UPDATE {migrations.VERSION_TABLE} SET version_num = 'fedcba987654'")
    assert deployment.checks()["API database"] == (
        FAILURE,
        "the API database is at fedcba987654, which is of a later release than this: install that",
    )


def test_tables_and_columns_that_are_gone(deployment: Deployment) -> None:
    """What the newest revision should have and the database has not is named."""
    deployment.sql("DROP TABLE host_mappings")
    deployment.sql("ALTER TABLE cell_mappings DROP COLUMN name")
    code, details = deployment.checks()["API database"]
    assert code == FAILURE
    assert details.startswith(
        "the API database lacks the column name of cell_mappings, the table host_mappings: restore"
    )


# --- the cells


def test_no_cells(deployment: Deployment) -> None:
    """An empty record is a failure that says which two commands are missing."""
    for cell in deployment.store.list_cells():
        deployment.store.delete_cell(cell.uuid)
    assert deployment.checks()["Cells"] == (
        FAILURE,
        "cell0 is not recorded: run `cellmw-manage cell_v2 map_cell0`; "
        "no cell but cell0 is recorded: run `cellmw-manage cell_v2 create_cell`",
    )


@pytest.mark.parametrize(("left", "command"), [("cell0", "create_cell"), ("cell1", "map_cell0")])
def test_one_kind_of_cell_is_missing(deployment: Deployment, left: str, command: str) -> None:
    """cell0 is not enough, nor is any other cell without it."""
    for cell in deployment.store.list_cells():
        if cell.name != left:
            deployment.store.delete_cell(cell.uuid)
    code, details = deployment.checks()["Cells"]
    assert (code, details.endswith(f"run `cellmw-manage cell_v2 {command}`"), ";" in details) == (FAILURE, True, False)


def test_cells_of_a_file(deployment: Deployment) -> None:
    """Where the cells are in a file it is the file that is checked."""
    path = deployment.folder / "cells.json"
    cells = [{"id": 1, "uuid": CELL0_UUID, "transport_url": "none:///", "database_connection": "mysql+pymysql://db/0"}]
    path.write_text(json.dumps({"cells": cells}))
    path.chmod(0o600)
    deployment.configure("[cellmw]", f"cells_config = {path}")
    assert deployment.checks()["Cells"][0] == FAILURE


def test_file_of_cells_that_can_not_be_read(deployment: Deployment) -> None:
    """It is a failure that names the file."""
    deployment.configure("[cellmw]", f"cells_config = {deployment.folder}/none.json")
    code, details = deployment.checks()["Cells"]
    assert (code, "none.json" in details) == (FAILURE, True)


# --- their records


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"transport_url": "rabbit://mq:port/"}, "its transport URL: its port is not a number"),
        ({"database_connection": "nosuch://db/x"}, "its database URL: SQLAlchemy knows no database"),
        ({"transport_url": f"env:NO_{PASSWORD[:2]}"}, "its transport URL can't be read: "),
        ({"database_connection": "mysql+pymysql://{username}@db/x"}, "its database connection can't be filled in"),
        ({"database_connection": ""}, "its database connection is missing"),
    ],
)
def test_url_that_nobody_can_use(deployment: Deployment, record: dict[str, str], reason: str) -> None:
    """It is a failure for its cell that says why, and by which command it is corrected."""
    deployment.create("cell2", **record)
    code, details = deployment.checks()["Records of cells"]
    assert (code, details.startswith(f"cell cell2: {reason}"), details.count(";")) == (FAILURE, True, 0)
    assert details.endswith("`cellmw-manage cell_v2 update_cell`")


def test_doubtful_url(deployment: Deployment) -> None:
    """What works, and perhaps not as it was meant, is a warning."""
    deployment.create("cell2", transport_url=f"rabbit://nova:{PASSWORD}@mq2:5671/?ssl=true")
    code, details = deployment.checks()["Records of cells"]
    assert (code, details.startswith("cell cell2: its transport URL: it has TLS without")) == (WARNING, True)


def test_encrypted_record(deployment: Deployment, conf: cfg.ConfigOpts) -> None:
    """One whose key is there passes; one whose key is not is a failure."""
    keys = KeyRepository(str(deployment.folder / "keys"))
    keys.setup()
    url = Credentials(str(keys.folder), conf).protect(f"rabbit://nova:{PASSWORD}@mq2:5672/")
    deployment.create("cell2", transport_url=url)
    assert "set [cellmw] credential_keys" in deployment.checks()["Records of cells"][1]
    deployment.configure("[cellmw]", f"credential_keys = {keys.folder}")
    assert deployment.checks()["Records of cells"] == (SUCCESS, None)


def test_template(deployment: Deployment) -> None:
    """One that can be filled in from the configuration passes."""
    deployment.create("cell2", transport_url="rabbit://{username}:{password}@mq2:{port}/")
    deployment.configure("[DEFAULT]", f"transport_url = rabbit://nova:{PASSWORD}@mq:5672/")
    assert deployment.checks()["Records of cells"] == (SUCCESS, None)


def test_file_that_has_to_be_corrected(deployment: Deployment) -> None:
    """Where the cells are in a file, that is where they are corrected."""
    path = deployment.folder / "cells.json"
    cell = {"id": 1, "uuid": INSTANCE, "name": "cell1", "transport_url": "none:///", "database_connection": "nosuch://"}
    path.write_text(json.dumps({"cells": [cell]}))
    path.chmod(0o600)
    deployment.configure("[cellmw]", f"cells_config = {path}")
    code, details = deployment.checks()["Records of cells"]
    assert (code, details.endswith(f": correct it in {path}")) == (FAILURE, True)


# --- cells that are one


def test_two_cells_with_one_database(deployment: Deployment) -> None:
    """However their URLs are written, and whoever logs in there."""
    deployment.create("cell2", database_connection=f"mysql+pymysql://other:{PASSWORD}@DB:3306/cell1?charset=utf8")
    code, details = deployment.checks()["Cells that are one"]
    assert (code, details.startswith("cell cell1: it has the same database as cell cell2: ")) == (FAILURE, True)


def test_two_cells_that_may_be_one(deployment: Deployment) -> None:
    """Names that mean this machine, and in another's URL may mean another, are a warning."""
    deployment.create("cell2", database_connection="mysql+pymysql://localhost/cell2")
    deployment.create("cell3", database_connection="mysql+pymysql://127.0.0.1/cell2")
    assert deployment.checks()["Cells that are one"][0] == WARNING


def test_two_cells_with_one_queue(deployment: Deployment) -> None:
    """They are named once, however many hosts they share."""
    deployment.create("cell2", transport_url="rabbit://a:5672,b:5672,c:5672/")
    deployment.create("cell3", transport_url="rabbit://b:5672,c:5672/")
    code, details = deployment.checks()["Cells that are one"]
    assert (code, details.count("cell cell2: it has the same message queue as cell cell3"), details.count(";")) == (
        FAILURE,
        1,
        0,
    )


def test_cells_without_a_queue_share_none(deployment: Deployment) -> None:
    """Any number of cells may have no message queue; a URL that can't be made out is not compared."""
    deployment.create("cell2", transport_url="none:///")
    deployment.create("cell3", transport_url="", database_connection="")
    deployment.create("cell4", transport_url="rabbit://mq:port/", database_connection="x")
    assert deployment.checks()["Cells that are one"] == (SUCCESS, None)


# --- the mappings


def test_mappings_of_cells_that_are_not_recorded(deployment: Deployment) -> None:
    """Instances and hosts are counted by the cell that is gone; those that are being built have none to miss."""
    cell1 = deployment.store.list_cells()[1]
    for number, cell_id in enumerate([cell1.id, None, 77, 77, 78]):
        deployment.store.create_instance(f"{INSTANCE[:-1]}{number}", project_id="p", cell_id=cell_id)
    deployment.store.create_host("host1", cell_id=cell1.id)
    deployment.store.create_host("host2", cell_id=77)
    code, details = deployment.checks()["Mappings"]
    assert code == FAILURE
    assert [text.partition(", ")[0] for text in details.split("; there")] == [
        "there are 2 instances mapped to cell id 77",
        " is 1 instance mapped to cell id 78",
        " is 1 host mapped to cell id 77",
    ]


# --- the libraries


@pytest.fixture
def requires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the installed package require these instead."""

    def require(*requirements: str) -> None:
        folder = tmp_path / "site" / "cellmw-1.dist-info"
        folder.mkdir(parents=True)
        lines = [
            "Metadata-Version: 2.1",
            "Name: cellmw",
            "Version: 1",
            *(f"Requires-Dist: {one}" for one in requirements),
        ]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(tmp_path / "site")

    return require


def test_libraries_that_were_not_tested(deployment: Deployment, requires: Callable[..., None]) -> None:
    """A version outside of what the package asks for is a warning, and so is a library that is missing."""
    requires("SQLAlchemy>=99", "WebOb<1", "alembic>=1", "no-such-library>=3", 'PyMySQL>=99; extra == "mysql"')
    code, details = deployment.checks()["Libraries"]
    assert code == WARNING
    assert [text.partition(" ")[0] for text in details.split("; ")] == [
        "SQLAlchemy",
        "WebOb",
        "no-such-library",
        "PyMySQL",
    ]
    assert "no-such-library is not installed: install no-such-library>=3" in details


def test_libraries_that_nobody_needs_here(deployment: Deployment, requires: Callable[..., None]) -> None:
    """What an extra brings is looked at where it is installed; what only developers use is not."""
    requires('nova<1; extra == "nova"', 'ruff>=99; extra == "check"', 'SQLAlchemy>=99; python_version < "3"')
    assert deployment.checks()["Libraries"] == (SUCCESS, None)


def test_no_check_shows_a_password(deployment: Deployment) -> None:
    """What is wrong with a URL is said without it, in the table and in json."""
    deployment.create("cell2", database_connection=f"mysql+pymysql://nova:{PASSWORD}@@db/x")
    deployment.create("cell3", transport_url=f"rabbit://nova:{PASSWORD}#@mq3/")
    for arguments in ([], ["--json"]):
        code, out, err = deployment.run("upgrade", "check", *arguments)
        assert (code, PASSWORD in out + err) == (FAILURE, False)


def test_models_are_what_is_missed(deployment: Deployment) -> None:
    """Every table of the models is looked for."""
    with sa.create_engine("sqlite://").connect() as connection:
        missing = migrations.missing(connection.engine)
    assert missing == sorted(f"the table {name}" for name in models.metadata.tables)
