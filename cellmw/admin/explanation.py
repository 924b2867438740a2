# SPDX-License-Identifier: Apache-2.0
"""A path or a uuid -> what the filter would answer to a request for it, and why: each step, as it goes now.

The answer is not worked out here. It is that of a real filter, with an app behind it that only writes down what has
arrived; what stands around it is what the filter has gone by. Nothing is changed anywhere: what would be put into the
shared cache is not.
"""

from __future__ import annotations

import hmac
import logging
import re
from contextlib import ExitStack, contextmanager
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import unquote_to_bytes, urlsplit

from oslo_utils import timeutils

from cellmw import conf as options
from cellmw import deploy
from cellmw.admin.health import UNUSABLE, CellHealth, Health, probe
from cellmw.cell import CELL0_UUID
from cellmw.context import RequestContext
from cellmw.deadline import after
from cellmw.exceptions import CellmwError, CellNotFound, CellUnavailable, InstanceNotMapped
from cellmw.filter import CellFilter
from cellmw.headers import PROJECT_HEADER
from cellmw.mapping import SHORT_TTL
from cellmw.routes import Routes
from cellmw.trip import TARGET_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from oslo_config import cfg

    from cellmw.cell import Cell
    from cellmw.cells import Cells
    from cellmw.handles import Handles
    from cellmw.limits import Limits
    from cellmw.shared_cache import Entry, SharedMappings
    from cellmw.store import InstanceMapping, Store

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

_VERSION = "v2.1"
"""What stands for ``{version}`` in a path that is made up."""

_ANYTHING = "any"
"""What stands for every other name in braces."""


class Step(NamedTuple):
    """One thing that the filter goes by, or the end of it.

    :ivar result: what was found
    :ivar why: what it comes from, and what follows; can be empty
    """

    step: str
    result: str
    why: str


class Explanation(NamedTuple):
    """What was found out.

    :ivar steps: in the order of a request
    :ivar passes: whether the app behind the filter gets the request
    """

    steps: list[Step]
    passes: bool


class Caller(NamedTuple):
    """Who makes the request.

    :ivar project_id: None for the project of the instance
    """

    project_id: str | None = None
    is_admin: bool = False


def is_uuid(text: str) -> bool:
    """Tell whether this is the uuid of an instance, as a path has it."""
    return _UUID.fullmatch(text) is not None


def explain(conf: cfg.ConfigOpts, subject: str, caller: Caller, *, patience: float) -> Explanation:
    """Explain what becomes of a request.

    :param conf: changed by this; it is what the filter goes by
    :param subject: a path, a whole URL, or the uuid of an instance
    :param patience: seconds after which each thing that does not answer is given up
    :raises ConfigError: if the filter could not be made by this configuration
    """
    settings = deploy.settings(conf)
    # it is an operator who waits, and what is shared with the workers is only looked at
    conf.set_override("request_deadline", min(patience, settings.request_deadline), group=options.GROUP)
    conf.set_override("shared_cache", False, group=options.GROUP)
    with _quietly():
        return _Inquiry(conf, settings, caller, patience).of(subject)


