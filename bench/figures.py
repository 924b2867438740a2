# SPDX-License-Identifier: Apache-2.0
"""Measures -> figures: each takes its turn, many times over, and what they find is compared by its medians."""

from __future__ import annotations

import gc
import json
import math
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def call_time(call: Callable[[], object], calls: int = 1) -> float:
    """Return the microseconds that a call takes."""
    gc.collect()
    return with_room(call, calls) / calls * 1e6


def with_room(call: Callable[[], object], calls: int) -> float:
    """Call as often as that, with room on the stack for all that is behind it, and return the seconds that takes."""
    start = perf_counter()
    for _ in range(calls):
        call()
    return perf_counter() - start


# CPython keeps the frames of a thread's functions in chunks of 16 kB. A loop that calls across the end of one gets the
# next from the system and gives it back, each time round: milliseconds in a request of Nova's, which any one frame in
# front of it brings or takes away, by chance. For a frame as large as this one there is a chunk that holds the rest.
with_room.__code__ = with_room.__code__.replace(co_stacksize=20_000)


def stop_collecting() -> None:
    """Collect garbage between measurements from now on, and in none.

    What has come so far is no garbage: it need not be looked at between measurements.
    """
    gc.collect()
    gc.freeze()
    gc.disable()


def in_turn(measures: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Let the measures take turns, forwards and backwards, and return what each finds in each repeat."""
    for measure in measures.values():
        measure()
    samples: dict[str, list[float]] = {name: [] for name in measures}
    for repeat in range(repeats):
        for name in list(measures)[:: -1 if repeat % 2 else 1]:
            samples[name].append(measures[name]())
    return samples


def interval(values: list[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the median: by rank, which takes the values to be independent alone."""
    count = len(values)
    rank = outside = 0
    while 40 * (outside := outside + math.comb(count, rank)) <= 2**count:
        rank += 1
    ordered = sorted(values)
    return ordered[rank - 1], ordered[count - rank]


def rounded(values: Iterable[float]) -> list[float]:
    """Return the values as they are printed."""
    return [round(value, 2) for value in values]


def report(figure: str, microseconds: float, **more: Any) -> None:
    """Print one figure as a line of JSON."""
    print(json.dumps({"figure": figure, "us": round(microseconds, 2), **more}), flush=True)


def limited(value: float, limit: float) -> dict[str, Any]:
    """Describe a value that has a limit."""
    return {"limit": round(limit, 2), "reached": value <= limit}
