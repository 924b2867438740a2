# SPDX-License-Identifier: Apache-2.0
"""What the filter takes beside what Nova does in its place: one JSON line per figure, in microseconds.

It wants an environment with Nova. Each kind of database gets a process of its own, with a deployment that nova-manage
has made; in it Nova and the filter go by the same nova.conf, and take turns.

================= ===============================================================================================
``nova``          Nova reads the instance's mapping, and its cell's record with it, from the API database and makes
                  versioned objects of them. It takes the cell's handles out of its cache, under a lock, and puts
                  them on a copy of the context: as for the tags of an instance, and in the metadata service
``nova_in_place`` the same with the context itself: what most requests for an instance begin with
``warm``          the filter, on an instance whose mapping is cached: all that it adds to a bare app, from the path
                  to the release of the lease
``cold``          the filter, on an instance whose mapping is looked up for every request
``nova_first``    ``nova`` where the cell is not open yet, and a statement in the cell's database
``first``         the same by the filter, which has not read the cell's record yet either
``show``          ``GET /v2.1/servers/{uuid}``, the whole request through Nova's pipeline as it is
``show_added``    what the filter in that pipeline adds to it, on an instance whose mapping is cached
================= ===============================================================================================

Nova keeps no mapping, so ``warm`` and ``cold`` stand beside the same figures. Wherever a cell was opened before, its
handles are open, and the connection to the API database always is; nothing in ``nova``, ``warm`` and ``cold`` uses the
cell. The engines have the same options, and differ in what is made of them: Nova tests a pooled connection before each
use, and connects anew each time where the database is SQLite; the filter pools those as well, and does not test those
to the API database but reads again where one was dropped.

Each repeat gives a ratio (``times``) or a difference. Of these a figure has the median, and as ``interval`` what holds
the true median with a confidence of 95 %; a difference is ``resolved`` where 0 is not in it. Logging is off. Garbage is
collected between measurements and in none.
"""

from __future__ import annotations

import os

# Nova looks at it when it is imported
os.environ["OS_NOVA_DISABLE_EVENTLET_PATCHING"] = "true"

import contextlib
import logging
import statistics
import subprocess
import sys
import tempfile
from configparser import RawConfigParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy
from nova import context as nova_context
from nova import objects
from oslo_config import cfg

from bench.figures import call_time, in_turn, interval, report, rounded, stop_collecting
from bench.request import list_app
from cellmw import deploy
from cellmw.filter import CellFilter
from tests import servers
from tests.nova import api, instances, neighbours
from tests.nova.deployment import CELLS_INI, Deployment, write_paste_ini

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

DATABASES = ("sqlite", "mariadb", "postgresql")

REPEATS = 41
REQUESTS = 3000
DATABASE_REQUESTS = 50
SHOWS = 400

SWITCH_HEADER = "SWITCH"
ON, OFF = "on", "off"

STATEMENT = sqlalchemy.text("SELECT 1")


class Databases:
    """Where a deployment gets its databases, all of one kind, and queues in this process. Lives as long as the stack.

    :raises ServerMissing: if the server does not answer
    """

    def __init__(self, name: str, folder: Path, stack: contextlib.ExitStack) -> None:
        self.name = name
        self._folder = folder
        self._stack = stack
        if name == "mariadb":
            self._server, self._fresh = servers.mariadb_server(), servers.mariadb_database
        elif name == "postgresql":
            self._server, self._fresh = servers.postgresql_server(), servers.postgresql_database

    def database(self, name: str) -> str:
        """Return the URL of an empty database."""
        if self.name == "sqlite":
            return f"sqlite:///{self._folder}/{name}.sqlite"
        return self._stack.enter_context(self._fresh(self._server))

    def queue(self, name: str) -> str:
        """Return the URL of an empty queue."""
        return f"memory://{name}/"


