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
    """Whoever has to know how the body fares: the trip."""

    @property
    def status(self) -> str:
        """The status line that the app has given to start_response, empty before that."""

    def end(self) -> None:
        """The body has been closed; or it never was, and its finalizer says so, which must not wait for a lock."""

    def rescue(self, error: Exception) -> Iterable[bytes] | None:
        """The app raised this before start_response: return a body to go on with, or None to let the error through."""


class Body:
    """Hands out the app's body, and ends its owner exactly once after closing it. Lives as long as one response.

    The server may read it all, in part or not at all, and closes it from whichever thread it likes. Where it never
    does, the finalizer ends the owner, with a ResourceWarning: that server breaks PEP 3333.
    """

    # A slot that is called __next__ holds the app's own, so that no Python code of ours runs for each chunk.
    __slots__ = ("__next__", "_body", "_owner")

    def __init__(self, body: Iterable[bytes], owner: Owner) -> None:
        self._body = body
        iterator = iter(body)
        self.__next__ = iterator.__next__ if owner.status else _rescued(iterator, owner).__next__
        self._owner: Owner | None = owner

    def __iter__(self) -> Iterator[bytes]:
        return self

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
        try:
            owner = self._owner
        except AttributeError:  # the app's body could not even be iterated
            return
        if owner is not None:
            warnings.warn("a response body was never closed by the server", ResourceWarning, source=self, stacklevel=2)
            owner.end()


def _rescued(iterator: Iterator[bytes], owner: Owner) -> Iterator[bytes]:
    """Yield the chunks of an app that has yet to call start_response, as a generator does with its first chunk."""
    try:
        first = next(iterator)
    except StopIteration:
        return
    except Exception as error:
        answer = owner.rescue(error)
        if answer is None:
            raise
        yield from answer
        return
    yield first
    yield from iterator
