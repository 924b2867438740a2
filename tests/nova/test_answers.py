# SPDX-License-Identifier: Apache-2.0
"""A request to Nova's API -> the same answer with the filter in as without it, and nothing left open.

Each request goes to both pipelines, for two instances that are equal. What is compared is all that came of it: the
answer, the rows of every database that name the instance, and the messages that the hosts got. The other
cells have rows with the instance's uuid and other names, so a look into the wrong one shows.
"""

from __future__ import annotations

import functools
import gc
import json
import logging
import re
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from nova import context as nova_context
from nova import objects
from nova.compute import rpcapi, task_states, vm_states
from nova.db.api import models as api_models
from nova.db.main import models
from oslo_utils import uuidutils

from cellmw.lease import Lease
from tests.nova import instances
from tests.nova.api import close_cells, load
from tests.nova.conftest import CELLS
from tests.nova.deployment import CELLS_INI, write_paste_ini
from tests.nova.instances import ALL_CELLS, OTHER_PROJECT, PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import webob

    from tests.nova.api import Api
    from tests.nova.conftest import Nova
    from tests.nova.deployment import Deployment
    from tests.nova.worker import Worker

ADMIN = "admin,member,reader"
NOTHING = "00000000-0000-4000-8000-000000000000"
"""The uuid of nothing that there is."""

THREADS = 8
SHOWS = 25

PATIENCE = 20.0
"""Seconds after which a connection that is in use is one that nobody gives back."""


@dataclass(frozen=True)
class Ask:
    """A request. Lives as long as the test run.

    :ivar path: what follows the uuid of the instance
    :ivar status: what Nova answers for an active instance
    :ivar message: what the host of an active instance is sent
    :ivar options: of ``Api.request``
    """

    method: str = "GET"
    path: str = ""
    body: Any = None
    status: int = 200
    message: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def _ask(method: str, path: str = "", body: Any = None, status: int = 200, **options: Any) -> Ask:
    return Ask(method, path, body, status, None, options)


def _act(action: str, arguments: Any = None, status: int = 202, message: str | None = None, **options: Any) -> Ask:
    return Ask("POST", "/action", {action: arguments}, status, message, options)


NEW = {"version": "2.96"}
AS_ADMIN = {"roles": ADMIN}
RENAME = {"server": {"name": "renamed"}}
METADATA = {"metadata": {"role": "web", "rack": "7"}}

