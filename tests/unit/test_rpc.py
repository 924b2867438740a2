# SPDX-License-Identifier: Apache-2.0
"""Which client a context gets, and what of a context travels."""

from __future__ import annotations

import inspect
from time import monotonic
from typing import TYPE_CHECKING, Any

import oslo_messaging
import pytest

from cellmw.cell import Cell
from cellmw.context import RequestContext, target
from cellmw.deadline import after
from cellmw.exceptions import CellHasNoTransport, LeaseClosed, NotTargeted
from cellmw.handles import Handles
from cellmw.lease import Lease
from cellmw.queues.message_queue import ReplyTimeout
from cellmw.rpc import ClientRouter, ContextSerializer

from .conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from oslo_config import cfg

    from .conftest import Queue

TARGET = oslo_messaging.Target(topic="compute", version="2.0")
DEFAULT = Cell(9, "uuid-9", "default", False, "memory://default/", "sqlite://")


class Serializer(oslo_messaging.NoOpSerializer):
    """A service's own."""

    def serialize_context(self, ctxt: Any) -> dict[str, Any]:
        return {"own": True}


@pytest.fixture
def default_transport(conf: cfg.ConfigOpts) -> Iterator[oslo_messaging.Transport]:
    """The service's own bus."""
    handles = Handles.open(DEFAULT, conf, {})
    yield handles.transport
    handles.close()


@pytest.fixture
def router(default_transport: oslo_messaging.Transport) -> ClientRouter:
    """A router, made from the client of a service that has a bus of its own."""
    return ClientRouter(oslo_messaging.get_rpc_client(default_transport, TARGET, timeout=7, retry=2))


@pytest.fixture
def context2(handles2: Handles) -> Iterator[RequestContext]:
    """A context that is aimed at cell2."""
    context = RequestContext(overwrite=False)
    with Lease(handles2) as lease:
        target(context, lease)
        yield context


def test_targeted(
    router: ClientRouter,
    context: RequestContext,
    context2: RequestContext,
    queue_of: Callable[[Cell], Queue],
    cell1: Cell,
    cell2: Cell,
) -> None:
    """What is sent for a targeted context arrives in its own cell, and nowhere else."""
    queues = {cell.name: queue_of(cell) for cell in (cell1, cell2, DEFAULT)}
    router.client(context).cast(context, "reboot", host="a")
    assert queues["cell1"].next()[1]["args"] == {"host": "a"}
    router.client(context2).cast(context2, "reboot", host="b")
    assert queues["cell2"].next()[1]["args"] == {"host": "b"}
    assert all(queue.is_empty for queue in queues.values())


@pytest.mark.parametrize("context", [RequestContext(overwrite=False), object(), {}], ids=["ours", "foreign", "dict"])
def test_never_targeted(router: ClientRouter, queue_of: Callable[[Cell], Queue], context: Any) -> None:
    """What is sent for a context that was never targeted goes to the service's own bus."""
    queue = queue_of(DEFAULT)
    router.client(context).cast({}, "reboot")
    assert queue.next()[1]["method"] == "reboot"


def test_default_client_is_made_once(router: ClientRouter) -> None:
    """All contexts that were never targeted share one client."""
    assert router.client(RequestContext(overwrite=False)) is router.client(RequestContext(overwrite=False))


def test_no_default() -> None:
    """Where the service has no bus of its own a context that was never targeted is an error that says so."""
    with pytest.raises(NotTargeted, match="no message bus of its own"):
        ClientRouter(None, target=TARGET).client(RequestContext(overwrite=False))


def test_targeted_without_a_default(context: RequestContext, queue_of: Callable[[Cell], Queue], cell1: Cell) -> None:
    """A service without a bus of its own reaches cells all the same."""
    queue = queue_of(cell1)
    ClientRouter(None, target=TARGET).client(context).cast(context, "reboot")
    assert queue.next()[1]["version"] == "2.0"


@pytest.mark.parametrize(
    ("with_client", "arguments"),
    [(False, {}), (True, {"target": TARGET}), (False, {"timeout": 5}), (True, {"timeout": 5})],
)
def test_wrong_arguments(
    default_transport: oslo_messaging.Transport, with_client: bool, arguments: dict[str, Any]
) -> None:
    """A router is made from a client, or from a target with options: never from both, nor from none."""
    client = oslo_messaging.get_rpc_client(default_transport, TARGET) if with_client else None
    with pytest.raises(TypeError, match="a default client, or None and the target"):
        ClientRouter(client, **arguments)


