# SPDX-License-Identifier: Apache-2.0
"""The buses that are no cell's, and the servers on them: where they lead, and what they refuse."""

from __future__ import annotations

import logging
import queue
from contextlib import ExitStack
from time import monotonic
from typing import TYPE_CHECKING, Any

import oslo_context.context
import oslo_messaging
import pytest
from oslo_config import cfg

from cellmw import rpc
from cellmw.context import RequestContext
from cellmw.exceptions import BusUnavailable, ConfigError, StoreUnavailable
from cellmw.queues.message_queue import ReplyTimeout

from .conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cellmw.cell import Cell
    from cellmw.queues.bus import NotificationTransport, RPCTransport

    from .conftest import Queue

TARGET = oslo_messaging.Target(topic="conductor", version="1.0")

OWN = "memory://own/"
NOTIFICATIONS = "memory://notifications/"

NOBODY = "rabbit://user:hunter2@127.0.0.1:1/"
"""Where nothing listens."""

DRIVER = "[oslo_messaging_notifications]\ndriver = messagingv2\n"


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., cfg.ConfigOpts]:
    """Make a configuration as it is read from this text, on which nothing was registered before."""

    def configure(text: str = f"[DEFAULT]\ntransport_url = {OWN}\n") -> cfg.ConfigOpts:
        file = tmp_path / "service.conf"
        file.write_text(text)
        conf = cfg.ConfigOpts()
        conf([], project="service", default_config_files=[str(file)], default_config_dirs=[])
        return conf

    return configure


@pytest.fixture
def open_transport(configure: Callable[..., cfg.ConfigOpts]) -> Iterator[Callable[..., RPCTransport]]:
    """Open the service's own bus."""
    with ExitStack() as opened:

        def open_(conf: cfg.ConfigOpts | None = None, url: str | None = None) -> RPCTransport:
            transport = rpc.get_transport(configure() if conf is None else conf, url)
            opened.callback(transport.cleanup)
            return transport

        yield open_


class Endpoint:
    """What a conductor does."""

    target = oslo_messaging.Target(version="1.4")

    def whoami(self, context: RequestContext) -> list[Any]:
        """Return what is known of the caller."""
        current = oslo_context.context.get_current()
        return [type(context).__name__, context.user_id, context.request_id, context.cell_uuid, current is context]

    def fail(self, context: RequestContext) -> None:
        """Fail."""
        raise StoreUnavailable("the API database does not answer")

    def _private(self, context: RequestContext) -> None:
        """Nobody calls this from outside."""


class Own(oslo_messaging.NoOpSerializer):
    """A service's own serializer."""

    def deserialize_context(self, ctxt: dict[str, Any]) -> Any:
        return RequestContext(user_id="own", overwrite=False)

    def serialize_context(self, ctxt: Any) -> dict[str, Any]:
        return {"own": True}


@pytest.fixture
def serve(stopped: list[Any]) -> Iterator[Callable[..., None]]:
    """Run an endpoint at a transport, until the test has ended."""
    with ExitStack() as started:

        def serve(transport: RPCTransport, **options: Any) -> None:
            target = oslo_messaging.Target(topic="conductor", server="host")
            server = rpc.get_server(transport, target, (Endpoint(),), **options)
            server.start()
            stopped.append(server)
            started.callback(server.stop)

        yield serve


def client_of(transport: RPCTransport, **options: Any) -> oslo_messaging.RPCClient:
    """Return the client that a router has for a context that was never targeted."""
    return rpc.ClientRouter(oslo_messaging.get_rpc_client(transport, TARGET, **options)).client(object())


# -- the service's own bus --------------------------------------------------------------------------------------------


def test_call(open_transport: Callable[..., RPCTransport], serve: Callable[..., None]) -> None:
    """A call on the service's own bus gets there with its context, which is aimed at no cell, and the reply back."""
    serve(open_transport())
    context = RequestContext(user_id="user", overwrite=False)
    answer = client_of(open_transport()).call(context, "whoami")
    assert answer == ["RequestContext", "user", context.request_id, None, True]


