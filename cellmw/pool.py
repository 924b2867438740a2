# SPDX-License-Identifier: Apache-2.0
"""Pool: cell -> its open handles, which are opened once and shared by all requests.

It knows nothing of instances, contexts or requests.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from cellmw.deadline import after
from cellmw.exceptions import CellsClosed
from cellmw.flights import Flights
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
    """

    def __init__(self, open_handles: Callable[[Cell], Handles], *, drain_timeout: float = 0.0) -> None:
        """Begin with nothing open.

        :param open_handles: called once for each cell, by the first request for it
        :param drain_timeout: seconds for which closing waits for leases that are open
        """
        self._open_handles = open_handles
        self._drain_timeout = drain_timeout
        self.handles: dict[int, Handles] = {}
        self._reaper = Reaper()
        self._openers: Flights[int, Handles] = Flights()
        self._lock = threading.Lock()  # guards closing against opening
        self._closed = False

    def open(self, cell: Cell, deadline: Deadline | None = None) -> Handles:
        """Return the handles of this cell, which are opened if they aren't open yet.

        :raises CellsClosed: after :meth:`close`
        :raises CellMisconfigured: if the cell's URLs can't be used
        :raises DeadlineExceeded: if another thread is opening them and is not done in time
        """
        handles = self._openers.run(
            cell.id,
            fetch=lambda: self.handles.get(cell.id) or self._open(cell),
            keep=self._keep,
            deadline=deadline,
            waited_for=f"cell {cell} to be opened",
        )
        if self._closed:
            raise CellsClosed
        return handles

    @property
    def leases(self) -> int:
        """How many leases are open now, over all cells."""
        return sum(len(handles.leases) for handles in self._every())

    def follow(self, records: Mapping[int | str, Cell]) -> None:
        """Retire what is open of cells that are gone, or whose URLs are others now.

        Leases that are open keep what they have. The next one on a cell that is still there opens it anew.
        """
        for handles in list(self.handles.values()):
            record = records.get(handles.cell.id)
            if record is not None and record.fingerprint == handles.cell.fingerprint:
                handles.cell = record
                continue
            LOG.info("cell %s: %s", handles.cell, "it is gone" if record is None else "its URLs have changed")
            with self._lock:
                if self.handles.get(handles.cell.id) is handles:
                    del self.handles[handles.cell.id]
            self._reaper.retire(handles)

    def close(self) -> None:
        """Close the handles of every cell, for good, when nobody uses them any more.

        Leases that are still open at the end of the time that they have find theirs closed.
        """
        with self._lock:
            self._closed = True
            every = list(self.handles.values())
            self.handles.clear()
        for handles in every:
            self._reaper.retire(handles)
        self._reaper.drain(after(self._drain_timeout))

    def _every(self) -> list[Handles]:
        return [*self.handles.values(), *self._reaper.retired]

    def _open(self, cell: Cell) -> Handles:
        if self._closed:
            raise CellsClosed
        return self._open_handles(cell)

    def _keep(self, handles: Handles) -> None:
        with self._lock:
            if not self._closed:
                self.handles[handles.cell.id] = handles
                return
        handles.close()
