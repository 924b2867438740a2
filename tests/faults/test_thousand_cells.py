# SPDX-License-Identifier: Apache-2.0
"""Many more cells than may be open at a time: no request goes astray, and neither connections nor memory pile up.

Most requests are for a few cells at a time, which are others after a while, and some for any cell: so cells are opened
and closed all the time. What is open is asked at the kernel.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import resource
import shutil
import sqlite3
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from oslo_config import cfg
from sqlalchemy import event, insert, text

from cellmw import CellFilter, database, deploy
from cellmw import conf as options
from cellmw.store import models
from tests.faults.figures import show
from tests.faults.pool_world import new_seed, until
from tests.functional.conftest import PROJECT, Exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from _typeshed.wsgi import StartResponse

    from cellmw.cell import Cell
    from cellmw.handles import Handles

CELLS = 1000
INSTANCES_PER_CELL = 4
REQUESTS = 200_000
THREADS = 8
MAX_OPEN_CELLS = 64
CONNECTIONS_PER_CELL = 5
"""How many an engine keeps; what goes beyond that is closed when it is given back."""

READ_EVERY = 10
"""Of so many requests one reads from its cell."""

BUSY_CELLS = 48
"""How many cells most requests are for."""

BUSY_FOR = 20_000
"""How many requests it takes until they are others."""

ELSEWHERE = 0.04
"""How many requests are for any cell."""

WARM_UP = REQUESTS // 4
"""After so many requests all is there that has to grow."""


class Place(NamedTuple):
    """An instance, and the cell that it is in."""

    instance_uuid: str
    cell_name: str
    cell_uuid: str


class Deployment:
    """An API database and all the cells, each with its instances' rows. Lives as long as the test.

    :ivar conf: the configuration
    :ivar places: all instances, by the numbers of their cells
    """

    def __init__(self, folder: Path) -> None:
        """Make them: the cells' files are copies of one, in which there is nothing yet."""
        self._folder = folder
        self.conf = cfg.ConfigOpts()
        self.conf([], project="cellmw", default_config_files=[], default_config_dirs=[])
        options.register_opts(self.conf)
        for group in (options.API_DATABASE, options.CELL_DATABASE):
            self.conf.set_override("sqlite_synchronous", False, group=group)
        self.conf.set_override("connection", f"sqlite:///{folder}/api.sqlite", group=options.API_DATABASE)
        self.conf.set_override("max_pool_size", CONNECTIONS_PER_CELL, group=options.CELL_DATABASE)
        self.conf.set_override("max_open_cells", MAX_OPEN_CELLS, group=options.GROUP)
        self.conf.set_override("mapping_cache_size", CELLS, group=options.GROUP)
        template = folder / "template.sqlite"
        with closing(sqlite3.connect(template)) as connection:
            connection.execute("CREATE TABLE instances (uuid VARCHAR(36) PRIMARY KEY, cell VARCHAR(255))")
        self.places = [
            [Place(str(uuid.uuid4()), f"cell{number}", cell_uuid) for _ in range(INSTANCES_PER_CELL)]
            for number in range(CELLS)
            for cell_uuid in [str(uuid.uuid4())]
        ]
        for (place, *_), instances in zip(self.places, self.places, strict=True):
            with closing(sqlite3.connect(shutil.copy(template, self._file(place.cell_name)))) as connection, connection:
                connection.execute("PRAGMA synchronous = OFF")
                rows = [(each.instance_uuid, each.cell_name) for each in instances]
                connection.executemany("INSERT INTO instances VALUES (?, ?)", rows)
        with deploy.store(self.conf) as store:
            models.metadata.create_all(store.engine)
            with store.engine.begin() as connection:
                connection.execute(insert(models.cell_mappings), list(self._cells()))
                connection.execute(insert(models.instance_mappings), list(self._instances()))

    def _cells(self) -> Iterator[dict[str, Any]]:
        for number, (place, *_) in enumerate(self.places, 1):
            yield {
                "id": number,
                "uuid": place.cell_uuid,
                "name": place.cell_name,
                "transport_url": f"memory://{place.cell_name}/",
                "database_connection": f"sqlite:///{self._file(place.cell_name)}",
            }

    def _instances(self) -> Iterator[dict[str, Any]]:
        for number, places in enumerate(self.places, 1):
            for place in places:
                yield {"instance_uuid": place.instance_uuid, "cell_id": number, "project_id": PROJECT}

    def _file(self, cell_name: str) -> Path:
        return self._folder / f"{cell_name}.sqlite"


