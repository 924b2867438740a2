# SPDX-License-Identifier: Apache-2.0
"""A cell-level service: every request is aimed at the service's own cell, and nothing is asked of the API level."""

from __future__ import annotations

import hmac
import logging
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import oslo_messaging
import pytest
from oslo_config import cfg
from sqlalchemy import Pool, event

from cellmw import CellFilter, deploy, rpc
from cellmw.cell import Cell
from cellmw.context import RequestContext
from cellmw.exceptions import ConfigError, UpcallForbidden
from cellmw.filter import CELLS_KEY
from cellmw.trip import TARGET_KEY
from tests.functional.conftest import PATIENCE, Api, Exchange, Show, close_filter, streaming

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _typeshed.wsgi import StartResponse, WSGIApplication

    from tests.functional.conftest import Deployment

CELL_UUID = "11111111-2222-4333-8444-555555555555"

INSTANCE = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9"

SECRET = "the proxy's"

HEADER = {"instance_header": "X-Instance-ID", "instance_header_secret": SECRET}

NOBODY = "postgresql+psycopg://user:hunter2@127.0.0.1:1/cell1"
"""Where nothing listens."""


@pytest.fixture
def connected() -> Iterator[set[str]]:
    """The SQLite files that were connected to."""
    files: set[str] = set()

    def note(connection: Any, _: object) -> None:
        files.update(row[2] for row in connection.execute("PRAGMA database_list"))

    event.listen(Pool, "connect", note)
    yield files
    event.remove(Pool, "connect", note)


class Service:
    """A service that is run in cell1. Lives as long as the fixture.

    Its configuration knows of no API database.
    """

    def __init__(self, deployment: Deployment, ends: ExitStack) -> None:
        self._deployment = deployment
        self._ends = ends
        self._file = deployment.file("service").with_suffix(".conf")
        self.global_conf = {"oslo_config_project": "service", "oslo_config_file": str(self._file)}
        self.configure()

    def configure(self, queue: str = "memory://cell1/", database: str | None = None, more: str = "") -> None:
        """Write the configuration file."""
        database = self._deployment.database_url("cell1") if database is None else database
        self._file.write_text(
            f"[DEFAULT]\ntransport_url = {queue}\n[database]\nconnection = {database}\n"
            f"[cellmw]\nrole = cell\nlocal_cell_name = cell1\nlocal_cell_uuid = {CELL_UUID}\n{more}"
        )

    @property
    def conf(self) -> cfg.ConfigOpts:
        """The configuration, read."""
        conf = cfg.ConfigOpts()
        conf([], project="service", default_config_files=[str(self._file)], default_config_dirs=[])
        return conf

    def filter(self, app: WSGIApplication, **options: str) -> CellFilter:
        """Put a filter in front of an app."""
        cell_filter = CellFilter.factory(self.global_conf, **options)(app)
        self._ends.callback(close_filter, cell_filter)
        return cell_filter


