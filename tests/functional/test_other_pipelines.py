# SPDX-License-Identifier: Apache-2.0
"""The pipelines for services that are not compute, loaded as they are shipped, with wsgiref.validate around the filter.

The packages that their ini files name are stood in for by what is in this file. Where a request has gone is asked at
the files of the cells' databases.
"""

from __future__ import annotations

import gc
import http.client
import json
import logging
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit
from wsgiref.validate import validator

import oslo_context.context
import pytest
import webob.dec
import webob.exc
from oslo_db.sqlalchemy import enginefacade
from oslo_middleware.base import ConfigurableMiddleware
from paste import deploy as paste_deploy

from cellmw import CellFilter
from cellmw.exceptions import DeadlineExceeded
from cellmw.trip import TARGET_KEY
from examples.compute.part import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _typeshed.wsgi import StartResponse, WSGIApplication

    from tests.functional.conftest import Answer, Api, Deployment, Exchange

ETC = Path(__file__).parents[2] / "etc"

PROJECT = "project-1"
TOKEN = f"user-1:{PROJECT}"
"""What the client shows: a token of this test's own, which names who it is for."""

OTHER = "ffffffff-ffff-4fff-bfff-ffffffffffff"
"""A uuid that is not an instance's."""

DASHBOARD = "https://dashboard.example.org"
"""Where scripts that may use the API come from."""


@enginefacade.transaction_context_provider
class VolumeContext(oslo_context.context.RequestContext):
    """A context that takes part in oslo.db's enginefacade, as Cinder's does."""


class ShareContext(oslo_context.context.RequestContext):
    """A context that knows of no database."""


class Style(NamedTuple):
    """A service: its ini file, and the names that are its own."""

    ini: str
    package: str
    mounts: tuple[str, ...]
    context_key: str
    context_class: type[oslo_context.context.RequestContext]

    @property
    def word(self) -> str:
        """What its paths have in front of a uuid."""
        return self.package


VOLUMES = Style("cinder-style-paste.ini", "volumes", ("/v3",), "cinder.context", VolumeContext)
SHARES = Style("manila-style-paste.ini", "shares", ("/v1", "/v2"), "manila.context", ShareContext)


class AuthToken(ConfigurableMiddleware):
    """Stands in for keystonemiddleware: X-Auth-Token -> X-User-Id, X-Project-Id and X-Roles."""

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Any:
        user, _, project = environ.get("HTTP_X_AUTH_TOKEN", "").partition(":")
        if not project:
            return webob.exc.HTTPUnauthorized()(environ, start_response)
        environ |= {"HTTP_X_USER_ID": user, "HTTP_X_PROJECT_ID": project, "HTTP_X_ROLES": "member"}
        return self.application(environ, start_response)


class FaultWrapper(ConfigurableMiddleware):
    """What escapes from the app becomes an answer, by WebOb, as in those services."""

    @webob.dec.wsgify
    def __call__(self, request: webob.Request) -> webob.Response:
        try:
            return request.get_response(self.application)
        except LookupError as error:
            return webob.Response(status=500, json_body={"computeFault": {"code": 500, "message": str(error)}})


