# SPDX-License-Identifier: Apache-2.0
"""Id, uuid or name -> cell, as its record was a moment ago.

The records come from the API database, from a file, or, in a cell-level service, from its configuration. Whoever has
something open by them is told each time that they were read.
"""

from __future__ import annotations

import itertools
import logging
import threading
from typing import TYPE_CHECKING, Protocol

from cellmw.exceptions import CellNotFound, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cellmw.cell import Cell
    from cellmw.deadline import Deadline

    Snapshot = Mapping[int | str, Cell]

LOG = logging.getLogger(__name__)


class Source(Protocol):
    """Where the records come from."""

    def list_cells(self, deadline: Deadline | None = None) -> list[Cell]:
        """Return every cell, by id.

        :raises StoreUnavailable: if the source does not answer
        """

    def check(self, ref: int | str) -> None:
        """Raise what there is to raise where it is no use to look for this cell, which is not known."""


class Records:
    """The records of all cells. Lives as long as the process; shared by all threads.

    :ivar known: what was read last, by id, by uuid and, where it names only one, by name. It is replaced as a whole and
        never changed, so that it is read without a lock
    """

    def __init__(
        self,
        source: Source,
        follow: Callable[[Snapshot], object],
        resolve: Callable[[Cell], Cell] = lambda cell: cell,
    ) -> None:
        """Begin with nothing known.

        :param follow: called with what is known, each time that it was read
        :param resolve: makes of a cell as it is recorded one that can be opened
        """
        self.known: Snapshot = {}
        self._source = source
        self._resolve = resolve
        self._follow = follow
        self._readings = itertools.count(1)
        self._newest = 0
        self._is_behind = False
        self.begin_anew()

    def begin_anew(self) -> None:
        """Go on, in a child process, with what is known."""
        self._following = threading.Lock()

    def get(self, ref: int | str, deadline: Deadline | None = None) -> Cell:
        """Return the cell with this id, uuid or name; one that is not known is looked for at the source.

        :raises CellNotFound: if there is none, or more than one of that name
        :raises StoreUnavailable: if it is not known and the source does not answer
        :raises UpcallForbidden: if it is not the cell of a cell-level service
        """
        cell = self.known.get(ref)
        if cell is None:
            self._source.check(ref)
            cell = self.read(deadline).get(ref)
        if cell is None:
            raise CellNotFound(ref)
        return cell

    def read(self, deadline: Deadline | None = None) -> Snapshot:
        """Read them anew.

        :raises StoreUnavailable: if the source does not answer
        """
        reading = next(self._readings)
        cells = [self._resolve(cell) for cell in self._source.list_cells(deadline)]
        names = [cell.name for cell in cells]
        records: Snapshot = (
            {cell.id: cell for cell in cells}
            | {cell.name: cell for cell in cells if cell.name and names.count(cell.name) == 1}
            | {cell.uuid: cell for cell in cells}
        )
        with self._following:
            # a thread that comes back late has older ones
            if reading > self._newest:
                self._newest = reading
                self.known = records
                self._follow(records)
        return records

    def keep_up(self) -> None:
        """Read them anew if that is possible; the log says when it begins to be impossible, and when that is over."""
        try:
            self.read()
        except StoreUnavailable as error:
            if not self._is_behind:
                LOG.warning("the cells can't be read, those that are known are used: %s", error)
            self._is_behind = True
        else:
            if self._is_behind:
                LOG.info("the cells can be read again")
            self._is_behind = False