REQUESTS = {
    "show": _ask("GET"),
    "show-2.96": _ask("GET", **NEW),
    "show-as-admin": _ask("GET", **NEW, **AS_ADMIN),
    "show-with-query": _ask("GET", "?uuid=other"),
    "show-with-slash": _ask("GET", "/", status=404),
    "head": _ask("HEAD", status=404),
    "options": _ask("OPTIONS"),
    "patch": _ask("PATCH", "", RENAME, 404),
    "post": _ask("POST", "", RENAME, 404),
    "rename": _ask("PUT", "", RENAME),
    "rename-2.96": _ask("PUT", "", RENAME, **NEW),
    "rename-with-bad-body": _ask("PUT", "", {"server": {"name": ["renamed"]}}, 400),
    "rename-with-no-body": _ask("PUT", status=400),
    "delete": Ask("DELETE", status=204, message="terminate_instance"),
    "metadata": _ask("GET", "/metadata"),
    "metadata-add": _ask("POST", "/metadata", METADATA),
    "metadata-replace": _ask("PUT", "/metadata", METADATA),
    "metadata-with-bad-body": _ask("PUT", "/metadata", {"metadata": 7}, 400),
    "metadata-item": _ask("GET", "/metadata/place"),
    "metadata-item-set": _ask("PUT", "/metadata/place", {"meta": {"place": "here"}}),
    "metadata-item-delete": _ask("DELETE", "/metadata/place", status=204),
    "metadata-item-missing": _ask("GET", "/metadata/role", status=404),
    "tags": _ask("GET", "/tags", **NEW),
    "tags-replace": _ask("PUT", "/tags", {"tags": ["red", "blue"]}, **NEW),
    "tags-delete": _ask("DELETE", "/tags", status=204, **NEW),
    "tag": _ask("GET", "/tags/home", status=204, **NEW),
    "tag-set": _ask("PUT", "/tags/red", status=201, **NEW),
    "tag-delete": _ask("DELETE", "/tags/home", status=204, **NEW),
    "tags-before-they-were-there": _ask("GET", "/tags", status=404),
    "reboot-soft": _act("reboot", {"type": "SOFT"}, message="reboot_instance"),
    "reboot-hard": _act("reboot", {"type": "HARD"}, message="reboot_instance"),
    "reboot-with-bad-body": _act("reboot", {"type": "MEDIUM"}, 400),
    "stop": _act("os-stop", message="stop_instance"),
    "start-what-is-active": _act("os-start", status=409),
    "pause": _act("pause", message="pause_instance"),
    "suspend": _act("suspend", message="suspend_instance"),
    "rescue": _act("rescue", status=200, message="rescue_instance"),
    "resize-to-no-flavor": _act("resize", {"flavorRef": "2"}, 400),
    "migrate-with-no-compute-node": _act("migrate", status=400, **AS_ADMIN),
    "evacuate-from-a-host-that-is-up": _act("evacuate", {"onSharedStorage": "False"}, 400, **AS_ADMIN),
    "lock": _act("lock"),
    "lock-2.96": _act("lock", {"locked_reason": "mine"}, **NEW),
    "unlock": _act("unlock"),
    "change-password": _act("changePassword", {"adminPass": "secret"}, message="set_admin_password"),
    "crash-dump": _act("trigger_crash_dump", message="trigger_crash_dump", **NEW),
    "reset-state": _act("os-resetState", {"state": "error"}, **AS_ADMIN),
    "reset-state-as-member": _act("os-resetState", {"state": "error"}, 403),
    "force-delete": _act("forceDelete", message="terminate_instance"),
    "restore-what-is-not-deleted": _act("restore", status=409),
    "add-missing-security-group": _act("addSecurityGroup", {"name": "web"}, 404),
    "console-output": _act("os-getConsoleOutput", {}, 200, "get_console_output"),
    "action-unknown": _act("dance", status=400),
    "action-of-two": _ask("POST", "/action", {"os-stop": None, "os-start": None}, 400),
    "action-of-none": _ask("POST", "/action", {}, 400),
    "action-with-no-body": _ask("POST", "/action", status=400),
    "instance-actions": _ask("GET", "/os-instance-actions"),
    "instance-action": _ask("GET", f"/os-instance-actions/req-{NOTHING}"),
    "instance-action-missing": _ask("GET", f"/os-instance-actions/{NOTHING}", status=404),
    "interfaces": _ask("GET", "/os-interface"),
    "interface-detach": Ask("DELETE", f"/os-interface/{NOTHING}", None, 202, "detach_interface"),
    "security-groups": _ask("GET", "/os-security-groups"),
    "ips": _ask("GET", "/ips"),
    "ips-of-no-network": _ask("GET", "/ips/private", status=404),
    "diagnostics": Ask("GET", "/diagnostics", None, 200, "get_diagnostics", AS_ADMIN),
    "diagnostics-as-member": _ask("GET", "/diagnostics", status=403),
    "migrations": _ask("GET", "/migrations", **NEW, **AS_ADMIN),
    "migration-abort": _ask("DELETE", "/migrations/1", status=409, **NEW, **AS_ADMIN),
    "volumes": _ask("GET", "/os-volume_attachments"),
    "volume-missing": _ask("GET", f"/os-volume_attachments/{NOTHING}", status=404),
    "password": _ask("GET", "/os-server-password"),
    "password-clear": _ask("DELETE", "/os-server-password", status=204),
    "topology": _ask("GET", "/topology", **NEW),
    "shares": _ask("GET", "/shares", version="2.97"),
    "unknown-sub-resource": _ask("GET", "/dances", status=404),
}

FEW = ("show", "rename", "delete", "metadata-replace", "tags", "reboot-hard", "console-output", "action-with-no-body")
"""Those that meet each kind of instance."""

FEWEST = ["show", "rename", "reboot-hard"]
"""Those that meet each kind of uuid and caller, and each form of the URL: one reads, one writes and one sends."""


