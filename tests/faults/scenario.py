# SPDX-License-Identifier: Apache-2.0
"""A victim and a fault -> what became of the requests before, in and after it: the outage.

Load runs over all cells a few seconds before a server is taken away, while it is away, and until its cell is whole
again. Nothing of ours is started anew.
"""

from __future__ import annotations

import functools
import math
import socket
import threading
from collections import Counter
from contextlib import ExitStack, closing
from time import monotonic
from typing import TYPE_CHECKING, Any

from tests.faults.load import Load
from tests.faults.rig import CELLS, NOWHERE, SICK, App

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.faults.load import Request
    from tests.faults.rig import Rig, Victim

BEFORE = 3.0
"""Seconds of load before the fault."""

FAULT = 6.0
"""Seconds for which the server is away; after that it has to start, where it was killed."""

PILE = 10
"""How many messages wait in a cell's queue, acknowledged and not yet taken, when its broker is taken away."""

RECOVERY = 30.0
"""Seconds after which the cell is given up."""

ARRIVAL = 20.0
"""Seconds for which a message that was acknowledged is waited for."""


class BlackHole:
    """Takes connections at a port, and never says anything. Lives until its ``close()``."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self._taken: list[socket.socket] = []
        self._thread = threading.Thread(target=self._take, name="black hole", daemon=True)
        self._thread.start()

    def _take(self) -> None:
        while True:
            try:
                self._taken.append(self._listener.accept()[0])
            except OSError:
                return  # it was closed

    def close(self) -> None:
        """Hang up, and leave the port to another."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self._taken:
            connection.close()


def killed(victim: Victim) -> Callable[[], None]:
    """Kill the server; it starts again with what it had."""
    victim.process.kill()
    return victim.process.restart


def frozen(victim: Victim) -> Callable[[], None]:
    """Freeze the server with all its processes."""
    victim.process.freeze()
    return victim.process.thaw


def black_hole(victim: Victim) -> Callable[[], None]:
    """Kill the server, and put something in its place that takes connections and never says anything."""
    victim.process.kill()
    hole = BlackHole(victim.port)

    def undo() -> None:
        hole.close()
        victim.process.restart()

    return undo


FAULTS: dict[str, Callable[[Victim], Callable[[], None]]] = {
    "killed": killed,
    "frozen": frozen,
    "black hole": black_hole,
}
"""What can happen to a server. Each does it, and returns what undoes it."""


