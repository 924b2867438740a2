# SPDX-License-Identifier: Apache-2.0
"""Casts that their senders write to RabbitMQ themselves, and those that are left to another thread."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import amqp
import oslo_messaging
import pytest
from oslo_config import cfg

from cellmw.cell import Cell
from cellmw.deadline import after
from cellmw.exceptions import CellUnavailable
from cellmw.limits import Limits
from cellmw.queues.cell_queue import CellQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 20
"""Seconds after which a test gives up on what has to come."""

SOON = 0.2
"""Seconds until a deadline that passes."""

SLACK = 0.5
"""Seconds after its deadline by which a sender is back."""

EXCHANGE, TOPIC = "exchange", "topic"

NO_HEARTBEAT = "?heartbeat_timeout_threshold=0"
"""Nobody but the test has a connection's lock."""

TARGET = oslo_messaging.Target(exchange=EXCHANGE, topic=TOPIC)


class World:
    """A queue that has been used, and what arrives there. Lives as long as its test.

    :ivar threads: in which the library has been used
    """

    def __init__(self, queue: CellQueue, limits: Limits, channel: amqp.Channel) -> None:
        self.queue = queue
        self.limits = limits
        self.threads: list[threading.Thread] = []
        self._channel = channel
        self.cast("first")
        assert len(self.arrived()) == 1
        self.threads.clear()
        queue.operation = self._operation

    @contextmanager
    def _operation(self) -> Iterator[None]:
        self.threads.append(threading.current_thread())
        yield

    @property
    def connection(self) -> Any:
        """The connection that the next cast takes."""
        return self.queue.transport._driver._connection_pool._items[-1][1]

    def cast(self, number: Any = 1, seconds: float = PATIENCE, **options: Any) -> None:
        """Send one."""
        self.queue.send(after(seconds), TARGET, {}, {"method": "take", "args": {"number": number}}, **options)

    def arrived(self) -> list[dict[str, Any]]:
        """Return what has come."""
        messages = []
        while message := self._channel.basic_get(TOPIC, no_ack=True):
            messages.append(json.loads(json.loads(message.body)["oslo.message"]))
        return messages

    def was_direct(self) -> bool:
        """Tell whether nobody but the sender has used the library."""
        return set(self.threads) == {threading.current_thread()}


@pytest.fixture(scope="module")
def url(rabbitmq_server: Any) -> Iterator[str]:
    """One vhost for all tests: each reads whatever it sends."""
    with rabbitmq_server.vhost() as url:
        yield url


@pytest.fixture
def world(url: str, conf: cfg.ConfigOpts) -> Iterator[World]:
    """A queue that has been used."""
    cell = Cell(1, "uuid1", "cell1", False, url + NO_HEARTBEAT, "sqlite://")
    limits = Limits(patience=PATIENCE)
    queue = CellQueue.open(cell, conf, limits)
    address = urlsplit(url)
    place = f"{address.hostname}:{address.port}"
    user = {"userid": address.username or "guest", "password": address.password or "guest"}
    with amqp.Connection(place, virtual_host=address.path[1:], **user) as connection:
        channel = connection.channel()
        channel.exchange_declare(EXCHANGE, "topic", durable=False, auto_delete=False)
        channel.queue_declare(TOPIC, durable=False, auto_delete=False)
        channel.queue_bind(TOPIC, EXCHANGE, TOPIC)
        yield World(queue, limits, channel)
    queue.close()


