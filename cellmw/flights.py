# SPDX-License-Identifier: Apache-2.0
"""Flights: of all threads that want the same thing at the same time, one fetches it and the others wait for it.

It remembers nothing: whoever calls keeps what was fetched.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cellmw.deadline import left
from cellmw.exceptions import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from cellmw.deadline import Deadline

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


class Flights(Generic[K, V]):
    """At most one fetch under way for each key. Lives as long as the process.

    Shared by all threads. A fetch for one key never waits for one of another: the lock guards the bookkeeping alone.
    """

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """Begin with nothing under way, as in a child process: whoever was fetching is not there."""
        self._lock = threading.Lock()
        self._under_way: dict[K, _Flight[V]] = {}

    def run(
        self, key: K, fetch: Callable[[], V], keep: Callable[[V], Any], deadline: Deadline | None, waited_for: str
    ) -> V:
        """Return what ``fetch`` returns, in this thread or in the one that is fetching the same key already.

        :param keep: called with the value by the thread that fetched it, unless the key was forgotten meanwhile; it
            runs under the lock, so it only puts the value where it is looked for
        :param waited_for: what is being fetched, for the message
        :raises DeadlineExceeded: if the other thread is not done in time
        :raises Exception: whatever the fetch raised, in every thread that waited for it
        """
        while True:
            flight, leads = self._join(key)
            try:
                if leads:
                    return self._lead(key, flight, fetch, keep)
                if not flight.landed.acquire(timeout=-1 if deadline is None else left(deadline)):
                    raise DeadlineExceeded(waited_for)
                flight.landed.release()
                if flight.error is None:
                    return flight.value
                if isinstance(flight.error, Exception) and not _is_overdue(flight.error):
                    raise flight.error
                # what ended the leader, its deadline or its thread, says nothing of ours
            finally:
                # an error remembers this frame, and the flight remembers the error
                del flight

    def forget(self, key: K, drop: Callable[[], Any]) -> None:
        """Make a fetch that is under way keep nothing, and drop what was kept, in one step."""
        with self._lock:
            self._under_way.pop(key, None)
            drop()

    def _join(self, key: K) -> tuple[_Flight[V], bool]:
        """Return the flight for this key, and whether it is this thread's to lead."""
        mine: _Flight[V] = _Flight()
        with self._lock:
            flight = self._under_way.setdefault(key, mine)
        return flight, flight is mine

    def _lead(self, key: K, flight: _Flight[V], fetch: Callable[[], V], keep: Callable[[V], Any]) -> V:
        try:
            flight.value = fetch()
            return flight.value
        except BaseException as error:
            flight.error = error
            raise
        finally:
            with self._lock:
                if self._under_way.get(key) is flight:
                    try:
                        if flight.error is None:
                            keep(flight.value)
                    finally:
                        del self._under_way[key]
            flight.landed.release()
            del flight


def _is_overdue(error: Exception) -> bool:
    """Tell whether it was the leader's own time that was up, also where that is told in other words."""
    return isinstance(error, DeadlineExceeded) or isinstance(error.__cause__, DeadlineExceeded)


class _Flight(Generic[V]):
    """One fetch. ``landed`` is locked until it has ended."""

    __slots__ = ("error", "landed", "value")

    value: V

    def __init__(self) -> None:
        self.landed = threading.Lock()
        self.landed.acquire()
        self.error: BaseException | None = None
