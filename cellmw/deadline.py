# SPDX-License-Identifier: Apache-2.0
"""Deadline: the one moment by which everything that a request waits for has to be done.

It is passed down instead of a timeout for every step, so that five steps can't wait five times as long.
"""

from __future__ import annotations

from time import monotonic

Deadline = float
"""A moment on the clock of ``time.monotonic()``, in seconds."""

SLOW = 1.0
"""Seconds after which a wait is long enough to look whether the server is there at all."""


def after(seconds: float) -> Deadline:
    """Return the deadline that is this many seconds from now."""
    return monotonic() + seconds


def left(deadline: Deadline) -> float:
    """Return the seconds that are left until then, 0.0 once it has passed."""
    return max(0.0, deadline - monotonic())
