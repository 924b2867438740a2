# SPDX-License-Identifier: Apache-2.0
"""A SQLAlchemy select -> one sorted page of what it gives in all cells, and the place from which the next one goes on.

All cells are asked at once, each for what is probably its share of the page. Those that turn out to have more of the
page than that are asked a second time, for as much as can still be missing: again all of them at once. So a page takes
no longer than the slowest cell takes for two answers, however the rows are spread, and reads few more rows than it
gives.

What a row is sorted by, and where the next page goes on, are its own values (keyset pagination). So rows that are there
all the time are on exactly one page each, whatever is inserted or deleted meanwhile. A row whose sort values are
changed meanwhile may be on two pages, or on none.

It needs native threads, as scatter.py does.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from operator import eq
from time import monotonic
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from cellmw import database
from cellmw.cell_result import CellResult
from cellmw.cursor import Cursors, Position
from cellmw.deadline import left
from cellmw.exceptions import (
    BadCursor,
    BadMarker,
    CellError,
    CellmwError,
    CellsMissing,
    CellUnavailable,
    ListingError,
)
from cellmw.keyset import Keyset
from cellmw.scatter import scatter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sqlalchemy import Select
    from sqlalchemy.orm import Session

    from cellmw.cell import Cell
    from cellmw.cells import Cells
    from cellmw.deadline import Deadline
    from cellmw.keyset import Entry
    from cellmw.store import InstanceMapping

LOG = logging.getLogger(__name__)

SKIP, FAIL, PARTIAL = "skip", "fail", "partial"
"""What to do without a cell: leave its rows out, raise, or give what the instance mappings know of them."""

_FIRST_ROUND = 2 / 3
"""How much of the time the cells have for their first answer, so that the others can be asked again without one."""

_MAPPINGS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list. Lives as long as the request.

    :ivar rows: what the statement gives; for an instance of a missing cell, what ``partial`` has made of its mapping
    :ivar cells: the cell of each row, in the same order
    :ivar cursor: what the next page is asked for with; None on the last one, and where there is no secret
    :ivar missing: what came of the cells that are not on the page with all their rows
    :ivar more: whether there is a next page
    """

    rows: list[Any]
    cells: list[Cell]
    cursor: str | None
    missing: list[CellResult]
    more: bool


@dataclass(frozen=True, slots=True)
class PartialRow:
    """All that is known of an instance whose cell does not answer. Lives as long as the request.

    :ivar cell: where it lives
    :ivar status: always ``"UNKNOWN"``
    """

    uuid: str
    project_id: str
    cell: Cell
    status: str = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Total:
    """A number, or several, of all cells together. Lives as long as the request.

    :ivar value: what all cells that have answered have together
    :ivar cells: cell -> what it has
    :ivar missing: what came of the cells that are not counted
    """

    value: Any
    cells: Mapping[Cell, Any]
    missing: list[CellResult]


@dataclass(frozen=True, slots=True)
class Found:
    """Where something was found. Lives as long as the request.

    :ivar rows: cell -> the row that is there; more than one where a row was copied and not deleted
    :ivar missing: what came of the cells that may have it, too, and did not answer
    """

    rows: Mapping[Cell, Any]
    missing: list[CellResult]


