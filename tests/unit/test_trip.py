# SPDX-License-Identifier: Apache-2.0
"""One trip: how it departs, what the app reads of it, and its end."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from cellmw import mapping as mapping_module
from cellmw.context import RequestContext
from cellmw.exceptions import (
    CellHasNoTransport,
    CellUnavailable,
    DeadlineExceeded,
    LeaseClosed,
    NotTargeted,
    StoreUnavailable,
)
from cellmw.lease import Lease
from cellmw.mapping import Mapping
from cellmw.store import InstanceMapping
from cellmw.trip import TARGET_KEY, Trip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cellmw.cell import Cell
    from cellmw.cells import Cells
    from cellmw.handles import Handles

    Together = Callable[[int, Callable[[int], Any]], list[Any]]

UUID = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9"


class Filter:
    """What a trip departs from. Records the errors that it answers."""

    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        self.answered: list[Exception] = []

    def answer(self, error: Exception, environ: dict[str, Any]) -> Callable[..., Iterable[bytes]]:
        self.answered.append(error)

        def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            start_response("503 Service Unavailable", [])
            return [b"answer"]

        return application


class Server:
    """The server's start_response. Records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.written: list[bytes] = []

    def start_response(self, *arguments: Any) -> Callable[[bytes], Any]:
        self.calls.append(arguments)
        return self.written.append


def travel(
    mapping: Mapping,
    lease: Lease | None,
    context: Any,
    environ: dict[str, Any],
    server: Server,
    departed_from: Filter,
    deadline: float = 0.0,
) -> Trip:
    """Depart on a trip, with a context of its own where there is none."""
    return Trip(
        mapping=mapping,
        lease=lease,
        deadline=deadline,
        context=context or RequestContext(overwrite=False),
        environ=environ,
        start_response=server.start_response,
        departed_from=departed_from,
    )


@pytest.fixture
def departed_from(cells: Cells) -> Filter:
    """The filter."""
    return Filter(cells)


@pytest.fixture
def server() -> Server:
    """The server."""
    return Server()


@pytest.fixture
def environ() -> dict[str, Any]:
    """The environ of the request."""
    return {}


@pytest.fixture
def depart(departed_from: Filter, server: Server, environ: dict[str, Any]) -> Callable[..., Trip]:
    """Depart on a trip."""

    def depart(lease: Lease | None, context: Any = None, **row: Any) -> Trip:
        values = {"project_id": "project", "user_id": None, "queued_for_delete": False}
        cell_id = lease.cell.id if lease else None
        mapping = Mapping(UUID, InstanceMapping(UUID, cell_id, **values | row), 60.0)
        return travel(mapping, lease, context, environ, server, departed_from, deadline=12.5)

    return depart


def test_departure(depart: Callable[..., Trip], lease: Lease, environ: dict[str, Any], cell1: Cell) -> None:
    """A trip aims the context at the cell, and is in the environ."""
    context = RequestContext(overwrite=False)
    trip = depart(lease, context)
    assert environ == {TARGET_KEY: trip}
    assert context.cell_uuid == cell1.uuid


def test_what_the_app_reads(depart: Callable[..., Trip], lease: Lease, cell1: Cell) -> None:
    """The app reads which instance the request is for, where that lives, and how long there is."""
    trip = depart(lease)
    assert (trip.instance_uuid, trip.cell, trip.state) == (UUID, cell1, "targeted")
    assert (trip.deadline, trip.status, trip.queued_for_delete) == (12.5, "", False)


