# SPDX-License-Identifier: Apache-2.0
"""The service's own bus, and that for notifications, on a broker that is frozen, killed and started again."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from time import monotonic
from typing import TYPE_CHECKING

import oslo_messaging
import pytest
from oslo_config import cfg

from cellmw import ClientRouter, RequestContext, rpc
from cellmw.exceptions import BusUnavailable
from tests.services.brokers.conftest import PATIENCE, PROMPT, until, with_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cellmw.queues.bus import RPCTransport
    from tests.servers.private_rabbitmq import Node

DEADLINE = 1.5
"""Seconds that a request may take."""

SLACK = 0.7

AT_ONCE = 0.3

TOPIC = oslo_messaging.Target(topic="conductor", version="1.0")

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(scope="module")
def url(nodes: list[Node]) -> Iterator[str]:
    """A bus on the node that is alone."""
    with nodes[3].broker.vhost() as url:
        yield with_options(url, PROMPT)


@pytest.fixture
def conf(tmp_path: Path, url: str) -> cfg.ConfigOpts:
    """The configuration of a service whose bus that is."""
    file = tmp_path / "service.conf"
    file.write_text(
        f"[DEFAULT]\ntransport_url = {url}\n[cellmw]\nrequest_deadline = {DEADLINE}\nprobe_interval = 0.3\n"
        "[oslo_messaging_notifications]\ndriver = messagingv2\n"
    )
    conf = cfg.ConfigOpts()
    conf([], project="service", default_config_files=[str(file)], default_config_dirs=[])
    return conf


@pytest.fixture
def open_transport(conf: cfg.ConfigOpts) -> Iterator[Callable[[], RPCTransport]]:
    """Open the service's own bus."""
    with ExitStack() as opened:

        def open_() -> RPCTransport:
            transport = rpc.get_transport(conf)
            opened.callback(transport.cleanup)
            return transport

        yield open_


class Outage:
    """What can happen to the node. It is over when the test is."""

    def __init__(self, node: Node) -> None:
        self._process = node.process
        self._ends = ExitStack()

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()
        self._ends.callback(self._process.restart)

    def freeze(self) -> None:
        """Freeze it."""
        self._process.freeze()
        self._ends.callback(self._process.thaw)

    def end(self) -> None:
        """Have it answer again."""
        self._ends.close()


@pytest.fixture
def outage(alone: Node) -> Iterator[Outage]:
    """What can happen to the node."""
    outage = Outage(alone)
    yield outage
    outage.end()


class Endpoint:
    """What a conductor does. Lives as long as its server.

    :ivar begun: set when somebody has asked for something that takes long
    :ivar go_on: set when that is to end
    """

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def echo(self, context: RequestContext, value: int) -> int:
        """Return what was sent."""
        return value

    def work(self, context: RequestContext) -> str:
        """Take long."""
        self.begun.set()
        assert self.go_on.wait(PATIENCE)
        return "done"


class Served:
    """A server on a bus. Lives as long as its test."""

    def __init__(self, transport: RPCTransport) -> None:
        self.transport = transport
        self.endpoint = Endpoint()
        self._server = rpc.get_server(transport, TOPIC(server="host"), [self.endpoint])

    def start(self) -> None:
        """Listen, as soon as the broker is there."""
        self._server.start()

    def close(self) -> None:
        """Stop."""
        self.endpoint.go_on.set()
        self._server.stop()
        self._server.wait()


@pytest.fixture
def new_server(open_transport: Callable[[], RPCTransport]) -> Iterator[Callable[[], Served]]:
    """Make a server with a transport of its own."""
    with ExitStack() as made:

        def new() -> Served:
            served = Served(open_transport())
            made.callback(served.close)
            return served

        yield new


def client_of(transport: RPCTransport) -> oslo_messaging.RPCClient:
    """Return the client that a router has for the service's own bus."""
    return ClientRouter(oslo_messaging.get_rpc_client(transport, TOPIC)).client(object())


def refused(use: Callable[[], object]) -> tuple[float, str]:
    """Return after how long it was refused, and what became of the message."""
    begun = monotonic()
    with pytest.raises(BusUnavailable, match="the service's own bus does not answer") as raised:
        use()
    assert "guest" not in str(raised.value)
    return monotonic() - begun, raised.value.sent