def list_sorted(
    context: Any,
    cells: Cells,
    statement: Select[Any],
    *,
    sort: Sequence[tuple[str, str]],
    deadline: Deadline,
    unique: str = "uuid",
    limit: int = 100,
    max_limit: int = 1000,
    marker: str | None = None,
    cursor: str | None = None,
    secret: str | None = None,
    among: Iterable[Cell] | None = None,
    down_cells: str = SKIP,
    partial: Callable[[Cell, InstanceMapping], Any] | None = None,
    project_id: str | None = None,
) -> Page:
    """Return one page of the rows that the statement gives in the cells.

    NULL is lower than every value, false lower than true, and text is sorted by code point, whatever the databases have
    for an order of their own.

    :param context: left as it is; each cell is asked with a copy
    :param statement: a select of ORM entities or of columns, joined as it likes, without an order, a limit or groups
        (of those, select from the subquery). What it gives must not need the session any more: load what you want to
        read of an entity
    :param sort: pairs of a column's name, or of an entity's attribute, and ``"asc"`` or ``"desc"``: of text, numbers,
        booleans, dates, times of day and date (without a zone in UTC), bytes or uuids
    :param deadline: the moment on the clock of ``time.monotonic()`` by which this returns. Where a second question may
        follow, the cells have two thirds of the time for the first
    :param unique: the column that has another value in each row, of whatever cell, and no NULL. It is the last one to
        be sorted by, in the direction of the first, where ``sort`` does not name it. One of 36 characters is taken for
        uuids in lower case. A row that is in two cells with all the same sort values is given once
    :param limit: how many rows; cut to ``max_limit``
    :param marker: the unique value of the last row of the page before, which has to be there still
    :param cursor: the cursor of the page before, in place of a marker
    :param secret: what the cursor is signed with; without one there is none
    :param among: the cells to ask; all by default, cell0 and disabled ones included. The same on all pages
    :param down_cells: what to do where a cell does not answer, or fails:

        ``"skip"``
            leave out its rows, and name it in ``missing``. Of one that fails between its first answer and its second
            the rows of the first are given. It is asked again for the next page, which goes on after this one's last
            row: rows of the cell that come before that are not given any more

        ``"fail"``
            raise CellsMissing

        ``"partial"``
            name it in ``missing``, and give for each instance of the project which is mapped to it, and whose deletion
            has not begun, what ``partial`` makes of its mapping: after all other rows, sorted by uuid. As long as one
            goes on by cursor none is given twice: the cell is not asked again, and one of which an earlier page had
            rows is only left out, as by ``"skip"``. Who goes on by marker has no such promise

        If no cell answers it is always CellsMissing
    :param partial: takes a cell and the mapping of an instance in it, and returns what stands for its row; a
        :class:`PartialRow` by default
    :param project_id: whose instances ``"partial"`` is about; those of all projects by default
    :raises ListingError: if the statement has no such column to sort by, or the limit is not at least 1
    :raises BadMarker: if no row of the list has this unique value
    :raises BadCursor: if the cursor was not made with this secret, or for a list that is sorted in another way
    :raises CellsMissing: if no cell answers, if one does not and ``down_cells`` is ``"fail"``, or if one does not that
        may have the marker
    :raises StoreUnavailable: if the cells are not known yet, or the mappings are wanted, and the API database does not
        answer
    """
    if down_cells not in (SKIP, FAIL, PARTIAL):
        raise ValueError(f"down_cells is {SKIP}, {FAIL} or {PARTIAL}, not {down_cells!r}")
    if limit < 1:
        raise ListingError(f"the limit has to be at least 1, and is {limit}")
    if marker is not None and cursor is not None:
        raise ListingError("a page is asked for by a marker or by a cursor, not by both")
    keyset = Keyset(statement, sort, unique)
    asked = cells.known(deadline) if among is None else list(among)
    cursors = Cursors(secret) if secret else None
    position = Position()
    if cursor is not None:
        if cursors is None:
            raise BadCursor("there are no cursors here")
        position = cursors.read(cursor, keyset.order)
    elif marker is not None:
        position = Position(_look_up(context, cells, keyset, marker, deadline, asked))
    walk = _Walk(context, cells, keyset, deadline, min(limit, max_limit), down_cells, position, asked)
    walk.give_rows()
    walk.give_mapped(project_id, partial or _partial_row)
    text = cursors.write(keyset.order, walk.next) if cursors is not None and walk.more else None
    return Page(walk.rows, walk.cells, text, list(walk.missing.values()), walk.more)


