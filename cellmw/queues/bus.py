# SPDX-License-Identifier: Apache-2.0
"""Transport URL -> a message bus of the service itself, which is no cell's: its own one, or that for notifications.

Oslo.messaging's clients, notifiers and servers take it for a transport of theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oslo_messaging import transport as messaging

from cellmw import forks
from cellmw.deadline import after
from cellmw.exceptions import BusUnavailable, ConfigError, UrlRefused
from cellmw.queues.message_queue import MessageQueue, open_transport, probe_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from oslo_config import cfg

    from cellmw.limits import Limits


class Bus(MessageQueue):
    """A message bus. Lives as long as the transport in front of it."""

    def _unavailable(self, cause: str, sent: str = "no") -> BusUnavailable:
        return BusUnavailable(self.name, cause, sent)


class _BusTransport:
    """Sends by way of a bus, and listens at its driver. Lives as long as the service; ``cleanup()`` ends it.

    A child process gets a bus of its own, on first use: what its parent has open is the parent's.
    """

    def __init__(self, conf: cfg.ConfigOpts, open_queue: Callable[[], Bus], patience: float) -> None:
        """Put it in front of a bus.

        :param patience: seconds that each message may take, its reply included
        """
        # not super().__init__(): it would keep the driver
        self.conf = conf
        self._open = open_queue
        self._bus = open_queue()
        self._patience = patience
        forks.follow(self)

    @property
    def _driver(self) -> Any:
        return self._bus.transport._driver

    def _send(self, *args: Any, **kwargs: Any) -> Any:
        return self._bus.send(after(self._patience), *args, **kwargs)

    def _send_notification(self, *args: Any, **kwargs: Any) -> None:
        self._bus.send_notification(after(self._patience), *args, **kwargs)

    def begin_anew(self) -> None:
        """Leave the parent's bus to the parent."""
        forks.park(self._bus)
        self._bus = self._open()

    def cleanup(self) -> None:
        """Close all connections."""
        self._bus.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._bus!r}>"


class RPCTransport(_BusTransport, messaging.RPCTransport):
    """A bus for calls, casts and their servers."""


class NotificationTransport(_BusTransport, messaging.NotificationTransport):
    """A bus for notifications."""


def open_bus(
    name: str,
    conf: cfg.ConfigOpts,
    url: str,
    limits: Limits,
    *,
    allowed_remote_exmods: Sequence[str] = (),
    kind: type[RPCTransport] | type[NotificationTransport] = RPCTransport,
) -> Any:
    """Open a bus, which connects to nothing yet, and return a transport in front of it.

    :param name: what the log calls it
    :raises ConfigError: if the URL is malformed or names a driver that isn't installed
    """

    def open_queue() -> Bus:
        transport = open_transport(conf, url, limits, allowed_remote_exmods)
        return Bus(name, name, transport, probe_of(transport), limits)

    try:
        return kind(conf, open_queue, limits.patience)
    except UrlRefused as refused:
        raise ConfigError(f"{name}: {refused}") from None
