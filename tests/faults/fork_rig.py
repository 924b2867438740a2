# SPDX-License-Identifier: Apache-2.0
"""Real servers -> two cells with a worker each, a process that is in the middle of things, and who saw what of it.

==========  ==========  ========
postgresql  PostgreSQL  RabbitMQ
mariadb     MariaDB     RabbitMQ
==========  ==========  ========

The API database is on PostgreSQL.
"""

from __future__ import annotations

import json
import os
import uuid
from contextlib import ExitStack, closing
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Self, TypeVar

import sqlalchemy
from sqlalchemy import pool, text

from cellmw import CellFilter, RequestContext, database, rpc
from cellmw.engines import make_engine
from cellmw.store import Store, migrations
from tests import servers
from tests.faults.worker import TOPIC, Worker
from tests.functional.conftest import PROJECT, Exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from cellmw import Cells

T = TypeVar("T")

CELLS = ("postgresql", "mariadb")

PATIENCE = 30
"""Seconds after which a test gives up on what has to come."""

PAUSE = 0.05
"""Seconds between two questions to a server."""

CONNECTION = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT CONNECTION_ID()"}
"""How a connection learns its number."""

CONNECTIONS = {
    "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = :database AND pid <> pg_backend_pid()",
    "mysql": "SELECT id FROM information_schema.processlist WHERE db = :database AND id <> CONNECTION_ID()",
}
"""How to ask a server for the numbers of all connections to a database."""

STATEMENTS = {
    "postgresql": "SELECT query FROM pg_stat_activity WHERE datname = :database AND state = 'active'",
    "mysql": "SELECT info FROM information_schema.processlist WHERE db = :database AND command = 'Query'",
}
"""How to ask a server what it is doing in a database."""

CONFIGURATION = """\
[api_database]
connection = {api_database}
[cellmw]
request_deadline = 20
"""


def wait_for(ask: Callable[[], T], expected: Callable[[T], bool]) -> T:
    """Ask until the answer is as expected, or patience ends; return the last one."""
    deadline = monotonic() + PATIENCE
    while not expected(answer := ask()) and monotonic() < deadline:
        sleep(PAUSE)
    return answer


class Rig:
    """The deployment, and who asks its servers. Lives as long as its ``with`` block.

    :ivar plan: what another process has to know to take part
    :ivar workers: the cells' workers, by the names of the cells
    """

    def __init__(self, folder: Path, postgresql: sqlalchemy.URL, mariadb: sqlalchemy.URL, broker: servers.Broker):
        """Start nothing yet."""
        self._folder = folder
        self._servers = {"api": postgresql, "postgresql": postgresql, "mariadb": mariadb}
        self._broker = broker
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        """Create everything."""
        with ExitStack() as exits:
            self._api = exits.enter_context(servers.postgresql_database(self._servers["postgresql"]))
            self.databases = {
                "api": self._api,
                "postgresql": exits.enter_context(servers.postgresql_database(self._servers["postgresql"])),
                "mariadb": exits.enter_context(servers.mariadb_database(self._servers["mariadb"])),
            }
            self._vhosts = {cell: exits.enter_context(self._broker.vhost()) for cell in CELLS}
            self._create()
            self.workers = {
                # it takes a URL with a query
                cell: exits.enter_context(closing(Worker(cell, f"{url}?ssl=0", self._folder / cell)))
                for cell, url in self._vhosts.items()
            }
            for worker in self.workers.values():
                worker.wait_until_ready()
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._exits.close()

    def _create(self) -> None:
        configuration = self._folder / "cellmw.conf"
        configuration.write_text(CONFIGURATION.format(api_database=self._api))
        self.plan = {"configuration": str(configuration), "instances": {}}
        with Store(make_engine(self._api, {}, pre_ping=False)) as store:
            migrations.sync(store.engine)
            for cell in CELLS:
                self._ask(cell, "CREATE TABLE marks (name VARCHAR(255))")
                record = store.create_cell(
                    name=cell, database_connection=self.databases[cell], transport_url=self._vhosts[cell]
                )
                instance = self.plan["instances"][cell] = str(uuid.uuid4())
                store.create_instance(instance, project_id=PROJECT, cell_id=record.id)

    def add_cell(self, name: str, database_connection: str) -> None:
        """Create one more cell, which has no queue."""
        with Store(make_engine(self._api, {}, pre_ping=False)) as store:
            store.create_cell(name=name, database_connection=database_connection, transport_url=f"fake://{name}/")

    def marks(self, cell: str) -> list[str]:
        """Return what is committed in a cell, in the order of the alphabet."""
        return sorted(self._ask(cell, "SELECT name FROM marks"))

    def clear(self) -> None:
        """Forget all marks."""
        for cell in CELLS:
            self._ask(cell, "DELETE FROM marks")

    def connections(self, cell: str) -> set[int]:
        """Return the numbers of the connections to a cell's database, or to that of the API."""
        return set(self._ask_server(cell, CONNECTIONS))

    def statements(self, cell: str) -> list[str]:
        """Return what a cell's database is doing."""
        return self._ask_server(cell, STATEMENTS)

    def queue_connections(self, cell: str, process: int) -> set[str]:
        """Return the names of a process' connections to a cell's queue."""
        vhost = self._vhosts[cell].rpartition("/")[2]
        # oslo.messaging tells the broker who opens a connection
        lines = self._broker.administer("list_connections", "pid", "vhost", "client_properties").splitlines()
        rows = [line.split("\t") for line in lines]
        return {row[0] for row in rows if row[1] == vhost and f":{process}:" in row[2]}

    def _ask_server(self, cell: str, statements: dict[str, str]) -> list[Any]:
        url = sqlalchemy.make_url(self.databases[cell])
        with sqlalchemy.create_engine(self._servers[cell], poolclass=pool.NullPool).connect() as connection:
            statement = text(statements[url.get_backend_name()])
            return list(connection.execute(statement, {"database": url.database}).scalars())

    def _ask(self, cell: str, statement: str) -> list[Any]:
        with sqlalchemy.create_engine(self.databases[cell], poolclass=pool.NullPool).begin() as connection:
            result = connection.execute(text(statement))
            return list(result.scalars()) if result.returns_rows else []


