# SPDX-License-Identifier: Apache-2.0
"""The cached mappings: how long each answer is kept, and what drops it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from oslo_cache import core as oslo_cache

from cellmw import breaker, deadline, mapping, shared_cache
from cellmw.deadline import Deadline, after
from cellmw.engines import make_engine
from cellmw.exceptions import (
    DeadlineExceeded,
    InstanceMapped,
    InstanceNotMapped,
    StoreUnavailable,
)
from cellmw.mapping import Mappings
from cellmw.shared_cache import CLOCK_SKEW, Connection, Entry, SharedMappings, Signed
from cellmw.store import InstanceMapping, Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from cellmw.cell import Cell

UUID = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9"
OTHER = "ffffffff-ffff-4fff-bfff-ffffffffffff"
TTL = 60.0
STALE_TTL = 600.0
PATIENCE = 20


class RecordingStore(Store):
    """The store, on the same database. Records the look-ups; one can be held up between the answer and the caller.

    It can be down, which is known from the first look-up on.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store.engine)
        self.lookups: list[str] = []
        self.deadlines: list[Deadline | None] = []
        self.answered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.is_down = self.is_known_to_be_down = False
        self.is_late = False

    def check(self) -> None:
        if self.is_known_to_be_down:
            raise StoreUnavailable("down")

    def come_up(self) -> None:
        self.is_down = self.is_known_to_be_down = self.is_late = False

    def find_instance(self, uuid: str, deadline: Deadline | None = None) -> InstanceMapping | None:
        self.lookups.append(uuid)
        self.deadlines.append(deadline)
        if self.is_late:
            raise DeadlineExceeded("the API database")
        if self.is_down:
            self.is_known_to_be_down = True
            raise StoreUnavailable("down")
        row = super().find_instance(uuid, deadline)
        self.answered.set()
        assert self.go_on.wait(PATIENCE)
        return row


class Clock:
    """The time, which passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the mappings."""
    clock = Clock()
    for module in (mapping, breaker, shared_cache, deadline):
        monkeypatch.setattr(module, "monotonic", clock)
    for module in (mapping, shared_cache):
        monkeypatch.setattr(module, "time", clock)
    return clock


class Cache:
    """A cache in memory that workers share, which can be taken away."""

    def __init__(self) -> None:
        region = oslo_cache.create_region()
        region.configure("dogpile.cache.memory")
        self._backend = region.backend
        self.asked = 0
        self.is_down = False

    def __getattr__(self, name: str) -> Any:
        self.asked += 1
        if self.is_down:
            raise OSError
        return getattr(self._backend, name)


@pytest.fixture
def cache() -> Cache:
    """The cache of all workers of a test."""
    return Cache()


@pytest.fixture
def shared(cache: Cache) -> SharedMappings:
    """The way of a worker to it."""
    return SharedMappings(lambda: Connection(cache), Signed("our secret"), timeout=1.0)


@pytest.fixture
def recording_store(store: Store) -> RecordingStore:
    """A store that records."""
    return RecordingStore(store)


@pytest.fixture
def mappings(recording_store: RecordingStore, clock: Clock) -> Mappings:
    """Mappings with room for three."""
    return Mappings(recording_store, ttl=TTL, size=3, stale_ttl=STALE_TTL)


@pytest.fixture
def lookups(recording_store: RecordingStore) -> list[str]:
    """The look-ups that were made in the API database."""
    return recording_store.lookups


def test_find(mappings: Mappings, store: Store, cell1: Cell) -> None:
    """A mapping has what the API database says of the instance."""
    store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    found = mappings.find(UUID)
    assert (found.instance_uuid, found.cell_id, found.project_id) == (UUID, cell1.id, "project")
    assert (found.queued_for_delete, found.exists, found.age) == (False, True, 0.0)


def test_missing(mappings: Mappings) -> None:
    """What there is no mapping for is a mapping that says so."""
    missing = mappings.find(UUID)
    assert (missing.instance_uuid, missing.exists, missing.cell_id, missing.project_id) == (UUID, False, None, None)
    assert not missing.queued_for_delete


