# SPDX-License-Identifier: Apache-2.0
"""Deadline: the one moment by which everything that a request waits for has to be done.

It is passed down instead of a timeout for every step, so that five steps can't wait five times as long.
"""

from __future__ import annotations

from time import monotonic

from cellmw.exceptions import DeadlineExceeded


class Deadline:
    """A moment on the monotonic clock. Lives as long as one request; immutable, so threads share it freely."""

    __slots__ = ("_at",)

    def __init__(self, seconds: float) -> None:
        """Start the clock: the deadline is this many seconds from now."""
        self._at = monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left, 0.0 once it has passed."""
        return max(0.0, self._at - monotonic())

    def check(self, waited_for: str) -> None:
        """Do nothing while there is time.

        :param waited_for: what the caller is waiting for, for the message
        :raises DeadlineExceeded: once it has passed
        """
        if monotonic() >= self._at:
            raise DeadlineExceeded(waited_for)

    def __repr__(self) -> str:
        return f"<Deadline in {self.left():.3f} s>"
