# SPDX-License-Identifier: Apache-2.0
"""What an app keeps of its request, through the whole filter: after the response has ended, all of it is closed.

tests/unit/test_lease.py has every way in which a view can be kept; here is what takes a request to happen.
"""

from __future__ import annotations

import copy
import logging
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import oslo_context.context
import pytest
from sqlalchemy import exc, text

from cellmw import RequestContext, database
from cellmw.exceptions import LeaseClosed
from cellmw.trip import TARGET_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from _typeshed.wsgi import StartResponse

    from cellmw import CellFilter
    from tests.functional.conftest import Answer, Api, Deployment, Workers

    Keep = Callable[[Any], Any]

PATIENCE = 20


@pytest.fixture
def visit(deployment: Deployment, make_filter: Callable[..., CellFilter], get: Callable[..., Answer]) -> Keep:
    """Do something with the context in a request for an instance in cell1, and return what it has returned."""

    def visit(handle: Keep) -> Any:
        kept: list[Any] = []

        def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
            kept.append(handle(environ["cellmw.context"]))
            start_response("200 OK", [])
            return [b""]

        assert get(make_filter(app), deployment.map("cell1")).code == 200
        return kept[0]

    return visit


def elevated(context: RequestContext) -> RequestContext:
    """Copy a context for an admin, as Nova's ``elevated()`` does."""
    copied = copy.copy(context)
    copied.roles = [*context.roles, "admin"]
    copied.is_admin = True
    return copied


KEEPERS = pytest.mark.parametrize(
    "keep",
    [
        pytest.param(lambda context: context, id="itself"),
        pytest.param(copy.copy, id="copy"),
        pytest.param(elevated, id="elevated"),
        # where logging looks for a context, and much else
        pytest.param(lambda context: oslo_context.context.get_current(), id="current"),
    ],
)


@KEEPERS
def test_database(visit: Keep, api: Api, keep: Keep) -> None:
    """A context that was kept reads from no database: not from its cell's, and not from the default one either."""
    kept = visit(keep)
    with pytest.raises(LeaseClosed, match="cell1"):
        api.database(kept)


@KEEPERS
def test_queue(visit: Keep, api: Api, keep: Keep) -> None:
    """A context that was kept sends to no queue."""
    kept = visit(keep)
    with pytest.raises(LeaseClosed, match="cell1"):
        api.queue(kept)


def test_client(visit: Keep, api: Api) -> None:
    """A client that the router made for the request ends with it, prepared ones too."""
    client = visit(lambda context: api.router.client(context))
    with pytest.raises(LeaseClosed, match="cell1"):
        client.cast({}, "reboot")
    with pytest.raises(LeaseClosed, match="cell1"):
        client.prepare(timeout=1).call({}, "which")


def test_thread(visit: Keep, api: Api, deployment: Deployment) -> None:
    """A thread that goes on after the response finds the lease closed, and the cell's database unchanged."""
    ended = threading.Event()

    def work(context: Any) -> None:
        assert ended.wait(PATIENCE)
        api.visit(context)

    with ThreadPoolExecutor(1) as threads:
        late: Future[None] = visit(lambda context: threads.submit(work, context))
        ended.set()
        with pytest.raises(LeaseClosed, match="cell1"):
            late.result(PATIENCE)
    assert deployment.visits("cell1") == 0


def test_thread_in_time(visit: Keep, api: Api) -> None:
    """A thread that is done before the response uses the request's own lease."""
    with ThreadPoolExecutor(1) as threads:
        assert visit(lambda context: threads.submit(api.database, context).result(PATIENCE)) == "cell1"


def test_target_of_its_own(
    deployment: Deployment,
    make_filter: Callable[..., CellFilter],
    get: Callable[..., Answer],
    api: Api,
    workers: Workers,
) -> None:
    """Work that outlives its request takes a target of its own, which goes on after the response."""
    ended = threading.Event()

    def work(context: Any) -> tuple[str, str]:
        with cell_filter.cells.target(context, cell_filter.cells.get("cell2")) as targeted:
            assert ended.wait(PATIENCE)
            return api.database(targeted), api.queue(targeted)

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        started.append(threads.submit(work, environ["cellmw.context"]))
        start_response("200 OK", [])
        return [api.database(environ["cellmw.context"]).encode()]

    started: list[Future[tuple[str, str]]] = []
    cell_filter = make_filter(app)
    with ThreadPoolExecutor(1) as threads:
        assert get(cell_filter, deployment.map("cell1")).content == b"cell1"
        ended.set()
        assert started[0].result(PATIENCE) == ("cell2", "cell2")