@pytest.fixture
def instead(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Have this done, once, instead of the writing of a message; it gets what writes."""

    def replace(write: Callable[..., None]) -> None:
        producer = world.connection._producer
        publish = producer.publish

        def once(*args: Any, **options: Any) -> None:
            monkeypatch.undo()
            write(lambda: publish(*args, **options))

        monkeypatch.setattr(producer, "publish", once)

    return replace


def test_its_sender_writes_a_cast(world: World) -> None:
    """A cast that finds a connection is written by its sender, and by nobody else."""
    world.cast()
    assert world.was_direct()
    assert len(world.arrived()) == 1
    assert not world.limits.watch._waits


def test_no_connection_free(world: World) -> None:
    """Where no connection is free another thread makes one."""
    taken = world.queue.transport._driver._get_connection()
    world.cast()
    taken.close()
    assert not world.was_direct()
    assert len(world.arrived()) == 1


def test_connection_in_use_by_its_heartbeat(world: World) -> None:
    """Another thread waits for what the heartbeat has in its hands."""
    with ThreadPoolExecutor(1) as threads:
        with world.connection._connection_lock.for_heartbeat():
            casting = threads.submit(world.cast)
            deadline = after(PATIENCE)
            while len(world.threads) < 2:
                assert monotonic() < deadline
                threading.Event().wait(0.002)
        casting.result(PATIENCE)
    assert len(world.arrived()) == 1


@pytest.mark.parametrize("end", [lambda broken: broken.sock.close(), lambda broken: broken.collect()])
def test_broken_connection(world: World, end: Callable[[Any], None]) -> None:
    """What can't be written to a connection goes to a new one."""
    end(world.connection.channel.connection)
    world.cast()
    assert not world.was_direct()
    assert len(world.arrived()) == 1


def test_twice_the_same(world: World, instead: Callable[..., None]) -> None:
    """What may have been written goes out again with the id that it had, and not on that connection."""
    connection = world.connection.channel.connection

    def write(publish: Callable[[], None]) -> None:
        publish()
        raise ConnectionResetError

    instead(write)
    world.cast()
    one, other = world.arrived()
    assert one == other
    assert one["_unique_id"]
    assert world.connection.channel.connection is not connection


def test_never_twice(world: World, instead: Callable[..., None]) -> None:
    """What may have been written does not go out again where its sender wants no second attempt."""

    def write(publish: Callable[[], None]) -> None:
        publish()
        raise ConnectionResetError

    instead(write)
    with pytest.raises(CellUnavailable) as raised:
        world.cast(retry=0)
    assert raised.value.sent == "unknown"
    assert len(world.arrived()) == 1


def test_time_is_up(world: World, instead: Callable[..., None]) -> None:
    """A broker that does not answer keeps its sender until the deadline, and no thread any longer."""
    wire = world.connection.channel.connection.sock

    def write(publish: Callable[[], None]) -> None:
        if not wire.recv(1):
            raise ConnectionResetError

    instead(write)
    begun = monotonic()
    with pytest.raises(CellUnavailable) as raised:
        world.cast(1, SOON)
    assert SOON <= monotonic() - begun < SOON + SLACK
    assert (raised.value.cause, raised.value.sent) == ("no answer in time", "unknown")
    assert world.was_direct()
    assert not world.queue.stuck
    world.cast(2)
    assert [message["args"]["number"] for message in world.arrived()] == [2]


def test_failed_again(world: World, instead: Callable[..., None]) -> None:
    """Of what may have been written nobody says later that it was not sent."""

    def write(publish: Callable[[], None]) -> None:
        world.queue.breaker.is_open = True
        raise ConnectionResetError

    instead(write)
    with pytest.raises(CellUnavailable) as raised:
        world.cast()
    world.queue.breaker.is_open = False
    assert raised.value.sent == "unknown"


def test_interrupted(world: World, instead: Callable[..., None]) -> None:
    """Nothing more is written after what may be half a message."""
    connection = world.connection.channel.connection

    def write(publish: Callable[[], None]) -> None:
        raise KeyboardInterrupt

    instead(write)
    with pytest.raises(KeyboardInterrupt):
        world.cast()
    world.cast(2)
    assert [message["args"]["number"] for message in world.arrived()] == [2]
    assert world.connection.channel.connection is not connection


def test_undeliverable(world: World) -> None:
    """A message that has to be delivered says where it could not be."""
    options = oslo_messaging.TransportOptions(at_least_once=True)
    connection = world.connection.channel.connection
    nowhere = oslo_messaging.Target(exchange=EXCHANGE, topic="nowhere")
    with pytest.raises(oslo_messaging.MessageUndeliverable):
        world.queue.send(after(PATIENCE), nowhere, {}, {}, transport_options=options)
    world.cast()
    assert len(world.arrived()) == 1
    assert world.connection.channel.connection is connection


def test_idle_connections(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the end of a connection that was idle for long."""
    pool = world.queue.transport._driver._connection_pool
    taken = [world.queue.transport._driver._get_connection() for _ in range(3)]
    for each in taken:
        each.close()
    ended = threading.Event()
    watch, idle = pool._items[0]
    watch._duration = 0
    close, sender = idle.close, threading.current_thread()

    def slow_close() -> None:
        assert threading.current_thread() is not sender
        close()
        ended.set()

    monkeypatch.setattr(idle, "close", slow_close)
    world.cast()
    assert ended.wait(PATIENCE)
    assert len(pool._items) == 2
    assert world.was_direct()
