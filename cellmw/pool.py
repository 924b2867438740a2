# SPDX-License-Identifier: Apache-2.0
"""Pool: cell -> a lease on its open handles, which are opened once and shared by all requests.

It knows nothing of instances, contexts or requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellmw.flights import Flights
from cellmw.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable

    from cellmw.cell import Cell
    from cellmw.deadline import Deadline
    from cellmw.handles import Handles


class Pool:
    """The open handles of all cells. Lives as long as the process; ``close()`` ends it.

    Shared by all threads. At most one of them opens a cell's handles; others that want that cell wait for it until their
    deadline, and nobody waits for another cell's opener.
    """

    def __init__(self, open_handles: Callable[[Cell], Handles]) -> None:
        """Begin with nothing open.

        :param open_handles: called once for each cell, by the first request for it
        """
        self._open_handles = open_handles
        self._by_cell: dict[int, Handles] = {}
        self._openers: Flights[int, Handles] = Flights()

    def lease(self, cell: Cell, deadline: Deadline | None = None) -> Lease:
        """Lease the handles of this cell, which are opened if they aren't open yet.

        :raises CellMisconfigured: if the cell's URLs can't be used
        :raises DeadlineExceeded: if another thread is opening them and is not done in time
        """
        handles = self._by_cell.get(cell.id)
        if handles is None:
            handles = self._openers.run(
                cell.id,
                fetch=lambda: self._by_cell.get(cell.id) or self._open_handles(cell),
                keep=self._keep,
                deadline=deadline,
                waited_for=f"cell {cell} to be opened",
            )
        return Lease(handles)

    @property
    def leases(self) -> int:
        """How many leases are open now, over all cells."""
        return sum(handles.leases for handles in list(self._by_cell.values()))

    def close(self) -> None:
        """Close the handles of every cell. Leases that are still open find theirs closed."""
        while self._by_cell:
            _, handles = self._by_cell.popitem()
            handles.close()

    def _keep(self, handles: Handles) -> None:
        self._by_cell[handles.cell.id] = handles
