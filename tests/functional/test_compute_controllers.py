# SPDX-License-Identifier: Apache-2.0
"""The controllers of the compute example, tested as a service tests its own: with fake cells, and without a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import webob

from cellmw.fixture import Message
from examples.compute import models
from examples.compute.context import ContextFilter
from examples.compute.controllers import ComputeAPI

if TYPE_CHECKING:
    from collections.abc import Callable

    from cellmw.fixture import FakeCells

pytest_plugins = ["cellmw.fixture.pytest"]


@pytest.fixture
def fake_cells_options() -> dict[str, Any]:
    """The tables of the example."""
    return {"create_tables": models.Base.metadata.create_all}


@pytest.fixture
def ask(fake_cells: FakeCells) -> Callable[..., webob.Response]:
    """Send a request to the API behind its filters, and take the answer without reading it."""
    app = ContextFilter(fake_cells.filter(ComputeAPI()))

    def ask(method: str, path: str, **request: Any) -> webob.Response:
        headers = {"X-Project-Id": "project", "X-User-Id": "user"}
        return webob.Request.blank(path, method=method, headers=headers, **request).get_response(app)

    return ask


@pytest.fixture
def server(fake_cells: FakeCells) -> Callable[..., str]:
    """Put a server into a cell, and return its uuid."""

    def put(cell: str, **values: Any) -> str:
        instance_uuid = fake_cells.map(cell)
        values = {"project_id": "project", "name": "web", "flavor": "small", "state": "ACTIVE", "host": "host"} | values
        with fake_cells[cell].session() as session:
            session.add(models.Instance(uuid=instance_uuid, **values))
        return instance_uuid

    return put


def find(fake_cells: FakeCells, cell: str, instance_uuid: str) -> models.Instance | None:
    """Return what a cell's database has of a server."""
    with fake_cells[cell].session() as session:
        return session.get(models.Instance, instance_uuid)


def create(ask: Callable[..., webob.Response], flavor: str = "small") -> webob.Response:
    """Ask for a new server."""
    return ask("POST", "/servers", json={"server": {"name": "web", "flavor": flavor}})


def test_show(ask: Callable[..., webob.Response], server: Callable[..., str]) -> None:
    """A server is shown as its own cell has it."""
    names = {server(cell, name=f"web in {cell}"): f"web in {cell}" for cell in ("cell0", "cell1", "cell2")}
    assert {uuid: ask("GET", f"/servers/{uuid}").json["server"]["name"] for uuid in names} == names


def test_reboot(fake_cells: FakeCells, ask: Callable[..., webob.Response], server: Callable[..., str]) -> None:
    """A reboot is one message, to the server's own cell, in the name of the caller."""
    uuid = server("cell2")
    assert ask("POST", f"/servers/{uuid}/action", json={"reboot": {}}).status_code == 202
    assert fake_cells.recorder.sent == [Message("cell2", "cast", "reboot", {"instance_uuid": uuid})]
    assert fake_cells.recorder.sent[0].context["project_id"] == "project"


def test_reboot_without_a_queue(ask: Callable[..., webob.Response], server: Callable[..., str]) -> None:
    """What lives in cell0 can't be rebooted."""
    assert ask("POST", f"/servers/{server('cell0')}/action", json={"reboot": {}}).status_code == 409


def test_reboot_while_the_queue_is_down(
    fake_cells: FakeCells, ask: Callable[..., webob.Response], server: Callable[..., str]
) -> None:
    """The API has no answer of its own to a queue that is down, and needs none; the cell is given back all the same."""
    uuid = server("cell1")
    fake_cells["cell1"].queue.down()
    answer = ask("POST", f"/servers/{uuid}/action", json={"reboot": {}})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json["serviceUnavailable"]["code"] == 503
    assert fake_cells.recorder.leased == fake_cells.recorder.released == ["cell1"]


def test_delete_on_a_host(
    fake_cells: FakeCells, ask: Callable[..., webob.Response], server: Callable[..., str]
) -> None:
    """What a host has is deleted by its worker, and queued for deletion until then."""
    uuid = server("cell1")
    assert ask("DELETE", f"/servers/{uuid}").status_code == 204
    assert fake_cells.recorder.sent == [Message("cell1", "cast", "delete", {"instance_uuid": uuid})]
    assert fake_cells.cells.locate(uuid).queued_for_delete


def test_delete_on_no_host(
    fake_cells: FakeCells, ask: Callable[..., webob.Response], server: Callable[..., str]
) -> None:
    """What no host has is deleted at once, without a message."""
    uuid = server("cell0", host=None)
    assert ask("DELETE", f"/servers/{uuid}").status_code == 204
    assert (find(fake_cells, "cell0", uuid), fake_cells.recorder.sent) == (None, [])


def test_create(fake_cells: FakeCells, ask: Callable[..., webob.Response]) -> None:
    """New servers go to the cells in turn: each is in the database of the cell whose worker is told to build it."""
    for cell in ("cell1", "cell2", "cell1"):
        uuid = create(ask).json["server"]["id"]
        assert fake_cells.recorder.sent[-1] == Message(cell, "cast", "build", {"instance_uuid": uuid})
        assert find(fake_cells, cell, uuid) is not None
        assert fake_cells.cells.locate(uuid).cell_id == fake_cells[cell].record.id


def test_create_where_nothing_fits(fake_cells: FakeCells, ask: Callable[..., webob.Response]) -> None:
    """What no host has room for is buried in cell0, without a message."""
    uuid = create(ask, "too-big").json["server"]["id"]
    buried = find(fake_cells, "cell0", uuid)
    assert buried is not None
    assert (buried.state, fake_cells.recorder.sent) == ("ERROR", [])


def test_create_while_the_api_database_is_down(fake_cells: FakeCells, ask: Callable[..., webob.Response]) -> None:
    """Without the API database no server is created, in no cell."""
    fake_cells.api_database.down()
    assert create(ask).status_code == 503
    assert fake_cells.recorder.leased == []


def test_building(fake_cells: FakeCells, ask: Callable[..., webob.Response]) -> None:
    """A server that has no cell yet is a conflict."""
    assert ask("GET", f"/servers/{fake_cells.map(None)}").status_code == 409


def test_console(fake_cells: FakeCells, ask: Callable[..., webob.Response], server: Callable[..., str]) -> None:
    """The console keeps its cell for as long as it is streamed, and reads each line from there."""
    uuid = server("cell2")
    answer = ask("GET", f"/servers/{uuid}/console?lines=2")
    lines = iter(answer.app_iter)
    first = next(lines)
    with fake_cells["cell2"].session() as session:
        session.get_one(models.Instance, uuid).name = "renamed"
    assert (first[:3], next(lines)[:7], fake_cells.recorder.released) == (b"web", b"renamed", [])
    answer.app_iter.close()
    assert fake_cells.recorder.released == ["cell2"]