class _Batch:
    """What a cell has given of the page so far. Lives as long as the call.

    :ivar entries: rank, row and cell of each row
    :ivar columns: the sort values of the rows, by column
    :ivar whole: whether the cell has no rows after these, or they can't be on the page
    """

    __slots__ = ("columns", "entries", "whole")

    def __init__(self, width: int) -> None:
        self.entries: list[Entry] = []
        self.columns: list[list[Any]] = [[] for _ in range(width)]
        self.whole = False

    def values(self, number: int) -> tuple[Any, ...]:
        """Return the sort values of one of the rows."""
        return tuple(column[number] for column in self.columns)


class _Walk:
    """One page that is being made. Lives as long as the call.

    :ivar rows: what is on it
    :ivar cells: the cell of each of them
    :ivar missing: id of a cell -> what came of it, where not all its rows are there
    :ivar more: whether there is more after it
    :ivar next: where it ends
    """

    def __init__(
        self,
        context: Any,
        cells: Cells,
        keyset: Keyset,
        deadline: Deadline,
        limit: int,
        down_cells: str,
        position: Position,
        asked: list[Cell],
    ) -> None:
        self._context = context
        self._cells = cells
        self._keyset = keyset
        self._deadline = deadline
        self._limit = limit
        self._down_cells = down_cells
        self._position = position
        self._asked = {cell.id: cell for cell in asked}
        self._down = {cell.id: cell for cell in asked if cell.id in position.down}
        self._batches: dict[int, _Batch] = {}
        self.rows: list[Any] = []
        self.cells: list[Cell] = []
        self.missing = {cell.id: _missing_before(cell) for cell in self._down.values()}
        self.more = False
        self.next = position

    def give_rows(self) -> None:
        """Put the cells' own rows on the page."""
        if self._position.mapped is not None:
            return
        asked = [cell for cell in self._asked.values() if cell.id not in self._down]
        share = _share(self._limit, len(asked))
        entries = self._ask({cell.id: share for cell in asked})
        wanted = self._wanted(entries)
        while wanted:
            entries = self._ask(wanted)
            wanted = self._wanted(entries)
        self.more = len(entries) > self._limit
        del entries[self._limit :]
        self.rows = [row for _, row, _ in entries]
        self.cells = [cell for _, _, cell in entries]
        self.next = self._end(entries)

    def give_mapped(self, project_id: str | None, partial: Callable[[Cell, InstanceMapping], Any]) -> None:
        """Fill the page with instances of the cells that are down, if there is nothing else to come."""
        if self.more or not self._down:
            return
        room = self._limit - len(self.rows)
        after = self._position.mapped or ""
        mapped = [
            (mapping, cell)
            for cell in self._down.values()
            for mapping in self._mapped(cell, project_id, after, room + 1)
        ]
        mapped.sort(key=lambda each: each[0].instance_uuid)
        self.more = len(mapped) > room
        for mapping, cell in mapped[:room]:
            self.rows.append(partial(cell, mapping))
            self.cells.append(cell)
            after = mapping.instance_uuid
        self.next = Position(self.next.values, self.next.down, self.next.given, after)

    def _ask(self, sizes: Mapping[int, int]) -> list[Entry]:
        """Ask cells for so many rows more, and return all rows that are there, sorted."""
        if sizes:
            among = [self._asked[number] for number in sizes]
            results = scatter(
                self._context,
                self._cells,
                lambda context: self._read(context, sizes),
                deadline=self._until(sizes),
                among=among,
            )
            self._take(results, sizes)
        entries = [entry for batch in self._batches.values() for entry in batch.entries]
        self._keyset.sort(entries)
        return _once(entries)

    def _until(self, sizes: Mapping[int, int]) -> Deadline:
        """Return by when to have the answers, so that there is time for the next question if there can be one."""
        if self._batches or max(sizes.values()) > self._limit:
            return self._deadline
        return monotonic() + left(self._deadline) * _FIRST_ROUND

    def _read(self, context: Any, sizes: Mapping[int, int]) -> tuple[list[Entry], list[list[Any]]]:
        """Read the next rows of the cell that the context is aimed at, in a thread of its own."""
        cell = next(cell for cell in self._asked.values() if cell.uuid == context.cell_uuid)
        batch = self._batches.get(cell.id)
        after = batch.values(-1) if batch else self._position.values
        with database.reader(context) as session:
            rows: list[Any] = []
            for statement in self._keyset.selects(_dialect(session), after):
                rows += _rows(session, self._keyset, statement.limit(sizes[cell.id] - len(rows)))
                if len(rows) == sizes[cell.id]:
                    break
            columns = self._keyset.columns(rows)  # what is not loaded yet needs the session
        entries: list[Entry] = [(rank, row, cell) for rank, row in zip(self._keyset.ranks(columns), rows, strict=True)]
        before: list[Entry] = [(rank, None, cell) for rank in self._keyset.ranks([[value] for value in after])[:1]]
        if not self._keyset.is_sorted(before + entries):
            raise CellError(
                cell,
                f"cell {cell}: its database does not sort by {self._keyset} as is needed, or has "
                "two rows with the same values",
            )
        return entries, columns

    def _take(self, results: Iterable[CellResult], sizes: Mapping[int, int]) -> None:
        """Add what the cells have given to what is there."""
        for result in results:
            number = result.cell.id
            if result.status == "ok":
                entries, columns = result.value
                batch = self._batches.setdefault(number, _Batch(len(columns)))
                batch.entries += entries
                for known, new in zip(batch.columns, columns, strict=True):
                    known += new
                batch.whole = len(entries) < sizes[number]
            else:
                self._miss(result)
        if (self.missing and self._down_cells == FAIL) or len(self.missing) == len(self._asked):
            raise CellsMissing(list(self.missing.values())) from _cause(self.missing.values())

    def _miss(self, result: CellResult) -> None:
        """Do without a cell that does not answer."""
        number = result.cell.id
        _log(result)
        self.missing[number] = result
        if self._down_cells == PARTIAL and number not in self._position.given:
            self._batches.pop(number, None)
            self._down[number] = result.cell
        elif number in self._batches:
            self._batches[number].whole = True

    def _wanted(self, entries: Sequence[Entry]) -> dict[int, int]:
        """Return how many rows more can be on the page of those cells that may have more of it than they have given."""
        last = {batch.entries[-1][0]: number for number, batch in self._batches.items() if not batch.whole}
        if not last:
            return {}
        return {
            last[rank]: self._limit - place for place, (rank, _, _) in enumerate(entries[: self._limit]) if rank in last
        }

    def _end(self, entries: Sequence[Entry]) -> Position:
        """Return where the page ends that has these rows."""
        before = self._position
        down = frozenset(self._down)
        given = before.given
        if self._down_cells == PARTIAL:
            given |= {cell.id for _, _, cell in entries}
        if not entries:
            return Position(before.values, down, given)
        _, row, cell = entries[-1]
        batch = self._batches[cell.id]
        number = next(number for number, entry in enumerate(batch.entries) if entry[1] is row)
        return Position(batch.values(number), down, given)

    def _mapped(self, cell: Cell, project_id: str | None, after: str, size: int) -> list[InstanceMapping]:
        """Return so many mappings of a cell, of instances that are not being deleted, after this uuid."""
        mapped: list[InstanceMapping] = []
        marker = after or None
        while len(mapped) < size:
            page = self._cells.store.list_instances(
                cell_id=cell.id,
                project_id=project_id,
                limit=_MAPPINGS_AT_ONCE,
                marker=marker,
                deadline=self._deadline,
            )
            mapped += [mapping for mapping in page if not mapping.queued_for_delete]
            if len(page) < _MAPPINGS_AT_ONCE:
                break
            marker = page[-1].instance_uuid
        return mapped[:size]