def test_transport_of_the_library(
    configure: Callable[..., cfg.ConfigOpts], open_transport: Callable[..., RPCTransport], serve: Callable[..., None]
) -> None:
    """A server works on a transport of oslo.messaging's own, too, and on a configuration of the service's own."""
    transport = oslo_messaging.get_rpc_transport(configure(), OWN)
    serve(transport)
    assert client_of(open_transport(), timeout=PATIENCE).call({}, "whoami")[0] == "RequestContext"
    transport.cleanup()


def test_what_can_be_called(open_transport: Callable[..., RPCTransport], serve: Callable[..., None]) -> None:
    """A method whose name begins with an underscore can't be called, nor one that is newer than the endpoint."""
    transport = open_transport()
    serve(transport)
    client = client_of(transport)
    with pytest.raises(oslo_messaging.RemoteError, match="NoSuchMethod"):
        client.call({}, "_private")
    with pytest.raises(oslo_messaging.RemoteError, match="UnsupportedVersion"):
        client.prepare(version="1.5").call({}, "whoami")


def test_access_policy(open_transport: Callable[..., RPCTransport], serve: Callable[..., None]) -> None:
    """A service may have a policy of its own for what can be called."""
    transport = open_transport()
    serve(transport, access_policy=oslo_messaging.rpc.dispatcher.ExplicitRPCAccessPolicy)
    with pytest.raises(oslo_messaging.RemoteError, match="NoSuchMethod"):
        client_of(transport).call({}, "whoami")


def test_serializer_of_the_service(open_transport: Callable[..., RPCTransport], serve: Callable[..., None]) -> None:
    """A serializer that the service brings is kept, on both sides."""
    transport = open_transport()
    serve(transport, serializer=Own())
    answer = client_of(transport, serializer=Own()).call(RequestContext(user_id="user", overwrite=False), "whoami")
    assert answer[1] == "own"


@pytest.mark.parametrize(
    ("exmods", "kind"),
    [
        ("", oslo_messaging.RemoteError),
        ("oslo_messaging.exceptions", oslo_messaging.RemoteError),
        ("oslo_messaging.rpc.dispatcher", oslo_messaging.NoSuchMethod),
    ],
)
def test_remote_errors(
    configure: Callable[..., cfg.ConfigOpts],
    open_transport: Callable[..., RPCTransport],
    serve: Callable[..., None],
    exmods: str,
    kind: type[Exception],
) -> None:
    """The error of a module that the option names comes back as what it was, any other as a RemoteError."""
    transport = open_transport(
        configure(f"[DEFAULT]\ntransport_url = {OWN}\n[cellmw]\nallowed_remote_exmods = {exmods}\n")
    )
    serve(transport)
    with pytest.raises(kind):
        client_of(transport).call({}, "unknown")


