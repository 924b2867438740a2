# SPDX-License-Identifier: Apache-2.0
"""Requests, changes, failures and forks in any order: no lease is lost or released twice, and nothing is routed wrong.

The order is drawn from a seed, which is shown where a test fails. One test takes one step at a time, and compares each
with a model of what has to be so then; the other one does what it does in many threads, and looks at what is left.
"""

from __future__ import annotations

import gc
import itertools
import logging
import random
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cellmw import RequestContext
from cellmw.deadline import after
from cellmw.exceptions import CellMisconfigured, CellNotFound, CellsClosed, DeadlineExceeded, LeaseClosed
from tests.faults.figures import show
from tests.faults.pool_model import Generation, Model, Refusal
from tests.faults.pool_world import Request, World, in_child, new_seed, place_of, until
from tests.functional.conftest import PATIENCE, PROJECT, Api

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cellmw.lease import Lease
    from tests.faults.pool_world import Place

REQUESTS = 10_000
"""How many there are at least, each of which gets a lease: for the machine, and for the threads."""

MAX_CELLS = 6
MAX_OPEN_CELLS = 4
MAX_LEASES_PER_CELL = 4
FORKS = [0, 0, 2]
"""How many forks there may be in an example, one of these: a fork takes as long as a hundred requests."""

CLIENTS = 8
ROUNDS = 55
REQUESTS_PER_ROUND = 25
FORK_EVERY = 10

LONG = 1000.0
"""Seconds after which a cell is idle; nothing in these tests lasts as long."""

NEVER_THERE = 10**6
"""The id of no cell."""

NUMBERS = st.integers(0, 59)
"""Which one of what there is, as a remainder: up to six of anything have the same chance."""

OPTIONS = {
    "refresh_interval": LONG,
    "max_open_cells": MAX_OPEN_CELLS,
    "max_leases_per_cell": MAX_LEASES_PER_CELL,
    "idle_timeout": LONG,
}


@dataclass
class Stream:
    """A request that is under way, or was.

    :ivar generation: what it has to use
    """

    request: Request
    generation: Generation


