# SPDX-License-Identifier: Apache-2.0
"""The pipeline that is shipped, with the example's API in it, and with wsgiref.validate on both sides of the filter.

An instance has a row in every cell, each with another name, so that a request that goes astray gets a wrong answer and
not none.
"""

from __future__ import annotations

import http.client
import json
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit
from wsgiref.validate import validator

import pytest
from paste import deploy as paste_deploy

from cellmw import CellFilter
from cellmw.trip import TARGET_KEY
from examples.compute import models
from examples.compute.part import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _typeshed.wsgi import WSGIApplication

    from tests.functional.conftest import Answer, Deployment, Exchange, Workers

PASTE_INI = Path(__file__).parents[2] / "etc" / "api-paste.ini"

REBOOT = b'{"reboot": {}}'


class Pipeline(NamedTuple):
    """What was loaded, and the filter that was found in it."""

    app: WSGIApplication
    filter: CellFilter


@pytest.fixture
def pipeline(deployment: Deployment) -> Iterator[Pipeline]:
    """etc/api-paste.ini, loaded as it is; then the filter and what is behind it are each put behind a validator."""
    app = paste_deploy.loadapp(f"config:{PASTE_INI}", global_conf=deployment.global_conf)
    before = app["/v2.1"]
    while not isinstance(before.application, CellFilter):
        before = before.application
    cell_filter = before.application
    cell_filter.application = validator(cell_filter.application)
    before.application = validator(cell_filter)
    with closing(cell_filter):
        yield Pipeline(app, cell_filter)
        assert cell_filter.cells.leases == 0


@pytest.fixture
def new_instance(deployment: Deployment) -> Callable[..., str]:
    """Map an instance to a cell and return its uuid; every cell has a row for it, with the name of the cell."""
    for cell in deployment.cells:
        models.create_all(deployment.database_url(cell))

    def new(cell: str | None, **mapping: Any) -> str:
        instance_uuid = deployment.map(cell, **mapping)
        for other in deployment.cells:
            with closing(sqlite3.connect(deployment.file(other))) as connection, connection:
                connection.execute(
                    "INSERT INTO instances (uuid, project_id, name, flavor, state, host, reboots)"
                    " VALUES (?, 'project-1', ?, 'small', 'ACTIVE', 'host', 0)",
                    (instance_uuid, f"in {other}"),
                )
        return instance_uuid

    return new


@pytest.fixture
def request_server(pipeline: Pipeline, exchange: type[Exchange]) -> Callable[..., Answer]:
    """Send a request for a server through the pipeline, in this process."""

    def request_server(instance_uuid: str, path: str = "", **request: Any) -> Answer:
        return exchange(f"/v2.1/servers/{instance_uuid}{path}", **request).fetch(pipeline.app)

    return request_server


@pytest.mark.parametrize("cell", ["cell1", "cell2", "cell0"])
def test_show(new_instance: Callable[..., str], request_server: Callable[..., Answer], cell: str) -> None:
    """An instance is shown out of its own cell."""
    instance_uuid = new_instance(cell)
    answer = request_server(instance_uuid)
    assert answer.code == 200
    assert (answer.json["server"]["id"], answer.json["server"]["name"]) == (instance_uuid, f"in {cell}")


@pytest.mark.parametrize("cell", ["cell1", "cell2"])
def test_action(
    new_instance: Callable[..., str], request_server: Callable[..., Answer], workers: Workers, cell: str
) -> None:
    """An action arrives on the queue of the instance's own cell, with the context of the caller."""
    instance_uuid = new_instance(cell)
    assert request_server(instance_uuid, "/action", method="POST", content=REBOOT).code == 202
    assert workers.next() == (cell, instance_uuid, "project-1")


def test_action_in_cell0(new_instance: Callable[..., str], request_server: Callable[..., Answer]) -> None:
    """An action on an instance that never left cell0 is a conflict."""
    answer = request_server(new_instance("cell0"), "/action", method="POST", content=REBOOT)
    assert answer.code == 409
    assert "never reached a host" in answer.json["conflictingRequest"]["message"]


def test_unknown(request_server: Callable[..., Answer]) -> None:
    """An instance that nobody knows is not found, and the answer has the id that the pipeline gave the request."""
    unknown = str(uuid.uuid4())
    answer = request_server(unknown)
    assert answer.json == {
        "itemNotFound": {
            "code": 404,
            "message": f"Instance {unknown} could not be found.",
            "request_id": answer.headers["x-openstack-request-id"],
        }
    }


