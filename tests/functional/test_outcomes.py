# SPDX-License-Identifier: Apache-2.0
"""What becomes of a request, by what is found for its instance: by default, and as configured."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

from cellmw import RequestContext
from cellmw.exceptions import (
    CellHasNoTransport,
    CellUnavailable,
    DeadlineExceeded,
    InstanceNotMapped,
    LeaseClosed,
    NotTargeted,
    StoreUnavailable,
)
from cellmw.filter import CELLS_KEY
from cellmw.trip import TARGET_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _typeshed.wsgi import StartResponse, WSGIApplication

    from cellmw import CellFilter
    from tests.functional.conftest import Answer, Api, Deployment, Exchange, Show

    MakeFilter = Callable[..., CellFilter]
    Get = Callable[..., Answer]

REQUEST_ID = "req-6e0f2c1a-8d43-4a55-9a0a-0d5a2b1c9e77"
SECRET = "hunter2"


@pytest.fixture
def unmapped() -> str:
    """The uuid of an instance that nobody has mapped."""
    return str(uuid.uuid4())


@pytest.fixture
def errors(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Return what the operator finds in the log so far; it is never allowed to show the password of a cell."""

    def read() -> str:
        assert SECRET not in caplog.text
        return caplog.text

    return read


# A mapping that leads to a cell


def test_mapped(deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show) -> None:
    """A request for an instance is aimed at the instance's cell."""
    assert get(make_filter(show), deployment.map("cell2")).content == b"cell2"


def test_target_says_where(deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show) -> None:
    """The target in the environ names the instance, its cell and its state."""
    instance_uuid = deployment.map("cell2")
    get(make_filter(show), instance_uuid)
    trip = show.trip
    assert (trip.instance_uuid, trip.cell, trip.state) == (instance_uuid, deployment.cells["cell2"], "targeted")
    assert trip.queued_for_delete is False
    assert 0 <= trip.age < 60


def test_context_names_the_cell(deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show) -> None:
    """The context of a targeted request has the uuid of the cell."""
    get(make_filter(show), deployment.map("cell2"))
    assert show.context.cell_uuid == deployment.cells["cell2"].uuid


def test_disabled_cell(deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show) -> None:
    """Disabling a cell keeps new instances away, and no request for those that are there."""
    deployment.add_cell("resting", disabled=True)
    assert get(make_filter(show), deployment.map("resting")).content == b"resting"
    assert show.trip.state == "targeted"


def test_queued_for_delete(deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show) -> None:
    """An instance that is being deleted is still served from its cell; the target says so."""
    instance_uuid = deployment.map("cell1")
    deployment.store.update_instance(instance_uuid, queued_for_delete=True)
    assert get(make_filter(show), instance_uuid).content == b"cell1"
    assert show.trip.queued_for_delete is True


def test_upper_case(deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show) -> None:
    """A uuid in capitals names the same instance."""
    instance_uuid = deployment.map("cell1")
    assert get(make_filter(show), instance_uuid.upper()).content == b"cell1"
    assert show.trip.instance_uuid == instance_uuid


# A cell without a queue


def test_cell0_has_a_database(deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show) -> None:
    """An instance in cell0 is read from cell0's database."""
    assert get(make_filter(show), deployment.map("cell0")).content == b"cell0"
    assert show.trip.state == "cell0"


@pytest.fixture
def send(api: Api) -> WSGIApplication:
    """An app that sends a message before it answers, and lets every error escape."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        api.reboot(environ["cellmw.context"], environ[TARGET_KEY].instance_uuid)
        start_response("202 Accepted", [])
        return []

    return app


def test_cell0_has_no_queue(deployment: Deployment, make_filter: MakeFilter, get: Get, send: WSGIApplication) -> None:
    """A message to cell0 is an error, which becomes a 409 where the app lets it escape."""
    answer = get(make_filter(send), deployment.map("cell0"))
    assert answer.code == 409
    assert answer.json == {
        "conflictingRequest": {
            "code": 409,
            "message": "The instance never reached a host, so this can't be done to it.",
        }
    }


def test_cell_without_queue(deployment: Deployment, make_filter: MakeFilter, get: Get, send: WSGIApplication) -> None:
    """Any cell can be without a queue, and is like cell0 in this."""
    deployment.add_cell("quiet", transport_url="none:///")
    assert get(make_filter(send), deployment.map("quiet")).code == 409


def test_cell_without_queue_is_targeted(deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show) -> None:
    """A cell without a queue that is not cell0 is a target like any other."""
    deployment.add_cell("quiet", transport_url="none:///")
    assert get(make_filter(show), deployment.map("quiet")).content == b"quiet"
    assert show.trip.state == "targeted"


# No mapping


def test_unmapped(make_filter: MakeFilter, get: Get, show: Show, unmapped: str) -> None:
    """An instance that is not mapped is not found, in the words that Nova's clients read; the app is not called."""
    answer = get(make_filter(show), unmapped)
    assert answer.status == "404 Not Found"
    assert answer.json == {"itemNotFound": {"code": 404, "message": f"Instance {unmapped} could not be found."}}
    assert show.calls == 0