class PoolMachine(RuleBasedStateMachine):
    """A process that uses cells, and a model of it. Lives as long as an example."""

    folder: ClassVar[Path]
    done: ClassVar[Counter[str]]

    @initialize(cells=st.integers(2, MAX_CELLS), patient=st.booleans(), forks=st.sampled_from(FORKS))
    def begin(self, cells: int, patient: bool, forks: int) -> None:
        """Record some cells."""
        self.world = World(self.folder, **OPTIONS, drain_timeout=PATIENCE if patient else 0.0)
        self.model = Model(MAX_OPEN_CELLS, MAX_LEASES_PER_CELL)
        self.patient = patient
        self.streams: list[Stream] = []
        self.ended: list[Stream] = []
        self.uuids: dict[int, str] = {}
        self.places: dict[int, list[Place]] = {}
        self.forks = forks
        for _ in range(cells):
            self.new_cell()

    def teardown(self) -> None:
        """End all requests, and the process: nothing is open then, and what was taken was given back once."""
        if not hasattr(self, "world"):
            return
        for stream in self.streams:
            stream.request.lease.release()
        try:
            assert self.world.cells.leases == 0
            assert self.world.everything_arrived() == {}
        finally:
            self.world.close()
        for opened in self.world.opened:
            begun, ended = opened.leases.counts
            assert begun == ended
            assert opened.closings == [1, 1]
        self.done["examples"] += 1

    # What happens to the records

    @precondition(lambda self: len(self.model.recorded) < MAX_CELLS)
    @rule()
    def new_cell(self) -> None:
        """There is one cell more."""
        cell = self.world.new_cell()
        place = self.model.recorded[cell.id] = place_of(cell)
        self.uuids[cell.id] = cell.uuid
        self.places[cell.id] = [place]

    @precondition(lambda self: self.model.recorded)
    @rule(number=NUMBERS, what=st.sampled_from(["database", "queue", "both"]), refresh=st.booleans())
    def change(self, number: int, what: str, refresh: bool) -> None:
        """A cell gets another database, another queue, or both."""
        cell_id = self._cell(number)
        place = self.model.recorded[cell_id]
        if what != "queue":
            place = place._replace(database=self.world.new_database())
        if what != "database":
            place = place._replace(queue=self.world.new_queue())
        self._move(cell_id, place, refresh)

    @precondition(lambda self: self.model.recorded)
    @rule(number=NUMBERS, refresh=st.booleans())
    def change_back(self, number: int, refresh: bool) -> None:
        """A cell goes back to where it has been before, perhaps while requests are still under way there."""
        cell_id = self._cell(number)
        self._move(cell_id, self.places[cell_id][number % len(self.places[cell_id])], refresh)

    @precondition(lambda self: self.model.recorded)
    @rule(number=NUMBERS, disabled=st.booleans(), refresh=st.booleans())
    def rename(self, number: int, disabled: bool, refresh: bool) -> None:
        """A cell gets another name, and is disabled or enabled, which closes nothing."""
        self.world.store.update_cell(self.uuids[self._cell(number)], name=f"name-{number}", disabled=disabled)
        if refresh:
            self.refresh()

    @precondition(lambda self: self.model.recorded)
    @rule(number=NUMBERS, refresh=st.booleans())
    def delete_cell(self, number: int, refresh: bool) -> None:
        """A cell is deleted."""
        cell_id = self._cell(number)
        self.world.store.delete_cell(self.uuids.pop(cell_id))
        del self.model.recorded[cell_id]
        if refresh:
            self.refresh()

    @rule()
    def refresh(self) -> None:
        """The records are read anew."""
        self.world.cells.refresh()
        self.model.read()

    # Requests

    @rule(numbers=st.lists(NUMBERS, min_size=10, max_size=120))
    def requests(self, numbers: list[int]) -> None:
        """Requests come one after the other, and end."""
        for number in numbers:
            stream = self._begin(number)
            if stream is not None:
                self._use(stream)
                self._end(stream)

    @rule(numbers=st.lists(NUMBERS, min_size=1, max_size=4))
    def streams_begin(self, numbers: list[int]) -> None:
        """Requests come that go on for a while."""
        self.streams += [stream for number in numbers if (stream := self._begin(number)) is not None]

    @precondition(lambda self: self.streams)
    @rule(number=NUMBERS)
    def stream_goes_on(self, number: int) -> None:
        """A request uses its cell."""
        self._use(self.streams[number % len(self.streams)])

    @precondition(lambda self: self.streams)
    @rule(number=NUMBERS, in_thread=st.booleans())
    def stream_ends(self, number: int, in_thread: bool) -> None:
        """A request ends, in its own thread or where the server closes it."""
        stream = self.streams.pop(number % len(self.streams))
        if in_thread:
            with ThreadPoolExecutor(1) as threads:
                threads.submit(self._end, stream).result(PATIENCE)
        else:
            self._end(stream)

    @precondition(lambda self: self.ended)
    @rule(number=NUMBERS)
    def late(self, number: int) -> None:
        """A request that has ended is ended again, which does nothing, and uses its cell, which is refused."""
        request = self.ended[number % len(self.ended)].request
        request.lease.release()
        for use in (request.read, request.write, lambda: request.send(-1)):
            with pytest.raises(LeaseClosed):
                use()

    @rule(number=NUMBERS)
    def block(self, number: int) -> None:
        """Something takes a lease for a ``with`` block."""
        cell_id = self._any_cell(number)
        if cell_id not in self.model.known:
            return
        cell = self.world.cells.get(cell_id)
        block = self.world.cells.target(RequestContext(project_id=PROJECT, overwrite=False), cell, after(PATIENCE))
        try:
            generation = self.model.lease(cell_id)
        except Refusal as refusal:
            if refusal.error is not DeadlineExceeded:
                with pytest.raises(refusal.error), block:
                    """Not reached."""
            return
        with block as context:
            self._see(generation, context.db_connection._lease)
            assert Api().database(context) == generation.place.database
        self.done["requests"] += 1
        self.model.release(generation)

    # Failures

    @precondition(lambda self: self.model.recorded)
    @rule(number=NUMBERS)
    def breaks(self, number: int) -> None:
        """A cell can't be opened from now on."""
        cell_id = self._cell(number)
        self.world.broken.add(cell_id)
        self.model.broken.add(cell_id)

    @precondition(lambda self: self.model.broken)
    @rule()
    def repaired(self) -> None:
        """All cells can be opened again."""
        self.world.broken.clear()
        self.model.broken.clear()

    @precondition(lambda self: self.model.open)
    @rule(number=NUMBERS)
    def close_fails(self, number: int) -> None:
        """What is open of a cell can't be closed as it should."""
        generations = list(self.model.open.values())
        generations[number % len(generations)].opened.close_fails = True

    # What the process does by itself

    @precondition(lambda self: self.model.open)
    @rule(number=NUMBERS)
    def idle(self, number: int) -> None:
        """One of the open cells was not used for a long time, if nobody uses it now."""
        cell_ids = list(self.model.open)
        cell_id = cell_ids[number % len(cell_ids)]
        generation = self.model.open[cell_id]
        generation.opened.handles.used_at -= LONG
        self.world.cells._keep_up()
        self.model.read()
        if self.model.open.get(cell_id) is generation and not generation.leases:
            self.model.retire(cell_id)

    @rule(number=NUMBERS)
    def restart(self, number: int) -> None:
        """The process closes its cells, for which it waits or not, and another one begins."""
        cells = self.world.cells
        with ThreadPoolExecutor(1) as threads:
            closed = threads.submit(cells.close)
            if self.patient:
                self._while_closing(number)
            closed.result(PATIENCE)
        for stream in self.streams:
            with pytest.raises(CellsClosed):
                stream.request.read()
            self._end(stream)
        self.streams = []
        self._refused_while_closing(number)
        assert cells.leases == 0
        self.model.forget()
        self.world.start()

    def _while_closing(self, number: int) -> None:
        """Requests that are under way go on to their end, others are refused."""
        until(lambda: all(generation.opened.handles.retired for generation in self.model.open.values()))
        self.model.retire_all()
        while self.streams:
            self._refused_while_closing(number)
            stream = self.streams.pop(number % len(self.streams))
            self._use(stream)
            self._end(stream)

    def _refused_while_closing(self, number: int) -> None:
        # one that is not there is refused for that
        with pytest.raises((CellsClosed, CellNotFound)):
            self.world.request(self._any_cell(number))

    @precondition(lambda self: self.forks)
    @rule(numbers=st.lists(NUMBERS, min_size=1, max_size=5))
    def fork(self, numbers: list[int]) -> None:
        """The child has nothing of what its parent has open, and opens its own; the parent goes on undisturbed.

        Its first request that is under way is in the middle of a transaction.
        """
        self.forks -= 1
        self.done["forks"] += 1
        if not self.streams:
            in_child(lambda: self._child(numbers))
        else:
            with self._transaction(self.streams[0]):
                in_child(lambda: self._child(numbers))
        for stream in self.streams:
            self._use(stream)

    @contextmanager
    def _transaction(self, stream: Stream) -> Iterator[None]:
        """Be in the middle of a transaction, which is there afterwards."""
        database = stream.generation.place.database
        before = self.world.visits(database)
        with stream.request.writing():
            yield
        assert self.world.visits(database) == before + 1

    def _child(self, numbers: list[int]) -> None:
        inherited = list(self.world.opened)
        for number, stream in enumerate(self.streams):
            for use in (stream.request.read, partial(stream.request.send, -1)):
                with pytest.raises((LeaseClosed, CellsClosed)):
                    use()
            if number:  # not the one that is in a transaction
                stream.request.lease.release()
        gc.collect()
        self.world.cells.refresh()
        self.model.forget()
        self.model.read()
        for number in numbers:
            own = self._begin(number)
            if own is not None:
                assert own.generation.opened not in inherited
                self._use(own)
                self._end(own)
        assert self.world.cells.leases == 0
        self.world.cells.close()

    # What has to be so after each step

    @invariant()
    def leases_are_counted(self) -> None:
        """The leases that are open are those that are under way, each on the handles that it has to use."""
        assert self.world.cells.leases == len(self.streams)
        for generation in self.model.in_use:
            assert len(generation.opened.leases) == generation.leases

    @invariant()
    def one_generation(self) -> None:
        """New requests for a cell get what the model says, and at most so many cells are open."""
        handles = self.world.cells._pool.handles
        assert {cell_id: id(each) for cell_id, each in handles.items()} == {
            cell_id: id(generation.opened.handles) for cell_id, generation in self.model.open.items()
        }
        assert not any(each.retired for each in handles.values())
        assert len(handles) <= MAX_OPEN_CELLS

    @invariant()
    def open_or_closed(self) -> None:
        """What is in use is open, and everything else is closed: soon, since that is done by another thread."""
        in_use = {id(generation.opened) for generation in self.model.in_use}
        for opened in self.world.opened:
            if id(opened) in in_use:
                assert not opened.handles.closed
                assert opened.closings == [0, 0]
            else:
                assert opened.closed.wait(PATIENCE), opened
        until(lambda: self.world.cells._pool._reaper.retired <= self._retired())

    def _retired(self) -> set[Any]:
        return {generation.opened.handles for generation in self.model.retired}

    # The steps that rules are made of

    def _cell(self, number: int) -> int:
        """Choose one of the cells that are recorded."""
        cell_ids = sorted(self.model.recorded)
        return cell_ids[number % len(cell_ids)]

    def _any_cell(self, number: int) -> int:
        """Choose one of the cells that are recorded, that are still known, or that were never there."""
        cell_ids = sorted(self.model.recorded.keys() | self.model.known.keys())
        return cell_ids[number % len(cell_ids)] if cell_ids and number else NEVER_THERE

    def _move(self, cell_id: int, place: Place, refresh: bool) -> None:
        self.world.store.update_cell(self.uuids[cell_id], **self.world.urls(place))
        self.model.recorded[cell_id] = place
        self.places[cell_id].append(place)
        if refresh:
            self.refresh()

    def _begin(self, number: int) -> Stream | None:
        """Begin a request, or see it refused."""
        cell_id = self._any_cell(number)
        is_known = cell_id in self.model.known
        try:
            generation = self.model.lease(cell_id)
        except Refusal as refusal:
            self.done[refusal.error.__name__] += 1
            if refusal.error is DeadlineExceeded and not is_known:
                self.world.cells.refresh()  # it would not even wait for that
            with pytest.raises(refusal.error):
                self.world.request(cell_id, 0.0 if refusal.error is DeadlineExceeded else after(PATIENCE))
            return None
        stream = Stream(self.world.request(cell_id, after(PATIENCE)), generation)
        self._see(generation, stream.request.lease)
        self.done["requests"] += 1
        return stream

    def _see(self, generation: Generation, lease: Lease) -> None:
        """Look at what was leased: the same for each request of a generation, and opened for its place."""
        opened = self.world.opened_as(lease.handles)
        generation.opened = generation.opened or opened
        assert opened is generation.opened
        assert opened.place == generation.place

    def _use(self, stream: Stream) -> None:
        """Ask the database who it is, and look into which queue a message goes."""
        assert stream.request.read() == stream.generation.place.database
        message = self.done["messages"] = self.done["messages"] + 1
        stream.request.send(message)
        assert self.world.arrived(stream.generation.place.queue) == [message]

    def _end(self, stream: Stream) -> None:
        stream.request.lease.release()
        self.model.release(stream.generation)
        self.ended.append(stream)


