# SPDX-License-Identifier: Apache-2.0
"""The lists of the compute example: servers of all cells, in pages, sorted, and what a cell that is down leaves out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
import sqlalchemy
import webob

from cellmw.deadline import SLOW
from examples.compute import lists, models
from examples.compute.context import ContextFilter
from examples.compute.controllers import ComputeAPI
from tests.functional.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cellmw.fixture import FakeCells

pytest_plugins = ["cellmw.fixture.pytest"]

ALL_CELLS = ("cell0", "cell1", "cell2")
BEGIN = datetime(2026, 1, 1)
ADMIN = {"X-Roles": "member,admin"}


@pytest.fixture
def fake_cells_options() -> dict[str, Any]:
    """The tables of the example."""
    return {"create_tables": models.Base.metadata.create_all}


class Client:
    """Asks the API behind its filters. Lives as long as the test."""

    def __init__(self, fake_cells: FakeCells, **app_options: str) -> None:
        self._app = ContextFilter(fake_cells.filter(ComputeAPI.factory({}, **app_options)))
        self._headers = {"X-Project-Id": "project", "X-User-Id": "user"}

    def ask(self, url: str, headers: dict[str, str] | None = None) -> webob.Response:
        """Ask for a URL, whole or from its path on."""
        request = webob.Request.blank(url, headers=self._headers | (headers or {}))
        return request.get_response(self._app)

    def list(self, path: str = "/servers", *parameters: tuple[str, object], **headers: str) -> list[dict[str, Any]]:
        """Return the servers of a page that has to be there."""
        answer = self.ask(f"{path}?{urlencode(parameters)}", headers)
        assert answer.status_code == 200, answer.text
        return answer.json["servers"]

    def names(self, *parameters: tuple[str, object]) -> list[str]:
        """Return the names of a page."""
        return [each["name"] for each in self.list("/servers", *parameters)]

    def walk(self, *parameters: tuple[str, object]) -> Iterator[list[dict[str, Any]]]:
        """Return page after page, by their links."""
        url = f"/servers/detail?{urlencode(parameters)}"
        while url:
            answer = self.ask(url)
            assert answer.status_code == 200, answer.text
            yield answer.json["servers"]
            url = next((link["href"] for link in answer.json.get("servers_links", ())), "")


@pytest.fixture
def client(fake_cells: FakeCells) -> Client:
    """A client of the API as it is configured by default."""
    return Client(fake_cells)


@pytest.fixture
def put(fake_cells: FakeCells) -> Callable[..., str]:
    """Put a server into a cell, and return its uuid; each is created a minute after the one before."""
    made: list[str] = []

    def put(cell: str, name: str, **values: Any) -> str:
        values = {
            "project_id": "project",
            "flavor": "small",
            "created_at": BEGIN + timedelta(minutes=len(made)),
        } | values
        made.append(instance_uuid := fake_cells.map(cell, project_id=values["project_id"]))
        with fake_cells[cell].session() as session:
            session.add(models.Instance(uuid=instance_uuid, name=name, **values))
        return instance_uuid

    return put


@pytest.fixture
def nine(put: Callable[..., str]) -> list[str]:
    """Nine servers, put into the cells in turn, by their age: the names of three have another order than these."""
    return [put(ALL_CELLS[number % 3], f"{number % 4} {number}") for number in range(9)]


def until(condition: Callable[[], bool]) -> None:
    """Wait for what a thread that nobody waits for is about to do."""
    end = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < end
        sleep(0.001)


def test_index(client: Client, put: Callable[..., str]) -> None:
    """A list has the servers of every cell, with ids, names and links, the newest first."""
    uuids = {cell: put(cell, f"in {cell}") for cell in ALL_CELLS}
    assert client.list() == [
        {
            "id": uuids[cell],
            "name": f"in {cell}",
            "links": [{"rel": "self", "href": f"http://localhost/servers/{uuids[cell]}"}],
        }
        for cell in reversed(ALL_CELLS)
    ]


def test_detail(client: Client, nine: list[str]) -> None:
    """The list with details shows each server as it is shown by itself."""
    details = client.list("/servers/detail")
    for each in details:
        del each["links"]
    assert details == [client.ask(f"/servers/{uuid}").json["server"] for uuid in reversed(nine)]


def test_no_server(client: Client) -> None:
    """A list of nothing has no link."""
    assert client.ask("/servers").json == {"servers": []}


def test_projects(client: Client, put: Callable[..., str]) -> None:
    """A list has the servers of the caller's project; an admin's has those of all if that is asked for."""
    put("cell1", "mine")
    put("cell2", "theirs", project_id="another")
    assert client.names() == ["mine"]
    assert [each["name"] for each in client.list("/servers", **{"X-Project-Id": "another"})] == ["theirs"]
    assert [each["name"] for each in client.list("/servers", ("all_tenants", 0), **ADMIN)] == ["mine"]
    assert [each["name"] for each in client.list("/servers", ("all_tenants", 1), **ADMIN)] == ["theirs", "mine"]


def test_all_tenants_of_no_admin(client: Client, put: Callable[..., str]) -> None:
    """Nobody else gets to see other projects."""
    put("cell1", "theirs", project_id="another")
    answer = client.ask("/servers?all_tenants=1")
    assert (answer.status_code, answer.json["forbidden"]["message"]) == (403, "all_tenants is for admins")


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ([("sort_key", "name"), ("sort_dir", "asc")], ["a", "b", "b", "c"]),
        ([("sort_key", "name")], ["c", "b", "b", "a"]),
        ([("sort_dir", "asc")], ["b", "a", "c", "b"]),
        (
            [("sort_key", "status"), ("sort_dir", "desc"), ("sort_key", "display_name"), ("sort_dir", "asc")],
            ["b", "c", "a", "b"],
        ),
    ],
)
def test_sort(client: Client, put: Callable[..., str], parameters: list[tuple[str, str]], names: list[str]) -> None:
    """Servers are sorted over all cells, by the keys and directions that are given, newest first where none is."""
    for cell, name, state in [
        ("cell1", "b", "ACTIVE"),
        ("cell2", "a", "ACTIVE"),
        ("cell1", "c", "ERROR"),
        ("cell0", "b", "ERROR"),
    ]:
        put(cell, name, state=state)
    assert client.names(*parameters) == names


def test_fewer_directions(client: Client, put: Callable[..., str]) -> None:
    """Keys that have no direction of their own have the first one."""
    for cell, name, flavor in [("cell1", "b", "small"), ("cell2", "c", "large"), ("cell2", "a", "small")]:
        put(cell, name, flavor=flavor)
    assert client.names(("sort_key", "flavor"), ("sort_key", "name"), ("sort_dir", "asc")) == ["c", "a", "b"]


def test_created(fake_cells: FakeCells, client: Client) -> None:
    """A new server has the time at which it was made, in UTC."""
    with fake_cells["cell1"].session() as session:
        session.add(models.Instance(uuid=fake_cells.map("cell1"), project_id="project", name="new", flavor="small"))
    created = datetime.fromisoformat(client.list("/servers/detail")[0]["created"])
    assert timedelta(0) <= datetime.now(UTC) - created < timedelta(seconds=PATIENCE)


def test_created_at_null(client: Client, put: Callable[..., str]) -> None:
    """A server without a time is the oldest, in whichever cell it is."""
    put("cell2", "timeless", created_at=sqlalchemy.null())
    put("cell1", "old")
    assert client.names() == ["old", "timeless"]
    assert client.names(("sort_dir", "asc")) == ["timeless", "old"]


@pytest.mark.parametrize("limit", [1, 2, 3, 9])
def test_pages(client: Client, nine: list[str], limit: int) -> None:
    """Page by page, each server comes once, in order, and each page but the last is full."""
    pages = [[each["id"] for each in page] for page in client.walk(("limit", limit))]
    assert [uuid for page in pages for uuid in page] == nine[::-1]
    assert [len(page) for page in pages] == [limit] * (9 // limit) + [9 % limit] * bool(9 % limit)


def test_pages_keep_what_was_asked_for(client: Client, nine: list[str]) -> None:
    """The link to the next page has the limit and the sort keys of this one."""
    sort = [("sort_key", "name"), ("sort_dir", "asc"), ("sort_key", "created_at"), ("sort_dir", "desc")]
    names = [each["name"] for page in client.walk(("limit", 2), *sort) for each in page]
    assert names == sorted(names)
    assert len(names) == 9


def test_pages_while_servers_come(client: Client, nine: list[str], put: Callable[..., str]) -> None:
    """Servers that are created meanwhile move nothing: none is skipped, and none comes twice."""
    seen = []
    for page in client.walk(("limit", 2)):
        seen += [each["id"] for each in page]
        put("cell1", "new")
    assert seen == nine[::-1]


def test_marker(client: Client, nine: list[str]) -> None:
    """The id of the last server of a page is a marker for the next."""
    first = client.list("/servers", ("limit", 4))
    second = client.list("/servers", ("limit", 4), ("marker", first[-1]["id"]))
    assert [each["id"] for each in first + second] == nine[:0:-1]


def test_limit_above_the_maximum(client: Client, nine: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit above the maximum is cut to it, however long it is."""
    monkeypatch.setattr(lists, "MAX_LIMIT", 4)
    assert [len(client.list("/servers", ("limit", limit))) for limit in (5, 10**30)] == [4, 4]
    assert len(client.list()) == 4


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("sort_key=colour", "there is no sort_key colour; there are created_at"),
        ("sort_key=name&sort_dir=up", "sort_dir is asc or desc, and not up"),
        ("sort_key=name&sort_dir=asc&sort_dir=asc", "there are more sort_dir than sort_key"),
        ("limit=-1", "limit has to be a number"),
        ("limit=many", "limit has to be a number"),
        ("limit=0", "at least 1"),
        ("limit=1&limit=2", "limit is there twice"),
        ("colour=red", "there is no parameter colour"),
        ("all_tenants=maybe", "all_tenants is 1 or 0"),
        ("marker=ffffffff-ffff-4fff-8fff-ffffffffffff", "ffffffff-ffff-4fff-8fff-ffffffffffff"),
        ("cursor=forged", "cursor"),
        ("cursor=1&marker=2", "not by both"),
        ("limit=%ff", "not UTF-8"),
    ],
)
def test_bad_parameters(fake_cells: FakeCells, client: Client, nine: list[str], query: str, why: str) -> None:
    """What can't be understood is a 400 that says why."""
    answer = client.ask(f"/servers?{query}")
    assert answer.status_code == 400
    assert why in answer.json["badRequest"]["message"]
    assert fake_cells.cells.leases == 0


