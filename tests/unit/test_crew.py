# SPDX-License-Identifier: Apache-2.0
"""The crew: what becomes of work that is done in time, and of work that its caller has to leave."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from cellmw import crew as module
from cellmw.crew import Crew
from cellmw.deadline import after
from cellmw.exceptions import DeadlineExceeded
from tests.unit.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHORT = 0.01


@pytest.fixture
def until_idle(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return when all threads of crews that have begun in the test have ended, for lack of work."""
    monkeypatch.setattr(module, "_IDLE_TIMEOUT", 0.05)
    before = set(threading.enumerate())

    def wait() -> None:
        for thread in set(threading.enumerate()) - before:
            if thread.name == "cellmw-crew":
                thread.join(PATIENCE)
                assert not thread.is_alive()

    return wait


@pytest.fixture
def crew(until_idle: Callable[[], None]) -> Iterator[Crew]:
    """A crew whose threads end soon; none of them is left after the test."""
    yield Crew()
    until_idle()


class Hold:
    """Work that goes on until the test lets it. Lives as long as the test."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def __call__(self) -> str:
        """Do it."""
        assert self.let_go.wait(PATIENCE)
        return "done"


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Work that the test holds, until its end at the latest."""
    hold = Hold()
    yield hold
    hold.let_go.set()


def until_empty(stuck: set[object]) -> None:
    """Return when nobody is stuck any more."""
    deadline = after(PATIENCE)
    while stuck:
        assert deadline > after(0), "somebody is counted for ever"
        threading.Event().wait(0.001)


def test_value(crew: Crew) -> None:
    """The caller gets what the work returns, which a thread of the crew has done."""
    names = crew.run(lambda: threading.current_thread().name, after(PATIENCE), set(), "")
    assert names == "cellmw-crew"


