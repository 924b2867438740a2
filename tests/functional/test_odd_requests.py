# SPDX-License-Identifier: Apache-2.0
"""Requests that are rare, broken or meant badly, in this process and through a real WSGI server."""

from __future__ import annotations

import http.client
import io
import socket
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest

from cellmw.trip import TARGET_KEY
from examples.compute.part import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from _typeshed.wsgi import StartResponse, WSGIApplication

    from cellmw import CellFilter
    from tests.functional.conftest import Api, Deployment, Exchange, Show

PROJECT = "project-1"

UNKNOWN = "ffffffff-ffff-4fff-bfff-ffffffffffff"

PATIENCE = 20
"""Seconds after which a test gives up on what has to come; a test that passes never waits for them."""

TEXT = [("Content-Type", "text/plain")]


class Seen(NamedTuple):
    """What an app found in its environ and its input."""

    method: str
    cell: str
    content: bytes
    length: str | None


class Reader:
    """An app that reads its input to the end, and answers with the name of its cell. Lives as long as the test."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.seen: list[Seen] = []

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        cell = self._api.database(environ["cellmw.context"]) if TARGET_KEY in environ else "none"
        # a server that ends the input by itself says so; without that an app may not read what has no length
        limit = -1 if environ.get("wsgi.input_terminated") else int(environ.get("CONTENT_LENGTH") or 0)
        content = environ["wsgi.input"].read(limit)
        self.seen.append(Seen(environ["REQUEST_METHOD"], cell, content, environ.get("CONTENT_LENGTH")))
        start_response("200 OK", TEXT)
        return (chunk for chunk in (cell.encode(),))


@pytest.fixture
def reader(api: Api) -> Reader:
    """An app that reads its input."""
    return Reader(api)


@pytest.fixture
def serve(make_filter: Callable[..., CellFilter]) -> Iterator[Callable[[WSGIApplication], str]]:
    """Serve an app behind a filter by a real server; return its address, and find no lease open in the end."""
    servers: list[Server] = []

    def serve(app: WSGIApplication, **options: str) -> str:
        servers.append(Server(make_filter(app, **options)))
        servers[-1].__enter__()
        return urlsplit(servers[-1].url).netloc

    yield serve
    for server in servers:
        server.close()


@pytest.fixture
def connect(
    serve: Callable[[WSGIApplication], str],
) -> Iterator[Callable[[WSGIApplication], http.client.HTTPConnection]]:
    """Serve an app behind a filter, and connect to it."""
    clients: list[http.client.HTTPConnection] = []

    def connect(app: WSGIApplication, **options: str) -> http.client.HTTPConnection:
        clients.append(http.client.HTTPConnection(serve(app, **options), timeout=PATIENCE))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def talk(client: http.client.HTTPConnection, method: str, path: str, **request: Any) -> tuple[int, bytes]:
    """Send a request of the client's project, and return the status and the whole body."""
    headers = {"X-Project-Id": PROJECT} | request.pop("headers", {})
    client.request(method, path, headers=headers, **request)
    with client.getresponse() as response:
        return response.status, response.read()


@pytest.mark.parametrize("method", ["OPTIONS", "HEAD", "PATCH", "TRACE", "PROPFIND", "get", "", "G\0T"])
def test_any_method(
    deployment: Deployment, make_filter: Callable[..., CellFilter], exchange: type[Exchange], show: Show, method: str
) -> None:
    """The method does not matter: a request for an instance is taken to its cell."""
    answer = exchange(f"/servers/{deployment.map('cell2')}", method=method).fetch(make_filter(show))
    assert answer.content == b"cell2"


def test_no_method(
    deployment: Deployment, make_filter: Callable[..., CellFilter], exchange: type[Exchange], show: Show
) -> None:
    """Where a server does not even say which method it is, that is for the app to find out."""
    request = exchange(f"/servers/{deployment.map('cell2')}")
    del request.environ["REQUEST_METHOD"]
    assert request.fetch(make_filter(show)).content == b"cell2"


def test_fault_without_a_method(
    deployment: Deployment, make_filter: Callable[..., CellFilter], exchange: type[Exchange], show: Show
) -> None:
    """The filter's own answer does not need to know the method either."""
    request = exchange(f"/servers/{UNKNOWN}")
    del request.environ["REQUEST_METHOD"]
    assert request.fetch(make_filter(show)).code == 404


