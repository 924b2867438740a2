# SPDX-License-Identifier: Apache-2.0
"""The in-memory queue beside a real RabbitMQ: the same scenario has to end the same on both.

A scenario gets a :class:`Bus`, on which its topics are its own, and returns what a service could see of it.
"""

from __future__ import annotations

import datetime
import queue
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import oslo_messaging
import pytest
from oslo_config import cfg

from cellmw.exceptions import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 20
"""Seconds after which a scenario gives up on what has to come."""

SOON = 0.3
"""Seconds that a caller waits where nobody will ever answer."""


class Endpoint:
    """What a scenario's server does; records what arrives."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.seen: queue.SimpleQueue[tuple[dict[str, Any], Any]] = queue.SimpleQueue()

    def record(self, ctxt: dict[str, Any], value: Any = None) -> None:
        self.seen.put((ctxt, value))

    def who(self, ctxt: dict[str, Any]) -> str:
        return self.name

    def echo(self, ctxt: dict[str, Any], value: Any) -> Any:
        return value

    def result(self, ctxt: dict[str, Any], kind: str) -> Any:
        return {"tuple": (1, {2: 3}), "set": {4}, "object": object(), "none": None}[kind]

    def fail(self, ctxt: dict[str, Any], message: str) -> None:
        raise StoreError(message)

    def fail_builtin(self, ctxt: dict[str, Any], message: str) -> None:
        raise LookupError(message, 5)

    def fail_unsendable(self, ctxt: dict[str, Any]) -> None:
        raise StoreError(object())

    def next(self) -> Any:
        """Return the value that arrives next."""
        return self.seen.get(timeout=PATIENCE)[1]


class Listener:
    """What a scenario's notification listener does: records payloads, and has the first one delivered twice."""

    def __init__(self) -> None:
        self.seen: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._first = True

    def info(self, ctxt: Any, publisher_id: str, event_type: str, payload: Any, metadata: Any) -> str:
        self.seen.put(payload)
        first, self._first = self._first, False
        return str(oslo_messaging.NotificationResult.REQUEUE if first else oslo_messaging.NotificationResult.HANDLED)

    def next(self) -> Any:
        """Return the payload that arrives next."""
        return self.seen.get(timeout=PATIENCE)


class Bus:
    """Servers and clients on one broker, each with a transport of its own, for one scenario."""

    def __init__(self, url: str, scenario: str) -> None:
        self._url = url
        self._scenario = scenario
        self._conf = _private_conf()
        self._transports: list[Any] = []
        self._servers: list[Any] = []

    def transport(self, exmods: list[str] | None = None) -> Any:
        transport = oslo_messaging.get_rpc_transport(self._conf, self._url, allowed_remote_exmods=exmods)
        self._transports.append(transport)
        return transport

    def serve(self, endpoint: Endpoint, server: str = "host1", **target: str) -> Any:
        """Start a server that handles one message after the other."""
        wanted = oslo_messaging.Target(**{"topic": self._scenario, "server": server} | target)
        return self._start(oslo_messaging.get_rpc_server(self.transport(), wanted, [endpoint]))

    def listen(self, listener: Listener) -> Any:
        targets = [oslo_messaging.Target(topic=self._scenario)]
        transport = self._notification_transport()
        return self._start(oslo_messaging.get_notification_listener(transport, targets, [listener], allow_requeue=True))

    def _start(self, server: Any) -> Any:
        self._servers.append(server)
        server.start(override_pool_size=1)
        return server

    def notifier(self) -> Any:
        transport = self._notification_transport()
        return oslo_messaging.Notifier(transport, "me", driver="messagingv2", topics=[self._scenario])

    def _notification_transport(self) -> Any:
        transport = oslo_messaging.get_notification_transport(self._conf, self._url)
        self._transports.append(transport)
        return transport

    def client(self, exmods: list[str] | None = None, timeout: float = PATIENCE, options: Any = None) -> Any:
        target = oslo_messaging.Target(topic=self._scenario)
        return oslo_messaging.get_rpc_client(self.transport(exmods), target, timeout=timeout, transport_options=options)

    def close(self) -> None:
        for server in self._servers:
            server.stop()
        for server in self._servers:
            server.wait()
        for transport in self._transports:
            transport.cleanup()


def _private_conf() -> cfg.ConfigOpts:
    """A configuration with the options that oslo.messaging registers on the global one alone."""
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[], default_config_dirs=[])
    for group in ("oslo_messaging_metrics", "oslo_messaging_tracing"):
        for option in cfg.CONF._groups[group]._opts.values():
            conf.register_opt(option["opt"], group=group)
    return conf


def _raised(act: Callable[..., Any], *args: Any, **kwargs: Any) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - which one it is, is what the scenarios compare
        act(*args, **kwargs)
    return raised.value


def _class_of(error: Exception) -> tuple[str, str]:
    return type(error).__module__, type(error).__name__


def call(bus: Bus) -> Any:
    """A call returns what its server returned."""
    bus.serve(Endpoint("host1"))
    return bus.client().call({}, "who")


