# SPDX-License-Identifier: Apache-2.0
"""Whether something that has failed is worth another try."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cellmw import breaker as module
from cellmw.breaker import Breaker

if TYPE_CHECKING:
    from collections.abc import Callable


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
