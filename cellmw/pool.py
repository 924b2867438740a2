# SPDX-License-Identifier: Apache-2.0
"""Pool: cell -> its open handles, which are opened once and shared by all requests.

It knows nothing of instances, contexts or requests.
"""

from __future__ import annotations

import logging
import threading
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING

from cellmw.deadline import after, left
from cellmw.exceptions import CellsClosed, DeadlineExceeded
from cellmw.flights import Flights
from cellmw.holds import Holds
from cellmw.reaper import Reaper

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cellmw.cell import Cell
    from cellmw.deadline import Deadline
    from cellmw.handles import Handles


LOG = logging.getLogger(__name__)


class Pool:
    """The open handles of all cells. Lives as long as the process; ``close()`` ends it.

    Shared by all threads. At most one of them opens a cell's handles; others that want that cell wait for it until
    their deadline, and nobody waits for another cell's opener.

    :ivar handles: those that are open, by the id of their cell
    :ivar closed: whether ``close()`` was called
    """

    def __init__(
        self,
        open_handles: Callable[[Cell], Handles],
        *,
        holds: Holds | None = None,
        max_open_cells: int = 0,
        idle_timeout: float = 0.0,
        drain_timeout: float = 0.0,
    ) -> None:
        """Begin with nothing open.

        :param open_handles: called once for each cell, by the first request for it
        :param holds: which cells are drained, and not to be open
        :param max_open_cells: how many cells may be open at a time; 0 for any number
        :param idle_timeout: seconds after which a cell that nobody uses is closed; 0 for never
        :param drain_timeout: seconds for which closing waits for leases that are open
        """
        self._open_handles = open_handles
        self._holds = holds or Holds(None)
        self._max_open_cells = max_open_cells
        self._idle_timeout = idle_timeout
        self._drain_timeout = drain_timeout
        self.handles: dict[int, Handles] = {}
        self.closed = False
        self._records: Mapping[int | str, Cell] | None = None
        self._begin()

    def _begin(self) -> None:
        self._reaper = Reaper(self._tell)
        self._openers: Flights[int, Handles] = Flights()
        self._lock = threading.Lock()  # guards closing against opening, and the places
        self._places = 0  # taken by cells that are being opened
        self._waiting: set[SimpleQueue[None]] = set()

    def begin_anew(self) -> None:
        """Begin with nothing open, in a child process; what leases it has inherited are good for nothing."""
        for handles in self._every():
            handles.disown()
        self.handles.clear()
        self._begin()

    def open(self, cell: Cell, deadline: Deadline | None = None) -> Handles:
        """Return the handles of this cell, which are opened if they aren't open yet.

        :raises CellsClosed: after :meth:`close`
        :raises CellMisconfigured: if the cell's URLs can't be used
        :raises DeadlineExceeded: if another thread is opening them and is not done in time, or if as
            many other cells as may be open are in use
        """
        handles = self._openers.run(
            cell.id,
            fetch=lambda: self.handles.get(cell.id) or self._open(cell, deadline),
            keep=self._keep,
            deadline=deadline,
            waited_for=f"cell {cell} to be opened",
        )
        if self.closed:
            raise CellsClosed
        return handles

    @property
    def leases(self) -> int:
        """How many leases are open now, over all cells."""
        return sum(len(handles.leases) for handles in self._every())

    @property
    def stuck(self) -> dict[str, int]:
        """How many threads are stuck in each cell's database driver or messaging library, where there are any."""
        return {str(handles.cell): handles.stuck for handles in self._every() if handles.stuck}

    def follow(self, records: Mapping[int | str, Cell]) -> None:
        """Retire what is open of cells that are gone or drained, or whose URLs are others now.

        Leases that are open keep what they have. The next one on a cell that is still there opens it anew.
        """
        with self._lock:
            self._records = records
        for handles in list(self.handles.values()):
            record = records.get(handles.cell.id)
            if record is None:
                self._retire(handles, "it is gone")
            elif record.uuid in self._holds.cells:
                self._retire(handles, "it is drained")
            elif record.fingerprint != handles.cell.fingerprint:
                self._retire(handles, "its URLs have changed")
            else:
                handles.cell = record

    def retire_idle(self) -> None:
        """Retire what nobody has used for as long as the idle timeout says."""
        if self._idle_timeout:
            long_ago = monotonic() - self._idle_timeout
            for handles in list(self.handles.values()):
                if handles.used_at <= long_ago and not handles.in_use:
                    self._retire(handles, "nobody has used it for a while")

    def close(self) -> None:
        """Close the handles of every cell, for good, when nobody uses them any more.

        Leases that are still open at the end of the time that they have find theirs closed.
        """
        with self._lock:
            self.closed = True
            every = list(self.handles.values())
            self.handles.clear()
        for handles in every:
            LOG.info("cell %s: everything is being closed", handles.cell)
            self._reaper.retire(handles)
        self._reaper.drain(after(self._drain_timeout))

    def _make_room(self, deadline: Deadline | None) -> None:
        """Take a place among the open cells: that of the least recently used, or of the next that is free."""
        ended: SimpleQueue[None] = SimpleQueue()
        self._waiting.add(ended)
        try:
            while not self._take_place():
                try:
                    ended.get(timeout=None if deadline is None else left(deadline))
                except Empty:
                    raise DeadlineExceeded(f"one of {self._max_open_cells} open cells to be free") from None
        finally:
            self._waiting.remove(ended)

    def _take_place(self) -> bool:
        while True:
            with self._lock:
                closing = sum(not handles.in_use for handles in tuple(self._reaper.retired))
                if closing >= self._max_open_cells:
                    return False  # they are opened faster than they are closed
                if len(self.handles) + self._places < self._max_open_cells:
                    self._places += 1
                    return True
                idle = [handles for handles in self.handles.values() if not handles.in_use]
            if not idle:
                return False
            self._retire(min(idle, key=lambda handles: handles.used_at), "makes room for another")

    def _tell(self, _: Handles) -> None:
        # a finalizer may call this, so it waits for no lock
        for ended in tuple(self._waiting):
            ended.put(None)

    def _retire(self, handles: Handles, why: str) -> None:
        with self._lock:
            if self.handles.get(handles.cell.id) is not handles:
                return  # somebody else has retired them
            del self.handles[handles.cell.id]
        LOG.info("cell %s: %s", handles.cell, why)
        self._reaper.retire(handles)
        self._tell(handles)

    def _every(self) -> list[Handles]:
        return [*self.handles.values(), *self._reaper.retired]

    def _open(self, cell: Cell, deadline: Deadline | None) -> Handles:
        if self.closed:
            raise CellsClosed
        if not self._max_open_cells:
            return self._open_handles(cell)
        self._make_room(deadline)
        try:
            handles = self._open_handles(cell)
        except BaseException:
            with self._lock:
                self._places -= 1
            raise
        handles.ended = self._tell
        return handles

    def _keep(self, handles: Handles) -> None:
        with self._lock:
            if handles.retired or self.handles.get(handles.cell.id) is handles:
                return  # they were found open, and may have been retired since
            if self._max_open_cells:
                self._places -= 1
            if not self.closed and not self._is_outdated(handles.cell):
                self.handles[handles.cell.id] = handles
                return
        if self.closed:
            handles.close()
            return
        # whoever has asked for them finds them retired, and asks again
        self._reaper.retire(handles)

    def _is_outdated(self, cell: Cell) -> bool:
        """Tell whether the cell's record has changed, or it was drained, while the cell was being opened."""
        if cell.uuid in self._holds.cells:
            return True
        if self._records is None:
            return False
        record = self._records.get(cell.id)
        return record is None or record.fingerprint != cell.fingerprint
