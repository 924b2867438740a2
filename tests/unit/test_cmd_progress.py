# SPDX-License-Identifier: Apache-2.0
"""How far a command is -> lines where there is no terminal; tests/functional/test_terminal.py has the terminal."""

from __future__ import annotations

import pytest

from cellmw.cmd.progress import Progress


class Clock:
    """A clock that the test moves. Lives as long as the test."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


def test_first_line_comes_soon(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    """After a second there is a line, the next ones every ten seconds; each has the rate and the time left."""
    with Progress("instances", 1000, clock=clock) as progress:
        said = []
        for now in (100.5, 101, 102, 110.5, 111):
            clock.now = now
            progress.advance(100)
            said.append(capsys.readouterr().err)
    assert said == [
        "",
        "cellmw-manage: 200 of 1000 instances, 200 a second, 4 s left\n",
        "",
        "",
        "cellmw-manage: 500 of 1000 instances, 45 a second, 11 s left\n",
    ]


def test_last_line_says_the_total(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    """The last line says how many there were and in what time, on stderr alone."""
    with Progress("instances", clock=clock) as progress:
        progress.advance(10)
        clock.now += 0.5
        progress.advance(20)
    assert tuple(capsys.readouterr()) == ("", "cellmw-manage: 30 instances, 60 a second, in 0.5 s\n")
    assert progress.done == 30


def test_nothing_to_count(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    """Where nothing was done nothing is said, also not of a division by zero."""
    with Progress("instances", 0, clock=clock) as progress:
        clock.now += 60
        progress.advance(0)
    assert (progress.rate, capsys.readouterr().err.count("left")) == (0, 0)


def test_more_than_expected(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    """Where there are more than were counted before no time is left, and none below that."""
    with Progress("instances", 10, clock=clock) as progress:
        clock.now += 2
        progress.advance(20)
        assert ", 0 s left" in capsys.readouterr().err


def test_interrupted(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    """How far it has got is said as well where it did not get to the end."""

    def interrupted() -> None:
        with Progress("instances", 10, clock=clock) as progress:
            progress.advance(5)
            clock.now += 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capsys.readouterr().err == "cellmw-manage: 5 of 10 instances, 5 a second, in 1.0 s\n"