class Service:
    """The packages that the ini file of one service names. Lives as long as the test.

    :ivar targeted: for each request that reached the app, whether it had a target
    """

    def __init__(self, style: Style, auth_strategy: str, api: Api) -> None:
        self._style = style
        self._auth_strategy = auth_strategy
        self._api = api
        self.targeted: list[bool] = []

    def modules(self) -> Iterator[ModuleType]:
        """Make the modules."""
        app, versions = Factory(self._app), Factory(webob.exc.HTTPMultipleChoices())
        yield from package(
            self._style.package,
            auth={"pipeline_factory": self._load, "NoAuth": self._noauth(), "KeystoneContext": self._auth()},
            fault={"FaultWrapper": FaultWrapper},
            api={"API": app, "Versions": versions},
        )
        yield from package("keystonemiddleware", auth_token={"filter_factory": AuthToken.factory})

    def _load(self, loader: Any, global_conf: dict[str, str], **pipelines: str) -> WSGIApplication:
        """Load the pipeline of the auth strategy."""
        *filters, name = pipelines[self._auth_strategy].split()
        app = loader.get_app(name, global_conf=global_conf)
        for filter_name in reversed(filters):
            app = loader.get_filter(filter_name, global_conf=global_conf)(app)
        return app

    def _auth(self) -> type[ConfigurableMiddleware]:
        style = self._style

        class KeystoneContext(ConfigurableMiddleware):
            """Puts the service's context under the service's key."""

            def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Any:
                environ[style.context_key] = style.context_class.from_environ(environ)
                return self.application(environ, start_response)

        return KeystoneContext

    def _noauth(self) -> type[ConfigurableMiddleware]:
        context_filter = self._auth()

        class NoAuth(AuthToken):
            """Believes what the client says, and does the work of the context filter, too."""

            def __init__(self, application: WSGIApplication, conf: dict[str, Any]) -> None:
                super().__init__(context_filter(application), conf)

        return NoAuth

    def _app(self, environ: dict[str, Any], start_response: StartResponse) -> Any:
        """Write to the cell, read from it, or fail, as the end of the path says."""
        self.targeted.append(TARGET_KEY in environ)
        context = environ[self._style.context_key]
        handler = getattr(self, f"_{environ['PATH_INFO'].rpartition('/')[2]}", self._show)
        return handler(context, start_response)

    def _show(self, context: Any, start_response: StartResponse) -> Any:
        name = self._api.database(context) if self.targeted[-1] else None
        return webob.Response(json_body={"cell": name})({"REQUEST_METHOD": "GET"}, start_response)

    def _action(self, context: Any, start_response: StartResponse) -> Any:
        self._api.visit(context)
        start_response("202 Accepted", [("Content-Type", "text/plain")])
        return []

    def _export(self, context: Any, start_response: StartResponse) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (self._api.database(context).encode() for _ in range(3))

    def _fail(self, context: Any, start_response: StartResponse) -> Any:
        raise LookupError(f"in {self._api.database(context)}")

    def _wait(self, context: Any, start_response: StartResponse) -> Any:
        raise DeadlineExceeded("what never comes")


def package(name: str, **modules: dict[str, Any]) -> Iterator[ModuleType]:
    """Make a package of modules, each with these names in it."""
    made = ModuleType(name)
    yield made
    for module_name, names in modules.items():
        module = ModuleType(f"{name}.{module_name}")
        vars(module).update(names)
        setattr(made, module_name, module)
        yield module


class Factory:
    """What an ini file finds an app by: ``factory``, as on a class."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def factory(self, global_conf: dict[str, str], **local_conf: str) -> WSGIApplication:
        """Return the app."""
        return self._app


class Pipeline(NamedTuple):
    """What was loaded, and what was found in it."""

    style: Style
    app: Any
    filters: list[CellFilter]
    service: Service

    @property
    def leases(self) -> int:
        """How many leases are open now."""
        return sum(cell_filter.cells.leases for cell_filter in self.filters)


@pytest.fixture
def load(
    deployment: Deployment, api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., Pipeline]]:
    """Load a service's ini file as it is; then the filters and what is behind them are put behind validators."""
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = (tmp_path / "cellmw.conf").read_text()
    with ExitStack() as ends:

        def load(
            style: Style, auth_strategy: str = "keystone", *, ini: Path | None = None, validated: bool = True
        ) -> Pipeline:
            # as in /etc/volumes/volumes.conf, by the name of the project in the ini
            (tmp_path / f"{style.package}.conf").write_text(f"{settings}[cors]\nallowed_origin = {DASHBOARD}\n")
            service = Service(style, auth_strategy, api)
            for made in service.modules():
                monkeypatch.setitem(sys.modules, made.__name__, made)
            app = paste_deploy.loadapp(f"config:{ini or ETC / style.ini}")
            filters = [find_filter(app[mount], validated) for mount in style.mounts]
            for cell_filter in filters:
                ends.callback(cell_filter.close)
            pipeline = Pipeline(style, app, filters, service)
            ends.callback(assert_released, pipeline)
            return pipeline

        yield load


