# SPDX-License-Identifier: Apache-2.0
"""Cell -> its open handles: the message queue and the database that all requests share.

Opening them connects to nothing; the first message and the first statement do. Nobody outside the pool and its leases
gets to see them: what a request sees are views (lease.py).
"""

from __future__ import annotations

import contextlib
import logging
from time import monotonic
from typing import TYPE_CHECKING, Any

from cellmw import forks
from cellmw.cell_database import CellDatabase
from cellmw.limits import Limits
from cellmw.queues.cell_queue import CellQueue
from cellmw.queues.message_queue import register_messaging_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import oslo_messaging
    from oslo_config import cfg
    from sqlalchemy import Engine

    from cellmw.cell import Cell

LOG = logging.getLogger(__name__)


class Handles:
    """A cell's open transport and database. Lives from the first lease on the cell until the pool is closed.

    Shared by all threads.

    :ivar leases: the ``id()`` of each lease that is open, and the one place that says so. Adding one and removing one
        are single steps of the interpreter, so no lock guards them and a finalizer can take them anywhere.
    :ivar cell: whose they are
    :ivar retired: whether nobody may begin to use them any more
    :ivar ended: called, with them, whenever something has ended that used them, where somebody waits for that
    :ivar used_at: when the last lease has ended, on the clock of ``time.monotonic()``
    :ivar closed: whether ``close()`` was called
    :ivar disowned: whether they are another process's, and this one has only inherited them
    :ivar conf: the options that the transport and its clients go by
    :ivar queue: None for a cell that has no message queue
    :ivar database: the cell's database
    :ivar down: which of ``"database"`` and ``"queue"`` are known not to answer
    :ivar patience: seconds that each single wait may take where there is no deadline
    """

    def __init__(
        self, cell: Cell, conf: cfg.ConfigOpts, queue: CellQueue | None, database: CellDatabase, patience: float = 60.0
    ) -> None:
        self.cell = cell
        self.conf = conf
        self.queue = queue
        self.database = database
        self.patience = patience
        self.leases: set[int] = set()
        self.retired = False
        self.ended: Callable[[Handles], object] | None = None
        self.used_at = monotonic()
        self.closed = self.disowned = False
        self.down: tuple[str, ...] = ()
        self._operations: set[int] = set()
        # in the order of opening: closed from the end
        self._closing: list[Callable[[], object]] = [database.close]
        database.breaker.changed = self._look
        if queue is not None:
            queue.breaker.changed = self._look
            queue.operation = self.operation
            self._closing.append(queue.close)

    @classmethod
    def open(
        cls,
        cell: Cell,
        conf: cfg.ConfigOpts,
        engine_options: Mapping[str, Any],
        *,
        replica: str | None = None,
        synchronous_reader: bool = True,
        limits: Limits | None = None,
        allowed_remote_exmods: Sequence[str] = (),
    ) -> Handles:
        """Open the handles of this cell, which connects to nothing yet.

        :param engine_options: keyword arguments of ``oslo_db.sqlalchemy.engines.create_engine``
        :param replica: the URL of the database's read replica
        :param synchronous_reader: whether readers that don't say ``async_`` keep to the database itself
        :param allowed_remote_exmods: modules whose exceptions come back from remote calls as themselves
        :raises CellMisconfigured: if one of its URLs is missing, malformed or names a driver that isn't installed
        """
        limits = limits or Limits()
        register_messaging_groups(conf)  # what stands for a missing queue needs them, too
        database = CellDatabase.open(
            cell, engine_options, limits, replica=replica, synchronous_reader=synchronous_reader
        )
        transport_url = cell.reveal_transport_url()
        queue = None
        if transport_url and cell.has_transport:
            queue = CellQueue.open(cell, conf, limits, allowed_remote_exmods)
        return cls(cell, conf, queue, database, limits.patience)

    @property
    def transport(self) -> oslo_messaging.Transport | None:
        """The transport of the queue, None where there is none."""
        return None if self.queue is None else self.queue.transport

    @property
    def engine(self) -> Engine:
        """The engine of the database."""
        return self.database.engine

    @property
    def in_use(self) -> bool:
        """Whether there is a lease on them, or a message on its way."""
        return bool(self.leases or self._operations)

    @property
    def stuck(self) -> int:
        """How many threads are stuck in connecting to the database, or in sending to the queue."""
        return self.database.stuck + (0 if self.queue is None else len(self.queue.stuck))

    @contextlib.contextmanager
    def operation(self) -> Iterator[None]:
        """Count something that goes on with the transport, and that the end of its lease does not interrupt."""
        operation = object()
        self._operations.add(id(operation))
        try:
            yield
        finally:
            self._operations.remove(id(operation))
            if self.ended is not None:
                self.ended(self)

    def retire(self, ended: Callable[[Handles], object]) -> None:
        """Let nobody begin to use them any more.

        :param ended: called now, and each time that a lease or an operation has ended
        """
        self.ended = ended
        self.retired = True
        ended(self)

    def close(self) -> None:
        """Close the transport and the database's pool, once; one failing close is logged and never skips the other."""
        self.closed = True
        while self._closing:
            with contextlib.suppress(IndexError):  # another thread took the last one
                close = self._closing.pop()
                try:
                    close()
                except Exception:
                    LOG.warning("cell %s: closing a handle failed", self.cell, exc_info=True)

    def disown(self) -> None:
        """Be closed, in a child process, to whoever has inherited a lease on them; their parent's they are still."""
        self.disowned = self.closed = self.retired = True
        self._closing.clear()
        self.ended = None
        self.database.disown()
        forks.park(self)

    def _look(self) -> None:
        down = ["database"] if self.database.breaker.is_open else []
        if self.queue is not None and self.queue.breaker.is_open:
            down.append("queue")
        self.down = tuple(down)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        down = f" down={','.join(self.down)}" if self.down else ""
        return f"<Handles cell={self.cell} leases={len(self.leases)} stuck={self.stuck}{down} {state}>"
