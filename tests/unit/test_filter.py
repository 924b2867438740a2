# SPDX-License-Identifier: Apache-2.0
"""The filter: its options, what it does with each request, and how it answers what it can't do."""

from __future__ import annotations

import logging
import sys
import types
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import oslo_context.context
import pytest
import webob
from paste.deploy import loadapp
from sqlalchemy import text

from cellmw.context import RequestContext
from cellmw.exceptions import CellHasNoTransport, ConfigError, DeadlineExceeded
from cellmw.filter import CELLS_KEY, CellFilter
from cellmw.lease import DatabaseView, lease_of
from cellmw.trip import TARGET_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from oslo_config import cfg

    from cellmw.cell import Cell
    from cellmw.store import Store

    App = Callable[[dict[str, Any], Any], Iterable[bytes]]
    MakeFilter = Callable[..., CellFilter]

UUID = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9"
OTHER = "ffffffff-ffff-4fff-bfff-ffffffffffff"
PROJECT = "project"
CONTEXT = "cellmw.context"
NAME = text("SELECT name FROM this_cell")


class RecordingApp:
    """An app that answers with the name of the cell that its context is aimed at. Records what it gets."""

    def __init__(self) -> None:
        self.environs: list[dict[str, Any]] = []
        self.contexts: list[Any] = []
        self.states: list[str | None] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        context = environ.get(CONTEXT)
        self.environs.append(environ)
        self.contexts.append(context)
        self.states.append(environ[TARGET_KEY].state if TARGET_KEY in environ else None)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [name_of(context).encode()]


def name_of(context: Any) -> str:
    """Return the name of the cell that a context is aimed at."""
    if context is None or context.db_connection is None:
        return "nowhere"
    with context.db_connection.reader.using(context) as session:
        return str(session.execute(NAME).scalar_one())


@pytest.fixture
def app() -> RecordingApp:
    """The app behind the filter."""
    return RecordingApp()


@pytest.fixture
def make_filter(conf: cfg.ConfigOpts, store: Store) -> Iterator[MakeFilter]:
    """Put a filter in front of an app; the options are those of the configuration. None may have a lease in the end."""
    with ExitStack() as ends:

        def make(app: App, **options: Any) -> CellFilter:
            for name, value in options.items():
                conf.set_override(name, value, group="cellmw")
            made = CellFilter(app, conf)
            ends.callback(made.close)
            return made

        yield make


@pytest.fixture
def cell_filter(make_filter: MakeFilter, app: RecordingApp) -> CellFilter:
    """A filter in front of the app, with the options as they are by default."""
    return make_filter(app)


@pytest.fixture
def instance(store: Store, cell1: Cell) -> str:
    """An instance in cell1."""
    store.create_instance(UUID, project_id=PROJECT, cell_id=cell1.id)
    return UUID


def get(app: App, path: str = f"/servers/{UUID}", **environ: Any) -> webob.Response:
    """Send a request of a member of the project."""
    headers = {"HTTP_X_PROJECT_ID": PROJECT, "HTTP_X_ROLES": "member"}
    request = webob.Request.blank(path, environ=headers | environ)
    response = request.get_response(app)
    _ = response.body  # reads and closes it, as a server does
    return response


# Loading it


def test_factory(app: RecordingApp, tmp_path: Path) -> None:
    """PasteDeploy's factory reads the configuration file of the pipeline, with the ini section on top."""
    file = tmp_path / "cellmw.conf"
    file.write_text(f"[api_database]\nconnection = sqlite:///{tmp_path}/api.sqlite\n[cellmw]\nunmapped = pass\n")
    global_conf = {"oslo_config_project": "cellmw", "oslo_config_file": str(file), "here": "/", "__file__": "x.ini"}
    cell_filter = CellFilter.factory(global_conf, context_key="nova.context", mapping_ttl="5")(app)
    assert cell_filter.application is app
    assert cell_filter.oslo_conf.cellmw.unmapped == "pass"
    assert (cell_filter._context_key, cell_filter._pass_unmapped) == ("nova.context", True)
    cell_filter.close()