def arguments(bus: Bus) -> Any:
    """Arguments go through JSON: tuples, keys that are numbers, times."""
    bus.serve(Endpoint())
    return bus.client().call({}, "echo", value=[(1, 2), {3: 4, None: True}, datetime.datetime(2030, 1, 2, 3, 4, 5)])


def results(bus: Bus) -> Any:
    """So do results."""
    bus.serve(Endpoint())
    client = bus.client()
    return [client.call({}, "result", kind=kind) for kind in ("tuple", "set", "none")]


def unsendable_arguments(bus: Bus) -> Any:
    """What JSON can't carry is an error in the sender."""
    bus.serve(Endpoint())
    client = bus.client()
    return [_class_of(_raised(client.cast, {}, "record", value=value)) for value in (object(), {(1, 2): 3})]


def unsendable_results(bus: Bus) -> Any:
    """A result, or an error, that JSON can't carry is no answer."""
    bus.serve(Endpoint())
    client = bus.client(timeout=SOON)
    errors = [_raised(client.call, {}, "fail_unsendable"), _raised(client.call, {}, "result", kind="object")]
    return [_class_of(error) for error in errors]


def context(bus: Bus) -> Any:
    """A context arrives as JSON would have it."""
    endpoint = Endpoint()
    bus.serve(endpoint)
    bus.client().cast({"user": "me", "roles": ("admin",), 5: None}, "record")
    return endpoint.seen.get(timeout=PATIENCE)[0]


def allowed_error(bus: Bus) -> Any:
    """An error out of an allowed module keeps its class and arguments."""
    bus.serve(Endpoint())
    error = _raised(bus.client(exmods=["cellmw.exceptions"]).call, {}, "fail", message="gone")
    return _class_of(error), isinstance(error, StoreError), error.args, str(error).splitlines()[:2]


def other_error(bus: Bus) -> Any:
    """An error out of any other module is a RemoteError."""
    bus.serve(Endpoint())
    error = _raised(bus.client().call, {}, "fail", message="gone")
    return _class_of(error), error.exc_type, error.value  # type: ignore[attr-defined]


def builtin_error(bus: Bus) -> Any:
    """Python's own errors are always allowed."""
    bus.serve(Endpoint())
    error = _raised(bus.client().call, {}, "fail_builtin", message="gone")
    return _class_of(error), error.args[0].splitlines()[:2], error.args[1:]


def unknown_method(bus: Bus) -> Any:
    """A method that the server hasn't is an error of the caller."""
    bus.serve(Endpoint())
    error = _raised(bus.client().call, {}, "nothing")
    return _class_of(error), error.exc_type  # type: ignore[attr-defined]


def dropped_casts(bus: Bus) -> Any:
    """Casts that no queue takes are gone, and nobody is told."""
    endpoint, client = Endpoint(), bus.client()
    for early in (client, client.prepare(server="host1"), client.prepare(fanout=True)):
        early.cast({}, "record", value="early")
    bus.serve(endpoint)
    client.cast({}, "record", value="late")
    client.prepare(server="host1").cast({}, "record", value="late")
    client.prepare(fanout=True).cast({}, "record", value="late")
    return [endpoint.next() for _ in range(3)]


def unanswered_call(bus: Bus) -> Any:
    """A call that no queue takes times out."""
    return _class_of(_raised(bus.client(timeout=SOON).call, {}, "who"))


def undeliverable(bus: Bus) -> Any:
    """A message that has to be delivered says where it could not be."""
    client = bus.client(options=oslo_messaging.TransportOptions(at_least_once=True))
    errors: list[Any] = [_raised(client.call, {}, "who"), _raised(client.cast, {}, "who")]
    return [(_class_of(error), error.exchange, error.routing_key) for error in errors]


def fanout(bus: Bus) -> Any:
    """A fanout reaches each server of the topic once, whatever its exchange."""
    one, two, elsewhere = endpoints = [Endpoint() for _ in range(3)]
    bus.serve(one, "host1")
    bus.serve(two, "host2")
    bus.serve(elsewhere, "host3", exchange="elsewhere")
    client = bus.client().prepare(fanout=True)
    client.cast({}, "record", value="all")
    client.cast({}, "record", value="again")
    return [[endpoint.next(), endpoint.next()] for endpoint in endpoints]


def turns(bus: Bus) -> Any:
    """The servers of a topic take turns."""
    bus.serve(Endpoint("host1"), "host1")
    bus.serve(Endpoint("host2"), "host2")
    client = bus.client()
    return Counter(client.call({}, "who") for _ in range(6))


def directed(bus: Bus) -> Any:
    """A message to a server by name reaches that one."""
    bus.serve(Endpoint("host1"), "host1")
    bus.serve(Endpoint("host2"), "host2")
    client = bus.client().prepare(server="host2")
    return [client.call({}, "who") for _ in range(3)]


