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
def crew(monkeypatch: pytest.MonkeyPatch) -> Iterator[Crew]:
    """A crew whose threads end soon; none of them is left after the test."""
    monkeypatch.setattr(module, "_IDLE_TIMEOUT", 0.05)
    before = set(threads())
    yield Crew()
    for thread in set(threads()) - before:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def threads() -> list[threading.Thread]:
    """All threads of all crews."""
    return [thread for thread in threading.enumerate() if thread.name == "cellmw-crew"]


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


def test_late(crew: Crew, hold: Hold) -> None:
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
    for thread in threads():
        thread.join(PATIENCE)
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


def test_done_and_left(crew: Crew) -> None:
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
    for thread in threads():
        thread.join(PATIENCE)
    assert sorted(returned + late) == list(range(300))


@pytest.mark.parametrize("first", ["done", "left"])
def test_one_comes_first(first: str) -> None:
    """Work that was done can't be left any more, and what comes of work that was left is handed on."""
    stuck: set[object] = set()
    late: list[str] = []
    job = module._Job(lambda: "done", stuck, late.append)
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
        job = module._Job(lambda: "done", stuck, late.append)

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


def test_idle_thread_ends(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that has nothing to do ends; the next caller, be it at that very moment, is served all the same."""
    monkeypatch.setattr(module, "_IDLE_TIMEOUT", 0.001)
    before = set(threads())
    for number in range(300):
        assert crew.run(lambda number=number: number, after(PATIENCE), set(), "") == number
        threading.Event().wait(0.0005 * (number % 5))
    for thread in set(threads()) - before:
        thread.join(PATIENCE)
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
