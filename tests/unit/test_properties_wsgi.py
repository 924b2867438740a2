# SPDX-License-Identifier: Apache-2.0
"""Whatever an app and a server do with a response: the server sees what it would see without the filter.

An app is drawn as a list of steps: what it does before it returns, what it returns, what its body does at each chunk
and when it is closed. It is served twice by a server that keeps to PEP 3333, once as it is and once behind the filter,
and what the server and the app have noted has to be the same. At the end the lease was released, once.
"""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cellmw import CellFilter, RequestContext
from cellmw.exceptions import DeadlineExceeded
from cellmw.trip import TARGET_KEY, Trip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from oslo_config import cfg

    from cellmw.cell import Cell
    from cellmw.store import Store

PROJECT = "project-1"
INSTANCE = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"


def repeatable(examples: int) -> settings:
    """Run a test on so many examples, which are the same in each run, wherever it is."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        # a filter is meant to serve one request after the other
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


class AppError(Exception):
    """An error of the app's own."""


class Exit(BaseException):
    """What is no Exception, as when a worker is told to stop."""


@dataclass
class Script:
    """What an app does with one request.

    :ivar before: the steps that it takes before it returns
    :ivar kind: what it returns
    :ivar chunks: the steps that its body takes for each chunk, the chunk itself last
    :ivar closing: the steps that its body takes when it is closed
    """

    before: list[str]
    kind: str
    chunks: list[list[str]]
    closing: list[str] = field(default_factory=list)


class App:
    """Plays a script. Lives as long as one request.

    :ivar targeted: for each step, whether there was a target, as an app can see it
    """

    def __init__(self, script: Script, events: list[Any]) -> None:
        """Play this script, and note each step among the events."""
        self._script = script
        self._events = events
        self.targeted: list[bool] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        self._environ = environ
        self._start_response = start_response
        self._write: Callable[[bytes], Any] | None = None
        if self._script.kind == "generator app":
            return self._generate(self._script.before)
        self.play(self._script.before)
        return self._body()

    def play(self, steps: list[str]) -> bytes:
        """Take these steps, and return the chunk that they end with."""
        chunk = b""
        for step in steps:
            self._events.append(("app", step))
            self.targeted.append(TARGET_KEY in self._environ)
            chunk = self._take(step) or b""
        return chunk

    def _take(self, step: str) -> bytes | None:
        if step == "start":
            self._write = self._start_response("200 OK", [("Content-Type", "text/plain")])
        elif step == "not found":
            self._write = self._start_response("404 Not Found", [])
        elif step == "start over":
            self._start_over()
        elif step == "write" and self._write is not None:
            self._write(b"written")
        elif step in ERRORS:
            raise ERRORS[step]()
        elif step.startswith("chunk"):
            return step[len("chunk") :].encode()
        return None

    def _start_over(self) -> None:
        try:
            raise AppError("taken back")
        except AppError:
            self._write = self._start_response("500 Internal Server Error", [], sys.exc_info())

    def _body(self) -> Any:
        steps = self._script.chunks
        if self._script.kind == "generator":
            return self._generate([])
        if self._script.kind in ("list", "tuple"):
            chunks = [self.play(chunk) for chunk in steps]
            return chunks if self._script.kind == "list" else tuple(chunks)
        return BODIES[self._script.kind](self, steps, self._script.closing)

    def _generate(self, before: list[str]) -> Iterator[bytes]:
        self.play(before)
        try:
            for steps in self._script.chunks:
                yield self.play(steps)
        finally:
            self.play(self._script.closing)


class Chunks:
    """A body that is its own iterator, without a close()."""

    def __init__(self, app: App, chunks: list[list[str]], closing: list[str]) -> None:
        self._app = app
        self._chunks = iter(chunks)
        self._closing = closing

    def __iter__(self) -> Chunks:
        return self

    def __next__(self) -> bytes:
        return self._app.play(next(self._chunks))


class Closable(Chunks):
    """A body that is its own iterator, with a close()."""

    def close(self) -> None:
        self._app.play(["close", *self._closing])


