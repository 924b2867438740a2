# SPDX-License-Identifier: Apache-2.0
"""Calls and casts on RabbitMQ: the super conductor's whole way, what is in a message, and what stays connected.

The API bus and the two cells are a vhost each. What goes over the wire is looked at with a client that knows nothing of
oslo.messaging.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import oslo_messaging
import pytest
from oslo_config import cfg

from cellmw import ClientRouter, RequestContext, deploy, rpc
from cellmw.exceptions import LeaseClosed
from cellmw.queues.message_queue import ReplyTimeout
from tests.functional import test_super_conductor
from tests.functional.conftest import PATIENCE, Deployment
from tests.functional.test_super_conductor import COMPUTE, Layout
from tests.services.tap import Tap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests import servers

CELLS = test_super_conductor.CELLS


@pytest.fixture(scope="module")
def queues(rabbitmq_server: servers.Broker) -> Iterator[dict[str, str]]:
    """The URLs of three vhosts, for the API and for each cell, by name."""
    names = ("api", *CELLS)
    with ThreadPoolExecutor(len(names)) as threads, ExitStack() as vhosts:
        made = [rabbitmq_server.vhost() for _ in names]
        urls = list(threads.map(lambda vhost: vhost.__enter__(), made))
        vhosts.callback(lambda: list(threads.map(lambda vhost: vhost.__exit__(None, None, None), made)))
        yield dict(zip(names, urls, strict=True))


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, queues: dict[str, str]) -> Iterator[Deployment]:
    """cell1 and cell2, and one that is disabled and nowhere."""
    deployment = Deployment(tmp_path_factory.mktemp("deployment"))
    with deployment.store:
        for name in CELLS:
            deployment.add_cell(name, transport_url=queues[name])
        deployment.add_cell("cell3", disabled=True)
        yield deployment


@pytest.fixture(scope="module")
def layout(
    deployment: Deployment, queues: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Layout]:
    """The super conductor on the API bus, and a worker on the queue of each cell."""
    databases = {name: deployment.database_url(name) for name in ("api", *CELLS)}
    folder = tmp_path_factory.mktemp("services")
    with closing(Layout(folder, queues, databases)) as layout:
        yield layout
        assert layout.seen.empty()
        layout.call("everywhere")  # the library looks every five seconds whether one that is idle is to stop


instances = test_super_conductor.instances

test_call = test_super_conductor.test_call
test_cast = test_super_conductor.test_cast
test_side_by_side = test_super_conductor.test_side_by_side
test_results = test_super_conductor.test_results
test_errors = test_super_conductor.test_errors
test_error_of_ours = test_super_conductor.test_error_of_ours


@contextmanager
def bus(conf: cfg.ConfigOpts, url: str | None = None) -> Iterator[Any]:
    """A bus, which is cleaned up in the end."""
    transport = rpc.get_transport(conf, url)
    try:
        yield transport
    finally:
        transport.cleanup()


# -- what is in a message ---------------------------------------------------------------------------------------------


@pytest.fixture
def tap() -> Iterator[Callable[..., Tap]]:
    """Listen to the wire."""
    with ExitStack() as ends:
        yield lambda url, topic: ends.enter_context(closing(Tap(url, topic)))


def test_wire(layout: Layout, deployment: Deployment, queues: dict[str, str], tap: Callable[..., Tap]) -> None:
    """In a message there is who asks, for which request; and nothing of handles, or of where a cell is."""
    wire = tap(queues["cell1"], "tapped")
    router = ClientRouter(None, target=oslo_messaging.Target(topic="tapped", version="1.0"))
    context = RequestContext(user_id="user", request_id="req-1", global_request_id="req-2", overwrite=False)
    with closing(deploy.cells(layout.confs["conductor"])) as cells:
        cell = cells.get("cell1")
        with cells.target(context, cell) as targeted:
            client = router.client(targeted)
            client.cast(targeted, "reboot", cell=cell, context=targeted, nested=[{"cells": cells.all()}])
            with pytest.raises(TypeError, match="stay in their process"):
                client.cast(targeted, "reboot", handle=targeted.db_connection)
    message, _, whole = wire.next()
    assert message["method"] == "reboot"
    assert message["args"]["cell"] == {"cellmw.cell": [cell.id, cell.uuid, "cell1", False]}
    sent = {name.removeprefix("_context_") for name in message if name.startswith("_context_")}
    assert (message["_context_request_id"], message["_context_global_request_id"]) == ("req-1", "req-2")
    assert sent <= set(rpc.ContextSerializer()._attributes) | {"client_timeout"}
    for name, url in queues.items():
        address = urlsplit(url)
        for word in (url, address.path[1:], f":{address.password}@", f"{address.hostname}:{address.port}"):
            assert word not in whole, f"of {name}"
    for word in ("View", "Lease", "sqlite", "rabbit:", "db_connection", "mq_connection", "cell_uuid"):
        assert word not in whole
    assert wire.is_empty


def test_attributes_that_are_configured(
    deployment: Deployment, queues: dict[str, str], tap: Callable[..., Tap], tmp_path: Path
) -> None:
    """What of a context goes over the wire is what the option says."""
    wire = tap(queues["api"], "tapped")
    file = tmp_path / "service.conf"
    file.write_text(
        f"[DEFAULT]\ntransport_url = {queues['api']}\n[cellmw]\ncontext_attributes = user_identity,request_id\n"
    )
    conf = cfg.ConfigOpts()
    conf([], project="service", default_config_files=[str(file)], default_config_dirs=[])
    context = RequestContext(user_id="user", request_id="req-1", auth_token="hunter2", overwrite=False)
    with bus(conf) as transport:
        client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic="tapped"))
        ClientRouter(client).client(context).cast(context, "reboot")
    message, _, whole = wire.next()
    assert "hunter2" not in whole
    sent = {name for name in message if name.startswith("_context_")}
    assert sent - {"_context_client_timeout"} == {"_context_user_identity", "_context_request_id"}


# -- calls that take long, and what is left ---------------------------------------------------------------------------


def test_call_monitor(deployment: Deployment, layout: Layout) -> None:
    """A call whose server shows that it is at work lasts beyond the monitor's timeout, and not beyond its deadline."""
    router = ClientRouter(None, target=COMPUTE, timeout=PATIENCE, call_monitor_timeout=2)
    with closing(deploy.cells(layout.confs["conductor"])) as cells:
        context, cell = RequestContext(overwrite=False), cells.get("cell2")
        begun = monotonic()
        with cells.target(context, cell) as targeted:
            assert router.client(targeted).call(targeted, "work", seconds=2.3) == "done"
        assert monotonic() - begun > 2.2
        begun = monotonic()
        with cells.target(context, cell, deadline=begun + 0.3) as targeted, pytest.raises(ReplyTimeout):
            router.client(targeted).call(targeted, "work", seconds=PATIENCE)
        assert monotonic() - begun < 2
        with cells.target(context, cell) as targeted:
            client = router.client(targeted).prepare(server="nobody", timeout=0.2)
            with pytest.raises(oslo_messaging.MessagingTimeout) as raised:
                client.call(targeted, "work", seconds=0)
        assert not isinstance(raised.value, ReplyTimeout)
    layout.go_on.set()