class App:
    """A service's API on both cells: GET answers who has done what. Lives as long as its process.

    :ivar handle: what is done in the middle of a request, with its context
    """

    def __init__(self) -> None:
        self.handle: Callable[[Any], object] = lambda context: None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        context = environ["cellmw.context"]
        self.handle(context)
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"process": os.getpid(), **use(context)}).encode()]


def make_filter(plan: dict[str, Any], app: WSGIApplication, **options: str) -> CellFilter:
    """Put a filter in front of an app, as PasteDeploy does."""
    global_conf = {"oslo_config_project": "cellmw", "oslo_config_file": plan["configuration"]}
    return CellFilter.factory(global_conf, **options)(app)


def ask(plan: dict[str, Any], application: WSGIApplication, cell: str) -> dict[str, Any]:
    """Do a whole exchange about the instance in a cell."""
    answer = Exchange(f"/servers/{plan['instances'][cell]}").fetch(application)
    assert answer.code == 200, answer.content
    reply: dict[str, Any] = answer.json
    return reply


def connection_number(session: Any) -> int:
    """Return the number that the server has given to a session's connection."""
    number: int = session.scalar(text(CONNECTION[session.get_bind().dialect.name]))
    return number


def mark(session: Any, name: str) -> None:
    """Leave a mark in a cell, which is there when the session has committed."""
    session.execute(text("INSERT INTO marks VALUES (:name)"), {"name": name})


def use(context: Any, name: str | None = None, number: int | None = None) -> dict[str, Any]:
    """Use a cell's database and its queue.

    :param name: a mark to leave in the database
    :param number: a number to cast
    :returns: the number of the connection to the database, and who answered on the queue
    """
    with database.writer(context) as session:
        connection = connection_number(session)
        if name is not None:
            mark(session, name)
    client = rpc.ClientRouter(None, target=TOPIC).client(context)
    if number is not None:
        client.cast(context, "note", number=number)
    return {"connection": connection, "worker": client.call(context, "which")}


def use_cell(cells: Cells, cell: str, name: str | None = None, number: int | None = None) -> dict[str, Any]:
    """Use a cell in a block of one's own."""
    with cells.target(RequestContext(overwrite=False), cells.get(cell)) as context:
        return use(context, name, number)


def read(context: Any) -> None:
    """Read from a cell's database."""
    with database.reader(context) as session:
        session.execute(text("SELECT 1"))


def cast(context: Any) -> None:
    """Send a cell's worker something to note."""
    rpc.ClientRouter(None, target=TOPIC).client(context).cast(context, "note", number=0)


def raised(work: Callable[[], object]) -> str:
    """Return the name of the class of what this raises, empty if it does not."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - that is the question
        return type(error).__name__
    return ""
