# SPDX-License-Identifier: Apache-2.0
"""One thread fetches, the others wait for it."""

from __future__ import annotations

import contextlib
import gc
import queue
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from cellmw import deadline, flights
from cellmw.exceptions import DeadlineExceeded
from cellmw.flights import Flights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 20


class Fetch:
    """A fetch that a test lands when it likes. Records how often it was begun."""

    def __init__(self, result: Any = "value") -> None:
        self.begun = threading.Semaphore(0)
        self.count = 0
        self._land = threading.Event()
        self._result = result

    def __call__(self) -> Any:
        self.count += 1
        self.begun.release()
        assert self._land.wait(PATIENCE)
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result

    def wait_until_begun(self) -> None:
        """Return once a thread is fetching."""
        assert self.begun.acquire(timeout=PATIENCE)

    def land(self) -> None:
        """Let it come back, this time and from now on."""
        self._land.set()


class Runs:
    """Runs of the same flights in threads of their own."""

    def __init__(self, threads: ThreadPoolExecutor, waiting: queue.SimpleQueue[None]) -> None:
        self.flights: Flights[str, Any] = Flights()
        self.kept: list[Any] = []
        self._threads = threads
        self._waiting = waiting

    def run(self, fetch: Callable[[], Any], key: str = "key", seconds: float = PATIENCE) -> Any:
        """Run in this thread."""
        return self.flights.run(key, fetch, self.kept.append, deadline.after(seconds), f"what {key} is")

    def start(self, fetch: Callable[[], Any], key: str = "key") -> Future[Any]:
        """Run in another thread."""
        return self._threads.submit(self.run, fetch, key)

    def start_waiter(self, fetch: Callable[[], Any]) -> Future[Any]:
        """Run in another thread, and return when it waits for the one that fetches already."""
        waiter = self.start(fetch)
        self._waiting.get(timeout=PATIENCE)
        return waiter


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    """Flights, and threads to run them in."""
    waiting: queue.SimpleQueue[None] = queue.SimpleQueue()

    def left(moment: float) -> float:
        waiting.put(None)  # only who waits for another thread asks how long
        return deadline.left(moment)

    monkeypatch.setattr(flights, "left", left)
    with ThreadPoolExecutor(20) as threads:
        yield Runs(threads, waiting)


def test_alone(runs: Runs) -> None:
    """Where nobody else is fetching, the fetch runs in the caller's own thread, and its value is kept."""
    assert runs.run(threading.get_ident) == threading.get_ident()
    assert runs.kept == [threading.get_ident()]


def test_remembers_nothing(runs: Runs) -> None:
    """Each call after the last fetch has ended fetches again."""
    assert [runs.run(lambda: "a"), runs.run(lambda: "b")] == ["a", "b"]


def test_single_flight(runs: Runs) -> None:
    """Of 16 threads one fetches, and all get its value, which is kept once."""
    fetch = Fetch()
    leader = runs.start(fetch)
    fetch.wait_until_begun()
    waiters = [runs.start_waiter(fetch) for _ in range(15)]
    fetch.land()
    assert [run.result(PATIENCE) for run in [leader, *waiters]] == ["value"] * 16
    assert fetch.count == 1
    assert runs.kept == ["value"]


def test_at_most_one_at_a_time(together: Callable[[int, Callable[[int], Any]], list[Any]]) -> None:
    """However 16 threads come, there are never two fetches of one key under way."""
    runs: Flights[int, int] = Flights()
    under_way = [0, 0]

    def fetch(key: int) -> int:
        under_way[key] += 1
        assert under_way[key] == 1
        under_way[key] -= 1
        return key

    def run_often(number: int) -> None:
        key = number % 2
        for _ in range(200):
            assert runs.run(key, lambda: fetch(key), lambda value: None, None, "") == key

    assert together(16, run_often) == [None] * 16


def test_keys_do_not_wait_for_each_other(runs: Runs) -> None:
    """A fetch of one key goes on while another's is under way."""
    slow = Fetch()
    leader = runs.start(slow, "slow")
    slow.wait_until_begun()
    assert runs.run(lambda: "fast", "fast") == "fast"
    slow.land()
    assert leader.result(PATIENCE) == "value"


def test_kept_before_it_is_over(runs: Runs) -> None:
    """Who comes when a fetch is over finds its value kept: there is no moment for a second fetch in between."""
    running: list[bool] = []
    runs.flights.run("key", lambda: 1, lambda value: running.append("key" in runs.flights._under_way), None, "")
    assert running == [True]


def test_error_is_shared(runs: Runs) -> None:
    """What the fetch raises is raised in each thread that waited for it, and nothing is kept."""
    fetch = Fetch(ZeroDivisionError("no value"))
    leader = runs.start(fetch)
    fetch.wait_until_begun()
    waiters = [runs.start_waiter(fetch) for _ in range(3)]
    fetch.land()
    for run in [leader, *waiters]:
        with pytest.raises(ZeroDivisionError, match="no value"):
            run.result(PATIENCE)
    assert (fetch.count, runs.kept) == (1, [])


