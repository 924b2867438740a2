# SPDX-License-Identifier: Apache-2.0
"""What becomes of a message, where no broker can show it: who comes first, and who is let in.

The broker is faked; the driver's base, its pool of connections and what is around a connection are oslo.messaging's.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
import queue as queues
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from time import monotonic
from typing import TYPE_CHECKING, Any

import amqp
import kombu.exceptions
import oslo_messaging
import pytest
from oslo_messaging._drivers import amqpdriver, common, pool

from cellmw.cell import Cell
from cellmw.deadline import after
from cellmw.exceptions import CellMisconfigured, CellUnavailable, DeadlineExceeded
from cellmw.limits import Limits
from cellmw.queues import message_queue as module
from cellmw.queues.cell_queue import CellQueue
from cellmw.queues.message_queue import ReplyTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from oslo_config import cfg

PATIENCE = 20
"""Seconds after which a test gives up on what has to come; a test that passes never waits for them."""

SOON = 0.2
"""Seconds until the deadline of a sender that is meant to leave."""

SLACK = 0.5
"""Seconds after its deadline by which a sender has left."""

SECRET = "sesame"

TARGET = oslo_messaging.Target(topic="compute")


def until(condition: Callable[[], object]) -> None:
    """Return as soon as this is so, which has to be before patience ends."""
    deadline = after(PATIENCE)
    while not condition():
        assert monotonic() < deadline, "patience has ended"
        threading.Event().wait(0.002)


class Gate:
    """A place in the fake broker where threads can be held, and errors raised."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.came: queues.SimpleQueue[Any] = queues.SimpleQueue()
        self._open = threading.Event()
        self._open.set()

    def hold(self) -> None:
        """Let nobody pass any more."""
        self._open.clear()

    def open(self) -> None:
        """Let everybody pass."""
        self._open.set()

    def wait_until_somebody_came(self) -> Any:
        """Return what the next one who came has brought."""
        return self.came.get(timeout=PATIENCE)

    def pass_(self, what: Any = None) -> None:
        self.came.put(what)
        assert self._open.wait(PATIENCE)
        if self.error is not None:
            raise self.error


class FakeBroker:
    """What all connections of a driver lead to.

    :ivar connecting: where a connection is being made; who comes brings its purpose and its retry
    :ivar writing: where a message is being written; who comes brings its retry
    :ivar written: the numbers of the messages that were written
    """

    def __init__(self) -> None:
        self.connecting = Gate()
        self.writing = Gate()
        self.written: list[int] = []
        self.connected: list[str] = []


class FakeConnection:
    """What impl_rabbit's Connection is to the driver's base."""

    def __init__(self, broker: FakeBroker, purpose: str, retry: int | None) -> None:
        broker.connecting.pass_((purpose, retry))
        broker.connected.append(purpose)
        self._broker = broker
        self._over = threading.Event()

    def topic_send(self, msg: dict[str, Any], retry: int | None = None, **_: Any) -> None:
        self._broker.writing.pass_(retry)
        self._broker.written.append(common.deserialize_msg(msg)["number"])

    def notify_send(self, exchange: str, topic: str, msg: dict[str, Any], retry: int | None = None) -> None:
        self.topic_send(msg, retry)

    def consume(self, timeout: float | None = None) -> None:
        self._over.wait(timeout)
        raise common.Timeout

    def stop_consuming(self) -> None:
        self._over.set()

    def declare_direct_consumer(self, *_: Any) -> None: ...

    def reset(self) -> None: ...

    def close(self) -> None:
        self._over.set()


