# SPDX-License-Identifier: Apache-2.0
"""Many things asked at the same time: what they find, and what becomes of one that never answers."""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from cellmw.admin.doctor import Finding, Severity
from cellmw.admin.doctor import probe as module
from cellmw.admin.doctor.finding import counted, listed
from cellmw.admin.doctor.probe import Probe, Unanswered, run
from cellmw.crew import Crew
from cellmw.exceptions import ConfigError, DeadlineExceeded, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOUND = Finding(Severity.WARNING, "cell1", "brokers", "it is slow", "be patient")

SHORT = 0.2


@pytest.fixture
def hung() -> Iterator[Callable[[], Any]]:
    """What does not come back before the test has ended."""
    over = threading.Event()
    yield lambda: iter([over.wait() and FOUND])  # type: ignore[list-item]
    over.set()


def asked(*probes: Probe, checks: tuple[str, ...] = ("brokers", "databases"), timeout: float = 20.0) -> list[Finding]:
    """Return what comes of these."""
    return list(run(probes, checks, Crew(), timeout))


def probe(ask: Callable[[], Any], *checks: str) -> Probe:
    """Return what asks this of the broker of cell1."""
    return Probe(checks or ("brokers",), "cell1", "the broker", ask)


def test_found() -> None:
    """What is found is given, in the order of the probes."""
    other = Finding(Severity.INFO, "cell2", "databases", "it is there", "nothing")
    assert asked(probe(lambda: [FOUND]), probe(lambda: iter([other, FOUND]))) == [FOUND, other, FOUND]
    assert asked() == []


def test_only_what_is_wanted() -> None:
    """What is found for a check that is not to be done is left out."""
    both = probe(lambda: [FOUND], "databases", "brokers")
    assert asked(both, checks=("databases",)) == []
    assert asked(both, checks=("brokers",)) == [FOUND]


def test_all_at_once() -> None:
    """Each is asked while the others are."""
    barrier = threading.Barrier(8)
    assert asked(*[probe(lambda: [FOUND] if barrier.wait(20) >= 0 else [])] * 8) == [FOUND] * 8


def test_many_are_asked_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are more than there may be at a time, no one is left out."""
    monkeypatch.setattr(module, "_AT_ONCE", 3)
    assert asked(*[probe(lambda: [FOUND])] * 8) == [FOUND] * 8


def test_one_that_hangs(hung: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never answers is left in time, and the others are heard."""
    monkeypatch.setattr(module, "_GRACE", 0.0)
    begun = monotonic()
    silent, found = asked(probe(hung), probe(lambda: [FOUND]), timeout=SHORT)
    assert SHORT <= monotonic() - begun < SHORT + 2
    assert found == FOUND
    assert (silent.severity, silent.cell, silent.check) == (Severity.ERROR, "cell1", "brokers")
    assert silent.what == "the broker: no answer within 0.2 s"


def test_several_that_hang(hung: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Their time is the same time."""
    monkeypatch.setattr(module, "_GRACE", 0.0)
    begun = monotonic()
    assert len(asked(*[probe(hung)] * 5, timeout=SHORT)) == 5
    assert monotonic() - begun < SHORT + 2


def test_grace(hung: Callable[[], Any]) -> None:
    """Whoever notices by itself that its time is up is waited for a moment longer."""

    def late() -> Any:
        threading.Event().wait(SHORT + 0.1)
        raise Unanswered("it is asleep", "wake it")

    (found,) = asked(probe(late), timeout=SHORT)
    assert found.what == "the broker: it is asleep"


@pytest.mark.parametrize(
    ("error", "what", "todo"),
    [
        (Unanswered("nobody is there", "go there"), "the broker: nobody is there", "go there"),
        (ConfigError("it is wrong: set it"), "the broker: it is wrong: set it", "see what it says"),
        (StoreUnavailable("it lacks a table: sync it"), "the broker: it lacks a table: sync it", "see what it says"),
        (
            StoreUnavailable("it does not answer"),
            "the broker: it does not answer",
            "start it, or correct [api_database] connection",
        ),
        (
            DeadlineExceeded("a connection"),
            "the broker: no answer within 20 s",
            "see whether it is alive, and the network",
        ),
        (
            KeyError("no-password-of-ours"),
            "the broker: KeyError, which should not happen",
            "`cellmw-manage --debug doctor` shows where",
        ),
    ],
    ids=["unanswered", "ours", "store", "store-down", "its-time-is-up", "any"],
)
def test_no_answer_is_always_told(error: Exception, what: str, todo: str) -> None:
    """That nothing could be found out is an error of the first check, also where that is not to be done."""

    def fail() -> Any:
        raise error

    for checks in (("brokers",), ("databases",)):
        expected = Finding(Severity.ERROR, "cell1", "brokers", what, todo)
        assert asked(probe(fail, "brokers", "databases"), probe(lambda: [FOUND]), checks=("brokers",))[:1] == [expected]
        assert asked(probe(fail, "brokers", "databases"), checks=checks) == [expected]


def test_severities() -> None:
    """The worst one is the highest, and is the exit code that a monitoring plugin has for it."""
    assert [(severity.value, str(severity)) for severity in Severity] == [(0, "info"), (1, "warning"), (2, "error")]


def test_counted() -> None:
    """One thing is said of as one."""
    assert [counted(count, "host") for count in (1, 2)] == ["there is 1 host", "there are 2 hosts"]


def test_listed() -> None:
    """Of many names the first are named."""
    assert [listed(list("abcdefg"[:count])) for count in (1, 5, 7)] == [
        "a",
        "a, b, c, d, e",
        "a, b, c, d, e and 2 more",
    ]
