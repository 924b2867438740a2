# SPDX-License-Identifier: Apache-2.0
"""Breaker: whether something that failed a moment ago is worth another try.

It does nothing with the thing itself: whoever uses it asks before, and says afterwards how it went.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LOG = logging.getLogger(__name__)

RETRY_INTERVAL = 1.0
"""Seconds after which somebody tries again."""

_FIRST_PAUSE = 0.1
"""The pause between the first two probes, as a part of the longest; each is twice as long as the one before."""

_JITTER = 0.5
"""By what part of itself a pause may be shorter, so that many workers don't come at once."""


class Breaker:
    """Open while something does not answer. Lives as long as the thing; shared by all threads.

    While it is open one caller in each interval is let through, to find out; everybody else is spared the wait.

    :ivar is_open: whether the last attempt has failed
    """

    def __init__(self, retry_interval: float = RETRY_INTERVAL) -> None:
        """Begin closed."""
        self.is_open = False
        self._retry_interval = retry_interval
        self._lock = threading.Lock()
        self._next_attempt = 0.0

    def allows(self) -> bool:
        """Tell whether to try: always while it is closed, and where it is open if it is this caller's turn."""
        if not self.is_open:
            return True
        with self._lock:
            now = monotonic()
            if now < self._next_attempt:
                return False
            self._next_attempt = now + self._retry_interval
            return True

    def failed(self) -> None:
        """Open it."""
        with self._lock:
            self.is_open = True
            self._next_attempt = monotonic() + self._retry_interval

    def succeeded(self) -> None:
        """Close it."""
        self.is_open = False

    def __repr__(self) -> str:
        return f"<Breaker {'open' if self.is_open else 'closed'}>"


class ProbedBreaker:
    """Open while something does not answer, and closed again by a probe that nobody waits for. Lives as long as it.

    Shared by all threads. The probes are made by a thread that begins with the first failure, or the first doubt, and
    ends with the first probe that succeeds.

    :ivar is_open: whether it is known not to answer
    :ivar cause: why, in a few words without a URL; empty while it is closed
    :ivar changed: called, under a lock, whenever it has opened or closed
    """

    def __init__(self, what: str, probe: Callable[[], object], interval: float) -> None:
        """Begin closed.

        :param what: what it is, for the log: "cell cell1: the database"
        :param probe: returns if it answers and raises an exception if not, within a few seconds
        :param interval: the longest pause between two probes, in seconds
        """
        self.is_open = False
        self.cause = ""
        self.changed: Callable[[], object] | None = None
        self._what = what
        self._probe = probe
        self._interval = interval
        self._lock = threading.Lock()
        self._probing = False
        self._ended = threading.Event()

    def failed(self, cause: str) -> None:
        """Open it: it certainly does not answer."""
        with self._lock:
            if self._ended.is_set():
                return
            was_open, self.is_open = self.is_open, True
            if not was_open:
                self.cause = cause
                if self.changed is not None:
                    self.changed()
        if not was_open:
            LOG.warning("%s does not answer, what needs it is refused until it does: %s", self._what, cause)
        self._start(_FIRST_PAUSE * self._interval)

    def succeeded(self) -> None:
        """Close it: it certainly answers."""
        with self._lock:
            was_open = self._close()
        self._log_back(was_open)

    def suspect(self) -> None:
        """Have somebody look: something took long, or failed for a reason that can be another."""
        self._start(0.0)

    def refuses(self) -> bool:
        """Tell whether it is open, and see to it that somebody looks, where no thread could be started for that."""
        if self.is_open and not self._probing:
            self._start(_FIRST_PAUSE * self._interval)
        return self.is_open

    def close(self) -> None:
        """End: nothing is probed any more."""
        self._ended.set()

    def _start(self, pause: float) -> None:
        with self._lock:
            if self._probing or self._ended.is_set():
                return
            thread = threading.Thread(target=self._find_out, args=(pause,), name="cellmw-probe", daemon=True)
            with contextlib.suppress(RuntimeError):  # there are too many, or the interpreter is near its end
                thread.start()
                self._probing = True

    def _find_out(self, pause: float) -> None:
        longest = _FIRST_PAUSE * self._interval
        while not self._ended.wait(pause):
            try:
                self._probe()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
                self.failed(f"{type(error).__name__} in a probe")
            else:
                with self._lock:
                    # in one step: who fails after that finds nobody who probes, and starts somebody
                    was_open = self._close()
                    self._probing = False
                self._log_back(was_open)
                return
            pause = longest * random.uniform(1 - _JITTER, 1)  # noqa: S311 - guards no secret
            longest = min(2 * longest, self._interval)

    def _close(self) -> bool:
        was_open, self.is_open, self.cause = self.is_open, False, ""
        if was_open and self.changed is not None:
            self.changed()
        return was_open

    def _log_back(self, was_open: bool) -> None:
        if was_open:
            LOG.info("%s answers again", self._what)

    def __repr__(self) -> str:
        return f"<ProbedBreaker {self._what}: {'open' if self.is_open else 'closed'}>"
