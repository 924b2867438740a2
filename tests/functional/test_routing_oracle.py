# SPDX-License-Identifier: Apache-2.0
"""The routing oracle: many threads, many requests in random order, and every answer compared with the mapping.

What the answers are checked against was written into the API database by the test and is never read back through the
code that is tested.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.functional.conftest import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _typeshed.wsgi import StartResponse

    from cellmw import CellFilter
    from tests.functional.conftest import Api, Deployment, Exchange

LOG = logging.getLogger(__name__)

CELLS = [f"cell{number}" for number in range(1, 9)]
THREADS = 16
REQUESTS = int(os.environ.get("CELLMW_TEST_ORACLE_REQUESTS", "20000"))
"""How many requests all threads send together; ``make oracle`` sends a million."""

INSTANCES = 50
"""In each cell."""

SMALL_CACHE = {"mapping_cache_size": "300", "mapping_ttl": "2"}
"""Too small and too short for all instances, so that mappings go and come all the time."""


@pytest.fixture
def seed(caplog: pytest.LogCaptureFixture) -> int:
    """What makes the order of the requests: another each time, or that in CELLMW_TEST_SEED. A failure shows it."""
    caplog.set_level(logging.INFO, __name__)
    seed = int(os.environ.get("CELLMW_TEST_SEED") or random.SystemRandom().randrange(2**32))
    LOG.info("CELLMW_TEST_SEED=%d repeats this order", seed)
    return seed


@pytest.fixture
def mapped(deployment: Deployment) -> dict[str, str]:
    """Instances in eight cells: uuid -> the name of the cell."""
    for cell in CELLS:
        if cell not in deployment.cells:
            deployment.add_cell(cell)
    return {deployment.map(cell): cell for cell in CELLS for _ in range(INSTANCES)}


class App:
    """Asks the cell's database, then sends to the cell's queue or asks that, too. Shared by all threads.

    In its environ it finds whether its answer is to be whole, a list, or a generator; and it leaves there what it has
    sent, each time with None for the cell of the request, or with the other cell that it went to in between.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        answers = self._answers(environ)
        return list(answers) if environ["test.whole"] else answers

    def _answers(self, environ: dict[str, Any]) -> Iterator[bytes]:
        context, instance_uuid = environ["cellmw.context"], environ["cellmw.target"].instance_uuid
        yield self._api.database(context).encode()
        if environ["test.elsewhere"]:
            self._go_elsewhere(environ, context, instance_uuid)
            yield self._api.database(context).encode()
        if environ["test.call"]:
            yield self._api.queue(context).encode()
        else:
            self._api.reboot(context, instance_uuid)
            environ["test.sent"].append(None)

    def _go_elsewhere(self, environ: dict[str, Any], context: Any, instance_uuid: str) -> None:
        cells = environ["cellmw.cells"]
        cell = environ["test.elsewhere"]
        with cells.target(context, cells.get(cell)) as targeted:
            assert self._api.database(targeted) == cell
            self._api.reboot(targeted, instance_uuid)
        environ["test.sent"].append(cell)


class Client:
    """One thread's share of the requests. Lives as long as they take.

    :ivar filter: the filter that all clients share
    :ivar asked: how many there were
    :ivar wrong: the instances that got a wrong answer, with that
    :ivar sent: (cell, instance uuid) -> how many messages have to arrive in that cell
    """

    def __init__(
        self, cell_filter: CellFilter, exchange: type[Exchange], mapped: dict[str, str], chance: random.Random
    ) -> None:
        self.filter = cell_filter
        self._exchange = exchange
        self._mapped = mapped
        self._chance = chance
        self.asked = 0
        self.wrong: list[tuple[str, list[bytes]]] = []
        self.sent: Counter[tuple[str, str]] = Counter()

    def run(self, together: threading.Barrier) -> None:
        """Send every request, and compare its answer."""
        instances = list(self._mapped)
        together.wait()
        for _ in range(REQUESTS // THREADS):
            self._ask(self._chance.choice(instances))
            self.asked += 1

    def _ask(self, instance_uuid: str) -> None:
        cell = self._mapped[instance_uuid]
        environ = {
            "test.whole": self._chance.random() < 0.5,
            "test.call": self._chance.random() < 0.1,
            "test.elsewhere": self._chance.choice(CELLS) if self._chance.random() < 0.05 else None,
            "test.sent": [],
        }
        exchange = self._exchange(f"/servers/{instance_uuid}", headers=environ).send(self.filter)
        answers = self._read(exchange)
        if set(answers) != {cell.encode()}:
            self.wrong.append((instance_uuid, answers))
        self.sent.update((elsewhere or cell, instance_uuid) for elsewhere in environ["test.sent"])

    def _read(self, exchange: Exchange) -> list[bytes]:
        """Read the whole body, or leave after the first chunk."""
        try:
            return [next(iter(exchange.body))] if self._chance.random() < 0.25 else list(exchange.body)
        finally:
            exchange.close()


@pytest.fixture
def workers(mapped: dict[str, str]) -> Iterator[Workers]:
    """A worker on each cell's queue. A message that the test does not take is a failure."""
    with closing(Workers({cell: f"memory://{cell}/" for cell in CELLS})) as workers:
        yield workers


@pytest.fixture
def clients(
    mapped: dict[str, str],
    make_filter: Callable[..., CellFilter],
    exchange: type[Exchange],
    api: Api,
    seed: int,
) -> list[Client]:
    """The clients of one pipeline, one for each thread."""
    cell_filter = make_filter(App(api), **SMALL_CACHE)
    return [Client(cell_filter, exchange, mapped, random.Random(seed + number)) for number in range(THREADS)]


def test_oracle(clients: list[Client], workers: Workers, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 20,000 requests by 16 threads over 8 cells none reads from a wrong database or sends to a wrong queue."""
    together = threading.Barrier(THREADS)
    start = time.monotonic()
    with ThreadPoolExecutor(THREADS) as threads:
        for running in [threads.submit(client.run, together) for client in clients]:
            running.result()
    sent = sum((client.sent for client in clients), Counter())
    arrived = Counter(workers.next()[:2] for _ in range(sent.total()))
    wrong = [wrong for client in clients for wrong in client.wrong]
    if "CELLMW_TEST_ORACLE_REQUESTS" in os.environ:
        figures = {
            "requests": sum(client.asked for client in clients),
            "threads": THREADS,
            "cells": len(CELLS),
            "seconds": round(time.monotonic() - start),
            "wrong answers": len(wrong),
            "messages": sent.total(),
            "messages gone astray": ((sent - arrived) + (arrived - sent)).total(),
            "leases left open": clients[0].filter.cells.leases,
        }
        with capsys.disabled():
            print("", json.dumps(figures), sep="\n")  # noqa: T201 - this is what it is run for
    assert wrong == []
    assert arrived == sent
    assert sum(client.asked for client in clients) == REQUESTS
    assert clients[0].filter.cells.leases == 0
