# SPDX-License-Identifier: Apache-2.0
"""The in-memory queue, seen through oslo.messaging's own clients, servers, notifiers and listeners.

What it has in common with RabbitMQ is held beside a real one in tests/services/test_memory_like_rabbit.py.
"""

from __future__ import annotations

import datetime
import gc
import queue
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import oslo_messaging
import pytest
from oslo_config import cfg
from oslo_messaging._drivers import base

from cellmw.exceptions import StoreError
from cellmw.memory import MemoryDriver

if TYPE_CHECKING:
    from collections.abc import Iterator

URL = "memory://queue1/"
OTHER_URL = "memory://queue2/"

PATIENCE = 20
"""Seconds after which a test gives up on what has to come; a test that passes never waits for them."""

SOON = 0.05
"""Seconds that a caller waits where nobody will ever answer."""


class Endpoint:
    """What a test's server does; records what arrives."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.seen: queue.SimpleQueue[tuple[dict[str, Any], Any]] = queue.SimpleQueue()
        self.let_go = threading.Event()

    def record(self, ctxt: dict[str, Any], value: Any = None) -> None:
        self.seen.put((ctxt, value))

    def echo(self, ctxt: dict[str, Any], value: Any = None) -> Any:
        return [self.name, value]

    def unsendable(self, ctxt: dict[str, Any]) -> object:
        return object()

    def fail(self, ctxt: dict[str, Any], message: str) -> None:
        raise StoreError(message)

    def block(self, ctxt: dict[str, Any]) -> None:
        self.seen.put((ctxt, "blocked"))
        assert self.let_go.wait(PATIENCE)

    def next(self) -> Any:
        """Return the value that arrives next."""
        return self.seen.get(timeout=PATIENCE)[1]


class Listener:
    """What a test's notification listener does; records the payloads, and has the first ones delivered again."""

    def __init__(self, requeue: int = 0) -> None:
        self.seen: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._requeue = requeue

    def info(self, ctxt: Any, publisher_id: str, event_type: str, payload: Any, metadata: Any) -> str:
        self.seen.put(payload)
        self._requeue -= 1
        result = oslo_messaging.NotificationResult
        return str(result.HANDLED if self._requeue < 0 else result.REQUEUE)

    def next(self) -> Any:
        """Return the payload that arrives next."""
        return self.seen.get(timeout=PATIENCE)


class BatchListener:
    """Records whole batches."""

    def __init__(self) -> None:
        self.seen: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()

    def info(self, messages: list[dict[str, Any]]) -> None:
        self.seen.put([message["payload"] for message in messages])


