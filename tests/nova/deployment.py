# SPDX-License-Identifier: Apache-2.0
"""Empty databases and queues -> a Nova deployment: its configuration, and cells that nova-manage has made.

The instances in it are in ``instances.py``; what answers requests is in ``api.py``.
"""

from __future__ import annotations

import subprocess
import sys
from configparser import RawConfigParser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

NOVA_PASTE_INI = Path(sys.prefix, "etc/nova/api-paste.ini")
"""As Nova's package installs it."""

CELLS_INI = Path(__file__).with_name("cells.ini")
"""The section that the manual says to add."""

SHARED_SECRET = "shared with the metadata proxy"

NOVA_CONF = """
[DEFAULT]
host = api
transport_url = {transport_url}
rpc_response_timeout = 20
# a service row counts as alive however long the tests take
service_down_time = 100000

[database]
connection = {database_connection}

[api_database]
connection = {api_database}

[api]
# the metadata of an instance is read for each request
metadata_cache_expiration = 0

[neutron]
endpoint_override = {neighbours}
auth_type = none
service_metadata_proxy = true
metadata_proxy_shared_secret = {shared_secret}

[glance]
endpoint_override = {neighbours}

[placement]
endpoint_override = {neighbours}
auth_type = none

[oslo_messaging_rabbit]
rabbit_quorum_queue = false
"""


class Servers(Protocol):
    """Where a deployment gets its databases and queues from. Lives as long as the test run."""

    name: str

    def database(self, name: str) -> str:
        """Return the URL of an empty database for ``api``, ``cell0`` or a cell."""

    def queue(self, name: str) -> str:
        """Return the URL of an empty queue for ``top`` or a cell."""


@dataclass(frozen=True)
class Place:
    """Where a cell is. Lives as long as the deployment."""

    name: str
    uuid: str
    database_connection: str
    transport_url: str
    config_file: Path


class Deployment:
    """The configuration and the cells of a Nova. Lives as long as its folder."""

    def __init__(self, folder: Path, servers: Servers, *, neighbours: str) -> None:
        """Configure it; nothing is in its databases yet.

        :param servers: what it is made of, whose name is its ``kind``
        :param neighbours: the URL under which what Nova asks of other services is answered
        """
        self.kind = servers.name
        self.folder = folder
        self._servers = servers
        self._neighbours = neighbours
        self.api_database = servers.database("api")
        self.top_queue = servers.queue("top")
        self.cells: dict[str, Place] = {}
        self.cell0_database = servers.database("cell0")
        self.config_file = self._configure("nova", self.cell0_database, self.top_queue)
        self.paste_ini = self._write_paste_ini("api-paste.ini")
        self.filtered_paste_ini = self._write_paste_ini("api-paste-cells.ini", CELLS_INI)

    def sync(self) -> None:
        """Make the tables of the API database and of cell0, which is mapped."""
        self.manage("api_db", "sync")
        self.manage("db", "sync", "--local_cell")
        self.manage("cell_v2", "map_cell0", "--database_connection", self.cell0_database)
        uuid = "00000000-0000-0000-0000-000000000000"
        self.cells["cell0"] = Place("cell0", uuid, self.cell0_database, "none:///", self.config_file)

    def add_cell(self, name: str) -> Place:
        """Make the tables of one more cell, and map it by nova-manage."""
        database, queue = self._servers.database(name), self._servers.queue(name)
        config_file = self._configure(name, database, queue)
        self.manage("db", "sync", "--local_cell", config_file=config_file)
        uuid = self.manage(
            *("cell_v2", "create_cell", "--verbose", "--name", name),
            *("--database_connection", database, "--transport-url", queue),
        ).strip()
        self.cells[name] = Place(name, uuid, database, queue, config_file)
        return self.cells[name]

    def manage(self, *arguments: str, config_file: Path | None = None) -> str:
        """Run nova-manage and return what it prints.

        :raises RuntimeError: if it fails
        """
        return self._run("nova-manage", "--config-file", str(config_file or self.config_file), *arguments)

    def cellmw_manage(self, *arguments: str) -> str:
        """Run cellmw-manage on Nova's own configuration and return what it prints.

        :raises RuntimeError: if it fails
        """
        return self._run("cellmw-manage", "--config-file", str(self.config_file), *arguments)

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [Path(sys.prefix, "bin", program), *arguments], capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode:
            raise RuntimeError(f"{program} {arguments} has exit code {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def _configure(self, name: str, database_connection: str, transport_url: str) -> Path:
        file = self.folder / f"{name}.conf"
        file.write_text(
            NOVA_CONF.format(
                transport_url=transport_url,
                database_connection=database_connection,
                api_database=self.api_database,
                neighbours=self._neighbours,
                shared_secret=SHARED_SECRET,
            )
        )
        return file

    def _write_paste_ini(self, name: str, *additions: Path) -> Path:
        file = self.folder / name
        write_paste_ini(file, *additions)
        return file


def write_paste_ini(file: Path, *additions: Path, settings: Mapping[str, str] | None = None) -> None:
    """Write Nova's own api-paste.ini with authtoken replaced, and a pipeline that ends in the probe.

    :param additions: a file with ``[filter:cells]``, which is then put behind ``keystonecontext``
    :param settings: further options of that filter
    """
    ini = RawConfigParser()
    ini.read([NOVA_PASTE_INI, *additions])
    ini["filter:authtoken"] = {"paste.filter_factory": "tests.nova.authtoken:filter_factory"}
    pipelines = [section for section in ini.sections() if "keystonecontext" in ini[section].get("keystone", "")]
    for section in pipelines if additions else ():
        ini[section]["keystone"] = ini[section]["keystone"].replace(" keystonecontext ", " keystonecontext cells ")
    for option, value in (settings or {}).items():
        ini["filter:cells"][option] = value
    *filters, _ = ini["composite:openstack_compute_api_v21"]["keystone"].split()
    ini["composite:probe"] = {
        "use": "call:nova.api.auth:pipeline_factory_v21",
        "keystone": " ".join([*filters, "probeapp"]),
    }
    ini["app:probeapp"] = {"paste.app_factory": "tests.nova.probe:app_factory"}
    with file.open("w") as opened:
        ini.write(opened)
