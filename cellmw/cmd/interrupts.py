# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM -> KeyboardInterrupt in the command, with the exit code that a shell has for it.

The first one unwinds what is open, so that transactions are rolled back and connections closed. That may take as long
as a server that does not answer, so a second one ends the process at once; then the servers roll back by themselves.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any, Self

from cellmw.log import masked

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

NOTHING_DONE = "nothing was done"
"""What is said while there is no command yet."""

_STDERR = 2

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM has come, as systemd sends it."""


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Return 128 and the number of the signal."""
    return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


class Interrupts:
    """Takes the signals, for a with block in the main thread. Lives as long as the command.

    A signal that the process was started to ignore is ignored. Once one has come they stay taken, as threads that are
    waited for at the end of the process may be stuck as well.

    :ivar where: returns where to go on, for the second one
    """

    def __init__(self, name: str) -> None:
        """Take nothing yet.

        :param name: of the program, to be put in front of what is said
        """
        self.where: Callable[[], str] = lambda: NOTHING_DONE
        self._name = name
        self._before: dict[int, Any] = {}
        self._came = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._come)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._came:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _come(self, number: int, frame: FrameType | None) -> None:
        if self._came:
            # print() could meet itself half-way: whatever runs may be inside of it
            os.write(_STDERR, f"\n{self._name}: {masked(self._said_at_once())}\n".encode())
            os._exit(128 + number)
        self._came = True
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def _said_at_once(self) -> str:
        return f"interrupted again, stopped at once: {self.where()}"
