# SPDX-License-Identifier: Apache-2.0
"""Drained cells, and instances that are being moved: who is refused, who goes on, and that nobody is in two cells."""

from __future__ import annotations

import logging
import sqlite3
import threading
import uuid
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from cellmw.exceptions import CellDrained
from tests.commands import exit_code_of
from tests.functional.conftest import PATIENCE, Answer, Deployment, News, streaming
from tests.functional.test_change import CLOSED, ask_until, open_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cellmw import CellFilter
    from tests.functional.conftest import Api, Exchange

    MakeFilter = Callable[..., CellFilter]
    Get = Callable[..., Answer]

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

SOON = "0.1"
"""The shortest ``refresh_interval`` there is."""


@pytest.fixture
def reading(make_filter: MakeFilter, api: Api) -> CellFilter:
    """A filter in front of an app that reads from the database for each chunk."""
    return make_filter(streaming(api.database), refresh_interval=SOON)


def drain(deployment: Deployment, cell: str) -> None:
    """Drain a cell."""
    deployment.store.drain_cell(deployment.cells[cell].uuid)


def undrain(deployment: Deployment, cell: str) -> None:
    """Let requests into it again."""
    deployment.store.undrain_cell(deployment.cells[cell].uuid)


def test_drained_before_anything_else(deployment: Deployment, reading: CellFilter, get: Get) -> None:
    """The first request of a worker's life is refused, with a time to come again."""
    drain(deployment, "cell1")
    answer = get(reading, deployment.map("cell1"))
    assert (answer.code, answer.headers["Retry-After"]) == (503, "5")


def test_drained_while_it_serves(deployment: Deployment, reading: CellFilter, get: Get) -> None:
    """A worker that has served the cell refuses within the interval, cached mappings or not, and other cells go on."""
    instances = [deployment.map(cell) for cell in ("cell1", "cell2")]
    assert [get(reading, instance).code for instance in instances] == [200, 200]
    drain(deployment, "cell1")
    ask_until([503, 200], lambda: [get(reading, instance).code for instance in instances])
    assert get(reading, deployment.map("cell1")).code == 503


def test_drained_before_the_first_lease(deployment: Deployment, reading: CellFilter, get: Get) -> None:
    """A worker that had nothing to serve yet, but was asked for what there is not, keeps up with it all the same."""
    assert get(reading, str(uuid.uuid4())).code == 404
    drain(deployment, "cell1")
    drained = {deployment.cells["cell1"].uuid}
    ask_until(drained, lambda: reading.cells._holds.cells)
    assert get(reading, deployment.map("cell1")).code == 503


def test_undrained(deployment: Deployment, reading: CellFilter, get: Get) -> None:
    """It serves again as soon as it is known."""
    instance = deployment.map("cell1")
    drain(deployment, "cell1")
    assert get(reading, instance).code == 503
    undrain(deployment, "cell1")
    ask_until(200, lambda: get(reading, instance).code)


def test_under_way(deployment: Deployment, reading: CellFilter, exchange: type[Exchange], get: Get, news: News) -> None:
    """A request that is under way reads on to its end; then, and not before, the cell's connections are closed."""
    instance = deployment.map("cell1")
    stream = exchange(f"/servers/{instance}").send(reading)
    next(iter(stream.body))
    drain(deployment, "cell1")
    news.wait_for("cell cell1: it is drained")
    assert (open_files(deployment.file("cell1")) > 0, get(reading, instance).code) == (True, 503)
    assert stream.finish() == b"cell1 cell1 "
    news.wait_for(CLOSED)
    assert open_files(deployment.file("cell1")) == 0


def test_degrade_is_for_accidents(deployment: Deployment, make_filter: MakeFilter, api: Api, get: Get) -> None:
    """With ``down_cell = degrade`` a drained cell is refused all the same."""
    cell_filter = make_filter(streaming(api.database), down_cell="degrade")
    drain(deployment, "cell1")
    assert get(cell_filter, deployment.map("cell1")).code == 503