def new_context() -> Any:
    """Make a context as Nova does for a user's request."""
    return nova_context.RequestContext(
        user_id=instances.USER, project_id=instances.PROJECT, roles=["member", "reader"], overwrite=False
    )


def filtered(app: WSGIApplication, **options: str) -> CellFilter:
    """Put the filter in front of the app, as the manual says to do in Nova's pipeline."""
    ini = RawConfigParser()
    ini.read(CELLS_INI)
    section = {name: value for name, value in ini["filter:cells"].items() if name != "use"}
    return CellFilter(app, section | options)


class Switch:
    """The filter in Nova's pipeline, or nothing, as a header of the request says. Lives as long as the pipeline.

    So what is in front of it and behind it is the very same: two pipelines that were made alike differ by more than
    the filter takes.
    """

    def __init__(self, app: WSGIApplication, **options: str) -> None:
        self._ways = {OFF: app, ON: CellFilter(app, options)}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return self._ways[environ["HTTP_" + SWITCH_HEADER]](environ, start_response)


def switch_factory(global_conf: dict[str, str], **options: str) -> Callable[[WSGIApplication], Switch]:
    """Make the switch for PasteDeploy."""
    return lambda app: Switch(app, **options)


def serve(app: WSGIApplication, path: str, context: Any) -> None:
    """Make one request, as a WSGI server does, with a context that is aimed at no cell."""
    context.db_connection = context.mq_connection = context.cell_uuid = None
    body = app({"PATH_INFO": path, "nova.context": context}, lambda status, headers, exc_info=None: print)
    for _chunk in body:
        pass
    close = getattr(body, "close", None)
    if close is not None:
        close()


def ask(context: Any) -> None:
    """Run a statement in the database that the context is aimed at."""
    with context.db_connection.reader.using(context) as session:
        session.execute(STATEMENT)


def asking_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """An app that has something to do in the cell's database."""
    ask(environ["nova.context"])
    return list_app(environ, start_response)


def nova_target(context: Any, uuid: str, *, asks: bool = False) -> None:
    """Find the instance's cell and target a copy of the context, by what Nova has for that."""
    mapping = objects.InstanceMapping.get_by_instance_uuid(context, uuid)
    with nova_context.target_cell(context, mapping.cell_mapping) as targeted:
        if asks:
            ask(targeted)


def nova_target_in_place(context: Any, uuid: str) -> None:
    """Find the instance's cell and target the context itself, by what Nova has for that."""
    mapping = objects.InstanceMapping.get_by_instance_uuid(context, uuid)
    nova_context.set_target_cell(context, mapping.cell_mapping)


def report_beside(
    figure: str, ours: list[float], name: str, theirs: list[float], database: str, limit: float | None = None
) -> None:
    """Print what ours takes, and how many times as long theirs does."""
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ratios)
    limited = {} if limit is None else {"limit": limit, "reached": ratio >= limit}
    report(
        figure,
        statistics.median(ours),
        database=database,
        beside=name,
        times=round(ratio, 2),
        interval=rounded(interval(ratios)),
        **limited,
    )


def measure_targeting(database: str, uuid: str, cell_uuid: str) -> None:
    """Measure the way to an open cell."""
    path = f"/servers/{uuid}"
    context = new_context()
    with (
        contextlib.closing(filtered(list_app)) as warm,
        contextlib.closing(filtered(list_app, mapping_ttl="0")) as cold,
    ):
        for cells in (warm, cold):
            serve(cells, path, context)
            assert context.cell_uuid == cell_uuid
        times = in_turn(
            {
                "bare": lambda: call_time(lambda: serve(list_app, path, context), REQUESTS),
                "warm": lambda: call_time(lambda: serve(warm, path, context), REQUESTS),
                "cold": lambda: call_time(lambda: serve(cold, path, context), DATABASE_REQUESTS),
                "nova": lambda: call_time(lambda: nova_target(context, uuid), DATABASE_REQUESTS),
                "nova_in_place": lambda: call_time(lambda: nova_target_in_place(context, uuid), DATABASE_REQUESTS),
            },
            REPEATS,
        )
    for name in ("nova", "nova_in_place"):
        report(name, statistics.median(times[name]), database=database)
    for name, limit in (("warm", 150), ("cold", None if database == "sqlite" else 2)):
        added = [time - bare for time, bare in zip(times[name], times["bare"], strict=True)]
        for beside in ("nova", "nova_in_place"):
            report_beside(name, added, beside, times[beside], database, limit)


