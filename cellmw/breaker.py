# SPDX-License-Identifier: Apache-2.0
"""Breaker: whether something that failed a moment ago is worth another try.

It opens and closes nothing: whoever uses the thing asks before, and says afterwards how it went.
"""

from __future__ import annotations

import threading
from time import monotonic

RETRY_INTERVAL = 1.0
"""Seconds after which somebody tries again."""


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
