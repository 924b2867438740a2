# SPDX-License-Identifier: Apache-2.0
"""How far a long command is -> a bar with rate and time left on a terminal, and a line now and then elsewhere.

It is shown on stderr. What is on stdout, for a script to read, has nothing of it.
"""

from __future__ import annotations

import sys
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from tqdm import tqdm

from cellmw.cmd.command import note

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_SOON = 1.0
"""Seconds until the first line where there is no terminal."""

_PAUSE = 10.0
"""Seconds between two lines after that."""


class Progress:
    """Counts what is done, for a with block, and shows it on stderr. Lives as long as the command.

    :ivar done: how many there are so far
    """

    def __init__(self, what: str, total: int | None = None, *, clock: Callable[[], float] = monotonic) -> None:
        """Begin with nothing done.

        :param what: what is counted, as in ``instances``
        :param total: how many there will be, where that is known
        """
        self.done = 0
        self._what = what
        self._total = total
        self._clock = clock
        self._began_at = clock()
        self._told_at = self._began_at + _SOON - _PAUSE
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, unit=f" {what}", file=sys.stderr, dynamic_ncols=True)

    @property
    def rate(self) -> float:
        """How many were done in a second."""
        return self.done / max(self._clock() - self._began_at, 1e-6)

    def advance(self, count: int) -> None:
        """Count some more."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._clock() - self._told_at >= _PAUSE:
            self._told_at = self._clock()
            note(self._line() + self._left())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.done:
            note(f"{self._line()}, in {self._clock() - self._began_at:.1f} s")

    def _line(self) -> str:
        of = "" if self._total is None else f" of {self._total}"
        return f"{self.done}{of} {self._what}, {self.rate:.0f} a second"

    def _left(self) -> str:
        if self._total is None or not self.done:
            return ""
        return f", {max(self._total - self.done, 0) / self.rate:.0f} s left"