class Truth:
    """Where the cells may be while they are being changed. Lives as long as a test; one thread writes, all read.

    :ivar places: for each cell, by its id, where it has been, in order; None for nowhere
    :ivar broken: the cells that may be impossible to open
    :ivar closed: whether everything may be closed
    """

    def __init__(self) -> None:
        """Begin without cells."""
        self.places: dict[int, list[Place | None]] = {}
        self.broken: set[int] = set()
        self.closed = False
        self._known: dict[int, int] = {}

    def known(self, cell_id: int) -> int:
        """Return from which of its places on a request may find the cell that begins now."""
        return self._known.get(cell_id, 0)

    def followed(self) -> None:
        """The process has followed all changes."""
        self._known = {cell_id: len(places) - 1 for cell_id, places in self.places.items()}

    @property
    def there(self) -> list[int]:
        """The ids of cells that were not deleted."""
        return [cell_id for cell_id, places in list(self.places.items()) if places[-1] is not None]


class Chaos:
    """One change or failure after the other, drawn from a seed. Lives as long as a test, in a thread of its own."""

    def __init__(self, world: World, chance: random.Random) -> None:
        """Begin with some cells."""
        self.truth = Truth()
        self.steps: Counter[str] = Counter()
        self._world = world
        self._chance = chance
        self._uuids: dict[int, str] = {}
        for _ in range(MAX_CELLS):
            self.new_cell()
        self.truth.followed()

    def act(self) -> None:
        """Do something, while requests come and go."""
        step = self._chance.choice([*[self.change] * 6, self.rename, self.replace, self.breaks, self.idle, self.look])
        self.steps[step.__name__] += 1
        step()

    def new_cell(self) -> None:
        """There is one cell more, whose id no other one has had."""
        cell = self._world.new_cell()
        self._uuids[cell.id] = cell.uuid
        self.truth.places[cell.id] = [place_of(cell)]

    def change(self) -> None:
        """A cell moves, perhaps to where it has been before; perhaps its old handles can't be closed as they should."""
        cell_id = self._chance.choice(self.truth.there)
        places = self.truth.places[cell_id]
        new, before = self._world.new_place(), [place for place in places if place is not None]
        queue, database = before[-1].queue, before[-1].database
        new = self._chance.choice([new, new._replace(queue=queue), new._replace(database=database), *before])
        for opened in self._world.opened:
            opened.close_fails |= self._chance.random() < 0.3
        places.append(new)
        self._world.store.update_cell(self._uuids[cell_id], **self._world.urls(new))
        self.follow()

    def rename(self) -> None:
        """A cell gets another name, which closes nothing."""
        self._world.store.update_cell(self._uuids[self._chance.choice(self.truth.there)], name="another")
        self.follow()

    def replace(self) -> None:
        """A cell is deleted, and there is a new one."""
        # not the newest: its id would be used again
        cell_id = self._chance.choice(self.truth.there[:-1])
        self.truth.places[cell_id].append(None)
        self._world.store.delete_cell(self._uuids[cell_id])
        self.new_cell()
        self.follow()

    def breaks(self) -> None:
        """A cell moves, and can't be opened where it is now."""
        cell_id = self._chance.choice(self.truth.there)
        self.truth.broken.add(cell_id)
        self._world.broken.add(cell_id)
        self.truth.places[cell_id].append(place := self._world.new_place())
        self._world.store.update_cell(self._uuids[cell_id], **self._world.urls(place))
        self.follow()

    def idle(self) -> None:
        """Nothing was used for a long time, or so it seems."""
        for handles in list(self._world.cells._pool.handles.values()):
            handles.used_at -= LONG
        self._world.cells._keep_up()

    def look(self) -> None:
        """Somebody looks at what there is."""
        assert len(self._world.cells.all()) == len(self.truth.there)
        repr(self._world.cells)

    def follow(self) -> None:
        """The process follows."""
        self._world.cells.refresh()
        self.truth.followed()

    def repair(self) -> None:
        """All cells can be opened again; to be called while no request begins."""
        self._world.broken.clear()
        self.truth.broken.clear()

    def close(self) -> None:
        """The process ends."""
        self.truth.closed = True
        self._world.cells.close()