class World:
    """A queue before a fake broker, and threads that send. Lives as long as its test.

    :ivar answers: whether the probe does
    """

    def __init__(self, conf: cfg.ConfigOpts, threads: ThreadPoolExecutor, **options: Any) -> None:
        module.register_messaging_groups(conf)
        self.broker = FakeBroker()
        self.answers = True
        self.probes = 0
        url = oslo_messaging.TransportURL.parse(conf, options.get("url", f"rabbit://me:{SECRET}@host/"))
        places = options.get("places", 15)
        connections = pool.ConnectionPool(conf, places, 1, 1200, url, self._connect)
        driver = amqpdriver.AMQPDriverBase(conf, url, connections, "exchange", [])
        cell = Cell(1, "uuid1", "cell1", False, "rabbit://", "sqlite://")
        transport = oslo_messaging.transport.RPCTransport(driver)
        self.queue = CellQueue(cell, transport, self._probe, Limits(probe_interval=0.1, patience=PATIENCE))
        self._threads = threads

    def _connect(self, conf: Any, url: Any, purpose: str, retry: int | None = None) -> FakeConnection:
        return FakeConnection(self.broker, purpose, retry)

    def _probe(self) -> None:
        self.probes += 1
        if not self.answers:
            raise TimeoutError

    def cast(self, number: int = 0, seconds: float = PATIENCE, **options: Any) -> Any:
        """Send a message that wants no reply."""
        return self.queue.send(after(seconds), TARGET, {}, {"number": number}, **options)

    def call(self, number: int = 0, seconds: float = PATIENCE, **options: Any) -> Any:
        """Send a message that wants a reply, which never comes."""
        return self.cast(number, seconds, wait_for_reply=True, **options)

    def begin(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Future[Any]:
        """Do it in a thread."""
        return self._threads.submit(function, *arguments, **options)

    def end(self) -> None:
        """Let go of everybody."""
        self.answers = True
        self.broker.connecting.open()
        self.broker.writing.open()
        until(lambda: not self.queue.stuck)
        self.queue.close()


@pytest.fixture
def new_world(conf: cfg.ConfigOpts) -> Iterator[Callable[..., World]]:
    """Make a queue before a fake broker."""
    with ThreadPoolExecutor(32) as threads, ExitStack() as ends:

        def new(**options: Any) -> World:
            world = World(conf, threads, **options)
            ends.callback(world.end)
            return world

        yield new


@pytest.fixture
def world(new_world: Callable[..., World]) -> World:
    """A queue before a fake broker, which nobody has used."""
    return new_world()


@pytest.fixture
def used(world: World) -> World:
    """A queue that has been used, without a trace."""
    world.cast(-1)
    world.broker.written.clear()
    for gate in (world.broker.connecting, world.broker.writing):
        while not gate.came.empty():
            gate.came.get()
    return world


@pytest.fixture
def open_(conf: cfg.ConfigOpts) -> Iterator[Callable[..., CellQueue]]:
    """Open the queue of this URL."""
    with ExitStack() as opened:

        def open_(url: str | None, max_connections: int = 15) -> CellQueue:
            cell = Cell(1, "uuid1", "cell1", False, url, "sqlite://")
            queue = CellQueue.open(cell, conf, Limits(max_connections=max_connections, patience=PATIENCE))
            opened.callback(queue.close)
            return queue

        yield open_


def took(function: Callable[[], Any]) -> tuple[float, Exception]:
    """Return after how many seconds this has failed, and with what."""
    begun = monotonic()
    with pytest.raises(Exception) as raised:  # noqa: PT011 - the caller looks at it
        function()
    return monotonic() - begun, raised.value


# -- the first contact ------------------------------------------------------------------------------------------------


def test_contact_before_the_message(world: World) -> None:
    """The first message goes out after its connection was made, bounded, and without it."""
    world.broker.connecting.hold()
    sending = world.begin(world.cast, 1)
    assert world.broker.connecting.wait_until_somebody_came() == ("send", 0)
    assert world.broker.writing.came.empty()
    world.broker.connecting.open()
    sending.result(PATIENCE)
    assert (world.broker.connected, world.broker.written) == (["send"], [1])


def test_contact_before_the_first_call(used: World) -> None:
    """The connection for replies is made before the first call, bounded, and once."""
    for _ in range(2):
        with pytest.raises(ReplyTimeout):
            used.call(1, SOON)
    assert used.broker.connected == ["send", "listen"]
    assert used.broker.connecting.wait_until_somebody_came() == ("listen", 0)


def test_one_contact(world: World, together: Callable[..., list[Any]]) -> None:
    """Of many that come first, one makes the contact; the others wait for it."""
    world.broker.connecting.hold()
    opener = world.begin(lambda: (world.broker.connecting.wait_until_somebody_came(), world.broker.connecting.open()))
    assert together(8, lambda number: world.cast(number)) == [None] * 8
    opener.result(PATIENCE)
    assert "listen" not in world.broker.connected
    assert sorted(world.broker.written) == list(range(8))


def test_contact_goes_on(world: World) -> None:
    """Who has waited for the contact until its deadline leaves it to itself; a later one joins it."""
    world.broker.connecting.hold()
    for number in range(8):
        seconds, error = took(lambda number=number: world.cast(number, SOON / 4))  # type: ignore[misc]
        assert seconds < SOON + SLACK
        assert isinstance(error, CellUnavailable)
        assert error.sent == "no"
    assert world.broker.connecting.came.qsize() == 1
    assert len(world.queue.stuck) == 1
    joining = world.begin(world.cast, 9)
    world.broker.connecting.open()
    joining.result(PATIENCE)
    assert world.broker.written == [9]


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (kombu.exceptions.OperationalError("down"), "OperationalError"),
        (OSError(113, f"no route to {SECRET}"), "OSError EHOSTUNREACH"),
        (amqp.AccessRefused(f"not {SECRET}"), "AccessRefused 403"),
        (amqp.NotAllowed(f"not {SECRET}"), "NotAllowed 530"),
        (ValueError(f"port {SECRET}"), "ValueError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_contact_fails(world: World, error: Exception, cause: str, caplog: pytest.LogCaptureFixture) -> None:
    """A contact that fails opens the breaker, and says why without what the library says of the URL."""
    world.answers = False
    world.broker.connecting.error = error
    _, first = took(world.cast)
    assert isinstance(first, CellUnavailable)
    assert (first.resource, first.cause, first.sent) == ("queue", cause, "no")
    assert first.__cause__ is None
    assert world.queue.breaker.is_open
    assert SECRET not in str(first) + caplog.text
    assert "cell1" in caplog.text


def test_contact_is_made_again(world: World) -> None:
    """After a contact that has failed the next message makes it, once the probe has succeeded."""
    world.answers = False
    world.broker.connecting.error = ConnectionRefusedError()
    took(world.cast)
    world.broker.connecting.error = None
    _, error = took(lambda: world.cast(1))
    assert isinstance(error, CellUnavailable)
    world.answers = True
    until(lambda: not world.queue.breaker.is_open)
    world.cast(2)
    assert world.broker.written == [2]


def test_no_thread(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be had for the contact, the next message makes it."""
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", _no_more_threads)
        with pytest.raises(RuntimeError):
            world.cast(1)
    world.cast(2)
    assert world.broker.written == [2]


def _no_more_threads(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_refused_is_not_probed_away(world: World) -> None:
    """A broker that answers and refuses us stays refused for a while: nobody tries at each answer to a probe."""
    world.answers = True
    world.broker.connecting.error = amqp.AccessRefused()
    begun = monotonic()
    took(world.cast)
    until(lambda: not world.queue.breaker.is_open)
    assert monotonic() - begun >= 0.05
    assert not world.probes or world.probes == 1


# -- what becomes of a message ----------------------------------------------------------------------------------------


def test_left_while_connecting(used: World) -> None:
    """Who leaves while its message waits for a connection knows that it is not sent; then it never is."""
    used.broker.writing.hold()
    holding = used.begin(used.cast, 1)
    used.broker.writing.wait_until_somebody_came()
    used.broker.connecting.hold()
    seconds, error = took(lambda: used.cast(2, SOON))
    assert SOON <= seconds < SOON + SLACK
    assert isinstance(error, CellUnavailable)
    assert error.sent == "no"
    used.broker.connecting.open()
    used.broker.writing.open()
    holding.result(PATIENCE)
    until(lambda: not used.queue.stuck)
    assert used.broker.written == [1]
    assert used.probes
    assert used.broker.connected.count("send") == 2, "the connection that came too late was not kept"


@pytest.mark.parametrize("kind", ["cast", "call", "notification"])
def test_left_while_writing(used: World, kind: str) -> None:
    """Who leaves while its message is being written knows that nobody knows."""
    used.broker.writing.hold()

    def send() -> None:
        if kind == "notification":
            used.queue.send_notification(after(SOON), TARGET, {}, {"number": 1}, 2.0)
        else:
            getattr(used, kind)(1, SOON)

    seconds, error = took(send)
    assert SOON <= seconds < SOON + SLACK
    assert isinstance(error, CellUnavailable)
    assert error.sent == "unknown"
    assert len(used.queue.stuck) == 1
    until(lambda: used.probes)


def test_the_moment_of_leaving(together: Callable[..., list[Any]]) -> None:
    """A sender that leaves at the moment at which its message gets a connection is told what the message does."""
    for _ in range(300):
        passage = module._Passage(after(PATIENCE), True, False)
        passage.reach(module._Stage.CONNECTING)
        goes_out, left_at = together(
            2,
            lambda number, passage=passage: passage.leave() if number else passage.reach(module._Stage.IN_HAND),  # type: ignore[misc]
        )
        assert goes_out == (left_at is module._Stage.IN_HAND)
        assert passage.sent == ("unknown" if goes_out else "no")


def test_no_place(new_world: Callable[..., World]) -> None:
    """Where all connections are in use a sender waits until its deadline, and its message is not sent."""
    world = new_world(places=1)
    world.cast(0)
    world.broker.writing.hold()
    holding = world.begin(world.cast, 1)
    until(lambda: world.broker.writing.came.qsize() == 2)
    seconds, error = took(lambda: world.cast(2, SOON))
    assert SOON <= seconds < SOON + SLACK
    assert type(error) is DeadlineExceeded
    assert error.waited_for == "a connection to the queue of cell cell1"
    assert not world.queue.stuck
    world.broker.writing.open()
    holding.result(PATIENCE)
    world.cast(3)
    assert world.broker.written == [0, 1, 3]


def test_a_place_is_given_back(new_world: Callable[..., World]) -> None:
    """A connection that can't be made, and a message that can't be written, take no place with them."""
    world = new_world(places=2)
    world.cast(0)
    world.broker.writing.error = oslo_messaging.MessageUndeliverable(None, None, None, None)
    for _ in range(3):
        assert isinstance(took(world.cast)[1], oslo_messaging.MessageUndeliverable)
    world.broker.writing.error = None
    world.broker.writing.hold()
    holding = world.begin(world.cast, 1)
    until(lambda: world.broker.writing.came.qsize() == 5)
    world.broker.connecting.error = ConnectionRefusedError()
    for _ in range(3):
        world.answers = False
        _, error = took(world.cast)
        assert isinstance(error, CellUnavailable)
        assert error.sent == "no"
        assert world.queue.breaker.is_open
        world.answers = True
        until(lambda: not world.queue.breaker.is_open)
    world.broker.connecting.error = None
    sending = world.begin(world.cast, 2)
    world.broker.writing.open()
    holding.result(PATIENCE)
    sending.result(PATIENCE)
    assert sorted(world.broker.written) == [0, 1, 2]


def test_waits_no_longer_once_it_is_down(new_world: Callable[..., World]) -> None:
    """Who gets a place after the queue was found to be down does not try it."""
    world = new_world(places=1)
    world.answers = False
    world.cast(0)
    world.broker.writing.hold()
    holding = world.begin(world.cast, 1)
    until(lambda: world.broker.writing.came.qsize() == 2)
    waiting = world.begin(world.cast, 2)
    until(lambda: world.queue._door._places._cond._waiters)  # type: ignore[union-attr]
    world.queue.breaker.failed("down")
    world.broker.writing.open()
    holding.result(PATIENCE)
    error = waiting.exception(PATIENCE)
    assert isinstance(error, CellUnavailable)
    assert (error.cause, error.sent) == ("down", "no")
    assert world.broker.written == [0, 1]


def test_few_are_stuck(used: World) -> None:
    """When a few threads are stuck nobody else is let in, until one of them is free."""
    used.broker.writing.hold()
    leaving = [used.begin(used.cast, number, SOON) for number in range(5)]
    for each in leaving:
        error = each.exception(PATIENCE)
        assert isinstance(error, CellUnavailable)
        assert error.sent == "unknown"
    assert len(used.queue.stuck) == 5
    assert "stuck=5" in repr(used.queue)
    seconds, refused = took(lambda: used.cast(5))
    assert seconds < SLACK
    assert isinstance(refused, CellUnavailable)
    assert refused.sent == "no"
    used.broker.writing.open()
    until(lambda: not used.queue.stuck)
    used.cast(6)
    assert sorted(used.broker.written) == [0, 1, 2, 3, 4, 6]


@pytest.mark.shows_passwords("this library quotes one, as none that there is does; its error is the cause of ours")
def test_delivery_failed(used: World) -> None:
    """What fails when it may have been written is unknown, and has somebody look."""
    inner = ConnectionResetError()
    failure = oslo_messaging.MessageDeliveryFailure(f"at {SECRET}")
    failure.__context__ = inner
    used.broker.writing.error = failure
    _, error = took(used.cast)
    assert isinstance(error, CellUnavailable)
    assert (error.cause, error.sent) == ("ConnectionResetError", "unknown")
    until(lambda: used.probes)


def test_open_breaker(new_world: Callable[..., World]) -> None:
    """While the queue is known to be down a message is refused at once, and waits for nothing."""
    world = new_world(places=1)
    world.cast(0)
    world.answers = False
    world.broker.writing.hold()
    world.begin(world.cast, 1)
    until(lambda: world.broker.writing.came.qsize() == 2)
    world.queue.breaker.failed("of what is known")
    seconds, error = took(world.call)
    assert seconds < SLACK
    assert isinstance(error, CellUnavailable)
    assert (error.cause, error.sent) == ("of what is known", "no")


def test_past_deadline(used: World) -> None:
    """A deadline that has passed already says nothing about the queue."""
    _, error = took(lambda: used.cast(1, -1))
    assert type(error) is DeadlineExceeded
    assert not used.broker.written
    assert not used.probes


def test_closed(used: World) -> None:
    """After the end nothing is sent, and nobody waits."""
    used.queue.close()
    seconds, error = took(used.call)
    assert seconds < SLACK
    assert isinstance(error, CellUnavailable)
    assert error.sent == "no"
    assert "closed" in repr(used.queue)


@pytest.mark.parametrize(("given", "used_"), [(None, 1), (-1, 1), (0, 0), (3, 3)])
def test_retry(used: World, given: int | None, used_: int) -> None:
    """Where nothing is said of retries there is one more attempt, not endlessly many."""
    used.cast(1, retry=given)
    assert used.broker.writing.wait_until_somebody_came() == used_


def test_retry_with_several_hosts(new_world: Callable[..., World]) -> None:
    """Each host is tried, by the first contact and by a message that loses its connection."""
    world = new_world(url="rabbit://me:it@one,me:it@two,me:it@three/")
    world.cast(1)
    assert world.broker.connecting.wait_until_somebody_came() == ("send", 2)
    assert world.broker.writing.wait_until_somebody_came() == 3


def test_operation(used: World) -> None:
    """What goes on in the library is counted in the thread where it does, and as long as it does."""
    seen: queues.SimpleQueue[Any] = queues.SimpleQueue()

    @contextlib.contextmanager
    def operation() -> Iterator[None]:
        seen.put(("begun", threading.current_thread() is threading.main_thread()))
        yield
        seen.put("ended")

    used.queue.operation = operation
    used.broker.writing.hold()
    took(lambda: used.cast(1, SOON))
    assert seen.get(timeout=PATIENCE) == ("begun", False)
    assert seen.empty()
    used.broker.writing.open()
    assert seen.get(timeout=PATIENCE) == "ended"


# -- replies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 2 * PATIENCE])
def test_no_reply_by_the_deadline(used: World, timeout: float | None) -> None:
    """A reply that does not come by the deadline is an error that services know, and we too."""
    seconds, error = took(lambda: used.call(1, SOON, timeout=timeout))
    assert SOON <= seconds < SOON + SLACK
    assert type(error) is ReplyTimeout
    assert isinstance(error, DeadlineExceeded)
    assert isinstance(error, oslo_messaging.MessagingTimeout)
    assert "cell1" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(copy.copy(error)) == str(error)
    until(lambda: not used.queue.stuck)


def test_no_reply_by_the_clients_own_timeout(used: World) -> None:
    """A client's own timeout that is shorter is what it ever was."""
    seconds, error = took(lambda: used.call(1, timeout=SOON))
    assert SOON <= seconds < SOON + SLACK
    assert type(error) is oslo_messaging.MessagingTimeout


def test_slow_reply(used: World) -> None:
    """A reply that takes long has somebody look at the broker, but not for each of many."""
    for _ in range(2):
        calling = [used.begin(used.call, number, 1 + SOON) for number in range(4)]
        for each in calling:
            assert type(each.exception(PATIENCE)) is ReplyTimeout
    assert used.probes == 1


# -- other drivers ----------------------------------------------------------------------------------------------------


def test_in_memory(open_: Callable[..., CellQueue]) -> None:
    """The in-memory queue has no first contact, and is never down."""
    queue = open_("memory://cell1/")
    queue.send(after(PATIENCE), TARGET, {}, {"method": "x", "args": {}})
    seconds, error = took(
        lambda: queue.send(after(SOON), TARGET, {}, {"method": "x", "args": {}}, wait_for_reply=True, timeout=60)
    )
    assert type(error) is ReplyTimeout
    assert SOON <= seconds < SOON + SLACK
    assert not queue.breaker.is_open
    queue.close()
    _, error = took(lambda: queue.send(after(PATIENCE), TARGET, {}, {"method": "x", "args": {}}))
    assert isinstance(error, CellUnavailable)


def test_in_memory_at_once(open_: Callable[..., CellQueue]) -> None:
    """To the in-memory queue everybody sends by itself, without another thread."""
    queue = open_("memory://cell1/")
    threads = []

    @contextlib.contextmanager
    def operation() -> Iterator[None]:
        threads.append(threading.current_thread())
        yield

    queue.operation = operation
    queue.send(after(PATIENCE), TARGET, {}, {"method": "x", "args": {}})
    took(lambda: queue.send(after(SOON / 4), TARGET, {}, {"method": "x", "args": {}}, wait_for_reply=True))
    assert threads == [threading.current_thread()] * 2


def test_invalid_target(open_: Callable[..., CellQueue]) -> None:
    """A message to nowhere is the library's error."""
    queue = open_("memory://cell1/")
    with pytest.raises(oslo_messaging.InvalidTarget):
        queue.send(after(PATIENCE), oslo_messaging.Target(), {}, {})
    with pytest.raises(oslo_messaging.InvalidTarget):
        queue.send_notification(after(PATIENCE), oslo_messaging.Target(), {}, {}, 2.0)


# -- opening ----------------------------------------------------------------------------------------------------------

RABBIT = f"rabbit://me:{SECRET}@host/"


def options(queue: CellQueue) -> Any:
    """Return the options that a queue's driver goes by."""
    return queue.transport._driver.conf.oslo_messaging_rabbit


def test_defaults(open_: Callable[..., CellQueue]) -> None:
    """A RabbitMQ's driver goes by our defaults, and has as many connections as was said."""
    rabbit = options(open_(RABBIT, 7))
    assert (rabbit.rabbit_retry_interval, rabbit.rabbit_retry_backoff, rabbit.rabbit_interval_max) == (1, 1, 1)
    assert (rabbit.kombu_reconnect_delay, rabbit.heartbeat_timeout_threshold, rabbit.heartbeat_rate) == (0.1, 10, 2)
    assert rabbit.rpc_conn_pool_size == 7


def test_operators_query(open_: Callable[..., CellQueue]) -> None:
    """What the URL says comes before our defaults."""
    rabbit = options(open_(f"{RABBIT}?heartbeat_timeout_threshold=33&rpc_conn_pool_size=3&ssl=true"))
    assert (rabbit.heartbeat_timeout_threshold, rabbit.rpc_conn_pool_size, rabbit.ssl) == (33, 3, True)
    assert rabbit.heartbeat_rate == 2


def test_operators_options(open_: Callable[..., CellQueue], conf: cfg.ConfigOpts) -> None:
    """What the configuration says comes before our defaults, too."""
    open_(RABBIT)  # which registers the options
    conf.set_override("heartbeat_timeout_threshold", 44, group="oslo_messaging_rabbit")
    rabbit = options(open_(RABBIT))
    assert (rabbit.heartbeat_timeout_threshold, rabbit.heartbeat_rate) == (44, 2)


def test_one_connection(open_: Callable[..., CellQueue]) -> None:
    """A single connection is enough, though the library keeps two by default."""
    assert options(open_(RABBIT, 1)).rpc_conn_pool_size == 1


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (None, "missing"),
        (f"nosuch://me:{SECRET}@host/", "no oslo.messaging driver 'nosuch' is installed"),
        (f"{SECRET}:me@host", "no oslo.messaging driver of that name is installed"),
        (f"{SECRET}", "not one that oslo.messaging can read"),
        (f"rabbit://me:{SECRET}@host:port/", "not one that oslo.messaging can read"),
        (f"rabbit://me:{SECRET}@host/?nosuch=1", "not one that oslo.messaging can read"),
        (f"rabbit://me:{SECRET}@host/?heartbeat_rate={SECRET}", "not one that oslo.messaging can read"),
    ],
    ids=["missing", "driver", "no beginning", "scheme", "port", "option", "value"],
)
def test_misconfigured(
    open_: Callable[..., CellQueue], caplog: pytest.LogCaptureFixture, url: str | None, reason: str
) -> None:
    """A URL that nobody can use is the cell's fault, and is not quoted, nor is half of it in the log."""
    with pytest.raises(CellMisconfigured, match=reason) as raised:
        open_(url)
    assert SECRET.lower() not in f"{raised.value} {caplog.text}".lower()
    assert raised.value.__cause__ is None