class Bus:
    """Makes transports, servers and clients, and ends those that its test leaves."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self.conf = conf
        # a broker outlives its test by as long as an idle server takes to notice its end, and keeps what is left in it
        self._url = f"{URL}{uuid.uuid4().hex}"
        self._transports: list[Any] = []
        self._servers: list[Any] = []

    def transport(self, url: str | None = None, exmods: list[str] | None = None) -> Any:
        transport = oslo_messaging.get_rpc_transport(self.conf, url or self._url, allowed_remote_exmods=exmods)
        self._transports.append(transport)
        return transport

    def notification_transport(self, url: str | None = None) -> Any:
        transport = oslo_messaging.get_notification_transport(self.conf, url or self._url)
        self._transports.append(transport)
        return transport

    def serve(self, transport: Any, endpoint: Endpoint, server: str = "host1", **target: str) -> Any:
        """Start a server that handles one message after the other."""
        wanted = oslo_messaging.Target(**{"topic": "compute", "server": server} | target)
        return self.start(oslo_messaging.get_rpc_server(transport, wanted, [endpoint]))

    def listen(self, transport: Any, endpoint: Listener, pool: str | None = None) -> Any:
        targets = [oslo_messaging.Target(topic="events")]
        return self.start(
            oslo_messaging.get_notification_listener(transport, targets, [endpoint], allow_requeue=True, pool=pool)
        )

    def start(self, server: Any) -> Any:
        self._servers.append(server)
        server.start(override_pool_size=1)
        return server

    def client(self, transport: Any, timeout: float = PATIENCE, options: Any = None, **target: Any) -> Any:
        wanted = oslo_messaging.Target(**{"topic": "compute"} | target)
        return oslo_messaging.get_rpc_client(transport, wanted, timeout=timeout, transport_options=options)

    def notifier(self, transport: Any, driver: str = "messagingv2") -> Any:
        return oslo_messaging.Notifier(transport, "publisher", driver=driver, topics=["events"])

    def close(self) -> None:
        # Their idle workers notice within a second that they are not wanted; waiting for that would be all that
        # this module's tests do.
        for server in self._servers:
            server.stop()
        for transport in self._transports:
            transport.cleanup()


@pytest.fixture
def conf() -> cfg.ConfigOpts:
    """A private configuration, with the options that oslo.messaging registers on the global one alone."""
    private = cfg.ConfigOpts()
    private([], default_config_files=[], default_config_dirs=[])
    for group in ("oslo_messaging_metrics", "oslo_messaging_tracing"):
        for option in cfg.CONF._groups[group]._opts.values():
            private.register_opt(option["opt"], group=group)
    return private


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    """Threads for calls that block."""
    with ThreadPoolExecutor() as executor:
        yield executor


@pytest.fixture
def bus(conf: cfg.ConfigOpts, background: ThreadPoolExecutor) -> Iterator[Bus]:
    """Transports, servers and clients for one test; closed before its background, so that no call blocks that."""
    made = Bus(conf)
    yield made
    made.close()


# URLs


def test_driver_is_found_by_the_scheme_of_the_url(bus: Bus) -> None:
    """oslo.messaging finds the driver by its entry point, and it says whether it is open."""
    transport = bus.transport()
    assert isinstance(transport._driver, MemoryDriver)
    assert repr(transport._driver) == "<MemoryDriver queue1 open>"
    transport.cleanup()
    assert repr(transport._driver) == "<MemoryDriver queue1 closed>"


@pytest.mark.parametrize("url", ["memory://", "memory:///", "memory:///vhost", "memory://user:s3cret@/"])
def test_url_without_a_name_is_refused(bus: Bus, url: str) -> None:
    """A URL without a name is a clear error that quotes nothing of it."""
    with pytest.raises(oslo_messaging.InvalidTransportURL, match="needs one name: memory://NAME/") as refused:
        bus.transport(url)
    assert "s3cret" not in f"{refused.value!r} {vars(refused.value)}"


@pytest.mark.parametrize("url", ["memory://a,b/", "memory://a:5672/"])
def test_url_of_something_on_a_network_is_refused(bus: Bus, url: str) -> None:
    """Several hosts, or a port, are no name of a queue in this process."""
    with pytest.raises(oslo_messaging.InvalidTransportURL):
        bus.transport(url)


@pytest.mark.parametrize(
    "url", ["memory://queue1", "memory://queue1//", "memory://user:s3cret@queue1/", "memory://queue1/?heartbeat_rate=2"]
)
def test_same_name_and_virtual_host_are_the_same_queue(bus: Bus, url: str) -> None:
    """Credentials, query and how the default virtual host is spelt make no difference."""
    bus.serve(bus.transport(URL), Endpoint("one"))
    assert bus.client(bus.transport(url)).call({}, "echo") == ["one", None]


@pytest.mark.parametrize("url", [OTHER_URL, "memory://queue1/vhost", "memory://QUEUE1/"])
def test_other_urls_share_nothing(bus: Bus, url: str) -> None:
    """The same exchange, topic and server behind another URL is another server, for fanouts too."""
    here, there = Endpoint("here"), Endpoint("there")
    bus.serve(bus.transport(URL), here)
    bus.serve(bus.transport(url), there)
    client = bus.client(bus.transport(url))
    client.prepare(fanout=True).cast({}, "record", value="fanout")
    client.prepare(server="host1").cast({}, "record", value="directed")
    client.cast({}, "record", value="cast")
    assert [there.next() for _ in range(3)] == ["fanout", "directed", "cast"]
    assert client.call({}, "echo") == ["there", None]
    assert here.seen.empty()


# Calls and casts


def test_call_returns_the_result(bus: Bus) -> None:
    """A call returns what the server's method returned."""
    transport = bus.transport()
    bus.serve(transport, Endpoint("one"))
    assert bus.client(transport).call({}, "echo", value="hello") == ["one", "hello"]


def test_call_may_return_none(bus: Bus) -> None:
    """None is an answer."""
    transport = bus.transport()
    bus.serve(transport, Endpoint())
    assert bus.client(transport).call({}, "record") is None


def test_casts_arrive_in_their_order(bus: Bus) -> None:
    """One server gets the casts of one client in the order in which they were sent."""
    transport, endpoint = bus.transport(), Endpoint()
    bus.serve(transport, endpoint)
    for number in range(100):
        bus.client(transport).cast({}, "record", value=number)
    assert [endpoint.next() for _ in range(100)] == list(range(100))


