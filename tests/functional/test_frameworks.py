# SPDX-License-Identifier: Apache-2.0
"""Applications without Paste: the very lines that the manual has for a bare callable, for Flask and for Falcon."""

from __future__ import annotations

import http.client
import json
import sqlite3
import textwrap
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from wsgiref.validate import validator

import pytest
from falcon.testing import TestClient
from flask import Response, request, send_file

from cellmw import CellFilter
from cellmw.exceptions import DeadlineExceeded
from examples.compute.part import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _typeshed.wsgi import WSGIApplication

    from tests.functional.conftest import Answer, Deployment, Exchange

PAGE = Path(__file__).parents[2] / "doc" / "source" / "pipelines.rst"

PROJECT = "project-1"


def lines_of(name: str) -> str:
    """Return the code block of this name from the manual's page on pipelines."""
    _, _, rest = PAGE.read_text().partition(f".. code-block:: python\n   :name: pipelines-{name}\n\n")
    lines = rest.splitlines(keepends=True)
    end = next((number for number, line in enumerate(lines) if line.strip() and not line.startswith("   ")), len(lines))
    return textwrap.dedent("".join(lines[:end]))


class Example:
    """An application made of lines of the manual. Lives as long as the test.

    :ivar names: what the lines have defined
    """

    def __init__(self, *blocks: str) -> None:
        """Run the lines."""
        self.names: dict[str, Any] = {}
        for block in blocks:
            exec(compile(lines_of(block), f"{PAGE.name}: {block}", "exec"), self.names)

    @property
    def filter(self) -> CellFilter:
        """The filter that they have put around the application."""
        (cell_filter,) = {value for value in self.names.values() if isinstance(value, CellFilter)}
        return cell_filter

    @property
    def application(self) -> WSGIApplication:
        """What a server serves."""
        application: WSGIApplication = self.names.get("application", self.names["app"])
        return application

    @property
    def leases(self) -> int:
        """How many leases are open now."""
        return self.filter.cells.leases


@pytest.fixture
def run(deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Example]]:
    """Run blocks of the manual, where the file that they go by is found, and a row of each instance in its cell."""
    # oslo.config looks here for what is in /etc/compute elsewhere
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "compute.conf").write_text((tmp_path / "cellmw.conf").read_text())
    examples: list[Example] = []

    def run(*blocks: str) -> Example:
        examples.append(Example("read", *blocks))
        return examples[-1]

    yield run
    for example in examples:
        assert example.leases == 0
        example.filter.close()


@pytest.fixture
def new_instance(deployment: Deployment) -> Callable[[str], str]:
    """Map an instance to a cell; each cell has a row for it, with the cell's name."""
    for cell in deployment.cells:
        with closing(sqlite3.connect(deployment.file(cell))) as connection, connection:
            connection.execute("CREATE TABLE instances (uuid VARCHAR(36), name VARCHAR(255))")

    def new(cell: str) -> str:
        instance_uuid = deployment.map(cell)
        for other in deployment.cells:
            with closing(sqlite3.connect(deployment.file(other))) as connection, connection:
                connection.execute("INSERT INTO instances VALUES (?, ?)", (instance_uuid, f"in {other}"))
        return instance_uuid

    return new


@pytest.fixture(params=["bare", "flask", "falcon"])
def example(request: pytest.FixtureRequest, run: Callable[..., Example]) -> Example:
    """Each of the three applications."""
    return run(request.param)


@pytest.fixture
def flask(run: Callable[..., Example]) -> Example:
    """The Flask application, with its stream."""
    return run("flask", "flask-stream")


def name_in(answer: Answer) -> str:
    """Return the name that an application has answered with, in its own way."""
    return str(answer.json["name"]) if answer.content.startswith(b"{") else answer.content.decode()


@pytest.mark.parametrize("name", ["bare", "flask", "falcon"])
def test_about_ten_lines(name: str) -> None:
    """An application takes about ten lines, with the filter in it."""
    code = [line for line in lines_of(name).splitlines() if line and "import" not in line]
    assert 7 <= len(code) <= 12