class _Inquiry:
    """One explanation, while it is made."""

    def __init__(self, conf: cfg.ConfigOpts, settings: options.Settings, caller: Caller, patience: float) -> None:
        self._conf = conf
        self._settings = settings
        self._caller = caller
        self._patience = patience
        self._limits = deploy.limits(deploy.settings(conf))
        self._steps: list[Step] = []

    def of(self, subject: str) -> Explanation:
        if not self._settings.enabled:
            self._add("answer", "passes through", "[cellmw] enabled is false: so does every request")
            return Explanation(self._steps, passes=True)
        environ = self._environ(subject)
        with ExitStack() as opened:
            instance_uuid = self._instance(environ, subject)
            if self._settings.role == "cell":
                self._add("mapping", "none is looked up", "role = cell: each request is for the service's own cell")
                with deploy.cells(self._conf) as cells:
                    health = self._probe(cells.local())
                return Explanation(self._steps, self._answer(environ, opened, health=health))
            if instance_uuid is None:
                return Explanation(self._steps, self._answer(environ, opened))
            store = opened.enter_context(deploy.store(self._conf, self._limits))
            shared = deploy.shared_mappings(self._conf, self._settings)
            if shared is not None:
                opened.callback(shared.close)
            row = self._mapping(store, instance_uuid)
            entry = self._shared_cache(shared, instance_uuid, row)
            self._own_cache(row)
            health = self._cells_of(store, instance_uuid, row, entry)
            self._project(environ, row, entry)
            return Explanation(self._steps, self._answer(environ, opened, row=row, shared=shared, health=health))

    def _add(self, step: str, result: str, *why: str) -> None:
        self._steps.append(Step(step, result, "; ".join(filter(None, why))))

    def _environ(self, subject: str) -> WSGIEnvironment:
        """Make the request's environ, as a server would."""
        whence = ""
        path = subject
        if is_uuid(subject) and not self._settings.routes:
            path = f"/{subject}"
            whence = "[cellmw] routes is empty, so no path names an instance"
        elif is_uuid(subject):
            path = self._made_up(subject)
            whence = "made for this uuid from the first of [cellmw] routes"
        elif not subject.startswith("/"):
            path = urlsplit(subject).path or "/"
            whence = "of this URL"
        self._add("path", path, whence)
        context = RequestContext(project_id=self._caller.project_id, is_admin=self._caller.is_admin)
        decoded = unquote_to_bytes(path.partition("?")[0]).decode("latin-1")
        environ = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": decoded,
            self._settings.context_key: context,
        }
        if self._settings.instance_header is not None and is_uuid(subject):
            environ |= self._headers(subject)
        return environ

    def _made_up(self, instance_uuid: str) -> str:
        names = {"instance_uuid": instance_uuid, "version": _VERSION}
        if self._caller.project_id:
            names["project_id"] = self._caller.project_id
        return re.sub(r"\{([a-z_]+)\}", lambda name: names.get(name[1], _ANYTHING), self._settings.routes[0])

    def _headers(self, instance_uuid: str) -> dict[str, str]:
        """Sign as the proxy does that stands in front of a metadata API."""
        name = str(self._settings.instance_header)
        secret = (self._settings.instance_header_secret or "").encode()
        return {
            _environ_key(name): instance_uuid,
            _environ_key(f"{name}-Signature"): hmac.new(secret, instance_uuid.encode(), "sha256").hexdigest(),
        }

    def _instance(self, environ: WSGIEnvironment, subject: str) -> str | None:
        if self._settings.instance_header is not None:
            found = subject if is_uuid(subject) else None
            way = f"header {self._settings.instance_header}" if found else "none"
            why = "[cellmw] instance_header is set: no route counts"
            self._add("route", way, why, "" if found else "give the uuid of an instance in place of a path")
        else:
            found = self._match(environ)
        if found is not None:
            is_lower = found == found.lower()
            self._add("instance", found.lower(), "" if is_lower else "looked up in lower case, as the filter does")
        return found and found.lower()

    def _match(self, environ: WSGIEnvironment) -> str | None:
        """Try the routes one by one, and return the uuid as it stands in the path."""
        tried: list[str] = []
        for template in self._settings.routes:
            instance_uuid = Routes([template]).instance_uuid(environ)
            if instance_uuid is not None:
                self._add("route", template, f"tried before it: {', '.join(tried)}" if tried else "the first of them")
                at = environ["PATH_INFO"].lower().index(f"/{instance_uuid}") + 1
                return cast("str", environ["PATH_INFO"][at : at + len(instance_uuid)])
            tried.append(template)
        self._add("route", "none", f"tried: {', '.join(tried)}")
        return None

    def _mapping(self, store: Store, instance_uuid: str) -> InstanceMapping | None:
        try:
            row = store.find_instance(instance_uuid, after(self._patience))
            made, changed = store.find_dates(instance_uuid, after(self._patience))
        except CellmwError as error:
            self._add("mapping", "not known", str(error))
            return None
        if row is None:
            self._add("mapping", "none", f"there is no row in instance_mappings: unmapped = {self._settings.unmapped}")
            return None
        where = "no cell yet" if row.cell_id is None else f"cell id {row.cell_id}"
        building = f"still being built: building = {self._settings.building}" if row.cell_id is None else ""
        deletion = "its deletion has begun" if row.queued_for_delete else ""
        result = f"{where}, project {row.project_id}, user {row.user_id or 'not recorded'}"
        if row.queued_for_delete:
            result += ", queued for deletion"
        self._add("mapping", result, building, deletion, _dated("made", made), _dated("changed", changed))
        if changed is not None and (age := _age(changed)) < self._settings.mapping_ttl:
            left = _seconds(self._settings.mapping_ttl - age)
            self._add("changed", f"{_seconds(age)} ago", f"workers may go by what it said before for {left} more")
        return row

    def _shared_cache(
        self, shared: SharedMappings | None, instance_uuid: str, row: InstanceMapping | None
    ) -> Entry | None:
        if shared is None:
            self._add("shared cache", "there is none", "[cellmw] shared_cache is false")
            return None
        with _overheard() as said:
            entry = shared.get(instance_uuid, after(self._patience))
        if entry is None:
            self._add("shared cache", "has no entry", *said)
            return None
        age = max(0.0, time() - entry.asked_at)
        fresh = age <= self._settings.mapping_ttl
        use = (
            "a worker that does not know the instance goes by it"
            if fresh
            else "older than mapping_ttl: used only while the API database does not answer"
        )
        said_by_row = None if row is None else (row.cell_id, row.project_id, row.queued_for_delete)
        agrees = "as the row has it" if said_by_row == tuple(entry[:3]) else "NOT as the row has it"
        result = f"cell id {entry.cell_id}, project {entry.project_id}, {_seconds(age)} old"
        self._add("shared cache", result, agrees if row is not None else "", use)
        return entry

    def _own_cache(self, row: InstanceMapping | None) -> None:
        """Say how far the caches of workers may lag: nobody but the worker itself can look into one."""
        settings = self._settings
        ttl, older = min(settings.mapping_ttl, SHORT_TTL), ""
        if row is not None and row.cell_id is not None:
            ttl = settings.mapping_ttl
            older = f"up to {_seconds(settings.stale_ttl)} older while the API database does not answer (stale_ttl)"
        nobody = "each worker has one of its own, which nobody else can see"
        self._add("worker's cache", f"up to {_seconds(ttl)} old", nobody, older)

    def _cells_of(
        self, store: Store, instance_uuid: str, row: InstanceMapping | None, entry: Entry | None
    ) -> dict[Cell, CellHealth]:
        """Say which cell it is, whether anything is held back, and whether it answers; of two, where they differ."""
        by_row = None if row is None else row.cell_id
        by_entry = None if entry is None else entry.cell_id
        health: dict[Cell, CellHealth] = {}
        cells = [self._find_cell(by_row)]
        if by_entry != by_row:
            cells.append(self._find_cell(by_entry, "by the shared cache"))
        self._held_back(store, cells, instance_uuid)
        for cell in filter(None, cells):
            health |= self._probe(cell)
        return health

    def _probe(self, cell: Cell) -> dict[Cell, CellHealth]:
        health = probe(self._conf, [cell], self._limits, self._patience)
        database, queue = health[cell]
        # a record that nobody can use is no cell that is down: it is not opened at all
        is_opened = not database.says.startswith(UNUSABLE)
        is_down, has_no_queue = is_opened and not database.answers, is_opened and queue.answers is False
        self._add("database", database.says, f"down_cell = {self._settings.down_cell}" if is_down else "")
        self._add("queue", queue.says, "each use of it raises CellUnavailable" if has_no_queue else "")
        return health

    def _find_cell(self, cell_id: int | None, whence: str = "") -> Cell | None:
        if cell_id is None:
            return None
        try:
            with deploy.cells(self._conf, operators=True) as cells:
                cell = cells.get(cell_id, after(self._patience))
        except CellNotFound:
            self._add("cell", "none", whence, f"no cell with the id {cell_id} is recorded: the mapping dangles")
            return None
        except CellmwError as error:
            self._add("cell", "not known", str(error))
            return None
        disabled = "disabled: it gets no new instances, and those in it are served" if cell.disabled else ""
        cell0 = "the cell of instances that no cell could take; it has no queue" if cell.uuid == CELL0_UUID else ""
        self._add("cell", f"{cell.name or 'no name'} ({cell.uuid})", whence, disabled, cell0)
        return cell

    def _held_back(self, store: Store, cells: Sequence[Cell | None], instance_uuid: str) -> None:
        try:
            held = store.list_held(after(self._patience))
        except CellmwError as error:
            self._add("held back", "not known", str(error))
            return
        names = {cell.uuid: cell for cell in cells if cell is not None}
        for drained in held.cells:
            if drained.cell_uuid in names:
                result = f"{names[drained.cell_uuid]} is drained"
                self._add("held back", result, drained.reason or "", _dated("since", drained.since))
        for instance in held.instances:
            if instance.instance_uuid == instance_uuid and _age(instance.until) < 0:
                self._add("held back", "the instance is being moved", _dated("until", instance.until))

    def _project(self, environ: WSGIEnvironment, row: InstanceMapping | None, entry: Entry | None) -> None:
        """Say who asks and whose the instance is; where nobody has said who asks, it is the instance's own project."""
        mapping = row or entry
        context = environ[self._settings.context_key]
        if self._caller.project_id is None and mapping is not None:
            context.project_id = mapping.project_id
        if self._settings.instance_header is not None and context.project_id:
            environ[_environ_key(PROJECT_HEADER)] = context.project_id
        who = f"asked by project {context.project_id}" if context.project_id else "asked by no project"
        if self._caller.is_admin:
            who += ", an admin"
        whose = f"the instance is of project {mapping.project_id}" if mapping is not None else ""
        self._add("project", who, f"project_check = {str(self._settings.project_check).lower()}", whose)

    def _answer(
        self,
        environ: WSGIEnvironment,
        opened: ExitStack,
        *,
        row: InstanceMapping | None = None,
        shared: SharedMappings | None = None,
        health: dict[Cell, CellHealth] | None = None,
    ) -> bool:
        """Have a filter answer, and say what it has answered; true if the app got the request."""
        app = _App()
        cell_filter = _Filter(app, self._conf)
        cell_filter.close()  # which are connected to nothing yet, and would write to the shared cache
        cells = self._cells(health or {}, shared)
        opened.callback(cells.close)
        cell_filter.use(cells)
        status: list[Any] = []

        def start_response(*answer: Any) -> Any:
            status.extend(answer)

        body = cell_filter(environ, start_response)
        list(body)
        getattr(body, "close", bool)()
        if app.environ_seen:
            self._add("answer", *app.told(self._settings))
            return True
        line, headers = status[:2]
        retry = dict(headers).get("Retry-After")
        self._add("answer", line + (f", Retry-After: {retry}" if retry else ""), *_reasons(cell_filter.refused, row))
        return False

    def _cells(self, health: dict[Cell, CellHealth], shared: SharedMappings | None) -> Cells:
        """Make the cells of a worker that starts now, and has met of each cell what the probes have met."""

        def open_handles(cell: Cell, conf: cfg.ConfigOpts, limits: Limits) -> Handles:
            handles = deploy.open_handles(cell, conf, limits)
            met = health.get(cell)
            if met is not None and met.database.answers is False:
                handles.database.breaker.failed(_cause(met.database))
            if met is not None and met.queue.answers is False and handles.queue is not None:
                handles.queue.breaker.failed(_cause(met.queue))
            return handles

        read_only = None if shared is None else cast("SharedMappings", _ReadOnly(shared))
        return deploy.cells(self._conf, opener=open_handles, shared=lambda conf, chosen: read_only)