class Databases:
    """Every row that names an instance. Lives as long as the module; ``close()`` ends it."""

    def __init__(self, deployment: Deployment) -> None:
        urls = {name: place.database_connection for name, place in deployment.cells.items()}
        self._engines = {name: sa.create_engine(url) for name, url in urls.items()}
        self._engines["api"] = sa.create_engine(deployment.api_database)
        self._made: dict[Callable[[], str], str] = {}

    def rows(self, instance_uuid: str) -> dict[tuple[str, sa.Table], list[Mapping[str, Any]]]:
        """Return the rows by database and table."""
        found = {}
        for name, engine in self._engines.items():
            with engine.connect() as connection:
                for column in API_COLUMNS if name == "api" else CELL_COLUMNS:
                    selected = connection.execute(sa.select(column.table).where(column == instance_uuid))
                    if rows := list(selected.mappings()):
                        found[name, column.table] = rows
        return found

    def copy_of(self, make: Callable[[], str]) -> str:
        """Return the uuid of a copy, row by row, of what this makes, which is made once."""
        if make not in self._made:
            self._made[make] = make()
        original, copy = self._made[make], uuidutils.generate_uuid()
        for (name, table), rows in self.rows(original).items():
            copies = [
                {
                    column: value.replace(original, copy) if isinstance(value, str) else value
                    for column, value in row.items()
                    if column != "id"
                }
                for row in rows
            ]
            with self._engines[name].begin() as connection:
                connection.execute(sa.insert(table), copies)
        return copy

    def close(self) -> None:
        """Close all connections."""
        for engine in self._engines.values():
            engine.dispose()


def _columns_that_name_instances(metadata: sa.MetaData) -> list[sa.Column[str]]:
    others = ("instances.uuid", "tags.resource_id")
    return [
        column
        for table in metadata.sorted_tables
        for column in table.columns
        if column.name == "instance_uuid" or str(column) in others
    ]


CELL_COLUMNS = _columns_that_name_instances(models.BASE.metadata)
API_COLUMNS = _columns_that_name_instances(api_models.BASE.metadata)


@pytest.fixture(scope="module")
def databases(deployment: Deployment) -> Iterator[Databases]:
    """The databases of the deployment."""
    databases = Databases(deployment)
    yield databases
    databases.close()


@dataclass(frozen=True)
class Kind:
    """A kind of instance, and of caller. Lives as long as the test run.

    :ivar make: makes one, of which the instances are copies, and returns its uuid
    :ivar spell: how the path names it
    :ivar options: of ``Api.request``, whatever the request says
    """

    make: Callable[[], str]
    spell: Callable[[str], str] = str
    options: dict[str, Any] = field(default_factory=dict)


def _create(home: str, project: str = PROJECT) -> str:
    """Make an instance with rows in all cells, in which everything says whether they are those of its own cell."""
    instance_uuid = instances.create_with_decoys(home, project=project).uuid
    for cell in ALL_CELLS:
        where = "home" if cell == home else "elsewhere"
        with nova_context.target_cell(nova_context.get_admin_context(), instances.cell_mapping(cell)) as context:
            row = objects.Instance.get_by_uuid(context, instance_uuid)
            row.metadata = {"place": where}
            row.system_metadata = {"password_0": where}
            row.save()
            objects.Tag(context, resource_id=instance_uuid, tag=where).create()
            context.request_id = f"req-{NOTHING}"
            objects.InstanceAction.action_start(context, instance_uuid, where, want_result=False)
    return instance_uuid


def _in(home: str, project: str = PROJECT) -> Callable[[], str]:
    return functools.partial(_create, home, project)


def _deleted() -> str:
    instance_uuid = _create("cell1")
    instances.delete(instances.Instance(instance_uuid, "cell1", None))
    return instance_uuid


def _building() -> str:
    instance_uuid = instances.build()
    request = objects.BuildRequest.get_by_instance_uuid(nova_context.get_admin_context(), instance_uuid)
    request.instance.vm_state, request.instance.task_state = vm_states.BUILDING, task_states.SCHEDULING
    request.save()
    return instance_uuid


def _mapped_to_the_wrong_cell() -> str:
    instance_uuid = instances.create("cell2", mapped=False).uuid
    instances.map_to("cell1", instance_uuid)
    return instance_uuid