def count(
    context: Any,
    cells: Cells,
    statement: Select[Any],
    *,
    deadline: Deadline,
    among: Iterable[Cell] | None = None,
    down_cells: str = SKIP,
) -> Total:
    """Return how many rows the statement gives, in each cell and in all.

    :param statement: any select
    :param among: the cells to ask; all by default
    :param down_cells: ``"skip"`` to leave out cells that do not answer, ``"fail"`` to raise
    :raises CellsMissing: if no cell answers, or if one does not and ``down_cells`` is ``"fail"``
    """
    counting = sa.select(sa.func.count()).select_from(statement.order_by(None).subquery())

    def ask(context: Any) -> int:
        with database.reader(context) as session:
            number: int = session.execute(counting).scalar_one()
        return number

    answers, missing = _gather(context, cells, ask, deadline, among, down_cells)
    return Total(sum(answers.values()), answers, missing)


def total(
    context: Any,
    cells: Cells,
    statement: Select[Any],
    columns: Sequence[str],
    *,
    deadline: Deadline,
    among: Iterable[Cell] | None = None,
    down_cells: str = SKIP,
) -> Total:
    """Return the sums of columns of the rows that the statement gives: name -> sum, in each cell and in all.

    NULLs are left out; where there is nothing to add up it is 0.

    :param statement: any select that has these columns
    :param among: the cells to ask; all by default
    :param down_cells: ``"skip"`` to leave out cells that do not answer, ``"fail"`` to raise
    :raises ListingError: if the statement has no such column
    :raises CellsMissing: if no cell answers, or if one does not and ``down_cells`` is ``"fail"``
    """
    rows = statement.order_by(None).subquery()
    missing_columns = [name for name in columns if name not in rows.c]
    if missing_columns:
        raise ListingError(f"there is no sum of {', '.join(missing_columns)}")
    adding = sa.select(*(sa.func.sum(rows.c[name]) for name in columns))
    whole = [isinstance(rows.c[name].type, sa.Integer) for name in columns]

    def ask(context: Any) -> dict[str, Any]:
        with database.reader(context) as session:
            sums = session.execute(adding).one()
        # a database adds up integers to a decimal number, or to NULL
        return {
            name: int(number or 0) if is_whole else number or 0
            for name, number, is_whole in zip(columns, sums, whole, strict=True)
        }

    answers, missing = _gather(context, cells, ask, deadline, among, down_cells)
    return Total({name: sum(answer[name] for answer in answers.values()) for name in columns}, answers, missing)


