# SPDX-License-Identifier: Apache-2.0
"""The deadline of a request: what it bounds on the way to the first chunk, what it does not bound after that.

What takes long is a statement that a SQLite works on until it is cut, or something that the test holds.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
import webob
from oslo_config import cfg
from sqlalchemy import text

from cellmw import RequestContext, bounds, crew, database, deploy
from cellmw.conf import register_opts
from cellmw.deadline import after, left
from cellmw.exceptions import DeadlineExceeded
from cellmw.fixture import FakeCells
from cellmw.trip import TARGET_KEY
from tests.functional.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _typeshed.wsgi import StartResponse, WSGIApplication

    from cellmw import CellFilter

pytest_plugins = ["cellmw.fixture.pytest"]

SOON = 0.8
"""Seconds that a request has whose deadline is to pass; enough for what is to be done before that."""

ENDLESS = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")
"""A statement that SQLite works on until it is interrupted."""


ONE = text("SELECT 1")


def read(context: Any, statement: Any = ONE) -> int:
    """Read from the database that the context is aimed at."""
    with database.reader(context) as session:
        return int(session.scalar(statement))


def ask(cell_filter: CellFilter, instance_uuid: str, **headers: str) -> webob.Response:
    """Ask for an instance; the body is not read yet."""
    request = webob.Request.blank(f"/servers/{instance_uuid}", headers={"X-Project-Id": "project"} | headers)
    return request.get_response(cell_filter)


def is_try_later(answer: webob.Response) -> bool:
    """Whether this is the answer to a request that could not be served in time."""
    return (answer.status_code, answer.headers.get("Retry-After"), list(answer.json)) == (
        503,
        "5",
        ["serviceUnavailable"],
    )


class App:
    """An app that does this with its context before it begins to respond. Records its targets.

    Lives as long as the test.
    """

    def __init__(self, step: Callable[[Any], Any] = read) -> None:
        self._step = step
        self.left: list[float] = []

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Do it, and respond."""
        self.left.append(left(environ[TARGET_KEY].deadline))
        content = str(self._step(environ["cellmw.context"])).encode()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [content]


# what is bounded


def test_statement(fake_cells: FakeCells) -> None:
    """A statement that takes too long is a 503 that says when to come again, where the app lets the error escape."""
    cell_filter = fake_cells.filter(App(lambda context: read(context, ENDLESS)), request_deadline=SOON)
    begun = monotonic()
    assert is_try_later(ask(cell_filter, fake_cells.map("cell1")))
    assert SOON <= monotonic() - begun < PATIENCE / 2
    assert fake_cells.recorder.leased == fake_cells.recorder.released == ["cell1"]


def test_look_up(fake_cells: FakeCells) -> None:
    """Waiting for another request that looks the instance up ends at the deadline; the app is not called."""
    cell_filter = fake_cells.filter(app := App(), request_deadline=SOON)
    fake_cells.cells.get("cell1")
    instance_uuid = fake_cells.map("cell1")
    with ThreadPoolExecutor(1) as threads, fake_cells.api_database.slow() as hold:
        first = threads.submit(ask, cell_filter, instance_uuid)
        hold.wait_until_reached()
        assert is_try_later(ask(cell_filter, instance_uuid))
        assert app.left == []
        hold.release()
        first.result(PATIENCE)


