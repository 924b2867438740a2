# SPDX-License-Identifier: Apache-2.0
"""A cell moves to another database server and another vhost, and back, while threads read, cast and call in all cells.

What is connected is asked at PostgreSQL, MariaDB and RabbitMQ. They need a moment to notice who has hung up, so they
are asked until it is so, or patience ends.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

import oslo_messaging
import pytest
import sqlalchemy
from oslo_config import cfg

from cellmw import rpc
from tests import servers
from tests.faults.figures import show
from tests.functional.conftest import PATIENCE, TOPIC, Api, Exchange
from tests.services.test_change import CONNECTIONS, Deployment, ask_until, execute, named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _typeshed.wsgi import StartResponse

    from cellmw import CellFilter, RequestContext
    from tests.functional.conftest import Answer

CLIENTS = 6

CHUNKS = 3
"""Of each response; for each chunk the app reads, casts and calls."""

OLD, NEW = "old", "new"
"""Where the cell is at first and in the end, and where it is in between."""

STAYS = ("stays1", "stays2")
"""Cells that don't move."""


class Worker:
    """A worker on a queue. Lives as long as its ``with`` block; another one may come after it."""

    def __init__(self, name: str, url: str, seen: list[tuple[str, int]]) -> None:
        """Listen.

        :param seen: where it notes each message that arrives: its name, and the number of the message
        """
        self._name = name
        self._seen = seen
        self._transport = oslo_messaging.get_rpc_transport(cfg.CONF, url)
        target = oslo_messaging.Target(topic=TOPIC.topic, server=name)
        self._server = oslo_messaging.get_rpc_server(
            self._transport, target, [self], serializer=rpc.ContextSerializer()
        )
        self._server.start()

    def which(self, context: RequestContext) -> str:
        """Answer who this is."""
        return self._name

    def reboot(self, context: RequestContext, instance_uuid: str) -> None:
        """Note a message."""
        self._seen.append((self._name, int(instance_uuid)))

    def close(self) -> None:
        """Work on what has arrived, and stop."""
        self._server.stop()
        self._server.wait()
        self._transport.cleanup()


@dataclass
class Place:
    """Where a cell can be: a database, and a queue with a worker on it. Both answer with the name of the place.

    :ivar server: the server of the database, for questions
    """

    name: str
    database: str
    queue: str
    server: sqlalchemy.URL
    broker: servers.Broker

    @property
    def urls(self) -> dict[str, str]:
        """What the record of a cell in this place says."""
        return {"database_connection": self.database, "transport_url": self.queue}

    def connections(self) -> tuple[int, int]:
        """Ask the servers how many connections there are to the database and to the queue."""
        name = sqlalchemy.make_url(self.database).database
        to_database = execute(self.server, CONNECTIONS[self.server.get_backend_name()], database=name)
        vhosts = self.broker.administer("list_connections", "vhost").split()
        return to_database, vhosts.count(self.queue.rpartition("/")[2])