@pytest.mark.parametrize("cell", ["cell1", "cell2", "cell0"])
def test_show(example: Example, exchange: type[Exchange], new_instance: Callable[[str], str], cell: str) -> None:
    """An instance is read from its own cell, with wsgiref.validate in front of the filter."""
    answer = exchange(f"/servers/{new_instance(cell)}").fetch(validator(example.application))
    assert (answer.code, name_in(answer)) == (200, f"in {cell}")


@pytest.mark.parametrize("path", ["/", "/servers", "/servers/{undashed}", "/servers//{uuid}", "/v2/images/{uuid}"])
def test_not_an_instance(
    example: Example, exchange: type[Exchange], new_instance: Callable[[str], str], path: str
) -> None:
    """Where the filter has found no instance, the application says that there is none, or asks elsewhere."""
    instance_uuid = new_instance("cell1")
    request = exchange(path.format(uuid=instance_uuid, undashed=instance_uuid.replace("-", "")))
    # Flask sends the client from // to /
    assert request.fetch(validator(example.application)).code in (404, 308)


def test_not_found(example: Example, exchange: type[Exchange], deployment: Deployment) -> None:
    """The filter's own answer does not depend on what is behind it."""
    answer = exchange(f"/servers/{deployment.map('cell1', 'project-2')}").fetch(validator(example.application))
    assert (answer.code, set(answer.json)) == (404, {"itemNotFound"})


@pytest.mark.parametrize("name", ["bare", "flask", "falcon"])
def test_error_of_ours(
    run: Callable[..., Example], exchange: type[Exchange], new_instance: Callable[[str], str], name: str
) -> None:
    """An error of ours gets the filter's answer, through the framework's own handling of errors."""
    example = run(name)

    def fail(environ: dict[str, Any]) -> str:
        raise DeadlineExceeded("what never comes")

    example.names["name_of"] = fail
    answer = exchange(f"/servers/{new_instance('cell1')}").fetch(validator(example.application))
    assert (answer.code, answer.headers["Retry-After"]) == (503, "5")
    assert set(answer.json) == {"serviceUnavailable"}


def test_head(example: Example, exchange: type[Exchange], new_instance: Callable[[str], str]) -> None:
    """A HEAD ends its trip like a GET, whether the application has a handler for it or not."""
    request = exchange(f"/servers/{new_instance('cell1')}", method="HEAD").send(example.application)
    b"".join(request.body)
    request.close()
    assert example.leases == 0


def test_over_a_socket(example: Example, new_instance: Callable[[str], str]) -> None:
    """Through a real WSGI server, on one connection, each answer comes out of the instance's own cell."""
    with (
        Server(example.application) as server,
        closing(http.client.HTTPConnection(urlsplit(server.url).netloc)) as client,
    ):
        for cell in ("cell1", "cell2") * 3:
            client.request("GET", f"/servers/{new_instance(cell)}", headers={"X-Project-Id": PROJECT})
            with client.getresponse() as response:
                assert response.status == 200
                assert f"in {cell}".encode() in response.read()


def test_flask_stream(flask: Example, exchange: type[Exchange], new_instance: Callable[[str], str]) -> None:
    """Flask's stream reads from its cell chunk by chunk, and releases its lease when it is closed."""
    request = exchange(f"/servers/{new_instance('cell2')}/console").send(flask.application)
    assert flask.leases == 1
    assert list(request.body) == [b"in cell2\n"] * 3
    assert flask.leases == 1
    request.close()
    assert flask.leases == 0


def test_flask_stream_and_gone(flask: Example, exchange: type[Exchange], new_instance: Callable[[str], str]) -> None:
    """When the client is gone half-way, werkzeug closes its generator first, and the lease is released then."""
    seen: list[int] = []

    @flask.names["app"].get("/servers/<instance_uuid>/endless")
    def endless(instance_uuid: str) -> Response:
        environ = request.environ

        def chunks() -> Iterator[bytes]:
            try:
                while True:
                    yield flask.names["name_of"](environ).encode()
            finally:
                seen.append(flask.leases)

        return Response(chunks())

    sent = exchange(f"/servers/{new_instance('cell2')}/endless").send(flask.application)
    assert next(iter(sent.body)) == b"in cell2"
    sent.close()
    sent.close()
    assert (seen, flask.leases) == ([1], 0)