def find(
    context: Any,
    cells: Cells,
    statement: Select[Any],
    value: str,
    *,
    deadline: Deadline,
    unique: str = "uuid",
    among: Iterable[Cell] | None = None,
) -> Found:
    """Return in which cells there is a row with this unique value, whether it has a mapping or not: for repair.

    All cells are asked, and waited for.

    :param statement: as for :func:`list_sorted`
    :param value: what the row has in the column ``unique``
    :param among: the cells to ask; all by default
    :raises ListingError: if the statement has no such column
    :raises CellsMissing: if no cell answers
    """
    keyset = Keyset(statement, (), unique)
    try:
        wanted = keyset.keys[-1].parse(value)
    except ValueError:
        raise ListingError(f"{value!r} is nothing that is in column {unique}") from None
    answers, missing = _gather(context, cells, lambda context: _row(context, keyset, wanted), deadline, among, SKIP)
    return Found({cell: row for cell, (row, _) in answers.items() if row is not None}, missing)


def _look_up(
    context: Any, cells: Cells, keyset: Keyset, marker: str, deadline: Deadline, asked: Sequence[Cell]
) -> tuple[Any, ...]:
    """Return the sort values of the row that the marker names: first where it is mapped to, then everywhere else."""
    try:
        value = keyset.keys[-1].parse(marker)
    except ValueError:
        raise BadMarker(marker) from None
    mapped = _mapped_to(cells, marker, deadline)
    likely = [cell for cell in asked if cell.id == mapped]
    others = [cell for cell in asked if cell.id != mapped]
    for among in (likely, others):
        results = scatter(
            context,
            cells,
            lambda context: _row(context, keyset, value),
            deadline=deadline,
            among=among,
            enough=lambda answer: answer[0] is not None,
        )
        for result in results:
            if result.status == "ok" and result.value[0] is not None:
                values: tuple[Any, ...] = result.value[1]
                return values
        missing = [result for result in results if result.status != "ok"]
        if missing:
            raise CellsMissing(missing) from _cause(missing)
    raise BadMarker(marker)


