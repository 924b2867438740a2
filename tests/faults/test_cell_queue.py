# SPDX-License-Identifier: Apache-2.0
"""A cell's queue on real brokers: ones that serve, and ones that are killed, frozen, cut off or full."""

from __future__ import annotations

import gc
import json
import queue as queues
import socket
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import amqp
import oslo_messaging
import pytest
from oslo_config import cfg

from cellmw.cell import Cell
from cellmw.deadline import after
from cellmw.exceptions import CellUnavailable, DeadlineExceeded
from cellmw.limits import Limits
from cellmw.queues.cell_queue import CellQueue
from cellmw.queues.message_queue import ReplyTimeout
from tests.conftest import found
from tests.servers import private_rabbitmq

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers import Broker
    from tests.servers.private import Process

PATIENCE = 30
"""Seconds after which a test gives up on what has to come."""

DEADLINE = 1.0
"""Seconds until the deadline of a sender that is meant to leave."""

SLACK = 0.5
"""Seconds after its deadline by which a sender has left."""

AT_ONCE = 0.2

INTERVAL = 0.5
"""The longest pause between two probes."""

EXCHANGE, TOPIC = "exchange", "topic"

DURABLE = "?amqp_durable_queues=true"
"""What is sent while nobody listens is kept, over a restart too."""


pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(autouse=True)
def no_sockets_left() -> Iterator[None]:
    """Collect what the library leaves unclosed, when a broker dies or refuses it, while that is no error."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def until(condition: Callable[[], object]) -> None:
    """Return as soon as this is so, which has to be before patience ends."""
    deadline = after(PATIENCE)
    while not condition():
        assert monotonic() < deadline, "patience has ended"
        sleep(0.01)


class Sender:
    """Sends numbers to a queue. Lives as long as its test."""

    def __init__(self, queue: CellQueue, topic: str = TOPIC) -> None:
        self.queue = queue
        self._topic = topic

    def to(self, topic: str) -> Sender:
        """Send to another topic."""
        return Sender(self.queue, topic)

    def target(self, **options: Any) -> oslo_messaging.Target:
        """Return where it sends."""
        return oslo_messaging.Target(topic=self._topic, exchange=EXCHANGE, **options)

    def cast(self, number: Any = 0, seconds: float = PATIENCE, **options: Any) -> Any:
        """Send one."""
        message = {"method": "echo", "args": {"number": number}}
        return self.queue.send(after(seconds), self.target(), {}, message, **options)

    def call(self, number: Any = 0, seconds: float = PATIENCE, **options: Any) -> Any:
        """Send one, and return what comes back."""
        return self.cast(number, seconds, wait_for_reply=True, **options)

    def refused(self, kind: str, number: int, seconds: float) -> tuple[float, CellUnavailable]:
        """Return after how many seconds this was refused, and how."""
        begun = monotonic()
        with pytest.raises(CellUnavailable) as raised:
            getattr(self, kind)(number, seconds)
        assert raised.value.resource == "queue"
        assert raised.value.cause
        return monotonic() - begun, raised.value


@pytest.fixture
def open_sender(conf: cfg.ConfigOpts) -> Iterator[Callable[..., Sender]]:
    """Open the queue of this URL, for numbers that go to this topic."""
    with ExitStack() as opened:

        def open_(url: str, max_connections: int = 15) -> Sender:
            cell = Cell(1, "uuid1", "cell1", False, url, "sqlite://")
            limits = Limits(probe_interval=INTERVAL, max_connections=max_connections, patience=PATIENCE)
            queue = CellQueue.open(cell, conf, limits)
            opened.callback(queue.close)
            return Sender(queue)

        yield open_


class Endpoint:
    """What a server does."""

    def __init__(self) -> None:
        self.seen: queues.SimpleQueue[int] = queues.SimpleQueue()

    def echo(self, ctxt: Any, number: Any) -> Any:
        if number == "fail":
            raise OSError("of the server")
        self.seen.put(number)
        return number


@pytest.fixture
def serve(open_sender: Callable[..., Sender]) -> Iterator[Callable[..., Endpoint]]:
    """Serve a topic, with a transport that reconnects as fast as ours do."""
    with ExitStack() as started:

        def serve(url: str, topic: str = TOPIC) -> Endpoint:
            endpoint = Endpoint()
            sender = open_sender(url).to(topic)
            target = sender.target(server="server")
            server = oslo_messaging.get_rpc_server(sender.queue.transport, target, [endpoint])
            server.start()
            started.callback(server.wait)
            started.callback(server.stop)
            return endpoint

        yield serve


class Collector:
    """A queue of the broker that takes all numbers. It is empty to begin with, and lives as long as its vhost."""

    def __init__(self, url: str, topic: str = TOPIC, *, durable: bool = True) -> None:
        self._address = urlsplit(url)
        self._topic = topic
        with self._channel() as channel:
            channel.exchange_declare(EXCHANGE, "topic", durable=durable, auto_delete=False)
            channel.queue_declare(topic, durable=durable, auto_delete=False)
            channel.queue_bind(topic, EXCHANGE, topic)
            channel.queue_purge(topic)

    def numbers(self) -> list[int]:
        """Return what has come, and forget it."""
        numbers = []
        with self._channel() as channel:
            while message := channel.basic_get(self._topic, no_ack=True):
                numbers.append(json.loads(json.loads(message.body)["oslo.message"])["args"]["number"])
        return numbers

    @contextmanager
    def _channel(self) -> Iterator[amqp.Channel]:
        place = f"{self._address.hostname}:{self._address.port}"
        user = {"userid": self._address.username, "password": self._address.password}
        with amqp.Connection(place, virtual_host=self._address.path[1:], **user) as connection:
            yield connection.channel()


# -- brokers that don't answer ----------------------------------------------------------------------------------------


class Wire:
    """What is between the queue and the broker, and can be cut: nothing comes through then, and nobody is told.

    Its threads end with the connections that go through it.
    """

    def __init__(self, port: int | None, delay: float = 0.0) -> None:
        """Lead to this port.

        :param delay: seconds for which everything is on its way
        """
        self._to = ("127.0.0.1", port or 0)
        self._delay = delay
        self._whole = threading.Event()
        self._whole.set()
        self._fillers: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.port = self._listener.getsockname()[1]

    def open(self) -> None:
        """Take connections."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self.mend()
        self._listener.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Swallow everything: what is sent, and who connects."""
        self._whole.clear()
        # one gets as far as to us; when the kernel's own place is taken too, it answers nobody any more
        with suppress(TimeoutError):
            while True:
                self._fillers.append(socket.create_connection(("127.0.0.1", self.port), 0.3))

    def mend(self) -> None:
        """Let everything through again, also what was swallowed by the connections that are there."""
        while self._fillers:
            self._fillers.pop().close()
        self._whole.set()

    def _accept(self) -> None:
        with self._listener, suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._whole.wait()
                far = socket.create_connection(self._to)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with source, suppress(OSError):
            while data := source.recv(65536):
                sleep(self._delay)
                self._whole.wait()
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def new_wire() -> Iterator[Callable[..., Wire]]:
    """Lay a wire, which is there until the test has ended."""
    with ExitStack() as ends:

        def new(port: int | None, delay: float = 0.0) -> Wire:
            wire = Wire(port, delay)
            ends.callback(wire.close)
            wire.open()
            return wire

        yield new


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A broker that may be killed and frozen, with a vhost for all tests: each begins by emptying its queues."""
    with ExitStack() as stack:
        broker, process = found(lambda: stack.enter_context(private_rabbitmq.started_with_process()))
        yield Node(stack.enter_context(broker.vhost()), broker, process)


