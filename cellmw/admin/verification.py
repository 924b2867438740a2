# SPDX-License-Identifier: Apache-2.0
"""The mappings beside what the cells have -> what is wrong with them, and its repair.

It goes through the instances of each cell, to see that those which are not deleted are mapped there, and then through
all mappings, to see that there is an instance behind each; in pages, so that a million takes no more memory than a few.
What does not fit is looked at a second time, in all cells, before it counts. While that goes on instances come, go and
move: a mapping that was written in the last minutes is left to whoever is at work there.

A cell that does not answer is not judged by what is not seen of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from oslo_utils import timeutils

from cellmw.admin import access
from cellmw.context import RequestContext
from cellmw.database import reader
from cellmw.exceptions import CellmwError, StoreUnavailable
from cellmw.scatter import scatter
from cellmw.store import InstanceMapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sqlalchemy.orm import Session

    from cellmw.admin.cell_tables import CellTables, InstanceRow
    from cellmw.cell import Cell
    from cellmw.cells import Cells
    from cellmw.store.instances import DatedMapping

Result = TypeVar("Result")

PAGE = 999
"""How many instances or mappings are looked at at once: as many as fit into one statement everywhere."""

SHOWN = 100
"""How many findings of a kind are kept to be shown; all are counted, and repaired."""

YOUNG = timedelta(minutes=5)
"""A mapping that was written since then is not judged: its instance may be on its way into a cell, or between two."""

_COUNT_IN = 60.0
"""Seconds that a cell has to count its instances."""

UNMAPPED = "unmapped"
NO_PROJECT = "no project"
NO_CELL = "no cell"
WRONG_CELL = "wrong cell"
DANGLING = "dangling"
DUPLICATE = "duplicate"
OTHER_PROJECT = "other project"
OTHER_USER = "other user"
ORPHANED = "orphaned"
NOT_QUEUED = "not queued"

KINDS = {
    UNMAPPED: "the instance is in a cell and has no mapping",
    NO_PROJECT: "the row of the instance names no project: write it into the cell's database",
    NO_CELL: "the instance is in a cell, and its mapping says that it has none yet",
    WRONG_CELL: "the instance is in another cell than it is mapped to",
    DANGLING: "the mapping is to a cell that has no record: if the instance is in none of those that have, record that "
    "cell again, with the same id, or delete the mapping",
    DUPLICATE: "the instance is in several cells: find out on which host it runs, and delete it from the databases of "
    "the other cells",
    OTHER_PROJECT: "the mapping names another project than the row of the instance",
    OTHER_USER: "the mapping names another user than the row of the instance, or none",
    ORPHANED: "the mapping is of an instance that no cell has",
    NOT_QUEUED: "the instance is deleted, and its mapping does not say so, as map_instances leaves it; it is counted "
    "where mappings are counted, until its row is deleted for good",
}
"""What there is to find, and what that means. The last one is no fault: Nova leaves it so itself."""

_TAKES_ALL_CELLS = frozenset({UNMAPPED, NO_CELL, WRONG_CELL, DANGLING, ORPHANED, NOT_QUEUED})
"""What is not repaired unless every cell has said that it does not have the instance."""

FOUND = "found"
REPAIRED = "repaired"
WOULD = "would be repaired"
LEFT = "left"
CHANGED = "changed meanwhile"
"""What became of a finding: LEFT is what nobody but the operator can repair."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with one instance. Lives as long as somebody wants to know.

    :ivar kind: one of :data:`KINDS`
    :ivar mapping: as it was read; None where there is none
    :ivar mapped_to: the cell of the mapping, or its id where that has no record
    :ivar found_in: the cells that have the instance
    :ivar wanted: the mapping as it would be right; None where there would be none
    :ivar repairable: whether that is safe to bring about
    """

    kind: str
    instance_uuid: str
    mapping: InstanceMapping | None = None
    mapped_to: Cell | int | None = None
    found_in: tuple[Cell, ...] = ()
    wanted: InstanceMapping | None = None
    repairable: bool = True


class _Case(NamedTuple):
    """All that is known of one instance, read anew. Lives as long as it is judged."""

    uuid: str
    dated: DatedMapping | None
    rows: dict[Cell, InstanceRow]
    is_hidden: bool

    @property
    def mapping(self) -> InstanceMapping | None:
        return self.dated and self.dated.mapping

    @property
    def living_in(self) -> tuple[Cell, ...]:
        return tuple(cell for cell, row in self.rows.items() if not row.deleted)

    @property
    def is_young(self) -> bool:
        written_at = self.dated and self.dated.written_at
        return written_at is not None and written_at > timeutils.utcnow() - YOUNG


@dataclass
class Verification:
    """One look at everything. Lives as long as the command.

    :ivar only: the cell whose instances and mappings are looked at; all others are only looked into
    :ivar repair: whether what is wrong is put right where that is safe
    :ivar dry_run: whether to say only what a repair would do
    :ivar total: how many instances and mappings there are to look at
    :ivar counts: of each kind, how many there are and what became of them
    :ivar shown: the first findings of each kind, with what became of them
    :ivar building: how many mappings have no cell yet
    :ivar unjudged: how many mappings nothing can be said of before all cells answer
    :ivar silent: the cells that do not answer, or whose tables can't be read, and why
    """

    cells: Cells
    tables: CellTables
    only: Cell | None = None
    repair: bool = False
    dry_run: bool = False
    total: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    shown: list[tuple[Finding, str]] = field(default_factory=list)
    building: int = 0
    unjudged: int = 0
    silent: dict[Cell, str] = field(default_factory=dict)
    _every: list[Cell] = field(default_factory=list)

    @property
    def remaining(self) -> int:
        """How many faults are not repaired."""
        return sum(
            count for (kind, outcome), count in self.counts.items() if outcome != REPAIRED and kind != NOT_QUEUED
        )

    def begin(self) -> None:
        """Count, and see which cells answer.

        :raises StoreUnavailable: if the API database does not answer
        """
        self._every = self.cells.all()

        def count(context: Any) -> int:
            with reader(context) as session:
                return self.tables.count_instances(session)

        deadline = monotonic() + _COUNT_IN
        for answer in scatter(RequestContext(), self.cells, count, deadline=deadline, among=self._every):
            if answer.status != "ok":
                self.silent[answer.cell] = _reason(answer.cell, answer.error)
            elif self._is_wanted(answer.cell.id):
                self.total += answer.value
        mapped = self.cells.store.count_instances()
        self.total += sum(count for cell_id, count in mapped.items() if self._is_wanted(cell_id))

    def pages(self) -> Iterator[int]:
        """Look, repair what is to be repaired, and give after each page how many were on it.

        :raises StoreUnavailable: if the API database does not answer any more; what a cell fails with is in ``silent``
        """
        for cell in self._every:
            if self._is_wanted(cell.id):
                yield from self._look_at_instances(cell)
        yield from self._look_at_mappings()

    def _is_wanted(self, cell_id: int | None) -> bool:
        return self.only is None or cell_id == self.only.id

    def _look_at_instances(self, cell: Cell) -> Iterator[int]:
        after: Any = None
        while rows := self._ask(cell, partial(self.tables.instances, limit=PAGE, after=after)):
            mappings = {
                mapping.instance_uuid.lower(): mapping
                for mapping in self.cells.store.find_instances(row.uuid for row in rows)
            }
            suspects = {row.uuid for row in rows if _is_suspect(row, mappings.get(row.uuid.lower()), cell)}
            if self.only is not None:  # where all are looked at, the pages of the other cell draw attention to it
                suspects |= self._living_elsewhere(cell, {row.uuid for row in rows if not row.deleted})
            cases = self._look_again([row.uuid for row in rows if row.uuid in suspects])
            findings = [self._judge(case, cell) for case in cases]
            self._settle([finding for finding in findings if finding is not None])
            self._settle_deleted(cell, rows, mappings)
            after = rows[-1].key
            yield len(rows)

    def _living_elsewhere(self, here: Cell, uuids: set[str]) -> set[str]:
        """Return those of these instances that live in another cell, too."""
        there: set[str] = set()
        for cell in self._every:
            if cell != here:
                rows = self._ask(cell, lambda session: self.tables.find_instances(session, _either_case(uuids)))
                there.update(row.uuid.lower() for row in rows or () if not row.deleted)
        return {uuid for uuid in uuids if uuid.lower() in there}

    def _look_at_mappings(self) -> Iterator[int]:
        after: int | None = None
        cell_id = None if self.only is None else self.only.id
        while page := self.cells.store.page_instances(PAGE, after, cell_id=cell_id):
            by_cell: dict[int | None, list[str]] = {}
            for dated in page:
                by_cell.setdefault(dated.mapping.cell_id, []).append(dated.mapping.instance_uuid)
            self.building += len(by_cell.pop(None, []))
            known = {cell.id: cell for cell in self._every}
            suspects = []
            for mapped_to, uuids in by_cell.items():
                cell = known.get(mapped_to)  # type: ignore[arg-type]
                suspects += uuids if cell is None else self._missing(cell, uuids)
            findings = [self._judge_gone(case) for case in self._look_again(suspects)]
            self._settle([finding for finding in findings if finding is not None])
            after = page[-1].key
            yield len(page)

    def _missing(self, cell: Cell, uuids: Sequence[str]) -> list[str]:
        rows = self._ask(cell, lambda session: self.tables.find_instances(session, _either_case(uuids)))
        if rows is None:
            self.unjudged += len(uuids)
            return []
        there = {row.uuid.lower() for row in rows}
        return [uuid for uuid in uuids if uuid.lower() not in there]

    def _look_again(self, uuids: Sequence[str]) -> list[_Case]:
        """Read all that there is to know of these instances: mappings first, as a row is there before its mapping."""
        if not uuids:
            return []
        dated = {each.mapping.instance_uuid.lower(): each for each in self.cells.store.date_instances(uuids)}
        cases = {uuid.lower(): _Case(uuid, dated.get(uuid.lower()), {}, is_hidden=False) for uuid in uuids}
        for cell in self._every:
            self._look_into(cell, cases)
        return list(cases.values())

    def _look_into(self, cell: Cell, cases: dict[str, _Case]) -> None:
        uuids = _either_case([case.uuid for case in cases.values()])
        for row in self._ask(cell, lambda session: self.tables.find_instances(session, uuids)) or ():
            cases[row.uuid.lower()].rows[cell] = row
        unseen = _either_case([case.uuid for case in cases.values() if not case.rows])
        if not unseen:
            return
        for row in self._ask(cell, lambda session: self.tables.find_instances(session, unseen, hidden=True)) or ():
            cases[row.uuid.lower()] = cases[row.uuid.lower()]._replace(is_hidden=True)

    def _judge(self, case: _Case, here: Cell) -> Finding | None:
        """Say what is wrong with an instance that lives in this cell; of one in several cells that is said once."""
        living_in = case.living_in
        mapping = case.mapping
        if here not in living_in:
            return None
        row = case.rows[here]
        if mapping is None:
            if len(living_in) > 1:
                return self._duplicate(case, here)
            if row.project_id is None:
                return Finding(NO_PROJECT, case.uuid, found_in=living_in, repairable=False)
            wanted = InstanceMapping(row.uuid, here.id, row.project_id, row.user_id, queued_for_delete=False)
            return Finding(UNMAPPED, case.uuid, None, None, living_in, wanted)
        if case.is_young:
            return None
        if len(living_in) > 1:
            return self._duplicate(case, here)
        mapped_to = self._named(mapping.cell_id)
        if mapping.cell_id != here.id:
            if mapped_to in self.silent:
                return None
            kind = NO_CELL if mapped_to is None else DANGLING if isinstance(mapped_to, int) else WRONG_CELL
            return Finding(kind, case.uuid, mapping, mapped_to, living_in, mapping._replace(cell_id=here.id))
        if row.project_id is None:
            return Finding(NO_PROJECT, case.uuid, mapping, mapped_to, living_in, repairable=False)
        if mapping.project_id != row.project_id:
            wanted = mapping._replace(project_id=row.project_id, user_id=row.user_id or mapping.user_id)
            return Finding(OTHER_PROJECT, case.uuid, mapping, mapped_to, living_in, wanted)
        if row.user_id not in (None, mapping.user_id):
            return Finding(OTHER_USER, case.uuid, mapping, mapped_to, living_in, mapping._replace(user_id=row.user_id))
        return None

    def _duplicate(self, case: _Case, here: Cell) -> Finding | None:
        mapped_to = self._named(case.mapping and case.mapping.cell_id)
        # in the cell that it is mapped to, nothing draws attention to it
        noticed_in = [cell for cell in case.living_in if self._is_wanted(cell.id) and cell != mapped_to]
        if here not in (noticed_in or [here])[:1]:
            return None
        return Finding(DUPLICATE, case.uuid, case.mapping, mapped_to, case.living_in, repairable=False)

    def _judge_gone(self, case: _Case) -> Finding | None:
        """Say what is wrong with a mapping of an instance that lives in no cell."""
        mapping = case.mapping
        if mapping is None or mapping.cell_id is None or case.is_young or case.is_hidden or case.living_in:
            return None
        mapped_to = self._named(mapping.cell_id)
        if mapped_to in case.rows:
            return None
        if self.silent:
            self.unjudged += 1
            return None
        found_in = tuple(case.rows)
        if len(found_in) == 1:
            wanted = mapping._replace(cell_id=found_in[0].id)
            return Finding(WRONG_CELL, case.uuid, mapping, mapped_to, found_in, wanted)
        if found_in:
            return Finding(WRONG_CELL, case.uuid, mapping, mapped_to, found_in, repairable=False)
        if isinstance(mapped_to, int):
            # it may be in the cell whose record is gone
            return Finding(DANGLING, case.uuid, mapping, mapped_to, repairable=False)
        return Finding(ORPHANED, case.uuid, mapping, mapped_to)

    def _settle_deleted(self, cell: Cell, rows: Sequence[InstanceRow], mappings: dict[str, InstanceMapping]) -> None:
        """Have mappings of deleted instances say so; there are too many of them to be shown."""
        found = []
        for row in rows:
            mapping = mappings.get(row.uuid.lower())
            if row.deleted and mapping and mapping.cell_id == cell.id and not mapping.queued_for_delete:
                wanted = mapping._replace(queued_for_delete=True)
                found.append(Finding(NOT_QUEUED, row.uuid, mapping, cell, (cell,), wanted))
        if found and self.repair:
            living = {case.uuid for case in self._look_again([each.instance_uuid for each in found]) if case.living_in}
            found = [finding for finding in found if finding.instance_uuid not in living]
        self._settle(found)

    def _settle(self, findings: Sequence[Finding]) -> None:
        """Repair what is to be repaired, and count."""
        outcomes = self._repaired(findings) if self.repair else [FOUND] * len(findings)
        for finding, outcome in zip(findings, outcomes, strict=True):
            kept = sum(count for (kind, _), count in self.counts.items() if kind == finding.kind)
            self.counts[finding.kind, outcome] += 1
            if kept < SHOWN and finding.kind != NOT_QUEUED:
                self.shown.append((finding, outcome))

    def _repaired(self, findings: Sequence[Finding]) -> list[str]:
        outcomes = dict.fromkeys((finding.instance_uuid for finding in findings), LEFT)
        safe = [
            finding
            for finding in findings
            if finding.repairable and not (self.silent and finding.kind in _TAKES_ALL_CELLS)
        ]
        if self.dry_run:
            outcomes |= dict.fromkeys((finding.instance_uuid for finding in safe), WOULD)
            return list(outcomes.values())
        store = self.cells.store
        new = {each.instance_uuid: each.wanted for each in safe if each.mapping is None and each.wanted is not None}
        if new:
            there = {mapping.instance_uuid for mapping in store.map_instances(list(new.values()))}
            outcomes |= {uuid: CHANGED if wanted.instance_uuid in there else REPAIRED for uuid, wanted in new.items()}
        changes = [(each.mapping, each.wanted) for each in safe if each.mapping is not None]
        if changes:
            for (mapping, _), done in zip(changes, store.change_instances(changes), strict=True):
                outcomes[mapping.instance_uuid] = REPAIRED if done else CHANGED
        for finding in safe:
            self.cells.mappings.forget(finding.instance_uuid)
        return [outcomes[finding.instance_uuid] for finding in findings]

    def _named(self, cell_id: int | None) -> Cell | int | None:
        return next((cell for cell in self._every if cell.id == cell_id), cell_id)

    def _ask(self, cell: Cell, question: Callable[[Session], Result]) -> Result | None:
        """Return what a cell answers, None where it does not. What a repair goes by is not asked of a replica."""
        if cell in self.silent:
            return None
        session = access.writing if self.repair and not self.dry_run else access.reading
        try:
            with session(self.cells, cell) as opened:
                return question(opened)
        except StoreUnavailable:
            raise
        except CellmwError as error:
            self.silent[cell] = _reason(cell, error)
            return None


def _is_suspect(row: InstanceRow, mapping: InstanceMapping | None, cell: Cell) -> bool:
    """Tell whether an instance has to be looked at once more. Deleted ones need no mapping: Nova leaves such itself."""
    if row.deleted:
        return False
    if mapping is None or mapping.cell_id != cell.id:
        return True
    return mapping.project_id != row.project_id or row.user_id not in (None, mapping.user_id)


def _either_case(uuids: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(form for uuid in uuids for form in (uuid, uuid.lower())))


def _reason(cell: Cell, error: BaseException | None) -> str:
    """Say why a cell gave no answer, in words that quote nothing of a URL."""
    if isinstance(error, CellmwError):
        return str(error).removeprefix(f"cell {cell}: ")
    return f"its database failed: {type(error).__name__}"