def test_other_project(new_instance: Callable[..., str], request_server: Callable[..., Answer]) -> None:
    """An instance of another project is not found either."""
    answer = request_server(new_instance("cell1", project_id="project-2"))
    assert answer.code == 404
    assert set(answer.json) == {"itemNotFound"}


def test_admin(new_instance: Callable[..., str], request_server: Callable[..., Answer]) -> None:
    """An admin gets to see it."""
    answer = request_server(new_instance("cell1", project_id="project-2"), headers={"HTTP_X_ROLES": "admin"})
    assert answer.json["server"]["name"] == "in cell1"


def test_building(new_instance: Callable[..., str], request_server: Callable[..., Answer]) -> None:
    """An instance that has no cell yet is answered for by the app, out of no cell."""
    answer = request_server(new_instance(None))
    assert answer.code == 409
    assert answer.json["conflictingRequest"]["message"] == "The instance is still being scheduled."


def test_head(new_instance: Callable[..., str], request_server: Callable[..., Answer]) -> None:
    """A HEAD for what the app has no handler for goes through like any other request."""
    answer = request_server(new_instance("cell1"), method="HEAD")
    assert (answer.code, answer.content) == (404, b"")


def test_healthcheck(pipeline: Pipeline, exchange: type[Exchange]) -> None:
    """The healthcheck is no business of the filter's."""
    assert exchange("/healthcheck").fetch(pipeline.app).code == 200


def test_malformed_path(pipeline: Pipeline, exchange: type[Exchange], deployment: Deployment) -> None:
    """A path that is not UTF-8 gets to the app, whose business it is, without a target."""
    targeted: list[bool] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        targeted.append(TARGET_KEY in environ)
        start_response("400 Bad Request", [("Content-Type", "text/plain"), ("Content-Length", "0")])
        return []

    pipeline.filter.application = validator(app)
    answer = exchange(f"/v2.1/servers/{deployment.map('cell1')}/\xff").fetch(pipeline.app)
    assert (answer.code, targeted) == (400, [False])


def test_streamed(pipeline: Pipeline, exchange: type[Exchange], new_instance: Callable[..., str]) -> None:
    """A streamed body is read from its cell chunk by chunk, behind all the filters in front."""
    request = exchange(f"/v2.1/servers/{new_instance('cell2')}/console").send(pipeline.app)
    assert pipeline.filter.cells.leases == 1
    assert set(request.finish().split(b"\n")[0].split()) >= {b"in", b"cell2", b"ACTIVE"}
    assert pipeline.filter.cells.leases == 0


def test_streamed_and_gone(pipeline: Pipeline, exchange: type[Exchange], new_instance: Callable[..., str]) -> None:
    """When the client is gone half-way, the server's close() gets through to the lease."""
    request = exchange(f"/v2.1/servers/{new_instance('cell2')}/console").send(pipeline.app)
    assert next(iter(request.body)).startswith(b"in cell2")
    assert pipeline.filter.cells.leases == 1
    request.close()
    assert pipeline.filter.cells.leases == 0


def test_over_a_socket(pipeline: Pipeline, new_instance: Callable[..., str], workers: Workers) -> None:
    """All of it over a socket, through a real WSGI server: show and action in both cells, unknown, building."""
    with Server(pipeline.app) as server, closing(http.client.HTTPConnection(urlsplit(server.url).netloc)) as client:

        def ask(instance_uuid: str, action: bytes = b"") -> tuple[int, Any]:
            method, path = ("POST", "/action") if action else ("GET", "")
            # where it is not told the length, oslo.middleware's sizelimit makes an input that is no input by PEP 3333
            headers = {"X-Project-Id": "project-1", "Content-Length": str(len(action))}
            client.request(method, f"/v2.1/servers/{instance_uuid}{path}", action, headers)
            with client.getresponse() as response:
                content = response.read()
            return response.status, json.loads(content) if content else None

        for cell in ("cell1", "cell2"):
            instance_uuid = new_instance(cell)
            status, shown = ask(instance_uuid)
            assert (status, shown["server"]["name"]) == (200, f"in {cell}")
            assert ask(instance_uuid, REBOOT) == (202, None)
            assert workers.next() == (cell, instance_uuid, "project-1")
        assert ask(new_instance("cell0"))[1]["server"]["name"] == "in cell0"
        assert ask(new_instance(None))[0] == 409
        assert ask(str(uuid.uuid4()))[0] == 404
        assert ask(new_instance("cell1", project_id="project-2"))[0] == 404