KINDS = {
    "in-cell1": Kind(_in("cell1")),
    "in-cell2": Kind(_in("cell2")),
    "in-cell0": Kind(_in("cell0")),
    "building": Kind(_building),
    "deleted": Kind(_deleted),
    "unmapped": Kind(lambda: instances.create("cell1", mapped=False).uuid),
    "unknown": Kind(uuidutils.generate_uuid),
    "mapped-to-the-wrong-cell": Kind(_mapped_to_the_wrong_cell),
    "of-another-project": Kind(_in("cell2", OTHER_PROJECT)),
    "of-another-project-as-admin": Kind(_in("cell2", OTHER_PROJECT), options=AS_ADMIN),
    "uuid-in-upper-case": Kind(_in("cell2"), str.upper),
    "uuid-without-dashes": Kind(_in("cell2"), lambda it: it.replace("-", "")),
    "uuid-in-braces": Kind(_in("cell2"), lambda it: f"{{{it}}}"),
    "uuid-with-more-behind": Kind(_in("cell2"), lambda it: f"{it}x"),
    "uuid-with-newline": Kind(_in("cell2"), lambda it: f"{it}%0A"),
    "uuid-with-format": Kind(_in("cell2"), lambda it: f"{it}.json"),
    "as-reader": Kind(_in("cell2"), options={"roles": "reader"}),
    "with-no-role": Kind(_in("cell2"), options={"roles": ""}),
    "with-no-token": Kind(_in("cell2"), options={"user": "one colon too many:"}),
    "microversion-too-high": Kind(_in("cell2"), options={"version": "2.999"}),
    "microversion-malformed": Kind(_in("cell2"), options={"version": "two"}),
}

INACTIVE = ("in-cell0", "building", "deleted")
RARE = [kind for kind in KINDS if kind not in ("in-cell1", "in-cell2", *INACTIVE)]

PREFIXES = {
    "v2.1-with-project": f"/v2.1/{PROJECT}",
    "v2": "/v2",
    "v2-with-project": f"/v2/{PROJECT}",
    "project-of-somebody-else": f"/v2.1/{OTHER_PROJECT}",
    "project-like-a-uuid": f"/v2.1/{NOTHING}",
    "two-slashes": "/v2.1/",
    "unknown-version": "/v3",
}


Answer = tuple[int, dict[str, str], Any]
"""The status, the headers and the body."""