def find_filter(station: Any, validated: bool) -> CellFilter:
    """Return the cells filter of a pipeline, with validators on both sides of it."""
    while not isinstance(station.application, CellFilter):
        station = station.application
    cell_filter = station.application
    if validated:
        cell_filter.application = validator(cell_filter.application)
        station.application = validator(cell_filter)
    return cell_filter


def assert_released(pipeline: Pipeline) -> None:
    """Whatever a test has done, its requests have given their leases back."""
    assert pipeline.leases == 0


@pytest.fixture(params=["noauth", "keystone"])
def auth_strategy(request: pytest.FixtureRequest) -> str:
    """Which of the service's pipelines is loaded."""
    strategy: str = request.param
    return strategy


@pytest.fixture(params=[VOLUMES, SHARES], ids=lambda style: style.package)
def pipeline(request: pytest.FixtureRequest, load: Callable[..., Pipeline]) -> Pipeline:
    """A service's pipeline, behind Keystone."""
    return load(request.param)


@pytest.fixture
def ask(exchange: type[Exchange]) -> Callable[..., Answer]:
    """Ask a pipeline, at the last of its versions, and do the whole exchange as a good server does it."""

    def ask(pipeline: Pipeline, path: str, headers: dict[str, str] | None = None, **request: Any) -> Answer:
        headers = {"HTTP_X_AUTH_TOKEN": TOKEN} | (headers or {})
        return exchange(pipeline.style.mounts[-1] + path, headers=headers, **request).fetch(pipeline.app)

    return ask


def test_every_ini_is_tested() -> None:
    """There is a test for every pipeline that is shipped."""
    assert {VOLUMES.ini, SHARES.ini} <= {file.name for file in ETC.glob("*.ini")}


@pytest.mark.parametrize("style", [VOLUMES, SHARES], ids=lambda style: style.package)
@pytest.mark.parametrize("project", ["", f"/{PROJECT}", f"/{OTHER}"], ids=["short", "project", "uuid"])
def test_write(
    load: Callable[..., Pipeline],
    ask: Callable[..., Answer],
    deployment: Deployment,
    style: Style,
    auth_strategy: str,
    project: str,
) -> None:
    """What is written is in the cell that the instance is mapped to, and in no other."""
    pipeline = load(style, auth_strategy)
    before = {cell: deployment.visits(cell) for cell in deployment.cells}
    for cell in ("cell1", "cell2", "cell2", "cell0"):
        path = f"{project}/{style.word}/{deployment.map(cell)}/action"
        assert ask(pipeline, path, method="POST").code == 202
    written = {cell: deployment.visits(cell) - before[cell] for cell in deployment.cells}
    assert written == {"cell0": 1, "cell1": 1, "cell2": 2}


@pytest.mark.parametrize("cell", ["cell1", "cell2", "cell0"])
def test_read(pipeline: Pipeline, ask: Callable[..., Answer], deployment: Deployment, cell: str) -> None:
    """What is read comes out of the instance's own cell, however its uuid is written."""
    instance_uuid = deployment.map(cell)
    for spelling in (instance_uuid, instance_uuid.upper()):
        assert ask(pipeline, f"/{pipeline.style.word}/{spelling}").json == {"cell": cell}


@pytest.mark.parametrize("prefix", ["/v3", f"/v3.27/{PROJECT}", f"/v1/{OTHER}"])
def test_without_a_urlmap(pipeline: Pipeline, exchange: type[Exchange], deployment: Deployment, prefix: str) -> None:
    """The routes know the version, too, for a pipeline that is handed the whole path."""
    path = f"{prefix}/{pipeline.style.word}/{deployment.map('cell2')}"
    request = exchange(path, headers={"HTTP_X_AUTH_TOKEN": TOKEN})
    assert request.fetch(pipeline.app[pipeline.style.mounts[0]]).json == {"cell": "cell2"}


