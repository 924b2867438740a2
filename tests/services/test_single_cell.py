# SPDX-License-Identifier: Apache-2.0
"""The smallest deployment: one cell, which shares its database server and its message bus with the API.

The service has a database and a bus of its own, as every service had before there were cells, and they are the cell's:
``cellmw-manage cell_v2 create_cell`` without URLs takes them from the service's own configuration. So a request that is
aimed at the cell and one that is aimed at nothing have to come to the same place, by handles that are not the same.
"""

from __future__ import annotations

import subprocess
import sysconfig
import uuid
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oslo_messaging
import pytest
import sqlalchemy
from oslo_config import cfg
from oslo_db.sqlalchemy import enginefacade
from sqlalchemy import pool, text

from cellmw import CellFilter, RequestContext, database, rpc
from cellmw.engines import make_engine
from cellmw.exceptions import LeaseClosed
from cellmw.store import Store
from tests import servers
from tests.conftest import found
from tests.functional.conftest import PATIENCE, PROJECT, TOPIC, Exchange, Workers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from _typeshed.wsgi import StartResponse

MANAGE = Path(sysconfig.get_path("scripts")) / "cellmw-manage"

CONFIGURATION = """\
[DEFAULT]
transport_url = {queue}
[database]
connection = {cell}
[api_database]
connection = {api}
"""


class Deployment:
    """One cell, and the service's own configuration, by which it was created. Lives as long as the module."""

    def __init__(self, folder: Path, api: str, cell: str, queue: str) -> None:
        """Create the tables and the cell.

        :param api: the URL of the API database
        :param cell: the URL of the cell's database, which is the service's own
        :param queue: the transport URL of the cell, which is the service's own
        """
        self.api, self.cell, self.queue = api, cell, queue
        self.global_conf = {"oslo_config_project": "cellmw", "oslo_config_file": str(folder / "cellmw.conf")}
        (folder / "cellmw.conf").write_text(CONFIGURATION.format(api=api, cell=cell, queue=queue))
        self._manage("api_db", "sync")
        self._manage("cell_v2", "create_cell", "--name", "cell1")
        with self.connect() as connection:
            connection.execute(text("CREATE TABLE this_cell (name VARCHAR(255), visits INTEGER)"))
            connection.execute(text("INSERT INTO this_cell VALUES ('cell1', 0)"))

    def _manage(self, *arguments: str) -> None:
        """Run cellmw-manage."""
        command = [MANAGE, "--config-file", self.global_conf["oslo_config_file"], *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    @contextmanager
    def connect(self) -> Iterator[sqlalchemy.Connection]:
        """A connection of the test's own to the cell's database, in a transaction."""
        with sqlalchemy.create_engine(self.cell, poolclass=pool.NullPool).begin() as connection:
            yield connection

    def visits(self) -> int:
        """Return how many writers have committed in the cell, as its database says."""
        with self.connect() as connection:
            visits: int = connection.execute(text("SELECT visits FROM this_cell")).scalar_one()
            return visits

    def map(self, *, built: bool = True) -> str:
        """Map a new instance to the cell, or to none yet, and return its uuid."""
        instance_uuid = str(uuid.uuid4())
        with Store(make_engine(self.api, {}, pre_ping=False)) as store:
            (cell,) = store.list_cells()
            store.create_instance(instance_uuid, project_id=PROJECT, cell_id=cell.id if built else None)
        return instance_uuid


@pytest.fixture(scope="module", params=["two databases on MariaDB", "one database on PostgreSQL"])
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The deployment; its API database is next to the cell's, or in it."""
    broker: servers.Broker = request.getfixturevalue("rabbitmq_server")
    with ExitStack() as made:
        if request.param == "two databases on MariaDB":
            server = request.getfixturevalue("mariadb_server")
            api, cell = (made.enter_context(servers.mariadb_database(server)) for _ in range(2))
        else:
            server = request.getfixturevalue("postgresql_server")
            api = cell = made.enter_context(servers.postgresql_database(server))
        queue = found(lambda: made.enter_context(broker.vhost()))
        yield Deployment(tmp_path_factory.mktemp("deployment"), api, cell, queue)


@pytest.fixture(scope="module")
def default_database(deployment: Deployment) -> Iterator[None]:
    """oslo.db's default database is the service's own, as ``[database] connection`` makes it in a process."""
    own = enginefacade.transaction_context()
    own.configure(connection=deployment.cell)
    # the default has no public name, and could otherwise be configured only once in this process
    reset = enginefacade._context_manager.patch_factory(own)
    yield
    reset()
    own.writer.get_engine().dispose()


@pytest.fixture(scope="module")
def workers(deployment: Deployment) -> Iterator[Workers]:
    """The worker on the bus. A message that no test takes is a failure."""
    with closing(Workers({"cell1": deployment.queue})) as workers:
        yield workers


@pytest.fixture(scope="module")
def router(deployment: Deployment, workers: Workers) -> Iterator[rpc.ClientRouter]:
    """A router whose default client is on the service's own bus."""
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, deployment.queue)
    yield rpc.ClientRouter(oslo_messaging.get_rpc_client(transport, TOPIC, timeout=PATIENCE, retry=1))
    transport.cleanup()


