# SPDX-License-Identifier: Apache-2.0
"""forks.py, and what begins anew in a child, whatever other threads of the parent held when it was forked."""

from __future__ import annotations

import gc
import os
import resource
import socket
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from oslo_config import cfg

from cellmw import engines, forks
from cellmw.cell import Cell
from cellmw.crew import Crew
from cellmw.exceptions import CellsClosed
from cellmw.flights import Flights
from cellmw.handles import Handles
from cellmw.limits import Limits
from cellmw.mapping import Mappings
from cellmw.pool import Pool
from cellmw.records import Records
from cellmw.store import Store, migrations
from cellmw.upkeep import Upkeep
from cellmw.watch import Wait, Watch
from tests.faults.fork_child import Child, ChildFailed, come_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# a process with threads that forks is what this is about; the second is eventlet's, which oslo.messaging imports
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Using fork:DeprecationWarning"),
]

PATIENCE = 10
"""Seconds after which a test gives up on what has to come."""


@contextmanager
def held(lock: Any) -> Iterator[None]:
    """Have another thread hold a lock."""
    is_held, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            is_held.set()
            may_go.wait(PATIENCE)

    thread = threading.Thread(target=hold)
    thread.start()
    assert is_held.wait(PATIENCE)
    try:
        yield
    finally:
        may_go.set()
        thread.join(PATIENCE)


class Heir:
    """Counts how often it has begun anew."""

    begun = 0

    def begin_anew(self) -> None:
        self.begun += 1


def test_follow() -> None:
    """An heir begins anew once in each child, and never in its parent."""
    heir = Heir()
    forks.follow(heir)
    assert [come_to(lambda: heir.begun) for _ in range(2)] == [1, 1]
    assert heir.begun == 0
    assert come_to(lambda: come_to(lambda: heir.begun)) == 2


def test_follow_twice() -> None:
    """Who follows twice begins anew once."""
    heir = Heir()
    forks.follow(heir)
    forks.follow(heir)
    assert come_to(lambda: heir.begun) == 1


def test_heir_is_gone() -> None:
    """Following keeps nobody alive, and who is gone is no trouble to the others."""
    heir, gone = Heir(), Heir()
    for one in (heir, gone):
        forks.follow(one)
    reference = weakref.ref(gone)
    del gone, one
    gc.collect()
    assert reference() is None
    assert come_to(lambda: heir.begun) == 1


class Parked:
    """Can be referred to weakly."""


def test_park() -> None:
    """What is parked stays when nobody refers to it any more."""
    parked, dropped = Parked(), Parked()
    references = [weakref.ref(parked), weakref.ref(dropped)]
    forks.park(parked)
    del parked, dropped
    gc.collect()
    assert [reference() is None for reference in references] == [False, True]


class WithFileno:
    """A driver's connection, as psycopg and psycopg2 have it."""

    def __init__(self, connection: socket.socket) -> None:
        self.fileno = connection.fileno


class WithSocket:
    """A driver's connection, as PyMySQL has it."""

    def __init__(self, connection: socket.socket) -> None:
        self._sock = connection


EACH_DRIVER = pytest.mark.parametrize("driver", [WithFileno, WithSocket])


@EACH_DRIVER
def test_defuse(driver: Callable[[socket.socket], object]) -> None:
    """A child that has defused a connection reaches nobody by it, and its parent goes on with it."""
    ours, theirs = socket.socketpair()

    def use() -> list[str]:
        forks.defuse(driver(ours))
        said = []
        for way in (lambda: ours.sendall(b"child"), lambda: ours.shutdown(socket.SHUT_RDWR)):
            try:
                way()
            except OSError as error:
                said.append(type(error).__name__)
        said.append(ours.recv(1).decode())
        ours.close()
        return said

    with ours, theirs:
        theirs.settimeout(PATIENCE)
        child = Child(use)
        assert child.report()[0] == "BrokenPipeError"
        child.end()
        ours.sendall(b"parent")
        assert theirs.recv(100) == b"parent"
        theirs.sendall(b"answer")
        assert ours.recv(100) == b"answer"