def measure_first(database: str, uuid: str) -> None:
    """Measure the way to a statement in a cell that is not open yet; that to the API database is."""
    with contextlib.closing(filtered(asking_app)) as first:
        store = first.cells._store

        def ours() -> float:
            cells = deploy.cells(cfg.CONF, api_database=store)
            first.use(cells)
            context = new_context()
            try:
                return call_time(lambda: serve(first, f"/servers/{uuid}", context))
            finally:
                cells._upkeep.close()
                cells._pool.close()

        def theirs() -> float:
            api.close_cells()
            context = new_context()
            return call_time(lambda: nova_target(context, uuid, asks=True))

        times = in_turn({"first": ours, "nova_first": theirs}, REPEATS)
    report("nova_first", statistics.median(times["nova_first"]), database=database)
    report_beside("first", times["first"], "nova_first", times["nova_first"], database)


def measure_show(database: str, pipeline: api.Api, uuid: str) -> None:
    """Measure a whole request, with the filter and without."""

    def show(turn: str) -> float:
        def request() -> None:
            response = pipeline.request("GET", f"/v2.1/servers/{uuid}", headers={SWITCH_HEADER: turn})
            assert response.status_code == 200

        return call_time(request)

    for turn in (OFF, ON) * 5:
        show(turn)
    assert pipeline.cells is not None
    without, added = [], []
    with contextlib.closing(pipeline.cells):
        for _ in range(SHOWS):
            # so a machine that gets slower at a steady rate slows both alike
            before, first, second, after = (show(turn) for turn in (OFF, ON, ON, OFF))
            without += [before, after]
            added.append((first + second - before - after) / 2)
    whole = statistics.median(without)
    report("show", whole, database=database)
    low, high = interval(added)
    report(
        "show_added",
        statistics.median(added),
        database=database,
        interval=rounded((low, high)),
        percent=round(statistics.median(added) / whole * 100, 2),
        percent_interval=rounded((low / whole * 100, high / whole * 100)),
        resolved=low > 0 or high < 0,
        limit=0,
        reached=low <= 0,
    )


def measure(database: str, neighbours_url: str) -> None:
    """Measure everything on one kind of database.

    :raises ServerMissing: if it does not answer
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        deployment = Deployment(folder, Databases(database, folder, stack), neighbours=neighbours_url)
        deployment.sync()
        cell = deployment.add_cell("cell1")
        logging.disable()
        paste_ini = folder / "api-paste-switch.ini"
        write_paste_ini(paste_ini, CELLS_INI, settings={"use": "call:bench.vs_nova:switch_factory"})
        pipeline = api.load(deployment, paste_ini)
        stack.callback(api.close)
        uuid = instances.create("cell1").uuid
        stop_collecting()
        measure_targeting(database, uuid, cell.uuid)
        measure_first(database, uuid)
        measure_show(database, pipeline, uuid)


def main(*arguments: str) -> int:
    """Measure everything; or one database, with the URL under which Nova's neighbours answer, where both are given."""
    if arguments:
        try:
            measure(*arguments)
        except servers.ServerMissing as missing:
            print(missing, file=sys.stderr)
        return 0
    command = [sys.executable, "-m", "bench.vs_nova"]
    # in this process the neighbours take no time from Nova, whose configuration is one for each process
    with neighbours.serve() as url:
        statuses = [subprocess.run([*command, database, url], check=False).returncode for database in DATABASES]
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