class Client:
    """Requests of one thread, in rounds; the last one of a round may go on in the next. Lives as long as a test.

    :ivar wrong: what has not gone as it should
    :ivar refused: how many requests have got no lease, by why
    :ivar sent: number of a message -> in which queues it may arrive
    """

    def __init__(self, number: int, world: World, truth: Truth, ended: SimpleQueue[Lease], seed: int) -> None:
        """Send nothing yet.

        :param ended: requests that have ended, which any thread may end once more
        """
        self.wrong: list[Any] = []
        self.refused: Counter[str] = Counter()
        self.sent: dict[int, set[str]] = {}
        self.stream: tuple[Request, list[Place | None]] | None = None
        self._world = world
        self._truth = truth
        self._ended = ended
        self._chance = random.Random(seed)
        self._numbers = itertools.count(number, CLIENTS)
        # there has to be room for the requests of the others, who would wait for these
        self._leaves_one_open = number < MAX_OPEN_CELLS - 1

    def work(self) -> None:
        """Go on with the stream, then send requests one after the other, and perhaps leave the last one open."""
        for count in range(REQUESTS_PER_ROUND + 1):
            if self.stream is not None:
                for _ in range(3 if count == 0 else 1):
                    self._use(*self.stream)
                self._end(self.stream[0])
            if count < REQUESTS_PER_ROUND or (self._leaves_one_open and not self._truth.closed):
                self.stream = self._begin()

    def _begin(self) -> tuple[Request, list[Place | None]] | None:
        cell_id = self._choose()
        places, first = self._truth.places[cell_id], self._truth.known(cell_id)
        try:
            request = self._world.request(cell_id, after(PATIENCE))
        except (CellMisconfigured, CellNotFound, CellsClosed) as refusal:
            allowed = {
                CellMisconfigured: cell_id in self._truth.broken,
                CellNotFound: None in places[first:],
                CellsClosed: self._truth.closed,
            }
            self.refused[type(refusal).__name__] += 1
            if not allowed[type(refusal)]:
                self.wrong.append((cell_id, refusal))
            return None
        return request, places[first:]

    def _choose(self) -> int:
        """Choose one of as many cells as may be open, now and then another, which closes one, or one that is gone."""
        chance, there = self._chance.random(), self._truth.there
        if chance < 0.02:
            return self._chance.choice(list(self._truth.places))
        return self._chance.choice(there if chance < 0.1 else there[-MAX_OPEN_CELLS:])

    def _use(self, request: Request, places: list[Place | None]) -> None:
        """Ask the database who it is, and send a message, which has to go to the queue that belongs to it."""
        database, number = request.read(), next(self._numbers)
        request.send(number)
        self.sent[number] = {place.queue for place in places if place is not None and place.database == database}
        if not self.sent[number]:
            self.wrong.append((database, places))

    def _end(self, request: Request) -> None:
        """Release the lease, perhaps at the same moment as another thread does."""
        self._ended.put(request.lease)
        with suppress(Empty):
            self._ended.get_nowait().release()
        request.lease.release()
        try:
            request.read()
        except LeaseClosed:
            self.stream = None
        else:
            self.wrong.append(request)