@pytest.mark.parametrize("project_id", [None, "project-2"], ids=["unknown", "of another project"])
@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_refused_as_for_get(
    deployment: Deployment,
    make_filter: Callable[..., CellFilter],
    exchange: type[Exchange],
    show: Show,
    project_id: str | None,
    method: str,
) -> None:
    """HEAD and OPTIONS tell a stranger no more than GET does; a HEAD has the headers of the GET, and no body."""
    app = validator(make_filter(show))
    path = f"/servers/{deployment.map('cell1', project_id) if project_id else UNKNOWN}"
    got = exchange(path).fetch(app)
    asked = exchange(path, method=method).fetch(app)
    assert (asked.status, asked.headers) == (got.status, got.headers)
    assert asked.content == (b"" if method == "HEAD" else got.content)
    assert got.headers["Content-Length"] == str(len(got.content))
    assert show.calls == 0


def test_head_of_a_stream(
    deployment: Deployment, make_filter: Callable[..., CellFilter], exchange: type[Exchange], api: Api
) -> None:
    """The body that a server does not read for a HEAD is closed, the length that the app gave for it stays."""
    closed: list[str] = []

    class Rows:
        def __iter__(self) -> Iterator[bytes]:
            raise AssertionError("a HEAD has no body to read")

        def close(self) -> None:
            closed.append(api.database(context))

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        nonlocal context
        context = environ["cellmw.context"]
        start_response("200 OK", [*TEXT, ("Content-Length", "1000000")])
        return Rows()

    context = None
    cell_filter = make_filter(app)
    request = exchange(f"/servers/{deployment.map('cell2')}", method="HEAD").send(cell_filter)
    assert cell_filter.cells.leases == 1
    request.close()
    assert (closed, cell_filter.cells.leases) == (["cell2"], 0)
    assert request.headers["Content-Length"] == "1000000"


def test_head_over_a_socket(
    deployment: Deployment, connect: Callable[..., http.client.HTTPConnection], api: Api
) -> None:
    """After a HEAD the connection is good for the next request, the filter's own answer to a HEAD included."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        name = api.database(environ["cellmw.context"]).encode()
        start_response("200 OK", [*TEXT, ("Content-Length", str(len(name)))])
        return iter([] if environ["REQUEST_METHOD"] == "HEAD" else [name])

    client = connect(app)
    path = f"/servers/{deployment.map('cell1')}"
    assert talk(client, "HEAD", path) == (200, b"")
    assert talk(client, "HEAD", f"/servers/{UNKNOWN}") == (404, b"")
    assert talk(client, "GET", path) == (200, b"cell1")


@pytest.mark.parametrize("mapped", [True, False], ids=["in a cell", "no instance"])
def test_chunked_upload(
    deployment: Deployment, connect: Callable[..., http.client.HTTPConnection], reader: Reader, mapped: bool
) -> None:
    """An upload without a length reaches the app whole, whatever the filter makes of its path."""
    path = f"/servers/{deployment.map('cell2')}/file" if mapped else "/images"
    content = [b"a" * 70_000, b"b", b"c" * 3]
    assert talk(connect(reader), "PUT", path, body=iter(content), encode_chunked=True)[0] == 200
    (seen,) = reader.seen
    assert (seen.method, seen.cell, seen.content) == ("PUT", "cell2" if mapped else "none", b"".join(content))


def test_chunked_upload_refused(
    deployment: Deployment, connect: Callable[..., http.client.HTTPConnection], reader: Reader
) -> None:
    """The filter answers without reading an upload, and the connection is good for the next request."""
    client = connect(reader)
    assert talk(client, "PUT", f"/servers/{UNKNOWN}/file", body=iter([b"a" * 70_000]), encode_chunked=True)[0] == 404
    assert reader.seen == []
    assert talk(client, "GET", f"/servers/{deployment.map('cell1')}") == (200, b"cell1")


def test_input_is_not_touched(
    deployment: Deployment, make_filter: Callable[..., CellFilter], exchange: type[Exchange], show: Show
) -> None:
    """The filter reads nothing of the input, which may be good for one reading only, or for none."""
    request = exchange(f"/servers/{deployment.map('cell1')}", method="POST", content=b"content")
    given = request.environ["wsgi.input"] = io.BufferedReader(io.BytesIO(b"content"))
    request.fetch(make_filter(show))
    assert request.environ["wsgi.input"] is given
    assert given.tell() == 0


@pytest.mark.parametrize("mapped", [True, False], ids=["in a cell", "refused"])
def test_expect_100_continue(
    deployment: Deployment, serve: Callable[[WSGIApplication], str], reader: Reader, mapped: bool
) -> None:
    """The server tells a client that asks to go on, and the app reads what comes then; a refusal comes after it."""
    path = f"/servers/{deployment.map('cell2') if mapped else UNKNOWN}/file"
    host, port = serve(reader).split(":")
    with socket.create_connection((host, int(port)), PATIENCE) as client, client.makefile("rb") as answers:
        head = f"PUT {path} HTTP/1.1\r\nHost: {host}\r\nX-Project-Id: {PROJECT}\r\nContent-Length: 7\r\n"
        client.sendall(f"{head}Expect: 100-continue\r\nConnection: close\r\n\r\n".encode())
        assert answers.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert answers.readline() == b"\r\n"
        client.sendall(b"content")
        assert answers.readline() == (b"HTTP/1.1 200 OK\r\n" if mapped else b"HTTP/1.1 404 Not Found\r\n")
        answers.read()
    assert [seen.content for seen in reader.seen] == ([b"content"] if mapped else [])


def test_websocket_refused(
    deployment: Deployment, connect: Callable[..., http.client.HTTPConnection], api: Api
) -> None:
    """A request to upgrade is a GET like any other: the app refuses it, and the connection goes on without it."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        name = api.database(environ["cellmw.context"]).encode()
        if environ.get("HTTP_UPGRADE") == "websocket":
            # which protocol it would have to be is hop-by-hop, and so the server's to say
            start_response("426 Upgrade Required", [*TEXT, ("Content-Length", "0")])
            return iter([])
        start_response("200 OK", [*TEXT, ("Content-Length", str(len(name)))])
        return iter([name])

    client = connect(app)
    path = f"/servers/{deployment.map('cell2')}/console"
    headers = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    assert talk(client, "GET", path, headers=headers) == (426, b"")
    assert talk(client, "GET", path) == (200, b"cell2")


