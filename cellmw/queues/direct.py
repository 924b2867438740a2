# SPDX-License-Identifier: Apache-2.0
"""Message -> RabbitMQ's socket, by the thread of its sender, which waits for nothing but that: it can be cut.

It goes without a hand-over to another thread, which takes as long as a quarter of a message. Whatever else the library
may wait for is :class:`NotDirect`, and left to a thread that the sender can leave: the library's lock while a
connection is made anew, the name of the broker's host, a broker that does not take connections.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import oslo_messaging

from cellmw.queues.brokers import Connection
from cellmw.watch import Wait, cut

if TYPE_CHECKING:
    from collections.abc import Callable

    from cellmw.deadline import Deadline
    from cellmw.watch import Watch


class NotDirect(Exception):
    """It takes more than to write to a connection that is there. Nobody ever sees it."""


class Writing(Protocol):
    """A message on its way.

    :ivar is_direct: whether its sender's own thread takes it there
    :ivar deadline: by when it has to be there
    :ivar written: what may have been written of it, None before: what goes out a second time is the same to the
        letter, so that its receiver can tell
    """

    is_direct: bool
    deadline: Deadline
    written: Any


class DirectConnection(Connection):
    """A connection to RabbitMQ that its user may write to by itself. Lives as long as the library's pool keeps it."""

    def __init__(
        self,
        writing: Callable[[], Writing | None],
        watch: Watch,
        slow: Callable[[Any], object],
        *args: Any,
        **options: Any,
    ) -> None:
        """Connect, as the library does it.

        :param writing: returns what the thread is sending
        :param watch: cuts the connection when the time is up
        :param slow: called with what is being written if that takes long
        """
        self._writing = writing
        self._watch = watch
        self._slow = slow
        super().__init__(*args, **options)

    def reset(self) -> None:
        # not for the lock alone, which the heartbeat holds while it connects anew
        if self._consumers:
            super().reset()

    def _ensure_publishing(
        self,
        method: Callable[..., None],
        exchange: Any,
        msg: Any,
        routing_key: str | None = None,
        timeout: float | None = None,
        retry: int | None = None,
        transport_options: Any = None,
    ) -> None:
        writing = self._writing()
        if writing is None or not writing.is_direct:
            if writing is not None and writing.written is not None:
                if retry == 0:
                    raise oslo_messaging.MessageDeliveryFailure("the connection was lost")
                msg = writing.written
            super()._ensure_publishing(method, exchange, msg, routing_key, timeout, retry, transport_options)
            return
        if transport_options is not None and transport_options.at_least_once:
            raise NotDirect  # two answers come, of which the library waits for the first alone
        if not self._acquire():
            raise NotDirect
        try:
            self._write(writing, msg, partial(method, exchange, msg, routing_key, timeout, transport_options))
        finally:
            self._connection_lock.release()

    def _write(self, writing: Writing, msg: Any, write: Callable[[], None]) -> None:
        wire = self._wire()
        wait = Wait(writing.deadline, partial(self._slow, writing), wire)
        writing.written = msg
        self._watch.begin(wait)
        try:
            write()
        except BaseException as error:
            # half a frame may be on the wire, or a confirmation still come: nobody may use it any more
            cut(wire)
            if isinstance(error, Exception):
                raise NotDirect from error
            raise
        finally:
            self._watch.end(wait)

    def _acquire(self) -> bool:
        """Take the connection's lock where nobody has it, or waits for it."""
        lock = self._connection_lock
        with lock._monitor:
            if lock._lock_acquired is not None or lock._heartbeat_waiting or lock._workers_waiting:
                return False
            lock._lock_acquired = lock._get_thread_id()
            return True

    def _wire(self) -> Any:
        """Return the socket; where there is none the library would connect."""
        connection = None if self.channel is None else self.channel.connection
        transport = None if connection is None else connection._transport
        if transport is None or transport.sock is None:
            raise NotDirect
        return transport.sock
