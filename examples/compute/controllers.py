# SPDX-License-Identifier: Apache-2.0
"""The compute API: list, show, create, reboot, delete, and a console that is streamed.

No controller names a cell or knows of one: the cells filter has aimed ``context`` at the instance's own cell before the
request arrives here, ``database.reader(context)`` reads there, and ``client(context)`` sends there. A request for a
list names no instance, and is aimed nowhere: ``lists.py`` has all cells asked.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Any

import oslo_messaging
import webob
from webob import exc

from cellmw import database, rpc
from cellmw.exceptions import NotTargeted, StoreUnavailable
from examples.compute.context import CONTEXT
from examples.compute.lists import next_link, page_of
from examples.compute.models import Instance, view
from examples.compute.scheduler import MEMORY, Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from sqlalchemy import orm

    import cellmw

TARGET = oslo_messaging.Target(topic="compute", version="1.0")
"""Where the workers listen, each on its own cell's queue."""

_UUID = "(?P<instance_uuid>[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})"
_ROUTES = [
    ("GET", re.compile("/servers"), "index"),
    ("GET", re.compile("/servers/detail"), "detail"),
    ("POST", re.compile("/servers"), "create"),
    ("GET", re.compile(f"/servers/{_UUID}"), "show"),
    ("DELETE", re.compile(f"/servers/{_UUID}"), "delete"),
    ("POST", re.compile(f"/servers/{_UUID}/action"), "action"),
    ("GET", re.compile(f"/servers/{_UUID}/console"), "console"),
]

FAULTS = {
    400: "badRequest",
    403: "forbidden",
    404: "itemNotFound",
    409: "conflictingRequest",
    503: "serviceUnavailable",
}
"""The names that clients of such an API know."""


@database.reader
def get_instance(context: cellmw.RequestContext, instance_uuid: str) -> dict[str, Any]:
    """Return what the API shows of an instance."""
    return view(find(context.session, instance_uuid))


def find(session: orm.Session, instance_uuid: str) -> Instance:
    """Find an instance in the cell of this session, or answer 404."""
    instance = session.get(Instance, instance_uuid)
    if instance is None:
        raise exc.HTTPNotFound(f"Instance {instance_uuid} could not be found.")
    return instance


class Servers:
    """What can be done with servers. Lives as long as the process; threads share it."""

    def __init__(self, compute_rpc: rpc.ClientRouter, down_cells: str, cursor_secret: str) -> None:
        """Send everything to where the context is aimed; only what is new is sent where the scheduler chooses.

        :param down_cells: what a list has of a cell that does not answer
        :param cursor_secret: what the links to the next page are signed with
        """
        self._compute_rpc = compute_rpc
        self._down_cells = down_cells
        self._cursor_secret = cursor_secret
        self._scheduler = Scheduler(compute_rpc)

    def index(self, request: webob.Request) -> webob.Response:
        """GET /servers?sort_key=name&sort_dir=asc&limit=N: ids and names"""
        return self._list(request, ("id", "name"))

    def detail(self, request: webob.Request) -> webob.Response:
        """GET /servers/detail"""
        return self._list(request)

    def create(self, request: webob.Request) -> webob.Response:
        """POST /servers {"server": {"name": ..., "flavor": ...}}: accepted, and built in the background."""
        wanted = body_of(request, "server")
        if not isinstance(wanted.get("name"), str) or wanted.get("flavor") not in MEMORY:
            raise exc.HTTPBadRequest(f"a server has a name and one of the flavors {', '.join(MEMORY)}")
        instance_uuid = self._scheduler.build(cells_of(request), context_of(request), wanted["name"], wanted["flavor"])
        return webob.Response(status=202, json_body={"server": {"id": instance_uuid}})

    def show(self, request: webob.Request, instance_uuid: str) -> webob.Response:
        """GET /servers/UUID"""
        return webob.Response(json_body={"server": get_instance(context_of(request), instance_uuid)})

    def action(self, request: webob.Request, instance_uuid: str) -> webob.Response:
        """POST /servers/UUID/action {"reboot": {}}: accepted, and done in the background."""
        body_of(request, "reboot")
        context = context_of(request)
        get_instance(context, instance_uuid)
        self._compute_rpc.client(context).cast(context, "reboot", instance_uuid=instance_uuid)
        return webob.Response(status=202)

    def delete(self, request: webob.Request, instance_uuid: str) -> webob.Response:
        """DELETE /servers/UUID: in the background where a host has to let go of it, here and now where none has it."""
        context = context_of(request)
        with database.writer(context) as session:
            instance = find(session, instance_uuid)
            on_a_host = instance.host is not None
            if not on_a_host:
                session.delete(instance)
        if on_a_host:
            self._compute_rpc.client(context).cast(context, "delete", instance_uuid=instance_uuid)
        cells_of(request).mappings.queue_for_delete(instance_uuid)
        return webob.Response(status=204)

    def console(self, request: webob.Request, instance_uuid: str) -> webob.Response:
        """GET /servers/UUID/console?lines=N: written line by line, each read from the cell when its turn comes."""
        lines = request.GET.get("lines", "100")
        if not lines.isdecimal():
            raise exc.HTTPBadRequest("lines has to be a number")
        context = context_of(request)
        get_instance(context, instance_uuid)
        return webob.Response(content_type="text/plain", app_iter=self._lines(context, instance_uuid, int(lines)))

    def _list(self, request: webob.Request, keys: tuple[str, ...] = ()) -> webob.Response:
        page = page_of(
            request,
            context_of(request),
            cells_of(request),
            down_cells=self._down_cells,
            secret=self._cursor_secret,
        )
        body: dict[str, Any] = {"servers": [listed(request, row, keys) for row in page.rows]}
        if links := next_link(request, page):
            body["servers_links"] = links
        return webob.Response(json_body=body)

    def _lines(self, context: cellmw.RequestContext, instance_uuid: str, lines: int) -> Iterator[bytes]:
        for number in range(lines):
            instance = get_instance(context, instance_uuid)
            yield f"{instance['name']} {number:07d} {instance['status']} on {instance['host']}\n".encode()


