# SPDX-License-Identifier: Apache-2.0
"""Crew: work that a library may get stuck in is done by a thread of the crew, so that its caller can leave in time.

A thread can't be stopped from outside. One that its caller has left goes on until the library lets go of it; it is
counted until then, and there may be only a few.
"""

from __future__ import annotations

import collections
import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from cellmw.deadline import SLOW, left
from cellmw.exceptions import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Callable

    from cellmw.deadline import Deadline

T = TypeVar("T")

MAX_STUCK = 4
"""How many threads may be stuck in connecting to one database, or with one queue, before others are refused."""

_IDLE_TIMEOUT = 10.0
"""Seconds after which a thread that has nothing to do ends."""


class Work(Protocol):
    """Something to be done."""

    def do(self) -> None:
        """Do it, and raise nothing."""


class Crew:
    """Threads that are kept for the next piece of work. Lives as long as the process, and keeps no process alive.

    Shared by all threads. There are as many as there are callers at a time, and those that were left.
    """

    def __init__(self) -> None:
        """Begin with no thread."""
        self.begin_anew()

    def begin_anew(self) -> None:
        """Begin with no thread, as in a child process, which has inherited none."""
        self._inbox: SimpleQueue[Work] = SimpleQueue()
        # one for each thread that waits for work, or is about to, and that no work was given to: who takes one out
        # may put one piece of work in, so that none lies behind one that is stuck
        self._idle: collections.deque[None] = collections.deque()

    def run(
        self,
        work: Callable[[], T],
        deadline: Deadline,
        stuck: set[object],
        waited_for: str,
        *,
        late: Callable[[T], object] | None = None,
        slow: Callable[[], object] | None = None,
        slow_after: float = SLOW,
    ) -> T:
        """Return what the work returns, unless it takes too long.

        :param stuck: has an entry for each piece of work that was left by its caller and goes on
        :param waited_for: what is being done, for the message
        :param late: takes what comes back after the caller has left, where it has to be closed
        :param slow: called if it is not done after ``slow_after`` seconds, or at the deadline where that is earlier
        :raises DeadlineExceeded: if it is not done in time
        :raises Exception: whatever the work raises
        """
        job = self.start(work, stuck, late=late)
        if slow is not None and not job.wait(min(slow_after, left(deadline))):
            slow()
        if not job.wait(left(deadline)) and job.leave():
            raise DeadlineExceeded(waited_for)
        return job.result()

    def start(
        self,
        work: Callable[[], T],
        stuck: set[object],
        *,
        late: Callable[[T], object] | None = None,
    ) -> Job[T]:
        """Have the work done, and return what can be waited for.

        :param stuck: has an entry for each piece of work that was left by its caller and goes on
        :param late: takes what comes back after the caller has left, where it has to be closed
        """
        job = Job(work, stuck, late)
        self.give(job)
        return job

    def give(self, work: Work) -> None:
        """Have the work done, by a thread that has nothing to do, or a new one.

        :raises RuntimeError: if there are as many threads as there may be
        """
        try:
            self._idle.pop()
        except IndexError:
            arguments = (self._inbox, self._idle)
            threading.Thread(target=_serve, args=arguments, name="cellmw-crew", daemon=True).start()
        self._inbox.put(work)


def _serve(inbox: SimpleQueue[Work], idle: collections.deque[None]) -> None:
    while True:
        try:
            work = inbox.get(timeout=_IDLE_TIMEOUT)
        except Empty:
            try:
                idle.pop()
            except IndexError:  # somebody is just putting some in
                continue
            return
        work.do()
        del work
        idle.append(None)


class Job(Generic[T]):
    """One piece of work. ``_done`` is locked until it is done."""

    __slots__ = ("_done", "_error", "_late", "_left", "_lock", "_stuck", "_value", "_work")

    _value: T

    def __init__(self, work: Callable[[], T], stuck: set[object], late: Callable[[T], object] | None) -> None:
        self._work = work
        self._stuck = stuck
        self._late = late
        self._error: BaseException | None = None
        self._left = False
        self._lock = threading.Lock()  # guards being done against being left
        self._done = threading.Lock()
        self._done.acquire()

    def do(self) -> None:
        """Do the work, in a thread of the crew."""
        try:
            self._value = self._work()
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            self._error = error
        with self._lock:
            self._done.release()
            if not self._left:
                return
            self._stuck.discard(self)
        if self._error is None and self._late is not None:
            self._late(self._value)

    def wait(self, timeout: float) -> bool:
        """Wait until it is done, and return whether it is."""
        if self._done.acquire(timeout=timeout):
            self._done.release()
            return True
        return False

    def leave(self) -> bool:
        """Leave it to itself; false if it has been done meanwhile."""
        with self._lock:
            if not self._done.locked():
                return False
            self._left = True
            self._stuck.add(self)
            return True

    def result(self) -> T:
        """Return what the work has returned, or raise what it has raised."""
        try:
            if self._error is not None:
                raise self._error
            return self._value
        finally:
            # an error remembers this frame, and the job remembers the error
            del self
