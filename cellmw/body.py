# SPDX-License-Identifier: Apache-2.0
"""Body: the response body of a trip, which tells its owner, the trip, when the server closes it.

A body that is complete already, a list or a tuple, is not wrapped: servers read its length.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Owner(Protocol):
    """Whoever has to know how the body fared: the trip."""

    def end(self) -> None:
        """The body has been closed."""

    def lose(self) -> None:
        """The server never closed the body; said by a finalizer, so this takes no lock and waits for nothing."""

    def rescue(self, error: Exception) -> Iterable[bytes] | None:
        """Reading the body raised this: return another one to go on with, or None to let the error through."""


class Body:
    """Hands out the app's body, and ends its owner exactly once after closing it. Lives as long as one response.

    The server may read it all, in part or not at all, and closes it from whichever thread it likes. Where it never does,
    the finalizer ends the owner, with a ResourceWarning: that server breaks PEP 3333.
    """

    __slots__ = ("_body", "_next", "_owner")

    def __init__(self, body: Iterable[bytes], owner: Owner) -> None:
        self._owner: Owner | None = None
        self._body = body
        self._next = iter(body).__next__
        self._owner = owner

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return self._next()
        except StopIteration:
            raise
        except Exception as error:
            other = None if self._owner is None else self._owner.rescue(error)
            if other is None:
                raise
            self._next = iter(other).__next__
            return self._next()

    def close(self) -> None:
        """Close the app's body, then end the owner; an error of the former does not skip the latter."""
        owner, self._owner = self._owner, None
        if owner is None:
            return
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            owner.end()

    def __del__(self) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            warnings.warn("a response body was never closed by the server", ResourceWarning, source=self, stacklevel=2)
            owner.lose()