class App:
    """The API: does its work on whatever the context leads to. Lives as long as its filter.

    :ivar states: what each request was aimed at, None where that was nothing
    :ivar contexts: the contexts of the requests
    """

    def __init__(self, router: rpc.ClientRouter) -> None:
        self._router = router
        self.states: list[str | None] = []
        self.contexts: list[Any] = []

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Visit the database, send the worker a message, and ask both who they are."""
        context = environ.setdefault("cellmw.context", RequestContext(project_id=PROJECT))
        trip = environ.get("cellmw.target")
        self.states.append(trip and trip.state)
        self.contexts.append(context)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [self.work(context, environ["PATH_INFO"]).encode()]

    def work(self, context: Any, about: str) -> str:
        """Use the database and the queue, and return what both say which cell they are."""
        with database.writer(context) as session:
            session.execute(text("UPDATE this_cell SET visits = visits + 1"))
            name = session.scalar(text("SELECT name FROM this_cell"))
        client = self._router.client(context)
        client.cast(context, "reboot", instance_uuid=about)
        return f"{name} {client.call(context, 'which')}"


@pytest.fixture
def app(router: rpc.ClientRouter) -> App:
    """The API."""
    return App(router)


@pytest.fixture
def cell_filter(deployment: Deployment, default_database: None, app: App) -> Iterator[CellFilter]:
    """The filter in front of it."""
    with closing(CellFilter.factory(deployment.global_conf)(app)) as cell_filter:
        yield cell_filter


@pytest.fixture
def paths(deployment: Deployment) -> dict[str | None, str]:
    """What a request is aimed at -> a path for which that is so."""
    return {
        "targeted": f"/servers/{deployment.map()}",
        "building": f"/servers/{deployment.map(built=False)}",
        None: "/servers/detail",
    }


@pytest.mark.parametrize("aim", ["targeted", "building", None])
def test_right(
    deployment: Deployment, cell_filter: CellFilter, app: App, workers: Workers, paths: Any, aim: str | None
) -> None:
    """A request for an instance, for one without a cell yet and for none all come to the one database and bus."""
    before = deployment.visits()
    answer = Exchange(paths[aim]).fetch(cell_filter)
    assert app.states == [aim]
    assert answer.content == b"cell1 cell1"
    assert deployment.visits() == before + 1
    assert workers.next() == ("cell1", paths[aim], PROJECT)


def test_targeted_is_closed(cell_filter: CellFilter, app: App, workers: Workers, paths: Any) -> None:
    """A context that was aimed at the cell is closed afterwards, although the default would lead to the same place."""
    Exchange(paths["targeted"]).fetch(cell_filter)
    workers.next()
    with pytest.raises(LeaseClosed, match="cell1"):
        app.work(app.contexts[0], "late")


def test_untargeted_stays_open(cell_filter: CellFilter, app: App, workers: Workers, paths: Any) -> None:
    """A context that was aimed at nothing goes on to work, as it did before there were cells."""
    Exchange(paths[None]).fetch(cell_filter)
    workers.next()
    assert app.work(app.contexts[0], "late") == "cell1 cell1"
    assert workers.next() == ("cell1", "late", PROJECT)


def test_default_outlives_the_cells(cell_filter: CellFilter, app: App, workers: Workers, paths: Any) -> None:
    """Closing the cells closes nothing of the service's own, with which they share server and bus."""
    for path in paths.values():
        Exchange(path).fetch(cell_filter)
        workers.next()
    cell_filter.close()
    assert app.work(RequestContext(project_id=PROJECT), "after") == "cell1 cell1"
    assert workers.next() == ("cell1", "after", PROJECT)


def test_in_turn(cell_filter: CellFilter, app: App, workers: Workers, paths: Any) -> None:
    """A targeted request in between does not change where an untargeted one goes, and no lease is left of it."""
    in_turn = [None, "targeted", "building", "targeted", None]
    for aim in in_turn:
        assert Exchange(paths[aim]).fetch(cell_filter).content == b"cell1 cell1"
        assert workers.next() == ("cell1", paths[aim], PROJECT)
    assert app.states == in_turn
    assert cell_filter.cells.leases == 0