def test_servers_of_a_topic_take_turns(bus: Bus) -> None:
    """Two servers on one topic get every second message each."""
    transport = bus.transport()
    bus.serve(transport, Endpoint("one"), "host1")
    bus.serve(bus.transport(), Endpoint("two"), "host2")
    client = bus.client(transport)
    assert [client.call({}, "echo")[0] for _ in range(6)] == ["one", "two"] * 3


def test_directed_message_reaches_its_server_only(bus: Bus) -> None:
    """A message to a server by name goes to none of the others of its topic."""
    transport = bus.transport()
    bus.serve(transport, Endpoint("one"), "host1")
    bus.serve(transport, Endpoint("two"), "host2")
    client = bus.client(transport, server="host2")
    assert [client.call({}, "echo")[0] for _ in range(4)] == ["two"] * 4


def test_fanout_reaches_every_server_of_the_topic(bus: Bus) -> None:
    """Each server of the topic gets one copy of a fanout, whatever its exchange."""
    transport, endpoints = bus.transport(), [Endpoint() for _ in range(3)]
    bus.serve(transport, endpoints[0], "host1")
    bus.serve(bus.transport(), endpoints[1], "host2")
    bus.serve(transport, endpoints[2], "host3", exchange="elsewhere")
    for value in ("all", "again"):
        bus.client(transport, fanout=True).cast({}, "record", value=value)
    assert [[endpoint.next(), endpoint.next()] for endpoint in endpoints] == [["all", "again"]] * 3


def test_fanout_reaches_no_other_topic(bus: Bus) -> None:
    """A server of another topic gets nothing of a fanout."""
    transport, endpoint = bus.transport(), Endpoint()
    bus.serve(transport, endpoint, topic="other")
    bus.client(transport, fanout=True).cast({}, "record", value="all")
    bus.client(transport, topic="other", fanout=True).cast({}, "record", value="other")
    assert endpoint.next() == "other"


def test_exchanges_are_apart(bus: Bus) -> None:
    """A message to an exchange that its topic's servers did not choose reaches none of them."""
    transport, endpoint = bus.transport(), Endpoint()
    bus.serve(transport, endpoint, exchange="nova")
    client = bus.client(transport)
    client.prepare(exchange="cinder").cast({}, "record", value="cinder")
    client.cast({}, "record", value="default")
    client.prepare(exchange="nova").cast({}, "record", value="nova")
    assert endpoint.next() == "nova"


def test_default_exchange_is_the_control_exchange(bus: Bus) -> None:
    """A target without an exchange is in the one that the configuration names."""
    bus.transport()  # registers the option
    bus.conf.set_override("control_exchange", "nova")
    transport = bus.transport()
    bus.serve(transport, Endpoint("one"), exchange="nova")
    assert bus.client(transport).call({}, "echo") == ["one", None]


def test_topic_in_two_exchanges_has_one_queue(bus: Bus) -> None:
    """As on RabbitMQ, servers with one topic in two exchanges take each other's messages: queues go by name."""
    transport = bus.transport()
    bus.serve(transport, Endpoint("nova"), "host1", exchange="nova")
    bus.serve(transport, Endpoint("cinder"), "host2", exchange="cinder")
    client = bus.client(transport, exchange="nova")
    assert {client.call({}, "echo")[0] for _ in range(2)} == {"nova", "cinder"}


def test_server_may_call_over_its_own_transport(bus: Bus) -> None:
    """A method that makes a call itself is answered: nothing is locked while anything waits."""
    transport = bus.transport()

    class Relay:
        def relay(self, ctxt: dict[str, Any]) -> Any:
            return bus.client(transport).call(ctxt, "echo", value="relayed")

    bus.serve(transport, Endpoint("one"))
    bus.serve(transport, Relay(), topic="relay")  # type: ignore[arg-type]
    assert bus.client(transport, topic="relay").call({}, "relay") == ["one", "relayed"]


# The way through JSON


def test_receiver_never_sees_the_senders_objects(bus: Bus) -> None:
    """What a sender changes in its arguments and its context after a cast changes nothing at the server."""
    transport, endpoint = bus.transport(), Endpoint()
    client = bus.client(transport)
    bus.serve(transport, endpoint).stop()
    context, value = {"user": "before"}, {"list": ["before"]}
    client.cast(context, "record", value=value)
    context["user"] = "after"
    value["list"].append("after")
    bus.serve(transport, endpoint)
    seen_context, seen_value = endpoint.seen.get(timeout=PATIENCE)
    assert (seen_context["user"], seen_value) == ("before", {"list": ["before"]})


