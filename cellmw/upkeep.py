# SPDX-License-Identifier: Apache-2.0
"""Upkeep: what has to be done again and again, outside of requests, in a thread of its own."""

from __future__ import annotations

import logging
import random
import threading
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

LOG = logging.getLogger(__name__)

_JITTER = 0.2
"""By what part of the interval a round may come early, so that many workers don't come at once."""


class Upkeep:
    """Calls a method once in each interval. Lives as long as the process; ``close()`` ends its thread.

    The thread begins with :meth:`start` and ends with ``close()``, with the process or with the method's object.
    """

    def __init__(self, method: Callable[[], Any], interval: float) -> None:
        """Begin without a thread.

        :param method: a bound one, whose object is not kept alive by this
        :param interval: seconds
        """
        self._method = weakref.WeakMethod(method)
        self._interval = interval
        self.begin_anew()

    def begin_anew(self) -> None:
        """Begin without a thread, as in a child process, which has inherited none."""
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> bool:
        """Begin, if it hasn't begun or ended yet.

        :returns: whether it has begun by this call
        """
        with self._lock:
            if self._thread is not None or self._ended.is_set():
                return False
            self._thread = threading.Thread(
                target=_run, args=(self._method, self._interval, self._ended), name="cellmw-upkeep", daemon=True
            )
            self._thread.start()
            return True

    def close(self) -> None:
        """End; a round that is under way goes on to its end."""
        with self._lock:
            self._ended.set()


def _run(weak: weakref.WeakMethod[Callable[[], Any]], interval: float, ended: threading.Event) -> None:
    while not ended.wait(interval * random.uniform(1 - _JITTER, 1)):  # noqa: S311 - guards no secret
        method = weak()
        if method is None:
            return
        try:
            method()
        except Exception:
            LOG.exception("upkeep failed, and is tried again in %s seconds", interval)
        del method
