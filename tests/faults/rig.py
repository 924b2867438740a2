# SPDX-License-Identifier: Apache-2.0
"""Private servers -> three cells and an API database on them, a worker for each cell, and filters in front of an app.

=======  ==============  ===================
cell1    PostgreSQL      RabbitMQ, node 1
cell2    MariaDB         RabbitMQ, node 2
cell3    PostgreSQL, 2   RabbitMQ, node 2
=======  ==============  ===================

The API database is on a PostgreSQL of its own. Every instance has a decoy in each of the other cells: a row with the
same uuid, so that a request which goes to a wrong cell finds something there, and shows it.
"""

from __future__ import annotations

import tempfile
import uuid
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import sqlalchemy
from sqlalchemy import pool, text

from cellmw import CellFilter, database, rpc
from cellmw.engines import make_engine
from cellmw.exceptions import CellUnavailable, DeadlineExceeded
from cellmw.store import Store, migrations
from tests import servers
from tests.faults.worker import TOPIC, Worker
from tests.functional.conftest import PROJECT
from tests.servers import private_mariadb, private_postgresql, private_rabbitmq

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from tests.servers.private import Process

CELLS = ("cell1", "cell2", "cell3")

NOWHERE = "unmapped"
"""What stands for a cell in requests for instances that have no mapping: only the API database can say so."""

SICK = {"broker": "cell1", "postgresql": "cell1", "mariadb": "cell2", "api database": NOWHERE}
"""Each victim, and whose requests suffer when it is down."""

SERVERS = {
    "broker": private_rabbitmq,
    "broker 2": private_rabbitmq,
    "postgresql": private_postgresql,
    "postgresql 2": private_postgresql,
    "mariadb": private_mariadb,
    "api database": private_postgresql,
}

INSTANCES = 5
"""How many instances each cell has."""

REQUEST_DEADLINE = 3.0

DURABLE = "?amqp_durable_queues=true"
"""Has the broker keep the queues, and so the messages, when it is killed."""

CONFIGURATION = """\
[api_database]
connection = {api_database}
max_pool_size = 20
[cellmw_database]
max_pool_size = 10
max_overflow = 5
[cellmw]
request_deadline = {deadline}
mapping_ttl = 1
refresh_interval = 1
"""


class Victim(NamedTuple):
    """A server that can be taken away."""

    process: Process
    port: int


class Rig:
    """The deployment. Lives as long as its ``with`` block.

    :ivar victims: the servers that can be taken away, by the names in :data:`SICK`
    :ivar instances: the uuids of the instances, by the names of their cells
    :ivar workers: the cells' workers, by the names of the cells
    """

    def __init__(self) -> None:
        """Start nothing yet."""
        self.instances = {cell: [str(uuid.uuid4()) for _ in range(INSTANCES)] for cell in CELLS}
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        """Start everything.

        :raises ServerMissing: if a server is not installed, or does not start
        """
        with ExitStack() as exits:
            folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="cellmw-faults-")))
            # the kernel ends a server with the thread that started it, so these live until the servers are gone
            threads = exits.enter_context(ThreadPoolExecutor())
            started = {
                name: threads.submit(lambda server=server: exits.enter_context(server.started_with_process()))
                for name, server in SERVERS.items()
            }
            # all of them, also where one fails: what starts later than that would not be ended
            futures.wait(started.values())
            up = {name: server.result() for name, server in started.items()}
            databases = {
                "api": exits.enter_context(servers.postgresql_database(up["api database"][0])),
                "cell1": exits.enter_context(servers.postgresql_database(up["postgresql"][0])),
                "cell2": exits.enter_context(servers.mariadb_database(up["mariadb"][0])),
                "cell3": exits.enter_context(servers.postgresql_database(up["postgresql 2"][0])),
            }
            brokers = {"cell1": "broker", "cell2": "broker 2", "cell3": "broker 2"}
            vhosts = {
                cell: threads.submit(lambda broker=up[name][0]: exits.enter_context(broker.vhost()))
                for cell, name in brokers.items()
            }
            futures.wait(vhosts.values())
            queues = {cell: vhost.result() + DURABLE for cell, vhost in vhosts.items()}
            self.victims = {name: Victim(up[name][1], up[name][0].port) for name in SICK}
            self._create(folder / "cellmw.conf", databases, queues)
            self.workers = {
                cell: exits.enter_context(closing(Worker(cell, url, folder / cell))) for cell, url in queues.items()
            }
            for worker in self.workers.values():
                worker.wait_until_ready()
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._exits.close()

    def _create(self, configuration: Path, databases: dict[str, str], queues: dict[str, str]) -> None:
        """Create the tables, the cells, the instances and their decoys."""
        configuration.write_text(CONFIGURATION.format(api_database=databases["api"], deadline=REQUEST_DEADLINE))
        self._global_conf = {"oslo_config_project": "cellmw", "oslo_config_file": str(configuration)}
        for cell in CELLS:
            with sqlalchemy.create_engine(databases[cell], poolclass=pool.NullPool).begin() as connection:
                connection.execute(text("CREATE TABLE instances (uuid VARCHAR(36) PRIMARY KEY, name VARCHAR(255))"))
                rows = [
                    {"uuid": instance, "name": home if home == cell else f"a decoy in {cell}"}
                    for home, instances in self.instances.items()
                    for instance in instances
                ]
                connection.execute(text("INSERT INTO instances VALUES (:uuid, :name)"), rows)
        with Store(make_engine(databases["api"], {}, pre_ping=False)) as store:
            migrations.sync(store.engine)
            for cell in CELLS:
                record = store.create_cell(name=cell, database_connection=databases[cell], transport_url=queues[cell])
                for instance in self.instances[cell]:
                    store.create_instance(instance, project_id=PROJECT, cell_id=record.id)

    def make_filter(self, app: App) -> CellFilter:
        """Put a filter in front of an app, as PasteDeploy does."""
        return CellFilter.factory(self._global_conf)(app)


class App:
    """A service's API on any cell. Lives as long as one scenario; its threads share it.

    ``/servers/UUID/read``, ``/call`` and ``/cast/NUMBER`` answer with what the database of the instance's cell says
    which cell it is, and ``call`` with what the worker says behind that.

    :ivar casts: what became of each number: ``acknowledged``, or whether it was sent as its error said
    """

    def __init__(self) -> None:
        self.casts: dict[int, str] = {}
        self._router = rpc.ClientRouter(None, target=TOPIC)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        context = environ["cellmw.context"]
        _, _, instance, kind, *number = environ["PATH_INFO"].split("/")
        with database.reader(context) as session:
            name = session.scalar(text("SELECT name FROM instances WHERE uuid = :uuid"), {"uuid": instance})
        if kind == "cast":
            self._cast(context, int(number[0]))
        elif kind == "call":
            name += self._router.client(context).call(context, "which")
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [name.encode()]

    def _cast(self, context: object, number: int) -> None:
        self.casts[number] = "unknown"
        try:
            self._router.client(context).cast(context, "note", number=number)
        except CellUnavailable as error:
            self.casts[number] = error.sent
            raise
        except DeadlineExceeded:
            # nobody waits for a reply, so it was a wait for a way to send it
            self.casts[number] = "no"
            raise
        self.casts[number] = "acknowledged"
