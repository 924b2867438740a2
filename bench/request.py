# SPDX-License-Identifier: Apache-2.0
"""What the filter adds to a request: one JSON line per figure, in microseconds.

Each figure is the median over repeats of the time that one request takes, less that of the bare app alone. The repeats
of all figures take turns, so a machine whose speed drifts slows all of them alike: compare the figures of one run. The
context is in the environ already and is aimed at no cell, as a pipeline hands it over.

=============== =============================================================================================
``floor``       the least that a filter of this kind can do, written by hand: ``Floor`` below
``cached``      the filter, on an instance whose mapping is cached
``unmatched``   the filter, on a path that names no instance
``uncached``    the filter, on an instance whose mapping is looked up for every request
``select``      not a request: a SQLAlchemy Core select of that mapping, on the engine that the filter uses
=============== =============================================================================================

The first three are measured with a body that is a list, as WebOb's are, and with one that has to be iterated. The last
two are measured on SQLite and, where they answer, on MariaDB and PostgreSQL.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import sys
import tempfile
import threading
from pathlib import Path
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

from oslo_config import cfg
from sqlalchemy import bindparam, select

from bench.figures import limited, report
from cellmw import conf as options
from cellmw import deploy
from cellmw.context import RequestContext
from cellmw.filter import CellFilter
from cellmw.store import migrations
from cellmw.store.models import instance_mappings
from tests import servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

INSTANCE = "0dc0fb9e-3f6b-4d55-9a0e-7a1c27a6b9f1"
PATH = f"/servers/{INSTANCE}"
UNMATCHED_PATH = "/servers/detail"
PROJECT = "6f70656e737461636b20697320666f72"

REPEATS = 31
REQUESTS = 3000
DATABASE_REQUESTS = 200

CHUNKS = [b"{}"]


def list_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The least that an app can do; its body is complete when it returns."""
    start_response("200 OK", [("Content-Type", "application/json")])
    return CHUNKS


def iterator_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The least that an app can do whose body has to be iterated."""
    start_response("200 OK", [("Content-Type", "application/json")])
    return iter(CHUNKS)


class Floor:
    """A router as one would write it by hand for one service, with none of cellmw's guarantees.

    A regular expression on PATH_INFO, a look-up in a cache with a time to live under a lock, three attributes set on
    the context, and unset when the server closes the body.
    """

    _route = re.compile(r"/servers/([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})(?:/|\Z)")

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._cache = {INSTANCE: (monotonic() + 86_400, ("database", "transport", "cell uuid"))}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        found = self._route.match(environ["PATH_INFO"])
        if found is None:
            return self._app(environ, start_response)
        with self._lock:
            expires_at, cell = self._cache[found[1]]
            if expires_at < monotonic():
                raise LookupError
        context = environ["cellmw.context"]
        context.db_connection, context.mq_connection, context.cell_uuid = cell
        return FloorBody(self._app(environ, start_response), context)


class FloorBody:
    """The floor's body: unsets the attributes when it is closed."""

    __slots__ = ("_body", "_context")

    def __init__(self, body: Iterable[bytes], context: RequestContext) -> None:
        self._body = body
        self._context = context

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            context = self._context
            context.db_connection = context.mq_connection = context.cell_uuid = None


def request_time(app: WSGIApplication, path: str, requests: int) -> float:
    """Return the microseconds that a request takes, served as a WSGI server does."""
    context = RequestContext(project_id=PROJECT, overwrite=False)
    environ: dict[str, Any] = {"PATH_INFO": path, "cellmw.context": context}

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Callable[..., None]:
        return print

    start = perf_counter()
    for _ in range(requests):
        # every request brings a context of its own; making one costs more than all of what is measured here
        context.db_connection = context.mq_connection = context.cell_uuid = None
        body = app(environ, start_response)
        for _chunk in body:
            pass
        close = getattr(body, "close", None)
        if close is not None:
            close()
    return (perf_counter() - start) / requests * 1e6


