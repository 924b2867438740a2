# SPDX-License-Identifier: Apache-2.0
"""Whether something that has failed is worth another try."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest

from cellmw import breaker as module
from cellmw.breaker import Breaker, ProbedBreaker
from tests.unit.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def breaker() -> Breaker:
    """A breaker that is closed, and is tried each second once it is open."""
    return Breaker(1.0)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the time."""
    return lambda now: monkeypatch.setattr(module, "monotonic", lambda: now)


def test_closed(breaker: Breaker) -> None:
    """A new one is closed, and lets everybody through."""
    assert [breaker.allows() for _ in range(3)] == [True] * 3
    assert repr(breaker) == "<Breaker closed>"


def test_open(breaker: Breaker, at: Callable[[float], None]) -> None:
    """After a failure nobody is let through for a while, then one in each interval."""
    at(100.0)
    breaker.failed()
    assert repr(breaker) == "<Breaker open>"
    assert not breaker.allows()
    for now in (101.0, 102.0):
        at(now)
        assert [breaker.allows() for _ in range(3)] == [True, False, False]


def test_failed_again(breaker: Breaker, at: Callable[[float], None]) -> None:
    """An attempt that fails, however late, makes everybody wait for an interval from then on."""
    at(100.0)
    breaker.failed()
    at(101.0)
    assert breaker.allows()
    at(105.0)
    breaker.failed()
    assert not breaker.allows()


def test_succeeded(breaker: Breaker, at: Callable[[float], None]) -> None:
    """A success closes it."""
    at(100.0)
    breaker.failed()
    breaker.succeeded()
    assert breaker.allows()
    assert breaker.allows()


def test_one_of_many(breaker: Breaker, at: Callable[[float], None], together: Callable[..., list[Any]]) -> None:
    """Of many threads that ask at the same moment one is let through."""
    at(100.0)
    breaker.failed()
    at(101.0)
    assert sorted(together(8, lambda number: breaker.allows())) == [False] * 7 + [True]


class Probe:
    """Looks whether a thing answers, as the test has it. Records the pauses between the probes, which take no time.

    Lives as long as the test. It stands in for the breaker's event of its end, too, whose waits are those pauses.
    """

    def __init__(self) -> None:
        self.answers = False
        self.pauses: list[float] = []
        self.count = 0
        self.most = 1000
        self._ended = threading.Event()
        self._open = threading.Event()
        self._open.set()
        self.reached = threading.Event()

    def __call__(self) -> None:
        """Probe."""
        self.count += 1
        self.reached.set()
        assert self._open.wait(PATIENCE)
        if not self.answers:
            raise ConnectionRefusedError("rabbit://user:s3cret@host/")

    def hold(self) -> None:
        """Keep the next probe waiting until :meth:`let_go`."""
        self.reached.clear()
        self._open.clear()

    def let_go(self) -> None:
        """Let it go on."""
        self._open.set()

    def wait(self, pause: float) -> bool:
        """Wait for the next probe; there is none after as many as the test wants."""
        self.pauses.append(pause)
        return self._ended.is_set() or len(self.pauses) > self.most

    def is_set(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    def set(self) -> None:
        """End."""
        self._ended.set()


@pytest.fixture
def probe() -> Probe:
    """What finds out whether the thing answers."""
    return Probe()


@pytest.fixture
def probed(probe: Probe) -> Iterator[ProbedBreaker]:
    """A breaker that is closed, and is probed each second at least once it is open."""
    breaker = ProbedBreaker("cell cell1: its queue", probe, 1.0)
    breaker._ended = probe  # type: ignore[assignment]
    yield breaker
    breaker.close()
    probe.let_go()
    join()


def join() -> None:
    """Return when nobody probes any more."""
    while threads := [thread for thread in threading.enumerate() if thread.name == "cellmw-probe"]:
        threads[0].join(PATIENCE)
        assert not threads[0].is_alive()


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """What the breakers have logged."""
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "cellmw.breaker"]


def test_probed_opens_once(probed: ProbedBreaker, probe: Probe, caplog: pytest.LogCaptureFixture) -> None:
    """It opens at the first failure, and says so once, with what it is and why, however many come after it."""
    probe.hold()
    assert repr(probed) == "<ProbedBreaker cell cell1: its queue: closed>"
    for cause in ("TimeoutError", "ConnectionRefusedError"):
        probed.failed(cause)
    assert (probed.is_open, probed.cause) == (True, "TimeoutError")
    assert repr(probed) == "<ProbedBreaker cell cell1: its queue: open>"
    ((level, message),) = lines(caplog)
    assert level == "WARNING"
    assert message.startswith("cell cell1: its queue does not answer")
    assert message.endswith(": TimeoutError")


def test_probed_closes(probed: ProbedBreaker, probe: Probe, caplog: pytest.LogCaptureFixture) -> None:
    """The first probe that succeeds closes it, says so once, and is the last."""
    caplog.set_level("INFO", "cellmw.breaker")
    probe.hold()
    probed.failed("TimeoutError")
    assert probe.reached.wait(PATIENCE)
    assert probed.is_open
    probe.answers = True
    probe.let_go()
    join()
    assert (probed.is_open, probed.cause, probe.count) == (False, "", 1)
    assert lines(caplog)[1:] == [("INFO", "cell cell1: its queue answers again")]


