# SPDX-License-Identifier: Apache-2.0
"""A cell is down: what its requests are answered, what their apps are told and may do, and that other cells go on."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import oslo_messaging
import pytest
import webob
from oslo_config import cfg
from sqlalchemy import text

from cellmw import ClientRouter, database
from cellmw.conf import register_opts
from cellmw.exceptions import CellUnavailable
from cellmw.fixture import FakeCells, Message
from cellmw.trip import TARGET_KEY
from tests.functional.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _typeshed.wsgi import StartResponse

    from cellmw import CellFilter
    from tests.functional.conftest import Answer, Deployment, Show

pytest_plugins = ["cellmw.fixture.pytest"]


class App:
    """An app that reads from its cell's database, or sends a message. Records what it is told of its cell.

    Lives as long as the test.
    """

    def __init__(self) -> None:
        self._router = ClientRouter(None, target=oslo_messaging.Target(topic="compute", version="1.0"))
        self.told: list[tuple[str, tuple[str, ...]]] = []

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Do what the method says: GET reads, POST sends, and anything else does neither."""
        trip, context = environ[TARGET_KEY], environ["cellmw.context"]
        self.told.append((trip.state, trip.down))
        if environ["REQUEST_METHOD"] == "GET":
            with database.reader(context) as session:
                session.execute(text("SELECT 1"))
        elif environ["REQUEST_METHOD"] == "POST":
            self._router.client(context).cast(context, "reboot")
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(trip.cell).encode()]


@pytest.fixture
def app() -> App:
    """The app."""
    return App()


@pytest.fixture
def degrading() -> Iterator[FakeCells]:
    """Fake cells of a service that goes on with what is left of a cell."""
    conf = cfg.ConfigOpts()
    conf([], project="cellmw", default_config_files=[], default_config_dirs=[])
    register_opts(conf)
    conf.set_override("down_cell", "degrade", group="cellmw")
    with FakeCells(conf=conf) as fake_cells:
        yield fake_cells


def ask(cell_filter: CellFilter, instance_uuid: str, method: str = "GET", **headers: str) -> webob.Response:
    """Ask for an instance."""
    headers = {"X-Project-Id": "project"} | headers
    return webob.Request.blank(f"/servers/{instance_uuid}", method=method, headers=headers).get_response(cell_filter)


def take_down(fake_cells: FakeCells, cell_filter: CellFilter, resource: str) -> str:
    """Let the database or the queue of cell1 be down, have one request find that out, and return its instance."""
    instance_uuid = fake_cells.map("cell1")
    getattr(fake_cells["cell1"], resource).down()
    assert ask(cell_filter, instance_uuid, {"database": "GET", "queue": "POST"}[resource]).status_code == 503
    return instance_uuid


def test_found_by_a_request(fake_cells: FakeCells, app: App) -> None:
    """The request that finds the database down is answered with a 503 that says when to come again."""
    cell_filter, instance_uuid = fake_cells.filter(app), fake_cells.map("cell1")
    fake_cells["cell1"].database.down()
    answer = ask(cell_filter, instance_uuid)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json["serviceUnavailable"]["code"] == 503
    assert app.told == [("targeted", ())]


def test_refused(fake_cells: FakeCells, app: App) -> None:
    """Those after it are answered at once: the app is not called, and the cell given back; other cells go on."""
    cell_filter = fake_cells.filter(app)
    instance_uuid = take_down(fake_cells, cell_filter, "database")
    called = len(app.told)
    with fake_cells["cell1"].database.slow():  # whoever tries it would wait
        answers = [ask(cell_filter, instance_uuid, method) for method in ("GET", "POST", "PUT")]
    assert [(answer.status_code, answer.headers["Retry-After"]) for answer in answers] == [(503, "5")] * 3
    assert len(app.told) == called
    assert fake_cells.recorder.leased == fake_cells.recorder.released
    assert fake_cells.cells.leases == 0
    assert ask(cell_filter, fake_cells.map("cell2")).text == "cell2"