@pytest.mark.parametrize(
    "path", ["/{word}", "/{word}/detail", "/{project}/{word}/summary", "/snapshots/{uuid}", "/{project}/servers/{uuid}"]
)
def test_other_paths(pipeline: Pipeline, ask: Callable[..., Answer], deployment: Deployment, path: str) -> None:
    """What the service's own routes do not name is not targeted, a uuid in it or not, and a server is nothing here."""
    path = path.format(word=pipeline.style.word, project=PROJECT, uuid=deployment.map("cell1"))
    assert ask(pipeline, path).json == {"cell": None}
    assert pipeline.service.targeted == [False]


@pytest.mark.parametrize("project_id", [None, "project-2"], ids=["unknown", "of another project"])
def test_not_found(
    pipeline: Pipeline, ask: Callable[..., Answer], deployment: Deployment, project_id: str | None
) -> None:
    """The filter's 404 has the request id that the pipeline gave, and the app is not asked."""
    instance_uuid = deployment.map("cell1", project_id) if project_id else OTHER
    answer = ask(pipeline, f"/{pipeline.style.word}/{instance_uuid}")
    assert answer.code == 404
    assert answer.json["itemNotFound"]["request_id"] == answer.headers["x-openstack-request-id"]
    assert pipeline.service.targeted == []


def test_no_token(pipeline: Pipeline, ask: Callable[..., Answer], deployment: Deployment) -> None:
    """Who is not let in does not get as far as the filter."""
    path = f"/{pipeline.style.word}/{deployment.map('cell1')}"
    assert ask(pipeline, path, headers={"HTTP_X_AUTH_TOKEN": ""}).code == 401


def test_error_of_the_app(load: Callable[..., Pipeline], ask: Callable[..., Answer], deployment: Deployment) -> None:
    """The app's error gets through to the filter in front that renders errors, and the lease is back by then."""
    pipeline = load(VOLUMES)
    answer = ask(pipeline, f"/volumes/{deployment.map('cell2')}/fail")
    assert answer.json == {"computeFault": {"code": 500, "message": "in cell2"}}


