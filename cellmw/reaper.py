# SPDX-License-Identifier: Apache-2.0
"""Retired handles -> closed ones, as soon as nobody uses them any more.

It closes in threads of their own: closing a transport whose broker is frozen takes minutes.
"""

from __future__ import annotations

import logging
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

from cellmw.deadline import left

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cellmw.deadline import Deadline
    from cellmw.handles import Handles

LOG = logging.getLogger(__name__)


class Reaper:
    """Closes handles that are out of use. Lives as long as the process; ``close()`` ends its thread.

    :ivar retired: those that are still in use, or being closed
    """

    def __init__(self) -> None:
        """Begin with nothing retired, and no thread."""
        self.retired: set[Handles] = set()
        # a finalizer may put something into it, wherever it interrupts
        self._idle: SimpleQueue[Handles | None] = SimpleQueue()
        self._lock = threading.Lock()  # guards starting against closing
        self._thread: threading.Thread | None = None
        self._closed = False

    def retire(self, handles: Handles) -> None:
        """Close these handles after the last lease on them, and the last operation on their transport, has ended.

        Whoever takes a lease from now on finds them retired, and has to go elsewhere.
        """
        with self._lock:
            self.retired.add(handles)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._reap, name="cellmw-reaper", daemon=True)
                self._thread.start()
        handles.retire(self._idle.put)

    def close(self) -> None:
        """End the thread. What is retired and still in use is left to whoever closes it."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            self._idle.put(None)
            thread.join()

    def _reap(self) -> None:
        while (handles := self._idle.get()) is not None:
            # it is put there each time that a lease ends
            if handles.in_use or handles.closed:
                continue
            threading.Thread(
                target=self._close, args=(handles,), name=f"cellmw-close-{handles.cell}", daemon=True
            ).start()

    def _close(self, handles: Handles) -> None:
        handles.close()
        self.retired.discard(handles)
        LOG.info("cell %s: the handles that were replaced are closed", handles.cell)


def close_all(every: Iterable[Handles], deadline: Deadline) -> None:
    """Close all of these at once; those that take longer go on closing, in threads that keep no process alive."""
    closing = [
        (handles, threading.Thread(target=handles.close, name=f"cellmw-close-{handles.cell}", daemon=True))
        for handles in every
    ]
    for _, thread in closing:
        thread.start()
    for handles, thread in closing:
        thread.join(left(deadline))
        if thread.is_alive():
            LOG.warning("cell %s: its handles are still being closed", handles.cell)