@pytest.mark.parametrize("error", [KeyError("k"), SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_error(crew: Crew, error: BaseException) -> None:
    """The caller gets what the work raises, whatever it is, and the thread goes on to serve."""

    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        crew.run(fail, after(PATIENCE), set(), "")
    assert caught.value is error
    assert crew.run(lambda: 1, after(PATIENCE), set(), "") == 1
    assert len(crew._idle) == 1


def test_deadline(crew: Crew, hold: Hold) -> None:
    """Work that is not done by the deadline is left; the error says what was waited for."""
    deadline = after(SHORT)
    with pytest.raises(DeadlineExceeded, match="waiting for a connection"):
        crew.run(hold, deadline, set(), "a connection")
    assert after(0) >= deadline


def test_late(crew: Crew, hold: Hold, until_idle: Callable[[], None]) -> None:
    """What comes back after that is handed to whoever closes it, once, and to nobody where it comes in time."""
    late: list[str] = []
    stuck: set[object] = set()
    crew.run(lambda: "in time", after(PATIENCE), stuck, "", late=late.append)
    with pytest.raises(DeadlineExceeded):
        crew.run(hold, after(SHORT), stuck, "", late=late.append)
    assert late == []
    hold.let_go.set()
    # the same thread takes this on only when it is done with that
    until_empty(stuck)
    until_idle()
    assert late == ["done"]


def test_stuck(crew: Crew, hold: Hold) -> None:
    """Each piece of work that was left is counted as long as it goes on, and no other is."""
    stuck: set[object] = set()
    seen: list[int] = []
    for count in (1, 2, 3):
        with pytest.raises(DeadlineExceeded):
            crew.run(hold, after(SHORT), stuck, "")
        crew.run(lambda: seen.append(len(stuck)), after(PATIENCE), stuck, "")
        assert len(stuck) == count
    assert seen == [1, 2, 3]
    hold.let_go.set()
    until_empty(stuck)


@pytest.mark.parametrize(("deadline", "slow_after"), [(PATIENCE, SHORT), (SHORT, PATIENCE)], ids=["long", "overdue"])
def test_slow(crew: Crew, hold: Hold, deadline: float, slow_after: float) -> None:
    """The caller says that it takes long, once, after a while or at the deadline, and goes on waiting."""
    said: list[str] = []

    def slow() -> None:
        said.append("slow")
        if slow_after == SHORT:
            hold.let_go.set()

    def run() -> str:
        return crew.run(hold, after(deadline), set(), "", slow=slow, slow_after=slow_after)

    if deadline == SHORT:
        with pytest.raises(DeadlineExceeded):
            run()
    else:
        assert run() == "done"
    assert said == ["slow"]


def test_done_and_left(crew: Crew, until_idle: Callable[[], None]) -> None:
    """Work that is done just as its caller leaves is returned or handed on, never both, and not counted for ever."""
    stuck: set[object] = set()
    late: list[int] = []
    returned: list[int] = []
    for number in range(300):
        barrier = threading.Barrier(2)

        def work(barrier: threading.Barrier = barrier, number: int = number) -> int:
            barrier.wait(PATIENCE)
            return number

        # the caller's last look and the end of the work are as close together as two threads can bring them
        leaving = threading.Thread(target=barrier.wait, args=(PATIENCE,))
        leaving.start()
        with contextlib.suppress(DeadlineExceeded):
            returned.append(crew.run(work, after(0.0002 * (number % 5)), stuck, "", late=late.append))
        leaving.join(PATIENCE)
    until_empty(stuck)
    until_idle()
    assert sorted(returned + late) == list(range(300))


@pytest.mark.parametrize("first", ["done", "left"])
def test_one_comes_first(first: str) -> None:
    """Work that was done can't be left any more, and what comes of work that was left is handed on."""
    stuck: set[object] = set()
    late: list[str] = []
    job = module.Job(lambda: "done", stuck, late.append)
    if first == "left":
        assert job.leave()
        assert stuck == {job}
    job.do()
    assert (job.wait(0), late, stuck) == (True, ["done"] if first == "left" else [], set())
    if first == "done":
        assert not job.leave()
        assert (job.result(), stuck) == ("done", set())


def test_both_at_once(together: Callable[[int, Callable[[int], Any]], list[Any]]) -> None:
    """Of being done and being left one comes first, however often both are tried at the same moment."""
    for spin in range(200):
        stuck: set[object] = set()
        late: list[str] = []
        job = module.Job(lambda: "done", stuck, late.append)

        def meet(number: int, job: Any = job, spin: int = spin) -> Any:
            if number == 0:
                return job.do()
            for _ in range(spin * 20):
                """Come a little later each time."""
            return job.leave()

        _, was_left = together(2, meet)
        assert (late, stuck) == (["done"] if was_left else [], set())


def test_thread_is_used_again(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """One caller after the other is served by the same thread; as many at a time by as many."""
    monkeypatch.setattr(module, "_IDLE_TIMEOUT", 1.0)
    idents = {crew.run(threading.get_ident, after(PATIENCE), set(), "") for _ in range(20)}
    # the thread puts itself back a moment after its caller has got the value
    assert len(idents) <= 2
    barrier = threading.Barrier(4)
    callers = [
        threading.Thread(target=crew.run, args=(lambda: barrier.wait(PATIENCE), after(PATIENCE), set(), ""))
        for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(PATIENCE)
    assert not barrier.broken


def test_idle_thread_ends(crew: Crew, monkeypatch: pytest.MonkeyPatch, until_idle: Callable[[], None]) -> None:
    """A thread that has nothing to do ends; the next caller, be it at that very moment, is served all the same."""
    monkeypatch.setattr(module, "_IDLE_TIMEOUT", 0.001)
    for number in range(300):
        assert crew.run(lambda number=number: number, after(PATIENCE), set(), "") == number
        threading.Event().wait(0.0005 * (number % 5))
    until_idle()
    assert list(crew._idle) == []


def test_keeps_no_process_alive() -> None:
    """A process ends though a thread is stuck in its work, and another one waits for some."""
    script = (
        "import threading\n"
        "from cellmw.crew import Crew\n"
        "from cellmw.deadline import after\n"
        "from cellmw.exceptions import DeadlineExceeded\n"
        "crew = Crew()\n"
        "try:\n"
        "    crew.run(lambda: threading.Event().wait(), after(0.01), set(), '')\n"
        "except DeadlineExceeded:\n"
        "    crew.run(print, after(20), set(), '')\n"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, timeout=PATIENCE)
    assert (run.returncode, run.stdout, run.stderr) == (0, b"\n", b"")


def test_start(crew: Crew, hold: Hold) -> None:
    """What was started goes on while its caller does something else, and can be waited for."""
    job = crew.start(hold, set())
    assert not job.wait(0)
    hold.let_go.set()
    assert (job.wait(PATIENCE), job.result()) == (True, "done")


class Meeting:
    """Work that is done when as many as the barrier wants are at it at once. Lives as long as the test."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self._barrier = barrier

    def do(self) -> None:
        """Do it."""
        self._barrier.wait(PATIENCE)


def test_none_waits_for_another(crew: Crew, hold: Hold) -> None:
    """Work never waits for other work, whatever threads have been idle, and how many pieces are given at once."""
    for count in (1, 3, 2, 8, 5):
        crew.start(hold, set())
        barrier = threading.Barrier(count + 1)
        for _ in range(count):
            crew.give(Meeting(barrier))
        barrier.wait(PATIENCE)


def test_no_more_threads(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started the caller is told, and the work is not done later by another one."""
    done: list[str] = []

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            crew.start(lambda: done.append("late"), set())
    assert crew.run(lambda: "next", after(PATIENCE), set(), "") == "next"
    assert done == []


def test_begin_anew(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was given before is not done by the threads of one that has begun anew."""
    done: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _: None)
        crew.start(lambda: done.append("before"), set())
    crew.begin_anew()
    assert crew.run(lambda: "anew", after(PATIENCE), set(), "") == "anew"
    assert done == []