def test_repr(mappings: Mappings, store: Store, cell1: Cell, clock: Clock) -> None:
    """A mapping shows where its instance is and how old that news is."""
    store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    found = mappings.find(UUID)
    clock.advance(2.5)
    assert repr(found) == f"<Mapping instance={UUID} cell_id={cell1.id} age=2.5s>"


def test_queued_for_delete(mappings: Mappings, store: Store, cell1: Cell) -> None:
    """An instance whose deletion has begun is found, with the flag."""
    store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    store.update_instance(UUID, queued_for_delete=True)
    assert mappings.find(UUID).queued_for_delete


def test_kept_for_the_ttl(mappings: Mappings, store: Store, cell1: Cell, clock: Clock, lookups: list[str]) -> None:
    """A mapping with a cell is looked up once in its TTL, and once more when that has passed."""
    store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    first = mappings.find(UUID)
    clock.advance(TTL - 0.1)
    assert mappings.find(UUID) is first
    clock.advance(0.1)
    assert mappings.find(UUID) is not first
    assert lookups == [UUID, UUID]


def test_reading_does_not_prolong(mappings: Mappings, store: Store, cell1: Cell, clock: Clock) -> None:
    """A mapping that is in use all the time is looked up again at the end of its TTL, so a move is seen within it."""
    store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    mappings.find(UUID)
    store.update_instance(UUID, cell_id=None)
    for _ in range(6):
        clock.advance(TTL / 6)
        found = mappings.find(UUID)
    assert found.cell_id is None


def test_age(mappings: Mappings, store: Store, cell1: Cell, clock: Clock) -> None:
    """A mapping knows how long ago the API database said so."""
    store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    mappings.find(UUID)
    clock.advance(12.5)
    assert mappings.find(UUID).age == 12.5


def test_slow_answer_is_not_new(store: Store, cell1: Cell, clock: Clock, shared: SharedMappings) -> None:
    """The TTL begins when the API database is asked, so that a slow answer is trusted no longer, by others either."""

    class SlowStore(RecordingStore):
        def find_instance(self, uuid: str, deadline: Deadline | None = None) -> InstanceMapping | None:
            row = super().find_instance(uuid, deadline)
            clock.advance(30)
            return row

    store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    for _ in range(2):
        assert Mappings(SlowStore(store), ttl=TTL, size=3, shared=shared).find(UUID).age == 30


@pytest.mark.parametrize("ttl", [TTL, 0.5])
def test_missing_is_kept_shortly(recording_store: RecordingStore, clock: Clock, lookups: list[str], ttl: float) -> None:
    """That there is no mapping is remembered for a second at most, or for the TTL where that is less."""
    mappings = Mappings(recording_store, ttl=ttl, size=3)
    for seconds, count in [(0, 1), (min(ttl, 1) - 0.1, 1), (0.1, 2)]:
        clock.advance(seconds)
        assert not mappings.find(UUID).exists
        assert len(lookups) == count


def test_unscheduled_is_kept_shortly(mappings: Mappings, store: Store, clock: Clock, lookups: list[str]) -> None:
    """A mapping without a cell is remembered for a second at most: its instance is about to get one."""
    store.create_instance(UUID, project_id="project")
    for seconds, count in [(0, 1), (0.9, 1), (0.1, 2)]:
        clock.advance(seconds)
        assert mappings.find(UUID).cell_id is None
        assert mappings.find(UUID).exists
        assert len(lookups) == count


def test_ttl_of_zero(recording_store: RecordingStore, store: Store, cell1: Cell, clock: Clock) -> None:
    """With a TTL of 0 the API database is asked each time."""
    store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    mappings = Mappings(recording_store, ttl=0.0, size=3)
    for _ in range(3):
        mappings.find(UUID)
    assert len(recording_store.lookups) == 3


def uuids(count: int) -> list[str]:
    """Return this many uuids."""
    return [f"{number:08x}-0000-4000-8000-000000000000" for number in range(count)]