class Mask:
    """Takes out of answers and rows what is another for each request and each instance. Lives as long as the test."""

    _PATTERNS = (
        (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "UUID"),
        (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?"), "TIME"),
        (re.compile(r"\binstance-[0-9a-f]{8}\b"), "instance-ID"),
        (re.compile(r'(?<="adminPass": ")\w+'), "PASSWORD"),
    )

    def __init__(self, instance_uuid: str, spelling: str) -> None:
        self._names = {spelling: "SPELLING", instance_uuid: "INSTANCE"}

    def text(self, text: str) -> str:
        """Return the text with names in the place of uuids, times, serial numbers and passwords."""
        for value, name in self._names.items():
            text = text.replace(value, name)
        for pattern, name in self._PATTERNS:
            text = pattern.sub(name, text)
        return text

    def answer(self, response: webob.Response) -> Answer:
        """Return what there is to compare of a response."""
        headers = {name: self.text(value) for name, value in response.headers.items()}
        body = self.text(response.text)
        is_json = body and response.content_type == "application/json" and response.text[0] in "[{"
        return response.status_int, headers, json.loads(body) if is_json else body

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row without its serial number, which is also what says that it is deleted."""
        columns = {column: self._value(value) for column, value in row.items() if column != "id"}
        if "deleted" in columns:
            columns["deleted"] = bool(columns["deleted"])
        return columns

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        return "TIME" if isinstance(value, datetime) else value


@dataclass
class Outcome:
    """All that came of the requests for an instance, masked. Lives as long as the test.

    :ivar rows: by database and table, those that name the instance
    :ivar messages: by cell, those that its host got about the instance
    """

    answers: list[Answer]
    rows: dict[str, list[dict[str, Any]]]
    messages: dict[str, list[str]]

    @property
    def status(self) -> int:
        """What was answered last."""
        return self.answers[-1][0]


@pytest.fixture
def environs(nova: Nova, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The environs of all requests behind the filter."""
    environs: list[dict[str, Any]] = []
    app = nova.filtered._app

    def remember(environ: dict[str, Any], start_response: Any) -> Any:
        environs.append(environ)
        return app(environ, start_response)

    monkeypatch.setattr(nova.filtered, "_app", remember)
    return environs


@pytest.fixture(autouse=True)
def nothing_open(
    nova: Nova, environs: list[dict[str, Any]], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> Iterator[None]:
    """After each test: no target, no connection of the filter's in use, no use of a closed lease, no warning."""
    yield
    assert not [environ for environ in environs if "cellmw.target" in environ]
    if (cells := nova.filtered.cells) is not None:
        engines = [cells._store.engine, *(handles.engine for handles in cells._pool.handles.values())]
        deadline = monotonic() + PATIENCE
        while (in_use := [engine for engine in engines if engine.pool.checkedout()]) and monotonic() < deadline:
            """Until the upkeep, which may just be reading the records, has given its connection back."""
        assert not in_use
    records = caplog.get_records("call")
    assert not [each for each in records if each.name.startswith("cellmw") and each.levelno >= logging.WARNING]
    assert not [each for each in records if "LeaseClosed" in f"{each.getMessage()} {each.exc_text}"]
    assert not [each for each in recwarn if type(each.source).__module__.startswith("cellmw")]


class Trial:
    """Makes requests, each for a new instance, and tells what came of each. Lives as long as the test."""

    def __init__(self, databases: Databases, workers: dict[str, Worker]) -> None:
        self._databases = databases
        self._workers = workers
        self._asked: list[tuple[str, Mask, list[webob.Response]]] = []

    def ask(
        self, api: Api, kind: Kind, *asks: Ask, prefix: str = "/v2.1", before: Callable[[str], None] | None = None
    ) -> None:
        """Make these requests for one new instance.

        :param before: called before that with its uuid
        """
        instance_uuid = self._databases.copy_of(kind.make)
        if before is not None:
            before(instance_uuid)
        spelling = kind.spell(instance_uuid)
        path = f"{prefix}/servers/{spelling}"
        responses = [
            api.request(ask.method, path + ask.path, ask.body, **{**ask.options, **kind.options}) for ask in asks
        ]
        self._asked.append((instance_uuid, Mask(instance_uuid, spelling), responses))

    def outcomes(self) -> list[Outcome]:
        """Return what came of all requests, for one instance after the other."""
        self._settle()
        return [
            Outcome(
                [mask.answer(response) for response in responses],
                self._rows(instance_uuid, mask),
                {cell: sorted(self._messages(worker, instance_uuid)) for cell, worker in self._workers.items()},
            )
            for instance_uuid, mask, responses in self._asked
        ]

    def _settle(self) -> None:
        """Wait until every host has taken off its queue what was sent there, and as much for each instance."""
        for cell, worker in self._workers.items():
            with nova_context.target_cell(nova_context.get_admin_context(), instances.cell_mapping(cell)) as context:
                last = objects.Instance(context, uuid=uuidutils.generate_uuid(), host=f"host-{cell}")
                rpcapi.ComputeAPI().get_console_output(context, last, None)
            for method in {method for each, *_ in self._asked for method in self._messages(worker, each)}:
                for instance_uuid, *_ in self._asked:
                    worker.wait_for(method, instance_uuid)

    def _messages(self, worker: Worker, instance_uuid: str) -> list[str]:
        return [method for method, about in list(worker.messages) if about == instance_uuid]

    def _rows(self, instance_uuid: str, mask: Mask) -> dict[str, list[dict[str, Any]]]:
        found = self._databases.rows(instance_uuid)
        return {
            f"{name}.{table.name}": sorted((mask.row(row) for row in rows), key=str)
            for (name, table), rows in found.items()
        }


@pytest.fixture
def trial(databases: Databases, workers: dict[str, Worker]) -> Trial:
    """A trial, with nothing asked yet."""
    return Trial(databases, workers)


@pytest.fixture
def compare(nova: Nova, trial: Trial) -> Callable[..., Outcome]:
    """Make requests with the filter and without it, and return what came of them, which has to be the same."""

    def compare(kind: Kind, *asks: Ask, **arguments: Any) -> Outcome:
        trial.ask(nova.plain, kind, *asks, **arguments)
        trial.ask(nova.filtered, kind, *asks, **arguments)
        plain, filtered = trial.outcomes()
        assert filtered == plain
        return filtered

    return compare


def _nothing_sent_but(**messages: list[str]) -> dict[str, list[str]]:
    return {cell: messages.get(cell, []) for cell in CELLS}


@pytest.mark.parametrize("request_id", REQUESTS)
def test_active_instances(compare: Callable[..., Outcome], environs: list[dict[str, Any]], request_id: str) -> None:
    """A request for an active instance is answered the same, and its own host gets the message."""
    ask = REQUESTS[request_id]
    outcome = compare(KINDS["in-cell1"], ask)
    assert outcome.status == ask.status
    assert outcome.messages == _nothing_sent_but(cell1=[ask.message] if ask.message else [])
    assert ["cellmw.cells" in environ for environ in environs] == [True]


@pytest.mark.parametrize("kind", INACTIVE)
@pytest.mark.parametrize("request_id", FEW)
def test_inactive_instances(compare: Callable[..., Outcome], kind: str, request_id: str) -> None:
    """A request for an instance that never got to a host, or is gone from it, is answered the same."""
    assert compare(KINDS[kind], REQUESTS[request_id]).messages == _nothing_sent_but()


@pytest.mark.parametrize("kind", RARE)
@pytest.mark.parametrize("request_id", FEWEST)
def test_odd_uuids_and_callers(compare: Callable[..., Outcome], kind: str, request_id: str) -> None:
    """A request is answered the same whatever uuid it names, and whoever makes it."""
    compare(KINDS[kind], REQUESTS[request_id])


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("request_id", FEWEST)
def test_forms_of_the_url(compare: Callable[..., Outcome], prefix: str, request_id: str) -> None:
    """A request is answered the same under every prefix that Nova serves or refuses."""
    compare(KINDS["in-cell2"], REQUESTS[request_id], prefix=PREFIXES[prefix])


@pytest.mark.parametrize("kind", ["in-cell0", "in-cell2", "building"])
def test_one_request_after_the_other(compare: Callable[..., Outcome], kind: str) -> None:
    """All requests for one instance are answered the same, in whatever state those before have left it."""
    asks = [ask for name, ask in REQUESTS.items() if "delete" not in name]
    compare(KINDS[kind], *asks, REQUESTS["delete"], *asks)


@pytest.mark.parametrize("request_id", FEW)
def test_moved(nova: Nova, compare: Callable[..., Outcome], request_id: str) -> None:
    """A request for an instance that the filter has seen in another cell a moment ago is answered the same."""

    def move(instance_uuid: str) -> None:
        response = nova.filtered.request("GET", f"/v2.1/servers/{instance_uuid}")
        assert response.json["server"]["name"] == "in-cell1"
        _map_to("cell2", instance_uuid)

    ask = REQUESTS[request_id]
    outcome = compare(KINDS["in-cell1"], ask, before=move)
    assert outcome.messages == _nothing_sent_but(cell2=[ask.message] if ask.message else [])


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_scheduled(nova: Nova, compare: Callable[..., Outcome], cell: str) -> None:
    """A request for an instance that the filter has seen without a cell a moment ago is answered by its cell."""

    def schedule(instance_uuid: str) -> None:
        response = nova.filtered.request("GET", f"/v2.1/servers/{instance_uuid}")
        assert response.json["server"]["status"] == "BUILD"
        for each in ALL_CELLS:
            instances.add_decoy(each, instance_uuid)
        _map_to(cell, instance_uuid)

    ((_, _, body),) = compare(KINDS["building"], REQUESTS["show"], before=schedule).answers
    assert body["server"]["name"] == f"in-{cell}"


def _map_to(cell: str, instance_uuid: str) -> None:
    mapping = objects.InstanceMapping.get_by_instance_uuid(nova_context.get_admin_context(), instance_uuid)
    mapping.cell_mapping = instances.cell_mapping(cell)
    mapping.save()


LISTS = {
    "versions": _ask("GET", "/"),
    "servers": _ask("GET", "/servers"),
    "servers-2.96": _ask("GET", "/servers", **NEW),
    "servers-in-detail": _ask("GET", "/servers/detail"),
    "servers-in-detail-2.96": _ask("GET", "/servers/detail", **NEW, **AS_ADMIN),
    "servers-by-name": _ask("GET", "/servers/detail?name=in-cell2"),
    "servers-by-status": _ask("GET", "/servers/detail?status=ERROR"),
    "servers-by-uuid": _ask("GET", "/servers?uuid={marker}"),
    "servers-limited": _ask("GET", "/servers/detail?limit=2"),
    "servers-behind-a-marker": _ask("GET", "/servers/detail?limit=2&marker={marker}"),
    "servers-behind-no-marker": _ask("GET", f"/servers?marker={NOTHING}", status=400),
    "servers-of-all": _ask("GET", "/servers/detail?all_tenants=1&limit=9", **AS_ADMIN),
    "servers-of-all-as-member": _ask("GET", "/servers/detail?all_tenants=1", status=403),
    "servers-deleted": _ask("GET", "/servers?deleted=true", **AS_ADMIN),
    "services": _ask("GET", "/os-services", **AS_ADMIN),
    "services-2.96": _ask("GET", "/os-services", **NEW, **AS_ADMIN),
    "hypervisors": _ask("GET", "/os-hypervisors/detail", **AS_ADMIN),
    "migrations": _ask("GET", "/os-migrations", **NEW, **AS_ADMIN),
    "flavors": _ask("GET", "/flavors/detail"),
    "limits": _ask("GET", "/limits"),
    "quotas-without-keystone": _ask("GET", "/os-quota-sets/{project}", status=400),
    "server-groups": _ask("GET", "/os-server-groups"),
    "server-group-missing": _ask("GET", "/os-server-groups/{marker}", status=404),
    "zones": _ask("GET", "/os-availability-zone"),
    "zones-in-detail": _ask("GET", "/os-availability-zone/detail", **AS_ADMIN),
    "aggregates": _ask("GET", "/os-aggregates", **AS_ADMIN),
    "keypairs": _ask("GET", "/os-keypairs"),
    "no-events": _ask("POST", "/os-server-external-events", {"events": []}, 400, **AS_ADMIN),
    "unknown": _ask("GET", "/dances/{marker}", status=404),
}


@pytest.fixture(scope="module")
def project(whole_nova: Nova) -> dict[str, str]:
    """A project that has an instance in every cell and one being built, and the uuid of one of them."""
    project = uuid.uuid4().hex
    created = [instances.create(cell, project=project) for cell in ALL_CELLS]
    instances.build(project=project)
    return {"project": project, "marker": created[1].uuid}


@pytest.mark.parametrize("request_id", LISTS)
def test_requests_for_no_instance(nova: Nova, project: dict[str, str], request_id: str) -> None:
    """A request whose path names no instance is answered the same."""
    ask = LISTS[request_id]
    path = f"/v2.1{ask.path.format(**project)}"
    options = {"project": project["project"], **ask.options}
    mask = Mask(project["marker"], project["marker"])
    plain, filtered = [
        mask.answer(api.request(ask.method, path, ask.body, **options)) for api in (nova.plain, nova.filtered)
    ]
    assert plain == filtered
    assert filtered[0] == ask.status


def test_list_of_servers(nova: Nova, project: dict[str, str]) -> None:
    """A list has the instances of all cells, and those that have none yet."""
    response = nova.filtered.request("GET", "/v2.1/servers", project=project["project"])
    names = sorted(server["name"] for server in response.json["servers"])
    assert names == ["in-cell0", "in-cell0", "in-cell1", "in-cell2"]


@pytest.mark.parametrize("kind", ["in-cell0", "in-cell1", "in-cell2", "building", "unknown"])
def test_events(nova: Nova, databases: Databases, kind: str) -> None:
    """Events, which name their instances in the body, are answered the same."""
    answers = []
    for api in (nova.plain, nova.filtered):
        instance_uuid = databases.copy_of(KINDS[kind].make)
        body = {"events": [{"name": "network-changed", "server_uuid": instance_uuid}]}
        response = api.request("POST", "/v2.1/os-server-external-events", body, roles=ADMIN)
        answers.append(Mask(instance_uuid, instance_uuid).answer(response))
    assert answers[0] == answers[1]


@pytest.fixture
def forget_cells(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Make Nova forget what it keeps of the cells; what it kept before comes back after the test."""
    caches: list[dict[str, Any]] = []

    def forget() -> None:
        caches.append({})
        monkeypatch.setattr(nova_context, "CELL_CACHE", caches[-1])

    yield forget
    for cache in caches:
        close_cells(cache)


@pytest.mark.parametrize("request_id", FEW)
def test_cell0_first_met_behind_the_filter(
    nova: Nova, trial: Trial, databases: Databases, forget_cells: Callable[[], None], request_id: str
) -> None:
    """What Nova keeps of a request for cell0 behind the filter changes no later answer, with it or without."""
    instance_uuid = databases.copy_of(KINDS["in-cell0"].make)
    forget_cells()
    trial.ask(nova.plain, KINDS["in-cell0"], REQUESTS[request_id])
    forget_cells()
    nova.filtered.request("GET", f"/v2.1/servers/{instance_uuid}")
    trial.ask(nova.plain, KINDS["in-cell0"], REQUESTS[request_id])
    trial.ask(nova.filtered, KINDS["in-cell0"], REQUESTS[request_id])
    before, without, with_filter = trial.outcomes()
    assert without == with_filter == before


def test_no_lease_is_kept(
    nova: Nova, databases: Databases, forget_cells: Callable[[], None], environs: list[dict[str, Any]]
) -> None:
    """What Nova keeps of its first requests for each cell refers to no lease."""
    uuids = [databases.copy_of(KINDS[f"in-{cell}"].make) for cell in ALL_CELLS]
    before = _leases()
    forget_cells()
    for instance_uuid in uuids:
        nova.filtered.request("GET", f"/v2.1/servers/{instance_uuid}")
    # the context of its last request is kept for the log
    nova.plain.request("GET", "/v2.1/servers")
    environs.clear()
    assert not [lease for lease in _leases() if lease not in before]


def _leases() -> list[Lease]:
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, Lease)]


SETTINGS = {
    "unmapped": ("404", {"unmapped", "unknown"}),
    "project_check": ("true", {"of-another-project"}),
    "building": ("409", {"building"}),
}
"""What lets the filter answer itself, and for which kinds."""


@pytest.mark.parametrize("option", SETTINGS)
def test_settings(nova: Nova, databases: Databases, workers: dict[str, Worker], option: str) -> None:
    """With a setting by which the filter answers itself, answers differ for those kinds of instances only."""
    value, kinds = SETTINGS[option]
    file = nova.deployment.folder / f"api-paste-{option}.ini"
    write_paste_ini(file, CELLS_INI, settings={option: value})
    strict = load(nova.deployment, file)
    differ = set()
    for name, kind in KINDS.items():
        trial = Trial(databases, workers)
        for api in (nova.plain, strict):
            trial.ask(api, kind, REQUESTS["show"], REQUESTS["action-with-no-body"], REQUESTS["rename"])
        plain, filtered = trial.outcomes()
        if filtered.answers != plain.answers:
            differ.add(name)
    assert strict.cells is not None
    strict.cells.close()
    assert differ == kinds


def test_many_threads(nova: Nova, databases: Databases, workers: dict[str, Worker]) -> None:
    """Requests of many threads at once, for instances of both cells, are each answered by the right cell."""
    uuids = {cell: [databases.copy_of(KINDS[f"in-{cell}"].make) for _ in range(4)] for cell in CELLS}
    barrier = threading.Barrier(THREADS)

    def ask(number: int) -> list[str]:
        answers = []
        barrier.wait()
        for turn in range(SHOWS):
            cell = CELLS[(number + turn) % len(CELLS)]
            path = f"/v2.1/servers/{uuids[cell][turn % 4]}"
            shown = nova.filtered.request("GET", path).json["server"]["name"]
            console = nova.filtered.request("POST", f"{path}/action", {"os-getConsoleOutput": {}}).json["output"]
            if (shown, console) != (f"in-{cell}", f"get_console_output in {cell}"):
                answers.append(f"{cell}: {shown}, {console}")
        return answers

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(ask, range(THREADS))) == [[]] * THREADS