def test_fault_headers(make_filter: MakeFilter, get: Get, show: Show, unmapped: str) -> None:
    """A fault is JSON, and says how long it is."""
    answer = get(make_filter(show), unmapped)
    assert answer.headers == {"Content-Type": "application/json", "Content-Length": str(len(answer.content))}


def test_fault_request_id(make_filter: MakeFilter, get: Get, show: Show, unmapped: str) -> None:
    """A fault carries the id of its request, where the pipeline gives it one."""
    answer = get(make_filter(show), unmapped, headers={"openstack.request_id": REQUEST_ID})
    assert answer.json["itemNotFound"]["request_id"] == REQUEST_ID


def test_fault_leaves_nothing(make_filter: MakeFilter, exchange: type[Exchange], show: Show, unmapped: str) -> None:
    """A request that was refused has no target in its environ."""
    refused = exchange(f"/servers/{unmapped}")
    refused.fetch(make_filter(show))
    assert TARGET_KEY not in refused.environ


def test_fault_to_head(make_filter: MakeFilter, get: Get, show: Show, unmapped: str) -> None:
    """The fault that answers a HEAD has the headers of the one that answers a GET, and no body."""
    cell_filter = make_filter(show)
    answer = get(cell_filter, unmapped, method="HEAD")
    assert answer.content == b""
    assert (answer.status, answer.headers) == ("404 Not Found", get(cell_filter, unmapped).headers)


def test_unmapped_passed(make_filter: MakeFilter, get: Get, show: Show, unmapped: str) -> None:
    """With unmapped = pass the app gets the request, aimed at no cell."""
    assert get(make_filter(show, unmapped="pass"), unmapped).status == "200 OK"
    assert (show.trip.instance_uuid, show.trip.cell, show.trip.state) == (unmapped, None, "unmapped")
    assert show.context.db_connection is None
    assert show.context.mq_connection is None


# A mapping without a cell


def test_building(deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show) -> None:
    """A request for an instance that is still being scheduled goes to the app, aimed at no cell."""
    assert get(make_filter(show), deployment.map(None)).status == "200 OK"
    assert (show.trip.cell, show.trip.state) == (None, "building")
    assert show.context.db_connection is None


def test_building_refused(deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show) -> None:
    """With building = 409 it is a conflict, and the app is not called."""
    answer = get(make_filter(show, building="409"), deployment.map(None))
    assert answer.status == "409 Conflict"
    assert answer.json == {"conflictingRequest": {"code": 409, "message": "The instance is still being built."}}
    assert show.calls == 0


def test_target_is_gone_after_passing(
    deployment: Deployment, make_filter: MakeFilter, exchange: type[Exchange], show: Show
) -> None:
    """Also where a request had no cell, its target leaves the environ at the end."""
    passed = exchange(f"/servers/{deployment.map(None)}")
    passed.fetch(make_filter(show))
    assert show.trip is not None
    assert TARGET_KEY not in passed.environ


# Another project


def test_other_project_is_like_unmapped(
    deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show, unmapped: str
) -> None:
    """Nobody can tell an instance of another project from one that does not exist."""
    cell_filter = make_filter(show)
    before = get(cell_filter, unmapped)
    cell_filter.cells.mappings.create(unmapped, project_id="project-2", cell=deployment.cells["cell1"])
    after = get(cell_filter, unmapped)
    assert before.code == 404
    assert vars(before) == vars(after)
    assert show.calls == 0


def test_request_ids_alone_differ(deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show) -> None:
    """Of two such answers in a pipeline with request ids, these are all that is different."""
    cell_filter = make_filter(show)
    foreign = deployment.map("cell1", project_id="project-2")
    first, second = (
        get(cell_filter, foreign, headers={"openstack.request_id": request_id}) for request_id in ("req-1", "req-2")
    )
    assert first.content.replace(b"req-1", b"req-2") == second.content
    assert first.headers == second.headers