def test_age(depart: Callable[..., Trip], lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    """The app reads how old the mapping is."""
    now = [100.0]
    monkeypatch.setattr(mapping_module, "monotonic", lambda: now[0])
    trip = depart(lease)
    now[0] += 2.5
    assert trip.age == 2.5


def test_queued_for_delete(depart: Callable[..., Trip], lease: Lease) -> None:
    """The app reads that the instance's deletion has begun."""
    assert depart(lease, queued_for_delete=True).queued_for_delete


def test_cell0(depart: Callable[..., Trip], handles0: Handles) -> None:
    """A trip to the cell of what could be built nowhere says so."""
    with Lease(handles0) as lease:
        assert depart(lease).state == "cell0"


def test_building(depart: Callable[..., Trip], environ: dict[str, Any]) -> None:
    """A trip for an instance without a cell goes nowhere, leaves the context alone, and says so."""
    context = RequestContext(overwrite=False)
    trip = depart(None, context)
    assert (trip.cell, trip.state, context.db_connection) == (None, "building", None)
    assert environ == {TARGET_KEY: trip}
    trip.end()
    assert environ == {}


def test_unmapped(departed_from: Filter, server: Server, environ: dict[str, Any]) -> None:
    """A trip for an instance without a mapping says so."""
    context = RequestContext(overwrite=False)
    trip = travel(Mapping(UUID, None), None, context, environ, server, departed_from)
    assert (trip.cell, trip.state, trip.queued_for_delete) == (None, "unmapped", False)


def test_repr(depart: Callable[..., Trip], lease: Lease) -> None:
    """A trip shows where it goes, and no URL."""
    assert repr(depart(lease)) == f"<Trip instance={UUID} cell=cell1 targeted>"


def test_departure_that_fails(depart: Callable[..., Trip], lease: Lease, environ: dict[str, Any]) -> None:
    """A context that can't be targeted gives the lease back, and nothing is in the environ."""

    class Slots:
        __slots__ = ()

    with pytest.raises(AttributeError):
        depart(lease, Slots())
    assert repr(lease) == "<Lease cell=cell1 closed>"
    assert environ == {}


def test_end(depart: Callable[..., Trip], lease: Lease, environ: dict[str, Any]) -> None:
    """At its end a trip is gone from the environ, and its lease is closed; the context keeps the closed views."""
    context = RequestContext(overwrite=False)
    depart(lease, context).end()
    assert environ == {}
    assert repr(lease) == "<Lease cell=cell1 closed>"
    with pytest.raises(LeaseClosed), context.db_connection.reader.using(context):
        pass


def test_end_restores(depart: Callable[..., Trip], context: RequestContext, handles2: Handles, cell1: Cell) -> None:
    """At its end a trip brings back the target that the context had before."""
    database = context.db_connection
    depart(Lease(handles2), context).end()
    assert (context.db_connection, context.cell_uuid) == (database, cell1.uuid)


def test_end_by_many_threads(
    depart: Callable[..., Trip], handles1: Handles, handles2: Handles, together: Together
) -> None:
    """A trip that two threads end at the same moment releases once, and harms no other lease."""
    with Lease(handles1) as other:
        for _ in range(20):
            trip = depart(Lease(handles1))
            assert together(2, lambda number, trip=trip: trip.end()) == [None, None]
            assert len(handles1.leases) == 1
    assert repr(other) == "<Lease cell=cell1 closed>"


def test_end_that_fails(
    depart: Callable[..., Trip], context: RequestContext, handles2: Handles, environ: dict[str, Any]
) -> None:
    """Where the context can't be untargeted the trip has ended all the same."""
    lease = Lease(handles2)
    trip = depart(lease, context)
    del context.db_connection, context.mq_connection
    type_of_context = type("Broken", (RequestContext,), {"db_connection": property(lambda self: 1 / 0)})
    context.__class__ = type_of_context
    with pytest.raises(ZeroDivisionError):
        trip.end()
    context.__class__ = RequestContext  # oslo.context may remember it for the tests that follow
    assert environ == {}
    assert repr(lease) == "<Lease cell=cell2 closed>"


def test_environ_that_was_changed(depart: Callable[..., Trip], lease: Lease, environ: dict[str, Any]) -> None:
    """An app that has taken the trip out of the environ does not disturb its end."""
    trip = depart(lease)
    environ.clear()
    trip.end()
    assert repr(lease) == "<Lease cell=cell1 closed>"


def test_detach(depart: Callable[..., Trip], lease: Lease, environ: dict[str, Any], cell1: Cell) -> None:
    """An app that is done with its cell gives the handles back early; the trip goes on, and ends as ever."""
    context = RequestContext(overwrite=False)
    trip = depart(lease, context)
    trip.detach()
    trip.detach()
    assert repr(lease) == "<Lease cell=cell1 closed>"
    with pytest.raises(LeaseClosed), context.db_connection.reader.using(context):
        pass
    assert (trip.cell, environ) == (cell1, {TARGET_KEY: trip})
    trip.end()
    assert environ == {}


def test_detach_of_nothing(depart: Callable[..., Trip]) -> None:
    """A trip that goes nowhere can be detached as well."""
    depart(None).detach()


def test_start_response(depart: Callable[..., Trip], lease: Lease, server: Server) -> None:
    """What the app passes to start_response arrives at the server as it is, and so does what it writes."""
    trip = depart(lease)
    headers = [("Content-Type", "text/plain")]
    write = trip.start_response("201 Created", headers)
    write(b"chunk")
    assert server.calls == [("201 Created", headers)]
    assert server.written == [b"chunk"]
    assert trip.status == "201 Created"


def test_exc_info(depart: Callable[..., Trip], lease: Lease, server: Server) -> None:
    """An app that starts again because of an error is heard, too."""
    trip = depart(lease)
    error = ZeroDivisionError()
    exc_info = (ZeroDivisionError, error, None)
    trip.start_response("200 OK", [])
    trip.start_response("500 Internal Server Error", [], exc_info)
    assert server.calls[1] == ("500 Internal Server Error", [], exc_info)
    assert trip.status == "500 Internal Server Error"


@pytest.mark.parametrize(("status", "lookups"), [("404 Not Found", 2), ("200 OK", 1), ("410 Gone", 1), ("4040 ?", 2)])
def test_answer_404_distrusts_the_mapping(
    depart: Callable[..., Trip],
    departed_from: Filter,
    server: Server,
    cell1: Cell,
    handles1: Handles,
    monkeypatch: pytest.MonkeyPatch,
    status: str,
    lookups: int,
) -> None:
    """Where the app answers 404 the mapping is looked up again by the next request."""
    now = [monotonic()]
    monkeypatch.setattr(mapping_module, "monotonic", lambda: now[0])
    mappings = departed_from.cells.mappings
    mappings.create(UUID, project_id="project", cell=cell1)
    first = mappings.find(UUID)
    now[0] += 1
    with Lease(handles1) as lease:
        trip = travel(first, lease, None, {}, server, departed_from)
        trip.start_response(status, [])
    assert (mappings.find(UUID) is first) is (lookups == 1)


@pytest.mark.parametrize("error", [DeadlineExceeded("a reply"), "unavailable", "no transport"], ids=str)
def test_rescue(
    depart: Callable[..., Trip], departed_from: Filter, server: Server, lease: Lease, cell1: Cell, error: Any
) -> None:
    """An error of ours that escapes the app before it has begun to respond is answered."""
    errors = {"unavailable": CellUnavailable(cell1, "queue"), "no transport": CellHasNoTransport(cell1)}
    error = errors.get(error, error)
    assert depart(lease).rescue(error) == [b"answer"]
    assert departed_from.answered == [error]
    assert server.calls == [("503 Service Unavailable", [])]


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), StoreUnavailable("down"), NotTargeted("no"), SystemExit(), "lease closed"], ids=repr
)
def test_no_rescue(depart: Callable[..., Trip], server: Server, lease: Lease, cell1: Cell, error: Any) -> None:
    """Any other error stays the app's."""
    error = LeaseClosed(cell1) if error == "lease closed" else error
    assert depart(lease).rescue(error) is None
    assert server.calls == []


def test_no_rescue_after_start_response(depart: Callable[..., Trip], lease: Lease, server: Server) -> None:
    """What has begun to respond is not answered a second time."""
    trip = depart(lease)
    trip.start_response("200 OK", [])
    assert trip.rescue(DeadlineExceeded("a reply")) is None
    assert len(server.calls) == 1


def test_down(depart: Callable[..., Trip], lease: Lease, handles1: Handles) -> None:
    """A trip tells what of its cell is down, as it is at the moment; after the release it tells of nothing."""
    handles1.database.breaker._probe = handles1.queue.breaker._probe = lambda: 1 / 0
    trip = depart(lease)
    seen = [(trip.state, trip.down)]
    for step in (
        lambda: handles1.queue.breaker.failed("x"),
        lambda: handles1.database.breaker.failed("x"),
        handles1.queue.breaker.succeeded,
        trip.detach,
    ):
        step()
        seen.append((trip.state, trip.down))
    assert seen == [
        ("targeted", ()),
        ("targeted", ("queue",)),
        ("down", ("database", "queue")),
        ("down", ("database",)),
        ("targeted", ()),
    ]