class Outage:
    """What became of the requests and messages while a server was away. Lives as long as the tests that look at it.

    :ivar sick: the cell whose server it was; :data:`NOWHERE` for the API database
    :ivar struck: when the server was taken away, or, where it is a broker, when its worker began to take no messages
    :ivar waiting: how many messages had been acknowledged and not yet taken when it was a broker
    :ivar back: when it answered again
    :ivar recovered: whether all was well in the end
    :ivar stuck: the clients who never got an answer
    :ivar leases: how many there were in the end
    """

    def __init__(self, rig: Rig, victim: str, fault: str) -> None:
        """Have it happen."""
        self.victim, self.fault, self.sick = victim, fault, SICK[victim]
        self._app = App()
        self._workers = rig.workers
        with ExitStack() as exits:
            cell_filter = exits.enter_context(closing(rig.make_filter(self._app)))
            with Load(rig, cell_filter) as load:
                self._cast_to = load.cast_to
                self.began = self._warm_up(load)
                load.go_on(BEFORE)
                self.struck = monotonic()
                undo = self._strike(rig, load)
                try:
                    load.go_on(FAULT)
                finally:
                    undo()
                self.back = monotonic()
                self.recovered = load.wait_until(lambda: load.all_is_well(self.back), RECOVERY)
            self.stuck = load.stuck
            self.requests = load.requests
            self.leases = cell_filter.cells.leases
            load.wait_until(lambda: not self.missing(), ARRIVAL)

    def _strike(self, rig: Rig, load: Load) -> Callable[[], None]:
        """Have the fault happen; return what undoes it."""
        strike = functools.partial(FAULTS[self.fault], rig.victims[self.victim])
        self.waiting = 0
        if self.victim != "broker":
            return strike()
        with rig.workers[self.sick].paused():
            load.wait_until(lambda: len(self.missing()) >= PILE, RECOVERY)
            self.waiting = len(self.missing())
            return strike()

    def _warm_up(self, load: Load) -> float:
        """Wait until all connections are there; return when they were."""
        began = monotonic()
        if not load.wait_until(lambda: load.all_is_well(began), RECOVERY):
            raise TimeoutError(f"not all is well without a fault: {lost(load.requests)}")
        return monotonic()

    def of(self, *cells: str) -> list[Request]:
        """Return the requests in these cells."""
        return [request for request in self.requests if request.cell in cells]

    @property
    def healthy(self) -> list[str]:
        """The cells that have all their servers, and what stands for one."""
        return [cell for cell in (*CELLS, NOWHERE) if cell != self.sick]

    def arrived(self) -> list[tuple[str, int]]:
        """Return the cells that messages have arrived in until now, with their numbers, as often as they have."""
        return [
            (cell, number)
            for cell, worker in self._workers.items()
            for number in worker.received()
            if number in self._cast_to
        ]

    def missing(self) -> set[int]:
        """Return what was acknowledged and has not arrived in its cell."""
        arrived = set(self.arrived())
        acknowledged = [number for number, what in self._app.casts.copy().items() if what == "acknowledged"]
        return {number for number in acknowledged if (self._cast_to[number], number) not in arrived}

    def astray(self) -> set[int]:
        """Return what has arrived in a cell that is not its own."""
        return {number for cell, number in self.arrived() if self._cast_to[number] != cell}

    def risen(self) -> set[int]:
        """Return what has arrived although it was not sent, as was said, or never got as far as that."""
        return {number for _, number in self.arrived() if self._app.casts.get(number, "no") == "no"}

    @property
    def recovery(self) -> float | None:
        """Seconds from when the server answered again to the end of the first request after which all were good."""
        bad = [request.start for request in self.of(self.sick) if not request.good]
        last = max(bad, default=0.0)
        ends = {}
        for request in self.of(self.sick):
            if request.good and request.start > last:
                ends[request.kind] = min(request.end, ends.get(request.kind, math.inf))
        return round(max(0.0, max(ends.values()) - self.back), 2) if self.recovered else None

    def figures(self) -> dict[str, Any]:
        """Return what there is to be said of it."""
        healthy, sick = self.of(*self.healthy), self.of(self.sick)
        casts = self._app.casts.values()
        arrived = [number for _, number in self.arrived()]
        return {
            "victim": self.victim,
            "fault": self.fault,
            "sick": self.sick,
            "requests": len(self.requests),
            "lost": {cell: sum(not request.good for request in self.of(cell)) for cell in self.healthy},
            "healthy_ms": self._times(healthy),
            "sick_ms": self._times(sick),
            "sick_answers": {
                status: sum(request.status == status for request in sick)
                for status in sorted({request.status for request in sick})
            },
            "longest_sick_s": round(max(request.took for request in sick), 2),
            "recovery_s": self.recovery,
            "casts": {what: sum(one == what for one in casts) for what in ("acknowledged", "unknown", "no")},
            "waiting": self.waiting,
            "arrived": len(set(arrived)),
            "duplicated": len(arrived) - len(set(arrived)),
        }

    def _times(self, requests: list[Request]) -> dict[str, float | None]:
        before = [request.took for request in requests if self.began <= request.start and request.end < self.struck]
        during = [request.took for request in requests if self.struck <= request.end and request.start < self.back]
        return {
            f"p{percent} {when}": percentile(times, percent)
            for when, times in (("before", before), ("in the fault", during))
            for percent in (50, 99)
        }


def lost(requests: Iterable[Request]) -> Counter[str]:
    """Return what became of those that did not get what they wanted, and how often it did."""
    return Counter(
        f"{one.kind} in {one.cell}: {one.status} {one.wrong[:200]}".rstrip() for one in requests if not one.good
    )


def percentile(times: Iterable[float], percent: int) -> float | None:
    """Return the milliseconds within which this many of a hundred were answered."""
    ordered = sorted(times)
    if not ordered:
        return None
    return round(1000 * ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 1)