def test_other_project_while_building(deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show) -> None:
    """An instance of another project can't be told from none while it is being built either."""
    foreign = deployment.map(None, project_id="project-2")
    assert get(make_filter(show), foreign).code == 404
    assert get(make_filter(show, building="409"), foreign).code == 404
    assert show.calls == 0


@pytest.mark.parametrize(
    ("options", "roles"),
    [
        pytest.param({}, "member,admin", id="default"),
        pytest.param({"admin_roles": "operator, auditor"}, "auditor", id="configured"),
    ],
)
def test_admin_role(
    deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show, options: dict[str, str], roles: str
) -> None:
    """Who has one of the admin roles gets to see instances of every project."""
    foreign = deployment.map("cell1", project_id="project-2")
    answer = get(make_filter(show, **options), foreign, headers={"HTTP_X_ROLES": roles})
    assert answer.content == b"cell1"


def test_other_role(deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show) -> None:
    """With admin_roles set, the role admin is one like any other."""
    foreign = deployment.map("cell1", project_id="project-2")
    headers = {"HTTP_X_ROLES": "admin"}
    assert get(make_filter(show, admin_roles="operator"), foreign, headers=headers).code == 404


def test_is_admin(deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show) -> None:
    """A context that says that it is an admin's passes the check, whatever its roles."""
    foreign = deployment.map("cell1", project_id="project-2")
    context = RequestContext(project_id="project-1", is_admin=True)
    assert get(make_filter(show), foreign, headers={"cellmw.context": context}).content == b"cell1"


def test_no_project_check(deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show) -> None:
    """With project_check = off the app decides who may see what."""
    foreign = deployment.map("cell1", project_id="project-2")
    assert get(make_filter(show, project_check="off"), foreign).content == b"cell1"


# Requests that are none of the filter's business


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/servers", id="no-uuid"),
        pytest.param("/servers/detail", id="another-word"),
        pytest.param("/flavors/{uuid}", id="another-thing"),
        pytest.param("/{uuid}/servers", id="project"),
        pytest.param("/servers/{uuid}\xff", id="not-utf-8"),
        pytest.param("/servers/{uuid}/\xc3\x28", id="not-utf-8-below"),
        pytest.param("", id="empty"),
    ],
)
def test_passed_through(deployment: Deployment, make_filter: MakeFilter, exchange: type[Exchange], path: str) -> None:
    """A path that names no instance goes to the app with nothing of a cell, and its body to the server unwrapped."""
    request = exchange(path.replace("{uuid}", deployment.map("cell1")))
    before = dict(request.environ)
    body = iter([b"the app's own"])
    seen: list[dict[str, Any]] = []

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterator[bytes]:
        seen.append(dict(environ))
        assert start_response == request.start_response
        return body

    cell_filter = make_filter(app)
    request.send(cell_filter)
    assert seen == [before | {CELLS_KEY: cell_filter.cells}]
    assert request.body is body


def test_not_enabled(deployment: Deployment, make_filter: MakeFilter, exchange: type[Exchange], show: Show) -> None:
    """With enabled = false every request passes through with nothing attached."""
    request = exchange(f"/servers/{deployment.map('cell1')}")
    before = dict(request.environ)
    request.fetch(make_filter(show, enabled="false"))
    assert show.calls == 1
    assert request.environ == before


# Failures


@pytest.fixture
def store_down(deployment: Deployment) -> None:
    """The API database is at an address where nobody listens."""
    deployment.configure(f"mysql+pymysql://cellmw:{SECRET}@127.0.0.1:1/api")


@pytest.mark.usefixtures("store_down")
def test_store_down(make_filter: MakeFilter, get: Get, show: Show, unmapped: str, errors: Callable[[], str]) -> None:
    """Where the API database does not answer, the client is told to come back."""
    answer = get(make_filter(show), unmapped)
    assert answer.status == "503 Service Unavailable"
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.json == {
        "serviceUnavailable": {
            "code": 503,
            "message": "The service for this instance is not available at the moment.",
        }
    }
    assert "API database" in errors()
    assert show.calls == 0


@pytest.mark.usefixtures("store_down")
def test_store_down_is_no_secret(
    make_filter: MakeFilter, get: Get, show: Show, unmapped: str, errors: Callable[[], str]
) -> None:
    """Not even an admin, or the log, is told where the API database is supposed to be."""
    answer = get(make_filter(show), unmapped, headers={"HTTP_X_ROLES": "admin"})
    assert answer.json["serviceUnavailable"]["message"] == "the API database does not answer, or refuses the connection"
    assert "127.0.0.1" not in errors()


