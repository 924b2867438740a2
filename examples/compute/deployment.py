# SPDX-License-Identifier: Apache-2.0
"""Places for databases and queues -> a running compute service: an API database, cell0 and two cells, HTTP.

Where no variable names a place, everything is in one process: the databases are SQLite files, the queues are
``memory://`` ones. Where one does, the API is a process of its own, and so is the worker of each cell that has a real
queue. A queue in memory does not leave its process, so the worker of such a cell is in the API's.
"""

from __future__ import annotations

import subprocess
import sysconfig
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from examples.compute import models
from examples.compute.part import CellPlan, Part, Plan
from examples.compute.places import CELLS
from examples.compute.process import Process
from examples.compute.witness import Databases, Queues

if TYPE_CHECKING:
    from collections.abc import Iterable

    from examples.compute.places import Places

MANAGE = Path(sysconfig.get_path("scripts")) / "cellmw-manage"

CONFIGURATION = """\
[api_database]
connection = {api_database}
"""


class Deployment:
    """The running service. Lives as long as its ``with`` block, which shuts everything down.

    :ivar api: the part of it that serves HTTP
    :ivar databases: its databases, seen from outside
    :ivar queues: its queues, seen from outside
    """

    api: Part | Process

    def __init__(self, folder: Path, places: Places) -> None:
        """Take this empty folder; nothing is in it yet."""
        self._folder = folder
        self._places = places
        self._exits = ExitStack()
        self.databases = Databases(places.databases)
        self.queues = Queues()

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            exits.enter_context(self._places.occupied())
            self._create_databases()
            if self._places.given:
                self.api = self._start_processes(exits)
            else:
                self.api = exits.enter_context(Part(self._plan(CELLS), self.queues.note))
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._exits.close()

    def _start_processes(self, exits: ExitStack) -> Process:
        """Start all of them and only then wait, and so at the end."""
        at_home = [cell for cell in CELLS if self._places.queues[cell].startswith("memory:")]
        plans = [self._plan(at_home), *(Plan(None, [self._cell(cell)]) for cell in CELLS if cell not in at_home)]
        processes: list[Process] = []
        exits.callback(end_processes, processes)
        for plan in plans:
            processes.append(Process(plan, self.queues.note))
        for process in processes:
            process.wait_until_ready()
        return processes[0]

    def _plan(self, cells: Iterable[str]) -> Plan:
        return Plan(str(self._configuration), [self._cell(cell) for cell in cells])

    def _cell(self, cell: str) -> CellPlan:
        return CellPlan(cell, self._places.queues[cell], self._places.databases[cell])

    @property
    def _configuration(self) -> Path:
        return self._folder / "cellmw.conf"

    def _create_databases(self) -> None:
        databases, queues = self._places.databases, self._places.queues
        # oslo.config would replace what follows a dollar sign
        self._configuration.write_text(CONFIGURATION.format(api_database=databases["api"].replace("$", "$$")))
        self._manage("api_db", "sync")
        self._manage("cell_v2", "map_cell0", "--database_connection", databases["cell0"])
        for cell in CELLS:
            connections = ["--transport-url", queues[cell], "--database_connection", databases[cell]]
            self._manage("cell_v2", "create_cell", "--name", cell, *connections)
        for cell in ("cell0", *CELLS):
            models.create_all(databases[cell])

    def _manage(self, *arguments: str) -> None:
        """Run cellmw-manage, as an operator would."""
        command = [MANAGE, "--config-file", self._configuration, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"cellmw-manage {' '.join(arguments[:2])} failed: {done.stderr or done.stdout}")


def end_processes(processes: list[Process]) -> None:
    """Tell all of them to end and only then wait: each takes a second."""
    for process in processes:
        process.stop()
    for process in processes:
        process.close()
