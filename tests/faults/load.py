# SPDX-License-Identifier: Apache-2.0
"""A filter -> what becomes of requests that clients send to all cells, all the time, one after the other."""

from __future__ import annotations

import itertools
import threading
import uuid
from time import monotonic, sleep
from typing import TYPE_CHECKING, NamedTuple, Self

from tests.faults.rig import CELLS, NOWHERE
from tests.functional.conftest import Exchange

if TYPE_CHECKING:
    from collections.abc import Callable

    from cellmw import CellFilter
    from tests.faults.rig import Rig
    from tests.functional.conftest import Answer

KINDS = ("read", "cast", "call")
"""What is asked of an instance."""

CLIENTS = 2
"""How many clients there are of each kind in each cell, and for instances that are not mapped."""

PACE = 0.05
"""Seconds between an answer and the client's next request."""

ENOUGH = 5
"""How many good answers in a row, of each kind, make a cell a whole one."""

PATIENCE = 20
"""Seconds for which a request that is under way at the end is waited for."""


class Request(NamedTuple):
    """One request and what became of it, on the clock of ``time.monotonic()``."""

    cell: str
    kind: str
    start: float
    end: float
    status: int
    """500 where the app has raised an error."""
    wrong: str
    """What is wrong with the answer, or the error; empty for a good one, and for a 503 as it should be."""

    @property
    def good(self) -> bool:
        """Whether the client got what it wanted."""
        return not self.wrong and self.status != 503

    @property
    def took(self) -> float:
        """Seconds."""
        return self.end - self.start


class Load:
    """Clients at all cells, and some that ask for what is nowhere. Lives as long as its ``with`` block.

    :ivar cast_to: in which cell the number of each cast was an instance's
    :ivar stuck: after the block: the clients whose last request has not ended
    """

    numbers = itertools.count(1)
    """The numbers of the casts: each is used once, whatever load it is in."""

    def __init__(self, rig: Rig, cell_filter: CellFilter) -> None:
        """Send nothing yet."""
        self.cast_to: dict[int, str] = {}
        self.stuck: list[str] = []
        self._rig = rig
        self._filter = cell_filter
        self._over = threading.Event()
        self._requests: dict[tuple[str, str], list[Request]] = {
            (cell, kind): [] for cell, kind in [*itertools.product(CELLS, KINDS), (NOWHERE, "read")]
        }
        self._clients = [
            threading.Thread(target=self._work, args=(cell, kind), name=f"{kind} in {cell}", daemon=True)
            for cell, kind in self._requests
            for _ in range(CLIENTS)
        ]

    @property
    def requests(self) -> list[Request]:
        """Those that have ended."""
        return list(itertools.chain.from_iterable(self._requests.values()))

    def __enter__(self) -> Self:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        deadline = monotonic() + PATIENCE
        for client in self._clients:
            client.join(max(0.0, deadline - monotonic()))
            if client.is_alive():
                self.stuck.append(client.name)

    def wait_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Return, at the latest after this many seconds, whether it has come true."""
        deadline = monotonic() + timeout
        while not (true := condition()) and monotonic() < deadline:
            sleep(PACE / 5)
        return true

    def go_on(self, seconds: float) -> None:
        """Let the clients work for this long."""
        self._over.wait(seconds)

    def all_is_well(self, since: float) -> bool:
        """Tell whether enough of the last requests of each kind in each cell were good, all begun since then."""
        last = [requests[-ENOUGH:] for requests in self._requests.values()]
        return all(
            len(requests) == ENOUGH and all(request.good and request.start >= since for request in requests)
            for requests in last
        )

    def _work(self, cell: str, kind: str) -> None:
        instances = itertools.cycle(self._rig.instances.get(cell, ()))
        while not self._over.is_set():
            self._requests[cell, kind].append(self._send(cell, kind, next(instances, None) or str(uuid.uuid4())))
            self._over.wait(PACE)

    def _send(self, cell: str, kind: str, instance: str) -> Request:
        path = f"/servers/{instance}/{kind}"
        if kind == "cast":
            number = next(self.numbers)
            self.cast_to[number] = cell
            path += f"/{number}"
        start = monotonic()
        try:
            answer = Exchange(path).fetch(self._filter)
        except Exception as error:  # noqa: BLE001 - any error of the app is a request that was lost
            return Request(cell, kind, start, monotonic(), 500, f"{type(error).__name__}: {error}")
        end = monotonic()
        return Request(cell, kind, start, end, answer.code, _what_is_wrong(cell, kind, answer))


def _what_is_wrong(cell: str, kind: str, answer: Answer) -> str:
    if answer.code == 503:
        return "" if "Retry-After" in answer.headers else "a 503 without Retry-After"
    if cell == NOWHERE:
        return "" if answer.code == 404 else answer.status
    expected = cell + cell if kind == "call" else cell
    if answer.code == 200 and answer.content == expected.encode():
        return ""
    return f"{answer.status}: {answer.content!r}"
