# SPDX-License-Identifier: Apache-2.0
"""Changes and an outage under load, on real servers: a cell moves to another database or vhost; the API database dies.

What is connected is asked at the servers. They need a moment to notice who has hung up, so they are asked until it is
so, or patience ends.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

import pytest
import sqlalchemy
from sqlalchemy import exc, pool, text

from cellmw import CellFilter
from cellmw.engines import make_engine
from cellmw.store import Store, migrations
from tests import servers
from tests.functional.conftest import PATIENCE, PROJECT, Answer, Api, Exchange, Workers, streaming
from tests.servers import private_postgresql
from tests.servers.addresses import POSTGRESQL, answer
from tests.servers.private import Home, free_ports, program
from tests.services.test_private_servers import has_ended, inhabitants, skip_where_not_installed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from _typeshed.wsgi import WSGIApplication

CONNECTIONS = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = :database",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = :database",
}
"""How to ask a server how many connections there are to a database."""

CLIENTS = 4

REFRESH_INTERVAL = "0.5"


def ask_until(wanted: Any, ask: Callable[[], Any]) -> None:
    """Ask until this is the answer, which it has to be before patience ends."""
    deadline = monotonic() + PATIENCE
    while (answer := ask()) != wanted and monotonic() < deadline:
        pass
    assert answer == wanted


def execute(url: str | sqlalchemy.URL, statement: str, **values: Any) -> Any:
    """Execute a statement by a connection of our own; return the first column of the first row, if there is any."""
    with sqlalchemy.create_engine(url, poolclass=pool.NullPool).begin() as connection:
        result = connection.execute(text(statement), values)
        return result.scalar() if result.returns_rows else None


def named(url: str, name: str) -> str:
    """Have an empty database answer with this name, and return its URL."""
    execute(url, "CREATE TABLE this_cell (name VARCHAR(255))")
    execute(url, "INSERT INTO this_cell VALUES (:name)", name=name)
    return url


class Deployment:
    """An API database and the cells that a test records in it. Lives as long as the test.

    :ivar store: the API database, for what happens behind the filter's back
    """

    def __init__(self, folder: Path, api_database: str) -> None:
        """Create the tables."""
        self._global_conf = {"oslo_config_project": "cellmw", "oslo_config_file": str(folder / "cellmw.conf")}
        (folder / "cellmw.conf").write_text(f"[api_database]\nconnection = {api_database}\n")
        self.store = Store(make_engine(api_database, {}, pre_ping=False))
        migrations.sync(self.store.engine)
        self._filters = ExitStack()

    def add_cell(self, name: str, database: str, queue: str) -> str:
        """Record a cell, and return its uuid."""
        return self.store.create_cell(name=name, database_connection=database, transport_url=queue).uuid

    def map(self, cell_uuid: str) -> str:
        """Map a new instance to this cell, and return its uuid."""
        instance_uuid = str(uuid.uuid4())
        cell = self.store.get_cell(cell_uuid)
        self.store.create_instance(instance_uuid, project_id=PROJECT, cell_id=cell.id)
        return instance_uuid

    def make_filter(self, app: WSGIApplication, **options: str) -> CellFilter:
        """Put a filter with these options in front of the app."""
        factory = CellFilter.factory(self._global_conf, refresh_interval=REFRESH_INTERVAL, **options)
        return self._filters.enter_context(closing(factory(app)))

    def close(self) -> None:
        """Close the filters, and hang up."""
        self._filters.close()
        self.store.close()


class Load:
    """Clients that send requests one after the other. Lives as long as its ``with`` block.

    :ivar answers: what they got
    """

    def __init__(self, send: Callable[[], Any]) -> None:
        """Send nothing yet."""
        self.answers: list[Any] = []
        self._send = send
        self._over = threading.Event()
        self._answered = threading.Semaphore(0)
        self._threads = ThreadPoolExecutor(CLIENTS)

    def _work(self, _: int) -> None:
        while not self._over.is_set():
            self.answers.append(self._send())
            self._answered.release()

    def wait_for_more(self) -> None:
        """Return when there were answers to requests that began after this."""
        while self._answered.acquire(blocking=False):
            """One more that was there before."""
        for _ in range(CLIENTS * 5):
            assert self._answered.acquire(timeout=PATIENCE)

    def __enter__(self) -> Self:
        self._clients = self._threads.map(self._work, range(CLIENTS))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._threads.shutdown()
        list(self._clients)


@pytest.fixture
def deployment(tmp_path: Path, new_mariadb_url: Callable[[], str]) -> Iterator[Deployment]:
    """A deployment whose API database is on MariaDB."""
    with closing(Deployment(tmp_path, new_mariadb_url())) as deployment:
        yield deployment


class Move:
    """A cell that is moved while requests are under way. Lives as long as the test.

    :ivar stream: a response that began before, of which one chunk was read
    :ivar answers: of the requests that were sent meanwhile
    """

    def __init__(self, deployment: Deployment, app: WSGIApplication, urls: dict[str, str], **new_urls: str) -> None:
        """Move the cell, whose answers are ``old`` before and ``new`` after that."""
        cell_uuid = deployment.add_cell("cell1", **urls)
        instance_uuid = deployment.map(cell_uuid)
        self._filter = deployment.make_filter(app)
        self.stream = Exchange(f"/servers/{instance_uuid}").send(self._filter)
        assert next(iter(self.stream.body)) == b"old "
        with Load(lambda: Exchange(f"/servers/{instance_uuid}").fetch(self._filter)) as load:
            load.wait_for_more()
            deployment.store.update_cell(cell_uuid, **new_urls)
            ask_until(b"new new new ", lambda: load.answers[-1].content)
            load.wait_for_more()
        self.answers: list[Answer] = load.answers

    def close(self) -> None:
        """End the response."""
        self.stream.close()


class MovedDatabase(Move):
    """A cell that has moved from MariaDB to another database. Lives as long as the test."""

    def __init__(self, deployment: Deployment, server: sqlalchemy.URL, old: str, new: str) -> None:
        """Move it.

        :param server: where the old database is
        """
        urls = {"database": named(old, "old"), "queue": "memory://cell1/"}
        super().__init__(deployment, streaming(Api().database), urls, database_connection=named(new, "new"))
        self._server, self._old = server, old

    def old_connections(self) -> int:
        """Ask the server how many connections there are to the old database."""
        database = sqlalchemy.make_url(self._old).database
        count: int = execute(self._server, CONNECTIONS[self._server.get_backend_name()], database=database)
        return count


@pytest.fixture(params=["mariadb to mariadb", "mariadb to postgresql", "postgresql to mariadb"])
def moved_database(request: pytest.FixtureRequest, deployment: Deployment) -> Iterator[MovedDatabase]:
    """A cell that has moved to another database."""
    old, new = request.param.split(" to ")
    urls = [request.getfixturevalue(f"new_{kind}_url")() for kind in (old, new)]
    with closing(MovedDatabase(deployment, request.getfixturevalue(f"{old}_server"), *urls)) as moved:
        yield moved


def test_requests_while_the_database_moves(moved_database: MovedDatabase) -> None:
    """No request fails, and each reads from one database from its beginning to its end."""
    assert {answer.code for answer in moved_database.answers} == {200}
    assert {answer.content for answer in moved_database.answers} == {b"old old old ", b"new new new "}


def test_stream_while_the_database_moves(moved_database: MovedDatabase) -> None:
    """A response that is under way reads on from the old database to its end, and then nobody is connected to it."""
    assert moved_database.old_connections() > 0
    assert b"".join(moved_database.stream.body) == b"old old "
    assert moved_database.old_connections() > 0
    moved_database.stream.close()
    ask_until(0, moved_database.old_connections)


class MovedQueue(Move):
    """A cell that has moved from one vhost to another; a worker is on each. Lives as long as the test."""

    def __init__(self, deployment: Deployment, broker: servers.Broker, database: str, old: str, new: str) -> None:
        """Move it."""
        self._broker, self._old = broker, old
        with ExitStack() as workers:
            self.workers = {
                name: workers.enter_context(closing(Workers({name: url})))
                for name, url in {"old": old, "new": new}.items()
            }
            urls = {"database": database, "queue": old}
            super().__init__(deployment, streaming(self._use), urls, transport_url=new)
            self._exits = workers.pop_all()

    _api = Api()

    def _use(self, context: Any) -> str:
        """Send the worker a message, and ask it who it is."""
        self._api.reboot(context, "one")
        return self._api.queue(context)

    def take_messages(self, *contents: str) -> None:
        """Take the messages that went with these contents. One more, in the end, is a failure."""
        for name, count in Counter(" ".join(contents).split()).items():
            for _ in range(count):
                self.workers[name].next()

    def old_connections(self) -> int:
        """Ask the broker how many connections there are to the old vhost."""
        return self._broker.administer("list_connections", "vhost").split().count(self._old.rpartition("/")[2])

    def close(self) -> None:
        """End the response and the workers."""
        super().close()
        self._exits.close()


@pytest.fixture
def moved_queue(
    deployment: Deployment, rabbitmq_server: servers.Broker, mariadb_url: str, new_rabbit_url: Callable[[], str]
) -> Iterator[MovedQueue]:
    """A cell that has moved to another vhost."""
    urls = new_rabbit_url(), new_rabbit_url()
    with closing(MovedQueue(deployment, rabbitmq_server, mariadb_url, *urls)) as moved:
        yield moved


def test_requests_while_the_queue_moves(moved_queue: MovedQueue) -> None:
    """No request fails, each talks to one worker from its beginning to its end, and each message arrives once."""
    contents = [answer.content.decode() for answer in moved_queue.answers]
    moved_queue.take_messages("old", *contents)
    assert {answer.code for answer in moved_queue.answers} == {200}
    assert set(contents) == {"old old old ", "new new new "}


def test_stream_while_the_queue_moves(moved_queue: MovedQueue) -> None:
    """A response that is under way uses the old queue to its end, and then nobody is connected to it."""
    assert b"".join(moved_queue.stream.body) == b"old old "
    moved_queue.take_messages("old old old", *(answer.content.decode() for answer in moved_queue.answers))
    # the connections that are left then are the filter's
    moved_queue.workers["old"].close()
    assert moved_queue.old_connections() > 0
    moved_queue.stream.close()
    ask_until(0, moved_queue.old_connections)


class MortalPostgresql:
    """A private PostgreSQL server that can be killed, and started again with what it had. Lives as long as its home."""

    def __init__(self, home: Home) -> None:
        """Make it, and start it."""
        folders = private_postgresql.FOLDERS
        initdb, self._postgres = (program(name, "postgresql", *folders) for name in ("initdb", "postgres"))
        (self._port,) = free_ports(1)
        self.url = sqlalchemy.make_url(POSTGRESQL).set(port=self._port)
        self._home = home
        self._data = home.path / "data"
        home.run(initdb, f"--pgdata={self._data}", "--auth=trust", f"--username={self.url.username}", "--no-sync")
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._home.start(
            *(self._postgres, "-D", str(self._data), "-p", str(self._port)),
            *("--listen_addresses=127.0.0.1", "--unix_socket_directories=", "--fsync=off"),
            end=signal.SIGQUIT,
            answers=lambda: answer(self.url),
            unless=(exc.DBAPIError,),
        )

    def kill(self) -> None:
        """Kill it, and wait until nothing is left of it: as long as there is, it does not start again."""
        processes = inhabitants(self._data)
        for process in processes:
            with suppress(ProcessLookupError):  # it has noticed that another is gone
                os.kill(process, signal.SIGKILL)
        assert all(map(has_ended, processes))
        os.waitpid(int((self._data / "postmaster.pid").read_text().split()[0]), 0)


@pytest.fixture
def api_server() -> Iterator[MortalPostgresql]:
    """The server of the API database."""
    with Home("PostgreSQL") as home:
        try:
            server = MortalPostgresql(home)
        except servers.ServerMissing as missing:
            skip_where_not_installed(missing)
        yield server


class Knowing:
    """A filter that knows an instance in each of two cells, and has to look them up again all the time.

    Lives as long as the test.

    :ivar known: the instances, by the names of their cells
    """

    def __init__(self, deployment: Deployment, databases: dict[str, str]) -> None:
        """Ask for both.

        :param databases: the URLs of the cells' databases, by the names of the cells
        """
        self.known: dict[str, str] = {}
        self._filter = deployment.make_filter(streaming(Api().database), mapping_ttl="0.1")
        for name, url in databases.items():
            self.known[name] = deployment.map(deployment.add_cell(name, named(url, name), f"memory://{name}/"))
            assert self.get(self.known[name]).code == 200
        self._turns = itertools.cycle(databases)

    def get(self, instance_uuid: str) -> Answer:
        """Ask for an instance."""
        return Exchange(f"/servers/{instance_uuid}").fetch(self._filter)

    def get_known(self) -> tuple[str, int, bytes]:
        """Ask for an instance that is known; return which cell it is in, and the answer."""
        name = next(self._turns)
        answer = self.get(self.known[name])
        return name, answer.code, answer.content


@pytest.fixture
def with_mortal_api(tmp_path: Path, api_server: MortalPostgresql) -> Iterator[Deployment]:
    """A deployment whose API database can be killed."""
    with closing(Deployment(tmp_path, api_server.url.render_as_string(hide_password=False))) as deployment:
        yield deployment


@pytest.fixture
def knowing(with_mortal_api: Deployment, mariadb_url: str, postgresql_url: str) -> Knowing:
    """The filter that knows two instances there."""
    return Knowing(with_mortal_api, {"cell1": mariadb_url, "cell2": postgresql_url})


def test_known_instances_while_the_api_database_is_down(
    api_server: MortalPostgresql, knowing: Knowing, caplog: pytest.LogCaptureFixture
) -> None:
    """When the API database is killed, and comes back, no request for an instance that is known fails."""
    with Load(knowing.get_known) as load:
        load.wait_for_more()
        api_server.kill()
        ask_until(True, lambda: "go by what was known" in caplog.text)
        load.wait_for_more()
        api_server.start()
        load.wait_for_more()
    assert set(load.answers) == {(cell, 200, f"{cell} {cell} {cell} ".encode()) for cell in knowing.known}


def test_unknown_instances_while_the_api_database_is_down(
    with_mortal_api: Deployment, api_server: MortalPostgresql, knowing: Knowing
) -> None:
    """Requests for others are told to come again while it is down, and served when it is back."""
    unknown = with_mortal_api.map(with_mortal_api.store.list_cells()[0].uuid)
    api_server.kill()
    with Load(knowing.get_known):
        answers = [knowing.get(unknown) for _ in range(3)]
        assert [(answer.code, answer.headers["Retry-After"]) for answer in answers] == [(503, "5")] * 3
        api_server.start()
        ask_until(200, lambda: knowing.get(unknown).code)


def test_fresh_when_the_api_database_is_back(
    with_mortal_api: Deployment, api_server: MortalPostgresql, knowing: Knowing
) -> None:
    """When it is back known instances go by what is true, too."""
    api_server.kill()
    assert knowing.get(knowing.known["cell1"]).content == b"cell1 cell1 cell1 "
    api_server.start()
    cells = {cell.name: cell.id for cell in with_mortal_api.store.list_cells()}
    with_mortal_api.store.update_instance(knowing.known["cell1"], cell_id=cells["cell2"])
    ask_until(b"cell2 cell2 cell2 ", lambda: knowing.get(knowing.known["cell1"]).content)