def test_probed_pauses(
    probed: ProbedBreaker, probe: Probe, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pauses between its probes grow, up to the interval; while they fail nothing more is logged."""
    monkeypatch.setattr(module.random, "uniform", lambda least, most: most)
    probe.most = 7
    probed.failed("TimeoutError")
    join()
    assert probe.pauses == pytest.approx([0.1, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0])
    assert probed.is_open
    assert len(lines(caplog)) == 1


def test_probed_jitter(probed: ProbedBreaker, probe: Probe) -> None:
    """Each pause is shorter by chance, by a half at most, so that many workers don't come at once."""
    probe.most = 300
    probed.failed("TimeoutError")
    join()
    longest = probe.pauses[10:]
    assert 0.5 <= min(longest) < 0.6
    assert 0.9 < max(longest) <= 1.0


def test_suspect_that_answers(probed: ProbedBreaker, probe: Probe, caplog: pytest.LogCaptureFixture) -> None:
    """What is only suspected is probed once, at once, stays closed where it answers, and nothing is logged."""
    caplog.set_level("INFO", "cellmw.breaker")
    probe.answers = True
    probed.suspect()
    join()
    assert (probed.is_open, probe.pauses, probe.count, lines(caplog)) == (False, [0.0], 1, [])


def test_suspect_that_does_not_answer(probed: ProbedBreaker, probe: Probe, caplog: pytest.LogCaptureFixture) -> None:
    """Where it does not answer it is down, and the cause, which is logged, shows nothing of the error's message."""
    probe.most = 1
    probed.suspect()
    join()
    assert (probed.is_open, probed.cause) == (True, "ConnectionRefusedError in a probe")
    assert "s3cret" not in caplog.text


def test_changed(probed: ProbedBreaker, probe: Probe) -> None:
    """Whoever wants to know is told each time that it has opened or closed, and at no other time."""
    seen: list[bool] = []
    probed.changed = lambda: seen.append(probed.is_open)
    probe.hold()
    for report in (probed.succeeded, lambda: probed.failed("a"), lambda: probed.failed("b"), probed.suspect):
        report()
    assert seen == [True]
    probe.answers = True
    probe.let_go()
    join()
    probed.succeeded()
    assert seen == [True, False]


def test_closed_for_good(probed: ProbedBreaker, probe: Probe, caplog: pytest.LogCaptureFixture) -> None:
    """After its end nothing is probed, and it does not open any more."""
    probed.close()
    probed.failed("TimeoutError")
    probed.suspect()
    join()
    assert (probed.is_open, probe.count, lines(caplog)) == (False, 0, [])


def test_many_threads_fail(
    probed: ProbedBreaker,
    probe: Probe,
    together: Callable[..., list[Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However many threads fail or suspect at the same moment, one line is logged and one thread probes."""
    changes: list[bool] = []
    probed.changed = lambda: changes.append(probed.is_open)
    probe.hold()
    together(8, lambda number: probed.failed("TimeoutError") if number % 2 else probed.suspect())
    assert probe.reached.wait(PATIENCE)
    assert sum(thread.name == "cellmw-probe" for thread in threading.enumerate()) == 1
    assert (len(lines(caplog)), changes) == (1, [True])


def test_many_threads_see_both(
    probed: ProbedBreaker, probe: Probe, together: Callable[..., list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """However failures and successes alternate, the log and whoever wants to know see them alternate, too."""
    caplog.set_level("INFO", "cellmw.breaker")
    changes: list[bool] = []
    probed.changed = lambda: changes.append(probed.is_open)
    probe.hold()

    def report(number: int) -> None:
        for _ in range(100):
            if number % 2:
                probed.failed("TimeoutError")
            else:
                probed.succeeded()

    together(4, report)
    assert changes == [index % 2 == 0 for index in range(len(changes))]
    assert len(lines(caplog)) == len(changes)


def test_fails_just_after_a_probe(probed: ProbedBreaker, probe: Probe) -> None:
    """What fails in the moment after a probe has succeeded is probed again, and so is not down for ever."""
    changes: list[bool] = []

    def changed() -> None:
        changes.append(probed.is_open)

    probed.changed = changed
    probe.answers = True

    class Fails(logging.Handler):
        """Fails as soon as the log says that all is well."""

        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.INFO and len(changes) == 2:
                probed.failed("TimeoutError")

    handler = Fails()
    module.LOG.addHandler(handler)
    module.LOG.setLevel(logging.INFO)
    try:
        probed.failed("TimeoutError")
        join()
    finally:
        module.LOG.setLevel(logging.NOTSET)
        module.LOG.removeHandler(handler)
    assert changes == [True, False, True, False]


def test_thread_that_can_not_be_started(probed: ProbedBreaker, probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started for the probes, it is not open for ever."""
    probe.answers = True
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no more threads")))
        probed.failed("TimeoutError")
    probed.suspect()
    join()
    assert not probed.is_open
