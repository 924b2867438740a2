# SPDX-License-Identifier: Apache-2.0
"""A function -> what it returns in each of several cells, which are asked at the same time.

Each cell is asked by a thread of its own, with a copy of the context that is aimed at it and a lease of its own. A cell
that does not answer costs nobody more than the deadline. It needs native threads.
"""

from __future__ import annotations

import itertools
import threading
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import oslo_context.context

from cellmw.cell_result import CellResult
from cellmw.context import copy_context, target
from cellmw.crew import MAX_STUCK
from cellmw.deadline import SLOW, left
from cellmw.exceptions import CellBusy, CellDrained, CellUnavailable, DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cellmw.cell import Cell
    from cellmw.cells import Cells
    from cellmw.deadline import Deadline
    from cellmw.lease import Lease


def scatter(
    context: Any,
    cells: Cells,
    function: Callable[[Any], Any],
    *,
    deadline: Deadline,
    among: Iterable[Cell] | None = None,
    enough: Callable[[Any], bool] | None = None,
) -> list[CellResult]:
    """Call a function for each cell, in parallel, and return what came of it, in the order of the cells.

    Whatever comes of it, no lease that the function has had is open any more when it returns or raises.

    :param context: left as it is; the function gets copies of it
    :param function: takes a context that is aimed at one cell, and returns what that cell has to say. One that is not
        back by the deadline loses its lease: its waits in the cell are ended, and what it returns is dropped
    :param deadline: the moment on the clock of ``time.monotonic()`` by which this returns; if it has passed already no
        cell is asked
    :param among: the cells to ask; all by default, cell0 and disabled ones included
    :param enough: takes the value of a cell that has answered, and says whether the others need not be waited for
    :raises StoreUnavailable: if the cells are not known yet, and the API database does not answer
    """
    asked = cells.known(deadline) if among is None else list(among)
    errand = _Errand(cells, function, deadline, len(asked), tells_all=enough is not None)
    visits = [_Visit(errand, cell, copy_context(context)) for cell in asked]
    unanswered = "timeout"
    try:
        if visits and left(deadline):
            for visit in visits:
                visit.begin()
            unanswered = errand.wait(enough)
    finally:
        results = [visit.end(unanswered) for visit in visits]
    return results


class _Errand:
    """What all visits of one scatter have in common. Lives as long as the last of them."""

    __slots__ = ("_arrivals", "_arrived", "_count", "_tells_all", "cells", "deadline", "function")

    def __init__(
        self, cells: Cells, function: Callable[[Any], Any], deadline: Deadline, count: int, *, tells_all: bool
    ) -> None:
        self.cells = cells
        self.function = function
        self.deadline = deadline
        self._count = count
        self._tells_all = tells_all
        self._arrived = itertools.count(1)
        self._arrivals: SimpleQueue[tuple[str, Any]] = SimpleQueue()

    def arrive(self, status: str, value: Any) -> None:
        """Count a visit that has come to its end; to wake the caller for each of them would cost more than most do."""
        if next(self._arrived) == self._count or self._tells_all:
            self._arrivals.put((status, value))

    def wait(self, enough: Callable[[Any], bool] | None) -> str:
        """Return when all have arrived, or enough, or the deadline has; and the status of those that have not."""
        try:
            for _ in range(self._count if self._tells_all else 1):
                status, value = self._arrivals.get(timeout=left(self.deadline))
                if enough is not None and status == "ok" and enough(value):
                    return "skipped"
        except Empty:
            """The deadline has passed."""
        return "timeout"


class _Visit:
    """One cell that is asked. Lives as long as the scatter, or the function.

    :ivar overdue_at: when a visit that was left counts as stuck
    """

    __slots__ = (
        "_begun",
        "_cell",
        "_context",
        "_done",
        "_ended",
        "_errand",
        "_error",
        "_lease",
        "_lock",
        "_status",
        "_value",
        "overdue_at",
    )

    overdue_at: float

    def __init__(self, errand: _Errand, cell: Cell, context: Any) -> None:
        self._status = ""
        self._value: Any = None
        self._error: BaseException | None = None
        self._errand = errand
        self._cell = cell
        self._context = context
        self._lease: Lease | None = None
        self._lock = threading.Lock()  # guards being done against being left
        self._begun = self._done = self._ended = False

    def begin(self) -> None:
        """Send a thread there, unless too many have not come back from there."""
        left_there = self._errand.cells.left_behind[self._cell.id]
        if left_there:
            now = monotonic()
            stuck = sum(visit.overdue_at <= now for visit in cast("tuple[_Visit, ...]", tuple(left_there)))
            if stuck >= MAX_STUCK:
                self._arrive("skipped", error=CellBusy(self._cell, stuck))
                return
        try:
            self._errand.cells.crew.give(self)
        except RuntimeError as error:  # there are as many threads as there may be
            self._arrive("error", error=error)

    def end(self, unanswered: str) -> CellResult:
        """Return what came of it; where there is nothing, leave the thread and take its lease away.

        :param unanswered: the status where there is nothing
        """
        with self._lock:
            self._ended, done = True, self._done
            if self._begun and not done:
                # one that is not needed any more is at work, not stuck, and soon finds that its lease has ended
                self.overdue_at = min(self._errand.deadline, monotonic() + SLOW)
                self._errand.cells.left_behind[self._cell.id].add(self)
        try:
            if done:
                return CellResult(self._cell, self._status, self._value, self._error)
            # in this order, and the thread in the other: one of the two sees what the other has set
            if self._lease is not None:
                self._lease.take_away()
            error = DeadlineExceeded(f"an answer of cell {self._cell}") if unanswered == "timeout" else None
            return CellResult(self._cell, unanswered, None, error)
        finally:
            self._value = self._error = None  # an error remembers the frames that this is in

    def do(self) -> None:
        """Ask the cell, in a thread of the crew."""
        self._begun = True
        if self._ended:
            self._arrive("skipped")
            return
        try:
            _remember(self._context)
            value = self._ask()
        except (CellBusy, CellDrained, CellUnavailable) as error:
            self._arrive("skipped" if self._lease is None else "error", error=error)
        except DeadlineExceeded as error:
            self._arrive("timeout", error=error)
        except BaseException as error:  # noqa: BLE001 - it is the caller's, as it is
            self._arrive("error", error=error)
        else:
            self._arrive("ok", value)
        finally:
            _remember(None)

    def _ask(self) -> Any:
        errand = self._errand
        with errand.cells.lease(self._cell.id, errand.deadline) as lease:
            breaker = lease.handles.database.breaker
            if breaker.refuses():  # a cell that is down is leased all the same where down_cell is degrade
                raise CellUnavailable(self._cell, "database", breaker.cause)
            self._lease = lease
            if self._ended:
                return None
            target(self._context, lease)
            return errand.function(self._context)

    def _arrive(self, status: str, value: Any = None, error: BaseException | None = None) -> None:
        with self._lock:
            self._done = True
            if self._ended:
                self._errand.cells.left_behind[self._cell.id].discard(self)
                return
            self._status, self._value, self._error = status, value, error
        self._errand.arrive(status, value)


def _remember(context: Any) -> None:
    """Have what this thread logs carry the request id of the context; of the one before nothing stays."""
    if isinstance(context, oslo_context.context.RequestContext):
        context.update_store()
    else:
        vars(oslo_context.context._request_store).pop("context", None)
