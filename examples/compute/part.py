# SPDX-License-Identifier: Apache-2.0
"""A plan -> the part of the service that one process runs: workers of cells, and the API where it is in the plan."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import waitress
from oslo_config import cfg
from paste import deploy as paste_deploy
from waitress import wasyncore

from cellmw.filter import CellFilter
from examples.compute.witness import Message, Watched
from examples.compute.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed.wsgi import WSGIApplication
    from sqlalchemy import orm

PIPELINE = Path(__file__).parents[2] / "etc" / "api-paste.ini"


class CellPlan(NamedTuple):
    """What the worker of a cell has to know."""

    cell: str
    transport_url: str
    database_connection: str


class Plan(NamedTuple):
    """What a part consists of; it can be sent as JSON."""

    configuration: str | None
    """The configuration file of the API; None where another process runs it."""
    workers: list[CellPlan]


class Part:
    """What one process runs of the service. Lives as long as its ``with`` block.

    :ivar url: where it serves HTTP, if it does
    :ivar filter: the cells filter of its pipeline, if it has one
    """

    url: str
    filter: CellFilter

    def __init__(self, plan: Plan, note: Callable[[Message], None]) -> None:
        """Run nothing yet.

        :param note: called with every message that a worker has worked on
        """
        self._plan = plan
        self._note = note
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            workers = [WatchedWorker(plan, self._note) for plan in self._plan.workers]
            for worker in workers:
                worker.start()
            exits.callback(stop_workers, workers)
            if self._plan.configuration is not None:
                self._serve(self._plan.configuration, exits)
            self._exits = exits.pop_all()
        return self

    def _serve(self, configuration: str, exits: ExitStack) -> None:
        settings = {"oslo_config_project": "cellmw", "oslo_config_file": configuration}
        app = paste_deploy.loadapp(f"config:{PIPELINE}", name="main", global_conf=settings)
        self.filter = exits.enter_context(closing(_find_filter(app)))
        self._server = exits.enter_context(Server(app))
        self.url = self._server.url

    def __exit__(self, *exc_info: object) -> None:
        self._exits.close()

    def leases(self) -> int:
        """Return how many leases are open now, of requests and of the scheduler."""
        return self.filter.cells.leases

    def stop_serving(self) -> None:
        """Take no more requests, and let those that are under way end."""
        self._server.close()


class WatchedWorker(Worker):
    """The worker of one cell, with what it is told noted."""

    def __init__(self, plan: CellPlan, note: Callable[[Message], None]) -> None:
        self._watch = lambda endpoint: Watched(endpoint, plan.cell, note)
        super().__init__(
            cfg.CONF,
            f"host-of-{plan.cell}",
            transport_url=plan.transport_url,
            database_connection=plan.database_connection,
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
        # it warns when a request comes before all of its threads have started
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)
        self._sockets: dict[int, Any] = {}
        self._waitress = waitress.create_server(app, map=self._sockets, host="127.0.0.1", port=0, threads=4)
        self._thread = threading.Thread(target=self._run, name="waitress")
        self._ending = threading.Event()
        self.url = f"http://127.0.0.1:{self._waitress.effective_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._ending.is_set():
            wasyncore.loop(timeout=1, map=self._sockets, count=1)

    def close(self) -> None:
        """Hang up on all clients, and wait until the last request has ended."""
        if self._thread.is_alive():
            self._ending.set()
            self._waitress.pull_trigger()
            # before that thread has ended, nobody else may close its sockets
            self._thread.join()
            for channel in list(self._waitress.active_channels.values()):
                channel.handle_close()
            self._waitress.task_dispatcher.shutdown()
            # the last of all: a request that ends pulls the trigger, which is closed here
            self._waitress.close()


def _find_filter(urlmap: Any) -> CellFilter:
    """Find the filter in the loaded pipeline: whoever loads one has to close it."""
    station = urlmap["/v2.1"]
    while not isinstance(station, CellFilter):
        station = station.application
    return station
