# SPDX-License-Identifier: Apache-2.0
"""The trip on real servers: the API database on MariaDB, cell1 on PostgreSQL, cell2 on MariaDB, a vhost for each.

The cells are created by the real command. What a request did is asked at the databases themselves, by connections of
the test's own, and at the workers that got the messages.
"""

from __future__ import annotations

import random
import subprocess
import sysconfig
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from sqlalchemy import pool, text

from cellmw import CellFilter, database
from cellmw.engines import make_engine
from cellmw.exceptions import LeaseClosed
from cellmw.store import Store
from tests import servers
from tests.conftest import found
from tests.functional.conftest import PATIENCE, PROJECT, Answer, Api, Exchange, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from _typeshed.wsgi import StartResponse

MANAGE = Path(sysconfig.get_path("scripts")) / "cellmw-manage"

CELLS = ("cell1", "cell2")

CONNECTIONS = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = :database",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = :database",
}
"""How to ask a server how many connections there are to a database."""


def ask(url: str | sqlalchemy.URL, statement: str, **values: Any) -> Any:
    """Ask a database itself, by a connection of our own; return the first column of the first row, if there is any."""
    with sqlalchemy.create_engine(url, poolclass=pool.NullPool).begin() as connection:
        result = connection.execute(text(statement), values)
        return result.scalar() if result.returns_rows else None


def count_connections(server: sqlalchemy.URL, url: str) -> int:
    """Return how many connections there are to this database, as its server says."""
    count: int = ask(server, CONNECTIONS[server.get_backend_name()], database=sqlalchemy.make_url(url).database)
    return count


def count_queue_connections(broker: servers.Broker, url: str) -> int:
    """Return how many connections there are to this vhost, as RabbitMQ says."""
    return broker.administer("list_connections", "vhost").split().count(url.rpartition("/")[2])


class Deployment:
    """Cells on real servers, created as an operator does it. Lives as long as the module.

    :ivar databases: the URL of each database: ``api``, and each cell's by its name
    :ivar queues: the URL of each cell's queue, by the cell's name
    """

    def __init__(self, folder: Path, databases: dict[str, str], queues: dict[str, str]) -> None:
        """Create the tables and the cells."""
        self.databases = databases
        self.queues = queues
        self.global_conf = {"oslo_config_project": "cellmw", "oslo_config_file": str(folder / "cellmw.conf")}
        (folder / "cellmw.conf").write_text(f"[api_database]\nconnection = {databases['api']}\n")
        self._manage("api_db", "sync")
        self._manage("cell_v2", "map_cell0", "--database_connection", databases["cell0"])
        for cell, queue in queues.items():
            urls = ["--transport-url", queue, "--database_connection", databases[cell]]
            self._manage("cell_v2", "create_cell", "--name", cell, *urls)
        for cell in ("cell0", *queues):
            ask(databases[cell], "CREATE TABLE this_cell (name VARCHAR(255), visits INTEGER)")
            ask(databases[cell], "INSERT INTO this_cell VALUES (:name, 0)", name=cell)
        self.store = Store(make_engine(databases["api"], {}, pre_ping=False))
        self._ids = {cell.name: cell.id for cell in self.store.list_cells()}

    def _manage(self, *arguments: str) -> None:
        """Run cellmw-manage."""
        command = [MANAGE, "--config-file", self.global_conf["oslo_config_file"], *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def map(self, cell: str | None, project_id: str = PROJECT) -> str:
        """Map a new instance to this cell, or to none yet, and return its uuid."""
        instance_uuid = str(uuid.uuid4())
        cell_id = None if cell is None else self._ids[cell]
        self.store.create_instance(instance_uuid, project_id=project_id, cell_id=cell_id)
        return instance_uuid

    def visits(self) -> dict[str, int]:
        """Return how many writers have committed in each cell, as the cell's database says."""
        return {cell: ask(self.databases[cell], "SELECT visits FROM this_cell") for cell in CELLS}

    def close(self) -> None:
        """Hang up."""
        self.store.close()


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory,
    postgresql_server: sqlalchemy.URL,
    mariadb_server: sqlalchemy.URL,
    rabbitmq_server: servers.Broker,
) -> Iterator[Deployment]:
    """The servers, and on them cell0, which has no queue, cell1 and cell2."""
    with ExitStack() as made:
        databases = {
            "api": made.enter_context(servers.mariadb_database(mariadb_server)),
            "cell0": made.enter_context(servers.mariadb_database(mariadb_server)),
            "cell1": made.enter_context(servers.postgresql_database(postgresql_server)),
            "cell2": made.enter_context(servers.mariadb_database(mariadb_server)),
        }
        queues = {cell: found(lambda: made.enter_context(rabbitmq_server.vhost())) for cell in CELLS}
        folder = tmp_path_factory.mktemp("deployment")
        yield made.enter_context(closing(Deployment(folder, databases, queues)))