def test_error_is_not_remembered(runs: Runs) -> None:
    """The call after a fetch that failed fetches again."""
    with pytest.raises(ZeroDivisionError):
        runs.run(lambda: 1 / 0)
    assert runs.run(lambda: "value") == "value"


def test_deadline_of_a_waiter(runs: Runs) -> None:
    """Who waits gives up at the deadline of its own, with an error that says what for; the fetch goes on."""
    fetch = Fetch()
    leader = runs.start(fetch)
    fetch.wait_until_begun()
    with pytest.raises(DeadlineExceeded, match="waiting for what key is") as caught:
        runs.run(fetch, seconds=0)
    assert caught.value.waited_for == "what key is"
    fetch.land()
    assert leader.result(PATIENCE) == "value"
    assert runs.kept == ["value"]


def test_deadline_does_not_stop_the_leader(runs: Runs) -> None:
    """Who fetches is not stopped by a deadline: that is the fetch's own business."""
    assert runs.run(lambda: "value", seconds=0) == "value"


def test_no_deadline(runs: Runs) -> None:
    """Who has no deadline waits as long as it takes."""
    fetch = Fetch()
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(runs.flights.run, "key", fetch, runs.kept.append, None, "") for _ in range(2)]
        fetch.wait_until_begun()
        fetch.land()
        assert [call.result(PATIENCE) for call in calls] == ["value"] * 2


def test_deadline_of_the_leader(runs: Runs) -> None:
    """Where the leader's time was up, one of those who waited fetches instead: their time is not."""
    late = Fetch(DeadlineExceeded("something below"))
    leader = runs.start(late)
    late.wait_until_begun()
    waiters = [runs.start_waiter(lambda: "in time") for _ in range(5)]
    late.land()
    assert [run.result(PATIENCE) for run in waiters] == ["in time"] * 5
    with pytest.raises(DeadlineExceeded, match="something below"):
        leader.result(PATIENCE)


def test_forget_drops(runs: Runs) -> None:
    """Forgetting drops what was kept, whether or not something is under way."""
    runs.run(lambda: "value")
    runs.flights.forget("key", runs.kept.clear)
    assert runs.kept == []


def test_forget_during_a_fetch(runs: Runs) -> None:
    """What is under way while its key is forgotten keeps nothing; who waits for it gets it all the same."""
    fetch = Fetch("stale")
    leader = runs.start(fetch)
    fetch.wait_until_begun()
    waiter = runs.start_waiter(fetch)
    runs.flights.forget("key", runs.kept.clear)
    fetch.land()
    assert [leader.result(PATIENCE), waiter.result(PATIENCE)] == ["stale", "stale"]
    assert runs.kept == []


def test_fetch_after_forget(runs: Runs) -> None:
    """Who comes after a key was forgotten does not get what is under way but fetches anew, and that is what is kept."""
    stale = Fetch("stale")
    leader = runs.start(stale)
    stale.wait_until_begun()
    runs.flights.forget("key", runs.kept.clear)
    assert runs.run(lambda: "fresh") == "fresh"
    stale.land()
    assert leader.result(PATIENCE) == "stale"
    assert runs.kept == ["fresh"]


def test_forgotten_fetch_does_not_end_the_next(runs: Runs) -> None:
    """A fetch that was forgotten lands without ending the one that has begun since."""
    stale, fresh = Fetch("stale"), Fetch("fresh")
    first = runs.start(stale)
    stale.wait_until_begun()
    runs.flights.forget("key", runs.kept.clear)
    second = runs.start(fresh)
    fresh.wait_until_begun()
    stale.land()
    assert first.result(PATIENCE) == "stale"
    third = runs.start_waiter(fresh)
    fresh.land()
    assert [second.result(PATIENCE), third.result(PATIENCE)] == ["fresh", "fresh"]
    assert fresh.count == 1


def test_end_of_a_thread_is_its_own(runs: Runs) -> None:
    """What ends the thread that fetches is no answer to those who wait: one of them fetches instead."""
    ending = Fetch(SystemExit())
    leader = runs.start(ending)
    ending.wait_until_begun()
    waiter = runs.start_waiter(lambda: "value")
    ending.land()
    assert isinstance(leader.exception(PATIENCE), SystemExit)
    assert waiter.exception(PATIENCE) is None
    assert waiter.result() == "value"


def test_failed_fetch_leaves_no_garbage() -> None:
    """A fetch that failed keeps nothing of its caller alive: no request waits for the garbage collector."""

    class Request:
        pass

    def run() -> weakref.ref[Request]:
        request = Request()
        with contextlib.suppress(ZeroDivisionError):
            Flights().run("key", lambda: 1 / 0, lambda value: None, None, "")
        return weakref.ref(request)

    gc.collect()
    gc.disable()
    try:
        assert run()() is None
    finally:
        gc.enable()
