# SPDX-License-Identifier: Apache-2.0
"""Cells: mappings and handles behind one door, for the filter and for code outside a request alike.

Who makes one is deploy.py; who calls it, for a request, is filter.py.
"""

from __future__ import annotations

import contextlib
from time import monotonic
from typing import TYPE_CHECKING, Any

from cellmw.context import targeted_copy
from cellmw.exceptions import CellNotFound
from cellmw.flights import Flights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cellmw.cell import Cell
    from cellmw.deadline import Deadline
    from cellmw.mapping import Mappings
    from cellmw.pool import Pool
    from cellmw.store import Store

REFRESH_PAUSE = 1.0
"""Seconds after reading the cells in which an unknown one is not looked for again."""


class Cells:
    """All cells of the deployment. Lives as long as the process; ``close()`` ends it.

    Shared by all threads.

    :ivar mappings: what a service calls when instances come and go
    """

    def __init__(self, store: Store, mappings: Mappings, pool: Pool) -> None:
        """Put them behind one door; nothing is read or opened yet."""
        self.mappings = mappings
        self._store = store
        self._pool = pool
        # replaced as a whole and never changed, so that it is read without a lock
        self._records: dict[int | str, Cell] = {}
        self._read_at = float("-inf")
        self._readers: Flights[str, list[Cell]] = Flights()
        self.locate = mappings.find
        self.lease = pool.lease

    def get(self, ref: int | str, deadline: Deadline | None = None) -> Cell:
        """Return the cell with this id, uuid or name.

        One that is not known is looked for once in the API database, so a new cell is there from its first use on.

        :raises CellNotFound: if there is none, or more than one of that name
        :raises StoreUnavailable: if it is not known and the API database does not answer
        """
        cell = self._records.get(ref)
        if cell is None:
            if monotonic() - self._read_at >= REFRESH_PAUSE:
                self._read(deadline)
            cell = self._records.get(ref)
            if cell is None:
                raise CellNotFound(ref)
        return cell

    def all(self, deadline: Deadline | None = None) -> list[Cell]:
        """Return every cell, cell0 and disabled ones included, by id, as the API database has them now.

        :raises StoreUnavailable: if it does not answer
        """
        self._read(deadline)
        return [cell for ref, cell in self._records.items() if isinstance(ref, int)]

    @contextlib.contextmanager
    def target(self, context: Any, cell: Cell, deadline: Deadline | None = None) -> Iterator[Any]:
        """Give a copy of the context that is aimed at this cell, with a lease of its own, for a ``with`` block.

        For work that outlives its request or goes to another cell. The context itself is left as it is.

        :raises CellMisconfigured: if the cell's URLs can't be used
        """
        with self._pool.lease(cell, deadline) as lease:
            yield targeted_copy(context, lease)

    @property
    def leases(self) -> int:
        """How many leases are open now."""
        return self._pool.leases

    def close(self) -> None:
        """Close every handle and the connections to the API database."""
        self._pool.close()
        self._store.close()

    def _read(self, deadline: Deadline | None) -> None:
        self._readers.run(
            "cells", fetch=self._store.list_cells, keep=self._keep, deadline=deadline, waited_for="the list of cells"
        )

    def _keep(self, cells: list[Cell]) -> None:
        names = [cell.name for cell in cells]
        self._records = (
            {cell.id: cell for cell in cells}
            | {cell.name: cell for cell in cells if cell.name and names.count(cell.name) == 1}
            | {cell.uuid: cell for cell in cells}
        )
        self._read_at = monotonic()
