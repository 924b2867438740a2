# SPDX-License-Identifier: Apache-2.0
"""What a message costs that goes to its cell by the router: a table, in microseconds. Fails where a limit is exceeded.

Each figure stands beside that of a client which a service would make once and keep, for the same broker and with the
same serializer; it has no bound. They take turns, a few messages each, so a machine whose speed drifts slows all of
them alike. Of the ratios, or the differences, that the rounds give a row has the median, and the 95 % confidence
interval of that. The context is aimed at the cell already, and nothing is connected to any more, but where it says so.

================== =============================================================================================
``cast``           on RabbitMQ, ``router.client(context).cast()``, its deadline kept
``request``        the same with all that comes before it: a context is aimed at the cell, and its lease released
``no pool``        a transport for each message: made, used by a client of its own, and cleaned up
``call``           on RabbitMQ, a call by the router; a server in another process returns what it was sent
``cast in memory`` a cast by the router on the queue that is in this process
================== =============================================================================================

The casts go into a queue that another process empties. In this process the queue is emptied between measurements.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kombu
import oslo_messaging
from oslo_config import cfg

from bench.figures import call_time, in_turn, interval, stop_collecting
from bench.request import PROJECT, deployment
from cellmw import deploy
from cellmw.context import RequestContext
from cellmw.queues.message_queue import register_messaging_groups
from cellmw.rpc import ClientRouter, ContextSerializer
from tests import servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.synchronize import Event

ROUNDS = 200
CASTS = 20
CALLS = 5
MEMORY_TURNS = 10
"""How many turns the casts in memory take in each round: they are short."""

EXCHANGE = "openstack"
CAST_TOPIC, CALL_TOPIC = "casts", "calls"

MEMORY = "memory://cell1/"

ARGUMENTS = {"instance_uuid": "0dc0fb9e-3f6b-4d55-9a0e-7a1c27a6b9f1", "reboot_type": "SOFT"}

PATIENCE = 30
"""Seconds that the other process has to begin in."""

LIMIT = 1.2
"""How many times as long as one by the client that is kept a cast by the router may take."""

MEMORY_LIMIT = 10.0
"""How many microseconds more than by the client that is kept a cast by the router may take in memory."""


class Endpoint:
    """What the server does."""

    def echo(self, ctxt: Any, **arguments: Any) -> Any:
        return arguments


def serve(url: str, ready: Event, over: Event) -> None:
    """Take the casts, and answer the calls, until it is over."""
    # the broker's last words to a vhost that is deleted
    logging.disable()
    transport = oslo_messaging.get_rpc_transport(new_conf(), url=url)
    target = oslo_messaging.Target(exchange=EXCHANGE, topic=CALL_TOPIC, server="server")
    server = oslo_messaging.get_rpc_server(transport, target, [Endpoint()], executor="threading")
    server.start()
    # nothing is done with the casts: a server of the library's would take more of the machine than their sender
    exchange = kombu.Exchange(EXCHANGE, "topic", durable=False)
    queue = kombu.Queue(CAST_TOPIC, exchange, routing_key=CAST_TOPIC, durable=False, no_ack=True)
    with kombu.Connection(url.replace("rabbit", "amqp", 1)) as connection:
        consumer = connection.Consumer(queue, on_message=lambda message: None)
        consumer.consume()
        ready.set()
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=0.5)
    server.stop()
    server.wait()
    transport.cleanup()


@contextlib.contextmanager
def receivers(url: str) -> Iterator[None]:
    """A process that takes what is sent to this vhost."""
    processes = multiprocessing.get_context("spawn")
    ready, over = processes.Event(), processes.Event()
    process = processes.Process(target=serve, args=(url, ready, over), daemon=True)
    process.start()
    try:
        if not ready.wait(PATIENCE):
            raise TimeoutError("the process that takes the messages has not begun")
        yield
    finally:
        over.set()
        process.join(PATIENCE)


def new_conf() -> cfg.ConfigOpts:
    """Make a configuration that says nothing."""
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[], default_config_dirs=[])
    register_messaging_groups(conf)
    return conf


def new_client(transport: oslo_messaging.Transport, target: oslo_messaging.Target) -> oslo_messaging.RPCClient:
    """Make a client as a service would that knows one queue."""
    return oslo_messaging.get_rpc_client(transport, target, serializer=ContextSerializer())


class Senders:
    """The router and what stands beside it, for one topic of one queue. Lives as long as the stack."""

    def __init__(self, url: str, topic: str, folder: Path, stack: contextlib.ExitStack) -> None:
        self._url = url
        self._target = oslo_messaging.Target(exchange=EXCHANGE, topic=topic)
        self._conf = new_conf()
        self.transport = oslo_messaging.get_rpc_transport(self._conf, url=url)
        stack.callback(self.transport.cleanup)
        self._client = new_client(self.transport, self._target)
        self._context = RequestContext(project_id=PROJECT, overwrite=False)
        database = f"sqlite:///{folder}/{topic}.db"
        self._cells = stack.enter_context(deploy.cells(stack.enter_context(deployment(database, folder, url))))
        self._cell = self._cells.get("cell1")
        self._targeted = stack.enter_context(self._cells.target(self._context, self._cell))
        self._router = ClientRouter(None, target=self._target)

    def cast(self) -> None:
        """Cast by the router."""
        self._router.client(self._targeted).cast(self._targeted, "echo", **ARGUMENTS)

    def plain_cast(self) -> None:
        """Cast by a client that is kept."""
        self._client.cast(self._context, "echo", **ARGUMENTS)

    def request_cast(self) -> None:
        """Aim a context at the cell, and cast by the router."""
        with self._cells.target(self._context, self._cell) as targeted:
            self._router.client(targeted).cast(targeted, "echo", **ARGUMENTS)

    def cast_without_pool(self) -> None:
        """Cast by a transport that is made for it."""
        transport = oslo_messaging.get_rpc_transport(self._conf, url=self._url)
        new_client(transport, self._target).cast(self._context, "echo", **ARGUMENTS)
        transport.cleanup()

    def call(self) -> None:
        """Call by the router."""
        self._router.client(self._targeted).call(self._targeted, "echo", **ARGUMENTS)

    def plain_call(self) -> None:
        """Call by a client that is kept."""
        self._client.call(self._context, "echo", **ARGUMENTS)


def heading() -> None:
    """Print what stands in the columns."""
    print(f"{'figure':<16}{'us':>10}{'beside':>10}{'':>10}  {'95 %':<18}limit")


def row(
    figure: str, times: list[float], beside: list[float], limit: float | None = None, *, adds: bool = False
) -> bool:
    """Print a figure, and tell whether it keeps to its limit.

    :param beside: what it is compared with
    :param adds: whether it is compared by what it takes more, and not by how many times as long it takes
    """
    pairs = zip(times, beside, strict=True)
    compared = [time - other for time, other in pairs] if adds else [time / other for time, other in pairs]
    value = statistics.median(compared)
    low, high = interval(compared)
    shown = f"{value:+.1f} us" if adds else f"{value:.2f} x"
    between = f"{low:.1f} to {high:.1f}" if adds else f"{low:.2f} to {high:.2f}"
    kept = limit is None or value <= limit
    verdict = "" if limit is None else f"{limit:g}, {'reached' if kept else 'EXCEEDED'}"
    medians = f"{statistics.median(times):>10.1f}{statistics.median(beside):>10.1f}"
    print(f"{figure:<16}{medians}{shown:>10}  {between:<18}{verdict}".rstrip(), flush=True)
    return kept


def measure_rabbit(url: str, folder: Path, rounds: int) -> bool:
    """Measure what goes to a broker."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(receivers(url))
        casts, calls = (Senders(url, topic, folder, stack) for topic in (CAST_TOPIC, CALL_TOPIC))
        stop_collecting()
        times = in_turn(
            {
                "plain": lambda: call_time(casts.plain_cast, CASTS),
                "cast": lambda: call_time(casts.cast, CASTS),
                "request": lambda: call_time(casts.request_cast, CASTS),
                "no pool": lambda: call_time(casts.cast_without_pool),
                "call": lambda: call_time(calls.call, CALLS),
                "plain call": lambda: call_time(calls.plain_call, CALLS),
            },
            rounds,
        )
        kept = row("cast", times["cast"], times["plain"], LIMIT)
        row("request", times["request"], times["plain"])
        row("no pool", times["no pool"], times["plain"])
        row("call", times["call"], times["plain call"])
    return kept


