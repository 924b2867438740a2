# SPDX-License-Identifier: Apache-2.0
"""Messages between services: clients that reach a context's cell, servers, and notifications.

::

    compute_rpc = rpc.ClientRouter(oslo_messaging.get_rpc_client(rpc.get_transport(conf), target))  # in an API
    server = rpc.get_server(rpc.get_transport(conf), target, endpoints)                             # in a worker
    notifier = rpc.get_notifier(conf, publisher_id="compute.host1")                                 # in either
"""

from __future__ import annotations

from cellmw.rpc.buses import get_notifier, get_transport
from cellmw.rpc.router import ClientRouter
from cellmw.rpc.serializer import ContextSerializer
from cellmw.rpc.server import get_server

__all__ = ["ClientRouter", "ContextSerializer", "get_notifier", "get_server", "get_transport"]
