# SPDX-License-Identifier: Apache-2.0
"""Every way in which a trip can end. Each releases the lease exactly once and leaves nothing usable behind."""

from __future__ import annotations

import gc
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import webob

from cellmw import RequestContext, database
from cellmw.exceptions import LeaseClosed
from cellmw.trip import TARGET_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _typeshed.wsgi import StartResponse, WSGIApplication

    from cellmw import CellFilter
    from cellmw.trip import Trip
    from tests.functional.conftest import Api, Deployment, Exchange

PROJECT = "project-1"

PATIENCE = 20
"""Seconds after which a test gives up on another thread; a test that passes never waits for them."""

TEXT = [("Content-Type", "text/plain")]


class Journey:
    """One request for an instance in cell1, watched. Lives as long as the test.

    Another lease on the same cell is open all the while, so that one release too many shows: it takes that one away.

    :ivar exchange: the request, and the steps of the server
    :ivar trip: what the app found in its environ, None where it was never called
    :ivar context: the request's context
    """

    def __init__(self, exchange: Exchange, api: Api, make_filter: Callable[..., CellFilter]) -> None:
        self.exchange = exchange
        self.trip: Trip | None = None
        self.context: Any = None
        self._api = api
        self._make_filter = make_filter
        self._app: WSGIApplication | None = None

    def depart(self, app: WSGIApplication) -> None:
        """Send the request to this app; its body is neither read nor closed."""
        self._app = app
        self.filter = self._make_filter(self._observe)
        cells = self.filter.cells
        self._bystander = cells.lease(cells.get("cell1").id)
        self.exchange.send(self.filter)

    def _observe(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        self.trip = environ[TARGET_KEY]
        self.context = environ["cellmw.context"]
        assert self.is_under_way
        assert self._api.database(self.context) == "cell1"
        self._reader = self.context.db_connection.reader
        self._client = self._api.router.client(self.context).prepare(timeout=1)
        assert self._app is not None
        return self._app(environ, start_response)

    @property
    def is_under_way(self) -> bool:
        """Whether the request has its lease."""
        return self.filter.cells.leases == 2

    def forget_body(self) -> None:
        """Drop the body without closing it, as a careless server does."""
        self.exchange.body = None
        gc.collect()

    def assert_over(self) -> None:
        """The lease was released once, and nothing of the cell is left to the request."""
        assert self.filter.cells.leases == 1
        self._end_again()
        assert self.filter.cells.leases == 1
        assert TARGET_KEY not in self.exchange.environ
        self._assert_views_closed()

    def close(self) -> None:
        """Let go of the other lease."""
        if self.trip is not None:
            self.trip.end()
        self._bystander.release()
        assert self.filter.cells.leases == 0

    def _end_again(self) -> None:
        self.exchange.close()
        if self.trip is not None:
            self.trip.end()
            self.trip.detach()

    def _assert_views_closed(self) -> None:
        if self.trip is None:
            return
        with pytest.raises(LeaseClosed, match="cell1"):
            self._api.database(self.context)
        with pytest.raises(LeaseClosed, match="cell1"), self._reader.using(RequestContext()):
            pass
        with pytest.raises(LeaseClosed, match="cell1"):
            self._api.queue(self.context)
        with pytest.raises(LeaseClosed, match="cell1"):
            self._client.call({}, "which")


@pytest.fixture
def journey(
    deployment: Deployment, exchange: type[Exchange], api: Api, make_filter: Callable[..., CellFilter]
) -> Iterator[Journey]:
    """A request that is about to depart for cell1."""
    headers = {"cellmw.context": RequestContext(project_id=PROJECT)}
    journey = Journey(exchange(f"/servers/{deployment.map('cell1')}", headers=headers), api, make_filter)
    yield journey
    journey.close()


@pytest.fixture
def stream(api: Api) -> WSGIApplication:
    """An app whose body is a generator that reads from the cell for each chunk."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        return (api.database(environ["cellmw.context"]).encode() for _ in range(3))

    return app


class Closable:
    """A body with a ``close()``, which looks at the trip when it is called. Lives as long as its response."""

    def __init__(self, look: Callable[[], Any] = lambda: None, chunks: Iterable[bytes] = (b"a", b"b")) -> None:
        self._look = look
        self._chunks = iter(chunks)
        self.seen: list[Any] = []

    def __iter__(self) -> Closable:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        """Look."""
        self.seen.append(self._look())


def answering(body: Any) -> WSGIApplication:
    """An app that answers 200 with this body."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        start_response("200 OK", TEXT)
        return body

    return app


def test_full_read(journey: Journey, stream: WSGIApplication) -> None:
    """A body that is read to its end has its cell until it is closed."""
    journey.depart(stream)
    assert b"".join(journey.exchange.body) == b"cell1cell1cell1"
    assert journey.is_under_way
    journey.exchange.close()
    journey.assert_over()


def test_client_gone(journey: Journey, stream: WSGIApplication) -> None:
    """A body that is closed half-way ends the trip."""
    journey.depart(stream)
    assert next(iter(journey.exchange.body)) == b"cell1"
    assert journey.is_under_way
    journey.exchange.close()
    journey.assert_over()


def test_close_without_iteration(journey: Journey, stream: WSGIApplication) -> None:
    """A body that is closed unread ends the trip."""
    journey.depart(stream)
    assert journey.is_under_way
    journey.exchange.close()
    journey.assert_over()


class StubbornContext(RequestContext):
    """A context that can't be aimed at a queue."""

    @property
    def mq_connection(self) -> None:
        """Nothing, and that for ever."""


def test_error_while_targeting(journey: Journey) -> None:
    """A context that can't be targeted costs its request, and not the lease; what was set of it is closed."""
    context = journey.exchange.environ["cellmw.context"] = StubbornContext(project_id=PROJECT)
    with pytest.raises(AttributeError, match="mq_connection"):
        journey.depart(answering([]))
    assert journey.trip is None
    journey.assert_over()
    with pytest.raises(LeaseClosed, match="cell1"), database.reader(context):
        pass


def test_error_in_the_app(journey: Journey) -> None:
    """An error that the app raises goes on to the server and ends the trip."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        raise LookupError("the app's own")

    with pytest.raises(LookupError, match="the app's own"):
        journey.depart(app)
    journey.assert_over()


def test_exit_in_the_app(journey: Journey) -> None:
    """Even what is no Exception ends the trip on its way through."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        raise SystemExit("the server has to stop")

    with pytest.raises(SystemExit):
        journey.depart(app)
    journey.assert_over()


def test_error_after_start_response(journey: Journey) -> None:
    """An error that the app raises after it began to respond ends the trip, too."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        start_response("200 OK", TEXT)
        raise LookupError("the app's own")

    with pytest.raises(LookupError, match="the app's own"):
        journey.depart(app)
    journey.assert_over()


def test_error_in_the_body(journey: Journey) -> None:
    """An error in the middle of the body goes on to the server, which closes the body and so ends the trip."""

    def chunks() -> Iterator[bytes]:
        yield b"one"
        raise LookupError("the body's own")

    journey.depart(answering(chunks()))
    with pytest.raises(LookupError, match="the body's own"):
        journey.exchange.finish()
    journey.assert_over()


def test_body_that_is_none(journey: Journey) -> None:
    """What can't be iterated at all is the app's error, and ends the trip when the server closes it."""
    journey.depart(answering(None))
    with pytest.raises(TypeError, match="iter"):
        journey.exchange.finish()
    journey.assert_over()


def test_error_in_the_bodys_close(journey: Journey) -> None:
    """An error in the body's own close() goes on to the server, and does not keep the trip from ending."""

    def fail() -> None:
        raise LookupError("close failed")

    body = Closable(fail)
    journey.depart(answering(body))
    with pytest.raises(LookupError, match="close failed"):
        journey.exchange.finish()
    journey.assert_over()


def test_body_is_closed_once(journey: Journey) -> None:
    """However often the server closes, the app's body is closed once."""
    body = Closable()
    journey.depart(answering(body))
    journey.exchange.finish()
    journey.assert_over()
    journey.exchange.close()
    assert len(body.seen) == 1


def test_late_body_is_closed_once(journey: Journey) -> None:
    """A body that calls start_response by itself, and is left half-way, is closed once, too."""
    body = Closable()

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        def chunks() -> Iterator[bytes]:
            start_response("200 OK", TEXT)
            yield from (b"a", b"b", b"c")

        body._chunks = chunks()
        return body

    journey.depart(app)
    for _, _chunk in zip(range(2), journey.exchange.body, strict=False):
        pass
    journey.exchange.close()
    journey.assert_over()
    journey.forget_body()
    assert len(body.seen) == 1


def test_body_whose_iteration_fails_is_closed(journey: Journey) -> None:
    """A body that can't begin is closed all the same."""

    class Broken(Closable):
        def __iter__(self) -> Closable:
            raise LookupError("the body's own")

    body = Broken()
    journey.depart(answering(body))
    with pytest.raises(LookupError, match="the body's own"):
        journey.exchange.finish()
    journey.assert_over()
    assert len(body.seen) == 1


def test_never_closed(journey: Journey, stream: WSGIApplication) -> None:
    """Where the server forgets to close the body, the garbage collection ends the trip, and says so."""
    journey.depart(stream)
    next(iter(journey.exchange.body))
    with pytest.warns(ResourceWarning, match="never closed"):
        journey.forget_body()
    journey.assert_over()


@pytest.fixture
def complaints(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What finalizers raise in a process that makes errors of warnings."""
    raised: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: raised.append(unraisable.exc_type))
        yield raised


def test_never_closed_with_warnings_as_errors(journey: Journey, stream: WSGIApplication, complaints: list[Any]) -> None:
    """A process that makes errors of warnings gets its lease back, too, when the server forgets to close."""
    journey.depart(stream)
    journey.forget_body()
    assert complaints == [ResourceWarning]
    journey.assert_over()


def test_context_of_the_filter(journey: Journey, stream: WSGIApplication) -> None:
    """A context that the filter has made for its request is taken back at the end, after everything else."""
    del journey.exchange.environ["cellmw.context"]
    journey.depart(stream)
    assert next(iter(journey.exchange.body)) == b"cell1"
    assert journey.exchange.environ["cellmw.context"] is journey.context
    journey.exchange.close()
    assert "cellmw.context" not in journey.exchange.environ
    journey.assert_over()


def test_one_complaint(journey: Journey, stream: WSGIApplication, complaints: list[Any]) -> None:
    """A body that was never closed is one warning, also where the filter has made the context."""
    del journey.exchange.environ["cellmw.context"]
    journey.depart(stream)
    journey.forget_body()
    assert complaints == [ResourceWarning]


def test_closed_by_another_thread(journey: Journey, stream: WSGIApplication) -> None:
    """The server may close the body in a thread that is not the one which called the app."""
    journey.depart(stream)
    next(iter(journey.exchange.body))
    with ThreadPoolExecutor(1) as threads:
        threads.submit(journey.exchange.close).result(PATIENCE)
    journey.assert_over()


def test_filter_twice(
    deployment: Deployment, exchange: type[Exchange], make_filter: Callable[..., CellFilter], stream: WSGIApplication
) -> None:
    """Of two filters in one pipeline the first does the work, and the second lets its request through."""
    inner = make_filter(stream)
    outer = make_filter(inner)
    request = exchange(f"/servers/{deployment.map('cell1')}").send(outer)
    assert (outer.cells.leases, inner.cells.leases) == (1, 0)
    assert request.finish() == b"cell1cell1cell1"
    assert (outer.cells.leases, inner.cells.leases) == (0, 0)
    assert TARGET_KEY not in request.environ


def test_cells_of_the_first_filter(
    deployment: Deployment, exchange: type[Exchange], make_filter: Callable[..., CellFilter]
) -> None:
    """Of two filters in one pipeline the app gets the cells of the one that does the work."""
    inner = make_filter(answering([]))
    outer = make_filter(inner)
    request = exchange(f"/servers/{deployment.map('cell1')}").send(outer)
    assert request.environ["cellmw.cells"] is outer.cells


def test_request_within_a_request(
    deployment: Deployment, exchange: type[Exchange], make_filter: Callable[..., CellFilter], api: Api
) -> None:
    """A request for another instance that the app makes through the same pipeline goes to that one's own cell."""
    other = deployment.map("cell2")

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        context = environ["cellmw.context"]
        within = []
        if other not in environ["PATH_INFO"]:
            within = list(cell_filter(environ | {"PATH_INFO": f"/servers/{other}"}, lambda *_: None))
        start_response("200 OK", TEXT)
        return [api.database(context).encode(), *within, api.database(context).encode()]

    cell_filter = make_filter(app)
    request = exchange(f"/servers/{deployment.map('cell1')}").send(cell_filter)
    assert request.body == [b"cell1", b"cell2", b"cell2", b"cell1"]


def test_head(journey: Journey, stream: WSGIApplication) -> None:
    """The answer to a HEAD, which has no body, ends the trip when it is closed."""
    journey.exchange.environ["REQUEST_METHOD"] = "HEAD"

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        response = webob.Response(app_iter=stream(environ, lambda *_: None), content_length=15)
        return response(environ, start_response)

    journey.depart(app)
    assert journey.is_under_way
    assert journey.exchange.finish() == b""
    assert journey.exchange.headers["Content-Length"] == "15"
    journey.assert_over()


@pytest.mark.parametrize("body", [[b"whole"], (b"whole",), []], ids=["list", "tuple", "empty"])
def test_materialised_body(journey: Journey, body: Any) -> None:
    """A body that is complete goes to the server as it is, and the trip has ended before it is read."""
    journey.depart(answering(body))
    assert journey.exchange.body is body
    journey.assert_over()


def test_list_of_a_kind_is_wrapped(journey: Journey) -> None:
    """A subclass of list may do something in its methods, and has its cell until it is closed."""

    class Chunks(list[bytes]):
        pass

    journey.depart(answering(Chunks([b"a", b"b"])))
    assert journey.is_under_way
    assert journey.exchange.finish() == b"ab"
    journey.assert_over()


def test_start_response_late(journey: Journey, api: Api) -> None:
    """An app that is a generator calls start_response with its first chunk, and has its cell until it is closed."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield api.database(environ["cellmw.context"]).encode()
        yield b"."

    journey.depart(app)
    assert journey.exchange.status == ""
    assert journey.exchange.finish() == b"cell1."
    assert journey.exchange.status == "200 OK"
    journey.assert_over()


def test_generator_app_without_a_chunk(journey: Journey) -> None:
    """A generator app that never yields ends like any other."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterator[bytes]:
        start_response("204 No Content", [])
        yield from ()

    journey.depart(app)
    assert journey.exchange.finish() == b""
    assert journey.exchange.status == "204 No Content"
    journey.assert_over()


def test_write(journey: Journey, api: Api) -> None:
    """What the app sends by write() goes to the server, and comes out of the cell as well."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        write = start_response("200 OK", TEXT)
        write(api.database(environ["cellmw.context"]).encode())
        return []

    journey.depart(app)
    assert journey.exchange.written == [b"cell1"]
    journey.assert_over()


def test_start_response_twice(journey: Journey) -> None:
    """An app may take its answer back with exc_info, which reaches the server; the second status is the trip's."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        start_response("200 OK", TEXT)
        try:
            raise LookupError("changed my mind")
        except LookupError:
            start_response("500 Internal Server Error", TEXT, sys.exc_info())
        return iter([b"sorry"])

    journey.depart(app)
    first, second = journey.exchange.answers
    assert first is None
    assert second[0] is LookupError
    assert journey.trip is not None
    assert journey.trip.status == "500 Internal Server Error"
    assert journey.exchange.finish() == b"sorry"
    journey.assert_over()


class Environ(dict[str, Any]):
    """An environ that looks at the trip when the target is taken out of it. Lives as long as its request."""

    look: Callable[[], Any]
    seen: list[Any]

    def pop(self, key: str, *default: Any) -> Any:
        """Look."""
        if key in self:
            self.seen.append(self.look())
        return super().pop(key, *default)


def test_order(journey: Journey, api: Api, make_filter: Callable[..., CellFilter]) -> None:
    """First the body is closed, then the context untargeted, then the environ key removed, then the lease released."""
    others = make_filter(answering([])).cells
    with others.target(RequestContext(project_id=PROJECT), others.get("cell2")) as context:
        environ = journey.exchange.environ = Environ(journey.exchange.environ | {"cellmw.context": context})

        def look() -> tuple[str, bool, bool]:
            return api.database(context), TARGET_KEY in environ, journey.is_under_way

        environ.look, environ.seen = look, []
        body = Closable(look)
        journey.depart(answering(body))
        journey.exchange.finish()
        assert body.seen == [("cell1", True, True)]
        assert environ.seen == [("cell2", True, True)]
        assert look() == ("cell2", False, False)


def test_detached(journey: Journey) -> None:
    """A handler that detaches gives its lease back early, and the end of the response does not do it again."""

    def chunks() -> Iterator[bytes]:
        journey.trip.detach()
        yield str(journey.is_under_way).encode()

    journey.depart(answering(chunks()))
    assert journey.is_under_way
    assert journey.exchange.finish() == b"False"
    journey.assert_over()
