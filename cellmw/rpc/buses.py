# SPDX-License-Identifier: Apache-2.0
"""Configuration -> the buses that are no cell's: the service's own, and the one for notifications."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import oslo_messaging
from oslo_config import cfg
from oslo_messaging.notify import notifier

from cellmw import deploy, own_urls
from cellmw.exceptions import ConfigError
from cellmw.queues import bus
from cellmw.rpc.serializer import ContextSerializer, current_context_kept

_NOTIFICATIONS = "oslo_messaging_notifications"

_NOTIFICATION_PATIENCE = 5.0
"""Seconds that a request waits for a notification to go out: it is not what the request is for."""

_AS_IT_IS = oslo_messaging.Notifier._marker


def get_transport(conf: cfg.ConfigOpts | None = None, url: str | None = None) -> bus.RPCTransport:
    """Make a transport to the service's own bus, for its clients and servers; nothing is connected to yet.

    As with a cell's, every use of it ends in time: after ``[cellmw] request_deadline`` seconds at most, with
    BusUnavailable at once while the bus is known not to answer. A server waits for its bus for as long as it takes.

    :param conf: by default ``cfg.CONF``
    :param url: by default ``[DEFAULT] transport_url``
    :raises ConfigError: if there is no URL, or one that can't be used
    """
    conf = cfg.CONF if conf is None else conf
    url = url or own_urls.transport_url(conf)
    if not url:
        raise ConfigError("[DEFAULT] transport_url is not set: the service has no message bus of its own")
    chosen = deploy.settings(conf)
    transport: bus.RPCTransport = bus.open_bus(
        "the service's own bus",
        conf,
        url,
        deploy.limits(chosen),
        allowed_remote_exmods=chosen.allowed_remote_exmods,
    )
    return transport


def get_notifier(conf: cfg.ConfigOpts | None = None, publisher_id: str | None = None, **options: Any) -> Any:
    """Make a notifier, which sends to the bus for notifications whatever cell a context is aimed at.

    That is ``[oslo_messaging_notifications] transport_url``, or else the service's own. A notification that can't be
    sent in a few seconds is logged as an error and dropped; while the bus is known not to answer it is at once.

    :param conf: by default ``cfg.CONF``
    :param publisher_id: as in ``"compute.host1"``
    :param options: further arguments of ``oslo_messaging.Notifier``; without a serializer it is
        :class:`~cellmw.rpc.ContextSerializer`
    :returns: an ``oslo_messaging.Notifier``; ``transport.cleanup()`` of it closes its connections
    :raises ConfigError: if there is no URL, or one that can't be used
    """
    conf = cfg.CONF if conf is None else conf
    conf.register_opts(notifier._notifier_opts, group=_NOTIFICATIONS)
    url = conf[_NOTIFICATIONS].transport_url or own_urls.transport_url(conf)
    if not url:
        raise ConfigError(
            f"[{_NOTIFICATIONS}] transport_url is not set, nor is [DEFAULT] transport_url: there is no bus to notify"
        )
    limits = deploy.limits(deploy.settings(conf))
    transport = bus.open_bus(
        "the bus for notifications",
        conf,
        url,
        dataclasses.replace(limits, patience=min(limits.patience, _NOTIFICATION_PATIENCE)),
        kind=bus.NotificationTransport,
    )
    options.setdefault("serializer", ContextSerializer.configured(conf))
    return _Notifier(transport, publisher_id, **options)


class _Notifier(oslo_messaging.Notifier):
    """oslo.messaging's, which makes a copy of the context without its secrets; the log goes on with the original."""

    def prepare(self, publisher_id: Any = _AS_IT_IS, retry: Any = _AS_IT_IS) -> _Notifier:
        prepared = copy.copy(self)
        prepared.publisher_id = self.publisher_id if publisher_id is _AS_IT_IS else publisher_id
        prepared.retry = self.retry if retry is _AS_IT_IS else retry
        return prepared

    def _notify(self, *args: Any, **kwargs: Any) -> None:
        with current_context_kept():
            super()._notify(*args, **kwargs)