def test_cursor_of_another_order(client: Client, nine: list[str]) -> None:
    """A cursor is for the order that it was made for."""
    link = client.ask("/servers?limit=2").json["servers_links"][0]["href"]
    answer = client.ask(f"{link}&sort_key=name")
    assert answer.status_code == 400


def test_down_cell(fake_cells: FakeCells, client: Client, nine: list[str]) -> None:
    """Of a cell that is down the list has ids and the status UNKNOWN, and of the others all."""
    fake_cells["cell1"].database.down()
    shown = {each["id"]: each for each in client.list("/servers/detail")}
    assert shown.keys() == set(nine)
    assert {uuid for uuid, each in shown.items() if each["status"] == "UNKNOWN"} == set(nine[1::3])
    assert shown[nine[1]] == {
        "id": nine[1],
        "tenant_id": "project",
        "status": "UNKNOWN",
        "links": [{"rel": "self", "href": f"http://localhost/servers/{nine[1]}"}],
    }


def test_down_cell_in_pages(fake_cells: FakeCells, client: Client, nine: list[str]) -> None:
    """Page by page, what is known of a cell that is down comes behind all else, and each server once."""
    fake_cells["cell1"].database.down()
    shown = [each for page in client.walk(("limit", 2)) for each in page]
    assert [each["id"] for each in shown[:6]] == [nine[number] for number in (8, 6, 5, 3, 2, 0)]
    assert [each["id"] for each in shown[6:]] == sorted(nine[1::3])
    assert [each["status"] for each in shown[6:]] == ["UNKNOWN"] * 3