def test_next_request_with_the_same_context(
    deployment: Deployment, make_filter: Callable[..., CellFilter], get: Callable[..., Answer], api: Api
) -> None:
    """A context that is used again is aimed at the next cell, and closed again afterwards."""
    context = RequestContext(project_id="project-1")

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [api.database(context).encode()]

    cell_filter = make_filter(app)
    for cell in ("cell1", "cell2"):
        answer = get(cell_filter, deployment.map(cell), headers={"cellmw.context": context})
        assert answer.content == cell.encode()
        with pytest.raises(LeaseClosed):
            api.database(context)


def test_next_request_without_a_cell(
    deployment: Deployment, make_filter: Callable[..., CellFilter], get: Callable[..., Answer], api: Api
) -> None:
    """A context that is used again for a request without a cell stays closed, and does not lead to the default."""
    context = RequestContext(project_id="project-1")

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ[TARGET_KEY].state == "building":
            with pytest.raises(LeaseClosed, match="cell1"):
                api.database(context)
        start_response("200 OK", [])
        return []

    cell_filter = make_filter(app)
    for cell in ("cell1", None):
        assert get(cell_filter, deployment.map(cell), headers={"cellmw.context": context}).code == 200


def test_replaced_by_the_app(visit: Keep, api: Api) -> None:
    """What the app has put in the place of a view is the app's, and is there afterwards."""
    own = object()

    def replace(context: Any) -> Any:
        context.mq_connection = own
        return context

    kept = visit(replace)
    assert kept.mq_connection is own
    with pytest.raises(LeaseClosed, match="cell1"):
        api.database(kept)


@pytest.mark.parametrize("convert", [pickle.dumps, copy.deepcopy], ids=["pickle", "deepcopy"])
@pytest.mark.parametrize("name", ["db_connection", "mq_connection"])
def test_not_portable(visit: Keep, convert: Keep, name: str) -> None:
    """A view can't leave its request by pickle or deepcopy either."""

    def leave(context: Any) -> None:
        with pytest.raises(TypeError, match="stay in their process"):
            convert(getattr(context, name))

    visit(leave)


def test_no_dict_has_it(visit: Keep) -> None:
    """Neither the context's dict nor what it tells policies and logs has anything of a cell."""

    def tell(context: Any) -> list[dict[str, Any]]:
        return [context.to_dict(), dict(context.to_policy_values()), context.get_logging_values()]

    for told in visit(tell):
        assert {"db_connection", "mq_connection", "cell_uuid"}.isdisjoint(told)
        assert "View" not in repr(told)


# A session that was left open


def leave_open(context: Any) -> Any:
    """Begin to write, and never come to an end."""
    writer = database.writer(context)
    session = writer.__enter__()
    session.execute(text("UPDATE this_cell SET visits = visits + 1"))
    return writer, session


def test_open_session_is_rolled_back(visit: Keep, deployment: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    """A session that the handler left open is rolled back at the end, and the log says so."""
    with caplog.at_level(logging.WARNING, "cellmw"):
        visit(leave_open)
    assert "cell cell1: a session was left open" in caplog.text
    assert deployment.visits("cell1") == 0


def test_open_session_is_closed(visit: Keep) -> None:
    """That session stays closed, whoever still has it."""
    _, session = visit(leave_open)
    with pytest.raises(exc.InvalidRequestError):
        session.execute(text("SELECT name FROM this_cell"))


def test_open_session_does_not_block(
    visit: Keep, deployment: Deployment, make_filter: Callable[..., CellFilter], api: Api
) -> None:
    """The next writer does not wait for it."""
    kept = visit(leave_open)
    cells = make_filter(lambda environ, start_response: []).cells
    with cells.target(RequestContext(), cells.get("cell1")) as targeted:
        api.visit(targeted)
    assert deployment.visits("cell1") == 1
    del kept


def test_writer_in_a_stream(
    deployment: Deployment, make_filter: Callable[..., CellFilter], exchange: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A writer's block around a stream rolls back when the client is gone half-way: that is in time, and no warning."""

    def chunks(context: Any) -> Iterator[bytes]:
        with database.writer(context) as session:
            session.execute(text("UPDATE this_cell SET visits = visits + 1"))
            yield b"one"
            yield b"two"

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return chunks(environ["cellmw.context"])

    request = exchange(f"/servers/{deployment.map('cell1')}").send(make_filter(app))
    assert next(iter(request.body)) == b"one"
    request.close()
    assert deployment.visits("cell1") == 0
    assert caplog.text == ""