class Node(NamedTuple):
    """A private broker."""

    url: str
    broker: Broker
    process: Process


class Kill:
    """The broker's process is killed: what was open is closed, and connections are refused."""

    def __init__(self, node: Node, new_wire: Callable[..., Wire]) -> None:
        self.url = node.url
        self._process = node.process
        self._ends = ExitStack()

    def begin(self) -> None:
        """From now on it does not answer."""
        self._process.kill()
        self._ends.callback(self._process.restart)

    def end(self) -> None:
        """From now on it does."""
        self._ends.close()


class Freeze(Kill):
    """The broker's process is stopped: the kernel goes on taking connections, and what is sent."""

    def begin(self) -> None:
        self._process.freeze()
        self._ends.callback(self._process.thaw)


class BlackHole(Kill):
    """The network swallows everything."""

    def __init__(self, node: Node, new_wire: Callable[..., Wire]) -> None:
        super().__init__(node, new_wire)
        port = urlsplit(node.url).port
        self._wire = new_wire(port)
        self.url = node.url.replace(f":{port}/", f":{self._wire.port}/")

    def begin(self) -> None:
        self._wire.cut()
        self._ends.callback(self._wire.mend)


@pytest.fixture
def new_outage(node: Node, new_wire: Callable[..., Wire]) -> Iterator[Callable[[type[Kill]], Kill]]:
    """Prepare an outage of the private node, which is over when the test is."""
    with ExitStack() as ends:

        def new(kind: type[Kill]) -> Kill:
            outage = kind(node, new_wire)
            ends.callback(outage.end)
            return outage

        yield new