class Whole:
    """A body that gives an iterator, which is another object, and has a close()."""

    def __init__(self, app: App, chunks: list[list[str]], closing: list[str]) -> None:
        self._app = app
        self._chunks = chunks
        self._closing = closing

    def close(self) -> None:
        self._app.play(["close", *self._closing])


class Rows(Whole):
    """A body that begins its work when it is asked for an iterator."""

    def __iter__(self) -> Any:
        self._app.play(["iter"])
        return (self._app.play(steps) for steps in self._chunks)


class Eager(Whole):
    """A body that has done all of its work by the time it gives an iterator."""

    def __iter__(self) -> Any:
        return iter([self._app.play(steps) for steps in self._chunks])


class Sequence:
    """A body that is iterated by its indices."""

    def __init__(self, app: App, chunks: list[list[str]], closing: list[str]) -> None:
        self._app = app
        self._chunks = chunks

    def __getitem__(self, index: int) -> bytes:
        return self._app.play(self._chunks[index])


BODIES: dict[str, Any] = {
    "iterator": Chunks,
    "closable": Closable,
    "rows": Rows,
    "eager": Eager,
    "sequence": Sequence,
}

ERRORS: dict[str, Callable[[], BaseException]] = {
    "fail": lambda: AppError("the app's own"),
    "exit": lambda: Exit("stop"),
    "deadline": lambda: DeadlineExceeded("what never comes"),
}


class Server:
    """Serves one request, strictly by PEP 3333. Lives as long as the request.

    :ivar events: all that it got to see, and the steps of the app in between, in order
    """

    def __init__(self, read: int, closes: int) -> None:
        """Serve one request.

        :param read: how many chunks are read before the client is gone
        :param closes: how often the body is closed
        """
        self._read = read
        self._closes = closes
        self._started = self._sent = False
        self.events: list[Any] = []

    def serve(self, app: Callable[..., Any], environ: dict[str, Any]) -> None:
        """Do the whole exchange; what is raised is noted."""
        body = None
        try:
            body = app(environ, self._start_response)
            self.events.append(("returned", type(body) if type(body) in (list, tuple) else "an iterable"))
            self._send(body)
        except (Exception, Exit) as error:  # noqa: BLE001 - servers take whatever comes
            self.events.append(("raised", repr(error)))
        for _ in range(self._closes):
            self._close(body)

    def _send(self, body: Any) -> None:
        if self._read == 0:
            return
        for number, chunk in enumerate(body):
            if not self._started:
                raise AssertionError("a chunk before start_response")
            self._sent = self._sent or chunk != b""
            self.events.append(("chunk", chunk))
            if number + 1 >= self._read:
                return
        self.events.append("end")

    def _close(self, body: Any) -> None:
        try:
            if hasattr(body, "close"):
                body.close()
        except (Exception, Exit) as error:  # noqa: BLE001 - servers take whatever comes
            self.events.append(("raised by close", repr(error)))

    def _start_response(self, status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], None]:
        self.events.append(("start_response", status, headers, [str(info[1]) for info in exc_info]))
        if exc_info and self._sent:
            raise exc_info[0][1]
        if self._started and not exc_info:
            raise AssertionError("start_response a second time")
        self._started = True
        return self._write

    def _write(self, data: bytes) -> None:
        self._sent = True
        self.events.append(("write", data))


class Pipeline:
    """A filter, and the apps that are put behind it one after the other. Lives as long as the test.

    :ivar ends: how many trips have ended
    """

    def __init__(self, cell_filter: CellFilter) -> None:
        self.filter = cell_filter
        self.ends = 0

    def serve(self, script: Script, read: int, closes: int = 1, *, with_context: bool = False) -> list[Any]:
        """Serve a request behind the filter, and return what has happened."""
        self.ends = 0
        server = Server(read, closes)
        self.filter.application = app = App(script, server.events)
        environ: dict[str, Any] = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": f"/servers/{INSTANCE}",
            "HTTP_X_PROJECT_ID": PROJECT,
        }
        if with_context:
            environ["cellmw.context"] = RequestContext(project_id=PROJECT, overwrite=False)
        server.serve(self.filter, environ)
        assert all(app.targeted)
        assert TARGET_KEY not in environ
        assert ("cellmw.context" in environ) is with_context
        assert (self.filter.cells.leases, self.ends) == (0, 1)
        return server.events


