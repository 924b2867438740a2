# SPDX-License-Identifier: Apache-2.0
"""A cell's database -> mappings of all its instances, in batches; and where one instance is.

How far it is stands in the API database, for each cell by itself, and is written down in the transaction that maps a
batch. So whatever ends it, at whichever moment, nothing is lost and nothing done twice.
"""

from __future__ import annotations

import json
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from cellmw.admin import access
from cellmw.context import RequestContext
from cellmw.database import reader
from cellmw.exceptions import CellNotFound, MappingDangling
from cellmw.scatter import scatter
from cellmw.store import InstanceMapping

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cellmw.admin.cell_tables import CellTables, InstanceRow
    from cellmw.cell import Cell
    from cellmw.cells import Cells

BATCH = 5000
"""How many instances are read and mapped at once: more than that make it no faster, and take more memory."""

NAMED = 5
"""How many of the instances are named that can't be mapped."""

_LOOK_FOR = 10.0
"""Seconds in which cells are looked into that an instance is not mapped to."""


class InstanceMapper:
    """Maps the instances of one cell. Lives as long as the command.

    :ivar total: how many there are to deal with
    :ivar done: how many were dealt with
    :ivar mapped: how many of these were mapped, or would have been
    :ivar unchanged: how many were mapped to this cell already
    :ivar elsewhere: how many were mapped already, but not to this cell
    :ivar without_project: how many can't be mapped as they belong to no project, those of earlier runs that were
        interrupted included
    :ivar named: the first of these
    :ivar complete: whether the last one has been dealt with
    """

    def __init__(self, cells: Cells, tables: CellTables, cell: Cell, *, dry_run: bool = False) -> None:
        """Look where to go on; nothing is mapped yet.

        :param dry_run: only say what would be done
        """
        self._cells = cells
        self._tables = tables
        self._cell = cell
        self._dry_run = dry_run
        self._task: str | None = f"map_instances/{cell.uuid}"
        self._after: Any = None
        self.total = self.done = self.mapped = self.unchanged = self.elsewhere = self.without_project = 0
        self.named: list[str] = []
        self.complete = False

    def begin(self, *, reset: bool = False, max_count: int | None = None) -> None:
        """Go to where an earlier run was interrupted, and count.

        :param reset: begin at the first instance instead; nova-manage does so next time, too
        :param max_count: how many are to be dealt with at most
        :raises CellError: if the cell's database does not answer, or its URLs can't be used
        :raises DeadlineExceeded: if it does not in time
        :raises ConfigError: if it has no such table or column
        :raises StoreUnavailable: if ``max_count`` is given, and there is no table to keep the place in
        """
        store = self._cells.store
        if max_count is None and not store.keeps_progress():
            self._task = None  # all of them at once can do without
        position = self._task and store.find_progress(self._task)
        if reset and not self._dry_run:
            self._forget_progress()
            store.forget_nova_marker()
        if position and not reset:
            known = json.loads(position)
            self._after = known["after"]
            self.without_project, self.named = known["without_project"], known["named"]
        with access.reading(self._cells, self._cell) as session:
            self.total = self._tables.count_instances(session, self._after)
        if max_count is not None:
            self.total = min(self.total, max_count)

    def batches(self, max_count: int | None = None, size: int = BATCH) -> Iterator[int]:
        """Map them, and give after each batch how many were in it.

        :param max_count: how many to deal with at most
        :param size: how many instances a batch has
        :raises CellError: if the cell's database does not answer any more
        :raises DeadlineExceeded: if it does not in time
        :raises CellNotFound: if the cell's record is gone meanwhile
        """
        while not self.complete:
            limit = size if max_count is None else min(size, max_count - self.done)
            if not limit:
                return
            rows = self._read(limit)
            if rows:
                self._map(rows)
                self.done += len(rows)
            if len(rows) < limit:
                self.complete = True
                if not self._dry_run:
                    self._forget_progress()
            yield len(rows)

    def _forget_progress(self) -> None:
        if self._task is not None:
            self._cells.store.forget_progress(self._task)

    def _read(self, limit: int) -> list[InstanceRow]:
        with access.reading(self._cells, self._cell) as session:
            return self._tables.instances(session, limit, self._after)

    def _map(self, rows: Sequence[InstanceRow]) -> None:
        mappings = [
            InstanceMapping(row.uuid, self._cell.id, row.project_id, row.user_id, queued_for_delete=False)
            for row in rows
            if row.project_id is not None
        ]
        nobodys = [row.uuid for row in rows if row.project_id is None]
        without_project = self.without_project + len(nobodys)
        named = [*self.named, *nobodys][:NAMED]
        after = rows[-1].key
        if self._dry_run:
            there = self._cells.store.find_instances(mapping.instance_uuid for mapping in mappings)
        else:
            position = json.dumps({"after": after, "without_project": without_project, "named": named})
            there = self._cells.store.map_instances(mappings, task=self._task, position=position)
        self._after, self.without_project, self.named = after, without_project, named
        self.mapped += len(mappings) - len(there)
        here = sum(mapping.cell_id == self._cell.id for mapping in there)
        self.unchanged += here
        self.elsewhere += len(there) - here


class Whereabouts(NamedTuple):
    """Where one instance is.

    :ivar state: ``mapped``, or ``unmapped``, ``building`` without a cell, ``deleted``, or ``gone`` from the cell that
        it is mapped to
    :ivar cell: which it is mapped to
    :ivar found_in: the cells that have it, where that is not the one
    :ivar unanswered: the cells that were asked then, and gave no answer
    """

    state: str
    cell: Cell | None = None
    found_in: tuple[Cell, ...] = ()
    unanswered: tuple[Cell, ...] = ()


def locate(cells: Cells, tables: CellTables, uuid: str) -> Whereabouts:
    """Return where this instance is; where it is not in its cell all others are looked into.

    :raises CellError: if the cell that it is mapped to does not answer
    :raises DeadlineExceeded: if that does not in time
    :raises MappingDangling: if that has no record
    """
    mapping = cells.store.find_instance(uuid)
    if mapping is None:
        return Whereabouts("unmapped")
    if mapping.cell_id is None:
        return Whereabouts("building")
    try:
        cell = cells.get(mapping.cell_id)
    except CellNotFound:
        raise MappingDangling(uuid, mapping.cell_id) from None
    with access.reading(cells, cell) as session:
        rows = tables.find_instances(session, [uuid], hidden=True)
    if rows:
        return Whereabouts("deleted" if rows[0].deleted else "mapped", cell)

    def look(context: Any) -> bool:
        with reader(context) as session:
            return bool(tables.find_instances(session, [uuid], hidden=True))

    others = [other for other in cells.all() if other != cell]
    answers = scatter(RequestContext(), cells, look, deadline=monotonic() + _LOOK_FOR, among=others)
    return Whereabouts(
        "gone",
        cell,
        tuple(answer.cell for answer in answers if answer.status == "ok" and answer.value),
        tuple(answer.cell for answer in answers if answer.status != "ok"),
    )
