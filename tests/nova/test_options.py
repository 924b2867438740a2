# SPDX-License-Identifier: Apache-2.0
"""Nova's configuration, with sections of ours in it or not -> what the filter goes by, and what Nova beside it does.

A process has one Nova configuration, so a test of another than the deployment's own starts a process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from nova.compute import rpcapi
from nova.conf import CONF
from oslo_utils import uuidutils

from cellmw import database
from cellmw.exceptions import ConfigError
from tests.nova import api, instances
from tests.nova.deployment import CELLS_INI, write_paste_ini

if TYPE_CHECKING:
    from tests.nova.conftest import Nova
    from tests.nova.deployment import Deployment
    from tests.nova.worker import Worker

ROOT = Path(__file__).parents[2]

CELLMW_FIRST = """
from oslo_config import cfg
from cellmw import conf, filter
conf.register_opts(cfg.CONF)
"""
"""What a process begins with that imports the filter before Nova."""


def main() -> None:
    """Load Nova's API from a folder, request a path, and write what came of it there: the process a test starts."""
    folder, path = Path(sys.argv[1]), sys.argv[2]
    deployment: Any = SimpleNamespace(folder=folder, config_file=folder / "nova.conf")
    api.load(deployment, folder / "plain.ini")
    before = _options()
    service = api.load(deployment, folder / "cells.ini")
    after = _options()
    probe = api.load(deployment, folder / "cells.ini", "probe")
    found = {"status": service.request("GET", path).status_int, "state": None, "name": None}

    def call(environ: dict[str, Any]) -> None:
        if "cellmw.target" in environ:
            found["state"] = environ["cellmw.target"].state
            found["name"] = _name(environ)

    probe.request("GET", path, call=call)
    found["new"] = sorted(after.keys() - before.keys())
    found["changed"] = [key for key in before if after[key] != before[key]]
    (folder / "found.json").write_text(json.dumps(found))
    for each in (service, probe):
        if each.cells is not None:
            each.cells.close()
    api.close()


def _options() -> dict[str, tuple[int, str]]:
    """Return every option that is registered in this process: which object it is, and its value."""
    groups = {"DEFAULT": CONF._opts} | {name: group._opts for name, group in CONF._groups.items()}
    options = {}
    for group, registered in groups.items():
        values = CONF if group == "DEFAULT" else CONF[group]
        for name, each in registered.items():
            options[f"[{group}] {name}"] = (id(each["opt"]), repr(values[name]))
    return options


def _name(environ: dict[str, Any]) -> str:
    """Return the name of the instance, from the database that Nova's context leads to."""
    with database.reader(environ["nova.context"]) as session:
        statement = sqlalchemy.text("SELECT display_name FROM instances WHERE uuid = :uuid")
        name: str = session.scalar(statement, {"uuid": environ["cellmw.target"].instance_uuid})
        return name


def _run(deployment: Deployment, folder: Path, uuid: str, *, conf: str = "", first: str = "", **ini: str) -> Any:
    """Start a process with a Nova of the same deployment, and return what came of a request for the instance.

    :param conf: what its nova.conf has besides
    :param first: what it does before it imports Nova
    :param ini: what the filter's section has besides
    """
    _write_conf(deployment, folder, conf)
    write_paste_ini(folder / "plain.ini")
    write_paste_ini(folder / "cells.ini", CELLS_INI, settings=ini)
    program = f"{first}\nfrom tests.nova.test_options import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", program, folder, f"/v2.1/servers/{uuid}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


def _write_conf(deployment: Deployment, folder: Path, addition: str) -> Path:
    """Write the deployment's nova.conf with an addition."""
    file = folder / "nova.conf"
    file.write_text(f"{deployment.config_file.read_text()}\n{addition}")
    return file