def test_ini(tmp_path: Path) -> None:
    """An ini with the filter by its egg, and options in its section, is loaded by PasteDeploy."""
    (tmp_path / "cellmw.conf").write_text(f"[api_database]\nconnection = sqlite:///{tmp_path}/api.sqlite\n")
    (tmp_path / "paste.ini").write_text(
        f"""
[DEFAULT]
oslo_config_project = cellmw
oslo_config_file = {tmp_path}/cellmw.conf
[pipeline:main]
pipeline = cells app
[filter:cells]
use = egg:cellmw#cells
context_key = nova.context
routes = /volumes/{{instance_uuid}}
[app:app]
use = egg:oslo.middleware#healthcheck
"""
    )
    cell_filter = loadapp(f"config:{tmp_path}/paste.ini")
    assert isinstance(cell_filter, CellFilter)
    assert cell_filter._context_key == "nova.context"
    cell_filter.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mapping_tll": "5"}, "unknown option 'mapping_tll'"),
        ({"mapping_ttl": "soon"}, "mapping_ttl: "),
        ({"routes": "/servers"}, "routes: '/servers'"),
        ({"routes": ""}, "routes: there has to be at least one"),
        ({"unmapped": "403"}, "unmapped: "),
    ],
)
def test_bad_options(app: RecordingApp, tmp_path: Path, options: dict[str, str], message: str) -> None:
    """A mistake in the ini section is a clear error when the pipeline is loaded."""
    file = tmp_path / "cellmw.conf"
    file.write_text(f"[api_database]\nconnection = sqlite:///{tmp_path}/api.sqlite\n")
    global_conf = {"oslo_config_project": "cellmw", "oslo_config_file": str(file)}
    with pytest.raises(ConfigError, match=message):
        CellFilter.factory(global_conf, **options)(app)


def test_no_api_database(conf: cfg.ConfigOpts, app: RecordingApp) -> None:
    """A pipeline whose API database is not configured can't be loaded."""
    with pytest.raises(ConfigError, match=r"\[api_database\] connection is not set"):
        CellFilter(app, conf)


def test_loading_connects_to_nothing(conf: cfg.ConfigOpts, app: RecordingApp, tmp_path: Path) -> None:
    """Loading a pipeline opens nothing: it is done before the workers are forked."""
    conf.set_override("connection", f"sqlite:///{tmp_path}/new.sqlite", group="api_database")
    CellFilter(app, conf).close()
    assert list(tmp_path.iterdir()) == []


def test_close(cell_filter: CellFilter, instance: str) -> None:
    """Closing the filter closes its cells, and may be done twice."""
    get(cell_filter)
    (handles,) = cell_filter.cells._open_handles.values()
    cell_filter.close()
    cell_filter.close()
    assert "closed" in repr(handles)


