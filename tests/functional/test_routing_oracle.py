# SPDX-License-Identifier: Apache-2.0
"""The routing oracle: many threads, many requests in random order, and every answer compared with the mapping.

What the answers are checked against was written into the API database by the test and is never read back through the
code that is tested.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.functional.conftest import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _typeshed.wsgi import StartResponse

    from cellmw import CellFilter
    from cellmw.cells import Cells
    from tests.functional.conftest import Api, Deployment, Exchange

LOG = logging.getLogger(__name__)

CELLS = [f"cell{number}" for number in range(1, 9)]
THREADS = 16
REQUESTS = 20_000
INSTANCES = 50
"""In each cell."""

SMALL_CACHE = {"mapping_cache_size": "150", "mapping_ttl": "0.5"}
"""Too small and too short for these instances, so that mappings are looked up all the time, by several threads."""


@pytest.fixture
def seed() -> int:
    """What makes the order of the requests: another each time, or the one in CELLMW_TEST_SEED."""
    return int(os.environ.get("CELLMW_TEST_SEED") or random.SystemRandom().randrange(2**32))


@pytest.fixture
def mapped(deployment: Deployment) -> dict[str, str]:
    """Instances in eight cells: uuid -> the name of the cell."""
    for cell in CELLS:
        if cell not in deployment.cells:
            deployment.add_cell(cell)
    return {deployment.map(cell): cell for cell in CELLS for _ in range(INSTANCES)}


class App:
    """Asks the database and the queue which cell this is, and answers in one of several ways. Shared by the threads."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.cells: Cells | None = None

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        answers: Callable[[Any], Iterator[str]] = getattr(self, f"_{environ['test.answer']}")
        chunks = (answer.encode() for answer in answers(environ["cellmw.context"]))
        return list(chunks) if environ["test.whole"] else chunks

    def _database(self, context: Any) -> Iterator[str]:
        yield self._api.database(context)
        yield self._api.database(context)

    def _queue(self, context: Any) -> Iterator[str]:
        yield self._api.queue(context)

    def _both(self, context: Any) -> Iterator[str]:
        yield self._api.database(context)
        yield self._api.queue(context)

    def _elsewhere(self, context: Any) -> Iterator[str]:
        """Go to another cell in between, whose answer names it, and come back."""
        yield self._api.database(context)
        assert self.cells is not None
        other = self.cells.get(random.choice(CELLS))
        with self.cells.target(context, other) as targeted:
            assert (self._api.database(targeted), self._api.queue(targeted)) == (other.name, other.name)
        yield self._api.queue(context)


class Client:
    """One thread's share of the requests. Lives as long as they take."""

    def __init__(
        self, cell_filter: CellFilter, exchange: type[Exchange], mapped: dict[str, str], chance: random.Random
    ) -> None:
        self._filter = cell_filter
        self._exchange = exchange
        self._mapped = mapped
        self._chance = chance
        self.asked = 0
        self.wrong: list[tuple[str, list[bytes]]] = []

    def run(self, together: threading.Barrier) -> None:
        """Send every request, and compare its answer."""
        together.wait()
        for _ in range(REQUESTS // THREADS):
            instance_uuid = self._chance.choice(list(self._mapped))
            answers = self._ask(instance_uuid)
            self.asked += 1
            if set(answers) != {self._mapped[instance_uuid].encode()}:
                self.wrong.append((instance_uuid, answers))

    def _ask(self, instance_uuid: str) -> list[bytes]:
        """Read the whole body, or leave after the first chunk."""
        environ = {
            "test.answer": self._chance.choice(["database", "queue", "both", "elsewhere"]),
            "test.whole": self._chance.random() < 0.5,
        }
        exchange = self._exchange(f"/servers/{instance_uuid}", headers=environ).send(self._filter)
        try:
            leaves = self._chance.random() < 0.25
            return [next(iter(exchange.body))] if leaves else list(exchange.body)
        finally:
            exchange.close()


def test_oracle(
    mapped: dict[str, str],
    make_filter: Callable[..., CellFilter],
    exchange: type[Exchange],
    api: Api,
    seed: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of 20,000 requests by 16 threads over 8 cells none is answered out of a wrong cell, and no lease is left open."""
    caplog.set_level(logging.INFO, __name__)
    LOG.info("CELLMW_TEST_SEED=%d repeats this order", seed)
    app = App(api)
    cell_filter = make_filter(app, **SMALL_CACHE)
    app.cells = cell_filter.cells
    clients = [Client(cell_filter, exchange, mapped, random.Random(seed + number)) for number in range(THREADS)]
    together = threading.Barrier(THREADS)
    with closing(Workers(CELLS)), ThreadPoolExecutor(THREADS) as threads:
        for running in [threads.submit(client.run, together) for client in clients]:
            running.result()
    assert [wrong for client in clients for wrong in client.wrong] == []
    assert sum(client.asked for client in clients) == REQUESTS
    assert cell_filter.cells.leases == 0