class Files:
    """An app that answers with a file, by the server's file_wrapper. Lives as long as the test.

    :ivar closed: set when the server has closed the file
    """

    def __init__(self, file: Path, *, detach: bool = False) -> None:
        self._file = file
        self._detach = detach
        self.bodies: list[Any] = []
        self.closed = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Any:
        start_response("200 OK", [*TEXT, ("Content-Length", str(self._file.stat().st_size))])
        if self._detach:
            environ[TARGET_KEY].detach()
        self.bodies.append(environ["wsgi.file_wrapper"](self._open()))
        return self.bodies[-1]

    def _open(self) -> Any:
        closed = self.closed

        class Watched(io.FileIO):
            def close(self) -> None:
                super().close()
                closed.set()

        return Watched(self._file)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of a megabyte."""
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 4096)
    return file


@pytest.mark.parametrize("path", ["/servers/{uuid}/file", "/files"], ids=["in a cell", "no instance"])
def test_file_over_a_socket(
    deployment: Deployment, connect: Callable[..., http.client.HTTPConnection], file: Path, path: str
) -> None:
    """A file arrives whole, by the server's own path where no instance is named, chunk by chunk where one is."""
    app = Files(file)
    assert talk(connect(app), "GET", path.format(uuid=deployment.map("cell1"))) == (200, file.read_bytes())
    assert app.closed.wait(PATIENCE)


def test_file_of_no_instance_is_not_wrapped(
    make_filter: Callable[..., CellFilter], exchange: type[Exchange], file: Path
) -> None:
    """Where no instance is named the server gets its own file_wrapper back, which it may send as it likes."""
    app = Files(file)
    request = exchange("/files", headers={"wsgi.file_wrapper": FileWrapper}).send(make_filter(app))
    assert request.body is app.bodies[0]
    request.close()


def test_file_keeps_its_lease_until_closed(
    deployment: Deployment, make_filter: Callable[..., CellFilter], exchange: type[Exchange], file: Path
) -> None:
    """A file of an instance has its cell until the server closes it, since what it reads might come from there."""
    app = Files(file)
    cell_filter = make_filter(app)
    request = exchange(f"/servers/{deployment.map('cell1')}", headers={"wsgi.file_wrapper": FileWrapper})
    assert next(iter(request.send(cell_filter).body)) == file.read_bytes()[:8192]
    assert cell_filter.cells.leases == 1
    request.close()
    assert app.closed.is_set()
    assert cell_filter.cells.leases == 0


def test_file_after_detach(
    deployment: Deployment, make_filter: Callable[..., CellFilter], exchange: type[Exchange], file: Path
) -> None:
    """A handler that is done with its cell gives the lease back, and the server gets its own file_wrapper to send."""
    app = Files(file, detach=True)
    cell_filter = make_filter(app)
    request = exchange(f"/servers/{deployment.map('cell1')}", headers={"wsgi.file_wrapper": FileWrapper})
    request.send(cell_filter)
    assert cell_filter.cells.leases == 0
    assert request.body is app.bodies[0]
    assert request.finish() == file.read_bytes()


