# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage doctor`` as a shell, and a monitoring system, see it."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from oslo_config import cfg

import cellmw.admin.doctor
from cellmw.admin.doctor import CHECKS
from cellmw.cell import CELL0_UUID
from cellmw.cmd.doctor import quiet
from cellmw.cmd.manage import Manage
from cellmw.engines import make_engine
from cellmw.store import Store, migrations
from tests.commands import run
from tests.unit.somebody import Somebody
from tests.unit.test_admin_doctor_databases import TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.commands import Answer

    Run = Callable[..., Answer]

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

SECRET = "open-sesame"


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """A configuration file with nothing but the API database in it."""
    path = tmp_path / "cellmw.conf"
    path.write_text(f"[api_database]\nconnection = sqlite:///{tmp_path}/api.db\n")
    return path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An API database with cell0 and cell1, all of it as it should be."""
    for name in ("cell0", "cell1"):
        with closing(sqlite3.connect(tmp_path / name)) as connection, connection:
            for statement in TABLES:
                connection.execute(statement)
    with Store(make_engine(f"sqlite:///{tmp_path}/api.db", {}, pre_ping=False)) as store:
        migrations.sync(store.engine)
        store.create_cell(
            name="cell0", uuid=CELL0_UUID, transport_url="none:///", database_connection=f"sqlite:///{tmp_path}/cell0"
        )
        store.create_cell(
            name="cell1",
            uuid="uuid1",
            transport_url="memory://cell1/",
            database_connection=f"sqlite:///{tmp_path}/cell1",
        )
        yield store


@pytest.fixture
def manage(configuration: Path, capsys: pytest.CaptureFixture[str], store: Store) -> Run:
    """Runs a command."""
    return partial(run, capsys, configuration)


@pytest.fixture
def doctor(manage: Run) -> Run:
    """Runs the doctor."""
    return partial(manage, "doctor")


def test_all_is_well(doctor: Run) -> None:
    """Where all is well that is one line, which says how much was looked at."""
    answer = doctor()
    assert (answer.exit_code, answer.err, answer.out.count("\n")) == (0, "", 1)
    assert answer.out.startswith("all is well: 16 checks of 2 cells in 0.")


def test_info(doctor: Run, store: Store) -> None:
    """What is only to be known is told, and all is well."""
    store.update_cell("uuid1", transport_url=f"memory://me:{SECRET}@cell1/")
    answer = doctor()
    lines = answer.out.splitlines()
    assert answer.exit_code == 0
    assert lines[:2] == ["1 info", "  there is 1 record with a password in plain text: cell1 [secrets]"]
    assert lines[2].startswith("    -> set [cellmw] credential_keys")
    assert lines[3].startswith("all is well, 1 info: 16 checks")


def test_warnings(doctor: Run, store: Store) -> None:
    """Warnings are 1, and each has what is wrong and what to do."""
    store.update_cell("uuid1", disabled=True)
    store.update_cell(CELL0_UUID, disabled=True)
    answer = doctor()
    assert answer.exit_code == 1
    *lines, summary = answer.out.splitlines()
    assert lines == [
        "2 warnings",
        "  all cells are disabled, so no new instance finds one [cells]",
        "    -> `cellmw-manage cell_v2 update_cell --enable` for one of them",
        "  cell cell0: cell0 is disabled, which is for cells that new instances could be scheduled to [cells]",
        "    -> no command has done that, nor undoes it: set disabled to 0 in its row of cell_mappings",
    ]
    assert summary.startswith("2 warnings: 16 checks of 2 cells in ")


def test_errors(doctor: Run, store: Store) -> None:
    """Errors are 2, whatever else there is, and no password is shown."""
    store.update_cell("uuid1", disabled=True, transport_url=f"rabbit://me:{SECRET}@127.0.0.1:1/")
    answer = doctor()
    assert (answer.exit_code, answer.err) == (2, "")
    assert SECRET not in answer.out
    lines = answer.out.splitlines()
    assert [line for line in lines if not line.startswith("  ")][:-1] == ["1 error", "1 warning", "1 info"]
    assert lines[1] == "  cell cell1: the broker 127.0.0.1:1: nobody listens there [brokers]"
    assert lines[-1].startswith("1 error, 1 warning, 1 info: 18 checks of 2 cells in ")


def test_nothing_is_told_twice(doctor: Run, store: Store) -> None:
    """A driver that is not installed is told of by the findings alone."""
    store.update_cell("uuid1", transport_url="nosuch://bus/")
    answer = doctor()
    assert (answer.exit_code, answer.err) == (2, "")
    assert "no oslo.messaging driver 'nosuch' is installed" in answer.out


def test_json(doctor: Run, store: Store) -> None:
    """For monitoring there is one object for each finding, and none where all is well."""
    answer = doctor("-f", "json")
    assert (answer.exit_code, json.loads(answer.out)) == (0, [])
    store.update_cell(CELL0_UUID, disabled=True)
    answer = doctor("-f", "json")
    assert answer.exit_code == 1
    assert json.loads(answer.out) == [
        {
            "Severity": "warning",
            "Cell": "cell0",
            "Check": "cells",
            "What": "cell0 is disabled, which is for cells that new instances could be scheduled to",
            "What to do": "no command has done that, nor undoes it: set disabled to 0 in its row of cell_mappings",
        }
    ]


def test_check_and_skip(doctor: Run, store: Store) -> None:
    """Checks can be chosen, and left out."""
    store.update_cell(CELL0_UUID, disabled=True)
    assert doctor("--check", "urls", "--check", "overlaps").out.startswith("all is well: 4 checks of 2 cells")
    assert doctor("--check", "cells").exit_code == 1
    assert doctor("--skip", "cells").exit_code == 0
    assert doctor("--check", "cells", "--check", "urls", "--skip", "cells").out.startswith("all is well: 1 check of 2")


def test_no_check_is_left(doctor: Run) -> None:
    """To leave out everything is refused, and so is a check that there is not."""
    answer = doctor("--check", "cells", "--skip", "cells")
    assert (answer.exit_code, answer.out) == (255, "")
    assert answer.err == "cellmw-manage: no check is left: leave out a --skip\n"
    answer = doctor("--check", "everything")
    assert (answer.exit_code, answer.out) == (2, "")
    assert "choose from" in answer.err


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "soon", "", "0.01", "1e9", "1e300"])
def test_timeout_that_is_none(doctor: Run, timeout: str) -> None:
    """A timeout is a number of seconds."""
    answer = doctor(f"--timeout={timeout}")
    assert (answer.exit_code, answer.out) == (2, "")
    assert answer.err.endswith(f"argument --timeout: '{timeout}' is no number of seconds from 0.1 to 3600\n")


def test_timeout(doctor: Run, store: Store) -> None:
    """How long a server has can be said, and what libraries log of its silence is not shown."""
    with closing(Somebody(None)) as frozen:
        store.update_cell(
            "uuid1",
            transport_url=f"rabbit://me:{SECRET}@{frozen.address}/",
            database_connection=f"mysql+pymysql://me:{SECRET}@{frozen.address}/x",
        )
        answer = doctor("--timeout", "1.5", "--skip", "secrets")
    assert (answer.exit_code, answer.err) == (2, "")
    assert answer.out.count("no answer within 1.5 s") == 2


def test_logging_is_left_as_it_was() -> None:
    """Loggers that are silent meanwhile are not afterwards; with --debug they never are."""
    logger = logging.getLogger("oslo_db")
    before = logger.level
    levels = []
    for debug in (False, True):
        with quiet(unless=debug):
            levels.append(logger.level)
    assert (levels, logger.level) == ([logging.CRITICAL + 1, before], before)


def test_service_config(doctor: Run, tmp_path: Path) -> None:
    """Files of services are looked at, each by its name."""
    (tmp_path / "one.conf").write_text("[DEFAULT]\ntransport_url = memory://cell1/\n")
    (tmp_path / "two.conf").write_text("[DEFAULT]\ntransport_url = memory://nowhere/\n")
    answer = doctor("--service-config", f"{tmp_path}/one.conf")
    assert answer.exit_code == 0
    assert f"  cell cell1: {tmp_path}/one.conf belongs to it [services]" in answer.out
    answer = doctor("--service-config", f"{tmp_path}/one.conf", "--service_config", f"{tmp_path}/two.conf")
    assert answer.exit_code == 2
    assert f"  {tmp_path}/two.conf: its [DEFAULT] transport_url leads to none of the recorded cells" in answer.out


def test_not_configured(configuration: Path, doctor: Run) -> None:
    """Where there is no API database it could not begin, which is another exit code than those of findings."""
    configuration.write_text("")
    answer = doctor()
    assert (answer.exit_code, answer.out) == (255, "")
    assert answer.err.count("\n") == 1


def test_help_names_every_check(manage: Run) -> None:
    """What can be chosen is in the help."""
    words = re.findall("[a-z-]+", manage("help", "doctor").out)
    assert set(CHECKS) <= set(words)


def commands_in(package: str) -> list[str]:
    """Return what stands between backquotes in the sources of a package, and begins as a command does."""
    sources = "".join(path.read_text() for path in sorted(Path(package).glob("*.py")))
    return sorted({command.replace('"', "") for command in re.findall("`cellmw-manage ([^`]+)`", sources)})


@pytest.mark.parametrize("command", commands_in(str(Path(cellmw.admin.doctor.__file__).parent)))
def test_what_to_do_can_be_done(command: str) -> None:
    """Each command that a finding names is there, with its options."""
    words = command.removeprefix("--debug ").split()
    app = Manage(cfg.ConfigOpts())
    found, _, rest = app.command_manager.find_command(words)
    options = {option for action in found(app, None).get_parser("")._actions for option in action.option_strings}
    assert {word for word in rest if word.startswith("--")} <= options