def context_of(request: webob.Request) -> cellmw.RequestContext:
    """Return the context, which the cells filter has aimed at the instance's own cell."""
    return request.environ[CONTEXT]


def cells_of(request: webob.Request) -> cellmw.Cells:
    """Return the cells, for what concerns the mapping of an instance."""
    return request.environ["cellmw.cells"]


def body_of(request: webob.Request, key: str) -> dict[str, Any]:
    """Return what the JSON body has under its one key, or answer 400."""
    try:
        body = request.json_body[key]
    except (ValueError, KeyError, TypeError):
        body = None
    if not isinstance(body, dict):
        raise exc.HTTPBadRequest(f'the body has to be {{"{key}": {{...}}}}')
    return body


class ComputeAPI:
    """The WSGI application. Lives as long as the process."""

    def __init__(self, down_cells: str = "partial", cursor_secret: str = "") -> None:
        """Open nothing: what a request needs, the cells filter has opened.

        :param down_cells: what a list has of a cell that does not answer: ``partial``, ``skip`` or ``fail``
        :param cursor_secret: what the links to the next page are signed with, the same in all workers; by default one
            that no other worker has
        """
        # the API has no message queue of its own: it sends to cells only
        router = rpc.ClientRouter(None, target=TARGET)
        self._servers = Servers(router, down_cells, cursor_secret or secrets.token_hex())

    @classmethod
    def factory(cls, global_conf: dict[str, str], **local_conf: str) -> ComputeAPI:
        """Make it for paste.deploy."""
        return cls(**local_conf)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        request = webob.Request(environ)
        try:
            handle, arguments = self._find_handler(request)
            response = handle(request, **arguments)
        except exc.HTTPError as error:
            response = fault(error)
        except UnicodeDecodeError:
            response = fault(exc.HTTPBadRequest("The URL is not UTF-8."))
        except NotTargeted:
            response = fault(exc.HTTPConflict("The instance is still being scheduled."))
        except StoreUnavailable:
            response = fault(exc.HTTPServiceUnavailable("No server can be created or deleted at the moment."))
        return response(environ, start_response)

    def _find_handler(self, request: webob.Request) -> tuple[Callable[..., webob.Response], dict[str, str]]:
        for method, path, name in _ROUTES:
            if request.method == method and (match := path.fullmatch(request.path_info)):
                arguments = {key: value.lower() for key, value in match.groupdict().items()}
                return getattr(self._servers, name), arguments
        raise exc.HTTPNotFound("The resource could not be found.")


def listed(request: webob.Request, row: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return what a list shows of a server.

    :param row: its row, or, where its cell does not answer, what is known of it
    :param keys: all that is shown of a row, everything where there are none
    """
    shown = row if isinstance(row, dict) else view(row)
    if keys and shown is not row:
        shown = {key: shown[key] for key in keys}
    return shown | {"links": [{"rel": "self", "href": f"{request.application_url}/servers/{shown['id']}"}]}


def fault(error: exc.HTTPError) -> webob.Response:
    """Render an error in the shape that clients of such an API parse."""
    name = FAULTS.get(error.code, "computeFault")
    return webob.Response(status=error.status, json_body={name: {"code": error.code, "message": error.detail}})