def _cause(health: Health) -> str:
    """Say why something does not answer, without that it does not."""
    return health.says.removeprefix("does not answer: ")


class _Filter(CellFilter):
    """The filter, which also remembers what it has refused a request for."""

    refused: Exception | None = None

    def answer(self, error: Exception, environ: WSGIEnvironment) -> WSGIApplication:
        """Return the answer to this error."""
        self.refused = error
        return super().answer(error, environ)


class _App:
    """Stands for the service: answers every request with 200, and remembers what has arrived."""

    environ_seen = False

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        self.environ_seen = True
        trip = environ.get(TARGET_KEY)
        self._state = None if trip is None else trip.state
        self._cell = None if trip is None or trip.cell is None else str(trip.cell)
        self._down = () if trip is None else trip.down
        start_response("200 OK", [])
        return [b""]

    def told(self, settings: options.Settings) -> tuple[str, str]:
        """Return what the app was told, and why."""
        if self._state is None:
            return "passes through", "it is for no instance: nothing is attached, and the app answers"
        why = {
            "targeted": "",
            "local": "[cellmw] role = cell",
            "cell0": "a message can't be sent: CellHasNoTransport",
            "building": f"untargeted: building = {settings.building}",
            "unmapped": f"untargeted: unmapped = {settings.unmapped}",
            "down": f"down_cell = {settings.down_cell}: each use of the database raises CellUnavailable",
        }[self._state]
        result = f"{self._state}: the app answers" + (f", aimed at {self._cell}" if self._cell else "")
        if "queue" in self._down:
            why = "; ".join(filter(None, (why, "its queue is down: each use of it raises CellUnavailable")))
        return result, why