def test_opening(fake_cells: FakeCells, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for another request that opens the cell ends at the deadline, too."""
    cell_filter = fake_cells.filter(app := App(), request_deadline=SOON)
    open_handles, reached, let_go = deploy.open_handles, threading.Event(), threading.Event()

    def open_slowly(*arguments: Any) -> Any:
        reached.set()
        assert let_go.wait(PATIENCE)
        return open_handles(*arguments)

    monkeypatch.setattr(deploy, "open_handles", open_slowly)
    instance_uuid = fake_cells.map("cell1")
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(ask, cell_filter, instance_uuid)
        try:
            assert reached.wait(PATIENCE)
            assert is_try_later(ask(cell_filter, instance_uuid))
            assert app.left == []
        finally:
            let_go.set()
        first.result(PATIENCE)


# the client's own deadline


@pytest.mark.parametrize(("seconds", "least", "most"), [("5", 0, 5), ("0.5", 0, 0.5), ("3600", 20, 30), (None, 20, 30)])
def test_header(fake_cells: FakeCells, seconds: str | None, least: float, most: float) -> None:
    """A client may have less time than there is, and never more."""
    cell_filter = fake_cells.filter(app := App(), request_deadline=30.0, deadline_header="X-Deadline")
    headers = {} if seconds is None else {"X-Deadline": seconds}
    assert ask(cell_filter, fake_cells.map("cell1"), **headers).status_code == 200
    (remaining,) = app.left
    assert least < remaining <= most


def test_no_time_at_all(fake_cells: FakeCells) -> None:
    """A client that has no time is told to come again, and the connections stay in use."""
    cell_filter = fake_cells.filter(App(), deadline_header="X-Deadline")
    instance_uuid = fake_cells.map("cell1")
    for _ in range(3):
        assert is_try_later(ask(cell_filter, instance_uuid, **{"X-Deadline": "0"}))
        assert ask(cell_filter, instance_uuid).status_code == 200


@pytest.mark.parametrize("value", ["soon", "-1", "1, 2", "nan", ""])
def test_malformed_header(fake_cells: FakeCells, value: str) -> None:
    """What is no number of seconds is a 400, as JSON, and the app is not called."""
    cell_filter = fake_cells.filter(app := App(), deadline_header="X-Deadline")
    answer = ask(cell_filter, fake_cells.map("cell1"), **{"X-Deadline": value})
    assert (answer.status_code, answer.content_type) == (400, "application/json")
    assert answer.json["badRequest"]["code"] == 400
    assert (app.left, fake_cells.recorder.leased) == ([], [])


# the first chunk, and those after it


def streaming(steps: list[Callable[[Any], Any]], *, starts_late: bool = True) -> WSGIApplication:
    """Make an app whose body does one of these with its context for each chunk."""

    def chunks(environ: dict[str, Any], start_response: StartResponse) -> Iterator[bytes]:
        for number, step in enumerate(steps):
            content = str(step(environ["cellmw.context"])).encode()
            if starts_late and number == 0:
                start_response("200 OK", [("Content-Type", "text/plain")])
            yield content

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if not starts_late:
            start_response("200 OK", [("Content-Type", "text/plain")])
        return chunks(environ, start_response)

    return app


def endless(context: Any) -> int:
    """Do what takes too long."""
    return read(context, ENDLESS)


def test_first_chunk(fake_cells: FakeCells) -> None:
    """What a generator does for its first chunk is bounded, and answered with a 503 where it has not begun."""
    cell_filter = fake_cells.filter(streaming([endless]), request_deadline=SOON)
    assert is_try_later(ask(cell_filter, fake_cells.map("cell1")))
    assert fake_cells.recorder.leased == fake_cells.recorder.released == ["cell1"]


def test_first_chunk_after_start_response(fake_cells: FakeCells) -> None:
    """That is so also where it has begun to respond, when the error is the server's to deal with."""
    cell_filter = fake_cells.filter(streaming([endless], starts_late=False), request_deadline=SOON)
    answer = ask(cell_filter, fake_cells.map("cell1"))
    with pytest.raises(DeadlineExceeded):
        answer.body  # noqa: B018 - reads it
    answer.app_iter.close()
    assert fake_cells.recorder.released == ["cell1"]


@pytest.mark.parametrize("starts_late", [True, False])
def test_stream(fake_cells: FakeCells, starts_late: bool) -> None:
    """After its first chunk a stream may last, and read, for as long as it likes."""

    def later(context: Any) -> int:
        threading.Event().wait(SOON)
        return read(context)

    app = streaming([read, later, later, read], starts_late=starts_late)
    answer = ask(fake_cells.filter(app, request_deadline=SOON), fake_cells.map("cell1"))
    assert (answer.status_code, answer.body) == (200, b"1111")


def test_wait_in_a_stream(make_patient: Callable[..., FakeCells]) -> None:
    """Each single wait of a stream is bounded all the same."""
    fake_cells = make_patient(SOON)
    cell_filter = fake_cells.filter(streaming([read, read, endless], starts_late=False), request_deadline=PATIENCE)
    body = ask(cell_filter, fake_cells.map("cell1")).app_iter
    chunks = iter(body)
    assert [next(chunks), next(chunks)] == [b"1", b"1"]
    with pytest.raises(DeadlineExceeded):
        next(chunks)
    body.close()


# outside a request


@pytest.fixture
def make_patient() -> Iterator[Callable[[float], FakeCells]]:
    """Make fake cells whose single waits may take so many seconds."""
    made: list[FakeCells] = []

    def make(seconds: float) -> FakeCells:
        conf = cfg.ConfigOpts()
        conf([], project="cellmw", default_config_files=[], default_config_dirs=[])
        register_opts(conf)
        conf.set_override("request_deadline", seconds, group="cellmw")
        made.append(FakeCells(conf=conf))
        return made[-1]

    yield make
    for fake_cells in made:
        fake_cells.close()


def test_target(fake_cells: FakeCells) -> None:
    """Work outside a request has the deadline that it asks for, for all that it does."""
    context, cell = RequestContext(overwrite=False), fake_cells["cell1"].record
    with fake_cells.cells.target(context, cell, after(SOON)) as targeted:
        assert read(targeted) == 1
        with pytest.raises(DeadlineExceeded):
            read(targeted, ENDLESS)
        with pytest.raises(DeadlineExceeded):
            read(targeted)
    with fake_cells.cells.target(context, cell) as targeted:
        assert read(targeted) == 1


def test_target_without_a_deadline(make_patient: Callable[..., FakeCells]) -> None:
    """Where it asks for none it may go on for ever, and none of its waits does."""
    fake_cells = make_patient(SOON)
    with fake_cells.cells.target(RequestContext(overwrite=False), fake_cells["cell1"].record) as targeted:
        begun = monotonic()
        while monotonic() - begun < 2 * SOON:
            assert read(targeted) == 1
        with pytest.raises(DeadlineExceeded):
            read(targeted, ENDLESS)
        assert read(targeted) == 1


# what it costs


def test_request_that_waits_for_nothing(fake_cells: FakeCells, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that uses neither the database nor the queue begins no wait, no thread and no work for another one."""
    cell_filter = fake_cells.filter(App(lambda context: "nothing"), deadline_header="X-Deadline")
    instance_uuid = fake_cells.map("cell1")
    ask(cell_filter, instance_uuid)

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("nothing was to be waited for")

    monkeypatch.setattr(bounds, "Wait", refuse)
    monkeypatch.setattr(crew, "Job", refuse)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    answer = ask(cell_filter, instance_uuid, **{"X-Deadline": "5"})
    assert (answer.status_code, answer.text) == (200, "nothing")
