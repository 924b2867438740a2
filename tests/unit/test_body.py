# SPDX-License-Identifier: Apache-2.0
"""The response body: what the server gets, and when the trip ends."""

from __future__ import annotations

import gc
import sys
import warnings
from operator import length_hint
from typing import TYPE_CHECKING, Any

import pytest

from cellmw.body import ALL, Body

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Together = Callable[[int, Callable[[int], Any]], list[Any]]


class Escaped(Exception):
    """An error that the owner knows an answer to."""


class Owner:
    """A trip, as the body sees it. Records what happens to it."""

    def __init__(self, events: list[str], status: str = "200 OK", answer: Iterable[bytes] | None = None) -> None:
        self.events = events
        self.status = status
        self.lease: Any = None
        self._answer = answer

    def end(self) -> None:
        self.events.append("end")

    def rescue(self, error: Exception) -> Iterable[bytes] | None:
        self.events.append(f"rescue {error!r}")
        return self._answer if isinstance(error, Escaped) else None


class Progress:
    """A lease, as the body sees it."""

    chunks: Iterator[bool]


class AppBody:
    """An app's body, with a close() of its own. Records what happens to it."""

    def __init__(self, events: list[str], chunks: int = 3, error: Exception | None = None) -> None:
        self.events = events
        self._chunks = iter(range(chunks))
        self._error = error

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return b"%d" % next(self._chunks)

    def close(self) -> None:
        self.events.append("close")
        if self._error:
            raise self._error


@pytest.fixture
def events() -> list[str]:
    """What happened, in order."""
    return []


@pytest.fixture
def owner(events: list[str]) -> Owner:
    """The trip of an app that has called start_response."""
    return Owner(events)


@pytest.fixture
def silent_owner(events: list[str]) -> Owner:
    """The trip of an app that has yet to call start_response."""
    return Owner(events, status="", answer=[b"answer"])


OWNERS = pytest.mark.parametrize("status", ["200 OK", ""], ids=["started", "not started"])


@OWNERS
def test_read_in_full(events: list[str], status: str) -> None:
    """A server that reads it all and closes it gets the app's chunks; the trip ends after the app's own close()."""
    body = Body.around(AppBody(events), Owner(events, status))
    assert list(body) == [b"0", b"1", b"2"]
    assert events == []
    body.close()
    assert events == ["close", "end"]


@OWNERS
def test_client_gone_half_way(events: list[str], status: str) -> None:
    """A server that stops half-way closes it, and that is the end."""
    body = Body.around(AppBody(events), Owner(events, status))
    assert next(iter(body)) == b"0"
    body.close()
    assert events == ["close", "end"]


@OWNERS
def test_never_read(events: list[str], status: str) -> None:
    """A server that closes it unread, as for HEAD, ends it."""
    Body.around(AppBody(events), Owner(events, status)).close()
    assert events == ["close", "end"]


@OWNERS
def test_closed_twice(events: list[str], status: str) -> None:
    """A second close() does nothing."""
    body = Body.around(AppBody(events), Owner(events, status))
    body.close()
    body.close()
    assert events == ["close", "end"]


@OWNERS
def test_app_is_closed_once(events: list[str], status: str) -> None:
    """The app's close() is called once, whenever and however far the body was read."""
    body = Body.around(AppBody(events), Owner(events, status))
    chunks = iter(body)
    next(chunks)
    next(chunks)
    body.close()
    del body, chunks
    gc.collect()
    assert events == ["close", "end"]


def test_body_without_close(events: list[str], owner: Owner) -> None:
    """An app's body that has no close() is fine."""
    body = Body.around(iter([b"a", b"b"]), owner)
    assert list(body) == [b"a", b"b"]
    body.close()
    assert events == ["end"]


def test_error_in_close(events: list[str], owner: Owner) -> None:
    """An error in the app's close() ends the trip all the same, and is the server's to see."""
    body = Body.around(AppBody(events, error=ZeroDivisionError()), owner)
    with pytest.raises(ZeroDivisionError):
        body.close()
    assert events == ["close", "end"]


def test_error_in_the_body(events: list[str], owner: Owner) -> None:
    """An error in the body is the server's to see; the trip ends when the server closes the body."""

    def app() -> Iterator[bytes]:
        yield b"a"
        raise ZeroDivisionError

    body = Body.around(app(), owner)
    chunks = iter(body)
    assert next(chunks) == b"a"
    with pytest.raises(ZeroDivisionError):
        next(chunks)
    assert events == []
    body.close()
    assert events == ["end"]


def test_generator_is_closed(events: list[str], owner: Owner) -> None:
    """What a generator has in its finally runs before the trip ends."""

    def app() -> Iterator[bytes]:
        try:
            yield b"a"
            yield b"b"
        finally:
            events.append("finally")

    body = Body.around(app(), owner)
    next(iter(body))
    body.close()
    assert events == ["finally", "end"]