class _ReadOnly:
    """The shared cache, of which nothing is changed. Lives as long as one explanation."""

    def __init__(self, shared: SharedMappings) -> None:
        self.get = shared.get
        self.close = shared.close

    def put(self, *_: object) -> None:
        """Leave it."""

    def delete(self, *_: object) -> None:
        """Leave it."""


def _reasons(refused: Exception | None, row: InstanceMapping | None) -> Iterator[str]:
    """Say why the filter has refused a request."""
    if isinstance(refused, InstanceNotMapped) and row is not None:
        yield "it is not the instance of the project that asks: answered as if there were none (project_check)"
        return
    yield str(refused)
    if isinstance(refused, CellUnavailable):
        yield "so answers a worker that has met it; the requests by which it does wait for it"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s"


def _environ_key(header: str) -> str:
    return f"HTTP_{header.upper().replace('-', '_')}"


def _dated(what: str, at: datetime | None) -> str:
    return "" if at is None else f"{what} {at:%Y-%m-%d %H:%M:%S} UTC"


def _age(at: datetime) -> float:
    return (timeutils.utcnow() - at).total_seconds()


class _Ear(logging.Handler):
    """Takes what is logged, in place of the log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """What cellmw logs in a with block."""
    ear = _Ear()
    logger = logging.getLogger("cellmw")
    logger.addHandler(ear)
    try:
        yield ear.said
    finally:
        logger.removeHandler(ear)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what the filter would log out of the log, unless it is for debugging: nothing has happened to anybody."""
    logger = logging.getLogger("cellmw")
    nobody, before = logging.NullHandler(), logger.propagate
    logger.addHandler(nobody)
    logger.propagate = before and logger.getEffectiveLevel() <= logging.DEBUG
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(nobody)
