# SPDX-License-Identifier: Apache-2.0
"""Cells: mappings and handles behind one door, for the filter and for code outside a request alike.

Who makes one is deploy.py; who calls it, for a request, is filter.py.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import functools
import math
import os
import weakref
from typing import TYPE_CHECKING, Any, Self

from cellmw import forks
from cellmw.context import copy_context, target
from cellmw.crew import Crew
from cellmw.exceptions import CellBusy, CellsClosed, CellUnavailable, ConfigError, InstanceNotMapped
from cellmw.holds import Holds
from cellmw.lease import Lease
from cellmw.local import LOCAL_ID, LocalCell
from cellmw.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cellmw.cell import Cell
    from cellmw.deadline import Deadline
    from cellmw.handles import Handles
    from cellmw.mapping import Mapping, Mappings
    from cellmw.pool import Pool
    from cellmw.records import Records
    from cellmw.store import Store


class Cells:
    """All cells of the deployment. Lives as long as the process; ``close()`` ends it.

    Shared by all threads.

    :ivar mappings: what a service calls when instances come and go
    :ivar crew: the threads that ask several cells at once
    :ivar left_behind: id of a cell -> an entry for each thread that was to ask it, was left, and has not come back
    """

    def __init__(
        self,
        store: Store | LocalCell,
        mappings: Mappings,
        pool: Pool,
        records: Records,
        *,
        holds: Holds | None = None,
        crew: Crew | None = None,
        refresh_interval: float = 10.0,
        max_leases_per_cell: int = 0,
        refuses_down: bool = True,
    ) -> None:
        """Put them behind one door; nothing is read or opened yet.

        :param records: of the cells; the pool follows those that are not drained
        :param holds: which cells are drained, and which instances are being moved
        :param crew: whose threads ask several cells at once
        :param refresh_interval: seconds within which a change of the cell records is followed
        :param max_leases_per_cell: how many leases there may be on one cell at a time; 0 for any number
        :param refuses_down: whether there is none on a cell whose database is known not to answer
        """
        self.mappings = mappings
        self._store = store
        self._pool = pool
        self._records = records
        self._holds = holds or Holds(None)
        self._holds.changed = mappings.forget_all
        self.crew = crew or Crew()
        self.left_behind: collections.defaultdict[int, set[object]] = collections.defaultdict(set)
        self._open_handles = pool.handles
        self._at_exit: functools.partial[None] | None = None
        self._max_leases = max_leases_per_cell or math.inf
        self._refuses_down = refuses_down
        self._upkeep = Upkeep(self._keep_up, refresh_interval)
        self._holds.wanted = functools.partial(_begin_upkeep, weakref.ref(self))
        forks.follow(self)

    @property
    def store(self) -> Store:
        """The records of the API database, with no cache before them.

        :raises UpcallForbidden: in a cell-level service
        """
        if isinstance(self._store, LocalCell):
            self._store.refuse("the API database")
        return self._store

    def get(self, ref: int | str, deadline: Deadline | None = None) -> Cell:
        """Return the cell with this id, uuid or name.

        One that is not known is looked for once in the API database, so a new cell is there from its first use on.

        :raises CellNotFound: if there is none, or more than one of that name
        :raises StoreUnavailable: if it is not known and the API database does not answer
        """
        return self._records.get(ref, deadline)

    def known(self, deadline: Deadline | None = None) -> list[Cell]:
        """Return every cell, by id, as it was recorded ``refresh_interval`` seconds ago or less.

        :raises StoreUnavailable: if none was ever read, and the API database does not answer
        """
        records = self._records.known or self._records.read(deadline)
        return [cell for ref, cell in records.items() if isinstance(ref, int)]

    def local(self) -> Cell:
        """Return the cell that a cell-level service lives in: for what is no WSGI app, as a console proxy.

        :raises ConfigError: if this is an API-level service, which lives in none
        """
        if not isinstance(self._store, LocalCell):
            raise ConfigError("a service has a cell of its own only with role = cell in [cellmw]")
        return self._records.get(LOCAL_ID)

    def all(self) -> list[Cell]:
        """Return every cell, cell0 and disabled ones included, by id, as they are recorded now.

        In a cell-level service that is its own one.

        :raises StoreUnavailable: if it does not answer
        """
        return [cell for ref, cell in self._records.read().items() if isinstance(ref, int)]

    def locate(self, instance_uuid: str, deadline: Deadline | None = None) -> Mapping:
        """Return the mapping of this instance, from the cache or from the API database.

        :raises InstanceNotMapped: if it has none
        :raises InstanceHeld: if it is being moved to another cell
        :raises StoreUnavailable: if it is not in the cache and the API database does not answer
        :raises DeadlineExceeded: if another thread is looking it up and does not come back in time
        :raises UpcallForbidden: in a cell-level service
        """
        if isinstance(self._store, LocalCell):
            self._store.find_instance(instance_uuid)
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
        :raises CellDrained: if an operator has drained it
        :raises CellBusy: if there are as many leases on it as there may be
        :raises CellUnavailable: if its database is known not to answer, unless ``down_cell`` is ``degrade``
        :raises DeadlineExceeded: if another thread is opening them and is not done in time, or if too many other cells
            are in use
        """
        while True:
            handles = self._open_handles.get(cell_id)
            if handles is None:
                handles = self._open(cell_id, deadline)
            lease = Lease(handles, instance_uuid, deadline)
            if not handles.retired:
                if len(handles.leases) <= self._max_leases and not handles.down:
                    return lease
                try:
                    self._admit(handles)
                except BaseException:
                    lease.release()
                    raise
                return lease
            # they were taken out of use before the lease was there to keep them open
            lease.release()

    @contextlib.contextmanager
    def target(self, context: Any, cell: Cell, deadline: Deadline | None = None) -> Iterator[Any]:
        """Give a copy of the context that is aimed at this cell, with a lease of its own, for a ``with`` block.

        For work that outlives its request or goes to another cell. The context itself is left as it is.

        :param deadline: the moment on the clock of ``time.monotonic()`` by which everything in the block has to be done
            waiting; without one each single wait may take ``request_deadline`` seconds
        :raises CellMisconfigured: if the cell's URLs can't be used
        :raises CellDrained: if an operator has drained it
        :raises CellUnavailable: if its database is known not to answer, unless ``down_cell`` is ``degrade``
        """
        with self.lease(cell.id, deadline) as lease:
            copied = copy_context(context)
            target(copied, lease)
            yield copied

    @property
    def leases(self) -> int:
        """How many leases are open now."""
        return self._pool.leases

    @property
    def stuck(self) -> dict[str, int]:
        """How many threads are stuck in each cell's database driver or messaging library, where there are any."""
        return self._pool.stuck

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Cells known={sum(isinstance(ref, int) for ref in self._records.known)} leases={self.leases}>"

    def close(self) -> None:
        """Close every handle and the connections to the API database; at the end of the process it is done by itself.

        Nothing is leased any more from now on, and leases that are open have a while to end.
        """
        if self._at_exit is not None:
            atexit.unregister(self._at_exit)
        self._upkeep.close()
        self._pool.close()
        self.mappings.close()
        self._store.close()

    def begin_anew(self) -> None:
        """Begin with nothing open, in a child process: what its parent has open is the parent's."""
        self._at_exit = None
        self.crew.begin_anew()
        self.left_behind.clear()
        self._store.begin_anew()
        self.mappings.begin_anew()
        self._holds.begin_anew()
        self._records.begin_anew()
        self._pool.begin_anew()
        self._upkeep.begin_anew()

    def refresh(self) -> None:
        """Read the cells anew, now: what is open of those that have changed, are drained or are gone is retired.

        :raises StoreUnavailable: if the API database does not answer
        """
        self._holds.read()
        self._records.read()

    def _admit(self, handles: Handles) -> None:
        if len(handles.leases) > self._max_leases:
            raise CellBusy(handles.cell, self._max_leases)
        if self._refuses_down and handles.database.breaker.refuses():
            raise CellUnavailable(handles.cell, "database", handles.database.breaker.cause)

    def _keep_up(self) -> None:
        self._holds.keep_up()
        self._records.keep_up()
        self._pool.retire_idle()

    def _open(self, cell_id: int, deadline: Deadline | None) -> Handles:
        if self._pool.closed:
            raise CellsClosed
        self._begin_upkeep()
        cell = self._records.get(cell_id, deadline)
        self._holds.check_cell(cell, deadline)
        return self._pool.open(cell, deadline)

    def _begin_upkeep(self) -> None:
        if self._upkeep.start():
            self._at_exit = functools.partial(_close_at_exit, weakref.ref(self), os.getpid())
            atexit.register(self._at_exit)


def _begin_upkeep(weak: weakref.ref[Cells]) -> None:
    """Keep up what somebody goes by from now on, be it that there is no lease for a long time."""
    cells = weak()
    if cells is not None:
        cells._begin_upkeep()


def _close_at_exit(weak: weakref.ref[Cells], process: int) -> None:
    """Close what nobody has closed, in the process that has opened it: a child has only inherited it."""
    cells = weak()
    if cells is not None and os.getpid() == process:
        cells.close()
