# SPDX-License-Identifier: Apache-2.0
"""Trip: one request aimed at its cell, from where it departs to the end of its response.

``environ["cellmw.target"]`` is the :class:`Trip`, as long as it lasts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from cellmw.cell import CELL0_UUID
from cellmw.context import target, untarget
from cellmw.faults import ESCAPED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from cellmw.cell import Cell
    from cellmw.cells import Cells
    from cellmw.deadline import Deadline
    from cellmw.lease import Lease
    from cellmw.mapping import Mapping

    Headers = list[tuple[str, str]]
    ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None] | None
    Write = Callable[[bytes], object]

TARGET_KEY = "cellmw.target"
"""Environ key of the trip. It is also what tells a second filter in the pipeline that the first has done the work."""


class Filter(Protocol):
    """What a trip needs of the filter that it departs from."""

    cells: Cells

    def answer(self, error: Exception, environ: WSGIEnvironment) -> WSGIApplication:
        """Return the answer to an error of ours."""


class Trip:
    """One request, from where it is aimed at its cell to the end of its response. Lives as long as the request.

    The app finds it in its environ, and may read:

    :ivar deadline: the moment by which the request has to be done waiting, on the clock of ``time.monotonic()``
    :ivar detached: whether the app has given the handles back before the end
    :ivar status: the status line that the app has answered, empty before that

    and the properties. ``end()`` undoes what was done for the request; the filter sees to it that this happens once.
    """

    __slots__ = (
        "_before",
        "_environ",
        "_filter",
        "_mapping",
        "_start_response",
        "deadline",
        "detached",
        "lease",
        "status",
    )

    def __init__(
        self,
        mapping: Mapping,
        lease: Lease | None,
        deadline: Deadline,
        context: Any,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        departed_from: Filter,
    ) -> None:
        """Depart: aim the context at the leased cell, if there is one, and tell the app by the environ."""
        self._mapping = mapping
        self.lease = lease
        self.deadline = deadline
        self._environ = environ
        self._start_response = start_response
        self._filter = departed_from
        self.status = ""
        self.detached = False
        self._before = None
        if lease is not None:
            try:
                self._before = target(context, lease)
            except BaseException:
                lease.release()
                raise
        environ[TARGET_KEY] = self

    @property
    def instance_uuid(self) -> str:
        """The instance that the request names, in lower case; empty where it names none, in a cell-level service."""
        return self._mapping.instance_uuid

    @property
    def cell(self) -> Cell | None:
        """The instance's cell, None where it has none."""
        return None if self.lease is None else self.lease.cell

    @property
    def state(self) -> str:
        """``targeted``, ``cell0``, ``local``, ``down`` (the database), ``building`` (no cell yet) or ``unmapped``."""
        if self.lease is not None:
            if "database" in self.lease.down:
                return "down"
            if not self._mapping.exists:
                return "local"
            return "cell0" if self.lease.cell.uuid == CELL0_UUID else "targeted"
        return "building" if self._mapping.exists else "unmapped"

    @property
    def down(self) -> tuple[str, ...]:
        """Which of the cell's ``"database"`` and ``"queue"`` are known not to answer: using one raises at once."""
        return () if self.lease is None else self.lease.down

    @property
    def age(self) -> float:
        """Seconds since the API database said where the instance is."""
        return self._mapping.age

    @property
    def queued_for_delete(self) -> bool:
        """Whether the instance's deletion has begun."""
        return self._mapping.queued_for_delete

    def detach(self) -> None:
        """Give the handles back now: for a handler that goes on for hours and is done with its cell.

        A body that is returned after that goes to the server as it is, which may send a file by its own means then.
        """
        self.detached = True
        if self.lease is not None:
            self.lease.release()

    def start_response(self, status: str, headers: Headers, exc_info: ExcInfo = None) -> Write:
        """What the app gets as its ``start_response``, so that its status is seen."""
        self.status = status
        if "404" <= status < "405":
            self._filter.cells.mappings.distrust(self._mapping)
        if exc_info is None:
            return self._start_response(status, headers)
        return self._start_response(status, headers, exc_info)

    def end(self) -> None:
        """The response has ended: untarget the context, take the target out of the environ, release the lease.

        A finalizer may call this, so it waits for no lock.
        """
        lease = self.lease
        try:
            if self._before is not None:
                untarget(self._before)
        finally:
            self._environ.pop(TARGET_KEY, None)
            if lease is not None:
                lease.release()

    def rescue(self, error: BaseException) -> Iterable[bytes] | None:
        """Answer an error of ours that escaped the app before it had begun to respond.

        :returns: the body of the answer, None where the error stays the app's
        """
        if self.status or not isinstance(error, ESCAPED):
            return None
        return self._filter.answer(error, self._environ)(self._environ, self._start_response)

    def __repr__(self) -> str:
        return f"<Trip instance={self.instance_uuid} cell={self.cell} {self.state}>"