def test_sender_keeps_its_message(bus: Bus) -> None:
    """Sending adds nothing to the dicts of the sender."""
    transport = bus.transport()
    message, context = {"method": "record", "args": {}}, {"user": "me"}
    transport._send(oslo_messaging.Target(topic="compute"), context, message)
    assert (message, context) == ({"method": "record", "args": {}}, {"user": "me"})


def test_arguments_and_results_go_through_json(bus: Bus) -> None:
    """A tuple arrives as a list, a number as key as a string, a time as a string; so do results."""
    transport = bus.transport()
    bus.serve(transport, Endpoint("one"))
    value = {1: (2, 3), "at": datetime.datetime(2030, 1, 2, 3, 4, 5)}
    answer = bus.client(transport).call({}, "echo", value=value)
    assert answer == ["one", {"1": [2, 3], "at": "2030-01-02T03:04:05.000000"}]


def test_context_goes_through_json(bus: Bus) -> None:
    """A context arrives as JSON would have it."""
    transport, endpoint = bus.transport(), Endpoint()
    bus.serve(transport, endpoint)
    bus.client(transport).cast({"roles": ("admin",), 5: None}, "record")
    context, _ = endpoint.seen.get(timeout=PATIENCE)
    assert context == {"roles": ["admin"], "5": None, "client_timeout": None}


@pytest.mark.parametrize(("value", "error"), [(object(), ValueError), ({(1, 2): 3}, TypeError)])
def test_what_json_can_not_carry_fails_in_the_sender(bus: Bus, value: object, error: type[Exception]) -> None:
    """Cast and call raise at once what the JSON encoder raises."""
    transport = bus.transport()
    bus.serve(transport, Endpoint())
    client = bus.client(transport)
    with pytest.raises(error):
        client.cast({}, "record", value=value)
    with pytest.raises(error):
        client.call({"roles": value}, "record")


def test_result_that_json_can_not_carry_is_no_answer(bus: Bus) -> None:
    """Such a result is the server's problem, which logs it; its caller waits in vain."""
    transport = bus.transport()
    bus.serve(transport, Endpoint())
    with pytest.raises(oslo_messaging.MessagingTimeout):
        bus.client(transport, timeout=SOON).call({}, "unsendable")


def test_remote_error_of_an_allowed_module_keeps_its_class(bus: Bus) -> None:
    """An exception out of ``allowed_remote_exmods`` is raised as one of its class, with the remote traceback."""
    bus.serve(bus.transport(), Endpoint())
    client = bus.client(bus.transport(exmods=["cellmw.exceptions"]))
    with pytest.raises(StoreError, match=r"(?s)^gone\n.*Traceback.* in fail") as raised:
        client.call({}, "fail", message="gone")
    assert (type(raised.value).__name__, raised.value.args) == ("StoreError_Remote", ("gone",))


def test_remote_error_of_any_other_module_is_a_remote_error(bus: Bus) -> None:
    """Without leave an exception arrives as RemoteError that names its class."""
    transport = bus.transport()
    bus.serve(bus.transport(exmods=["cellmw.exceptions"]), Endpoint())
    with pytest.raises(oslo_messaging.RemoteError) as raised:
        bus.client(transport).call({}, "fail", message="gone")
    assert (raised.value.exc_type, raised.value.value) == ("StoreError", "gone")


# What nobody takes


def test_cast_that_no_queue_takes_is_dropped(bus: Bus) -> None:
    """A cast before the first server of its topic returns, and never arrives."""
    transport, endpoint = bus.transport(), Endpoint()
    client = bus.client(transport)
    for early in (client, client.prepare(server="host1"), client.prepare(fanout=True)):
        early.cast({}, "record", value="early")
    bus.serve(transport, endpoint)
    client.cast({}, "record", value="late")
    assert endpoint.next() == "late"


def test_call_that_no_queue_takes_times_out(bus: Bus) -> None:
    """A call before the first server of its topic waits for its timeout."""
    with pytest.raises(oslo_messaging.MessagingTimeout):
        bus.client(bus.transport(), timeout=SOON).call({}, "echo")