class App:
    """For each chunk of its response reads, casts and calls, and says who has answered. Shared by all threads."""

    def __init__(self) -> None:
        self._api = Api()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Take the number of the request from the environ: it goes with the casts."""
        context, number = environ["cellmw.context"], environ["test.number"]
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (self._chunk(context, number) for _ in range(CHUNKS))

    def _chunk(self, context: Any, number: int) -> bytes:
        self._api.reboot(context, str(number))
        return f"{self._api.database(context)} {self._api.queue(context)} ".encode()


def content(place: str, chunks: int = CHUNKS) -> bytes:
    """Return what so many chunks are that come from this place alone."""
    return f"{place} {place} ".encode() * chunks


def served_by(answer: Answer) -> str:
    """Return the place that has begun to answer."""
    return answer.content.decode().partition(" ")[0]


class Client:
    """Sends requests to all cells in turn. Lives as long as the load.

    :ivar answers: for each request its number, its cell and the answer
    """

    def __init__(self, cell_filter: CellFilter, instances: dict[str, str], numbers: Iterator[int]) -> None:
        """Send nothing yet."""
        self.answers: list[tuple[int, str, Answer]] = []
        self.over = threading.Event()
        self._answered = threading.Semaphore(0)
        self._filter = cell_filter
        self._instances = instances
        self._numbers = numbers

    def work(self) -> None:
        """Go on until it is over."""
        for cell in itertools.cycle(self._instances):
            if self.over.is_set():
                break
            number = next(self._numbers)
            exchange = Exchange(f"/servers/{self._instances[cell]}", headers={"test.number": number})
            self.answers.append((number, cell, exchange.fetch(self._filter)))
            self._answered.release()

    def wait_for_more(self) -> None:
        """Return when there were answers, from each of the cells, to requests that began after this."""
        while self._answered.acquire(blocking=False):
            """One more that was there before."""
        for _ in range(len(self._instances) + 1):
            assert self._answered.acquire(timeout=PATIENCE)


class Load:
    """Several clients. Lives as long as its ``with`` block."""

    def __init__(self, make_client: Callable[[], Client]) -> None:
        """Send nothing yet."""
        self.clients = [make_client() for _ in range(CLIENTS)]
        self._threads = ThreadPoolExecutor(CLIENTS)

    def wait_for_more(self) -> None:
        """Return when each client has got answers to requests that began after this."""
        for client in self.clients:
            client.wait_for_more()

    def __enter__(self) -> Self:
        self._working = [self._threads.submit(client.work) for client in self.clients]
        return self

    def __exit__(self, *exc_info: object) -> None:
        for client in self.clients:
            client.over.set()
        self._threads.shutdown()
        for working in self._working:
            working.result()


@dataclass
class Change:
    """One move of the cell, and what was seen of it.

    :ivar stream: what has arrived, after the change, of a response that began before
    :ivar during: how many connections there were to the database and to the queue that the cell has left, while that
        response had still to be closed
    :ivar after: the same when it was closed, and the servers had time to notice
    :ivar seconds: how long it took until a request was served from the new place
    """

    left: str
    stream: bytes
    during: tuple[int, int]
    after: tuple[int, int]
    seconds: float


@dataclass
class Story:
    """Two moves under load, and what was seen of it all.

    :ivar changes: there, and back
    :ivar clients: what they were answered
    :ivar seen: the messages that have arrived: the name of the worker, and their number
    :ivar others: which place has served the requests that no client has sent, by their numbers
    """

    changes: list[Change] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    seen: list[tuple[str, int]] = field(default_factory=list)
    others: dict[int, str] = field(default_factory=dict)


class Stage:
    """All places, the deployment and the load. Lives as long as the story is played."""

    def __init__(self, deployment: Deployment, places: dict[str, Place], ends: ExitStack) -> None:
        """Record the cells, and send the clients in.

        :param ends: where it puts what has to be closed at the end
        """
        self.story = Story()
        self._places = places
        self._store = deployment.store
        self._workers = {name: self._worker(name) for name in places}
        ends.callback(self._close_workers)
        uuids = {
            cell: deployment.add_cell(cell, places[place].database, places[place].queue)
            for cell, place in {"moves": OLD, **dict(zip(STAYS, STAYS, strict=True))}.items()
        }
        self._cell_uuid = uuids["moves"]
        self._instances = {cell: deployment.map(cell_uuid) for cell, cell_uuid in uuids.items()}
        self._filter = deployment.make_filter(App())
        self._numbers = itertools.count()
        self._load = Load(lambda: Client(self._filter, self._instances, self._numbers))
        self.story.clients = self._load.clients
        ends.enter_context(self._load)

    def move(self, left: str, entered: str) -> None:
        """Move the cell while a response is under way, and go on with that when all others come from the new place."""
        number = next(self._numbers)
        self.story.others[number] = left
        path = f"/servers/{self._instances['moves']}"
        stream = Exchange(path, headers={"test.number": number}).send(self._filter)
        try:
            assert next(iter(stream.body)) == content(left, 1)
            self._load.wait_for_more()
            begin = monotonic()
            self._store.update_cell(self._cell_uuid, **self._places[entered].urls)
            ask_until(entered, self._ask)
            seconds = monotonic() - begin
            self._load.wait_for_more()
            rest = b"".join(stream.body)
            # the connections that are left then are the filter's
            self._workers.pop(left).close()
            during = self._places[left].connections()
        finally:
            stream.close()
        self.story.changes.append(Change(left, rest, during, self._when_gone(left), seconds))
        self._workers[left] = self._worker(left)
        self._load.wait_for_more()

    def _when_gone(self, left: str) -> tuple[int, int]:
        deadline = monotonic() + PATIENCE
        while (connections := self._places[left].connections()) != (0, 0) and monotonic() < deadline:
            pass
        return connections

    def _ask(self) -> str:
        """Send one more request, and return which place has served it."""
        number = next(self._numbers)
        exchange = Exchange(f"/servers/{self._instances['moves']}", headers={"test.number": number})
        place = self.story.others[number] = served_by(exchange.fetch(self._filter))
        return place

    def _worker(self, name: str) -> Worker:
        return Worker(name, self._places[name].queue, self.story.seen)

    def _close_workers(self) -> None:
        with ThreadPoolExecutor(len(self._workers)) as threads:
            list(threads.map(lambda worker: worker.close(), self._workers.values()))


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory,
    postgresql_server: sqlalchemy.URL,
    mariadb_server: sqlalchemy.URL,
    rabbitmq_server: servers.Broker,
) -> Story:
    """The cell has moved from PostgreSQL to MariaDB and to another vhost, and back, and all load is over."""
    with ExitStack() as ends:
        postgresql = lambda: ends.enter_context(servers.postgresql_database(postgresql_server))  # noqa: E731
        mariadb = lambda: ends.enter_context(servers.mariadb_database(mariadb_server))  # noqa: E731
        databases = {
            OLD: (postgresql(), postgresql_server),
            NEW: (mariadb(), mariadb_server),
            STAYS[0]: (postgresql(), postgresql_server),
            STAYS[1]: (mariadb(), mariadb_server),
        }
        places = {
            name: Place(name, named(url, name), ends.enter_context(rabbitmq_server.vhost()), server, rabbitmq_server)
            for name, (url, server) in databases.items()
        }
        folder = tmp_path_factory.mktemp("change")
        deployment = ends.enter_context(closing(Deployment(folder, mariadb())))
        with ExitStack() as acts:
            stage = Stage(deployment, places, acts)
            stage.move(OLD, NEW)
            stage.move(NEW, OLD)
        return stage.story


def test_no_request_fails(story: Story) -> None:
    """No request fails, in whichever cell."""
    answers = [answer for client in story.clients for _, _, answer in client.answers]
    assert {answer.status for answer in answers} == {"200 OK"}


def test_each_request_is_in_one_place(story: Story) -> None:
    """Each request has the database and the queue of one place from its beginning to its end: one that its cell has."""
    seen: dict[str, set[bytes]] = {}
    for client in story.clients:
        for _, cell, answer in client.answers:
            seen.setdefault(cell, set()).add(answer.content)
    assert seen == {"moves": {content(OLD), content(NEW)}} | {cell: {content(cell)} for cell in STAYS}


def test_no_request_goes_back(story: Story) -> None:
    """Once a client was served from the new place it is never again from the old one, until the cell moves back."""
    for client in story.clients:
        contents = [answer.content for _, cell, answer in client.answers if cell == "moves"]
        assert [each for each, _ in itertools.groupby(contents)] == [content(OLD), content(NEW), content(OLD)]


def test_stream_ends_where_it_began(story: Story) -> None:
    """A response that is under way when its cell moves reads, casts and calls in the old place to its end."""
    assert [change.stream for change in story.changes] == [content(OLD, CHUNKS - 1), content(NEW, CHUNKS - 1)]


def test_old_connections_while_the_stream_lasts(story: Story) -> None:
    """As long as that response is not closed there are connections to the old database and the old queue."""
    assert all(count > 0 for change in story.changes for count in change.during)


def test_no_old_connections_afterwards(story: Story) -> None:
    """Afterwards PostgreSQL, MariaDB and RabbitMQ know of no connection to what the cell has left."""
    assert [change.after for change in story.changes] == [(0, 0), (0, 0)]


def test_each_message_arrives_once(story: Story) -> None:
    """Each cast arrives once, at the worker of the place that its request was served from."""
    sent = dict(story.others)
    for client in story.clients:
        sent |= {number: served_by(answer) for number, _, answer in client.answers}
    assert Counter(story.seen) == {(place, number): CHUNKS for number, place in sent.items()}


def test_figures(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    """There was load in every place, before and after each change."""
    answers = Counter(served_by(answer) for client in story.clients for _, _, answer in client.answers)
    figures = {"requests": answers, "seconds until followed": [round(change.seconds, 2) for change in story.changes]}
    show(capsys, figures)
    assert min(answers[place] for place in (OLD, NEW, *STAYS)) >= CLIENTS