def _mapped_to(cells: Cells, marker: str, deadline: Deadline) -> int | None:
    try:
        return cells.locate(marker, deadline).cell_id
    except CellmwError:
        return None  # it need not be an instance, and there is another way


def _row(context: Any, keyset: Keyset, value: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the row of a cell that has this unique value, None where there is none, and its sort values."""
    with database.reader(context) as session:
        rows = _rows(session, keyset, keyset.select_one(_dialect(session), value))
        if not rows:
            return None, ()
        return rows[0], tuple(column[0] for column in keyset.columns(rows[:1]))


def _rows(session: Session, keyset: Keyset, statement: Select[Any]) -> list[Any]:
    result: Any = session.execute(statement)
    # a joined collection has its entity in several rows
    return list((result.unique() if keyset.has_entities else result).all())


def _dialect(session: Session) -> str:
    return session.get_bind().dialect.name


def _gather(
    context: Any,
    cells: Cells,
    ask: Callable[[Any], Any],
    deadline: Deadline,
    among: Iterable[Cell] | None,
    down_cells: str,
) -> tuple[dict[Cell, Any], list[CellResult]]:
    """Ask the cells, and return what those say that answer, and what came of the others."""
    if down_cells not in (SKIP, FAIL):
        raise ValueError(f"down_cells is {SKIP} or {FAIL}, not {down_cells!r}")
    results = scatter(context, cells, ask, deadline=deadline, among=among)
    missing = [result for result in results if result.status != "ok"]
    for result in missing:
        _log(result)
    if missing and (down_cells == FAIL or len(missing) == len(results)):
        raise CellsMissing(missing) from _cause(missing)
    return {result.cell: result.value for result in results if result.status == "ok"}, missing


def _share(limit: int, cells: int) -> int:
    """Return how many rows of a cell are probably enough for a page, so that few more are read than it has."""
    even = limit / max(cells, 1)
    return min(limit, math.ceil(even + 4 * math.sqrt(even))) + 1


def _once(entries: list[Entry]) -> list[Entry]:
    """Leave out what is in one more cell: the next page could not tell it from the end of this one."""
    ranks = [entry[0] for entry in entries]
    if not any(map(eq, ranks, ranks[1:])):
        return entries
    return [entry for number, entry in enumerate(entries) if not number or entry[0] != ranks[number - 1]]


def _missing_before(cell: Cell) -> CellResult:
    return CellResult(cell, "skipped", error=CellUnavailable(cell, "database", "it did not for an earlier page"))


def _cause(missing: Iterable[CellResult]) -> BaseException | None:
    return next((result.error for result in missing if result.error is not None), None)


def _log(result: CellResult) -> None:
    """Log what is no outage: somebody has made a mistake."""
    if result.status == "error" and not isinstance(result.error, CellUnavailable):
        LOG.warning("cell %s: asking it has failed: %s", result.cell, type(result.error).__name__)


def _partial_row(cell: Cell, mapping: InstanceMapping) -> PartialRow:
    return PartialRow(mapping.instance_uuid, mapping.project_id, cell)