def test_one_client_for_each_lease(router: ClientRouter, context: RequestContext, handles1: Handles) -> None:
    """A lease has one client for each router, and no lease has that of another, though on the same cell."""
    client = router.client(context)
    assert router.client(context) is client
    assert ClientRouter(None, target=TARGET).client(context) is not client
    with Lease(handles1) as other:
        again = RequestContext(overwrite=False)
        target(again, other)
        assert router.client(again) is not client


def test_after_the_release(router: ClientRouter, context: RequestContext, lease: Lease) -> None:
    """After the release neither a kept client nor a new one sends anything, and nothing falls back to the default."""
    client = router.client(context)
    prepared = client.prepare(server="host")
    lease.release()
    with pytest.raises(LeaseClosed):
        router.client(context)
    for late in (client, prepared):
        with pytest.raises(LeaseClosed):
            late.cast(context, "reboot")


def test_cell_without_a_queue(router: ClientRouter, handles0: Handles, handles1: Handles) -> None:
    """The client for a cell without a queue can be made; its use is an error."""
    context = RequestContext(overwrite=False)
    with Lease(handles0) as lease:
        target(context, lease)
        client = router.client(context)
        with pytest.raises(CellHasNoTransport):
            client.cast(context, "reboot")


def test_foreign_transport(
    router: ClientRouter, handles2: Handles, queue_of: Callable[[Cell], Queue], cell2: Cell
) -> None:
    """A transport that somebody else has put on the context, as Nova does, is used as it is."""
    context = RequestContext(overwrite=False)
    context.mq_connection = handles2.transport
    queue = queue_of(cell2)
    router.client(context).cast(context, "reboot")
    assert queue.next()[1]["method"] == "reboot"


def test_clients_are_like_the_default(default_transport: oslo_messaging.Transport, context: RequestContext) -> None:
    """A cell's client has the target, serializer, timeouts, retries and version cap of the default one."""
    serializer = Serializer()
    options = {"timeout": 7, "retry": 2, "version_cap": "2.3", "call_monitor_timeout": 3, "serializer": serializer}
    options["transport_options"] = oslo_messaging.TransportOptions(at_least_once=True)
    router = ClientRouter(oslo_messaging.get_rpc_client(default_transport, TARGET, **options))
    for client in (router.client(context), router.client(RequestContext(overwrite=False))):
        assert client.target == TARGET
        assert {name: getattr(client, name) for name in options} == options


def test_options_without_a_default(context: RequestContext) -> None:
    """Where there is no default client the same things are given by name."""
    serializer = Serializer()
    router = ClientRouter(None, target=TARGET, timeout=7, version_cap="2.3", serializer=serializer)
    client = router.client(context)
    assert (client.timeout, client.version_cap, client.serializer) == (7, "2.3", serializer)


@pytest.mark.parametrize("options", [{}, {"serializer": None}, {"serializer": oslo_messaging.NoOpSerializer()}])
def test_no_serializer_without_a_default(context: RequestContext, options: dict[str, Any]) -> None:
    """Nor is there one in the options that are given by name: it is ours then, too."""
    assert type(ClientRouter(None, target=TARGET, **options).client(context).serializer) is ContextSerializer


@pytest.mark.parametrize("targeted", [True, False])
def test_version_cap(default_transport: oslo_messaging.Transport, context: RequestContext, targeted: bool) -> None:
    """What is newer than the default client's cap is sent nowhere, and a service can ask before."""
    router = ClientRouter(oslo_messaging.get_rpc_client(default_transport, TARGET, version_cap="2.3"))
    client = router.client(context if targeted else RequestContext(overwrite=False))
    assert client.can_send_version("2.3")
    assert client.can_send_version()
    for newer in ("2.4", "3.0"):
        assert not client.can_send_version(newer)
        for kind in (client.prepare(version=newer).cast, client.prepare(version=newer).call):
            with pytest.raises(oslo_messaging.RPCVersionCapError, match=newer):
                kind(context, "reboot")