def test_eventlet(
    conf: cfg.ConfigOpts,
    store: Store,
    app: RecordingApp,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that eventlet has patched is warned of, once; any other one is not."""
    patched: set[str] = set()
    patcher = types.SimpleNamespace(is_monkey_patched=patched.__contains__)
    monkeypatch.setitem(sys.modules, "eventlet.patcher", patcher)
    CellFilter(app, conf).close()
    patched.add("thread")
    CellFilter(app, conf).close()
    assert [message.partition(",")[0] for message in caplog.messages] == ["eventlet has patched this process"]


# What it does with a request


def test_targeted(cell_filter: CellFilter, app: RecordingApp, instance: str, cell1: Cell) -> None:
    """A request for an instance is served from the instance's own cell."""
    assert get(cell_filter).text == "cell1"
    assert app.states == ["targeted"]
    assert app.contexts[0].cell_uuid == cell1.uuid
    assert lease_of(app.contexts[0].db_connection).instance_uuid == UUID


def test_end(cell_filter: CellFilter, app: RecordingApp, instance: str) -> None:
    """When the response has ended nothing is leased, and the trip is gone from the environ."""
    get(cell_filter)
    assert cell_filter.cells.leases == 0
    assert TARGET_KEY not in app.environs[0]


def test_upper_case(cell_filter: CellFilter, app: RecordingApp, instance: str) -> None:
    """A uuid in upper case is the same instance; the app gets the path as it was."""
    assert get(cell_filter, f"/servers/{UUID.upper()}/action").text == "cell1"
    assert app.environs[0]["PATH_INFO"] == f"/servers/{UUID.upper()}/action"


@pytest.mark.parametrize("path", ["/", "/servers/detail", f"/flavors/{UUID}", f"/servers/{UUID}.json"])
def test_no_instance(cell_filter: CellFilter, app: RecordingApp, instance: str, path: str) -> None:
    """A request that names no instance passes through: no context is made, and the server gets the app's own body."""
    body: list[bytes] = [b"x"]
    cell_filter.application = lambda environ, start_response: body
    environ = webob.Request.blank(path).environ
    assert cell_filter(environ, None) is body  # type: ignore[arg-type]
    assert not {CONTEXT, TARGET_KEY} & environ.keys()


def test_path_that_is_missing(cell_filter: CellFilter) -> None:
    """A server need not say PATH_INFO where it is empty."""
    environ = webob.Request.blank("/").environ
    del environ["PATH_INFO"]
    assert cell_filter(environ, lambda *args: None) == [b"nowhere"]


def test_cells_in_the_environ(cell_filter: CellFilter, app: RecordingApp) -> None:
    """Whoever creates an instance finds the cells in the environ."""
    get(cell_filter, "/servers")
    assert app.environs[0][CELLS_KEY] is cell_filter.cells


def test_list_is_not_wrapped(cell_filter: CellFilter, instance: str) -> None:
    """A body that is complete is released at once, and the server gets the very same list or tuple."""
    for body in ([b"a"], (b"a", b"b")):
        cell_filter.application = lambda environ, start_response, body=body: body
        environ = webob.Request.blank(f"/servers/{UUID}", environ={"HTTP_X_PROJECT_ID": PROJECT}).environ
        assert cell_filter(environ, lambda *args: None) is body
        assert cell_filter.cells.leases == 0


def test_stream_keeps_its_lease(cell_filter: CellFilter, instance: str) -> None:
    """A body that is still to come has its cell until it is closed."""

    def stream(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        yield name_of(environ[CONTEXT]).encode()

    cell_filter.application = stream
    environ = webob.Request.blank(f"/servers/{UUID}", environ={"HTTP_X_PROJECT_ID": PROJECT}).environ
    body = cell_filter(environ, lambda *args: None)
    assert cell_filter.cells.leases == 1
    assert list(body) == [b"cell1"]
    assert cell_filter.cells.leases == 1
    body.close()
    assert cell_filter.cells.leases == 0


def test_error_in_the_app(cell_filter: CellFilter, instance: str) -> None:
    """An error in the app is the server's to see, and nothing stays leased."""

    def broken(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        raise ZeroDivisionError

    cell_filter.application = broken
    with pytest.raises(ZeroDivisionError):
        get(cell_filter)
    assert cell_filter.cells.leases == 0


@pytest.mark.parametrize("lazy", [False, True], ids=["app", "generator"])
@pytest.mark.parametrize(("error", "code"), [(DeadlineExceeded("a reply"), 503), (CellHasNoTransport, 409)], ids=str)
def test_error_that_escapes(
    cell_filter: CellFilter, instance: str, cell1: Cell, error: Any, code: int, lazy: bool
) -> None:
    """An error of ours that escapes the app is answered, whether the app is a function or a generator."""
    error = error(cell1) if isinstance(error, type) else error

    def eager_app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        raise error

    def lazy_app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        raise error
        yield b"never"

    cell_filter.application = lazy_app if lazy else eager_app
    assert get(cell_filter).status_code == code
    assert cell_filter.cells.leases == 0


def test_building(cell_filter: CellFilter, app: RecordingApp, store: Store) -> None:
    """A request for an instance that is being built passes, aimed nowhere, and says so."""
    store.create_instance(UUID, project_id=PROJECT)
    assert get(cell_filter).text == "nowhere"
    assert app.states == ["building"]


def test_building_refused(make_filter: MakeFilter, app: RecordingApp, store: Store) -> None:
    """Where the filter is told to, it answers such a request with 409."""
    store.create_instance(UUID, project_id=PROJECT)
    response = get(make_filter(app, building="409"))
    assert (response.status_code, app.environs) == (409, [])
    assert response.json["conflictingRequest"]["message"] == "The instance is still being built."


def test_unmapped(cell_filter: CellFilter, app: RecordingApp) -> None:
    """A request for an instance that has no mapping is a 404, which the app never sees."""
    response = get(cell_filter)
    assert (response.status_code, app.environs) == (404, [])
    assert response.json == {"itemNotFound": {"code": 404, "message": f"Instance {UUID} could not be found."}}


def test_unmapped_passed(make_filter: MakeFilter, app: RecordingApp) -> None:
    """Where the filter is told to, it lets such a request pass, aimed nowhere."""
    assert get(make_filter(app, unmapped="pass")).text == "nowhere"
    assert app.states == ["unmapped"]


def test_cell0(cell_filter: CellFilter, app: RecordingApp, store: Store, cell0: Cell) -> None:
    """A request for an instance in cell0 is served from cell0's database."""
    store.create_instance(UUID, project_id=PROJECT, cell_id=cell0.id)
    assert get(cell_filter).text == "cell0"
    assert app.states == ["cell0"]


def test_disabled_cell(cell_filter: CellFilter, store: Store, new_cell: Callable[..., Cell]) -> None:
    """Disabling a cell stops no request for the instances in it."""
    store.create_instance(UUID, project_id=PROJECT, cell_id=new_cell("old", disabled=True).id)
    assert get(cell_filter).text == "old"


def test_queued_for_delete(cell_filter: CellFilter, instance: str, store: Store) -> None:
    """An instance whose deletion has begun is served, and the app can see it."""
    store.update_instance(UUID, queued_for_delete=True)
    flags: list[bool] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        flags.append(environ[TARGET_KEY].queued_for_delete)
        start_response("200 OK", [])
        return [b""]

    cell_filter.application = app
    get(cell_filter)
    assert flags == [True]


# The context


def test_context_of_the_pipeline(make_filter: MakeFilter, app: RecordingApp, instance: str, cell1: Cell) -> None:
    """The context under the configured key is the one that is aimed; no other is made."""
    context = RequestContext(project_id=PROJECT, overwrite=False)
    get(make_filter(app, context_key="nova.context"), **{"nova.context": context})
    assert context.cell_uuid == cell1.uuid
    assert app.contexts == [None]


def test_context_that_is_made(cell_filter: CellFilter, app: RecordingApp, instance: str) -> None:
    """With the default key a context is made of the headers where there is none, and taken back with the response."""
    environ = webob.Request.blank("/").environ
    get(cell_filter, HTTP_X_USER_ID="user")
    (made,) = app.contexts
    assert isinstance(made, RequestContext)
    assert (made.user_id, made.project_id, made.roles) == ("user", PROJECT, ["member"])
    assert CONTEXT not in app.environs[0]
    assert CONTEXT not in environ


def test_context_that_is_made_leaves_no_trace(cell_filter: CellFilter, instance: str) -> None:
    """The context that oslo.context remembers for the thread's log is the same as before."""
    before = RequestContext()
    get(cell_filter)
    assert oslo_context.context.get_current() is before


def test_wrong_order(make_filter: MakeFilter, app: RecordingApp, caplog: pytest.LogCaptureFixture) -> None:
    """With another key and no context there the pipeline is in the wrong order: a 500, and the log says what to do."""
    response = get(make_filter(app, context_key="nova.context"))
    assert (response.status_code, app.environs) == (500, [])
    assert "no nova.context in the environ: put cells behind the filter that makes the context" in caplog.text
    assert "nova.context" not in response.text


def test_context_is_not_wanted_elsewhere(make_filter: MakeFilter, app: RecordingApp) -> None:
    """A request that names no instance needs no context."""
    assert get(make_filter(app, context_key="nova.context"), "/flavors").status_code == 200


# Whose instance it is


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 200),
        ({"HTTP_X_PROJECT_ID": "other"}, 404),
        ({"HTTP_X_PROJECT_ID": "other", "HTTP_X_ROLES": "admin"}, 200),
        ({"HTTP_X_PROJECT_ID": "other", "HTTP_X_ROLES": "member,admin"}, 200),
        ({"HTTP_X_PROJECT_ID": "other", "HTTP_X_ROLES": "administrator"}, 404),
        ({"HTTP_X_PROJECT_ID": ""}, 404),
    ],
)
def test_project(cell_filter: CellFilter, instance: str, headers: dict[str, str], code: int) -> None:
    """An instance of another project is there for admins only."""
    assert get(cell_filter, **headers).status_code == code


