# SPDX-License-Identifier: Apache-2.0
"""Fixtures: cells on SQLite files and in-memory queues, filters in front of an app, workers, and a client.

The client plays the server's part of WSGI one step at a time, so that each test says how its response ends.
"""

from __future__ import annotations

import io
import json
import logging
import queue
import sqlite3
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import oslo_messaging
import pytest
from oslo_config import cfg
from sqlalchemy import text

from cellmw import CellFilter, RequestContext, database, engines, rpc
from cellmw.cell import CELL0_UUID
from cellmw.store import Store, migrations
from cellmw.trip import TARGET_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from _typeshed.wsgi import StartResponse, WSGIApplication

    from cellmw.cell import Cell
    from cellmw.trip import Trip

PROJECT = "project-1"
"""The project of the client and, where a test says nothing else, of the instances."""

PATIENCE = 20
"""Seconds after which a test gives up on what has to come; a test that passes never waits for them."""

PASSWORD = "cell-Qx93-pw"
"""What the in-memory queue never looks at, and the URL of each has: where it shows, the test fails."""

TOPIC = oslo_messaging.Target(topic="compute", version="1.0")


class Deployment:
    """An API database with cells. Each cell is a SQLite file whose one row names it, and an in-memory queue.

    Lives as long as the fixture; opens nothing in the cells.

    :ivar store: the API database, for what happens behind the filter's back
    :ivar cells: the cells' records, by name
    :ivar global_conf: what the ini's ``[DEFAULT]`` section says of the configuration file
    """

    def __init__(self, folder: Path) -> None:
        """Take an empty folder and create the API database in it."""
        self._folder = folder
        engine = engines.make_engine(self.database_url("api"), {}, pre_ping=False)
        migrations.sync(engine)
        self.store = Store(engine)
        self.cells: dict[str, Cell] = {}
        self.global_conf = {"oslo_config_project": "cellmw", "oslo_config_file": str(folder / "cellmw.conf")}
        self.configure(self.database_url("api"))

    def configure(self, api_database: str) -> None:
        """Write the configuration file: pipelines that are loaded from now on use this API database.

        With a pool for as many threads as these tests have: what overflows it is opened anew for each look-up.
        """
        (self._folder / "cellmw.conf").write_text(
            f"[api_database]\nconnection = {api_database}\nmax_pool_size = 20\n[cellmw_database]\nmax_pool_size = 20\n"
        )

    def file(self, name: str) -> Path:
        """Return the SQLite file of a cell, or of the API."""
        return self._folder / f"{name}.sqlite"

    def database_url(self, name: str) -> str:
        """Return the URL of that file."""
        return f"sqlite:///{self.file(name)}"

    def add_cell(self, name: str, **record: Any) -> Cell:
        """Create a cell whose database knows the cell's name.

        :param record: what is different from other cells' records
        """
        with closing(sqlite3.connect(self.file(name))) as connection, connection:
            connection.execute("CREATE TABLE this_cell (name VARCHAR(255), visits INTEGER)")
            connection.execute("INSERT INTO this_cell VALUES (?, 0)", (name,))
        urls = {"transport_url": f"memory://user:{PASSWORD}@{name}/", "database_connection": self.database_url(name)}
        cell = self.cells[name] = self.store.create_cell(name=name, **urls | record)
        return cell

    def map(self, cell: str | None, project_id: str = PROJECT) -> str:
        """Map a new instance to this cell, or to none yet, and return its uuid."""
        instance_uuid = str(uuid.uuid4())
        cell_id = None if cell is None else self.cells[cell].id
        self.store.create_instance(instance_uuid, project_id=project_id, cell_id=cell_id)
        return instance_uuid

    def visits(self, cell: str) -> int:
        """Return how many writers have committed in the cell, asked at the file itself."""
        with closing(sqlite3.connect(self.file(cell))) as connection:
            visits: int = connection.execute("SELECT visits FROM this_cell").fetchone()[0]
            return visits


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    """cell0, which has no queue, and two cells that do."""
    deployment = Deployment(tmp_path)
    with deployment.store:
        deployment.add_cell("cell0", uuid=CELL0_UUID, transport_url="none:///")
        deployment.add_cell("cell1")
        deployment.add_cell("cell2")
        yield deployment


