# SPDX-License-Identifier: Apache-2.0
"""Cells: mappings and handles behind one door, for the filter and for code outside a request alike.

Who makes one is deploy.py; who calls it, for a request, is filter.py.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Self

from cellmw.context import copy_context, target
from cellmw.exceptions import CellNotFound, InstanceNotMapped, StoreUnavailable
from cellmw.lease import Lease
from cellmw.store.database import NO_ANSWER
from cellmw.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cellmw.cell import Cell
    from cellmw.deadline import Deadline
    from cellmw.handles import Handles
    from cellmw.mapping import Mapping, Mappings
    from cellmw.pool import Pool
    from cellmw.store import Store


LOG = logging.getLogger(__name__)


class Cells:
    """All cells of the deployment. Lives as long as the process; ``close()`` ends it.

    Shared by all threads.

    :ivar mappings: what a service calls when instances come and go
    """

    def __init__(self, store: Store, mappings: Mappings, pool: Pool, *, refresh_interval: float = 10.0) -> None:
        """Put them behind one door; nothing is read or opened yet.

        :param refresh_interval: seconds within which a change of the cell records is followed
        """
        self.mappings = mappings
        self._store = store
        self._pool = pool
        # replaced as a whole and never changed, so that it is read without a lock
        self._records: dict[int | str, Cell] = {}
        self._readings = itertools.count(1)
        self._newest = 0
        self._following = threading.Lock()
        self._open_handles = pool.handles
        self._in_use = False
        self._upkeep = Upkeep(self._keep_up, refresh_interval)
        self._is_behind = False

    def get(self, ref: int | str) -> Cell:
        """Return the cell with this id, uuid or name.

        One that is not known is looked for once in the API database, so a new cell is there from its first use on.

        :raises CellNotFound: if there is none, or more than one of that name
        :raises StoreUnavailable: if it is not known and the API database does not answer
        """
        cell = self._records.get(ref)
        if cell is None:
            if not self._store.breaker.allows():
                raise StoreUnavailable(NO_ANSWER)
            cell = self._read().get(ref)
        if cell is None:
            raise CellNotFound(ref)
        return cell

    def all(self) -> list[Cell]:
        """Return every cell, cell0 and disabled ones included, by id, as the API database has them now.

        :raises StoreUnavailable: if it does not answer
        """
        return [cell for ref, cell in self._read().items() if isinstance(ref, int)]

    def locate(self, instance_uuid: str, deadline: Deadline | None = None) -> Mapping:
        """Return the mapping of this instance, from the cache or from the API database.

        :raises InstanceNotMapped: if it has none
        :raises StoreUnavailable: if it is not in the cache and the API database does not answer
        :raises DeadlineExceeded: if another thread is looking it up and does not come back in time
        """
        mapping = self.mappings.find(instance_uuid.lower(), deadline)
        if not mapping.exists:
            raise InstanceNotMapped(instance_uuid)
        return mapping

    def lease(self, cell_id: int, deadline: Deadline | None = None, instance_uuid: str = "") -> Lease:
        """Lease the handles of the cell with this id, which are opened if they aren't open yet.

        :param instance_uuid: the instance that it is for, for the log

        Whoever calls this has to see to the release; everybody but the filter is better served by :meth:`target`.

        :raises CellNotFound: if there is no such cell
        :raises CellMisconfigured: if the cell's URLs can't be used
        :raises DeadlineExceeded: if another thread is opening them and is not done in time
        """
        while True:
            handles = self._open_handles.get(cell_id)
            if handles is None:
                handles = self._open(cell_id, deadline)
            lease = Lease(handles, instance_uuid)
            if handles.retired is None:
                return lease
            # they were taken out of use before the lease was there to keep them open
            lease.release()

    @contextlib.contextmanager
    def target(self, context: Any, cell: Cell, deadline: Deadline | None = None) -> Iterator[Any]:
        """Give a copy of the context that is aimed at this cell, with a lease of its own, for a ``with`` block.

        For work that outlives its request or goes to another cell. The context itself is left as it is.

        :raises CellMisconfigured: if the cell's URLs can't be used
        """
        with self.lease(cell.id, deadline) as lease:
            copied = copy_context(context)
            target(copied, lease)
            yield copied

    @property
    def leases(self) -> int:
        """How many leases are open now."""
        return self._pool.leases

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Cells known={sum(isinstance(ref, int) for ref in self._records)} leases={self.leases}>"

    def close(self) -> None:
        """Close every handle and the connections to the API database; at the end of the process it is done by itself.

        Nothing is leased any more from now on, and leases that are open have a while to end.
        """
        self._upkeep.close()
        self._pool.close()
        self._store.close()

    def refresh(self) -> None:
        """Read the cells anew, now: what is open of those that have changed or are gone is retired.

        :raises StoreUnavailable: if the API database does not answer
        """
        self._read()

    def _open(self, cell_id: int, deadline: Deadline | None) -> Handles:
        if not self._in_use:
            self._in_use = True
            self._upkeep.start()
            atexit.register(_close_at_exit, weakref.ref(self), os.getpid())
        cell = self.get(cell_id)
        handles = self._pool.open(cell, deadline)
        if self._records.get(cell_id) is not cell:
            # the cells were read while these were being opened, so they may have been out of date from the beginning
            with self._following:
                self._pool.follow(self._records)
        return handles

    def _keep_up(self) -> None:
        try:
            self.refresh()
        except StoreUnavailable as error:
            if not self._is_behind:
                LOG.warning("the cells can't be read, those that are known are used: %s", error)
            self._is_behind = True
        else:
            if self._is_behind:
                LOG.info("the cells can be read again")
            self._is_behind = False

    def _read(self) -> dict[int | str, Cell]:
        reading = next(self._readings)
        cells = self._store.list_cells()
        names = [cell.name for cell in cells]
        records = (
            {cell.id: cell for cell in cells}
            | {cell.name: cell for cell in cells if cell.name and names.count(cell.name) == 1}
            | {cell.uuid: cell for cell in cells}
        )
        with self._following:
            # a thread that comes back late has older records
            if reading > self._newest:
                self._newest = reading
                self._records = records
                self._pool.follow(records)
        return records


def _close_at_exit(weak: weakref.ref[Cells], process: int) -> None:
    """Close what nobody has closed, in the process that has opened it: a child has only inherited it."""
    cells = weak()
    if cells is not None and os.getpid() == process:
        cells.close()