@pytest.fixture
def service(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service in cell1. That it makes a store is a failure, and that a lease is left."""
    monkeypatch.setattr(deploy, "Store", None)
    with ExitStack() as ends:
        yield Service(deployment, ends)


class Worker:
    """What a worker of cell1 does. Lives as long as the test."""

    def which(self, context: RequestContext) -> str:
        """Answer which cell this is."""
        return "cell1"


@pytest.fixture
def worker(service: Service, stopped: list[Any]) -> Iterator[None]:
    """A worker of cell1, with the configuration that its API has."""
    transport = rpc.get_transport(service.conf)
    server = rpc.get_server(transport, oslo_messaging.Target(topic="compute", server="host"), [Worker()])
    server.start()
    stopped.append(server)
    yield
    server.stop()
    transport.cleanup()


@pytest.mark.parametrize("path", ["/", f"/servers/{INSTANCE}", "/latest/meta-data"])
def test_every_request(service: Service, deployment: Deployment, show: Show, connected: set[str], path: str) -> None:
    """Whatever its path, a request is aimed at the service's own cell; its own database is all that is connected to."""
    connected.clear()
    assert Exchange(path).fetch(service.filter(show)).content == b"cell1"
    assert connected == {str(deployment.file("cell1"))}
    assert show.trip is not None
    assert show.trip.instance_uuid == (INSTANCE if INSTANCE in path else "")
    assert not show.trip.queued_for_delete


class Inspect:
    """An app that notes what it is told. Lives as long as the test."""

    def __init__(self, then: Callable[[dict[str, Any]], Any] = lambda environ: None) -> None:
        self.told: list[tuple[str, str, str, str]] = []
        self._then = then

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Note it, do what is to be done, and answer."""
        trip = environ[TARGET_KEY]
        self.told.append((trip.state, str(trip.cell), trip.cell.uuid, environ["cellmw.context"].cell_uuid))
        self._then(environ)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]


def test_target(service: Service) -> None:
    """The target says that the cell is the local one, and is called as the options say."""
    app = Inspect()
    assert Exchange("/").fetch(service.filter(app)).code == 200
    assert app.told == [("local", "cell1", CELL_UUID, CELL_UUID)]


def test_queue(service: Service, worker: None, api: Api) -> None:
    """What a request sends goes to the service's own queue, and the reply comes back."""
    seen: list[str] = []
    app = Inspect(lambda environ: seen.append(api.queue(environ["cellmw.context"])))
    assert Exchange("/").fetch(service.filter(app)).code == 200
    assert seen == ["cell1"]


def test_role_in_the_section_of_the_filter(service: Service, deployment: Deployment, show: Show) -> None:
    """The role can be set for one pipeline alone."""
    service.configure(more="role = api\n")
    options = {"role": "cell", "local_cell_name": "here"}
    assert Exchange("/").fetch(service.filter(show, **options)).content == b"cell1"
    assert show.trip is not None
    assert str(show.trip.cell) == "here"


def test_other_projects(service: Service, show: Show) -> None:
    """Whose an instance is nobody knows here, and so nobody is refused for it: the service has to look."""
    answer = Exchange(f"/servers/{INSTANCE}", headers={"HTTP_X_PROJECT_ID": "other"}).fetch(service.filter(show))
    assert answer.content == b"cell1"


@pytest.mark.parametrize(
    ("instance", "signature", "code"),
    [
        (INSTANCE, hmac.new(SECRET.encode(), INSTANCE.encode(), "sha256").hexdigest(), 200),
        (INSTANCE, "0" * 64, 403),
        (INSTANCE, None, 403),
        ("no uuid", None, 400),
        (None, None, 200),
    ],
)
def test_signed_header(service: Service, show: Show, instance: str | None, signature: str | None, code: int) -> None:
    """A header that names the instance has to be signed here, too; without one the request is served all the same."""
    sent = {"HTTP_X_INSTANCE_ID": instance, "HTTP_X_INSTANCE_ID_SIGNATURE": signature}
    headers = {name: value for name, value in sent.items() if value is not None}
    answer = Exchange("/latest", headers=headers).fetch(service.filter(show, **HEADER))
    assert answer.code == code
    if code == 200:
        assert answer.content == b"cell1"
        assert show.trip is not None
        assert show.trip.instance_uuid == (instance or "")
        assert show.context.project_id is None, "the headers come from inside the instance"


def test_filter_twice(service: Service, show: Show) -> None:
    """A second filter in the pipeline finds that the first has done the work."""
    inner = service.filter(show)
    outer = service.filter(inner)
    for path in ("/", f"/servers/{INSTANCE}"):
        exchange = Exchange(path).send(outer)
        assert (outer.cells.leases, inner.cells.leases) == (0, 0), "the body is a list"
        assert exchange.finish() == b"cell1"


def test_filter_twice_while_it_lasts(service: Service, api: Api) -> None:
    """While a request lasts there is one lease, of the outer filter's."""
    inner = service.filter(streaming(api.database))
    outer = service.filter(inner)
    exchange = Exchange("/").send(outer)
    assert (outer.cells.leases, inner.cells.leases) == (1, 0)
    assert exchange.finish() == b"cell1 cell1 cell1 "


UPCALLS: dict[str, Callable[[Any], Any]] = {
    "get": lambda cells: cells.get("cell2"),
    "target": lambda cells: cells.target(None, Cell(2, "uuid-2", "cell2", False, None, None)).__enter__(),
    "locate": lambda cells: cells.locate(INSTANCE),
    "create": lambda cells: cells.mappings.create(INSTANCE, project_id="project"),
}


@pytest.mark.parametrize("upcall", UPCALLS)
def test_up_call(service: Service, caplog: pytest.LogCaptureFixture, upcall: str) -> None:
    """An app that wants more than its cell is refused, and the log says once what to configure."""

    def call(environ: dict[str, Any]) -> None:
        with pytest.raises(UpcallForbidden, match="out of reach of a cell-level service"):
            UPCALLS[upcall](environ[CELLS_KEY])

    cell_filter = service.filter(Inspect(call))
    for _ in range(2):
        assert Exchange("/").fetch(cell_filter).code == 200
    (message,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "set role = api in [cellmw], and [api_database] connection" in message


def test_up_call_that_escapes(service: Service) -> None:
    """One that the app does not catch is the app's error, and ends its lease."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        environ[CELLS_KEY].get("cell2")
        return []

    cell_filter = service.filter(app)
    with pytest.raises(UpcallForbidden):
        Exchange("/").fetch(cell_filter)
    assert cell_filter.cells.leases == 0


def test_api_database(service: Service) -> None:
    """An app that opens the API database is refused that, too; all cells that there are for it is its own."""

    def look(environ: dict[str, Any]) -> None:
        assert [cell.name for cell in environ[CELLS_KEY].all()] == ["cell1"]
        with pytest.raises(UpcallForbidden, match="the API database"):
            deploy.store(service.conf)

    assert Exchange("/").fetch(service.filter(Inspect(look))).code == 200


def _fail(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    raise ArithmeticError


def _fail_half_way(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    yield b"half"
    raise ArithmeticError


def _in_a_list(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"all"]


def _streamed(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    start_response("404 Not Found", [])
    yield b"one"
    yield b"two"


def _detached(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    environ[TARGET_KEY].detach()
    start_response("200 OK", [])
    return iter([b"all"])


@pytest.mark.parametrize("app", [_fail, _fail_half_way, _in_a_list, _streamed, _detached])
@pytest.mark.parametrize("client", ["reads", "leaves"])
def test_endings(service: Service, app: WSGIApplication, client: str) -> None:
    """However a response ends, the lease is given back, and the environ is as it was."""
    cell_filter = service.filter(app)
    exchange = Exchange("/")
    before = set(exchange.environ)
    try:
        exchange.send(cell_filter)
        if client == "reads":
            exchange.finish()
        else:
            next(iter(exchange.body), None)
    except ArithmeticError:
        assert app in (_fail, _fail_half_way)
    finally:
        exchange.close()
    assert cell_filter.cells.leases == 0
    assert set(exchange.environ) - before == {CELLS_KEY}


def test_two_threads(service: Service, api: Api) -> None:
    """The requests of a worker with two threads each have a lease of their own, on the same handles."""
    barrier = threading.Barrier(2)
    handles: list[Any] = []

    def meet(environ: dict[str, Any]) -> None:
        handles.append(environ[TARGET_KEY].lease.handles)
        barrier.wait(PATIENCE)
        assert environ[CELLS_KEY].leases == 2
        assert api.database(environ["cellmw.context"]) == "cell1"
        barrier.wait(PATIENCE)

    cell_filter = service.filter(Inspect(meet))
    with ThreadPoolExecutor(2) as threads:
        codes = list(threads.map(lambda _: Exchange("/").fetch(cell_filter).code, range(2)))
    assert codes == [200, 200]
    assert handles[0] is handles[1]


@pytest.mark.parametrize("down_cell", ["503", "degrade"])
def test_database_that_is_down(service: Service, api: Api, down_cell: str) -> None:
    """A request is answered 503 when its cell's database is down, or, if that is wanted, let through and told so."""
    told: list[tuple[str, tuple[str, ...]]] = []

    def read(environ: dict[str, Any]) -> None:
        told.append((environ[TARGET_KEY].state, environ[TARGET_KEY].down))
        api.database(environ["cellmw.context"])

    service.configure(database=NOBODY, more=f"down_cell = {down_cell}\n")
    cell_filter = service.filter(Inspect(read))
    for _ in range(2):
        answer = Exchange("/").fetch(cell_filter)
        assert answer.code == 503
        assert b"hunter2" not in answer.content
    assert told == [("local", ())] + ([("down", ("database",))] if down_cell == "degrade" else [])


def test_deadline(service: Service, api: Api) -> None:
    """A request that waits for a reply which never comes is answered 503 by its deadline."""
    service.configure(more="request_deadline = 0.2\n")
    cell_filter = service.filter(Inspect(lambda environ: api.queue(environ["cellmw.context"])))
    assert Exchange("/").fetch(cell_filter).code == 503


@pytest.mark.parametrize(
    ("queue", "database", "option"),
    [("", None, "[DEFAULT] transport_url"), ("memory://cell1/", "", "[database] connection")],
)
def test_not_configured(service: Service, queue: str, database: str | None, option: str) -> None:
    """A pipeline whose service does not say where it lives does not load, and says what is missing."""
    service.configure(queue, database)
    with pytest.raises(ConfigError) as raised:
        service.filter(Inspect())
    assert str(raised.value).startswith(f"{option} is not set")


def test_url_that_cannot_be_used(service: Service) -> None:
    """A URL of the service's own that can't be used is answered with a 500 that does not show it."""
    service.configure(queue="nosuch://user:hunter2@host/")
    answer = Exchange("/").fetch(service.filter(Inspect()))
    assert answer.code == 500
    assert b"hunter2" not in answer.content


def test_no_app(service: Service, worker: None, api: Api) -> None:
    """What is no WSGI app, as a console proxy, is in its cell by cells.local()."""
    with closing(deploy.cells(service.conf)) as cells:
        with cells.target(RequestContext(overwrite=False), cells.local()) as targeted:
            assert (api.database(targeted), api.queue(targeted)) == ("cell1", "cell1")
        assert cells.leases == 0


def test_api_level(deployment: Deployment, make_filter: Callable[..., CellFilter]) -> None:
    """A service of the API level has no cell of its own, and passes what names no instance."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        assert TARGET_KEY not in environ
        with pytest.raises(ConfigError, match="role = cell"):
            environ[CELLS_KEY].local()
        start_response("200 OK", [])
        return []

    assert Exchange("/").fetch(make_filter(app)).code == 200


def test_instances_that_nobody_has_mapped(service: Service, show: Show) -> None:
    """An instance is served whether the API database knows it or not: nobody asks."""
    for _ in range(2):
        assert Exchange(f"/servers/{uuid.uuid4()}").fetch(service.filter(show)).content == b"cell1"


def test_remote_errors(service: Service, worker: None) -> None:
    """Which errors come back as what they were can be said in the filter's own section."""
    client_target = oslo_messaging.Target(topic="compute", version="1.0")
    raised: list[str] = []

    def call(environ: dict[str, Any]) -> None:
        context = environ["cellmw.context"]
        client = oslo_messaging.get_rpc_client(context.mq_connection, client_target)
        try:
            client.call({}, "nosuch")
        except oslo_messaging.MessagingException as error:
            raised.append(type(error).__name__)

    assert Exchange("/").fetch(service.filter(Inspect(call))).code == 200
    options = {"allowed_remote_exmods": "oslo_messaging.rpc.dispatcher"}
    assert Exchange("/").fetch(service.filter(Inspect(call), **options)).code == 200
    assert raised == ["RemoteError", "NoSuchMethod_Remote"]