def measure_memory(folder: Path, rounds: int) -> bool:
    """Measure what stays in this process."""
    with contextlib.ExitStack() as stack:
        senders = Senders(MEMORY, "memory", folder, stack)
        target = oslo_messaging.Target(exchange=EXCHANGE, topic="memory", server="server")
        listener = senders.transport._listen(target, 1, None)._poll_style_listener
        stack.callback(listener.stop)

        def measure(cast: Callable[[], None]) -> float:
            time = call_time(cast, CASTS)
            assert len(listener.poll(0, CASTS, 0)) == CASTS
            return time

        stop_collecting()
        times = in_turn(
            {"plain": lambda: measure(senders.plain_cast), "cast": lambda: measure(senders.cast)}, MEMORY_TURNS * rounds
        )
        return row("cast in memory", times["cast"], times["plain"], MEMORY_LIMIT, adds=True)


def main() -> int:
    """Measure everything."""
    parser = argparse.ArgumentParser(prog="python -m bench.rpc", description="what a message costs by the router")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each figure takes its turn (%(default)s)")
    rounds = parser.parse_args().rounds
    logging.disable()
    heading()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept = measure_memory(folder, rounds)
        try:
            with servers.rabbitmq() as broker, broker.vhost() as url:
                kept &= measure_rabbit(url, folder, rounds)
        except servers.ServerMissing as missing:
            print(missing, file=sys.stderr)
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
