# SPDX-License-Identifier: Apache-2.0
"""What a client gets for each error of ours, and what the log says."""

from __future__ import annotations

import inspect
import json
import logging
from typing import Any

import pytest
import webob

from cellmw import exceptions
from cellmw.cell import Cell
from cellmw.cell_result import CellResult
from cellmw.faults import ESCAPED, RETRY_AFTER, fault

SECRET = "s3cret"
UUID = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9"
CELL = Cell(3, "uuid-3", "cell3", False, f"rabbit://u:{SECRET}@h/", f"mysql+pymysql://u:{SECRET}@h/d")

ANSWERS: list[tuple[Exception, int, str, str]] = [
    (exceptions.InstanceNotMapped(UUID), 404, "itemNotFound", f"Instance {UUID} could not be found."),
    (
        exceptions.HeaderMalformed("X-Instance-ID"),
        400,
        "badRequest",
        "A header that routing or the deadline goes by can't be read.",
    ),
    (
        exceptions.HeaderNotSigned("X-Instance-ID"),
        403,
        "forbidden",
        "The header that says which instance this is has no valid signature.",
    ),
    (exceptions.InstanceBuilding(UUID), 409, "conflictingRequest", "The instance is still being built."),
    (
        exceptions.CellHasNoTransport(CELL),
        409,
        "conflictingRequest",
        "The instance never reached a host, so this can't be done to it.",
    ),
    (
        exceptions.StoreUnavailable("the API database does not answer"),
        503,
        "serviceUnavailable",
        "The service for this instance is not available at the moment.",
    ),
    (
        exceptions.CellsClosed(),
        503,
        "serviceUnavailable",
        "The service for this instance is not available at the moment.",
    ),
    (
        exceptions.CellUnavailable(CELL, "database"),
        503,
        "serviceUnavailable",
        "The service for this instance is not available at the moment.",
    ),
    (
        exceptions.DeadlineExceeded("cell cell3 to be opened"),
        503,
        "serviceUnavailable",
        "The service for this instance is not available at the moment.",
    ),
    (
        exceptions.CellsMissing([CellResult(CELL, "timeout")]),
        503,
        "serviceUnavailable",
        "Some of the cells do not answer at the moment.",
    ),
    (exceptions.ListingError("the list can't be sorted by x"), 400, "badRequest", "the list can't be sorted by x"),
    (exceptions.BadMarker(UUID), 400, "badRequest", f"marker '{UUID}' is not in the list"),
    (
        exceptions.BadCursor("it is damaged"),
        400,
        "badRequest",
        "the cursor can't be used: it is damaged",
    ),
    (
        exceptions.MappingDangling(UUID, 9),
        500,
        "computeFault",
        "The request could not be routed: tell the operator.",
    ),
    (
        exceptions.CellMisconfigured(CELL, "its transport URL is missing"),
        500,
        "computeFault",
        "The request could not be routed: tell the operator.",
    ),
    (
        exceptions.ConfigError("no nova.context in the environ"),
        500,
        "computeFault",
        "The request could not be routed: tell the operator.",
    ),
]
IDS = [type(answer[0]).__name__ for answer in ANSWERS]


def ask(error: Exception, *, admin: bool = False, method: str = "GET", **environ: Any) -> webob.Response:
    """Return the answer as it arrives at the client."""
    request = webob.Request.blank("/", method=method, environ=environ)
    return request.get_response(fault(error, request.environ, admin=admin))


@pytest.mark.parametrize(("error", "code", "name", "message"), ANSWERS, ids=IDS)
def test_answer(error: Exception, code: int, name: str, message: str) -> None:
    """Each error has its status, and a body in the shape that Nova's clients parse."""
    response = ask(error)
    assert response.status_code == code
    assert response.json == {name: {"code": code, "message": message}}


@pytest.mark.parametrize("error", [answer[0] for answer in ANSWERS], ids=IDS)
def test_headers(error: Exception) -> None:
    """The body is JSON, and its length is announced."""
    response = ask(error)
    assert response.headers["Content-Type"] == "application/json"
    assert int(response.headers["Content-Length"]) == len(response.body)