@pytest.fixture
def pipeline(conf: cfg.ConfigOpts, store: Store, cell1: Cell, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    """A filter, which counts how often a trip has ended, with an instance in cell1."""
    store.create_instance(INSTANCE, project_id=PROJECT, cell_id=cell1.id)
    end = Trip.end

    def count(trip: Trip) -> None:
        assert cell_filter.cells.leases == 1
        pipeline.ends += 1
        end(trip)

    monkeypatch.setattr(Trip, "end", count)
    with closing(CellFilter(App(Script([], "list", []), []), conf)) as cell_filter:
        pipeline = Pipeline(cell_filter)
        yield pipeline


def serve_bare(script: Script, read: int) -> list[Any]:
    """Serve a request without the filter, and return what has happened."""
    server = Server(read, closes=1)
    server.serve(App(script, server.events), {})
    return server.events


steps = st.sampled_from(["start", "not found", "start over", "write", "fail", "exit"])
some_steps = st.lists(steps, max_size=2)
befores = st.sampled_from([["start"], []]) | some_steps | some_steps.map(lambda more: ["start", *more])
chunks = st.lists(
    st.tuples(st.lists(steps, max_size=2) | st.just([]), st.sampled_from(["chunk", "chunk one", "chunk two"])).map(
        lambda drawn: [*drawn[0], drawn[1]]
    ),
    max_size=4,
)
kinds = st.sampled_from(["list", "tuple", "generator", "generator app", *BODIES])
scripts = st.builds(Script, befores, kinds, chunks, st.just([]) | st.lists(steps, max_size=1))


@repeatable(800)
@given(scripts, st.integers(0, 5), st.sampled_from([1, 2]), st.booleans())
@example(Script(["start"], "generator app", [["chunk one"], ["fail", "chunk"]]), 5, 1, False)
@example(Script([], "closable", [["start", "chunk one"], ["chunk two"]], ["fail"]), 1, 2, False)
@example(Script([], "closable", [["start", "chunk one"], ["chunk two"], ["chunk"]]), 2, 1, True)
@example(Script(["start", "write", "start over"], "list", [["chunk"]]), 5, 1, True)
def test_same_as_without(pipeline: Pipeline, script: Script, read: int, closes: int, with_context: bool) -> None:
    """All that happens is what happens without the filter, in the same order."""
    assert pipeline.serve(script, read, closes, with_context=with_context) == serve_bare(script, read)


ESCAPED = ("raised", repr(DeadlineExceeded("what never comes")))
"""What a server sees of an error of ours that nobody answers."""


def statuses(events: list[Any]) -> list[str]:
    """Return what start_response was called with."""
    return [event[1] for event in events if event[0] == "start_response"]


@repeatable(400)
@given(
    st.builds(
        Script,
        st.sampled_from([[], ["start"], ["deadline"], ["start", "deadline"], ["start", "start over", "deadline"]]),
        kinds,
        st.lists(st.sampled_from([["chunk one"], ["start", "chunk two"], ["deadline", "chunk"]]), max_size=3),
        st.sampled_from([[], ["deadline"]]),
    ),
    st.integers(0, 5),
    st.booleans(),
)
def test_error_of_ours(pipeline: Pipeline, script: Script, read: int, with_context: bool) -> None:
    """An error of ours becomes an answer where the server knows of none yet; anywhere else it is as without us."""
    events, bare = pipeline.serve(script, read, with_context=with_context), serve_bare(script, read)
    if ESCAPED in bare and not statuses(bare):
        assert statuses(events) == ["503 Service Unavailable"]
        assert ESCAPED not in events
    else:
        assert events == bare


def test_error_of_ours_while_the_body_begins(pipeline: Pipeline) -> None:
    """An error of ours is answered, too, when the body raises it before it has given an iterator."""
    events = pipeline.serve(Script([], "eager", [["deadline", "chunk"]]), read=5)
    assert statuses(events) == ["503 Service Unavailable"]