@pytest.mark.parametrize("kind", ["cast", "call"])
@pytest.mark.parametrize("use", ["first", "later"])
@pytest.mark.parametrize("what", [Kill, Freeze, BlackHole])
def test_outage(
    what: type[Kill],
    use: str,
    kind: str,
    node: Node,
    new_outage: Callable[[type[Kill]], Kill],
    open_sender: Callable[..., Sender],
    serve: Callable[..., Endpoint],
) -> None:
    """A broker that does not answer keeps nobody beyond the deadline, and what was not sent then never is."""
    collector = Collector(node.url)
    outage = new_outage(what)
    sender = open_sender(outage.url + DURABLE)
    if use == "later":
        sender.cast(0)
        if kind == "call":  # which has a connection more
            with pytest.raises(ReplyTimeout):
                sender.call(0, 0.5)
    outage.begin()
    seconds, first = sender.refused(kind, 1, DEADLINE)
    assert seconds < DEADLINE + SLACK
    assert first.sent == ("no" if use == "first" else "unknown")
    until(lambda: sender.queue.breaker.is_open)
    for number in (2, 3):
        seconds, refused = sender.refused(kind, number, PATIENCE)
        assert seconds < AT_ONCE
        assert refused.sent == "no"
    outage.end()
    until(lambda: not sender.queue.breaker.is_open and not sender.queue.stuck)
    sender.cast(4)
    numbers = collector.numbers()
    assert 4 in numbers
    assert not numbers.count(2) + numbers.count(3)
    assert first.sent == "unknown" or 1 not in numbers
    endpoint = serve(node.url + DURABLE, "served")
    assert sender.to("served").call(5) == 5
    assert endpoint.seen.get(timeout=PATIENCE) == 5


@pytest.mark.parametrize("what", [Kill, Freeze])
def test_who_comes_while_nobody_knows(
    what: type[Kill],
    node: Node,
    new_outage: Callable[[type[Kill]], Kill],
    open_sender: Callable[..., Sender],
) -> None:
    """Of many that send at the moment of an outage, each is told by its deadline, and few threads are stuck."""
    collector = Collector(node.url)
    outage = new_outage(what)
    sender = open_sender(outage.url + DURABLE)
    sender.cast(0)
    outage.begin()
    with ThreadPoolExecutor(12) as threads:
        sent = list(threads.map(lambda number: sender.refused("cast", number, DEADLINE), range(1, 13)))
    assert max(seconds for seconds, _ in sent) < DEADLINE + SLACK
    outage.end()
    until(lambda: not sender.queue.breaker.is_open and not sender.queue.stuck)
    numbers = collector.numbers()
    assert not [number for number, (_, error) in enumerate(sent, 1) if error.sent == "no" and number in numbers]


def test_restart(node: Node, open_sender: Callable[..., Sender], serve: Callable[..., Endpoint]) -> None:
    """After a restart that nobody has noticed the next message is sent, once, and calls are answered soon."""
    collector = Collector(node.url)
    sender = open_sender(node.url + DURABLE)
    serve(node.url + DURABLE, "served")
    assert sender.to("served").call(1) == 1
    node.process.kill()
    node.process.restart()
    restarted = monotonic()
    sender.cast(2)
    assert collector.numbers() == [2]
    assert sender.to("served").call(3) == 3
    assert monotonic() - restarted < 10
    assert not sender.queue.stuck


def test_alarm(node: Node, open_sender: Callable[..., Sender]) -> None:
    """A broker that is full and takes no more messages keeps few threads, and the others are refused."""
    collector = Collector(node.url)
    sender = open_sender(node.url + DURABLE)
    sender.cast(0)
    node.broker.administer("set_vm_memory_high_watermark", "0.000001")
    try:
        errors = [sender.refused("cast", number, 0.1)[1] for number in range(1, 9)]
        # the first one was written by its sender, and has left no thread
        assert [error.sent for error in errors] == ["unknown"] * 5 + ["no"] * 3
        assert not sender.queue.breaker.is_open, "it answers, though"
    finally:
        node.broker.administer("set_vm_memory_high_watermark", "0.4")
    until(lambda: not sender.queue.stuck)
    sender.cast(9)
    numbers = collector.numbers()
    assert 9 in numbers
    assert not {6, 7, 8}.intersection(numbers)


# -- brokers that do --------------------------------------------------------------------------------------------------