def _program(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program of Nova's environment."""
    return subprocess.run(
        [Path(sys.prefix, "bin", name), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )


OURS = """
[cellmw]
building = 409

[cellmw_database]
max_pool_size = 3
"""


def test_novas_options_stay(nova: Nova, tmp_path: Path) -> None:
    """Loading the filter changes no option that Nova has registered, nor its value; only what Nova lacks is new."""
    found = _run(nova.deployment, tmp_path, instances.create("cell1").uuid)
    assert found["changed"] == []
    new = {
        option
        for option in found["new"]
        if not option.startswith(("[cellmw] ", "[cellmw_database] ", "[cellmw_tables] "))
    }
    assert new == {"[api_database] use_db_reconnect"}


def test_filter_first(nova: Nova, tmp_path: Path) -> None:
    """Nova loads and serves where the filter's options were registered before Nova was imported."""
    found = _run(nova.deployment, tmp_path, instances.create("cell1", decoys=["cell2"]).uuid, first=CELLMW_FIRST)
    assert (found["status"], found["state"], found["name"]) == (200, "targeted", "in-cell1")


def test_section_counts(nova: Nova, tmp_path: Path) -> None:
    """What ``[cellmw]`` in nova.conf says is done: a request that Nova would answer is refused."""
    uuid = instances.build()
    assert nova.filtered.request("GET", f"/v2.1/servers/{uuid}").status_int == 200
    assert _run(nova.deployment, tmp_path, uuid, conf=OURS)["status"] == 409


def test_ini_comes_first(nova: Nova, tmp_path: Path) -> None:
    """What the filter's section in the ini says is done, whatever ``[cellmw]`` in nova.conf says."""
    found = _run(nova.deployment, tmp_path, instances.build(), conf=OURS, building="pass")
    assert (found["status"], found["state"]) == (200, "building")


def test_disabled(nova: Nova, tmp_path: Path) -> None:
    """With ``enabled = false`` in nova.conf Nova serves as without the filter, and no request has a target."""
    uuid = instances.create("cell1").uuid
    found = _run(nova.deployment, tmp_path, uuid, conf="[cellmw]\nenabled = false")
    assert (found["status"], found["state"]) == (200, None)


def test_database_section_counts(nova: Nova, tmp_path: Path) -> None:
    """What ``[cellmw_database]`` in nova.conf says is done: the filter's readers go to the replica that it names."""
    # which is the database of another cell, so that it shows
    replica = nova.deployment.cells["cell2"].database_connection
    conf = f"[cellmw_database]\nslave_connections = cell1:{replica}\nsynchronous_reader = false"
    found = _run(nova.deployment, tmp_path, instances.create("cell1", decoys=["cell2"]).uuid, conf=conf)
    assert (found["state"], found["name"]) == ("targeted", "in-cell2")


def test_api_database_is_novas(nova: Nova) -> None:
    """The filter reads the database of Nova's ``[api_database] connection``: what is mapped there, it finds."""
    uuid = uuidutils.generate_uuid()
    engine = sqlalchemy.create_engine(nova.deployment.api_database)
    statement = sqlalchemy.text(
        "INSERT INTO instance_mappings (instance_uuid, project_id, cell_id)"
        " SELECT :uuid, :project, id FROM cell_mappings WHERE name = 'cell2'"
    )
    with engine.begin() as connection:
        connection.execute(statement, {"uuid": uuid, "project": instances.PROJECT})
    engine.dispose()
    cells = []
    nova.probe.request("GET", f"/v2.1/servers/{uuid}", call=lambda environ: cells.append(environ["cellmw.target"].cell))
    assert [cell.name for cell in cells] == ["cell2"]


def test_configuration_of_its_own(nova: Nova, workers: dict[str, Worker], tmp_path: Path) -> None:
    """A filter that reads nova.conf by itself, into a configuration of its own, reaches a cell's database and queue."""
    settings = {"oslo_config_project": "nova", "oslo_config_file": str(nova.deployment.config_file)}
    write_paste_ini(tmp_path / "api-paste.ini", CELLS_INI, settings=settings)
    probe = api.load(nova.deployment, tmp_path / "api-paste.ini", "probe")
    instance = instances.create("cell1", decoys=["cell2"])
    names = []

    def call(environ: dict[str, Any]) -> None:
        names.append(_name(environ))
        row = instances.read("cell1", instance.uuid)
        rpcapi.ComputeAPI().pause_instance(environ["nova.context"], row)

    probe.request("GET", f"/v2.1/servers/{instance.uuid}", call=call)
    workers["cell1"].wait_for("pause_instance", instance.uuid)
    assert names == ["in-cell1"]
    probe.cells.close()


def test_unknown_option(nova: Nova, tmp_path: Path) -> None:
    """A key in the filter's section that is no option fails the load, and the message says which and what there is."""
    write_paste_ini(tmp_path / "api-paste.ini", CELLS_INI, settings={"mapping_tll": "5"})
    with pytest.raises(ConfigError, match=r"unknown option 'mapping_tll'; the filter takes .*'mapping_ttl'"):
        api.load(nova.deployment, tmp_path / "api-paste.ini", "probe")


@pytest.mark.parametrize(
    ("program", "arguments"), [("nova-status", ["upgrade", "check"]), ("nova-manage", ["cell_v2", "list_cells"])]
)
def test_novas_commands(nova: Nova, tmp_path: Path, program: str, arguments: list[str]) -> None:
    """Nova's commands read a nova.conf with our sections in it, and say what they say without them."""
    # without which nova-status fails the deployment for a reason of its own
    service_user = "[service_user]\nsend_service_user_token = true"
    without, ours = (
        _program(program, "--config-file", _write_conf(nova.deployment, tmp_path, addition), *arguments)
        for addition in (service_user, service_user + OURS)
    )
    # nova-status warns with a 1 of instances without a machine type, which other tests may have made
    assert without.returncode in (0, 1), without.stdout
    assert (ours.returncode, ours.stdout) == (without.returncode, without.stdout)


@pytest.mark.parametrize(("namespaces", "exit_code"), [(["nova.conf"], 1), (["nova.conf", "cellmw"], 0)])
def test_validator(nova: Nova, tmp_path: Path, namespaces: list[str], exit_code: int) -> None:
    """oslo.config's validator passes a nova.conf with our sections in it where it is told of the namespace cellmw."""
    file = _write_conf(nova.deployment, tmp_path, OURS)
    options = [f"--namespace={namespace}" for namespace in (*namespaces, "oslo.messaging")]
    done = _program("oslo-config-validator", "--input-file", file, *options)
    assert done.returncode == exit_code, done.stderr


def test_generator(tmp_path: Path) -> None:
    """A sample of Nova's options and ours in one file has our sections, and Nova's ``[api_database]`` once."""
    file = tmp_path / "nova.conf.sample"
    done = _program("oslo-config-generator", "--namespace=nova.conf", "--namespace=cellmw", "--output-file", file)
    assert done.returncode == 0, done.stderr
    lines = file.read_text().splitlines()
    assert [lines.count(f"[{group}]") for group in ("cellmw", "cellmw_database", "api_database")] == [1, 1, 1]
