# SPDX-License-Identifier: Apache-2.0
"""Notifications on RabbitMQ: they go to their own bus, whatever cell a request is aimed at, or else to the service's.

Each bus is a vhost: the service's own, that for notifications, and the queues of both cells; the wire is listened to on
all of them.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import oslo_messaging
import pytest
from oslo_config import cfg

from cellmw import CellFilter, RequestContext, rpc
from tests.functional.conftest import PATIENCE, PROJECT, Deployment, Exchange
from tests.services.tap import Tap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from _typeshed.wsgi import StartResponse

    from tests import servers

CELLS = ("cell1", "cell2")

BUSES = ("own", "notifications", *CELLS)

TOPICS = ("told", "billed")

TOKEN = "the-token-of-the-caller"

DRIVER = "[oslo_messaging_notifications]\ndriver = messagingv2\ntopics = told\n"

NOBODY = "rabbit://user:hunter2@127.0.0.1:1/"
"""Where nothing listens."""


@pytest.fixture(scope="module")
def queues(rabbitmq_server: servers.Broker) -> Iterator[dict[str, str]]:
    """The URLs of the buses, by name."""
    with ThreadPoolExecutor(len(BUSES)) as threads, ExitStack() as vhosts:
        made = [rabbitmq_server.vhost() for _ in BUSES]
        urls = list(threads.map(lambda vhost: vhost.__enter__(), made))
        vhosts.callback(lambda: list(threads.map(lambda vhost: vhost.__exit__(None, None, None), made)))
        yield dict(zip(BUSES, urls, strict=True))


class Taps:
    """The wires of all buses. Lives as long as the module."""

    def __init__(self, queues: dict[str, str], ends: ExitStack) -> None:
        self._taps = {
            (bus, topic): ends.enter_context(closing(Tap(url, f"{topic}.info")))
            for bus, url in queues.items()
            for topic in TOPICS
        }

    def arrived(self) -> dict[tuple[str, str], tuple[dict[str, Any], str]]:
        """Return what has arrived, by bus and topic: the message, and all of it as it went over the wire."""
        arrived = {}
        for place, tap in self._taps.items():
            if (taken := tap.take()) is not None:
                arrived[place] = (taken[0], taken[2])
                assert tap.is_empty
        return arrived


@pytest.fixture(scope="module")
def taps(queues: dict[str, str]) -> Iterator[Taps]:
    """Listen to all wires."""
    with ExitStack() as ends:
        yield Taps(queues, ends)


@pytest.fixture
def notifier(tmp_path: Path) -> Iterator[Callable[[str], oslo_messaging.Notifier]]:
    """Make a notifier of this configuration."""
    with ExitStack() as made:

        def make(text: str) -> oslo_messaging.Notifier:
            file = tmp_path / "notifying.conf"
            file.write_text(text)
            conf = cfg.ConfigOpts()
            conf([], project="service", default_config_files=[str(file)], default_config_dirs=[])
            notifier = rpc.get_notifier(conf, publisher_id="compute.host1")
            made.callback(notifier.transport.cleanup)
            return notifier

        yield make


class App:
    """An app that tells what it does, and answers. Lives as long as the test."""

    def __init__(self, notifier: oslo_messaging.Notifier) -> None:
        self._notifier = notifier
        self.seconds = 0.0

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Tell that an instance was rebooted."""
        trip, context = environ["cellmw.target"], environ["cellmw.context"]
        begun = monotonic()
        self._notifier.info(context, "instance.reboot", {"uuid": trip.instance_uuid, "cell": trip.cell})
        self.seconds = monotonic() - begun
        start_response("200 OK", [])
        return [context.request_id.encode()]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, queues: dict[str, str]) -> Iterator[Deployment]:
    """The cells."""
    deployment = Deployment(tmp_path_factory.mktemp("deployment"))
    with deployment.store:
        for name in CELLS:
            deployment.add_cell(name, transport_url=queues[name])
        yield deployment


@pytest.fixture
def reboot(deployment: Deployment) -> Iterator[Callable[..., bytes]]:
    """Ask an app behind the filter to reboot an instance that is in this cell."""
    with ExitStack() as ends:

        def reboot(app: App, cell: str) -> bytes:
            cell_filter = ends.enter_context(closing(CellFilter.factory(deployment.global_conf)(app)))
            exchange = Exchange(f"/servers/{deployment.map(cell)}", headers={"HTTP_X_AUTH_TOKEN": TOKEN})
            answer = exchange.fetch(cell_filter)
            assert answer.code == 200
            return answer.content

        yield reboot


@pytest.mark.parametrize("own", ["own", "nobody", ""])
@pytest.mark.parametrize("cell", CELLS)
def test_within_a_request(
    queues: dict[str, str], taps: Taps, notifier: Any, reboot: Callable[..., bytes], cell: str, own: str
) -> None:
    """What is told of a request goes to the bus for notifications, and says nothing that is nobody's business."""
    url = {"own": queues["own"], "nobody": NOBODY}.get(own)
    text = f"[DEFAULT]\ntransport_url = {url}\n" if url else ""
    request_id = reboot(App(notifier(f"{text}{DRIVER}transport_url = {queues['notifications']}\n")), cell)
    ((place, (message, whole)),) = taps.arrived().items()
    assert place == ("notifications", "told")
    assert (message["event_type"], message["publisher_id"]) == ("instance.reboot", "compute.host1")
    assert message["payload"]["cell"]["cellmw.cell"][2] == cell
    assert message["_context_request_id"].encode() == request_id
    assert message["_context_project_id"] == PROJECT
    for word in (
        TOKEN,
        "hunter2",
        "rabbit:",
        "sqlite",
        "View",
        "Lease",
        *(urlsplit(url).path for url in queues.values()),
    ):
        assert word not in whole


def test_own_bus(queues: dict[str, str], taps: Taps, notifier: Any, reboot: Callable[..., bytes]) -> None:
    """Where they have no bus of their own it is the service's, and still not the cell's."""
    reboot(App(notifier(f"[DEFAULT]\ntransport_url = {queues['own']}\n{DRIVER}")), "cell2")
    assert set(taps.arrived()) == {("own", "told")}


def test_configuration(queues: dict[str, str], taps: Taps, notifier: Any) -> None:
    """Topics and drivers are those of the configuration."""
    text = f"transport_url = {queues['notifications']}\ntopics = told,billed\n"
    context = RequestContext(overwrite=False)
    notifier(f"[oslo_messaging_notifications]\n{text}driver = messagingv2\n").info(context, "event", {})
    assert set(taps.arrived()) == {("notifications", topic) for topic in TOPICS}
    notifier(f"[oslo_messaging_notifications]\n{text}driver = noop\n").info(context, "event", {})
    assert not taps.arrived()


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_nobody_there(
    queues: dict[str, str],
    taps: Taps,
    notifier: Any,
    reboot: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A bus that is not there is an error in the log, and nothing to the request; from the second on it is at once."""
    app = App(notifier(f"[DEFAULT]\ntransport_url = {queues['own']}\n{DRIVER}transport_url = {NOBODY}\n"))
    for limit in (PATIENCE, 0.2):
        reboot(app, "cell1")
        assert app.seconds < limit
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 2
    assert "hunter2" not in caplog.text
    assert not taps.arrived()