@pytest.fixture
def make_filter(deployment: Deployment) -> Iterator[Callable[..., CellFilter]]:
    """Put a filter with these options in front of an app, as PasteDeploy does; no lease may be open in the end."""
    with ExitStack() as ends:

        def make(app: WSGIApplication, **options: str) -> CellFilter:
            cell_filter = CellFilter.factory(deployment.global_conf, **options)(app)
            ends.callback(close_filter, cell_filter)
            return cell_filter

        yield make


def close_filter(cell_filter: CellFilter) -> None:
    """Close a filter, which has to be done with its requests."""
    open_leases = cell_filter.cells.leases if hasattr(cell_filter, "cells") else 0
    cell_filter.close()
    assert open_leases == 0


class News(logging.Handler):
    """What the log says of cells being retired and closed, as it comes. Lives as long as the test."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._messages: queue.SimpleQueue[str] = queue.SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        """Take one line."""
        self._messages.put(record.getMessage())

    def wait_for(self, message: str) -> None:
        """Return as soon as this was said; what was said before it is forgotten."""
        while self._messages.get(timeout=PATIENCE) != message:
            pass


@pytest.fixture
def news(caplog: pytest.LogCaptureFixture) -> Iterator[News]:
    """What the log says."""
    news = News()
    caplog.set_level(logging.INFO, "cellmw")
    logging.getLogger("cellmw").addHandler(news)
    yield news
    logging.getLogger("cellmw").removeHandler(news)


class Exchange:
    """A request and what becomes of it. Lives as long as the test; plays the server, and breaks PEP 3333 on demand.

    :ivar environ: the request's own
    :ivar status: the status line that arrived, empty before that
    :ivar headers: the headers that arrived
    :ivar answers: how often start_response was called, and with what ``exc_info``
    :ivar written: what went out by ``write()``
    :ivar body: what the app returned
    """

    def __init__(self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None, content: bytes = b""):
        """Prepare a request of the client's project.

        :param headers: by their names in CGI, as in ``HTTP_X_ROLES``
        """
        self.environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": "",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_LENGTH": str(len(content)),
            "HTTP_X_PROJECT_ID": PROJECT,
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(content),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        self.environ |= headers or {}
        self.status = ""
        self.headers: dict[str, str] = {}
        self.answers: list[Any] = []
        self.written: list[bytes] = []
        self.body: Any = None

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        """Take the app's status and headers."""
        self.answers.append(exc_info)
        self.status, self.headers = status, dict(headers)
        return self.written.append

    def send(self, app: WSGIApplication) -> Exchange:
        """Call the app; its body is neither read nor closed."""
        self.body = app(self.environ, self.start_response)
        return self

    def close(self) -> None:
        """Close the body, as often as this is called."""
        close = getattr(self.body, "close", None)
        if close is not None:
            close()

    def finish(self) -> bytes:
        """Read the body to its end and close it, whatever happens."""
        try:
            return b"".join(self.body)
        finally:
            self.close()

    def fetch(self, app: WSGIApplication) -> Answer:
        """Do the whole exchange as a good server does it."""
        content = self.send(app).finish()
        return Answer(self.status, self.headers, content)


class Answer:
    """What a client gets to see. Two are equal when no client could tell them apart."""

    def __init__(self, status: str, headers: dict[str, str], content: bytes) -> None:
        self.status = status
        self.headers = headers
        self.content = content

    @property
    def code(self) -> int:
        """The status as a number."""
        return int(self.status.split()[0])

    @property
    def json(self) -> Any:
        """The content, read."""
        return json.loads(self.content)


@pytest.fixture
def exchange() -> type[Exchange]:
    """A request for a path, and the steps of a server."""
    return Exchange


@pytest.fixture
def get() -> Callable[..., Answer]:
    """Ask an app for an instance, and do the whole exchange as a good server does it."""

    def get(app: WSGIApplication, instance_uuid: str, **request: Any) -> Answer:
        return Exchange(f"/servers/{instance_uuid}", **request).fetch(app)

    return get