def test_prepared(queues: dict[str, str], deployment: Deployment, layout: Layout, tap: Callable[..., Tap]) -> None:
    """What is prepared for one server, or for all, reaches those of its own cell."""
    router = layout.router
    wires = {name: tap(queues[name], "compute.host7") for name in CELLS}
    with closing(deploy.cells(layout.confs["conductor"])) as cells:
        with cells.target(RequestContext(overwrite=False), cells.get("cell2")) as targeted:
            client = ClientRouter(None, target=COMPUTE).client(targeted)
            client.prepare(server="host7", version="1.3").cast(targeted, "reboot")
            client.prepare(fanout=True).cast(targeted, "reboot", instance_uuid="of all")
        with pytest.raises(LeaseClosed):
            client.prepare(server="host7").cast(targeted, "reboot")
    assert router.client(RequestContext(overwrite=False)) is router.client(RequestContext(overwrite=False))
    assert wires["cell2"].next()[0]["version"] == "1.3"
    assert wires["cell1"].is_empty
    assert layout.seen.get(timeout=PATIENCE)[0]["where"] == "cell2"


def test_nothing_stays_connected(
    rabbitmq_server: servers.Broker, queues: dict[str, str], layout: Layout, conf: cfg.ConfigOpts
) -> None:
    """To make a bus connects to nothing; its cleanup closes all connections, those of a server's included."""

    def connections() -> int:
        return rabbitmq_server.administer("list_connections", "vhost").split().count(urlsplit(queues["api"]).path[1:])

    with bus(conf, queues["api"]) as served, bus(conf, queues["api"]) as transport:
        topic = oslo_messaging.Target(topic="left", version="1.0")
        server = rpc.get_server(served, topic(server="host"), [object()])
        client = ClientRouter(oslo_messaging.get_rpc_client(transport, topic)).client(object())
        before = connections()
        server.start()
        with pytest.raises(oslo_messaging.RemoteError):
            client.call({}, "nosuch")
        assert connections() >= before + 4
        server.stop()
        server.wait()
    deadline = monotonic() + PATIENCE
    while (after := connections()) > before and monotonic() < deadline:
        """The broker takes a moment to notice."""
    assert after == before