def test_bounded(mappings: Mappings, store: Store, cell1: Cell, lookups: list[str]) -> None:
    """When there is no more room the mapping that was loaded first goes first."""
    all_uuids = uuids(4)
    for uuid in all_uuids:
        store.create_instance(uuid, project_id="project", cell_id=cell1.id)
        mappings.find(uuid)
    lookups.clear()
    for uuid in reversed(all_uuids):
        mappings.find(uuid)
    assert lookups == all_uuids[:1]


def test_missing_ones_are_bounded_too(mappings: Mappings) -> None:
    """Who asks for uuids that don't exist can't fill the memory."""
    for uuid in uuids(50):
        mappings.find(uuid)
    assert len(mappings._cache) == 3


def test_loaded_again_is_loaded_last(
    mappings: Mappings, store: Store, cell1: Cell, clock: Clock, lookups: list[str]
) -> None:
    """A mapping that was loaded again is the newest, and others make room before it."""
    first, *others = uuids(4)
    for uuid in [first, *others]:
        store.create_instance(uuid, project_id="project", cell_id=cell1.id)
    for uuid in [first, *others[:2]]:
        mappings.find(uuid)
    clock.advance(TTL)
    mappings.find(first)
    mappings.find(others[2])
    lookups.clear()
    mappings.find(first)
    assert lookups == []


def test_forget(mappings: Mappings, store: Store, cell1: Cell, lookups: list[str]) -> None:
    """A mapping that was forgotten is looked up again, and one that isn't there can be forgotten."""
    store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    mappings.find(UUID)
    mappings.forget(UUID)
    mappings.forget(OTHER)
    mappings.find(UUID)
    assert lookups == [UUID, UUID]


def test_distrust(mappings: Mappings, store: Store, cell1: Cell, clock: Clock, lookups: list[str]) -> None:
    """A mapping for which the app answered 404 is looked up again."""
    store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    found = mappings.find(UUID)
    clock.advance(1)
    mappings.distrust(found)
    mappings.find(UUID)
    assert lookups == [UUID, UUID]


def test_distrust_of_a_new_one(mappings: Mappings, store: Store, cell1: Cell, clock: Clock, lookups: list[str]) -> None:
    """A mapping that is not a second old yet is kept: asking again would be no use."""
    store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    found = mappings.find(UUID)
    clock.advance(0.9)
    mappings.distrust(found)
    assert mappings.find(UUID) is found


def test_distrust_once_a_second(
    mappings: Mappings, store: Store, cell1: Cell, clock: Clock, lookups: list[str]
) -> None:
    """Ten seconds of 404s, twenty each second, cost one look-up a second."""
    store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    for _ in range(200):
        mappings.distrust(mappings.find(UUID))
        clock.advance(0.05)
    assert len(lookups) == 10


def test_distrust_by_slow_requests(
    mappings: Mappings, store: Store, cell1: Cell, clock: Clock, lookups: list[str]
) -> None:
    """Requests that take longer than a second, many at a time, drop the cached mapping once a second as well."""
    store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    under_way = [mappings.find(UUID) for _ in range(40)]  # each takes two seconds, twenty come in a second
    for _ in range(200):
        clock.advance(0.05)
        mappings.distrust(under_way.pop(0))
        under_way.append(mappings.find(UUID))
    assert len(lookups) <= 11


def test_create(mappings: Mappings, store: Store, cell1: Cell) -> None:
    """An instance that was looked for before it was mapped is found from then on."""
    assert not mappings.find(UUID).exists
    mappings.create(UUID, project_id="project", user_id="user")
    assert mappings.find(UUID).exists
    assert store.get_instance(UUID).user_id == "user"


def test_create_in_a_cell(mappings: Mappings, cell1: Cell) -> None:
    """An instance can be mapped to its cell at once."""
    mappings.create(UUID, project_id="project", cell=cell1)
    assert mappings.find(UUID).cell_id == cell1.id


