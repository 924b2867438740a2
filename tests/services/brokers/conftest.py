# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a cluster of three RabbitMQ nodes and one that is alone, cells with queues on them, and workers there.

The nodes are started for these tests, once in a run.
"""

from __future__ import annotations

import gc
import json
import queue
import sys
import threading
import warnings
from contextlib import ExitStack, closing
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import amqp
import oslo_messaging
import pytest
from oslo_config import cfg

from cellmw import RequestContext, deploy, engines, rpc
from cellmw.conf import register_opts
from cellmw.deadline import after
from cellmw.queues.message_queue import register_messaging_groups
from cellmw.store import Store, migrations
from tests.conftest import found
from tests.servers import private_rabbitmq

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cellmw import Cells
    from tests.servers.private_rabbitmq import Node

PATIENCE = 30
"""Seconds after which a test gives up on what has to come."""

REQUEST_DEADLINE = 3.0

TARGET = oslo_messaging.Target(topic="compute", exchange="cellmw")


PROMPT = "heartbeat_timeout_threshold=4&heartbeat_rate=2&kombu_reconnect_delay=0.1"
"""Has the library look around once in a second, so that its threads end soon when they are told to."""


def with_options(url: str, options: str) -> str:
    """Return the URL with these options in its query."""
    return f"{url}{'&' if '?' in url else '?'}{options}"


def until(condition: Callable[[], object]) -> None:
    """Return as soon as this is so, which has to be before patience ends."""
    deadline = after(PATIENCE)
    while not condition():
        assert monotonic() < deadline, "patience has ended"
        sleep(0.01)


@pytest.fixture(autouse=True)
def no_sockets_left() -> Iterator[None]:
    """Collect what the library leaves unclosed, when a broker dies or refuses it, while that is no error."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def nodes() -> Iterator[list[Node]]:
    """Four nodes, the first three of which are a cluster."""
    with ExitStack() as stack:
        nodes = found(lambda: stack.enter_context(private_rabbitmq.started_nodes(4)))
        for node in nodes[1:3]:
            node.join(nodes[0])
        yield nodes


@pytest.fixture
def cluster(nodes: list[Node]) -> list[Node]:
    """Three nodes that are a cluster."""
    return nodes[:3]


@pytest.fixture
def alone(nodes: list[Node]) -> Node:
    """A node that knows of no other."""
    return nodes[3]


@pytest.fixture
def vhost(nodes: list[Node]) -> Iterator[str]:
    """A vhost of this name on all nodes, empty."""
    with ExitStack() as made:
        url = made.enter_context(nodes[0].broker.vhost())
        name = url.rpartition("/")[2]
        nodes[3].broker.administer("add_vhost", name)
        made.callback(nodes[3].broker.administer, "delete_vhost", name)
        nodes[3].broker.administer("set_permissions", "-p", name, "guest", *[".*"] * 3)
        yield name


@pytest.fixture
def kill(vhost: str) -> Iterator[Callable[[Node], None]]:
    """Kill a node, which is there again after the test, and when the vhost is deleted."""
    with ExitStack() as restarts:

        def kill(node: Node) -> None:
            node.process.kill()
            restarts.callback(node.process.restart)

        yield kill


class Service:
    """An API service in front of cells. Lives as long as its test."""

    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        self._router = rpc.ClientRouter(None, target=TARGET)

    def cast(self, cell: str, number: int) -> None:
        """Send a number to a cell."""
        with self.cells.target(RequestContext(), self.cells.get(cell), after(REQUEST_DEADLINE)) as context:
            self._router.client(context).cast(context, "note", number=number)

    def call(self, cell: str) -> str:
        """Ask a cell which one it is."""
        with self.cells.target(RequestContext(), self.cells.get(cell), after(REQUEST_DEADLINE)) as context:
            answer: str = self._router.client(context).call(context, "which")
            return answer

    def queue(self, cell: str) -> Any:
        """Return a cell's open queue."""
        return self.cells._pool.handles[self.cells.get(cell).id].queue


