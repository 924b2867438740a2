# SPDX-License-Identifier: Apache-2.0
"""Retired handles -> closed ones, as soon as nobody uses them any more.

It closes in threads of their own: closing a transport whose broker is frozen takes minutes.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

from cellmw.deadline import left

if TYPE_CHECKING:
    from collections.abc import Callable

    from cellmw.deadline import Deadline
    from cellmw.handles import Handles

LOG = logging.getLogger(__name__)

_GRACE = 10.0
"""Seconds that closing may take when nobody is left to wait for."""


class Reaper:
    """Closes handles that are out of use. Lives as long as the process; ``drain()`` ends its thread.

    :ivar retired: those that are still in use, or being closed
    """

    def __init__(self, closed: Callable[[Handles], object] = lambda handles: None) -> None:
        """Begin with nothing retired, and no thread.

        :param closed: called with what has been closed
        """
        self._closed = closed
        self.retired: set[Handles] = set()
        # a finalizer may put something into it, wherever it interrupts
        self._idle: SimpleQueue[Handles | None] = SimpleQueue()
        self._all_closed = threading.Condition()  # guards what is retired, and the thread's beginning and end
        self._thread: threading.Thread | None = None

    def retire(self, handles: Handles) -> None:
        """Close these handles after the last lease on them, and the last operation on their transport, has ended.

        Whoever takes a lease from now on finds them retired, and has to go elsewhere.
        """
        with self._all_closed:
            self.retired.add(handles)
            if self._thread is None:
                thread = threading.Thread(target=self._reap, name="cellmw-reaper", daemon=True)
                with contextlib.suppress(RuntimeError):  # as below; what is retired now is closed by drain()
                    thread.start()
                    self._thread = thread
        handles.retire(self._idle.put)

    def drain(self, deadline: Deadline) -> None:
        """Wait until nobody uses what is retired, and it is closed; at the deadline close the rest all the same.

        What takes longer to close goes on, in threads that keep no process alive.
        """
        with self._all_closed:
            self._all_closed.wait_for(lambda: not self.retired, left(deadline))
            rest = list(self.retired)
            thread, self._thread = self._thread, None
        if thread is not None:
            self._idle.put(None)
            thread.join()
        for handles in rest:
            if handles.leases:
                LOG.warning("cell %s: %d leases are still open while it is closed", handles.cell, len(handles.leases))
            if not handles.closed:
                self._close(handles)
        with self._all_closed:
            if not self._all_closed.wait_for(lambda: not self.retired, _GRACE):
                names = ", ".join(str(handles.cell) for handles in self.retired)
                LOG.warning("these cells can't be closed, their broker or database may be down: %s", names)

    def _reap(self) -> None:
        while (handles := self._idle.get()) is not None:
            # it is put there each time that a lease ends
            if not handles.in_use and not handles.closed:
                self._close(handles)

    def _close(self, handles: Handles) -> None:
        handles.closed = True
        thread = threading.Thread(
            target=self._close_here, args=(handles,), name=f"cellmw-close-{handles.cell}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # the interpreter is so near its end that it starts no threads any more
            self._close_here(handles)

    def _close_here(self, handles: Handles) -> None:
        handles.close()
        with self._all_closed:
            self.retired.discard(handles)
            self._all_closed.notify_all()
        self._closed(handles)
        LOG.info("cell %s: what it had open is closed", handles.cell)
