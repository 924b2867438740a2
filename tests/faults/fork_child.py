# SPDX-License-Identifier: Apache-2.0
"""A piece of work -> what it comes to in a child process, which ends when it is told to and never goes any further."""

from __future__ import annotations

import json
import os
import select
import signal
import traceback
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 30
"""Seconds after which a child is given up, and killed."""


class ChildFailed(Exception):
    """A child did not do what it was to do; the message says why."""


class Child:
    """A child of this process, in the middle of what this one is doing. Lives until :meth:`end` or :meth:`kill`.

    As a block, it is killed at the end of the block where it still lives.
    """

    def __init__(
        self,
        work: Callable[[], Any],
        at_end: Callable[[], object] = lambda: None,
        fork: Callable[[], int] = os.fork,
    ) -> None:
        """Fork.

        :param work: what the child does; returns what can be written as JSON
        :param at_end: what it does when it is told to end
        :param fork: what forks
        """
        told, telling = os.pipe()
        hearing, saying = os.pipe()
        self.pid = fork()
        if not self.pid:
            # nothing below this line of the stack is ever returned to
            _be_the_child(work, at_end, telling, hearing)
        os.close(telling)
        os.close(hearing)
        self._told = os.fdopen(told, "rb")
        self._saying = saying

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    def report(self) -> Any:
        """Return what its work has come to; it lives on.

        :raises ChildFailed: if the work has failed, or is not done in time
        """
        if not select.select([self._told], [], [], PATIENCE)[0]:
            raise ChildFailed("it does not report")
        line = self._told.readline()
        if not line:
            raise ChildFailed("it is gone")
        report = json.loads(line)
        if "error" in report:
            raise ChildFailed(report["error"])
        return report["result"]

    def end(self) -> None:
        """Have it end, and wait for that.

        :raises ChildFailed: if its end fails, or takes too long
        """
        os.write(self._saying, b".")
        self.report()
        if self._reap():
            raise ChildFailed("it has not ended well")

    def kill(self) -> None:
        """Kill it, and wait for that; one that is gone stays gone."""
        if self._told.closed:
            return
        os.kill(self.pid, signal.SIGKILL)
        self._reap()

    def _reap(self) -> int:
        handle = os.pidfd_open(self.pid)
        try:
            if not select.select([handle], [], [], PATIENCE)[0]:
                os.kill(self.pid, signal.SIGKILL)
        finally:
            os.close(handle)
        _, status = os.waitpid(self.pid, 0)
        self._told.close()
        os.close(self._saying)
        return status


def come_to(work: Callable[[], Any]) -> Any:
    """Return what this work comes to in a child that has nothing else to do."""
    with Child(work) as child:
        return child.report()


def _be_the_child(work: Callable[[], Any], at_end: Callable[[], object], telling: int, hearing: int) -> None:
    status = 1
    try:
        # it outlives no one for long
        signal.alarm(2 * PATIENCE)
        _tell(telling, work)
        os.read(hearing, 1)
        _tell(telling, at_end)
        status = 0
    finally:
        os._exit(status)


def _tell(telling: int, work: Callable[[], Any]) -> None:
    try:
        report = json.dumps({"result": work()})
    except BaseException:  # noqa: BLE001 - whatever it is, it is the parent's to look at
        report = json.dumps({"error": traceback.format_exc()})
    os.write(telling, f"{report}\n".encode())