def select_time(engine: Any, requests: int) -> float:
    """Return the microseconds that a bare select of the mapping takes."""
    columns = instance_mappings.c
    statement = select(
        columns.instance_uuid, columns.cell_id, columns.project_id, columns.user_id, columns.queued_for_delete
    ).where(columns.instance_uuid == bindparam("uuid"))
    start = perf_counter()
    for _ in range(requests):
        with engine.connect() as connection:
            connection.execute(statement, {"uuid": INSTANCE}).first()
    return (perf_counter() - start) / requests * 1e6


def medians(measures: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Let the measures take turns, and return the median of each."""
    samples: dict[str, list[float]] = {name: [] for name in measures}
    for measure in measures.values():
        measure()
    for _ in range(REPEATS):
        for name, measure in measures.items():
            samples[name].append(measure())
    return {name: statistics.median(values) for name, values in samples.items()}


@contextlib.contextmanager
def deployment(api_database: str, folder: Path, transport_url: str = "memory://cell1/") -> Iterator[cfg.ConfigOpts]:
    """An API database with one cell and one instance in it, as the configuration that leads there."""
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[], default_config_dirs=[])
    options.register_opts(conf)
    conf.set_override("connection", api_database, options.API_DATABASE)
    with deploy.store(conf) as store:
        migrations.sync(store.engine)
        cell = store.create_cell(
            name="cell1", transport_url=transport_url, database_connection=f"sqlite:///{folder}/cell1.db"
        )
        store.create_instance(INSTANCE, project_id=PROJECT, cell_id=cell.id)
    yield conf


def filtered(app: WSGIApplication, conf: cfg.ConfigOpts, *, mapping_ttl: float = 60.0) -> CellFilter:
    """The filter in front of the app."""
    conf.set_override("mapping_ttl", mapping_ttl, options.GROUP)
    return CellFilter(app, conf)


def measure_cached(conf: cfg.ConfigOpts, body: str, app: WSGIApplication) -> float:
    """Measure what takes no database; returns the cached figure."""
    with contextlib.closing(filtered(app, conf)) as cells:
        times = medians(
            {
                "bare": lambda: request_time(app, PATH, REQUESTS),
                "floor": lambda: request_time(Floor(app), PATH, REQUESTS),
                "cached": lambda: request_time(cells, PATH, REQUESTS),
                "unmatched": lambda: request_time(cells, UNMATCHED_PATH, REQUESTS),
            }
        )
    added = {name: time - times["bare"] for name, time in times.items()}
    floor = added["floor"]
    report("floor", floor, body=body)
    for name, limit in (("cached", 2.5), ("unmatched", 0.4)):
        report(
            name,
            added[name],
            body=body,
            over_floor=round(added[name] / floor, 2),
            **limited(added[name] / floor, limit),
        )
    return added["cached"]


def measure_uncached(database: str, conf: cfg.ConfigOpts, cached: float) -> None:
    """Measure the look-up of a mapping beside a bare select, on one database."""
    with contextlib.closing(filtered(list_app, conf, mapping_ttl=0.0)) as cells:
        engine = cells.cells._store.engine
        times = medians(
            {
                "bare": lambda: request_time(list_app, PATH, REQUESTS),
                "uncached": lambda: request_time(cells, PATH, DATABASE_REQUESTS),
                "select": lambda: select_time(engine, DATABASE_REQUESTS),
            }
        )
    uncached = times["uncached"] - times["bare"]
    report("select", times["select"], database=database)
    report("uncached", uncached, database=database, **limited(uncached, 1.3 * times["select"] + cached))


def main() -> int:
    """Measure everything."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        sqlite = stack.enter_context(deployment(f"sqlite:///{folder}/api.db", folder))
        measure_cached(sqlite, "iterator", iterator_app)
        cached = measure_cached(sqlite, "list", list_app)
        measure_uncached("sqlite", sqlite, cached)
        for database, server, fresh in (
            ("mariadb", servers.mariadb_server, servers.mariadb_database),
            ("postgresql", servers.postgresql_server, servers.postgresql_database),
        ):
            try:
                url = stack.enter_context(fresh(server()))
            except servers.ServerMissing as missing:
                print(missing, file=sys.stderr)
            else:
                measure_uncached(database, stack.enter_context(deployment(url, folder)), cached)
    return 0


if __name__ == "__main__":
    sys.exit(main())