@EACH_DRIVER
def test_defuse_here(driver: Callable[[socket.socket], object]) -> None:
    """In one process: the descriptor keeps its number, and the other end's notices nothing but the end."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.dup():
        number = ours.fileno()
        forks.defuse(driver(ours))
        assert ours.fileno() == number
        assert not os.get_inheritable(number)
        with pytest.raises(BrokenPipeError):
            ours.sendall(b"goodbye")


@EACH_DRIVER
def test_defuse_without_descriptors(driver: Callable[[socket.socket], object]) -> None:
    """A connection is defused where there are as many descriptors as there may be."""
    ours, theirs = socket.socketpair()

    def use() -> bool:
        # counted from what is open now, with nothing left
        resource.setrlimit(resource.RLIMIT_NOFILE, (ours.fileno() + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        opened = []
        with suppress(OSError):
            while True:
                opened.append(os.dup(0))
        forks.defuse(driver(ours))
        try:
            ours.sendall(b"child")
        except OSError:
            return True
        return False

    with ours, theirs:
        assert come_to(use)


@EACH_DRIVER
def test_defuse_closed(driver: Callable[[socket.socket], object]) -> None:
    """A connection that is closed already is left alone, and so is whoever has its descriptor by now."""
    ours, theirs = socket.socketpair()
    closed = driver(ours)
    number = ours.fileno()
    ours.close()
    with theirs, open(os.devnull) as other:
        assert other.fileno() == number
        identity = os.fstat(number)
        forks.defuse(closed)
        assert os.fstat(number) == identity


def test_defuse_without_socket() -> None:
    """A driver that shows no socket, as SQLite's, is left alone."""
    forks.defuse(object())


def test_watch() -> None:
    """The watch of a child cuts what the child waits for, and nothing that its parent does."""
    watch = Watch()
    ours, theirs = socket.socketpair()
    wait = Wait(float("inf"), lambda: None, WithFileno(ours))

    def cut() -> list[bool]:
        watch.begin_anew()
        inherited = bool(watch._waits)
        mine, _other = socket.socketpair()
        mine.settimeout(PATIENCE)
        one = Wait(monotonic(), lambda: None, WithFileno(mine))
        watch.begin(one)
        got = mine.recv(1)
        watch.end(one)
        return [inherited, got == b"", one.was_cut]

    with ours, theirs:
        watch.begin(wait)
        with held(watch._lock):
            assert come_to(cut) == [False, True, True]
        watch.end(wait)
        assert not wait.was_cut


def test_crew() -> None:
    """The crew of a child works with threads of its own, where its parent's are idle or busy."""
    crew = Crew()
    busy, free = threading.Event(), threading.Event()

    def work() -> int:
        return crew.run(os.getpid, monotonic() + PATIENCE, set(), "a number")

    def work_anew() -> int:
        crew.begin_anew()
        return work()

    def stay() -> bool:
        busy.set()
        return free.wait(PATIENCE)

    work()
    assert_idle(crew)
    with ThreadPoolExecutor(1) as threads:
        staying = threads.submit(crew.run, stay, monotonic() + PATIENCE, set(), "to be free")
        assert busy.wait(PATIENCE)
        work()
        assert_idle(crew)
        with Child(work_anew) as child:
            assert child.report() == child.pid
        assert work() == os.getpid()
        free.set()
        assert staying.result(PATIENCE)


def assert_idle(crew: Crew) -> None:
    """A thread of the crew is idle, a moment after its work was done."""
    deadline = monotonic() + PATIENCE
    while not crew._idle and monotonic() < deadline:
        os.sched_yield()
    assert crew._idle


def test_limits() -> None:
    """Limits begin anew by themselves."""
    limits = Limits()
    with held(limits.watch._lock):
        assert come_to(lambda: limits.watch._lock.acquire(blocking=False))
    limits.crew._idle.append(object())  # type: ignore[arg-type]
    assert come_to(lambda: len(limits.crew._idle)) == 0


class Rounds:
    """What is kept up."""

    def __init__(self) -> None:
        self.done = threading.Event()

    def do(self) -> None:
        self.done.set()


def test_upkeep() -> None:
    """The upkeep of a child begins a thread of its own, and is begun once."""
    rounds = Rounds()
    upkeep = Upkeep(rounds.do, 0.01)

    def keep_up() -> list[bool]:
        upkeep.begin_anew()
        rounds.done = threading.Event()
        return [upkeep.start(), upkeep.start(), rounds.done.wait(PATIENCE)]

    assert upkeep.start()
    with held(upkeep._lock):
        assert come_to(keep_up) == [True, False, True]
    upkeep.close()