UUID = "{uuid}"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "//",
        "/" * 100_000,
        "/servers/",
        f"//servers/{UUID}",
        f"/servers//{UUID}",
        f"/servers/{UUID}\0",
        f"/servers/{UUID}\0/action",
        f"/servers/{UUID}\n",
        f"/servers/{UUID}\r\n",
        f"/servers/{UUID}\x85",
        f"/servers/{UUID}%00",
        f"/servers/ {UUID}",
        f"/servers/\ufeff{UUID}",
        f"/servers/{UUID}/\u20ac",
        f"/servers/{UUID}/\ud800",
        f"/servers/{UUID}/\xff",
        f"/{'x' * 1_000_000}/{UUID}",
        f"/servers/{'0' * 1_000_000}{UUID}",
        "/x" * 500_000 + f"/servers/{UUID}",
    ],
    ids=lambda path: repr(path[:32]),
)
def test_path_without_a_target(
    deployment: Deployment, make_filter: Callable[..., CellFilter], exchange: type[Exchange], show: Show, path: str
) -> None:
    """A path that names no instance reaches the app as it is, once and untargeted, whatever it is."""
    request = exchange(path.replace(UUID, deployment.map("cell1")))
    given = request.environ["PATH_INFO"]
    assert request.fetch(make_filter(show)).content == b""
    assert (show.calls, show.trip, request.environ["PATH_INFO"]) == (1, None, given)


@pytest.mark.parametrize(
    "path",
    [
        f"/servers/{UUID}/",
        f"/servers/{UUID}" + "/" * 100_000,
        f"/servers/{UUID}/\0",
        f"/servers/{UUID}/" + "x" * 1_000_000,
        f"/servers/{UUID}" + "/x" * 500_000,
        f"/{'x' * 1_000_000}/servers/{UUID}",
        f"/\0/servers/{UUID}",
    ],
    ids=lambda path: repr(path[:56]),
)
def test_path_with_a_target(
    deployment: Deployment, make_filter: Callable[..., CellFilter], exchange: type[Exchange], show: Show, path: str
) -> None:
    """What follows the uuid, and what the project is, may be of any kind and length."""
    request = exchange(path.replace(UUID, deployment.map("cell2")))
    assert request.fetch(make_filter(show)).content == b"cell2"


def test_no_path_at_all(make_filter: Callable[..., CellFilter], exchange: type[Exchange], show: Show) -> None:
    """PATH_INFO may be left out where it is empty."""
    request = exchange("")
    del request.environ["PATH_INFO"]
    assert request.fetch(make_filter(show)).content == b""
    assert (show.calls, show.trip) == (1, None)


@pytest.mark.parametrize(
    ("written", "cell"),
    [
        ("/servers%2F{uuid}", "cell2"),
        ("/servers/{uuid}%2Faction", "cell2"),
        ("///servers/{uuid}", "cell2"),
        ("/servers/{uuid}?a=/servers/x", "cell2"),
        ("/servers/{uuid}%3Fa=b", "none"),
        ("/servers/{uuid}%00", "none"),
        ("/servers/{uuid}%0A", "none"),
        ("/servers/{uuid}/%FF", "none"),
        ("/servers//{uuid}", "none"),
        ("/images?/servers/{uuid}", "none"),
    ],
)
def test_path_over_a_socket(
    deployment: Deployment,
    connect: Callable[..., http.client.HTTPConnection],
    reader: Reader,
    written: str,
    cell: str,
) -> None:
    """What counts is the path that the server has decoded, as for the app."""
    path = written.format(uuid=deployment.map("cell2"))
    assert talk(connect(reader), "GET", path) == (200, cell.encode())


def test_client_that_hangs_up(deployment: Deployment, serve: Callable[[WSGIApplication], str], api: Api) -> None:
    """A client that leaves in the middle of an endless answer gives its lease back, at a real server too."""
    ended = threading.Event()

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterator[bytes]:
        context = environ["cellmw.context"]
        start_response("200 OK", TEXT)
        try:
            while True:
                yield api.database(context).encode() * 1000
        finally:
            ended.set()

    with closing(http.client.HTTPConnection(serve(app), timeout=PATIENCE)) as client:
        client.request("GET", f"/servers/{deployment.map('cell2')}/log", headers={"X-Project-Id": PROJECT})
        with client.getresponse() as response:
            assert response.read(5) == b"cell2"
    assert ended.wait(PATIENCE)