@pytest.mark.parametrize("pattern", ["call", "cast"])
def test_message_that_has_to_be_delivered_says_that_it_was_not(bus: Bus, pattern: str) -> None:
    """With ``at_least_once`` it is an error that no queue takes a message."""
    options = oslo_messaging.TransportOptions(at_least_once=True)
    client = bus.client(bus.transport(), options=options)
    with pytest.raises(oslo_messaging.MessageUndeliverable) as raised:
        getattr(client, pattern)({}, "echo")
    assert (raised.value.exchange, raised.value.routing_key) == ("openstack", "compute")


def test_message_that_has_to_be_delivered_is_delivered(bus: Bus) -> None:
    """With ``at_least_once`` and a server a call is a call."""
    transport = bus.transport()
    bus.serve(transport, Endpoint("one"))
    options = oslo_messaging.TransportOptions(at_least_once=True)
    assert bus.client(transport, options=options).call({}, "echo") == ["one", None]


def test_queue_keeps_what_comes_while_its_server_is_stopped(bus: Bus) -> None:
    """The next server of the topic gets what was sent since the last one stopped, the directed messages too."""
    transport, endpoint = bus.transport(), Endpoint()
    client = bus.client(transport)
    bus.serve(transport, Endpoint()).stop()
    client.cast({}, "record", value="topic")
    client.prepare(server="host1").cast({}, "record", value="directed")
    bus.serve(bus.transport(), endpoint)
    assert [endpoint.next(), endpoint.next()] == ["topic", "directed"]


def test_directed_message_waits_for_its_server(bus: Bus) -> None:
    """What was sent to a stopped server by name goes to no other server."""
    transport, other = bus.transport(), Endpoint()
    bus.serve(transport, Endpoint(), "host1").stop()
    bus.client(transport, server="host1").cast({}, "record", value="for host1")
    bus.serve(transport, other, "host2")
    bus.client(transport).cast({}, "record", value="for any")
    assert other.next() == "for any"
    bus.serve(transport, back := Endpoint(), "host1")
    assert back.next() == "for host1"


def test_fanout_is_for_those_who_listen_now(bus: Bus) -> None:
    """A server that starts, or starts again, gets no fanout from before."""
    transport, endpoint = bus.transport(), Endpoint()
    server = bus.serve(transport, endpoint)
    server.stop()
    server.wait()
    bus.client(transport, fanout=True).cast({}, "record", value="early")
    server.start(override_pool_size=1)
    bus.client(transport).cast({}, "record", value="late")
    assert endpoint.next() == "late"


def test_call_that_timed_out_is_not_delivered_later(bus: Bus) -> None:
    """A call that waited in a queue until its caller gave up goes to no server."""
    transport, endpoint = bus.transport(), Endpoint()
    bus.serve(transport, Endpoint()).stop()
    with pytest.raises(oslo_messaging.MessagingTimeout):
        bus.client(transport, timeout=SOON).call({}, "record", value="expired")
    bus.client(transport).cast({}, "record", value="fresh")
    bus.serve(transport, endpoint)
    assert endpoint.next() == "fresh"


def test_call_without_a_timeout_waits_for_ever(bus: Bus, background: ThreadPoolExecutor) -> None:
    """A transport's call with timeout None waits until its answer comes."""
    transport, endpoint = bus.transport(), Endpoint()
    bus.serve(transport, endpoint)
    target = oslo_messaging.Target(topic="compute")
    call = background.submit(transport._send, target, {}, {"method": "block", "args": {}}, wait_for_reply=True)
    assert endpoint.next() == "blocked"
    assert not call.done()
    endpoint.let_go.set()
    assert call.result(PATIENCE) is None


def test_late_answer_is_dropped(bus: Bus) -> None:
    """The answer to a caller who has given up disturbs nobody."""
    transport, endpoint = bus.transport(), Endpoint("one")
    bus.serve(transport, endpoint)
    with pytest.raises(oslo_messaging.MessagingTimeout):
        bus.client(transport, timeout=SOON).call({}, "block")
    endpoint.let_go.set()
    assert bus.client(transport).call({}, "echo") == ["one", None]


def test_call_that_has_ended_leaves_nothing(bus: Bus) -> None:
    """Neither an answered call nor one that timed out is remembered."""
    transport = bus.transport()
    with pytest.raises(oslo_messaging.MessagingTimeout):
        bus.client(transport, timeout=SOON).call({}, "echo")
    bus.serve(transport, Endpoint())
    bus.client(transport).call({}, "echo")
    driver = transport._driver
    assert (driver._broker._callers, driver._calls) == ({}, set())


# Call monitoring