def test_schedule(mappings: Mappings, cell1: Cell, cell2: Cell) -> None:
    """An instance that gets a cell, or another one, is found there from then on."""
    mappings.create(UUID, project_id="project")
    for cell in (cell1, cell2):
        mappings.find(UUID)
        mappings.schedule(UUID, cell)
        assert mappings.find(UUID).cell_id == cell.id


def test_queue_for_delete(mappings: Mappings, cell1: Cell) -> None:
    """An instance whose deletion begins has the flag from then on."""
    mappings.create(UUID, project_id="project", cell=cell1)
    mappings.find(UUID)
    mappings.queue_for_delete(UUID)
    assert mappings.find(UUID).queued_for_delete


def test_delete(mappings: Mappings, cell1: Cell) -> None:
    """An instance that is gone is not found from then on."""
    mappings.create(UUID, project_id="project", cell=cell1)
    mappings.find(UUID)
    mappings.delete(UUID)
    assert not mappings.find(UUID).exists


def test_writes_of_what_is_not_there(mappings: Mappings, cell1: Cell) -> None:
    """What can't be written is an error that names the instance."""
    with pytest.raises(InstanceNotMapped, match=UUID):
        mappings.schedule(UUID, cell1)
    with pytest.raises(InstanceNotMapped, match=UUID):
        mappings.queue_for_delete(UUID)
    with pytest.raises(InstanceNotMapped, match=UUID):
        mappings.delete(UUID)
    mappings.create(UUID, project_id="project")
    with pytest.raises(InstanceMapped, match=UUID):
        mappings.create(UUID, project_id="project")


def test_write_without_an_answer(store: Store, cell1: Cell, cell2: Cell, clock: Clock) -> None:
    """A write that fails may have been done all the same, so the mapping is looked up again after it."""

    class LostAnswer(RecordingStore):
        def update_instance(self, uuid: str, **values: Any) -> InstanceMapping:
            super().update_instance(uuid, **values)
            raise StoreUnavailable("the connection was lost during COMMIT")

    store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    mappings = Mappings(LostAnswer(store), ttl=TTL, size=3)
    mappings.find(UUID)
    with pytest.raises(StoreUnavailable):
        mappings.schedule(UUID, cell2)
    assert mappings.find(UUID).cell_id == cell2.id


def test_write_during_a_load(mappings: Mappings, recording_store: RecordingStore, cell1: Cell, cell2: Cell) -> None:
    """A look-up that was answered before a write, and comes back after it, is not kept."""
    recording_store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    recording_store.go_on.clear()

    def write() -> Any:
        assert recording_store.answered.wait(PATIENCE)
        mappings.schedule(UUID, cell2)
        recording_store.go_on.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert mappings.find(UUID).cell_id == cell1.id
    thread.join(PATIENCE)
    assert mappings.find(UUID).cell_id == cell2.id


def test_single_flight(
    mappings: Mappings,
    recording_store: RecordingStore,
    cell1: Cell,
    together: Callable[[int, Callable[[int], Any]], list[Any]],
) -> None:
    """Threads that look for the same instance at the same time ask the API database no more than once at a time."""
    recording_store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    found = together(16, lambda number: mappings.find(UUID))
    assert {mapping.cell_id for mapping in found} == {cell1.id}
    assert recording_store.lookups == [UUID]


def test_deadline(mappings: Mappings, recording_store: RecordingStore, cell1: Cell) -> None:
    """Who waits for another thread's look-up gives up at the deadline."""
    recording_store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    recording_store.go_on.clear()
    thread = threading.Thread(target=lambda: mappings.find(UUID))
    thread.start()
    assert recording_store.answered.wait(PATIENCE)
    with pytest.raises(DeadlineExceeded, match=f"the mapping of instance {UUID}"):
        mappings.find(UUID, after(0))
    recording_store.go_on.set()
    thread.join(PATIENCE)


def test_store_that_is_down(tmp_path: Any) -> None:
    """An API database that does not answer is StoreUnavailable, and not an instance that does not exist."""
    with Store(make_engine(f"sqlite:///{tmp_path}/missing/api.sqlite", {}, pre_ping=False)) as store:
        mappings = Mappings(store, ttl=TTL, size=3)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                mappings.find(UUID)