@pytest.mark.usefixtures("store_down")
def test_store_down_does_not_matter(make_filter: MakeFilter, exchange: type[Exchange], show: Show) -> None:
    """A request that names no instance needs no API database."""
    assert exchange("/servers/detail").fetch(make_filter(show)).status == "200 OK"


@pytest.fixture
def dangling(deployment: Deployment) -> str:
    """An instance whose mapping points at a cell that has no record."""
    instance_uuid = str(uuid.uuid4())
    deployment.store.create_instance(instance_uuid, project_id="project-1", cell_id=4711)
    return instance_uuid


def test_dangling(make_filter: MakeFilter, get: Get, show: Show, dangling: str, errors: Callable[[], str]) -> None:
    """A mapping to no known cell is a fault of the deployment's, which the log gives both ids of."""
    answer = get(make_filter(show), dangling)
    assert answer.status == "500 Internal Server Error"
    assert answer.json == {
        "computeFault": {"code": 500, "message": "The request could not be routed: tell the operator."}
    }
    assert dangling in errors()
    assert "4711" in errors()
    assert show.calls == 0


def test_dangling_to_an_admin(make_filter: MakeFilter, get: Get, show: Show, dangling: str) -> None:
    """An admin is told more."""
    answer = get(make_filter(show), dangling, headers={"HTTP_X_ROLES": "admin"})
    assert "4711" in answer.json["computeFault"]["message"]


def test_cell_that_is_new(deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show) -> None:
    """A cell id that is not known yet is looked up before it counts as unknown."""
    cell_filter = make_filter(show)
    get(cell_filter, deployment.map("cell1"))
    deployment.add_cell("cell3")
    assert get(cell_filter, deployment.map("cell3")).content == b"cell3"


WRONG_RECORDS = [
    pytest.param({"transport_url": f"nosuch://me:{SECRET}@mq/"}, id="queue-without-driver"),
    pytest.param({"transport_url": f"rabbit://me:{SECRET}@mq/?no_such_option=1"}, id="unknown-option"),
    pytest.param({"transport_url": f"rabbit://me:{SECRET}@mq:port/"}, id="queue-unreadable"),
    pytest.param({"transport_url": f"rabbit://me:{SECRET}/x@mq/"}, id="slash-in-the-password"),
    pytest.param({"transport_url": ""}, id="no-queue-url"),
    pytest.param({"database_connection": f"nosuch://me:{SECRET}@db/x"}, id="no-such-database"),
    pytest.param({"database_connection": f"mysql+nosuch://me:{SECRET}@db/x"}, id="no-database-driver"),
    pytest.param({"database_connection": f"//me:{SECRET}@db"}, id="database-unreadable"),
    pytest.param({"database_connection": f"mysql+pymysql://me:{SECRET}@db:port/x"}, id="database-port"),
    pytest.param({"database_connection": ""}, id="no-database-url"),
]


@pytest.mark.parametrize("record", WRONG_RECORDS)
def test_unusable_cell(
    deployment: Deployment,
    make_filter: MakeFilter,
    get: Get,
    show: Show,
    errors: Callable[[], str],
    record: dict[str, str],
) -> None:
    """A cell whose URLs can't be used is a fault that the log names the cell of; nobody gets to see a URL."""
    deployment.add_cell("broken", **record)
    cell_filter = make_filter(show)
    broken = deployment.map("broken")
    answer = get(cell_filter, broken)
    assert answer.code == 500
    assert b"broken" not in answer.content
    assert "cell broken" in errors()
    told = get(cell_filter, broken, headers={"HTTP_X_ROLES": "admin"}).json["computeFault"]["message"]
    assert "cell broken" in told
    assert SECRET not in told


def test_unusable_cell_is_alone(deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show) -> None:
    """Requests for other cells don't notice."""
    deployment.add_cell("broken", database_connection="")
    cell_filter = make_filter(show)
    assert get(cell_filter, deployment.map("broken")).code == 500
    assert get(cell_filter, deployment.map("cell1")).content == b"cell1"


def test_pipeline_in_the_wrong_order(
    deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show, errors: Callable[[], str]
) -> None:
    """Where the service's own context is missing, the log says what is wrong with the pipeline."""
    answer = get(make_filter(show, context_key="nova.context"), deployment.map("cell1"))
    assert answer.code == 500
    assert "no nova.context in the environ: put cells behind the filter that makes the context" in errors()
    assert show.calls == 0


def test_context_of_the_service(deployment: Deployment, make_filter: MakeFilter, get: Get, api: Api) -> None:
    """The context under the configured key is the one that is targeted."""
    context = RequestContext(project_id="project-1")

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [api.database(environ["nova.context"]).encode()]

    cell_filter = make_filter(app, context_key="nova.context")
    assert get(cell_filter, deployment.map("cell1"), headers={"nova.context": context}).content == b"cell1"