def test_monitored_call_ends_with_its_server(bus: Bus) -> None:
    """A monitored call without a sign of life ends after call_monitor_timeout, long before its timeout."""
    client = bus.client(bus.transport()).prepare(call_monitor_timeout=SOON)
    began = time.monotonic()
    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.call({}, "echo")
    assert time.monotonic() - began < PATIENCE


def test_heartbeat_is_no_answer(bus: Bus, background: ThreadPoolExecutor) -> None:
    """A server learns how often its caller wants to hear from it, and its caller goes on waiting when it does."""
    transport = bus.transport()
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    listener = transport._listen(oslo_messaging.Target(topic="compute", server="host1"), 1, None)
    listener.start(lambda batch: requests.put(batch[0]))
    call = background.submit(bus.client(transport).prepare(call_monitor_timeout=PATIENCE).call, {}, "echo")
    request = requests.get(timeout=PATIENCE)
    assert request.client_timeout == PATIENCE
    request.heartbeat()
    request.reply("the answer")
    assert call.result(PATIENCE) == "the answer"
    listener.stop()


# The end of servers and transports


def test_nothing_stays_behind(bus: Bus) -> None:
    """After stop, wait and cleanup no thread is left."""
    before = set(threading.enumerate())
    transport = bus.transport()
    servers = [bus.serve(transport, Endpoint(), f"host{number}") for number in range(3)]
    for number in range(3):
        bus.client(transport, server=f"host{number}").call({}, "echo")
    for server in servers:
        server.stop()
    for server in servers:
        server.wait()
    transport.cleanup()
    assert set(threading.enumerate()) <= before


def test_stopped_server_handles_nothing_more(bus: Bus) -> None:
    """Once stop() has returned, its topic's messages go to the other servers."""
    transport = bus.transport()
    bus.serve(transport, Endpoint("stopped"), "host1").stop()
    bus.serve(transport, Endpoint("running"), "host2")
    client = bus.client(transport)
    assert [client.call({}, "echo")[0] for _ in range(3)] == ["running"] * 3


def test_listener_that_never_started_gives_back_what_it_got(bus: Bus) -> None:
    """What was meant for a listener that nobody started goes on to the next server, in its order."""
    transport, endpoint = bus.transport(), Endpoint()
    listener = transport._listen(oslo_messaging.Target(topic="compute", server="host1"), 1, None)
    for value in ("first", "second"):
        bus.client(transport).cast({}, "record", value=value)
    listener.cleanup()
    bus.serve(transport, endpoint, "host2")
    assert [endpoint.next(), endpoint.next()] == ["first", "second"]


def test_cleanup_leaves_other_transports_alone(bus: Bus) -> None:
    """After one transport's cleanup those of its own URL and of others go on."""
    transport = bus.transport()
    for url in (URL, OTHER_URL):
        bus.serve(bus.transport(url), Endpoint(url))
    clients = {url: bus.client(bus.transport(url)) for url in (URL, OTHER_URL)}
    transport.cleanup()
    assert [client.call({}, "echo")[0] for client in clients.values()] == [URL, OTHER_URL]


def test_broker_goes_on_when_its_server_disconnects(bus: Bus) -> None:
    """What waits in a queue outlives the transport of the server that declared it, while there is any other."""
    first, second, endpoint = bus.transport(), bus.transport(), Endpoint()
    bus.serve(first, Endpoint()).stop()
    first.cleanup()
    bus.client(second).cast({}, "record", value="kept")
    bus.serve(second, endpoint)
    assert endpoint.next() == "kept"


def test_broker_goes_with_its_last_transport(bus: Bus) -> None:
    """After the cleanup of a URL's last transport nothing is left of its queues."""
    transport = bus.transport()
    bus.serve(transport, Endpoint()).stop()
    bus.client(transport).cast({}, "record", value="lost")
    transport.cleanup()
    transport, endpoint = bus.transport(), Endpoint()
    bus.serve(transport, endpoint)
    bus.client(transport).cast({}, "record", value="new")
    assert endpoint.next() == "new"


def test_broker_goes_with_a_forgotten_transport(conf: cfg.ConfigOpts) -> None:
    """A transport that is dropped without cleanup keeps nothing alive."""
    target = oslo_messaging.Target(topic="events.info")
    oslo_messaging.get_notification_transport(conf, "memory://forgotten/")._send_notification(target, {}, {}, 2.0)
    gc.collect()
    transport = oslo_messaging.get_notification_transport(conf, "memory://forgotten/")
    target = oslo_messaging.Target(topic="events")
    listener = transport._listen_for_notifications([(target, "info")], None, 1, None)
    assert listener._poll_style_listener.poll(timeout=0) == []
    listener.cleanup()
    transport.cleanup()