def test_finalizer(events: list[str], owner: Owner) -> None:
    """Where the server never closes it, the finalizer ends the trip and warns."""
    body = Body.around(AppBody(events), owner)
    assert list(body) == [b"0", b"1", b"2"]
    bodies = [body]
    del body
    with pytest.warns(ResourceWarning, match="never closed by the server"):
        bodies.clear()
    assert events == ["end"]


def test_finalizer_where_warnings_are_errors(events: list[str], owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finalizer ends the trip also where warnings are errors."""
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: unraisable.append(error.exc_type))
    body = Body.around(AppBody(events), owner)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del body
        gc.collect()
    assert unraisable == [ResourceWarning]
    assert events == ["end"]


def test_closed_body_does_not_warn(events: list[str], owner: Owner) -> None:
    """A body that was closed leaves nothing to its finalizer."""
    body = Body.around(AppBody(events), owner)
    body.close()
    del body
    gc.collect()
    assert events == ["close", "end"]


@OWNERS
def test_body_that_is_none(events: list[str], status: str) -> None:
    """What can't be iterated is an error that the server gets, and the trip ends."""
    with pytest.raises(TypeError):  # noqa: PT012 - wherever in it the error comes
        body: Any = Body.around(None, Owner(events, status))  # type: ignore[arg-type]
        try:
            next(iter(body))
        finally:
            body.close()
    assert events[-1] == "end"


def test_no_code_of_ours_for_each_chunk(owner: Owner) -> None:
    """Where the app has called start_response, its chunks reach the server without a line of Python of ours."""
    called: list[str] = []
    body = Body.around(iter([b"a"] * 3), owner)
    sys.setprofile(lambda frame, event, argument: called.append(frame.f_code.co_filename) if event == "call" else None)
    try:
        chunks = list(body)
    finally:
        sys.setprofile(None)
    body.close()
    assert (chunks, called) == ([b"a"] * 3, [])


@pytest.mark.parametrize("status", ["200 OK", ""], ids=["started", "not started"])
def test_first_chunk(events: list[str], status: str) -> None:
    """The lease can tell whether the app is still at its first chunk."""
    owner = Owner(events, status)
    owner.lease = Progress()

    def app_body() -> Iterator[bytes]:
        for chunk in (b"a", b"b"):
            events.append(f"{length_hint(owner.lease.chunks) < ALL}")
            yield chunk

    body = Body.around(app_body(), owner)
    assert list(body) == [b"a", b"b"]
    body.close()
    assert events[:2] == ["False", "True"]


def test_is_its_own_iterator(owner: Owner) -> None:
    """What iter() gives is the body itself, which servers may close instead."""
    body = Body.around(iter([b"a"]), owner)
    assert iter(body) is body
    body.close()


def test_generator_that_starts_late(events: list[str], silent_owner: Owner) -> None:
    """The chunks of a generator, which calls start_response with its first, are the server's as they are."""

    def app() -> Iterator[bytes]:
        silent_owner.status = "200 OK"
        yield b"a"
        yield b"b"

    body = Body.around(app(), silent_owner)
    assert list(body) == [b"a", b"b"]
    body.close()
    assert events == ["end"]


def test_empty_generator(events: list[str], silent_owner: Owner) -> None:
    """A generator without a chunk is an empty body."""
    body = Body.around(iter([]), silent_owner)
    assert list(body) == []
    body.close()
    assert events == ["end"]


def test_rescue(events: list[str], silent_owner: Owner) -> None:
    """An error of ours that a generator raises before start_response is answered."""

    def app() -> Iterator[bytes]:
        raise Escaped
        yield b"never"

    body = Body.around(app(), silent_owner)
    assert list(body) == [b"answer"]
    body.close()
    assert events == ["rescue Escaped()", "end"]


def test_no_rescue_for_others(events: list[str], silent_owner: Owner) -> None:
    """Any other error is the server's to see."""

    def app() -> Iterator[bytes]:
        raise ZeroDivisionError
        yield b"never"

    body = Body.around(app(), silent_owner)
    with pytest.raises(ZeroDivisionError):
        next(iter(body))
    body.close()
    assert events == ["rescue ZeroDivisionError()", "end"]


def test_no_rescue_after_the_first_chunk(events: list[str], silent_owner: Owner) -> None:
    """Once something has been sent there is nothing to answer."""

    def app() -> Iterator[bytes]:
        yield b"a"
        raise Escaped

    body = Body.around(app(), silent_owner)
    chunks = iter(body)
    assert next(chunks) == b"a"
    with pytest.raises(Escaped):
        next(chunks)
    body.close()
    assert events == ["end"]


def test_closed_before_the_rescue(events: list[str], silent_owner: Owner) -> None:
    """A generator that was never begun is not begun to be closed."""

    def app() -> Iterator[bytes]:
        events.append("begun")
        yield b"never"

    Body.around(app(), silent_owner).close()
    assert events == ["end"]


def test_closed_in_another_thread(
    events: list[str], owner: Owner, in_thread: Callable[[Callable[[], Any]], Any]
) -> None:
    """A server may close the body in another thread than the one that read it."""
    body = Body.around(AppBody(events), owner)
    next(iter(body))
    in_thread(body.close)
    assert events == ["close", "end"]
