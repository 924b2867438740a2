# SPDX-License-Identifier: Apache-2.0
"""A cell's queue -> what Nova sent there, taken off by a server as nova-compute is one."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import oslo_messaging
from nova import rpc
from nova.compute import rpcapi
from nova.objects import base

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

ARRIVAL = 20.0
"""Seconds within which a message has to arrive."""


class Worker:
    """Takes every message for its host off a cell's queue. Lives as long as its server.

    :ivar messages: the method and the instance's uuid of each
    """

    target = oslo_messaging.Target(version="6.5")

    def __init__(self, cell: str) -> None:
        self._cell = cell
        self._arrived = threading.Condition()
        self.messages: list[tuple[str, str]] = []

    def __getattr__(self, method: str) -> Callable[..., Any]:
        """Give the dispatcher a method of any name."""
        if method.startswith("_"):
            raise AttributeError(method)

        def record(context: Any, instance: Any, **arguments: Any) -> str:
            with self._arrived:
                self.messages.append((method, instance["uuid"]))
                self._arrived.notify_all()
            return f"{method} in {self._cell}"

        return record

    def wait_for(self, method: str, instance_uuid: str) -> None:
        """Wait until this message has arrived.

        :raises AssertionError: if it does not
        """
        with self._arrived:
            arrived = self._arrived.wait_for(lambda: (method, instance_uuid) in self.messages, ARRIVAL)
        assert arrived, f"{method} has not arrived in {self._cell}; what has: {self.messages}"


@contextlib.contextmanager
def serve(cell: str, transport_url: str, host: str) -> Iterator[Worker]:
    """Serve as nova-compute on this host."""
    worker = Worker(cell)
    server = oslo_messaging.get_rpc_server(
        rpc.create_transport(transport_url),
        oslo_messaging.Target(topic=rpcapi.RPC_TOPIC, server=host),
        [worker],
        executor="threading",
        serializer=rpc.RequestContextSerializer(base.NovaObjectSerializer()),
    )
    server.start()
    try:
        yield worker
    finally:
        end([server])


def end(servers: Iterable[Any]) -> None:
    """End RPC servers and their transports, side by side: an idle one takes seconds to notice."""
    with ThreadPoolExecutor() as threads:
        list(threads.map(_end, servers))


def _end(server: Any) -> None:
    server.stop()
    server.wait()
    server.transport.cleanup()