def test_transport_that_was_cleaned_up_says_so(bus: Bus) -> None:
    """After cleanup, which may be called twice, every use is an error with a reason."""
    transport = bus.transport()
    transport.cleanup()
    transport.cleanup()
    client, target = bus.client(transport), oslo_messaging.Target(topic="events", server="host1")
    listener_target = [(target, "info")]
    reason = "this transport to the in-memory queue 'queue1' was cleaned up"
    for send in (client.call, client.cast, client.prepare(fanout=True).cast):
        with pytest.raises(oslo_messaging.rpc.client.ClientSendError, match=reason):
            send({}, "echo")
    with pytest.raises(base.TransportDriverError, match=reason):
        transport._send_notification(target, {}, {}, 2.0)
    with pytest.raises(oslo_messaging.ServerListenError, match=reason):
        transport._listen(target, 1, None)
    with pytest.raises(oslo_messaging.ServerListenError, match=reason):
        transport._listen_for_notifications(listener_target, None, 1, None)


def test_server_on_a_transport_that_was_cleaned_up_does_not_start(bus: Bus) -> None:
    """oslo.messaging's server gives the reason on."""
    transport = bus.transport()
    transport.cleanup()
    target = oslo_messaging.Target(topic="compute", server="host1")
    server = oslo_messaging.get_rpc_server(transport, target, [Endpoint()])
    with pytest.raises(oslo_messaging.ServerListenError, match="was cleaned up"):
        server.start()


def test_cleanup_wakes_who_waits_for_an_answer(bus: Bus, background: ThreadPoolExecutor) -> None:
    """A call that waits when its transport is cleaned up ends at once, with an error that leaves open what happened."""
    server_side, client_side, endpoint = bus.transport(), bus.transport(), Endpoint()
    bus.serve(server_side, endpoint)
    call = background.submit(bus.client(client_side).call, {}, "block")
    assert endpoint.next() == "blocked"
    client_side.cleanup()
    with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="was cleaned up while a call waited"):
        call.result(PATIENCE)
    endpoint.let_go.set()


def test_server_of_a_transport_that_was_cleaned_up_gets_nothing_more(bus: Bus) -> None:
    """A server that runs on after its transport's cleanup is one that has lost its broker; it can still be stopped."""
    lost, transport = bus.transport(), bus.transport()
    server = bus.serve(lost, Endpoint("lost"), "host1")
    bus.serve(transport, Endpoint("running"), "host2")
    lost.cleanup()
    client = bus.client(transport)
    assert [client.call({}, "echo")[0] for _ in range(3)] == ["running"] * 3
    server.stop()
    assert not server.listener._listen_thread.is_alive()