class Open:
    """How many handles are open at a time, closing ones included. Lives as long as the test; any thread may count."""

    def __init__(self) -> None:
        """Begin with none."""
        self._lock = threading.Lock()
        self.now = self.peak = self.ever = 0
        self.cells: set[int] = set()

    def open(self, cell: Cell, *how: Any) -> Handles:
        """Open the handles of a cell."""
        handles = deploy.open_handles(cell, *how)
        event.listen(handles.engine, "engine_disposed", self._closed)
        with self._lock:
            self.now += 1
            self.ever += 1
            self.peak = max(self.peak, self.now)
            self.cells.add(cell.id)
        return handles

    def _closed(self, _: object) -> None:
        with self._lock:
            self.now -= 1


class Peak:
    """The largest of some numbers. Lives as long as the test."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.value = 0

    def see(self, value: int) -> None:
        """Look at one more."""
        if value > self.value:
            self.value = value


def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Say where the request was taken to, and of some what the cell's database knows of the instance."""
    trip, context = environ["cellmw.target"], environ["cellmw.context"]
    row = ""
    if environ["test.reads"]:
        with database.reader(context) as session:
            query = text("SELECT cell FROM instances WHERE uuid = :uuid")
            row = session.scalar(query, {"uuid": trip.instance_uuid})
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{trip.cell.name} {context.cell_uuid} {row}".encode()]


class Choice:
    """Which instance a request is for. Lives as long as the test; shared by all threads, whose order it does not know.

    Each step of an iterator is one of the interpreter's, so no lock guards them.
    """

    def __init__(self, places: list[list[Place]], chance: random.Random) -> None:
        """Put the cells into an order."""
        self._places = places
        self._chance = chance
        self._requests = itertools.count()
        self._cells = chance.sample(range(CELLS), CELLS)
        self._elsewhere = itertools.cycle(self._cells)

    def next(self) -> Place:
        """Choose for the next request."""
        request, chance = next(self._requests), self._chance.random()
        if chance < ELSEWHERE:
            cell = next(self._elsewhere)
        else:
            begin = request // BUSY_FOR * BUSY_CELLS
            cell = self._cells[(begin + int(chance * 10**6) % BUSY_CELLS) % CELLS]
        return self._places[cell][request % INSTANCES_PER_CELL]


class Client:
    """One thread's share of the requests. Lives as long as they take.

    :ivar wrong: the answers that were not as they should be
    """

    def __init__(self, cell_filter: CellFilter, choice: Choice, watch: Callable[[], None]) -> None:
        """Send nothing yet.

        :param watch: called now and then, in the middle of everything
        """
        self.wrong: list[tuple[Place, str, bytes]] = []
        self._filter = cell_filter
        self._choice = choice
        self._watch = watch

    def send(self, count: int) -> None:
        """Send so many requests, and look at each answer."""
        for sent in range(count):
            place, reads = self._choice.next(), sent % READ_EVERY == 0
            answer = Exchange(f"/servers/{place.instance_uuid}", headers={"test.reads": reads}).fetch(self._filter)
            row = place.cell_name if reads else ""
            if answer.code != 200 or answer.content != f"{place.cell_name} {place.cell_uuid} {row}".encode():
                self.wrong.append((place, answer.status, answer.content))
            if sent % 100 == 0:
                self._watch()


def memory() -> tuple[int, int]:
    """Return how many blocks Python has in use, and how many bytes of memory the process has."""
    gc.collect()
    with open("/proc/self/statm") as statm:
        resident = int(statm.read().split()[1]) * resource.getpagesize()
    return sys.getallocatedblocks(), resident


def descriptors() -> int:
    """Return how many files and sockets this process has open."""
    return len(os.listdir("/proc/self/fd"))