@pytest.fixture
def often_interrupted() -> Iterator[None]:
    """Threads are interrupted a hundred times as often as usual, so that they meet where they rarely do."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 100)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("often_interrupted")
def test_threads(tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """The same in eight threads, while another one changes and breaks cells, and closes everything in the end."""
    seed = new_seed()
    caplog.set_level(logging.CRITICAL, "cellmw")
    world = World(tmp_path, **OPTIONS | {"max_leases_per_cell": 0}, drain_timeout=PATIENCE)
    chaos = Chaos(world, random.Random(seed))
    ended: SimpleQueue[Lease] = SimpleQueue()
    clients = [Client(number, world, chaos.truth, ended, seed + number + 1) for number in range(CLIENTS)]
    together = threading.Barrier(CLIENTS + 1)

    def work(client: Client) -> None:
        for _ in range(ROUNDS):
            together.wait(PATIENCE)
            client.work()
            together.wait(PATIENCE)

    def play(chaos: Chaos) -> None:
        for number in range(ROUNDS):
            together.wait(PATIENCE)
            chaos.act() if number < ROUNDS - 1 else chaos.close()
            together.wait(PATIENCE)
            check_what_is_open(world, clients)
            if number % FORK_EVERY == 0:
                in_child(lambda: check_child(world, clients, chaos.truth))
            chaos.repair()

    def unless_it_fails(function: Callable[[Any], None], argument: object) -> BaseException | None:
        try:
            function(argument)
        except BaseException as error:  # noqa: BLE001 - nobody is left waiting
            together.abort()
            return error
        return None

    with ThreadPoolExecutor(CLIENTS) as threads:
        working = [threads.submit(unless_it_fails, work, client) for client in clients]
        errors = [unless_it_fails(play, chaos), *(each.result() for each in working)]
    for error in sorted(filter(None, errors), key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    begun, ended_ = (sum(counts) for counts in zip(*(opened.leases.counts for opened in world.opened), strict=True))
    sent = {number: queues for client in clients for number, queues in client.sent.items()}
    arrived = {number: queue for queue, numbers in world.everything_arrived().items() for number in numbers}
    world.close()
    refused = sum((client.refused for client in clients), Counter())
    show(capsys, {"seed": seed, "requests": begun, "opened": len(world.opened)} | refused | chaos.steps)
    assert [wrong for client in clients for wrong in client.wrong] == []
    assert begun == ended_ >= REQUESTS
    assert arrived.keys() == sent.keys()
    assert [number for number, queue in arrived.items() if queue not in sent[number]] == []
    assert {tuple(opened.closings) for opened in world.opened} == {(1, 1)}


def check_what_is_open(world: World, clients: list[Client]) -> None:
    """While nothing begins or ends: each lease is a client's, and what has none and is not current is closed."""
    streams = [client.stream[0] for client in clients if client.stream is not None]
    assert world.cells.leases == len(streams)
    current = list(world.cells._pool.handles.values())
    assert len(current) <= MAX_OPEN_CELLS
    assert not any(handles.retired for handles in current)
    in_use = [*current, *(stream.lease.handles for stream in streams)]
    for opened in world.opened:
        if opened.handles in in_use:
            assert not opened.handles.closed
        else:
            assert opened.closed.wait(PATIENCE), opened
    until(lambda: world.cells._pool._reaper.retired <= set(in_use))


