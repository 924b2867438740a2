# SPDX-License-Identifier: Apache-2.0
"""A transport and endpoints -> the server that runs them: a cell's worker, or the super conductor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import oslo_messaging

from cellmw.queues.message_queue import register_messaging_groups
from cellmw.rpc.serializer import ContextSerializer

if TYPE_CHECKING:
    from collections.abc import Sequence


def get_server(
    transport: oslo_messaging.Transport,
    target: oslo_messaging.Target,
    endpoints: Sequence[object],
    *,
    serializer: oslo_messaging.Serializer | None = None,
    access_policy: type[oslo_messaging.rpc.dispatcher.RPCAccessPolicyBase] | None = None,
) -> Any:
    """Make the server that runs these endpoints' methods for what is sent to this target; start() starts it.

    Each method gets the context that was sent, which is aimed at no cell: a worker's own cell is that of its
    configuration, and a super conductor aims it by ``cells.target()``.

    :param transport: of the bus to listen on, as of :func:`~cellmw.rpc.get_transport`
    :param serializer: by default :class:`~cellmw.rpc.ContextSerializer`
    :param access_policy: which methods can be called; by default those that don't begin with an underscore
    :returns: an ``oslo_messaging.RPCServer``
    """
    register_messaging_groups(transport.conf)
    return oslo_messaging.get_rpc_server(
        transport,
        target,
        list(endpoints),  # the library may add one of its own
        serializer=serializer or ContextSerializer.configured(transport.conf),
        access_policy=access_policy,
    )
