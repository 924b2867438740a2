# SPDX-License-Identifier: Apache-2.0
"""Many questions at once: each has its answer, and one that hangs holds up nobody."""

from __future__ import annotations

import threading
from functools import partial
from time import monotonic

import pytest

from cellmw.admin.asking import AT_ONCE, ask
from cellmw.crew import Crew
from cellmw.exceptions import DeadlineExceeded
from tests.unit.conftest import PATIENCE


def test_answers() -> None:
    """Each answer is with its question, in the order of the questions, however many there are."""
    questions = {number: partial(str, number) for number in range(3 * AT_ONCE)}
    answers = ask(questions, PATIENCE, Crew())
    assert list(answers.items()) == [(number, str(number)) for number in range(3 * AT_ONCE)]


def test_errors() -> None:
    """What a question raises is its answer."""
    answers = ask({"good": partial(int, "1"), "bad": partial(int, "x")}, PATIENCE, Crew())
    assert (answers["good"], type(answers["bad"])) == (1, ValueError)


def test_side_by_side() -> None:
    """They are asked at the same time: all of them can wait for each other."""
    barrier = threading.Barrier(AT_ONCE)
    answers = ask({number: partial(barrier.wait, PATIENCE) for number in range(AT_ONCE)}, PATIENCE, Crew())
    assert sorted(answers.values()) == list(range(AT_ONCE))  # type: ignore[type-var]


def test_deadline() -> None:
    """One that hangs is left at the deadline; the others have answered."""
    released = threading.Event()
    began = monotonic()
    questions = {"slow": partial(released.wait, PATIENCE), **{n: partial(bool, True) for n in range(5)}}
    answers = ask(questions, 0.2, Crew())
    assert monotonic() - began < PATIENCE / 2
    assert [answers[n] for n in range(5)] == [True] * 5
    assert isinstance(answers["slow"], DeadlineExceeded)
    released.set()


def test_place_of_one_that_hangs() -> None:
    """Whatever hangs has its time and no more: then its place is another's, also where all of them hang."""
    released = threading.Event()
    questions = {number: partial(released.wait, PATIENCE) for number in range(4)} | {4: partial(bool, True)}
    began = monotonic()
    answers = ask(questions, 0.1, Crew(), at_once=2)
    assert 0.2 <= monotonic() - began < PATIENCE / 2
    assert [type(answers[number]) for number in range(5)] == [DeadlineExceeded] * 4 + [bool]
    released.set()


def test_no_more_at_once() -> None:
    """There are never more of them at a time than there may be."""
    lock, now, most = threading.Lock(), [0], [0]
    barrier = threading.Barrier(3)

    def count() -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        barrier.wait(PATIENCE)
        with lock:
            now[0] -= 1

    ask(dict.fromkeys(range(9), count), PATIENCE, Crew(), at_once=3)
    assert most == [3]


@pytest.mark.parametrize("count", [0, 1])
def test_few(count: int) -> None:
    """No question has no answer."""
    assert len(ask({n: partial(int) for n in range(count)}, PATIENCE, Crew())) == count
