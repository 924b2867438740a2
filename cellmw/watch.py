# SPDX-License-Identifier: Apache-2.0
"""Watch: database waits whose time is up are ended, by cutting the connection that they wait on.

A thread that reads from a server which has frozen is freed by nothing else: the kernel of such a server goes on
acknowledging, so no keep-alive and no time-out of TCP ever notices.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import sqlite3
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from cellmw.deadline import SLOW

if TYPE_CHECKING:
    from collections.abc import Callable

    from cellmw.deadline import Deadline

LOG = logging.getLogger(__name__)

TICK = 0.05
"""Seconds between two looks at what is waited for."""

_IDLE_TIMEOUT = 5.0
"""Seconds after which the thread ends where nothing is waited for."""


class Wait:
    """One wait of one thread. Lives as long as it.

    :ivar connection: the driver's connection that is waited on, None as long as there is none
    :ivar deadline: when it is cut
    :ivar owner: whose it is, for :meth:`Watch.end_all`
    :ivar was_cut: whether it has been
    """

    __slots__ = ("_ended", "_lock", "_slow", "_slow_at", "connection", "deadline", "owner", "was_cut")

    def __init__(
        self, deadline: Deadline, slow: Callable[[], object], connection: Any = None, owner: object = None
    ) -> None:
        """Begin to wait.

        :param slow: called, once and by the watch's thread, if the wait gets long or is cut
        """
        self.connection = connection
        self.deadline = deadline
        self.owner = owner
        self.was_cut = False
        # held while the connection is cut: the end of the wait is the end of its claim on the connection's descriptor
        self._lock = threading.Lock()
        self._ended = False
        self._slow = slow
        self._slow_at = min(monotonic() + SLOW, deadline)

    def look(self, now: float) -> None:
        """Do what there is to do by this time."""
        if now >= self._slow_at:
            self._slow_at = math.inf
            self._slow()
        if now >= self.deadline and self.connection is not None and not self.was_cut:
            with self._lock:
                if not self._ended:
                    self.was_cut = True
                    cut(self.connection)

    def end(self) -> None:
        """Be over: the connection is not cut from now on."""
        with self._lock:
            self._ended = True


class Watch:
    """Ends waits that take too long. Lives as long as the process; shared by all threads.

    Its thread runs while something is waited for, and a few seconds longer.
    """

    def __init__(self) -> None:
        """Begin with no thread."""
        self.begin_anew()

    def begin_anew(self) -> None:
        """Begin with no thread and no wait, as in a child process, which has inherited none."""
        self._waits: set[Wait] = set()
        self._lock = threading.Lock()  # guards the beginning and the end of the thread
        self._thread: threading.Thread | None = None
        self._asleep = False
        self._wake = threading.Event()

    def begin(self, wait: Wait) -> None:
        """Watch over this wait until :meth:`end`."""
        self._waits.add(wait)
        if self._asleep:
            self._wake.set()
        elif self._thread is None:
            self._start()

    def end(self, wait: Wait) -> None:
        """Let it be: it is not cut from now on."""
        wait.end()
        self._waits.discard(wait)

    def end_all(self, owner: object) -> None:
        """Have every wait of this owner cut, soon. A finalizer may call this, so it waits for no lock."""
        for wait in tuple(self._waits):
            if wait.owner is owner:
                wait.deadline = 0.0

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="cellmw-watch", daemon=True)
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        while True:
            self._look()
            self._asleep = True
            # whoever comes after this look finds the thread asleep, and wakes it
            ended = not self._waits and not self._wake.wait(_IDLE_TIMEOUT)
            self._asleep = False
            self._wake.clear()
            if ended and self._may_end():
                return
            # not an Event's wait: nobody has to be told of anything before the next look
            threading.Event().wait(TICK)

    def _look(self) -> None:
        now = monotonic()
        for wait in tuple(self._waits):
            wait.look(now)

    def _may_end(self) -> bool:
        with self._lock:
            # in this order: whoever comes after this look finds no thread, and starts one
            thread, self._thread = self._thread, None
            if self._waits:
                self._thread = thread
            return self._thread is None


def cut(connection: Any) -> None:
    """End whatever is waited for on this connection of a driver, from another thread.

    It is the socket that is shut down, through a descriptor of its own: closing the connection would wait for the
    driver's lock, and the descriptor could be somebody else's by then.
    """
    try:
        if isinstance(connection, sqlite3.Connection):
            connection.interrupt()
            return
        # PyMySQL keeps its socket to itself
        fileno = getattr(connection, "fileno", None) or connection._sock.fileno
        with socket.socket(fileno=os.dup(fileno())) as duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)
    except Exception as error:  # noqa: BLE001 - it is closed already, or its driver shows no socket
        LOG.debug("a connection could not be cut: %s", error)