def test_flights() -> None:
    """A child does not wait for what a thread of its parent is fetching."""
    flights: Flights[str, int] = Flights()
    fetching, may_go = threading.Event(), threading.Event()

    def fetch() -> int:
        fetching.set()
        assert may_go.wait(PATIENCE)
        return 1

    def fetch_anew() -> int:
        flights.begin_anew()
        return flights.run("key", lambda: 2, lambda _: None, monotonic() + PATIENCE, "a number")

    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(flights.run, "key", fetch, lambda _: None, None, "a number")
        assert fetching.wait(PATIENCE)
        with held(flights._lock):
            assert come_to(fetch_anew) == 2
        may_go.set()
        assert first.result(PATIENCE) == 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An API database with one cell."""
    with Store(sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'api'}")) as store:
        migrations.sync(store.engine)
        store.create_cell(name="cell1", database_connection="sqlite://", transport_url="fake:///")
        yield store


def test_records(store: Store) -> None:
    """A child knows the cells that its parent knew, and can read them anew."""
    told: list[Any] = []
    records = Records(store, told.append)
    records.read()

    def read() -> list[Any]:
        records.begin_anew()
        known = records.known
        return [known is told[0], records.read() is not known, len(told)]

    with held(records._following):
        assert come_to(read) == [True, True, 2]


def test_mappings(store: Store) -> None:
    """A child has the mappings that its parent had in its cache, and can look up others."""
    mappings = Mappings(store, ttl=60, size=10)
    uuids = [f"00000000-0000-0000-0000-00000000000{number}" for number in range(2)]
    for uuid in uuids:
        store.create_instance(uuid, project_id="project-1", cell_id=store.list_cells()[0].id)
    known = mappings.find(uuids[0])

    def find() -> list[bool]:
        mappings.begin_anew()
        return [mappings.find(uuids[0]) is known, mappings.find(uuids[1]).exists]

    with held(mappings._flights._lock):
        assert come_to(find) == [True, True]


CELL = Cell(1, "00000000-0000-0000-0000-000000000001", "cell1", False, "none:///", "sqlite://")


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool with one place."""
    conf = cfg.ConfigOpts()
    conf([], project="cellmw")
    pool = Pool(lambda cell: Handles.open(cell, conf, {}), max_open_cells=1)
    yield pool
    pool.close()


def test_pool(pool: Pool) -> None:
    """A child opens handles of its own, has all the places, and what it inherited is closed to it."""
    inherited = pool.open(CELL)
    inherited.leases.add(1)

    def open_anew() -> list[bool]:
        pool.begin_anew()
        own = pool.open(CELL, monotonic() + PATIENCE)
        closed = [inherited.closed, inherited.retired, own.closed]
        pool.close()
        return [own is not inherited, *closed, own.closed, pool.leases == 0]

    with held(pool._lock), held(pool._openers._lock), held(pool._reaper._all_closed):
        assert come_to(open_anew) == [True, True, True, False, True, True]
    assert not inherited.closed
    inherited.leases.clear()


def test_pool_parks(pool: Pool) -> None:
    """What a child has inherited is never freed in it, since that would tell the servers."""
    reference = weakref.ref(pool.open(CELL))

    def look() -> bool:
        pool.begin_anew()
        gc.collect()
        return reference() is not None

    assert come_to(look)


def test_pool_retired(pool: Pool) -> None:
    """What its parent had taken out of use, and still waits for, is closed to a child, too."""
    inherited = pool.open(CELL)
    inherited.leases.add(1)
    pool.follow({})
    assert pool._reaper.retired == {inherited}

    def look() -> list[bool]:
        pool.begin_anew()
        return [inherited.closed, not pool._reaper.retired]

    assert come_to(look) == [True, True]
    assert not inherited.closed
    inherited.leases.clear()
    inherited.ended(inherited)


def test_pool_place_being_taken(pool: Pool) -> None:
    """A place that a thread of its parent was taking is free in a child."""
    pool._places = 1

    def open_anew() -> bool:
        pool.begin_anew()
        return not pool.open(CELL, monotonic() + PATIENCE).closed

    assert come_to(open_anew)
    pool._places = 0


def test_pool_stays_closed(pool: Pool) -> None:
    """A pool that was closed before the fork stays so."""
    pool.close()

    def open_anew() -> None:
        pool.begin_anew()
        with pytest.raises(CellsClosed):
            pool.open(CELL)

    come_to(open_anew)


def test_store(tmp_path: Path) -> None:
    """A child's store has an engine of its own, which is bounded as its parent's is."""
    limits = Limits()
    url = f"sqlite:///{tmp_path / 'api'}"
    make = partial(engines.make_engine, url, {}, pre_ping=False)
    with Store(make(), limits, make) as store:
        migrations.sync(store.engine)
        engine, breaker = store.engine, store.breaker
        pool = weakref.ref(engine.pool)

        def look() -> list[bool]:
            nonlocal engine
            store.begin_anew()
            engine_is_another, engine = store.engine is not engine, None
            gc.collect()
            return [pool() is not None, engine_is_another, store.breaker is not breaker, store.list_cells() == []]

        with ExitStack() as holding:
            holding.enter_context(held(breaker._lock))
            holding.enter_context(held(limits.watch._lock))
            assert come_to(look) == [True, True, True, True]
        assert store.engine is engine


def test_child_that_fails() -> None:
    """What goes wrong in a child is told in its parent."""
    with pytest.raises(ChildFailed, match="ZeroDivisionError"):
        come_to(lambda: 1 // 0)