def check_child(world: World, clients: list[Client], truth: Truth) -> None:
    """In a child no lease of its parent's works, and each cell is opened anew."""
    inherited = list(world.opened)
    for client in clients:
        if client.stream is not None:
            for use in (client.stream[0].read, partial(client.stream[0].send, -1)):
                with pytest.raises((LeaseClosed, CellsClosed)):
                    use()
    for cell_id in set(truth.there) - truth.broken:
        request = world.request(cell_id, after(PATIENCE))
        assert world.opened_as(request.lease.handles) not in inherited
        place = truth.places[cell_id][-1]
        assert place is not None
        assert request.read() == place.database
        request.lease.release()
    assert world.cells.leases == 0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Room for one open cell, and nothing in it."""
    with closing(World(tmp_path, max_open_cells=1)) as world:
        yield world


def test_two_make_room_at_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Two threads that choose the same cell to make room leave nothing behind that nobody would ever close."""
    cells = [world.new_cell() for _ in range(3)]
    world.request(cells[0].id).lease.release()
    reaper, opened = world.cells._pool._reaper, world.opened[0]
    both = threading.Barrier(2)

    def second_is_late(record: logging.LogRecord) -> bool:
        """Be where both have chosen the cell, and hold up one of them until the other has closed it."""
        if "makes room" in record.getMessage() and not opened.handles.retired:
            with suppress(threading.BrokenBarrierError):  # there is no second where they choose one after the other
                if both.wait(1.0):
                    until(lambda: opened.closed.is_set() and not reaper.retired)
        return True

    caplog.set_level(logging.INFO, "cellmw.pool")
    log = logging.getLogger("cellmw.pool")
    log.addFilter(second_is_late)
    try:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda cell: world.request(cell.id, after(PATIENCE)).lease.release(), cells[1:]))
    finally:
        log.removeFilter(second_is_late)
    left_behind = opened.handles in reaper.retired
    reaper.retired.discard(opened.handles)
    assert not left_behind