def test_answer_over_a_transport_that_was_cleaned_up_is_dropped(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    """A server that answers too late to be connected logs that, and its caller waits in vain."""
    server_side, endpoint = bus.transport(), Endpoint()
    server = bus.serve(server_side, endpoint)
    with ThreadPoolExecutor() as executor:
        call = executor.submit(bus.client(bus.transport(), timeout=1).call, {}, "block")
        assert endpoint.next() == "blocked"
        server_side.cleanup()
        endpoint.let_go.set()
        server.stop()
        server.wait()
        with pytest.raises(oslo_messaging.MessagingTimeout):
            call.result(PATIENCE)
    assert "answered after its server's transport closed" in caplog.text


# Notifications


@pytest.mark.parametrize("driver", ["messaging", "messagingv2"])
def test_notification_reaches_a_listener(bus: Bus, driver: str) -> None:
    """Both of oslo.messaging's message formats arrive."""
    transport, listener = bus.notification_transport(), Listener()
    bus.listen(transport, listener)
    bus.notifier(transport, driver).info({}, "event", {1: (2,)})
    assert listener.next() == {"1": [2]}


def test_notification_waits_for_a_listener(bus: Bus) -> None:
    """As on RabbitMQ a notification, unlike a cast, makes a queue to wait in."""
    transport, listener = bus.notification_transport(), Listener()
    bus.notifier(transport).info({}, "event", "early")
    bus.listen(transport, listener)
    assert listener.next() == "early"


def test_notification_of_another_priority_is_not_listened_to(bus: Bus) -> None:
    """A listener gets the priorities that it has methods for."""
    transport, listener = bus.notification_transport(), Listener()
    bus.listen(transport, listener)
    bus.notifier(transport).error({}, "event", "error")
    bus.notifier(transport).info({}, "event", "info")
    assert listener.next() == "info"


def test_each_pool_gets_a_copy(bus: Bus) -> None:
    """Each pool of listeners gets every notification once, and the listeners of a pool take turns."""
    transport = bus.notification_transport()
    one, two, alone = Listener(), Listener(), Listener()
    bus.listen(transport, one, pool="shared")
    bus.listen(bus.notification_transport(), two, pool="shared")
    bus.listen(transport, alone, pool="alone")
    for number in range(4):
        bus.notifier(transport).info({}, "event", number)
    assert [one.next(), one.next(), two.next(), two.next()] == [0, 2, 1, 3]
    assert [alone.next() for _ in range(4)] == [0, 1, 2, 3]


def test_requeued_notification_is_delivered_again(bus: Bus) -> None:
    """A listener that could not handle a notification gets it once more."""
    transport, listener = bus.notification_transport(), Listener(requeue=2)
    bus.listen(transport, listener)
    bus.notifier(transport).info({}, "event", "stubborn")
    assert [listener.next() for _ in range(3)] == ["stubborn"] * 3


def test_notification_requeued_by_a_stopped_listener_waits(bus: Bus) -> None:
    """What a listener gives back after it was stopped is for the next one, before all that came later."""
    transport, listener = bus.notification_transport(), Listener()
    target = [(oslo_messaging.Target(topic="events"), "info")]
    received: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stopped = transport._listen_for_notifications(target, None, 1, None)
    stopped.start(lambda batch: received.put(batch[0]))
    bus.notifier(transport).info({}, "event", "first")
    notification = received.get(timeout=PATIENCE)
    stopped.stop()
    bus.notifier(transport).info({}, "event", "second")
    notification.requeue()
    bus.listen(transport, listener)
    assert [listener.next(), listener.next()] == ["first", "second"]


def test_batch_is_delivered_when_it_is_full(bus: Bus) -> None:
    """A batch listener gets as many notifications at once as it asked for."""
    transport, endpoint = bus.notification_transport(), BatchListener()
    for number in range(4):
        bus.notifier(transport).info({}, "event", number)
    targets = [oslo_messaging.Target(topic="events")]
    bus.start(oslo_messaging.get_batch_notification_listener(transport, targets, [endpoint], batch_size=2))
    assert [endpoint.seen.get(timeout=PATIENCE) for _ in range(2)] == [[0, 1], [2, 3]]


def test_batch_is_delivered_when_its_time_is_up(bus: Bus) -> None:
    """A batch listener gets what there is once the first of it has waited for batch_timeout."""
    transport, endpoint = bus.notification_transport(), BatchListener()
    bus.notifier(transport).info({}, "event", "lonely")
    targets = [oslo_messaging.Target(topic="events")]
    bus.start(
        oslo_messaging.get_batch_notification_listener(transport, targets, [endpoint], batch_size=2, batch_timeout=SOON)
    )
    assert endpoint.seen.get(timeout=PATIENCE) == ["lonely"]


# Many threads


def test_transports_that_connect_at_once_get_one_broker(bus: Bus) -> None:
    """However many threads open the first transport of a URL, all of them reach each other."""
    together = threading.Barrier(8)

    def connect() -> Any:
        together.wait(PATIENCE)
        return bus.transport()

    with ThreadPoolExecutor(8) as executor:
        transports = [future.result(PATIENCE) for future in [executor.submit(connect) for _ in range(8)]]
    bus.serve(transports[0], Endpoint("one"))
    assert [bus.client(transport).call({}, "echo")[0] for transport in transports] == ["one"] * 8


def test_threads_that_share_transports_get_their_own_answers(bus: Bus) -> None:
    """Of 1600 calls by 8 threads over 4 URLs each is answered by its own server, and with its own answer."""
    urls = [f"memory://cell{number}/" for number in range(4)]
    for url in urls:
        bus.serve(bus.transport(url), Endpoint(url))
    clients = {url: bus.client(bus.transport(url)) for url in urls}
    together = threading.Barrier(8)

    def call_all(thread: int) -> list[tuple[Any, Any]]:
        together.wait(PATIENCE)
        wrong = []
        for number in range(200):
            url = urls[(thread + number) % len(urls)]
            answer = clients[url].call({}, "echo", value=[thread, number])
            if answer != [url, [thread, number]]:
                wrong.append((url, answer))
        return wrong

    with ThreadPoolExecutor(8) as executor:
        assert [wrong for result in executor.map(call_all, range(8)) for wrong in result] == []