def test_pings(
    open_transport: Callable[..., RPCTransport], serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where oslo.messaging is to add an endpoint of its own it can, whatever the service has its own in."""
    monkeypatch.setattr(oslo_messaging.rpc.dispatcher._dispatcher_opts[0], "default", True)
    transport = open_transport()
    serve(transport)
    assert client_of(transport).call({}, "oslo_rpc_server_ping") == "pong"


def test_url_that_is_passed(configure: Callable[..., cfg.ConfigOpts], serve: Callable[..., None]) -> None:
    """A URL that is passed comes before that of the configuration."""
    transport = rpc.get_transport(configure(f"[DEFAULT]\ntransport_url = {NOBODY}\n"), OWN)
    serve(transport)
    assert client_of(transport).call({}, "whoami")[0] == "RequestContext"
    transport.cleanup()


@pytest.mark.parametrize("text", ["", "[DEFAULT]\ntransport_url =\n"])
def test_no_bus_of_its_own(configure: Callable[..., cfg.ConfigOpts], text: str) -> None:
    """Without a URL there is no bus: oslo.messaging's own default would lead to whatever runs on this machine."""
    with pytest.raises(ConfigError, match=r"\[DEFAULT\] transport_url is not set"):
        rpc.get_transport(configure(text))
    with pytest.raises(ConfigError, match=r"nor is \[DEFAULT\] transport_url"):
        rpc.get_notifier(configure(text))


@pytest.mark.parametrize(
    "url", ["nosuch://user:hunter2@host/", "rabbit://user:hunter2@host:port/", "rabbit://u:hunter2@h/?no=1"]
)
def test_url_that_cannot_be_used(configure: Callable[..., cfg.ConfigOpts], url: str) -> None:
    """A URL that can't be used is an error that says which bus it is of, and does not show it."""
    for get, bus in ((rpc.get_transport, "own bus"), (rpc.get_notifier, "bus for notifications")):
        with pytest.raises(ConfigError, match=bus) as raised:
            get(configure(f"[DEFAULT]\ntransport_url = {url}\n"))
        assert "hunter2" not in f"{raised.value!r} {raised.value.__cause__!r}"


def test_deadline(configure: Callable[..., cfg.ConfigOpts], open_transport: Callable[..., RPCTransport]) -> None:
    """A call that nobody answers ends with [cellmw] request_deadline, or with its own timeout if that is earlier."""
    transport = open_transport(configure(f"[DEFAULT]\ntransport_url = {OWN}\n[cellmw]\nrequest_deadline = 0.2\n"))
    client = client_of(transport, timeout=60)
    with pytest.raises(ReplyTimeout, match="the service's own bus"):
        client.call({}, "whoami")
    with pytest.raises(oslo_messaging.MessagingTimeout) as raised:
        client.prepare(timeout=0.01).call({}, "whoami")
    assert not isinstance(raised.value, ReplyTimeout)


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("kind", ["cast", "call"])
def test_nobody_there(
    configure: Callable[..., cfg.ConfigOpts], open_transport: Callable[..., RPCTransport], kind: str
) -> None:
    """Where nothing listens a message is an error in time, and at once while that is known; it shows no password."""
    client = client_of(open_transport(configure(f"[DEFAULT]\ntransport_url = {NOBODY}\n")))
    for limit in (PATIENCE, 0.2):
        begun = monotonic()
        with pytest.raises(BusUnavailable, match=r"the service's own bus does not answer \(.+\)") as raised:
            getattr(client, kind)({}, "whoami")
        assert monotonic() - begun < limit
        assert (raised.value.bus, raised.value.sent) == ("the service's own bus", "no")
        assert "hunter2" not in str(raised.value)


def test_cleaned_up(open_transport: Callable[..., RPCTransport]) -> None:
    """After its cleanup a bus sends nothing, and says so; a second one does nothing."""
    transport = open_transport()
    client = client_of(transport)
    transport.cleanup()
    transport.cleanup()
    with pytest.raises(BusUnavailable, match="it was closed"):
        client.cast({}, "whoami")


def test_repr(configure: Callable[..., cfg.ConfigOpts], open_transport: Callable[..., RPCTransport]) -> None:
    """A transport says what it is, and not where it leads."""
    transport = open_transport(configure(f"[DEFAULT]\ntransport_url = {NOBODY}\n"))
    assert repr(transport) == "<RPCTransport <Bus the service's own bus: stuck=0 open>>"
    transport.cleanup()
    assert "closed" in repr(transport)


# -- notifications ----------------------------------------------------------------------------------------------------


class Listened:
    """What arrives at the topic ``notifications``, or another one. Lives as long as its fixture."""

    def __init__(self) -> None:
        self._seen: queue.SimpleQueue[tuple[str, Any, str, str, Any]] = queue.SimpleQueue()
        self._ends = ExitStack()

    def listen(self, conf: cfg.ConfigOpts, bus: str, url: str, topic: str = "notifications") -> None:
        """Listen here, too."""
        transport = oslo_messaging.get_notification_transport(conf, url)
        self._ends.callback(transport.cleanup)
        targets = [(oslo_messaging.Target(topic=topic), "info")]
        listener = transport._listen_for_notifications(targets, None, 1, None)
        self._ends.callback(listener.cleanup)
        self._ends.callback(listener.stop)
        listener.start(lambda messages: [self._take(bus, message) for message in messages])

    def _take(self, bus: str, incoming: Any) -> None:
        message = incoming.message
        self._seen.put((bus, incoming.ctxt, message["publisher_id"], message["event_type"], message["payload"]))
        incoming.acknowledge()

    def next(self) -> tuple[str, Any, str, str, Any]:
        """Return what arrives next, and on which bus."""
        return self._seen.get(timeout=PATIENCE)

    def close(self) -> None:
        """Stop listening."""
        self._ends.close()
        assert self._seen.empty()


@pytest.fixture
def listened(configure: Callable[..., cfg.ConfigOpts]) -> Iterator[Listened]:
    """Whoever listens to notifications; what the test does not take is a failure."""
    listened = Listened()
    yield listened
    listened.close()


@pytest.fixture
def notifier(configure: Callable[..., cfg.ConfigOpts]) -> Iterator[Callable[..., oslo_messaging.Notifier]]:
    """Make a notifier of this configuration."""
    with ExitStack() as made:

        def make(text: str, **options: Any) -> oslo_messaging.Notifier:
            notifier = rpc.get_notifier(configure(text), publisher_id="compute.host1", **options)
            made.callback(notifier.transport.cleanup)
            return notifier

        yield make


@pytest.mark.parametrize("own", [f"[DEFAULT]\ntransport_url = {OWN}\n", f"[DEFAULT]\ntransport_url = {NOBODY}\n", ""])
def test_bus_of_notifications(
    configure: Callable[..., cfg.ConfigOpts],
    notifier: Callable[..., oslo_messaging.Notifier],
    listened: Listened,
    context: RequestContext,
    queue_of: Callable[[Cell], Queue],
    cell1: Cell,
    own: str,
) -> None:
    """A notification goes to the bus that is there for it, whatever cell the context is aimed at."""
    for bus, url in (("own", OWN), ("notifications", NOTIFICATIONS), ("cell1", cell1.reveal_transport_url())):
        listened.listen(configure(), bus, url)
    notifier(f"{own}{DRIVER}transport_url = {NOTIFICATIONS}\n").info(context, "instance.reboot", {"uuid": "1"})
    bus, arrived, *message = listened.next()
    assert (bus, message) == ("notifications", ["compute.host1", "instance.reboot", {"uuid": "1"}])
    assert arrived["request_id"] == context.request_id


def test_own_bus(
    configure: Callable[..., cfg.ConfigOpts], notifier: Callable[..., oslo_messaging.Notifier], listened: Listened
) -> None:
    """Without a bus of their own notifications go to the service's."""
    listened.listen(configure(), "own", OWN)
    notifier(f"[DEFAULT]\ntransport_url = {OWN}\n{DRIVER}").info({}, "instance.reboot", {})
    assert listened.next()[0] == "own"


def test_topics(
    configure: Callable[..., cfg.ConfigOpts], notifier: Callable[..., oslo_messaging.Notifier], listened: Listened
) -> None:
    """The topics are those of the configuration; a driver that sends nothing sends nothing."""
    for topic in ("billing", "versioned"):
        listened.listen(configure(), topic, NOTIFICATIONS, topic)
    text = f"transport_url = {NOTIFICATIONS}\ntopics = billing,versioned\n"
    notifier(DRIVER + text).info({}, "instance.reboot", {})
    assert {listened.next()[0] for _ in range(2)} == {"billing", "versioned"}
    notifier(f"[oslo_messaging_notifications]\ndriver = noop\n{text}").info({}, "instance.reboot", {})


def test_secrets_of_the_context(
    configure: Callable[..., cfg.ConfigOpts],
    notifier: Callable[..., oslo_messaging.Notifier],
    listened: Listened,
    context: RequestContext,
    cell1: Cell,
) -> None:
    """Of the context neither its token nor a handle goes along; of what is told a cell does, without its URLs."""
    listened.listen(configure(), "notifications", NOTIFICATIONS)
    context.auth_token = "hunter2"
    notifier(f"{DRIVER}transport_url = {NOTIFICATIONS}\n").info(context, "cell.full", {"cell": cell1})
    _, arrived, _, _, payload = listened.next()
    assert arrived["auth_token"] is None
    assert payload == {"cell": {"cellmw.cell": [cell1.id, cell1.uuid, cell1.name, False]}}
    assert "hunter2" not in str(arrived)
    assert "sqlite" not in f"{arrived} {payload}"


def test_context_stays_current(notifier: Callable[..., oslo_messaging.Notifier], context: RequestContext) -> None:
    """To notify does not change which context the thread's log lines show."""
    context.update_store()
    made = notifier(f"{DRIVER}transport_url = {NOTIFICATIONS}\n")
    for each in (made, made.prepare(retry=0), made.prepare().prepare(publisher_id="compute.host2")):
        each.info(context, "instance.reboot", {})
        assert oslo_context.context.get_current() is context


def test_handle_in_a_notification(notifier: Callable[..., oslo_messaging.Notifier], context: RequestContext) -> None:
    """A handle is not told to anybody."""
    with pytest.raises(TypeError, match="stay in their process"):
        notifier(f"{DRIVER}transport_url = {NOTIFICATIONS}\n").info(context, "x", {"database": context.db_connection})


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_nobody_to_notify(notifier: Callable[..., oslo_messaging.Notifier], caplog: pytest.LogCaptureFixture) -> None:
    """A bus that is not there is an error in the log, at once from the second notification on, and for nobody else."""
    made = notifier(f"{DRIVER}transport_url = {NOBODY}\n")
    for limit in (PATIENCE, 0.2):
        begun = monotonic()
        made.info({}, "instance.reboot", {"uuid": "1"})
        assert monotonic() - begun < limit
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 2
    assert all("the bus for notifications does not answer" in str(record.exc_info) for record in errors)
    assert "hunter2" not in caplog.text


def test_prepared_notifier(
    configure: Callable[..., cfg.ConfigOpts], notifier: Callable[..., oslo_messaging.Notifier], listened: Listened
) -> None:
    """A notifier is one of oslo.messaging's, and can be made one of another publisher."""
    listened.listen(configure(), "notifications", NOTIFICATIONS)
    made = notifier(f"{DRIVER}transport_url = {NOTIFICATIONS}\n", serializer=Own())
    prepared = made.prepare(publisher_id="compute.host2")
    assert (prepared.retry, made.prepare(retry=3).retry, made.publisher_id) == (made.retry, 3, "compute.host1")
    prepared.info({}, "instance.reboot", {})
    _, arrived, publisher, *_ = listened.next()
    assert (arrived["own"], publisher) == (True, "compute.host2")


def test_how_long_a_notification_may_take(configure: Callable[..., cfg.ConfigOpts]) -> None:
    """A notification may take five seconds, or less where a request may."""
    for text, seconds in (("", 5.0), ("[cellmw]\nrequest_deadline = 0.5\n", 0.5)):
        transport: NotificationTransport = rpc.get_notifier(
            configure(f"[DEFAULT]\ntransport_url = {OWN}\n{text}")
        ).transport
        assert transport._patience == seconds
        assert isinstance(transport, oslo_messaging.transport.NotificationTransport)
        transport.cleanup()