def test_down_cell_of_others(fake_cells: FakeCells, client: Client, put: Callable[..., str]) -> None:
    """Of a cell that is down nobody gets to know another project's servers, unless an admin asks for all."""
    put("cell1", "theirs", project_id="another")
    fake_cells["cell1"].database.down()
    assert client.list() == []
    assert len(client.list("/servers", ("all_tenants", 1), **ADMIN)) == 1


def test_down_cell_is_back(fake_cells: FakeCells, client: Client, nine: list[str]) -> None:
    """When the cell is back its servers are listed as ever."""
    fake_cells["cell1"].database.down()
    client.list()
    fake_cells["cell1"].database.up()
    assert [each["id"] for each in client.list()] == nine[::-1]


def test_slow_cell(fake_cells: FakeCells, client: Client, nine: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that does not answer in time is as one that is down, and the servers of the others are all there."""
    client.list()
    monkeypatch.setattr(lists, "TIMEOUT", 0.3)
    began = monotonic()
    with fake_cells["cell1"].database.slow():
        shown = client.list("/servers/detail")
    assert monotonic() - began < SLOW
    assert {each["id"] for each in shown if each["status"] == "UNKNOWN"} == set(nine[1::3])
    assert [each["id"] for each in shown if each["status"] != "UNKNOWN"] == [
        uuid for number, uuid in reversed(list(enumerate(nine))) if number % 3 != 1
    ]
    until(lambda: not any(fake_cells.cells.left_behind.values()))


def test_next_page_while_the_marker_is_away(fake_cells: FakeCells, client: Client, nine: list[str]) -> None:
    """The link to the next page leads there also when the cell of the last server of this one has gone down."""
    pages = client.walk(("limit", 2))
    first = next(pages)
    assert first[-1]["id"] == nine[7]
    fake_cells["cell1"].database.down()
    rest = [each["id"] for page in pages for each in page if each["status"] != "UNKNOWN"]
    assert rest == [nine[number] for number in (6, 5, 3, 2, 0)]


def test_marker_that_is_away(fake_cells: FakeCells, client: Client, nine: list[str]) -> None:
    """A marker in a cell that is down is no mistake of the caller's: the list can't be made at the moment."""
    fake_cells["cell1"].database.down()
    assert client.ask(f"/servers?marker={nine[7]}").status_code == 503
    assert [each["id"] for each in client.list("/servers", ("marker", nine[6]), ("limit", 2))] == [nine[5], nine[3]]


@pytest.mark.parametrize(("down_cells", "status"), [("skip", 200), ("fail", 503)])
def test_other_policies(fake_cells: FakeCells, nine: list[str], down_cells: str, status: int) -> None:
    """The pipeline says whether a list does without the servers of a cell that is down, or fails."""
    client = Client(fake_cells, down_cells=down_cells)
    fake_cells["cell1"].database.down()
    answer = client.ask("/servers")
    assert answer.status_code == status
    if status == 200:
        assert [each["id"] for each in answer.json["servers"]] == [nine[number] for number in (8, 6, 5, 3, 2, 0)]


def test_which_cell_is_down(fake_cells: FakeCells, nine: list[str]) -> None:
    """Only an admin is told which cell it is that a list fails for."""
    client = Client(fake_cells, down_cells="fail")
    fake_cells["cell1"].database.down()
    messages = [client.ask("/servers", headers).json["serviceUnavailable"]["message"] for headers in ({}, ADMIN)]
    assert ["cell1" in message for message in messages] == [False, True]


def test_all_cells_down(fake_cells: FakeCells, client: Client, nine: list[str]) -> None:
    """Where no cell answers there is no list."""
    for cell in ALL_CELLS:
        fake_cells[cell].database.down()
    assert client.ask("/servers").status_code == 503


def test_leases(fake_cells: FakeCells, client: Client, nine: list[str]) -> None:
    """Each cell is given back at the end of the list, also by one that was refused."""
    client.list()
    fake_cells["cell1"].database.down()
    client.list()
    client.ask("/servers?marker=nothing")
    assert sorted(fake_cells.recorder.leased) == sorted(fake_cells.recorder.released)
    assert fake_cells.cells.leases == 0
