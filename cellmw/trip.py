# SPDX-License-Identifier: Apache-2.0
"""Trip: one request on its way to its cell, from the moment it is targeted to the end of its response.

``environ["cellmw.target"]`` is a :class:`Target` as long as the trip lasts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cellmw.cell import CELL0_UUID
from cellmw.context import target as context_target
from cellmw.context import untarget
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

    Answer = Callable[[Exception, WSGIEnvironment], WSGIApplication]
    Headers = list[tuple[str, str]]
    ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None] | None
    Write = Callable[[bytes], object]

TARGET_KEY = "cellmw.target"
"""Environ key of the Target. It is also what tells a second filter in the pipeline that the first has done the work."""


class Target:
    """What a request is aimed at. Lives as long as its trip.

    :ivar instance_uuid: the instance that the path names, in lower case
    :ivar cell: the instance's cell, None where it has none
    :ivar deadline: the moment by which the request has to be done waiting
    """

    __slots__ = ("_lease", "_mapping", "cell", "deadline", "instance_uuid")

    def __init__(self, instance_uuid: str, mapping: Mapping | None, lease: Lease | None, deadline: Deadline) -> None:
        self.instance_uuid = instance_uuid
        self.deadline = deadline
        self.cell: Cell | None = None if lease is None else lease.cell
        self._mapping = mapping
        self._lease = lease

    @property
    def state(self) -> str:
        """``targeted``, ``cell0``, ``building`` (mapped, to no cell yet) or ``unmapped``."""
        if self._mapping is None:
            return "unmapped"
        if self.cell is None:
            return "building"
        return "cell0" if self.cell.uuid == CELL0_UUID else "targeted"

    @property
    def age(self) -> float | None:
        """Seconds since the API database said where the instance is; None where it has no mapping."""
        return None if self._mapping is None else self._mapping.age

    @property
    def queued_for_delete(self) -> bool:
        """Whether the instance's deletion has begun."""
        return self._mapping is not None and self._mapping.queued_for_delete

    def detach(self) -> None:
        """Give the handles back now: for a handler that goes on for hours and is done with its cell."""
        if self._lease is not None:
            self._lease.release()

    def __repr__(self) -> str:
        return f"<Target instance={self.instance_uuid} cell={self.cell} {self.state}>"


class Trip:
    """One request, from where it is targeted to the end of its response. Lives as long as the request.

    ``end()`` undoes what was done for it, and is called exactly once.
    """

    __slots__ = (
        "_answer",
        "_before",
        "_cells",
        "_context",
        "_environ",
        "_lease",
        "_mapping",
        "_start_response",
        "_status",
    )

    def __init__(
        self,
        target: Target,
        environ: WSGIEnvironment,
        context: Any,
        start_response: StartResponse,
        cells: Cells,
        answer: Answer,
    ) -> None:
        """Depart: aim the context at the target's cell, if it has one, and tell the app by the environ."""
        self._environ = environ
        self._context = context
        self._start_response = start_response
        self._cells = cells
        self._answer = answer
        self._status = ""
        self._mapping = target._mapping
        lease = self._lease = target._lease
        self._before = None if lease is None else context_target(context, lease)
        environ[TARGET_KEY] = target

    def start_response(self, status: str, headers: Headers, exc_info: ExcInfo = None) -> Write:
        """What the app gets as its ``start_response``, so that its status is seen."""
        self._status = status
        if exc_info is None:
            return self._start_response(status, headers)
        return self._start_response(status, headers, exc_info)

    def end(self) -> None:
        """The response has ended: untarget the context, take the target out of the environ, release the lease."""
        self.lose()
        if self._status.startswith("404") and self._mapping is not None:
            self._cells.mappings.distrust(self._mapping)

    def lose(self) -> None:
        """End without looking at the status: for a finalizer, which must not wait for a lock that its own thread holds."""
        self._environ.pop(TARGET_KEY, None)
        if self._lease is not None:
            try:
                untarget(self._context, self._lease, self._before)
            finally:
                self._lease.release()

    def rescue(self, error: BaseException) -> Iterable[bytes] | None:
        """Answer an error of ours that escaped the app before it had begun to respond.

        :returns: the body of the answer, None where the error stays the app's
        """
        if self._status or not isinstance(error, ESCAPED):
            return None
        return self._answer(error, self._environ)(self._environ, self._start_response)