@pytest.mark.parametrize("use", ["first", "later"])
def test_frozen(
    outage: Outage,
    open_transport: Callable[[], RPCTransport],
    new_server: Callable[[], Served],
    use: str,
) -> None:
    """A bus that is frozen keeps nobody beyond the deadline, and nobody at all while it is known; then it is as new."""
    new_server().start()
    transport = open_transport()
    client = client_of(transport)
    if use == "later":
        assert client.call({}, "echo", value=1) == 1
    outage.freeze()
    seconds, sent = refused(lambda: client.cast({}, "echo", value=2))
    assert seconds < DEADLINE + SLACK
    assert sent == ("no" if use == "first" else "unknown")
    until(lambda: transport._bus.breaker.is_open)
    for send in (client.cast, client.call):
        seconds, sent = refused(lambda send=send: send({}, "echo", value=3))  # type: ignore[misc]
        assert (seconds < AT_ONCE, sent) == (True, "no")
    outage.end()
    until(lambda: not transport._bus.breaker.is_open and not transport._bus.stuck)
    assert client.call({}, "echo", value=4) == 4


def test_server_waits_for_its_broker(
    alone: Node,
    outage: Outage,
    open_transport: Callable[[], RPCTransport],
    new_server: Callable[[], Served],
) -> None:
    """A server that is started while its broker is down waits for it, beyond any deadline, and then serves.

    After all that too the cleanup of a transport closes what it has open.
    """
    outage.kill()
    served = new_server()
    client = client_of(open_transport())
    with ThreadPoolExecutor(1) as thread:
        starting = thread.submit(served.start)
        assert refused(lambda: client.call({}, "echo", value=1))[1] == "no"
        with pytest.raises(TimeoutError):
            starting.result(DEADLINE + 0.2)
        outage.end()
        starting.result(PATIENCE)
    until(lambda: not client.transport._bus.breaker.is_open)
    assert client.call({}, "echo", value=2) == 2
    served.close()
    for transport in (served.transport, client.transport):
        transport.cleanup()
    until(lambda: "cellmw" not in alone.broker.administer("list_connections", "vhost"))


def test_reply_after_a_restart(
    outage: Outage,
    conf: cfg.ConfigOpts,
    open_transport: Callable[[], RPCTransport],
    new_server: Callable[[], Served],
) -> None:
    """What a server has done while its broker was down, and known to be, it says when that is back.

    Its caller is still waiting.
    """
    served = new_server()
    served.start()
    conf.set_override("request_deadline", PATIENCE, "cellmw")
    client = client_of(open_transport())
    with ThreadPoolExecutor(1) as thread:
        calling = thread.submit(client.call, {}, "work")
        assert served.endpoint.begun.wait(PATIENCE)
        outage.kill()
        refused(lambda: client_of(served.transport).cast({}, "echo", value=2))
        served.endpoint.go_on.set()
        outage.end()
        assert calling.result(2 * PATIENCE) == "done"


def test_notifications(
    outage: Outage,
    conf: cfg.ConfigOpts,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Notifications to a bus that is frozen are an error in the log, and hold nobody up for long; then they go on."""
    notifier = rpc.get_notifier(conf, publisher_id="compute.host1")
    context = RequestContext(auth_token="hunter2", overwrite=False)
    notifier.info(context, "event", {})
    assert not caplog.records
    outage.freeze()
    begun = monotonic()
    notifier.info(context, "event", {})
    assert monotonic() - begun < DEADLINE + SLACK
    until(lambda: notifier.transport._bus.breaker.is_open)
    begun = monotonic()
    notifier.info(context, "event", {})
    assert monotonic() - begun < AT_ONCE
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR and "notification" in record.msg]
    assert len(errors) == 2
    assert "guest:guest" not in caplog.text
    assert "hunter2" not in caplog.text
    outage.end()
    until(lambda: not notifier.transport._bus.breaker.is_open and not notifier.transport._bus.stuck)
    caplog.clear()
    notifier.info(context, "event", {})
    assert not [record for record in caplog.records if record.name.startswith("oslo_messaging.notify")]
    notifier.transport.cleanup()
