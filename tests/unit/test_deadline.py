# SPDX-License-Identifier: Apache-2.0
"""The deadline of a request."""

from __future__ import annotations

import pytest

from cellmw import deadline


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time; a test changes its one item."""
    now = [1000.0]
    monkeypatch.setattr(deadline, "monotonic", lambda: now[0])
    return now


def test_after(clock: list[float]) -> None:
    """A deadline is a moment on the monotonic clock."""
    assert deadline.after(2.5) == 1002.5


def test_left_shrinks(clock: list[float]) -> None:
    """What is left of a deadline shrinks as time passes."""
    moment = deadline.after(10)
    clock[0] += 4
    assert deadline.left(moment) == 6


@pytest.mark.parametrize("late", [0.0, 0.1, 1e6])
def test_nothing_is_left(clock: list[float], late: float) -> None:
    """Once the deadline has passed 0.0 is left, never less: it goes into timeouts as it is."""
    moment = deadline.after(10)
    clock[0] += 10 + late
    assert deadline.left(moment) == 0.0