@pytest.fixture
def down(mappings: Mappings, recording_store: RecordingStore, clock: Clock, cell1: Cell) -> None:
    """The API database went down when the mapping of the instance was known, which has expired since."""
    recording_store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    mappings.find(UUID)
    clock.advance(TTL)
    recording_store.is_down = True


@pytest.mark.usefixtures("down")
def test_stale(mappings: Mappings, clock: Clock, cell1: Cell) -> None:
    """While the API database is down a known mapping is used, and says how old it is."""
    clock.advance(STALE_TTL)
    found = mappings.find(UUID)
    assert (found.cell_id, found.age) == (cell1.id, TTL + STALE_TTL)


@pytest.mark.usefixtures("down")
def test_too_stale(mappings: Mappings, clock: Clock) -> None:
    """That has an end."""
    clock.advance(STALE_TTL + 1)
    with pytest.raises(StoreUnavailable):
        mappings.find(UUID)


@pytest.mark.usefixtures("down")
def test_stale_is_logged(mappings: Mappings, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """The log says that old news is gone by, and how old it is, but not for each request."""
    for _ in range(3):
        mappings.find(UUID)
    assert [record.getMessage() for record in caplog.records] == [
        f"the API database does not answer: instance {UUID}, and others, go by what was known 60 seconds ago"
    ]


@pytest.mark.usefixtures("down")
def test_not_asked_while_down(mappings: Mappings, lookups: list[str]) -> None:
    """An API database that is known to be down is asked by nobody, whether there is something to go by or not."""
    lookups.clear()
    for _ in range(3):
        mappings.find(UUID)
        with pytest.raises(StoreUnavailable):
            mappings.find(OTHER)
    assert lookups == [UUID]


@pytest.mark.usefixtures("down")
def test_up_again(mappings: Mappings, recording_store: RecordingStore, cell2: Cell) -> None:
    """When it is up again, the next request brings everybody back to what is true."""
    mappings.find(UUID)
    recording_store.come_up()
    recording_store.update_instance(UUID, cell_id=cell2.id)
    assert mappings.find(UUID).cell_id == cell2.id
    assert not mappings.find(OTHER).exists


@pytest.mark.parametrize("row", [None, {}], ids=["missing", "building"])
def test_no_news_is_not_stale(mappings: Mappings, recording_store: RecordingStore, clock: Clock, row: Any) -> None:
    """That there was no mapping, or none with a cell, is not gone by: it may have changed at any moment."""
    if row is not None:
        recording_store.create_instance(UUID, project_id="project")
    mappings.find(UUID)
    clock.advance(TTL)
    recording_store.is_down = True
    with pytest.raises(StoreUnavailable):
        mappings.find(UUID)


@pytest.mark.usefixtures("down")
def test_distrust_while_down(mappings: Mappings, cell1: Cell) -> None:
    """While there is nobody to ask, a 404 of the app drops nothing."""
    mappings.distrust(mappings.find(UUID))
    assert mappings.find(UUID).cell_id == cell1.id


def test_nobody_waits_who_knows(mappings: Mappings, recording_store: RecordingStore, clock: Clock, cell1: Cell) -> None:
    """While one thread asks for what has expired, others go on with what is known."""
    recording_store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    mappings.find(UUID)
    clock.advance(TTL)
    recording_store.answered.clear()
    recording_store.go_on.clear()
    thread = threading.Thread(target=lambda: mappings.find(UUID))
    thread.start()
    assert recording_store.answered.wait(PATIENCE)
    assert mappings.find(UUID).age == TTL
    recording_store.go_on.set()
    thread.join(PATIENCE)


@pytest.mark.usefixtures("down")
def test_late_is_stale_too(
    mappings: Mappings, recording_store: RecordingStore, cell1: Cell, caplog: pytest.LogCaptureFixture
) -> None:
    """An API database that does not answer in time is like one that is down: what is known is used, and that logged."""
    recording_store.is_down, recording_store.is_late = False, True
    assert mappings.find(UUID).cell_id == cell1.id
    assert "the API database does not answer" in caplog.text
    with pytest.raises(DeadlineExceeded, match="the API database"):
        mappings.find(OTHER)


def test_deadline_of_the_store(mappings: Mappings, recording_store: RecordingStore, clock: Clock, cell1: Cell) -> None:
    """The API database has until the caller's deadline, and a second at most where there is something to go by."""
    recording_store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    for time_left, time_given in [(60, 60), (60, 1), (0.5, 0.5)]:
        mappings.find(UUID, clock() + time_left)
        assert recording_store.deadlines[-1] == clock() + time_given
        clock.advance(TTL)
    mappings.find(UUID)
    assert recording_store.deadlines[-1] == clock() + 1
    mappings.find(OTHER)
    assert recording_store.deadlines[-1] is None


@pytest.fixture
def new_worker(recording_store: RecordingStore, cache: Cache, clock: Clock) -> Callable[[], Mappings]:
    """Make the mappings of one more worker, on this host or another."""

    def new() -> Mappings:
        shared = SharedMappings(lambda: Connection(cache), Signed("our secret"), timeout=1.0)
        return Mappings(recording_store, ttl=TTL, size=3, stale_ttl=STALE_TTL, shared=shared)

    return new


@pytest.fixture
def mapped(recording_store: RecordingStore, cell1: Cell) -> None:
    """The instance is in cell1."""
    recording_store.create_instance(UUID, project_id="project", cell_id=cell1.id)


@pytest.mark.usefixtures("mapped")
def test_shared(new_worker: Callable[[], Mappings], recording_store: RecordingStore, clock: Clock) -> None:
    """What one worker has looked up the others know, and that for no longer than a TTL after it was looked up."""
    recording_store.update_instance(UUID, queued_for_delete=True)
    first = new_worker().find(UUID)
    clock.advance(TTL - 10)
    other = new_worker()
    found = other.find(UUID)
    for field in ("cell_id", "project_id", "queued_for_delete", "exists"):
        assert getattr(found, field) == getattr(first, field)
    assert found.age == TTL - 10
    clock.advance(9.9)
    assert other.find(UUID) is found
    assert recording_store.lookups == [UUID]
    clock.advance(0.1)
    assert other.find(UUID).age == 0
    assert recording_store.lookups == [UUID, UUID]


@pytest.mark.usefixtures("mapped")
def test_hit_asks_nobody(new_worker: Callable[[], Mappings], cache: Cache) -> None:
    """A mapping that the worker knows itself is looked for nowhere else."""
    worker = new_worker()
    worker.find(UUID)
    cache.asked = 0
    worker.find(UUID)
    assert cache.asked == 0


def test_no_news_is_not_shared(
    new_worker: Callable[[], Mappings], recording_store: RecordingStore, cache: Cache
) -> None:
    """That there is no mapping, or none with a cell, is not shared."""
    recording_store.create_instance(UUID, project_id="project")
    for _ in range(2):
        worker = new_worker()
        worker.find(UUID)
        worker.find(OTHER)
    assert recording_store.lookups == [UUID, OTHER] * 2
    assert cache.asked == 4


@pytest.mark.usefixtures("mapped")
def test_shared_outlives_an_outage(
    new_worker: Callable[[], Mappings],
    recording_store: RecordingStore,
    clock: Clock,
    cell1: Cell,
    cell2: Cell,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A worker that starts while the API database is down goes by what others knew, and says so, until it is up."""
    new_worker().find(UUID)
    clock.advance(TTL + STALE_TTL)
    for trouble in ("is_down", "is_late"):
        setattr(recording_store, trouble, True)
        worker = new_worker()
        found = worker.find(UUID)
        assert (found.cell_id, found.age) == (cell1.id, TTL + STALE_TTL)
        assert f"instance {UUID}, and others, go by what was known {TTL + STALE_TTL:.0f} seconds ago" in caplog.text
        assert recording_store.deadlines[-1] == clock() + 1
        assert worker.find(UUID).cell_id == cell1.id
        recording_store.come_up()
        caplog.clear()
    recording_store.update_instance(UUID, cell_id=cell2.id)
    assert worker.find(UUID).cell_id == cell2.id


@pytest.mark.usefixtures("mapped")
def test_shared_is_too_old(new_worker: Callable[[], Mappings], recording_store: RecordingStore, clock: Clock) -> None:
    """That has an end, too."""
    new_worker().find(UUID)
    clock.advance(TTL + STALE_TTL + 1)
    recording_store.is_down = True
    with pytest.raises(StoreUnavailable):
        new_worker().find(UUID)


@pytest.mark.usefixtures("mapped")
def test_the_newer_of_two(
    new_worker: Callable[[], Mappings], recording_store: RecordingStore, cache: Cache, clock: Clock, cell2: Cell
) -> None:
    """While the API database is down a worker goes by what was heard last, by itself or by another."""
    one, other, third = new_worker(), new_worker(), new_worker()
    one.find(UUID)
    clock.advance(TTL)
    recording_store.update_instance(UUID, cell_id=cell2.id)
    other.find(UUID)
    clock.advance(TTL)
    cache.is_down = True
    third.find(UUID)
    cache.is_down = False
    clock.advance(TTL)
    recording_store.is_down = True
    for worker, age in ((one, 2 * TTL), (other, 2 * TTL), (third, TTL)):
        found = worker.find(UUID)
        assert (found.cell_id, found.age) == (cell2.id, age)


@pytest.mark.parametrize("write", ["schedule", "queue_for_delete", "delete", "forget"])
@pytest.mark.usefixtures("mapped")
def test_written(new_worker: Callable[[], Mappings], clock: Clock, cell2: Cell, write: str) -> None:
    """After a write the shared entry is gone, and everybody who does not know it himself looks the instance up."""
    new_worker().find(UUID)
    writer = new_worker()
    writer.find(UUID)
    clock.advance(1)
    getattr(writer, write)(UUID, *([cell2] if write == "schedule" else []))
    for worker in (new_worker(), writer):
        found = worker.find(UUID)
        assert found.age == 0
        assert found.exists == (write != "delete")
        assert found.queued_for_delete == (write == "queue_for_delete")
        assert (found.cell_id == cell2.id) == (write == "schedule")


@pytest.mark.usefixtures("mapped")
def test_written_in_vain(
    new_worker: Callable[[], Mappings], shared: SharedMappings, cache: Cache, clock: Clock, cell1: Cell, cell2: Cell
) -> None:
    """An entry that could not be deleted, or came late from a host with a fast clock, is nothing to the writer.

    He replaces it as soon as he can.
    """
    writer = new_worker()
    writer.find(UUID)
    cache.is_down = True
    writer.schedule(UUID, cell2)
    cache.is_down = False
    clock.advance(CLOCK_SKEW + 1)
    assert writer.find(UUID).cell_id == cell2.id
    assert new_worker().find(UUID).cell_id == cell2.id
    writer.schedule(UUID, cell1)
    shared.put(UUID, Entry(cell2.id, "project", False, clock() + CLOCK_SKEW))
    clock.advance(CLOCK_SKEW + 1)
    assert writer.find(UUID).cell_id == cell1.id
    assert new_worker().find(UUID).cell_id == cell1.id


@pytest.mark.usefixtures("mapped")
def test_write_without_an_answer_is_shared(
    store: Store, new_worker: Callable[[], Mappings], cell2: Cell, clock: Clock
) -> None:
    """A write that fails may have been done all the same, so others look the instance up after it."""
    new_worker().find(UUID)
    writer = new_worker()

    def lose_the_answer(uuid: str, **values: Any) -> InstanceMapping:
        store.update_instance(uuid, **values)
        raise StoreUnavailable("the connection was lost during COMMIT")

    writer._store.update_instance = lose_the_answer  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        writer.schedule(UUID, cell2)
    assert new_worker().find(UUID).cell_id == cell2.id


@pytest.mark.usefixtures("mapped")
def test_distrust_of_what_is_shared(
    new_worker: Callable[[], Mappings], recording_store: RecordingStore, cache: Cache, clock: Clock, cell2: Cell
) -> None:
    """After a 404 of the app the API database is asked, not the others, and they hear what it says."""
    new_worker().find(UUID)
    recording_store.update_instance(UUID, cell_id=cell2.id)  # by somebody who tells nobody
    clock.advance(30)
    worker = new_worker()
    worker.distrust(worker.find(UUID))
    cache.asked = 0
    assert worker.find(UUID).cell_id == cell2.id
    assert cache.asked == 1
    assert new_worker().find(UUID).cell_id == cell2.id
    assert recording_store.lookups == [UUID] * 2


@pytest.mark.parametrize("doubtful", [True, False], ids=["distrusted", "expired"])
@pytest.mark.usefixtures("mapped")
def test_nothing_comes_back(
    new_worker: Callable[[], Mappings], recording_store: RecordingStore, clock: Clock, doubtful: bool
) -> None:
    """A shared entry of an instance that has no cell any more is dropped by who hears of that."""
    worker = new_worker()
    found = worker.find(UUID)
    if doubtful:
        clock.advance(1)
        worker.distrust(found)
        recording_store.delete_instance(UUID)
    else:
        clock.advance(TTL)
        recording_store.update_instance(UUID, cell_id=None)
    assert worker.find(UUID).cell_id is None
    recording_store.is_down = True
    with pytest.raises(StoreUnavailable):
        new_worker().find(UUID)


@pytest.mark.usefixtures("mapped")
def test_write_during_a_shared_load(
    new_worker: Callable[[], Mappings], recording_store: RecordingStore, clock: Clock, cell1: Cell, cell2: Cell
) -> None:
    """A look-up that was answered before a write of the same worker, and comes back after it, is not left to others."""
    worker = new_worker()
    recording_store.go_on.clear()

    def write() -> None:
        assert recording_store.answered.wait(PATIENCE)
        worker.schedule(UUID, cell2)
        recording_store.go_on.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert worker.find(UUID).cell_id == cell1.id
    thread.join(PATIENCE)
    assert new_worker().find(UUID).cell_id == cell2.id


@pytest.mark.usefixtures("mapped")
def test_write_by_another_during_a_load(
    new_worker: Callable[[], Mappings], recording_store: RecordingStore, clock: Clock, cell1: Cell, cell2: Cell
) -> None:
    """A look-up that another worker's write overtakes may be shared for a TTL at most; the writer never goes by it."""
    slow, writer = new_worker(), new_worker()
    recording_store.go_on.clear()

    def write() -> None:
        assert recording_store.answered.wait(PATIENCE)
        writer.schedule(UUID, cell2)
        recording_store.go_on.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert slow.find(UUID).cell_id == cell1.id
    thread.join(PATIENCE)
    clock.advance(CLOCK_SKEW + 1)
    assert writer.find(UUID).cell_id == cell2.id
    clock.advance(TTL - CLOCK_SKEW - 1)
    assert {worker.find(UUID).cell_id for worker in (slow, writer, new_worker())} == {cell2.id}


@pytest.mark.usefixtures("mapped")
def test_clock_that_is_ahead(new_worker: Callable[[], Mappings], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapping that another host has heard a moment from now, by its clock, is not younger than one heard now."""
    with monkeypatch.context() as ahead:
        ahead.setattr(mapping, "time", lambda: clock() + CLOCK_SKEW)
        new_worker().find(UUID)
    found = new_worker().find(UUID)
    assert found.age == 0
    clock.advance(TTL)
    assert found.expires_at <= clock()


@pytest.mark.usefixtures("mapped")
def test_doubts_are_bounded(new_worker: Callable[[], Mappings]) -> None:
    """Who writes very many mappings can't fill the memory with what he has written."""
    worker = new_worker()
    for uuid in uuids(50):
        worker.forget(uuid)
    assert len(worker._distrusted_at) == 3
