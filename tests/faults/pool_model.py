# SPDX-License-Identifier: Apache-2.0
"""What has been asked of the cells -> what each request has to get, and what has to be open then.

It is the pool once more, for one thread and without anything real behind it: what it says is compared with the pool.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cellmw.exceptions import CellBusy, CellMisconfigured, CellNotFound, DeadlineExceeded

if TYPE_CHECKING:
    from tests.faults.pool_world import Opened, Place


class Refusal(Exception):
    """A request gets no lease.

    :ivar error: what the cells have to raise
    """

    def __init__(self, error: type[Exception]) -> None:
        super().__init__(error)
        self.error = error


@dataclass(eq=False)
class Generation:
    """What is open of a cell in one place.

    :ivar leases: how many there are
    :ivar used_at: when it was used last; a larger number is later
    :ivar opened: the real thing, once it was seen
    """

    place: Place
    used_at: int
    leases: int = 0
    opened: Opened | None = None


class Model:
    """What has to be so. Lives as long as an example.

    :ivar recorded: where each cell is, by its id, as the API database has it
    :ivar known: the same, as it was read last
    :ivar broken: the ids of cells that can't be opened
    :ivar open: what new requests for a cell get
    :ivar retired: what only those that are under way use
    """

    def __init__(self, max_open_cells: int, max_leases_per_cell: int) -> None:
        """Begin without cells."""
        self.recorded: dict[int, Place] = {}
        self.known: dict[int, Place] = {}
        self.broken: set[int] = set()
        self.open: dict[int, Generation] = {}
        self.retired: list[Generation] = []
        self._max_open_cells = max_open_cells
        self._max_leases = max_leases_per_cell
        self._clock = itertools.count()

    @property
    def in_use(self) -> list[Generation]:
        """What must not be closed."""
        return [*self.open.values(), *self.retired]

    def read(self) -> None:
        """The records are read anew."""
        self.known = dict(self.recorded)
        for cell_id, generation in list(self.open.items()):
            if self.known.get(cell_id) != generation.place:
                self.retire(cell_id)

    def retire(self, cell_id: int) -> None:
        """New requests for this cell get something else from now on."""
        generation = self.open.pop(cell_id)
        if generation.leases:
            self.retired.append(generation)

    def retire_all(self) -> None:
        """Everything is being closed."""
        for cell_id in list(self.open):
            self.retire(cell_id)

    def forget(self) -> None:
        """The process has ended, and begun anew."""
        self.known = {}
        self.open = {}
        self.retired = []

    def lease(self, cell_id: int) -> Generation:
        """A request for this cell begins.

        :raises Refusal: if it must not get a lease
        """
        generation = self.open.get(cell_id)
        if generation is None:
            if cell_id not in self.known:
                self.read()
            if cell_id not in self.known:
                raise Refusal(CellNotFound)
            self._make_room()
            if cell_id in self.broken:
                raise Refusal(CellMisconfigured)
            generation = self.open[cell_id] = Generation(self.known[cell_id], next(self._clock))
        if generation.leases == self._max_leases:
            raise Refusal(CellBusy)
        generation.leases += 1
        return generation

    def release(self, generation: Generation) -> None:
        """A request ends."""
        generation.leases -= 1
        generation.used_at = next(self._clock)
        if not generation.leases and generation in self.retired:
            self.retired.remove(generation)

    def _make_room(self) -> None:
        if len(self.open) < self._max_open_cells:
            return
        idle = [cell_id for cell_id, generation in self.open.items() if not generation.leases]
        if not idle:
            raise Refusal(DeadlineExceeded)
        self.retire(min(idle, key=lambda cell_id: self.open[cell_id].used_at))
