# SPDX-License-Identifier: Apache-2.0
"""Stub."""

from __future__ import annotations

import contextlib
from typing import Any

import oslo_messaging
from oslo_config import cfg

from cellmw.breaker import ProbedBreaker
from cellmw.exceptions import CellMisconfigured, CellUnavailable

_GROUPS_OF_THE_GLOBAL_CONF = ("oslo_messaging_metrics", "oslo_messaging_tracing")


class CellQueue:
    def __init__(self, cell: Any, transport: Any) -> None:
        self.cell = cell
        self.transport = transport
        self.stuck: set[object] = set()
        self.breaker = ProbedBreaker(f"cell {cell}: its queue", lambda: None, 2.0)
        self.operation: Any = contextlib.nullcontext

    @classmethod
    def open(cls, cell, conf, limits):
        register_messaging_groups(conf)
        return cls(cell, _open_transport(cell, conf))

    def send(self, deadline, *args, **kwargs):
        if self.breaker.is_open:
            raise CellUnavailable(self.cell, "queue", self.breaker.cause)
        with self.operation():
            return self.transport._send(*args, **kwargs)

    def send_notification(self, deadline, *args, **kwargs):
        with self.operation():
            return self.transport._send_notification(*args, **kwargs)

    def close(self):
        self.breaker.close()
        self.transport.cleanup()


def _open_transport(cell: Cell, conf: cfg.ConfigOpts) -> oslo_messaging.Transport | None:
    url = cell.reveal_transport_url()
    if not cell.has_transport:
        return None
    try:
        return oslo_messaging.get_rpc_transport(conf, url=url)
    except ImportError as missing:
        raise CellMisconfigured(
            cell, f"its oslo.messaging driver needs {missing.name}, which is not installed"
        ) from None
    except oslo_messaging.DriverLoadFailure as failure:
        raise CellMisconfigured(cell, f"no oslo.messaging driver {failure.driver!r} is installed") from None
    except (oslo_messaging.InvalidTransportURL, cfg.NoSuchOptError, ValueError):
        # their messages can quote the URL, with its password
        raise CellMisconfigured(cell, "its transport URL is not one that oslo.messaging can read") from None


def register_messaging_groups(conf: cfg.ConfigOpts) -> None:
    """Register the options that oslo.messaging registers on ``cfg.CONF`` alone but reads from whatever it is given."""
    if conf is cfg.CONF:
        return
    for group in _GROUPS_OF_THE_GLOBAL_CONF:
        with contextlib.suppress(cfg.NoSuchGroupError):
            opts = cfg.CONF._get_group(group)._opts.values()
            conf.register_opts([opt["opt"] for opt in opts], group=group)
