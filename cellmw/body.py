# SPDX-License-Identifier: Apache-2.0
"""Body: the response body of a trip, which tells its owner, the trip, when the server closes it.

A body that is complete already, a list or a tuple, is not wrapped: servers read its length.
"""

from __future__ import annotations

import sys
import warnings
from itertools import chain, compress, repeat
from types import GeneratorType
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cellmw.lease import Lease

    _Chunks = compress[bytes]
else:
    _Chunks = compress


ALL = sys.maxsize
"""How many selectors a body begins with: more than any has chunks."""


_ITERATORS = frozenset({GeneratorType, type(iter([])), type(iter(())), chain, filter, map})
"""What Python iterates with, and what to ask for an iterator does nothing."""


class Owner(Protocol):
    """Whoever has to know how the body fares: the trip."""

    @property
    def status(self) -> str:
        """The status line that the app has given to start_response, empty before that."""

    @property
    def lease(self) -> Lease | None:
        """What is told how far the body is, where there is anything."""

    def end(self) -> None:
        """The body has been closed; or it never was, and its finalizer says so, which must not wait for a lock."""

    def rescue(self, error: Exception) -> Iterable[bytes] | None:
        """The app raised this before start_response: return a body to go on with, or None to let the error through."""


class Body(_Chunks):
    """Hands out the app's body, and ends its owner exactly once after closing it. Lives as long as one response.

    The server may read it all, in part or not at all, and closes it from whichever thread it likes. Where it never
    does, the finalizer ends the owner, with a ResourceWarning: that server breaks PEP 3333.

    It is a compress, which drops nothing, because that iterates without a line of Python for each chunk, and uses up
    one of its selectors for each chunk that the app has yielded: by them the lease knows that there has been one.
    """

    __slots__ = ("_body", "_owner")

    _body: Iterable[bytes]
    _owner: Owner | None

    @classmethod
    def around(cls, body: Iterable[bytes], owner: Owner) -> Self:
        """Take over the app's body; nothing of it is read yet."""
        chunks = repeat(True, ALL)
        if not owner.status:
            wrapped = cls(_rescued(body, owner), chunks)
        elif type(body) in _ITERATORS:
            wrapped = cls(body, chunks)
        else:
            # a chain asks the body for its iterator no earlier than the server asks for the first chunk
            wrapped = cls(chain(body), chunks)
        wrapped._body = body
        wrapped._owner = owner
        lease = owner.lease
        if lease is not None:
            lease.chunks = chunks
        return wrapped

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
        owner = self._owner
        if owner is not None:
            owner.end()
            if not isinstance(self._body, Body):  # which says so itself
                warnings.warn(
                    "a response body was never closed by the server", ResourceWarning, source=self, stacklevel=2
                )


def _rescued(body: Iterable[bytes], owner: Owner) -> Iterator[bytes]:
    """Yield the chunks of an app that has yet to call start_response, as a generator does with its first chunk."""
    try:
        iterator = iter(body)
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
    # not "yield from", which closes what it iterates: that is the body's to do, once
    for chunk in iterator:  # noqa: UP028
        yield chunk