@pytest.fixture(scope="module")
def workers(deployment: Deployment) -> Iterator[Workers]:
    """A worker in cell1 and one in cell2. A message that no test takes is a failure."""
    with closing(Workers(deployment.queues)) as workers:
        yield workers


class App:
    """A service's API on any cell. Lives as long as the module.

    GET answers with what the database and the worker say which cell they are, one chunk each. POST leaves a mark in the
    database and sends the worker a message.
    """

    def __init__(self) -> None:
        self._api = Api()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        context, instance_uuid = environ["cellmw.context"], environ["cellmw.target"].instance_uuid
        if environ["REQUEST_METHOD"] == "POST":
            self._api.visit(context)
            self._api.reboot(context, instance_uuid)
            start_response("202 Accepted", [])
            return []
        start_response("200 OK", [("Content-Type", "text/plain")])
        return self._show(context)

    def _show(self, context: Any) -> Iterator[bytes]:
        yield self._api.database(context).encode()
        yield self._api.queue(context).encode()


@pytest.fixture(scope="module")
def cell_filter(deployment: Deployment, workers: Workers) -> Iterator[CellFilter]:
    """The filter in front of the API. In the end it has no lease open."""
    with closing(CellFilter.factory(deployment.global_conf)(App())) as cell_filter:
        yield cell_filter
        assert cell_filter.cells.leases == 0


@pytest.fixture
def send(cell_filter: CellFilter) -> Callable[..., Answer]:
    """Do a whole exchange with the API about an instance."""

    def send(instance_uuid: str, method: str = "GET") -> Answer:
        return Exchange(f"/servers/{instance_uuid}", method=method).fetch(cell_filter)

    return send


@pytest.mark.parametrize("cell", CELLS)
def test_show(deployment: Deployment, send: Callable[..., Answer], cell: str) -> None:
    """A request reads from its own cell's database and calls its own cell's worker."""
    assert send(deployment.map(cell)).content == f"{cell}{cell}".encode()


@pytest.mark.parametrize("cell", CELLS)
def test_action(deployment: Deployment, send: Callable[..., Answer], workers: Workers, cell: str) -> None:
    """A request writes to its own cell's database and to no other, and its message arrives at its own cell's worker."""
    instance_uuid = deployment.map(cell)
    before = deployment.visits()
    assert send(instance_uuid, "POST").code == 202
    assert deployment.visits() == before | {cell: before[cell] + 1}
    assert workers.next() == (cell, instance_uuid, PROJECT)


def test_cell0(deployment: Deployment, cell_filter: CellFilter) -> None:
    """An instance in cell0 is read from cell0's database; it has no worker to call."""
    request = Exchange(f"/servers/{deployment.map('cell0')}").send(cell_filter)
    assert next(iter(request.body)) == b"cell0"
    request.close()


def test_cell0_has_no_queue(deployment: Deployment, send: Callable[..., Answer]) -> None:
    """An action on an instance in cell0 is a conflict."""
    assert send(deployment.map("cell0"), "POST").code == 409


def test_unknown(send: Callable[..., Answer]) -> None:
    """An instance that is not mapped is not found."""
    assert send(str(uuid.uuid4())).code == 404


def test_other_project(deployment: Deployment, send: Callable[..., Answer]) -> None:
    """Nor is one of another project."""
    assert send(deployment.map("cell1", project_id="project-2")).code == 404


def test_building(deployment: Deployment, make_filter: Callable[..., CellFilter]) -> None:
    """An instance that has no cell yet is passed on, aimed at none."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [environ["cellmw.target"].state.encode()]

    request = Exchange(f"/servers/{deployment.map(None)}")
    assert request.fetch(make_filter(app)).content == b"building"


def test_client_gone(deployment: Deployment, cell_filter: CellFilter) -> None:
    """A client that is gone half-way ends the trip."""
    request = Exchange(f"/servers/{deployment.map('cell1')}").send(cell_filter)
    assert next(iter(request.body)) == b"cell1"
    assert cell_filter.cells.leases == 1
    request.close()
    assert cell_filter.cells.leases == 0


def test_many_at_once(deployment: Deployment, cell_filter: CellFilter) -> None:
    """Threads that serve both cells in random order get every answer out of the right one."""
    mapped = {deployment.map(cell): cell for cell in CELLS for _ in range(20)}
    together = threading.Barrier(8)

    def client(seed: int) -> list[str]:
        together.wait(PATIENCE)
        instances = random.Random(seed).choices(list(mapped), k=40)
        answers = {one: Exchange(f"/servers/{one}").fetch(cell_filter).content for one in instances}
        return [one for one, content in answers.items() if content != (mapped[one] * 2).encode()]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(client, range(8))) == [[]] * 8
    assert cell_filter.cells.leases == 0


@pytest.fixture
def make_filter(deployment: Deployment, workers: Workers) -> Iterator[Callable[..., CellFilter]]:
    """Put a filter of the test's own in front of an app."""
    with ExitStack() as made:
        yield lambda app: made.enter_context(closing(CellFilter.factory(deployment.global_conf)(app)))