def test_log(deployment: Deployment, reading: CellFilter, get: Get, caplog: pytest.LogCaptureFixture) -> None:
    """What an operator does on purpose is no error in the log."""
    caplog.set_level(logging.INFO, "cellmw.faults")
    drain(deployment, "cell1")
    get(reading, deployment.map("cell1"))
    assert [(record.levelname, "cell cell1 is drained" in record.message) for record in caplog.records] == [
        ("INFO", True)
    ]


def test_code_outside_a_request(deployment: Deployment, reading: CellFilter) -> None:
    """A script of the service is kept out as well."""
    drain(deployment, "cell1")
    cells = reading.cells
    with pytest.raises(CellDrained), cells.target(None, cells.get("cell1")):
        pass


def test_app_that_goes_to_a_drained_cell(deployment: Deployment, make_filter: MakeFilter, get: Get) -> None:
    """An app that wants another, drained cell and lets the error escape answers 503."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        cells = environ["cellmw.cells"]
        with cells.target(environ["cellmw.context"], cells.get("cell2")):
            raise AssertionError("nobody is let in")

    drain(deployment, "cell2")
    assert get(make_filter(app), deployment.map("cell1")).code == 503


# --- an instance that is moved


class Clients:
    """Ask for one instance again and again, each by a worker of its own. Lives as long as the with block.

    :ivar answers: what each was answered, in the order in which it came
    """

    def __init__(self, filters: list[CellFilter], instance: str, get: Get) -> None:
        self.answers: list[str] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(each, instance, get)) for each in filters]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def wait_for(self, content: str) -> None:
        """Return as soon as somebody was answered this."""
        ask_until(True, lambda: content in self.answers)

    def _ask(self, cell_filter: CellFilter, instance: str, get: Get) -> None:
        while not self._ended.is_set():
            answer = get(cell_filter, instance)
            self.answers.append(answer.content.decode().split()[0] if answer.code == 200 else str(answer.code))


@pytest.fixture
def configuration(deployment: Deployment, tmp_path: Path) -> Path:
    """What the services and the command go by: a second for a mapping, and for a request."""
    path = tmp_path / "cellmw.conf"
    with path.open("a") as file:
        file.write(f"[cellmw]\nrefresh_interval = {SOON}\nmapping_ttl = 1\nrequest_deadline = 1\n")
        file.write("[cellmw_tables]\ninstance_hidden =\ninstance_user =\n")
    return path


def add_row(deployment: Deployment, cell: str, instance: str) -> None:
    """Bring the instance's row to the database of a cell."""
    with closing(sqlite3.connect(deployment.file(cell))) as connection, connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS instances (id INTEGER PRIMARY KEY, uuid TEXT, project_id TEXT, deleted INTEGER)"
        )
        connection.execute("INSERT INTO instances (uuid, project_id, deleted) VALUES (?, 'p', 0)", (instance,))


def test_moved_under_requests(
    deployment: Deployment, configuration: Path, make_filter: MakeFilter, api: Api, get: Get
) -> None:
    """No worker serves it from the old cell once another has served it from the new one; in between it is refused."""
    instance = deployment.map("cell1")
    add_row(deployment, "cell2", instance)
    filters = [make_filter(streaming(api.database)) for _ in range(3)]
    with Clients(filters, instance, get) as clients:
        clients.wait_for("cell1")
        move = ["--config-file", str(configuration), "cell_v2", "move_instance", instance, "--to", "cell2"]
        assert exit_code_of(move) == 0
        clients.wait_for("cell2")
    order = [answer for answer, _ in Counter(clients.answers).items()]
    assert order == ["cell1", "503", "cell2"]
    last_of_old = max(number for number, answer in enumerate(clients.answers) if answer == "cell1")
    assert last_of_old < clients.answers.index("cell2")