# -- a process that has nothing else ----------------------------------------------------------------------------------

PROCESS = """
import sys
from contextlib import closing
from oslo_config import cfg

which, file = sys.argv[1:]
conf = cfg.CONF if which == "global" else cfg.ConfigOpts()
conf([], project="service", default_config_files=[file], default_config_dirs=[])

import oslo_messaging
from cellmw import ClientRouter, RequestContext, deploy, rpc

class Endpoint:
    def echo(self, context, value):
        return [context.user_id, value]

topic = oslo_messaging.Target(topic=which, version="1.0")
transport = rpc.get_transport(*([conf] if which == "private" else []))
server = rpc.get_server(transport, topic(server="host"), [Endpoint()])
server.start()
context = RequestContext(user_id="user")
router = ClientRouter(oslo_messaging.get_rpc_client(transport, topic))
print(*router.client(context).call(context, "echo", value="own"))
with closing(deploy.cells(conf)) as cells, cells.target(context, cells.get("cell1")) as targeted:
    here = rpc.get_transport(conf, cells.get("cell1").reveal_transport_url())
    remote = rpc.get_server(here, topic(server="host"), [Endpoint()])
    remote.start()
    print(*router.client(targeted).call(targeted, "echo", value="cell1"))
    remote.stop()
    rpc.get_notifier(*([conf] if which == "private" else []), publisher_id="me").info(targeted, "event", {})
server.stop()
if which == "private":
    print(sorted(name for name in ("cellmw", "api_database", "cellmw_database") if name in cfg.CONF._groups))
"""


@pytest.fixture(scope="module", autouse=True)
def processes(
    deployment: Deployment, queues: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[subprocess.Popen[str], Tap]]]:
    """Processes that do all of it by themselves, beside the other tests, and who hears what they tell."""
    started = {}
    with ExitStack() as ends:
        for which in ("private", "global"):
            file = tmp_path_factory.mktemp(which) / "service.conf"
            file.write_text(
                f"[DEFAULT]\ntransport_url = {queues['api']}\n"
                f"[api_database]\nconnection = {deployment.database_url('api')}\n"
                f"[oslo_messaging_notifications]\ndriver = messagingv2\ntopics = of_{which}\n"
            )
            told = ends.enter_context(closing(Tap(queues["api"], f"of_{which}.info")))
            command = [sys.executable, "-W", "ignore", "-c", PROCESS, which, str(file)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            ends.enter_context(process)
            ends.callback(process.kill)
            started[which] = (process, told)
        yield started


@pytest.mark.parametrize("which", ["private", "global"])
def test_own_process(processes: dict[str, tuple[subprocess.Popen[str], Tap]], which: str) -> None:
    """All of it works in a process that has but a configuration of its own, and in one that has but cfg.CONF."""
    process, told = processes[which]
    output, errors = process.communicate(timeout=3 * PATIENCE)
    assert process.returncode == 0, errors
    assert output.splitlines() == ["user own", "user cell1", *(["[]"] if which == "private" else [])]
    assert "Traceback" not in errors
    assert told.next()[0]["event_type"] == "event"