@pytest.mark.parametrize("cell", CELLS)
def test_late_thread(deployment: Deployment, make_filter: Callable[..., CellFilter], cell: str) -> None:
    """A thread that goes on after the response reaches neither the database nor the queue."""
    ended = threading.Event()
    api = Api()

    def late(use: Callable[[Any], Any], context: Any) -> Any:
        assert ended.wait(PATIENCE)
        with pytest.raises(LeaseClosed, match=cell):
            use(context)

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        context = environ["cellmw.context"]
        api.visit(context)
        started.extend(threads.submit(late, use, context) for use in (api.visit, api.database, api.queue))
        start_response("200 OK", [])
        return []

    started: list[Future[Any]] = []
    before = deployment.visits()[cell]
    with ThreadPoolExecutor(3) as threads:
        assert Exchange(f"/servers/{deployment.map(cell)}").fetch(make_filter(app)).code == 200
        ended.set()
        for use in started:
            use.result(PATIENCE)
    assert deployment.visits()[cell] == before + 1


@pytest.mark.parametrize("cell", CELLS)
def test_session_left_open(
    deployment: Deployment, make_filter: Callable[..., CellFilter], cell: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A session that a handler left open in the middle of a write is rolled back, and holds no lock any more."""
    kept: list[Any] = []

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        kept.append(database.writer(environ["cellmw.context"]))
        kept[0].__enter__().execute(text("UPDATE this_cell SET visits = visits + 1000"))
        start_response("200 OK", [])
        return []

    before = deployment.visits()[cell]
    assert Exchange(f"/servers/{deployment.map(cell)}").fetch(make_filter(app)).code == 200
    assert f"cell {cell}: a session was left open" in caplog.text
    ask(deployment.databases[cell], "UPDATE this_cell SET visits = visits + 1")
    assert deployment.visits()[cell] == before + 1


class Census:
    """How many connections there are, as the servers say. Lives as long as the test."""

    def __init__(
        self, deployment: Deployment, administration: dict[str, sqlalchemy.URL], broker: servers.Broker
    ) -> None:
        self._deployment = deployment
        self._administration = administration
        self._broker = broker

    def take(self) -> dict[str, int]:
        """Count the connections to each database and each queue."""
        counted = {
            name: count_connections(self._administration[sqlalchemy.make_url(url).get_backend_name()], url)
            for name, url in self._deployment.databases.items()
        }
        queues = self._deployment.queues.items()
        return counted | {f"{cell}'s queue": count_queue_connections(self._broker, url) for cell, url in queues}

    def wait_for(self, expected: dict[str, int]) -> dict[str, int]:
        """Count until it comes to this, or patience ends: servers need a moment to notice who has hung up."""
        deadline = monotonic() + PATIENCE
        while (counted := self.take()) != expected and monotonic() < deadline:
            pass
        return counted


@pytest.fixture
def census(
    deployment: Deployment,
    postgresql_server: sqlalchemy.URL,
    mariadb_server: sqlalchemy.URL,
    rabbitmq_server: servers.Broker,
) -> Census:
    """Who counts the connections."""
    return Census(deployment, {"postgresql": postgresql_server, "mysql": mariadb_server}, rabbitmq_server)


def test_nothing_stays_open(deployment: Deployment, census: Census, make_filter: Callable[..., CellFilter]) -> None:
    """Making the filter connects to nothing; after close() every connection that its requests took is gone."""
    before = census.take()
    cell_filter = make_filter(App())
    assert census.take() == before
    for cell in CELLS:
        assert Exchange(f"/servers/{deployment.map(cell)}").fetch(cell_filter).code == 200
    during = census.take()
    assert {name for name in during if during[name] > before[name]} == {
        "api",
        "cell1",
        "cell2",
        "cell1's queue",
        "cell2's queue",
    }
    cell_filter.close()
    assert census.wait_for(before) == before