@pytest.mark.parametrize(
    "how", [{"server": "worker"}, {"fanout": True}, {"version": "2.2"}, {"server": "worker", "version": "2.1"}]
)
def test_prepared(
    router: ClientRouter,
    context: RequestContext,
    context2: RequestContext,
    queue_of: Callable[[Cell], Queue],
    cell1: Cell,
    cell2: Cell,
    how: dict[str, Any],
) -> None:
    """What is prepared reaches the cell of its context, and no other, to one server, to all, in that version."""
    queues = [queue_of(cell) for cell in (cell1, cell2, DEFAULT)]
    for number, targeted in enumerate((context, context2)):
        router.client(targeted).prepare(**how).cast(targeted, "reboot")
        assert queues[number].next()[1]["version"] == how.get("version", "2.0")
    assert all(queue.is_empty for queue in queues)


@pytest.mark.parametrize("prepared", [True, False])
def test_timeout_of_the_client(handles1: Handles, prepared: bool) -> None:
    """A timeout of the client's that is over before the deadline holds."""
    router = ClientRouter(None, target=TARGET, timeout=60 if prepared else 0.02)
    context = RequestContext(overwrite=False)
    with Lease(handles1, deadline=after(PATIENCE)) as lease:
        target(context, lease)
        client = router.client(context)
        with pytest.raises(oslo_messaging.MessagingTimeout) as raised:
            (client.prepare(timeout=0.02) if prepared else client).call(context, "reboot")
    assert not isinstance(raised.value, ReplyTimeout)


@pytest.mark.parametrize("options", [{}, {"timeout": 60}, {"timeout": 60, "call_monitor_timeout": 30}])
def test_deadline_of_the_request(handles1: Handles, options: dict[str, Any]) -> None:
    """No call lasts longer than the request has left, whatever its timeouts say."""
    router = ClientRouter(None, target=TARGET, **options)
    context = RequestContext(overwrite=False)
    begun = monotonic()
    with Lease(handles1, deadline=after(0.05)) as lease:
        target(context, lease)
        with pytest.raises(ReplyTimeout):
            router.client(context).call(context, "reboot")
    assert monotonic() - begun < PATIENCE / 2


def test_oslo_messaging_client() -> None:
    """oslo.messaging's clients take these arguments and keep them by these names: what clients share is complete."""
    parameters = set(inspect.signature(oslo_messaging.rpc.client.RPCClient.__init__).parameters)
    assert parameters - {"self", "transport", "target", "_manual_load"} == {
        "call_monitor_timeout",
        "retry",
        "serializer",
        "timeout",
        "transport_options",
        "version_cap",
    }


@pytest.mark.parametrize("serializer", [None, oslo_messaging.NoOpSerializer()], ids=["none", "no-op"])
def test_serializer_of_ours(
    default_transport: oslo_messaging.Transport,
    context: RequestContext,
    queue_of: Callable[[Cell], Queue],
    cell1: Cell,
    serializer: Any,
) -> None:
    """Where the service brings no serializer, a context travels as its dict, without its handles."""
    router = ClientRouter(oslo_messaging.get_rpc_client(default_transport, TARGET, serializer=serializer))
    queue = queue_of(cell1)
    router.client(context).cast(context, "reboot")
    arrived, message = queue.next()
    assert arrived["project_id"] == "project"
    assert not {"db_connection", "mq_connection", "cell_uuid"} & arrived.keys()
    for word in ("View", "Lease", "sqlite", "memory:"):
        assert word not in f"{arrived} {message}"


def test_serializer_of_the_service(
    default_transport: oslo_messaging.Transport, context: RequestContext, queue_of: Callable[[Cell], Queue], cell1: Cell
) -> None:
    """Where the service brings a serializer, that is used."""
    router = ClientRouter(oslo_messaging.get_rpc_client(default_transport, TARGET, serializer=Serializer()))
    queue = queue_of(cell1)
    router.client(context).cast(context, "reboot")
    assert queue.next()[0]["own"] is True


@pytest.mark.parametrize("name", ["db_connection", "mq_connection"])
def test_handle_as_an_argument(
    router: ClientRouter, context: RequestContext, queue_of: Callable[[Cell], Queue], cell1: Cell, name: str
) -> None:
    """A handle that is passed as an argument is an error, and nothing is sent."""
    queue = queue_of(cell1)
    for kind in (router.client(context).cast, router.client(context).call):
        with pytest.raises(TypeError, match="stay in their process"):
            kind(context, "reboot", among=[{"others": getattr(context, name)}])
    assert queue.is_empty


def test_what_json_cannot_carry(router: ClientRouter, context: RequestContext) -> None:
    """What nobody can serialize is the library's error, as it is without a router."""
    with pytest.raises(ValueError, match="primitive"):
        router.client(context).cast(context, "reboot", what=object())
