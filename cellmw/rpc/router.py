# SPDX-License-Identifier: Apache-2.0
"""Context -> the RPC client that reaches its cell."""

from __future__ import annotations

from typing import Any

import oslo_messaging

from cellmw.exceptions import NotTargeted
from cellmw.lease import TransportView
from cellmw.rpc.serializer import ContextSerializer

_SHARED = ("timeout", "version_cap", "serializer", "retry", "call_monitor_timeout", "transport_options")
"""What the clients for all cells have in common with the default one."""

_NO_SERIALIZER = (oslo_messaging.NoOpSerializer, type(None))
"""What a client has that was given none, and what it was given then."""


class ClientRouter:
    """Gives each context the client that reaches its cell. Lives as long as the service; made once from its client.

    ::

        compute_rpc = ClientRouter(oslo_messaging.get_rpc_client(transport, target))
        compute_rpc.client(context).cast(context, "reboot", instance_uuid=uuid)
    """

    def __init__(
        self,
        default_client: oslo_messaging.RPCClient | None,
        *,
        target: oslo_messaging.Target | None = None,
        **options: Any,
    ) -> None:
        """Route by this client, whose target, serializer, timeouts and version cap the cells' clients share.

        Where it brings no serializer of its own, it is a :class:`ContextSerializer` for what
        ``[cellmw] context_attributes`` says.

        :param default_client: for contexts that were never targeted; None where the service has no bus of its own
        :param target: what to send to, where there is no default client to take it from
        :param options: further arguments of ``oslo_messaging.get_rpc_client``, likewise
        """
        if (default_client is None) == (target is None) or (options and target is None):
            raise TypeError("ClientRouter takes a default client, or None and the target, with options, to send to")
        if default_client is not None:
            target, options = default_client.target, {name: getattr(default_client, name) for name in _SHARED}
        if type(options.get("serializer")) in _NO_SERIALIZER:
            options.pop("serializer", None)
        self._target = target
        self._options = options
        self._default = None if default_client is None else self._make(default_client.transport)

    def client(self, context: Any) -> oslo_messaging.RPCClient:
        """Return the client of the cell that the context is aimed at, the default one where it never was.

        The cell's client is made on first use and works until the lease ends; then it raises LeaseClosed.

        :raises NotTargeted: if the context was never targeted and there is no default
        :raises LeaseClosed: if the request that the context was targeted for has ended
        """
        transport = getattr(context, "mq_connection", None)
        if transport is None:
            if self._default is None:
                raise NotTargeted("the context is aimed at no cell, and the service has no message bus of its own")
            return self._default
        if isinstance(transport, TransportView):
            return transport.client(self, lambda: self._make(transport))
        # somebody else's, as Nova's set_target_cell leaves one; or what stands for none
        return self._make(transport)

    def _make(self, transport: oslo_messaging.Transport) -> oslo_messaging.RPCClient:
        if "serializer" not in self._options:
            self._options["serializer"] = ContextSerializer.configured(transport.conf)
        return oslo_messaging.get_rpc_client(transport, self._target, **self._options)