def test_error_of_ours(pipeline: Pipeline, ask: Callable[..., Answer], deployment: Deployment) -> None:
    """An error of ours that escapes from the app is answered in the shape that clients parse."""
    answer = ask(pipeline, f"/{pipeline.style.word}/{deployment.map('cell2')}/wait")
    assert (answer.code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json["serviceUnavailable"]["request_id"] == answer.headers["x-openstack-request-id"]


@pytest.mark.parametrize("found", [True, False], ids=["the app's", "the filter's"])
def test_cross_origin(pipeline: Pipeline, ask: Callable[..., Answer], deployment: Deployment, found: bool) -> None:
    """A script from elsewhere may read the answer, be it the app's or the filter's own."""
    instance_uuid = deployment.map("cell1") if found else OTHER
    answer = ask(pipeline, f"/{pipeline.style.word}/{instance_uuid}", headers={"HTTP_ORIGIN": DASHBOARD})
    assert answer.code == (200 if found else 404)
    assert answer.headers["Access-Control-Allow-Origin"] == DASHBOARD


@pytest.mark.parametrize("found", [True, False], ids=["mapped", "unknown"])
def test_preflight(pipeline: Pipeline, ask: Callable[..., Answer], deployment: Deployment, found: bool) -> None:
    """A browser that asks first, without a token, gets its answer from the filter in front."""
    headers = {"HTTP_ORIGIN": DASHBOARD, "HTTP_ACCESS_CONTROL_REQUEST_METHOD": "GET", "HTTP_X_AUTH_TOKEN": ""}
    path = f"/{pipeline.style.word}/{deployment.map('cell1') if found else OTHER}"
    answer = ask(pipeline, path, headers=headers, method="OPTIONS")
    assert (answer.code, answer.content) == (200, b"")
    assert answer.headers["Access-Control-Allow-Methods"] == "GET"


def test_preflight_that_drops_a_body(
    load: Callable[..., Pipeline], ask: Callable[..., Answer], deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For OPTIONS, cors drops an answer that is no success without closing its body; the lease is back all the same."""
    # the validators would complain of this, too
    pipeline = load(SHARES, validated=False)

    def refuse(context: Any, start_response: StartResponse) -> Any:
        start_response("405 Method Not Allowed", [("Content-Type", "text/plain")])
        return iter([b"not allowed"])

    monkeypatch.setattr(pipeline.service, "_show", refuse)
    with pytest.warns(ResourceWarning, match="never closed by the server"):  # noqa: PT031 - wherever it is dropped
        answer = ask(
            pipeline, f"/shares/{deployment.map('cell1')}", headers={"HTTP_ORIGIN": DASHBOARD}, method="OPTIONS"
        )
        del answer
        gc.collect()
    assert pipeline.service.targeted == [True]
    assert pipeline.leases == 0


def test_streamed(pipeline: Pipeline, exchange: type[Exchange], deployment: Deployment) -> None:
    """A streamed body has its cell until it is closed, behind all those filters, read to the end or not."""
    for read in (lambda request: b"".join(request.body), lambda request: next(iter(request.body))):
        path = f"{pipeline.style.mounts[0]}/{pipeline.style.word}/{deployment.map('cell2')}/export"
        request = exchange(path, headers={"HTTP_X_AUTH_TOKEN": TOKEN}).send(pipeline.app)
        assert pipeline.leases == 1
        assert set(read(request).split(b"cell2")) == {b""}
        request.close()
        assert pipeline.leases == 0


def test_wrong_order(
    load: Callable[..., Pipeline],
    ask: Callable[..., Answer],
    deployment: Deployment,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In front of the filter that makes the context, it refuses, and the log says which key it looked for."""
    ini = tmp_path / "api-paste.ini"
    ini.write_text((ETC / VOLUMES.ini).read_text().replace("keystonecontext cells", "cells keystonecontext"))
    pipeline = load(VOLUMES, ini=ini)
    # neither context nor project are known there, so only who is an admin could be told more
    answer = ask(pipeline, f"/volumes/{deployment.map('cell1')}")
    assert (answer.code, set(answer.json)) == (500, {"computeFault"})
    assert [record.levelno for record in caplog.records if "no cinder.context in the environ" in record.message] == [
        logging.ERROR
    ]


def test_each_version_has_cells_of_its_own(load: Callable[..., Pipeline]) -> None:
    """A filter that is in two pipelines of one ini file is two filters, each with its own cells."""
    first, second = load(SHARES).filters
    assert first.cells is not second.cells


@pytest.mark.parametrize("style", [VOLUMES, SHARES], ids=lambda style: style.package)
def test_over_a_socket(load: Callable[..., Pipeline], deployment: Deployment, style: Style, auth_strategy: str) -> None:
    """All of it through a real WSGI server, at each version of the API."""
    pipeline = load(style, auth_strategy)
    with Server(pipeline.app) as server, closing(http.client.HTTPConnection(urlsplit(server.url).netloc)) as client:

        def ask(method: str, path: str) -> tuple[int, bytes]:
            # where it is not told the length, oslo.middleware's sizelimit makes an input that is no input by PEP 3333
            client.request(method, path, headers={"X-Auth-Token": TOKEN, "Content-Length": "0"})
            with client.getresponse() as response:
                return response.status, response.read()

        for mount in style.mounts:
            for cell in ("cell1", "cell2"):
                before = deployment.visits(cell)
                path = f"{mount}/{PROJECT}/{style.word}/{deployment.map(cell)}"
                status, shown = ask("GET", path)
                assert (status, json.loads(shown)) == (200, {"cell": cell})
                assert ask("POST", f"{path}/action") == (202, b"")
                assert deployment.visits(cell) == before + 1
                assert ask("GET", f"{path}/export") == (200, cell.encode() * 3)
            assert ask("GET", f"{mount}/{style.word}/{OTHER}")[0] == 404
        assert ask("GET", "/healthcheck")[0] == 200
        assert ask("GET", "/")[0] == 300