def test_404s_are_the_same(cell_filter: CellFilter, instance: str) -> None:
    """Nobody can tell an instance of another project from one that does not exist."""
    theirs = get(cell_filter, HTTP_X_PROJECT_ID="other")
    none = get(cell_filter, f"/servers/{OTHER}", HTTP_X_PROJECT_ID="other")
    assert theirs.text == none.text.replace(OTHER, UUID)
    assert theirs.headers == none.headers


def test_is_admin(make_filter: MakeFilter, app: RecordingApp, instance: str) -> None:
    """A context that says is_admin is an admin's, whatever its roles."""
    context = RequestContext(project_id="other", is_admin=True, overwrite=False)
    assert get(make_filter(app), **{CONTEXT: context}).text == "cell1"


def test_admin_roles(make_filter: MakeFilter, app: RecordingApp, instance: str) -> None:
    """Which roles are an admin's can be configured."""
    made = make_filter(app, admin_roles=["operator"])
    assert get(made, HTTP_X_PROJECT_ID="other", HTTP_X_ROLES="admin").status_code == 404
    assert get(made, HTTP_X_PROJECT_ID="other", HTTP_X_ROLES="operator").status_code == 200


def test_project_check_off(make_filter: MakeFilter, app: RecordingApp, instance: str) -> None:
    """Where the check is off the app decides who may see what."""
    assert get(make_filter(app, project_check=False), HTTP_X_PROJECT_ID="other").text == "cell1"