# Errors of ours that the app lets escape


def raising(error: Callable[[Any], BaseException]) -> WSGIApplication:
    """An app that raises before it has begun to respond; the cell is known to its error."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        raise error(environ[TARGET_KEY].cell)

    return app


def generating(error: Callable[[Any], BaseException]) -> WSGIApplication:
    """An app that raises with its first chunk, before it has begun to respond."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterator[bytes]:
        raise error(environ[TARGET_KEY].cell)
        yield b""

    return app


APPS = pytest.mark.parametrize("failing", [raising, generating])


@APPS
@pytest.mark.parametrize(
    ("error", "code"),
    [
        pytest.param(lambda cell: CellUnavailable(cell, "database"), 503, id="CellUnavailable"),
        pytest.param(lambda cell: DeadlineExceeded("a reply"), 503, id="DeadlineExceeded"),
        pytest.param(CellHasNoTransport, 409, id="CellHasNoTransport"),
    ],
)
def test_escaped(
    deployment: Deployment,
    make_filter: MakeFilter,
    get: Get,
    failing: Callable[..., WSGIApplication],
    error: Callable[[Any], BaseException],
    code: int,
) -> None:
    """These are answered as the filter itself would have answered them."""
    answer = get(make_filter(failing(error)), deployment.map("cell1"))
    assert answer.code == code
    assert ("Retry-After" in answer.headers) == (code == 503)
    assert b"cell1" not in answer.content


@APPS
def test_escaped_to_an_admin(
    deployment: Deployment, make_filter: MakeFilter, get: Get, failing: Callable[..., WSGIApplication]
) -> None:
    """An admin is told which cell it was."""
    cell_filter = make_filter(failing(lambda cell: CellUnavailable(cell, "queue")))
    answer = get(cell_filter, deployment.map("cell1"), headers={"HTTP_X_ROLES": "admin"})
    assert answer.json["serviceUnavailable"]["message"] == "cell cell1: its queue does not answer"


@APPS
@pytest.mark.parametrize(
    "error",
    [
        pytest.param(lambda cell: LookupError("not ours"), id="LookupError"),
        pytest.param(lambda cell: InstanceNotMapped("x"), id="InstanceNotMapped"),
        pytest.param(lambda cell: StoreUnavailable("x"), id="StoreUnavailable"),
        pytest.param(lambda cell: NotTargeted("x"), id="NotTargeted"),
        pytest.param(LeaseClosed, id="LeaseClosed"),
    ],
)
def test_escaped_as_it_is(
    deployment: Deployment,
    make_filter: MakeFilter,
    get: Get,
    failing: Callable[..., WSGIApplication],
    error: Callable[[Any], Exception],
) -> None:
    """Every other error stays the app's."""
    with pytest.raises(type(error(deployment.cells["cell1"]))):
        get(make_filter(failing(error)), deployment.map("cell1"))


@pytest.mark.parametrize("lazy", [False, True], ids=["raising", "generating"])
def test_escaped_after_start_response(
    deployment: Deployment, make_filter: MakeFilter, exchange: type[Exchange], lazy: bool
) -> None:
    """Once the app has begun to respond its error is the server's to deal with."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        start_response("200 OK", [])
        raise CellUnavailable(environ[TARGET_KEY].cell, "database")

    def lazy_app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        yield app(environ, start_response)

    request = exchange(f"/servers/{deployment.map('cell1')}")
    with pytest.raises(CellUnavailable):
        request.fetch(make_filter(lazy_app if lazy else app))
    assert request.status == "200 OK"
    assert TARGET_KEY not in request.environ


# What a service changes by the filter's own cells


def test_scheduled(deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show) -> None:
    """An instance that the service schedules is served from its cell by the next request."""
    cell_filter = make_filter(show)
    instance_uuid = deployment.map(None)
    assert get(cell_filter, instance_uuid).content == b""
    cell_filter.cells.mappings.schedule(instance_uuid, deployment.cells["cell2"])
    assert get(cell_filter, instance_uuid).content == b"cell2"


def test_unmapped_again(deployment: Deployment, make_filter: MakeFilter, get: Get, show: Show) -> None:
    """An instance that the service unmaps is not found by the next request."""
    cell_filter = make_filter(show)
    instance_uuid = deployment.map("cell1")
    assert get(cell_filter, instance_uuid).code == 200
    cell_filter.cells.mappings.delete(instance_uuid)
    assert get(cell_filter, instance_uuid).code == 404