@pytest.fixture
def serve_cells(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Make a service in front of cells with these names and transport URLs, by an API database on SQLite."""
    with ExitStack() as made:

        def serve_cells(**urls: str) -> Service:
            database = f"sqlite:///{tmp_path}/api.sqlite"
            with Store(engines.make_engine(database, {}, pre_ping=False)) as store:
                migrations.sync(store.engine)
                for cell, url in urls.items():
                    store.create_cell(
                        name=cell,
                        transport_url=with_options(url, PROMPT),
                        database_connection=f"sqlite:///{tmp_path}/{cell}",
                    )
            return Service(made.enter_context(closing(deploy.cells(_configuration(database)))))

        yield serve_cells


def _configuration(api_database: str = "") -> cfg.ConfigOpts:
    conf = cfg.ConfigOpts()
    conf([], project="cellmw", default_config_files=[], default_config_dirs=[])
    register_opts(conf)
    conf.set_override("connection", api_database, group="api_database")
    conf.set_override("request_deadline", REQUEST_DEADLINE, group="cellmw")
    conf.set_override("probe_interval", 0.5, group="cellmw")
    return conf


class Worker:
    """What a cell's worker does.

    :ivar noted: the numbers that came, in the order in which they did
    """

    def __init__(self, cell: str) -> None:
        self.noted: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._cell = cell

    def note(self, context: Any, number: int) -> None:
        """Take a number."""
        self.noted.put(number)

    def which(self, context: Any) -> str:
        """Say which cell this is."""
        return self._cell


@pytest.fixture
def start_worker() -> Iterator[Callable[[str, str], Worker]]:
    """Start a worker in the cell of this name, on a bus of this URL: it is a server as oslo.messaging has them."""
    with ExitStack() as started:

        def start_worker(cell: str, url: str) -> Worker:
            worker = Worker(cell)
            transport = oslo_messaging.get_rpc_transport(_configured_for_messaging(), with_options(url, PROMPT))
            started.callback(transport.cleanup)
            target = oslo_messaging.Target(topic=TARGET.topic, exchange=TARGET.exchange, server="host1")
            server = oslo_messaging.get_rpc_server(transport, target, [worker])
            server.start()
            started.callback(server.wait)
            started.callback(server.stop)
            return worker

        yield start_worker


def _configured_for_messaging() -> cfg.ConfigOpts:
    conf = _configuration()
    register_messaging_groups(conf)
    return conf


class Recorder:
    """A queue of the broker's, replicated over the cluster, that takes all that is sent to the workers' topic.

    Lives as long as its vhost.
    """

    def __init__(self, port: int, vhost: str) -> None:
        self._place = {"host": f"127.0.0.1:{port}", "virtual_host": vhost}
        with amqp.Connection(**self._place) as connection, connection.channel() as channel:
            channel.exchange_declare(TARGET.exchange, "topic", durable=True, auto_delete=False)
            arguments = {"x-queue-type": "quorum"}
            channel.queue_declare("recorder", durable=True, auto_delete=False, arguments=arguments)
            channel.queue_bind("recorder", TARGET.exchange, TARGET.topic)

    def messages(self) -> list[tuple[int, str]]:
        """Return the number and the unique id of each cast that came."""
        messages = []
        with amqp.Connection(**self._place) as connection, connection.channel() as channel:
            while message := channel.basic_get("recorder", no_ack=True):
                content = json.loads(json.loads(message.body)["oslo.message"])
                if content["method"] == "note":
                    messages.append((content["args"]["number"], content["_unique_id"]))
        return messages


def tell(capsys: pytest.CaptureFixture[str], what: str) -> None:
    """Show a figure to whoever runs the tests."""
    with capsys.disabled():
        sys.stdout.write(f"\n  {what} ")


class Stopwatch:
    """When something has last succeeded, and how long it did not. Lives as long as its test; shared by its threads."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._last = monotonic()
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        """It has."""
        with self._lock:
            now = monotonic()
            self.longest, self._last = max(self.longest, now - self._last), now