def test_flask_call_on_close(flask: Example, exchange: type[Exchange], new_instance: Callable[[str], str]) -> None:
    """What Flask does when a response is closed still has its cell, and happens once."""
    names: list[str] = []

    @flask.names["app"].get("/servers/<instance_uuid>/late")
    def late(instance_uuid: str) -> Response:
        environ = request.environ
        response = Response("late")
        response.call_on_close(lambda: names.append(flask.names["name_of"](environ)))
        return response

    answer = exchange(f"/servers/{new_instance('cell2')}/late").fetch(validator(flask.application))
    assert (answer.content, names) == (b"late", ["in cell2"])


def test_flask_head_of_a_stream(flask: Example, exchange: type[Exchange], new_instance: Callable[[str], str]) -> None:
    """For HEAD werkzeug answers without the generator, and closes it all the same."""
    path = f"/servers/{new_instance('cell2')}/console"
    assert exchange(path, method="HEAD").fetch(validator(flask.application)).content == b""


def test_flask_file(flask: Example, new_instance: Callable[[str], str], tmp_path: Path) -> None:
    """A file that Flask hands to the server's file_wrapper arrives whole, and the lease is back."""
    content = bytes(range(256)) * 1000
    (tmp_path / "file").write_bytes(content)

    @flask.names["app"].get("/servers/<instance_uuid>/file")
    def file(instance_uuid: str) -> Response:
        return send_file(tmp_path / "file", mimetype="application/octet-stream")

    with (
        Server(flask.application) as server,
        closing(http.client.HTTPConnection(urlsplit(server.url).netloc)) as client,
    ):
        client.request("GET", f"/servers/{new_instance('cell1')}/file", headers={"X-Project-Id": PROJECT})
        with client.getresponse() as response:
            assert response.headers["Content-Length"] == str(len(content))
            assert response.read() == content


def test_flask_client(flask: Example, new_instance: Callable[[str], str]) -> None:
    """Flask's own test client gives the lease back when its response is closed."""
    path = f"/servers/{new_instance('cell1')}/console"
    with flask.names["app"].test_client().get(path, headers={"X-Project-Id": PROJECT}) as response:
        assert flask.leases == 1
        assert response.text == "in cell1\n" * 3
    assert flask.leases == 0


def test_falcon_stream(
    run: Callable[..., Example], exchange: type[Exchange], new_instance: Callable[[str], str]
) -> None:
    """Falcon hands a generator to the server as it is, which reads it in its cell and closes it."""
    falcon = run("falcon")

    class Console:
        def on_get(self, request: Any, response: Any, instance_uuid: str) -> None:
            response.stream = (falcon.names["name_of"](request.env).encode() for _ in range(3))

    falcon.names["app"].add_route("/servers/{instance_uuid}/console", Console())
    sent = exchange(f"/servers/{new_instance('cell2')}/console").send(falcon.application)
    assert next(iter(sent.body)) == b"in cell2"
    assert falcon.leases == 1
    sent.close()
    assert falcon.leases == 0


def test_falcon_media_is_complete(
    run: Callable[..., Example], exchange: type[Exchange], new_instance: Callable[[str], str]
) -> None:
    """What Falcon has rendered is a list, and its cell is given back before the server sends it."""
    falcon = run("falcon")
    sent = exchange(f"/servers/{new_instance('cell2')}").send(falcon.application)
    assert (type(sent.body), falcon.leases) == (list, 0)
    assert json.loads(sent.finish()) == {"name": "in cell2"}


def test_falcon_takes_more_for_a_uuid(run: Callable[..., Example], new_instance: Callable[[str], str]) -> None:
    """What Falcon's converter takes for a uuid, and the filter does not, reaches the handler without a target."""
    falcon = run("falcon")
    falcon.names["app"].add_route("/v2/servers/{instance_uuid:uuid}", falcon.names["Server"]())
    instance_uuid = new_instance("cell1")
    client = TestClient(falcon.application, headers={"X-Project-Id": PROJECT})
    spellings = (instance_uuid, instance_uuid.upper(), instance_uuid.replace("-", ""), f"{{{instance_uuid}}}")
    answers = [client.simulate_get(f"/v2/servers/{spelling}").status_code for spelling in spellings]
    assert answers == [200, 200, 404, 404]