@dataclass(frozen=True)
class Story:
    """What was seen of all the requests.

    :ivar figures: for people to read
    :ivar wrong: the answers that were not as they should be
    :ivar leases: how many are open in the end
    :ivar cells: how many cells were opened
    :ivar open_cells: how many could be leased at once, at most
    :ivar open_handles: how many handles were open at most, with those that were being closed
    :ivar left_open: how many handles are open after the end
    :ivar descriptors: how many files were open at most, besides those that are open without cells
    :ivar blocks: how many of Python's blocks of memory are in use in the end that were not after the warm-up
    :ivar bytes: by how many bytes the process has grown meanwhile
    """

    figures: dict[str, Any]
    wrong: list[Any]
    leases: int
    cells: int
    open_cells: int
    open_handles: int
    left_open: int
    descriptors: int
    blocks: int
    bytes: int


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """All the requests were sent, and everything was closed."""
    seed = new_seed()
    deployment = Deployment(tmp_path_factory.mktemp("cells"))
    before = descriptors()
    handles, open_cells, files = Open(), Peak(), Peak()
    cells = deploy.cells(deployment.conf, opener=handles.open)
    cell_filter = CellFilter(app, deployment.conf)
    cell_filter.close()
    cell_filter.use(cells)

    def watch() -> None:
        open_cells.see(len(cells._pool.handles))
        files.see(descriptors())

    choice = Choice(deployment.places, random.Random(seed))
    clients = [Client(cell_filter, choice, watch) for _ in range(THREADS)]
    with closing(cells), ThreadPoolExecutor(THREADS) as threads:

        def send(count: int) -> float:
            begin = monotonic()
            for sent in [threads.submit(client.send, count // THREADS) for client in clients]:
                sent.result()
            end = monotonic()
            until(lambda: handles.now <= MAX_OPEN_CELLS)
            return end - begin

        seconds = send(WARM_UP)
        blocks, resident = memory()
        seconds += send(REQUESTS - WARM_UP)
        blocks_more, resident_more = (now - then for now, then in zip(memory(), (blocks, resident), strict=True))
        leases = cells.leases
    figures = {
        "seed": seed,
        "requests": REQUESTS,
        "requests per second": round(REQUESTS / seconds),
        "cells": len(handles.cells),
        "handles opened": handles.ever,
        "cells open at most": open_cells.value,
        "handles open at most, with those being closed": handles.peak,
        "descriptors at most": files.value - before,
        "memory blocks more": blocks_more,
        "memory MB more": round(resident_more / 2**20, 1),
        "memory MB": round(resident / 2**20, 1),
    }
    return Story(
        figures,
        wrong=[wrong for client in clients for wrong in client.wrong],
        leases=leases,
        cells=len(handles.cells),
        open_cells=open_cells.value,
        open_handles=handles.peak,
        left_open=handles.now,
        descriptors=files.value - before,
        blocks=blocks_more,
        bytes=resident_more,
    )


def test_no_wrong_cell(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 200,000 requests, for instances in each of 1,000 cells, all are answered, and none by a wrong cell."""
    show(capsys, story.figures)
    assert story.wrong == []
    assert story.cells == CELLS


def test_no_lease_is_left(story: Story) -> None:
    """In the end no lease and no handle is open."""
    assert (story.leases, story.left_open) == (0, 0)


def test_open_cells(story: Story) -> None:
    """Never more than 64 cells are open."""
    assert story.open_cells == MAX_OPEN_CELLS


def test_handles_being_closed(story: Story) -> None:
    """Handles that are being closed don't pile up: there are never as many of them again."""
    assert story.open_handles <= 2 * MAX_OPEN_CELLS + THREADS


def test_connections(story: Story) -> None:
    """That bounds the connections, which the kernel counts: few cells have more than one, and that not for long."""
    assert story.descriptors <= 2 * (2 * MAX_OPEN_CELLS + THREADS)


def test_memory(story: Story) -> None:
    """Memory does not grow by the number of requests: not by an object for every fifth of them."""
    assert story.blocks < (REQUESTS - WARM_UP) / 5
    assert story.bytes < 64 * 2**20
