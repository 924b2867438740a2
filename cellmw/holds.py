# SPDX-License-Identifier: Apache-2.0
"""What an operator holds back, as it was a moment ago: cells that are drained, and instances that are being moved."""

from __future__ import annotations

import contextlib
import itertools
import threading
from time import monotonic
from typing import TYPE_CHECKING

from oslo_utils import timeutils

from cellmw.exceptions import CellDrained, DeadlineExceeded, InstanceHeld, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cellmw.cell import Cell
    from cellmw.deadline import Deadline
    from cellmw.store import Store

_NOBODY: frozenset[str] = frozenset()

_PATIENCE = 1.0
"""Seconds for which a request waits to be told that nothing is held back, as is nearly always so."""

_LOOK_AGAIN = 1.0
"""Seconds after which it is asked again whether an instance that somebody wants is still being moved."""


class Holds:
    """What is held back. Lives as long as the process; shared by all threads.

    It is read before the first instance is looked up, in a child process anew, by the upkeep from then on, and again
    for whoever wants an instance that is held back. While the API database does not answer, what was read last counts.

    :ivar cells: the uuids of drained cells
    :ivar instances: the uuids of instances that are being moved
    :ivar changed: called with the instances that are held back and were not before, or the other way round
    :ivar wanted: called before they are read for somebody, who relies on it that they are kept up from then on
    """

    changed: Callable[[Iterable[str]], object]
    wanted: Callable[[], object]

    def __init__(self, store: Store | None) -> None:
        """Begin with nothing known.

        :param store: None where nobody is to be held back, as in an operator's own commands and in a cell-level service
        """
        self._store = store
        self._readings = itertools.count(1)
        self._newest = 0
        self.cells = self.instances = _NOBODY
        self.changed = lambda instances: None
        self.wanted = lambda: None
        self.begin_anew()

    def begin_anew(self) -> None:
        """Go on, in a child process, with what is known as long as there is nothing newer."""
        self._noting = threading.Lock()
        # nobody has kept it up since the child was made, which can be long ago when its first request comes
        self._is_known = False
        self._look_at = 0.0

    def check_instance(self, instance_uuid: str, deadline: Deadline | None = None) -> None:
        """Return if the instance is not being moved.

        :raises InstanceHeld: if it is
        """
        if not self._is_known or instance_uuid in self.instances:
            self._look(deadline)
        if instance_uuid in self.instances:
            raise InstanceHeld(instance_uuid)

    def check_cell(self, cell: Cell, deadline: Deadline | None = None) -> None:
        """Return if the cell is not drained.

        :raises CellDrained: if it is
        """
        if not self._is_known or cell.uuid in self.cells:
            self._look(deadline)
        if cell.uuid in self.cells:
            raise CellDrained(cell)

    def read(self, deadline: Deadline | None = None) -> None:
        """Read them anew.

        :raises StoreUnavailable: if the API database does not answer
        """
        if self._store is None:
            return
        reading = next(self._readings)
        held = self._store.list_held(deadline)
        now = timeutils.utcnow()
        cells = frozenset(cell.cell_uuid for cell in held.cells)
        instances = frozenset(instance.instance_uuid for instance in held.instances if instance.until > now)
        with self._noting:
            # a thread that comes back late has older ones
            if reading < self._newest:
                return
            self._newest = reading
            self._is_known = True
            changed = self.instances ^ instances
            self.cells, self.instances = cells, instances
        self.changed(changed)

    def keep_up(self) -> None:
        """Read them anew if that is possible; that it is not is for the records to log."""
        with contextlib.suppress(StoreUnavailable):
            self.read()

    def _look(self, deadline: Deadline | None) -> None:
        """Read them anew, unless that was done a moment ago; where there is no answer, go by what is known."""
        now = monotonic()
        if self._store is None or now < self._look_at:
            return
        self.wanted()
        if self._is_known:
            self._look_at = now + _LOOK_AGAIN
        soon = now + _PATIENCE
        with contextlib.suppress(StoreUnavailable, DeadlineExceeded):
            self._store.check()
            self.read(soon if deadline is None else min(soon, deadline))
