# SPDX-License-Identifier: Apache-2.0
"""Fork -> a child that begins anew, and a parent whose connections nobody touches.

A child inherits copies of all connections, and of locks that other threads of its parent held. It uses none of them:
who has any begins anew, and what was inherited is parked, that is kept for ever, since a driver's or a library's object
that is freed says goodbye to the server, on the connection that is its parent's.
"""

from __future__ import annotations

import ctypes
import logging
import os
import socket
import weakref
from typing import Any, Protocol

LOG = logging.getLogger(__name__)


class Heir(Protocol):
    """Somebody who has connections, or locks."""

    def begin_anew(self) -> None:
        """Leave alone what was inherited, and begin as if nothing had been used yet."""


_HEIRS: weakref.WeakSet[Heir] = weakref.WeakSet()
"""A fork concerns the whole process: this is the one list that the filters of a process share."""


def follow(heir: Heir) -> None:
    """Have this one begin anew in each child of this process, as long as it lives."""
    _HEIRS.add(heir)


def park(inherited: Any) -> None:
    """Keep this for ever, beyond the end of the interpreter."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


def defuse(connection: Any) -> None:
    """Put a dead socket into the place of this connection's own.

    Whoever still has a session on it, as a handler that forks in the middle of a transaction, would roll back what its
    parent is about to commit.
    """
    try:
        # PyMySQL keeps its socket to itself
        descriptor = (getattr(connection, "fileno", None) or connection._sock.fileno)()
    except Exception:  # noqa: BLE001 - it is closed, or its driver shows no socket
        return
    if descriptor < 0:  # it is being closed
        return
    try:
        dead, other = socket.socketpair()
    except OSError:  # there are as many descriptors as there may be: this one is given up for another
        os.close(descriptor)
        _replace(descriptor, os.open(os.devnull, os.O_RDONLY))
        return
    other.close()
    _replace(descriptor, dead.detach())


def _replace(descriptor: int, other: int) -> None:
    if other != descriptor:
        os.dup2(other, descriptor, inheritable=False)
        os.close(other)


def _begin_anew() -> None:
    for heir in tuple(_HEIRS):
        try:
            heir.begin_anew()
        except Exception:
            LOG.exception("%r could not begin anew in a child process", heir)


os.register_at_fork(after_in_child=_begin_anew)