def test_served(rabbit_url: str, open_sender: Callable[..., Sender], serve: Callable[..., Endpoint]) -> None:
    """Casts, calls, fanouts and notifications arrive, and what a server raises is raised as it is."""
    endpoint = serve(rabbit_url)
    sender = open_sender(rabbit_url)
    sender.cast(1)
    assert sender.call(2) == 2
    sender.queue.send(
        after(PATIENCE), sender.target(fanout=True), {}, {"method": "echo", "args": {"number": 3}}, retry=0
    )
    assert sorted(endpoint.seen.get(timeout=PATIENCE) for _ in range(3)) == [1, 2, 3]
    with pytest.raises(OSError, match="of the server"):
        sender.call("fail")
    assert not sender.queue.breaker.is_open
    collector = Collector(rabbit_url, "notifications", durable=False)
    notifications = sender.to("notifications").target()
    sender.queue.send_notification(after(PATIENCE), notifications, {}, {"args": {"number": 4}}, 2.0)
    assert collector.numbers() == [4]


def test_timeouts(rabbit_url: str, open_sender: Callable[..., Sender]) -> None:
    """Where nobody replies the deadline ends a call, or the client's own timeout if that is earlier."""
    sender = open_sender(rabbit_url)
    with pytest.raises(ReplyTimeout):
        sender.call(1, DEADLINE, timeout=60)
    with pytest.raises(oslo_messaging.MessagingTimeout) as raised:
        sender.call(1, timeout=0.2)
    assert not isinstance(raised.value, ReplyTimeout)
    assert not sender.queue.breaker.is_open


def test_undeliverable(rabbit_url: str, open_sender: Callable[..., Sender]) -> None:
    """A message that must be taken, and that nobody takes, is the library's error."""
    options = oslo_messaging.TransportOptions(at_least_once=True)
    with pytest.raises(oslo_messaging.MessageUndeliverable):
        open_sender(rabbit_url).cast(1, transport_options=options)


def test_connections(rabbitmq_server: Broker, rabbit_url: str, open_sender: Callable[..., Sender]) -> None:
    """However many send, there are no more connections than was said, and one for the replies."""
    collector = Collector(rabbit_url)
    sender = open_sender(rabbit_url + DURABLE, max_connections=2)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(sender.cast, range(200)))
    vhost = urlsplit(rabbit_url).path[1:]
    assert rabbitmq_server.administer("list_connections", "vhost").split().count(vhost) <= 3
    assert sorted(collector.numbers()) == list(range(200))


def test_far_away(rabbit_url: str, new_wire: Callable[..., Wire], open_sender: Callable[..., Sender]) -> None:
    """A broker that is some milliseconds away is one that answers."""
    collector = Collector(rabbit_url)
    port = urlsplit(rabbit_url).port
    wire = new_wire(port, delay=0.005)
    sender = open_sender(rabbit_url.replace(f":{port}/", f":{wire.port}/") + DURABLE)
    sender.cast(1)
    assert collector.numbers() == [1]
    with pytest.raises(ReplyTimeout):
        sender.call(2, AT_ONCE)


@pytest.mark.parametrize(
    ("user", "vhost", "cause"), [("nobody", None, "AccessRefused 403"), (None, "no", "NotAllowed 530")]
)
def test_refused(
    user: str | None, vhost: str | None, cause: str, rabbit_url: str, open_sender: Callable[..., Sender]
) -> None:
    """A broker that won't have us is one that does not answer, with a reason, and without a URL."""
    address = urlsplit(rabbit_url)
    place = f"{user or address.username}:{address.password}@{address.hostname}:{address.port}"
    sender = open_sender(f"rabbit://{place}/{vhost or address.path[1:]}")
    outcomes = []
    for kind in ("cast", "call"):
        until(lambda: not sender.queue.breaker.is_open)
        seconds, error = sender.refused(kind, 1, PATIENCE)
        outcomes.append((error.cause, error.sent, seconds < PATIENCE / 2))
    assert outcomes == [(cause, "no", True)] * 2


def test_one_host_of_two(rabbit_url: str, open_sender: Callable[..., Sender]) -> None:
    """Where one host refuses connections the other is used, whichever comes first."""
    address = urlsplit(rabbit_url)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    user = f"{address.username}:{address.password}"
    for _ in range(4):  # the library goes through them in random order
        hosts = f"{user}@127.0.0.1:{port},{user}@{address.hostname}:{address.port}"
        sender = open_sender(f"rabbit://{hosts}{address.path}")
        sender.cast(1)
        with pytest.raises(DeadlineExceeded):
            sender.call(2, AT_ONCE)