def test_building_of_another_project(make_filter: MakeFilter, app: RecordingApp, store: Store) -> None:
    """That an instance of another project is being built is nobody else's business."""
    store.create_instance(UUID, project_id="other")
    assert get(make_filter(app, building="409")).status_code == 404


# What it answers


def test_store_down(conf: cfg.ConfigOpts, app: RecordingApp, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An API database that does not answer is a 503 that may be tried again, and is logged, without a URL."""
    conf.set_override("connection", f"sqlite:///{tmp_path}/missing/api.sqlite", group="api_database")
    cell_filter = CellFilter(app, conf)
    response = get(cell_filter, **{"openstack.request_id": "req-1"})
    cell_filter.close()
    assert (response.status_code, app.environs) == (503, [])
    assert response.headers["Retry-After"]
    assert response.json["serviceUnavailable"]["request_id"] == "req-1"
    assert "request req-1: answered 503: " in caplog.text
    for shown in (response.text, *(record.getMessage() for record in caplog.records if record.name == "cellmw.faults")):
        assert "sqlite:" not in shown


def test_dangling_mapping(
    cell_filter: CellFilter, app: RecordingApp, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A mapping to a cell that has no record is a 500, which is logged with both ids."""
    store.create_instance(UUID, project_id=PROJECT, cell_id=99)
    response = get(cell_filter)
    assert (response.status_code, app.environs) == (500, [])
    assert f"instance {UUID} is mapped to cell id 99, which has no record" in caplog.text
    assert "99" not in response.text


def test_new_cell(cell_filter: CellFilter, instance: str, store: Store, new_cell: Callable[..., Cell]) -> None:
    """A cell that was created since the last request is used by the next that needs it."""
    get(cell_filter)
    store.create_instance(OTHER, project_id=PROJECT, cell_id=new_cell("new").id)
    assert get(cell_filter, f"/servers/{OTHER}").text == "new"


@pytest.fixture
def misconfigured(store: Store, new_cell: Callable[..., Cell]) -> Cell:
    """A cell whose queue nobody can use, and an instance in it."""
    cell = new_cell("bad", transport_url="nosuch://user:s3cret@host/")
    store.create_instance(OTHER, project_id=PROJECT, cell_id=cell.id)
    return cell


def test_misconfigured_cell(
    cell_filter: CellFilter, instance: str, misconfigured: Cell, caplog: pytest.LogCaptureFixture
) -> None:
    """A cell that can't be used is a 500 for its own instances alone, and the log names it; nothing shows its URL."""
    caplog.set_level(logging.DEBUG, "cellmw")
    response = get(cell_filter, f"/servers/{OTHER}")
    assert response.status_code == 500
    assert "cell bad: no oslo.messaging driver 'nosuch' is installed" in caplog.text
    assert "s3cret" not in caplog.text + response.text
    assert get(cell_filter).text == "cell1"


def test_cell_is_named_to_admins(cell_filter: CellFilter, misconfigured: Cell) -> None:
    """The answer names the cell to an admin, and to nobody else."""
    path = f"/servers/{OTHER}"
    assert "cell bad" in get(cell_filter, path, HTTP_X_ROLES="admin").json["computeFault"]["message"]
    assert "bad" not in get(cell_filter, path).json["computeFault"]["message"]


def test_failed_departure_leaves_nothing(cell_filter: CellFilter, misconfigured: Cell) -> None:
    """A request that could not be aimed leaves nothing leased and no trip behind."""
    environ = webob.Request.blank(f"/servers/{OTHER}", environ={"HTTP_X_PROJECT_ID": PROJECT}).environ
    webob.Request(environ).get_response(cell_filter)
    assert cell_filter.cells.leases == 0
    assert TARGET_KEY not in environ


# Switched off, twice, and within itself


def test_disabled(make_filter: MakeFilter, app: RecordingApp, instance: str) -> None:
    """Where it is switched off every request passes through as if it were not there."""
    environ = webob.Request.blank(f"/servers/{UUID}").environ
    before = dict(environ)
    assert make_filter(app, enabled=False)(environ, lambda *args: None) == [b"nowhere"]
    assert environ == before


def test_disabled_needs_no_api_database(conf: cfg.ConfigOpts, app: RecordingApp) -> None:
    """Where it is switched off nothing else has to be configured; mistakes in its section are mistakes all the same."""
    conf.set_override("enabled", False, group="cellmw")
    CellFilter(app, conf).close()
    with pytest.raises(ConfigError, match="unknown option 'rutes'"):
        CellFilter.factory({"oslo_config_project": "cellmw"}, enabled="false", rutes="/x")(app)


def test_twice_in_a_pipeline(make_filter: MakeFilter, app: RecordingApp, instance: str) -> None:
    """Of two filters in one pipeline the first does the work."""
    inner = make_filter(app)
    outer = make_filter(inner)
    leases: list[tuple[int, int]] = []

    def counting(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        leases.append((outer.cells.leases, inner.cells.leases))
        return app(environ, start_response)

    inner.application = counting
    assert get(outer).text == "cell1"
    assert leases == [(1, 0)]
    assert (outer.cells.leases, inner.cells.leases) == (0, 0)


def request_within(cell_filter: CellFilter, path: str) -> tuple[str, str, str]:
    """Send a request whose app sends another one. Return where the app is before, in and after that one."""
    seen: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        context = environ[CONTEXT]
        seen.append(name_of(context))
        if environ["PATH_INFO"] != path:
            inner = cell_filter(environ | {"PATH_INFO": path}, lambda *args: None)
            assert list(inner) == [b""]
            seen.append(name_of(context))
        start_response("200 OK", [])
        return [b""]

    cell_filter.application = app
    get(cell_filter)
    assert cell_filter.cells.leases == 0
    before, inside, after = seen
    return before, inside, after


def test_request_within_a_request(cell_filter: CellFilter, store: Store, instance: str, cell2: Cell) -> None:
    """A request for another instance that an app makes with its own environ goes to that instance's cell."""
    store.create_instance(OTHER, project_id=PROJECT, cell_id=cell2.id)
    assert request_within(cell_filter, f"/servers/{OTHER}") == ("cell1", "cell2", "cell1")


def test_request_within_a_request_for_what_has_no_cell(cell_filter: CellFilter, store: Store, instance: str) -> None:
    """Such a request for an instance that is being built is aimed nowhere, and not at the other instance's cell."""
    store.create_instance(OTHER, project_id=PROJECT)
    assert request_within(cell_filter, f"/servers/{OTHER}") == ("cell1", "nowhere", "cell1")


def test_request_within_a_request_without_a_context(
    cell_filter: CellFilter, instance: str, store: Store, cell2: Cell
) -> None:
    """Such a request whose environ has no context gets one that is made for it, as any other does."""
    store.create_instance(OTHER, project_id=PROJECT, cell_id=cell2.id)
    seen: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.append(name_of(environ[CONTEXT]))
        if len(seen) == 1:
            inner = {key: value for key, value in environ.items() if key != CONTEXT}
            list(cell_filter(inner | {"PATH_INFO": f"/servers/{OTHER}"}, lambda *args: None))
        start_response("200 OK", [])
        return [b""]

    cell_filter.application = app
    get(cell_filter)
    assert seen == ["cell1", "cell2"]


def test_context_that_was_aimed_before(cell_filter: CellFilter, app: RecordingApp, instance: str, cell2: Cell) -> None:
    """A context that somebody has aimed elsewhere is aimed there again when the response has ended."""
    with cell_filter.cells.target(RequestContext(project_id=PROJECT, overwrite=False), cell2) as context:
        assert get(cell_filter, **{CONTEXT: context}).text == "cell1"
        assert isinstance(context.db_connection, DatabaseView)
        assert name_of(context) == "cell2"


def test_response_that_was_404(cell_filter: CellFilter, instance: str, store: Store, cell2: Cell) -> None:
    """A mapping for which the app answers 404, and that is not new, is looked up again by the next request."""
    cells = cell_filter.cells
    get(cell_filter)
    cells.locate(UUID).loaded_at -= 1
    store.update_instance(UUID, cell_id=cell2.id)

    def missing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("404 Not Found", [])
        return [b""]

    app, cell_filter.application = cell_filter.application, missing
    get(cell_filter)
    cell_filter.application = app
    assert get(cell_filter).text == "cell2"


def test_option_in_the_default_section(app: RecordingApp) -> None:
    """An option in the ini's [DEFAULT], which hides that of the filter's own section, is refused."""
    with pytest.raises(ConfigError, match=r"\[DEFAULT\] of the ini has enabled, trust_header"):
        CellFilter.factory({"trust_header": "true", "enabled": "true", "here": "/etc"})


def test_deadline_header_without_a_name(make_filter: MakeFilter, app: RecordingApp) -> None:
    """A name that no header can have is a mistake in the configuration."""
    with pytest.raises(ConfigError, match="deadline_header"):
        make_filter(app, deadline_header="X Deadline")