def test_closing_is_slow(world: World) -> None:
    """While handles can't be closed no more cells are opened than may be open, and as many again."""
    cells = [world.new_cell() for _ in range(6)]
    world.may_close.clear()
    for cell in cells:
        with suppress(DeadlineExceeded):
            world.request(cell.id, after(0.1)).lease.release()
    opened = len(world.opened)
    world.may_close.set()
    world.request(cells[-1].id, after(PATIENCE)).lease.release()
    assert 1 <= opened <= 2


def test_changed_while_it_is_opened(world: World) -> None:
    """Where a cell's record changes while a request has its cell opened, everybody gets the new place."""
    cell, new = world.new_cell(), world.new_place()
    world.may_open.clear()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(world.request, cell.id, after(PATIENCE))
        until(lambda: world.opened)
        world.store.update_cell(cell.uuid, **world.urls(new))
        world.cells.refresh()
        second = threads.submit(world.request, cell.id, after(PATIENCE))
        world.may_open.set()
        databases = [request.result(PATIENCE).read() for request in (first, second)]
        for request in (first, second):
            request.result().lease.release()
    assert databases == [new.database, new.database]


def test_nothing_is_read_after_closing(world: World) -> None:
    """Who wants a cell that is not known, after everything was closed, does not connect to the API database again."""
    world.cells.close()
    with pytest.raises(CellsClosed):
        world.request(NEVER_THERE)


def test_release_in_a_child(world: World) -> None:
    """A child that releases a lease which it has inherited leaves alone the transaction that its parent is in."""
    cell = world.new_cell()
    request = world.request(cell.id)
    with request.lease, request.writing():
        in_child(request.lease.release)
    assert world.visits(place_of(cell).database) == 1


def test_machine(tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever happens in whichever order, each of ten thousand requests and all that is open are as the model says."""
    seed = new_seed()
    caplog.set_level(logging.CRITICAL, "cellmw")  # there are a great many warnings, all of them asked for

    class Machine(PoolMachine):
        folder = tmp_path
        done: ClassVar[Counter[str]] = Counter()

    for number in itertools.count(seed):
        run_state_machine_as_test(
            hypothesis.seed(number)(Machine),
            settings=settings(
                max_examples=10,
                stateful_step_count=60,
                deadline=None,
                derandomize=False,
                print_blob=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        if Machine.done["requests"] >= REQUESTS:
            break
    show(capsys, {"seed": seed} | Machine.done)
    assert Machine.done["requests"] >= REQUESTS