class Endpoint:
    """What a cell's worker does. Lives as long as the worker."""

    def __init__(self, cell: str, seen: queue.SimpleQueue[tuple[str, str, Any]]) -> None:
        self._cell = cell
        self._seen = seen

    def which(self, context: RequestContext) -> str:
        """Answer which cell this is."""
        return self._cell

    def reboot(self, context: RequestContext, instance_uuid: str) -> None:
        """Note that this was asked for, by whom and where."""
        self._seen.put((self._cell, instance_uuid, context.project_id))


class Workers:
    """A worker on the queue of each cell. Lives as long as the fixture."""

    def __init__(self, queues: dict[str, str]) -> None:
        """Listen.

        :param queues: the cells' names, and their transport URLs
        """
        self._seen: queue.SimpleQueue[tuple[str, str, Any]] = queue.SimpleQueue()
        self._transports = [oslo_messaging.get_rpc_transport(cfg.CONF, url) for url in queues.values()]
        self._servers = [
            oslo_messaging.get_rpc_server(
                transport,
                oslo_messaging.Target(topic=TOPIC.topic, server=cell),
                [Endpoint(cell, self._seen)],
                serializer=rpc.ContextSerializer(),
            )
            for cell, transport in zip(queues, self._transports, strict=True)
        ]
        for server in self._servers:
            server.start()

    def next(self) -> tuple[str, str, Any]:
        """Return the cell that the next message arrived in, the instance that it is about, and its project."""
        return self._seen.get(timeout=PATIENCE)

    def close(self) -> None:
        """Work on what has arrived, and stop; what nobody has asked for is a failure."""
        for server in self._servers:
            server.stop()
        with ThreadPoolExecutor(len(self._servers)) as threads:
            list(threads.map(lambda server: server.wait(), self._servers))
        for transport in self._transports:
            transport.cleanup()
        assert self._seen.empty(), self._seen.get()


@pytest.fixture
def workers(deployment: Deployment) -> Iterator[Workers]:
    """A worker in cell1 and one in cell2. A message that the test does not take is a failure."""
    with closing(Workers({cell: f"memory://{cell}/" for cell in ("cell1", "cell2")})) as workers:
        yield workers


class Api:
    """What an app of these tests does with its context. Lives as long as the test; it names no cell."""

    def __init__(self) -> None:
        self.router = rpc.ClientRouter(None, target=TOPIC, timeout=PATIENCE, retry=1)

    def database(self, context: Any) -> str:
        """Ask the database that the context is aimed at which cell it is."""
        with database.reader(context) as session:
            return str(session.scalar(text("SELECT name FROM this_cell")))

    def visit(self, context: Any) -> None:
        """Write to that database."""
        with database.writer(context) as session:
            session.execute(text("UPDATE this_cell SET visits = visits + 1"))

    def queue(self, context: Any) -> str:
        """Ask the worker on the queue that the context is aimed at which cell it is."""
        return str(self.router.client(context).call(context, "which"))

    def reboot(self, context: Any, instance_uuid: str) -> None:
        """Send that worker a message."""
        self.router.client(context).cast(context, "reboot", instance_uuid=instance_uuid)


@pytest.fixture
def api() -> Api:
    """What an app does with its context."""
    return Api()


class Show:
    """An app that tells the client which database answered, and the test what it has found in its environ."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.calls = 0
        self.trip: Trip | None = None
        self.context: Any = None

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer with the name of the cell, or with nothing where the request has none."""
        self.calls += 1
        self.trip = environ.get(TARGET_KEY)
        self.context = environ.get("cellmw.context")
        aimed = getattr(self.context, "db_connection", None) is not None
        content = self._api.database(self.context).encode() if aimed else b""
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(content)))])
        return [content]


@pytest.fixture
def show(api: Api) -> Show:
    """An app that shows which cell its request was aimed at."""
    return Show(api)


def streaming(step: Callable[[Any], Any]) -> WSGIApplication:
    """Make an app whose body does this with its context three times, for one chunk each."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        context = environ["cellmw.context"]
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (f"{step(context)} ".encode() for _ in range(3))

    return app