def exchanges(bus: Bus) -> Any:
    """Exchanges are apart while their topics are."""
    bus.serve(Endpoint("nova"), exchange="nova")
    client = bus.client(timeout=SOON)
    missed = _class_of(_raised(client.prepare(exchange="cinder").call, {}, "who"))
    return client.prepare(exchange="nova", timeout=PATIENCE).call({}, "who"), missed


def one_topic_in_two_exchanges(bus: Bus) -> Any:
    """Queues go by name: servers with one topic in two exchanges take each other's messages."""
    bus.serve(Endpoint("nova"), "host1", exchange="nova")
    bus.serve(Endpoint("cinder"), "host2", exchange="cinder")
    client = bus.client().prepare(exchange="nova")
    return Counter(client.call({}, "who") for _ in range(4))


def stopped_server(bus: Bus) -> Any:
    """A queue keeps what comes while its server is stopped, except for fanouts and for calls that timed out."""
    server, endpoint, client = bus.serve(Endpoint()), Endpoint(), bus.client()
    server.stop()
    server.wait()
    client.prepare(fanout=True).cast({}, "record", value="fanout")
    timed_out = _class_of(_raised(client.prepare(timeout=SOON).call, {}, "record", value="call"))
    client.cast({}, "record", value="first")
    client.cast({}, "record", value="second")
    bus.serve(endpoint)
    kept = [endpoint.next(), endpoint.next()]
    client.prepare(fanout=True).cast({}, "record", value="new fanout")
    return timed_out, kept, endpoint.next()


def notification(bus: Bus) -> Any:
    """A notification waits for its first listener, and is delivered again when that one asks for it."""
    listener = Listener()
    bus.notifier().info({}, "event", {1: (2,)})
    bus.listen(listener)
    return listener.next(), listener.next()


TIMEOUT = ("oslo_messaging.exceptions", "MessagingTimeout")
REMOTE = ("oslo_messaging.rpc.client", "RemoteError")
UNDELIVERABLE = ("oslo_messaging.exceptions", "MessageUndeliverable")
TRACEBACK = "Traceback (most recent call last):"

SCENARIOS: list[tuple[Callable[[Bus], Any], Any]] = [
    (call, "host1"),
    (arguments, [[1, 2], {"3": 4, "null": True}, "2030-01-02T03:04:05.000000"]),
    (results, [[1, {"2": 3}], [4], None]),
    (unsendable_arguments, [("builtins", "ValueError"), ("builtins", "TypeError")]),
    (unsendable_results, [TIMEOUT, TIMEOUT]),
    (context, {"user": "me", "roles": ["admin"], "5": None, "client_timeout": None}),
    (
        allowed_error,
        (("cellmw.exceptions_Remote", "StoreError_Remote"), True, ("gone",), ["gone", TRACEBACK]),
    ),
    (other_error, (REMOTE, "StoreError", "gone")),
    (builtin_error, (("builtins", "LookupError"), ["('gone', 5)", TRACEBACK], (5,))),
    (unknown_method, (REMOTE, "NoSuchMethod")),
    (dropped_casts, ["late"] * 3),
    (unanswered_call, TIMEOUT),
    (undeliverable, [(UNDELIVERABLE, "openstack", "undeliverable")] * 2),
    (fanout, [["all", "again"]] * 3),
    (turns, {"host1": 3, "host2": 3}),
    (directed, ["host2"] * 3),
    (exchanges, ("nova", TIMEOUT)),
    (one_topic_in_two_exchanges, {"nova": 2, "cinder": 2}),
    (stopped_server, (TIMEOUT, ["first", "second"], "new fanout")),
    (notification, ({"1": [2]}, {"1": [2]})),
]


@pytest.fixture(scope="module")
def rabbit_url(rabbitmq_server: Any) -> Iterator[str]:
    """The transport URL of one vhost for all scenarios: making one takes longer than most of them."""
    with rabbitmq_server.vhost() as url:
        yield url


@pytest.fixture(scope="module")
def new_bus(rabbit_url: str) -> Iterator[Callable[[str, str], Bus]]:
    """Each call opens a bus to "memory" or "rabbit"; all are closed at once, for one alone takes two seconds."""
    urls = {"memory": "memory://like-rabbit/", "rabbit": rabbit_url}
    opened: list[Bus] = []

    def new_bus(driver: str, scenario: str) -> Bus:
        opened.append(Bus(urls[driver], scenario))
        return opened[-1]

    yield new_bus
    with ThreadPoolExecutor(len(opened) or 1) as executor:
        list(executor.map(Bus.close, opened))


@pytest.mark.parametrize(("scenario", "outcome"), SCENARIOS, ids=[scenario.__name__ for scenario, _ in SCENARIOS])
def test_both_end_the_same(scenario: Callable[[Bus], Any], outcome: Any, new_bus: Callable[[str, str], Bus]) -> None:
    """The scenario ends the same in memory and on RabbitMQ."""
    ends = {driver: scenario(new_bus(driver, scenario.__name__)) for driver in ("memory", "rabbit")}
    assert ends == {"memory": outcome, "rabbit": outcome}
