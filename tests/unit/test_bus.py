# SPDX-License-Identifier: Apache-2.0
"""A bus of the service itself: a transport to oslo.messaging, and an end to each wait."""

from __future__ import annotations

from contextlib import closing
from time import monotonic
from typing import TYPE_CHECKING, Any

import oslo_messaging
import pytest
from oslo_messaging import transport as messaging

from cellmw.exceptions import BusUnavailable, ConfigError
from cellmw.limits import Limits
from cellmw.queues import bus
from cellmw.queues.message_queue import ReplyTimeout

if TYPE_CHECKING:
    from oslo_config import cfg

URL = "memory://bus/"

TOPIC = oslo_messaging.Target(topic="topic")


@pytest.mark.parametrize(
    ("kind", "base"),
    [(bus.RPCTransport, messaging.RPCTransport), (bus.NotificationTransport, messaging.NotificationTransport)],
)
def test_kinds(conf: cfg.ConfigOpts, kind: Any, base: type) -> None:
    """It is of the kind that oslo.messaging's clients, servers and notifiers ask for, and has its configuration."""
    transport = bus.open_bus("the bus", conf, URL, Limits(), kind=kind)
    assert isinstance(transport, base)
    assert transport.conf is conf
    transport.cleanup()


@pytest.mark.parametrize("patience", [0.01, 0.1])
def test_patience(conf: cfg.ConfigOpts, patience: float) -> None:
    """Each message has its own time, which begins when it is sent."""
    transport = bus.open_bus("the bus", conf, URL, Limits(patience=patience))
    for _ in range(2):
        begun = monotonic()
        with pytest.raises(ReplyTimeout, match="a reply from the bus"):
            transport._send(TOPIC, {}, {}, wait_for_reply=True, timeout=60)
        assert monotonic() - begun >= patience
    transport.cleanup()


def test_listening(conf: cfg.ConfigOpts) -> None:
    """A server's listener is the driver's own."""
    transport = bus.open_bus("the bus", conf, URL, Limits())
    target = TOPIC(server="host")
    listener = transport._listen(target, 1, None)._poll_style_listener
    transport._send(target, {}, {"method": "reboot"})
    (message,) = listener.poll(timeout=20)
    assert message.message["method"] == "reboot"
    transport.cleanup()


def test_notifications(conf: cfg.ConfigOpts) -> None:
    """A notification waits for whoever is told of it."""
    transport = bus.open_bus("the bus", conf, URL, Limits(), kind=bus.NotificationTransport)
    transport._send_notification(TOPIC(topic="topic.info"), {}, {"payload": 1}, version=2.0)
    listener = transport._listen_for_notifications([(TOPIC, "info")], None, 1, None)._poll_style_listener
    (message,) = listener.poll(timeout=20)
    assert message.message["payload"] == 1
    transport.cleanup()


def test_closed(conf: cfg.ConfigOpts) -> None:
    """What is sent after the cleanup is an error that names the bus."""
    transport = bus.open_bus("the bus", conf, URL, Limits(), kind=bus.NotificationTransport)
    transport.cleanup()
    with pytest.raises(BusUnavailable, match=r"the bus does not answer \(it was closed\)") as raised:
        transport._send_notification(TOPIC, {}, {}, version=2.0)
    assert (raised.value.bus, raised.value.cause, raised.value.sent) == ("the bus", "it was closed", "no")


def test_two_buses(conf: cfg.ConfigOpts) -> None:
    """What becomes of one bus is nothing to another one with the same URL."""
    first, second = (bus.open_bus(name, conf, URL, Limits()) for name in ("first", "second"))
    first.cleanup()
    with closing(second._bus):
        second._send(TOPIC, {}, {})


@pytest.mark.parametrize("url", ["nosuch://user:hunter2@host/", "memory://"])
def test_refused(conf: cfg.ConfigOpts, url: str) -> None:
    """A URL that nobody can use is refused when the bus is opened, without being shown."""
    with pytest.raises(ConfigError, match=r"^the bus: ") as raised:
        bus.open_bus("the bus", conf, url, Limits())
    assert "hunter2" not in str(raised.value)
    assert raised.value.__suppress_context__
