# SPDX-License-Identifier: Apache-2.0
"""An empty folder -> a running compute service: an API database, cell0 and two cells, workers, an HTTP server.

Everything is in one process: the databases are SQLite files, the queues are ``memory://`` ones.
"""

from __future__ import annotations

import subprocess
import sysconfig
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import waitress
from oslo_config import cfg
from paste import deploy as paste_deploy

from cellmw.filter import CellFilter
from examples.compute import models
from examples.compute.witness import Databases, Queues
from examples.compute.worker import Worker

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from sqlalchemy import orm

PIPELINE = Path(__file__).parents[2] / "etc" / "api-paste.ini"

MANAGE = Path(sysconfig.get_path("scripts")) / "cellmw-manage"

CELLS = ("cell1", "cell2")

CONFIGURATION = """\
[api_database]
connection = {api_database}
"""


class Deployment:
    """The running service. Lives as long as its ``with`` block, which shuts everything down.

    :ivar url: where it serves HTTP
    :ivar filter: the cells filter of its pipeline
    :ivar databases: its databases, seen from outside
    :ivar queues: its queues, seen from outside
    """

    def __init__(self, folder: Path) -> None:
        """Take this empty folder; nothing is in it yet."""
        self._folder = folder
        self._exits = ExitStack()
        self.databases = Databases(self._file("api"), {cell: self._file(cell) for cell in ("cell0", *CELLS)})
        self.queues = Queues()

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            self._create_databases()
            exits.callback(stop_workers, self._start_workers())
            app = paste_deploy.loadapp(f"config:{PIPELINE}", name="main", global_conf=self._global_conf())
            self.filter = exits.enter_context(closing(_find_filter(app)))
            self._server = exits.enter_context(Server(app))
            self._exits = exits.pop_all()
        self.url = self._server.url
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._exits.close()

    @property
    def leases(self) -> int:
        """How many leases are open now, of requests and of the scheduler."""
        return self.filter.cells.leases

    def stop_serving(self) -> None:
        """Take no more requests, and let those that are under way end."""
        self._server.close()

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.sqlite"

    def _database_connection(self, name: str) -> str:
        return f"sqlite:///{self._file(name)}"

    @property
    def _configuration(self) -> Path:
        return self._folder / "cellmw.conf"

    def _global_conf(self) -> dict[str, str]:
        return {"oslo_config_project": "cellmw", "oslo_config_file": str(self._configuration)}

    def _create_databases(self) -> None:
        self._configuration.write_text(CONFIGURATION.format(api_database=self._database_connection("api")))
        self._manage("api_db", "sync")
        self._manage("cell_v2", "map_cell0", "--database_connection", self._database_connection("cell0"))
        for cell in CELLS:
            connections = ["--transport-url", _queue(cell), "--database_connection", self._database_connection(cell)]
            self._manage("cell_v2", "create_cell", "--name", cell, *connections)
        for cell in ("cell0", *CELLS):
            models.create_all(self._database_connection(cell))

    def _manage(self, *arguments: str) -> None:
        """Run cellmw-manage, as an operator would."""
        command = [MANAGE, "--config-file", self._configuration, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"cellmw-manage {' '.join(arguments[:2])} failed: {done.stderr or done.stdout}")

    def _start_workers(self) -> list[Worker]:
        workers = [WatchedWorker(self.queues, cell, self._database_connection(cell)) for cell in CELLS]
        for worker in workers:
            worker.start()
        return workers


class WatchedWorker(Worker):
    """The worker of one cell, with what it is told noted."""

    def __init__(self, queues: Queues, cell: str, database_connection: str) -> None:
        self._watch = lambda endpoint: queues.watch(cell, endpoint)
        super().__init__(
            cfg.CONF, f"host-of-{cell}", transport_url=_queue(cell), database_connection=database_connection
        )

    def make_endpoint(self, sessions: orm.sessionmaker[orm.Session], host: str) -> object:
        """Return the endpoint behind one that notes."""
        return self._watch(super().make_endpoint(sessions, host))


def stop_workers(workers: list[Worker]) -> None:
    """Stop all of them and only then wait: each wait takes a second."""
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.close()


class Server:
    """waitress, on a loopback port that the kernel chooses. Lives as long as its ``with`` block.

    :ivar url: where it serves
    """

    def __init__(self, app: WSGIApplication) -> None:
        self._waitress = waitress.create_server(app, host="127.0.0.1", port=0, threads=4)
        self._thread = threading.Thread(target=self._waitress.run, name="waitress")
        self.url = f"http://127.0.0.1:{self._waitress.effective_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all sockets, which ends the thread, and wait until the last request has ended."""
        if self._thread.is_alive():
            # only the thread that waits on the sockets may close them
            self._waitress.trigger.pull_trigger(self._close_sockets)
            self._thread.join()
            self._waitress.task_dispatcher.shutdown()

    def _close_sockets(self) -> None:
        for channel in list(self._waitress.active_channels.values()):
            channel.handle_close()
        self._waitress.close()


def _queue(cell: str) -> str:
    return f"memory://{cell}/"


def _find_filter(urlmap: Any) -> CellFilter:
    """Find the filter in the loaded pipeline: whoever loads one has to close it."""
    station = urlmap["/v2.1"]
    while not isinstance(station, CellFilter):
        station = station.application
    return station