@pytest.mark.parametrize("error", [answer[0] for answer in ANSWERS], ids=IDS)
def test_head(error: Exception) -> None:
    """A HEAD request gets the same headers, and no body."""
    response = ask(error, method="HEAD")
    assert response.body == b""
    assert response.headers["Content-Length"] == ask(error).headers["Content-Length"]


@pytest.mark.parametrize(("error", "code"), [answer[:2] for answer in ANSWERS], ids=IDS)
def test_retry_after(error: Exception, code: int) -> None:
    """Only what may be tried again says when."""
    assert ask(error).headers.get("Retry-After") == (str(RETRY_AFTER) if code == 503 else None)


@pytest.mark.parametrize(("error", "code", "name"), [answer[:3] for answer in ANSWERS], ids=IDS)
def test_request_id(error: Exception, code: int, name: str) -> None:
    """The request's id is in the body where the pipeline has given it one."""
    answered = ask(error, **{"openstack.request_id": "req-1"}).json
    assert answered[name]["request_id"] == "req-1"


@pytest.mark.parametrize(("error", "code", "name"), [answer[:3] for answer in ANSWERS], ids=IDS)
def test_admin(error: Exception, code: int, name: str) -> None:
    """An admin reads the error's own message; that of an instance that isn't there is the same for everybody."""
    message = ask(error, admin=True).json[name]["message"]
    assert message == (f"Instance {UUID} could not be found." if code == 404 else str(error))


@pytest.mark.parametrize("error", [answer[0] for answer in ANSWERS], ids=IDS)
def test_cell_is_for_admins(error: Exception) -> None:
    """Nobody else reads the cell's name."""
    assert "cell3" not in ask(error).text


@pytest.mark.parametrize("error", [answer[0] for answer in ANSWERS], ids=IDS)
@pytest.mark.parametrize("admin", [True, False])
def test_no_url(error: Exception, admin: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the body nor the log shows a URL."""
    caplog.set_level(logging.DEBUG)
    assert SECRET not in ask(error, admin=admin).text + caplog.text


@pytest.mark.parametrize(("error", "code"), [answer[:2] for answer in ANSWERS], ids=IDS)
def test_log(error: Exception, code: int, caplog: pytest.LogCaptureFixture) -> None:
    """What is the operator's business is logged with the request's id; a mistake in the deployment has a traceback."""
    ask(error, **{"openstack.request_id": "req-1"})
    if code < 500:
        assert caplog.records == []
        return
    (record,) = caplog.records
    assert record.getMessage() == f"request req-1: answered {code}: {error}"
    assert record.levelno == logging.ERROR
    assert bool(record.exc_info) is (code == 500)


def test_dangling_mapping_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """An instance whose cell has no record is logged with both ids."""
    ask(exceptions.MappingDangling(UUID, 9))
    assert f"instance {UUID} is mapped to cell id 9" in caplog.text


@pytest.mark.parametrize(
    "error",
    [cls for _, cls in inspect.getmembers(exceptions, inspect.isclass) if issubclass(cls, exceptions.CellmwError)],
)
def test_every_error_has_an_answer(error: type[exceptions.CellmwError]) -> None:
    """There is no error of ours that could not be answered."""
    instance = error.__new__(error, "message")
    Exception.__init__(instance, "message")
    (body,) = json.loads(ask(instance).body).values()
    assert body["code"] in (400, 403, 404, 409, 500, 503)


def test_subclass() -> None:
    """An error that is a kind of another one is answered as that one."""

    class TooSlow(exceptions.StoreUnavailable):
        pass

    assert ask(TooSlow("the API database is too slow")).status_code == 503


def test_escaped() -> None:
    """These errors are answered where the app lets them escape: none of them is a mistake in the app."""
    assert set(ESCAPED) == {
        exceptions.CellDrained,
        exceptions.CellHasNoTransport,
        exceptions.CellsMissing,
        exceptions.CellUnavailable,
        exceptions.DeadlineExceeded,
        exceptions.InstanceHeld,
        exceptions.ListingError,
    }


def test_uuid_is_not_markup() -> None:
    """A message is JSON text, whatever stands in it."""
    assert '<b>"' in ask(exceptions.InstanceNotMapped('<b>"')).json["itemNotFound"]["message"]