def test_back(fake_cells: FakeCells, app: App) -> None:
    """When the database is back the next request is served, as if nothing had been."""
    cell_filter = fake_cells.filter(app)
    instance_uuid = take_down(fake_cells, cell_filter, "database")
    assert ask(cell_filter, instance_uuid).status_code == 503
    fake_cells["cell1"].database.up()
    assert ask(cell_filter, instance_uuid).status_code == 200
    assert app.told[-1] == ("targeted", ())


def test_target(fake_cells: FakeCells, app: App) -> None:
    """Work outside a request is refused at once, too."""
    take_down(fake_cells, fake_cells.filter(app), "database")
    with pytest.raises(CellUnavailable, match="its database") as error, fake_cells.targeted("cell1"):
        pass
    assert error.value.resource == "database"
    assert fake_cells.cells.leases == 0


def test_degrade(degrading: FakeCells, app: App) -> None:
    """A service that goes on all the same is told what is down, and what it does there fails at once."""
    cell_filter = degrading.filter(app)
    instance_uuid = take_down(degrading, cell_filter, "database")
    with degrading["cell1"].database.slow():  # whoever tries it would wait
        answers = [ask(cell_filter, instance_uuid, method) for method in ("PUT", "POST", "GET")]
    assert [answer.status_code for answer in answers] == [200, 200, 503]
    assert app.told[1:] == [("down", ("database",))] * 3
    assert degrading.recorder.sent == [Message("cell1", "cast", "reboot", {})]
    assert degrading.recorder.leased == degrading.recorder.released


def test_degrade_and_back(degrading: FakeCells, app: App) -> None:
    """Such a service is told nothing any more when all is back, be it in the midst of a request."""
    cell_filter = degrading.filter(app)
    instance_uuid = take_down(degrading, cell_filter, "database")
    degrading["cell1"].queue.down()
    assert ask(cell_filter, instance_uuid, "POST").status_code == 503
    assert ask(cell_filter, instance_uuid, "PUT").status_code == 200
    degrading["cell1"].up()
    assert ask(cell_filter, instance_uuid).status_code == 200
    assert [down for _, down in app.told] == [(), ("database",), ("database", "queue"), ()]


def test_queue(fake_cells: FakeCells, app: App) -> None:
    """A queue that is down takes no request away: it is aimed as ever, told so, reads as ever, and can't send."""
    cell_filter = fake_cells.filter(app)
    instance_uuid = take_down(fake_cells, cell_filter, "queue")
    with fake_cells["cell1"].queue.slow():  # whoever tries it would wait
        answers = [ask(cell_filter, instance_uuid, method) for method in ("GET", "POST")]
    assert [answer.status_code for answer in answers] == [200, 503]
    assert app.told[1:] == [("targeted", ("queue",))] * 2
    assert fake_cells.recorder.sent == []


def test_back_by_a_probe(
    deployment: Deployment, make_filter: Callable[..., CellFilter], show: Show, get: Callable[..., Answer]
) -> None:
    """A database that can't be reached, and then can, is found to be back by a probe, with no request in between."""
    file = deployment.file("cell1")
    away = file.rename(file.with_suffix(".away"))
    file.mkdir()  # what is no file can't be opened
    cell_filter, instance_uuid = make_filter(show, probe_interval="0.1"), deployment.map("cell1")
    assert [get(cell_filter, instance_uuid).code for _ in range(3)] == [503] * 3
    assert show.calls == 1
    handles = cell_filter.cells._open_handles[deployment.cells["cell1"].id]
    back = threading.Event()
    handles.database.breaker.changed = lambda: (handles._look(), back.set())
    file.rmdir()
    away.rename(file)
    assert back.wait(PATIENCE)
    answer = get(cell_filter, instance_uuid)
    assert (answer.code, answer.content) == (200, b"cell1")
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT name FROM this_cell").fetchall() == [("cell1",)]
