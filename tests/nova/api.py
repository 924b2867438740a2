# SPDX-License-Identifier: Apache-2.0
"""A deployment -> Nova's API in this process, with the filter and without it."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from unittest import mock

import webob
from nova import context, rpc
from nova.api.openstack import wsgi_app
from oslo_messaging.transport import RPCTransport
from paste import deploy

from tests.nova.instances import PROJECT, USER
from tests.nova.probe import CALL_KEY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from _typeshed.wsgi import WSGIApplication

    from cellmw.cells import Cells
    from tests.nova.deployment import Deployment


class Api:
    """One pipeline of Nova's API. Lives as long as the process."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app
        self.cells: Cells | None = None

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        project: str = PROJECT,
        roles: str = "member,reader",
        user: str = USER,
        version: str | None = None,
        headers: dict[str, str] | None = None,
        call: Callable[[dict[str, Any]], None] | None = None,
    ) -> webob.Response:
        """Make a request and read the response to its end.

        :param body: sent as JSON
        :param version: the microversion
        :param call: what the probe calls
        """
        request = webob.Request.blank(path, method=method, headers=headers or {})
        request.headers["X-Auth-Token"] = f"{user}:{project}:{roles}"
        request.headers["Accept"] = "application/json"
        if version is not None:
            request.headers["OpenStack-API-Version"] = f"compute {version}"
        if body is not None:
            request.content_type = "application/json"
            request.body = json.dumps(body).encode()
        request.environ[CALL_KEY] = call
        response = request.get_response(self._app)
        response.body  # noqa: B018 - reads it
        response.app_iter.close() if hasattr(response.app_iter, "close") else None
        self.cells = request.environ.get("cellmw.cells", self.cells)
        return response


def load(deployment: Deployment, paste_ini: Path, name: str = "osapi_compute") -> Api:
    """Load a pipeline as nova.wsgi.osapi_compute does; the first one configures the process."""
    settings = {
        "OS_NOVA_CONFIG_DIR": str(deployment.folder),
        "OS_NOVA_CONFIG_FILES": f"{paste_ini.name};{deployment.config_file.name}",
    }
    with mock.patch.dict(os.environ, settings), mock.patch.object(sys, "argv", ["nova-api"]):
        if name != "osapi_compute":
            return Api(deploy.loadapp(f"config:{paste_ini}", name=name))
        return Api(wsgi_app.init_application(name, "nova-api-os-compute"))


def close() -> None:
    """Close what Nova itself keeps open as long as the process: its transports, and its engines for the cells."""
    rpc.cleanup()
    close_cells()


def close_cells(cache: dict[str, Any] | None = None) -> None:
    """Close what Nova keeps open of its cells, in its own cache or in one that stood in its place."""
    cache = context.CELL_CACHE if cache is None else cache
    handles = list(cache.values())
    cache.clear()
    for database, _ in handles:
        database.dispose_pool()
    with ThreadPoolExecutor() as threads:  # each takes seconds after calls
        list(threads.map(_clean_up, [transport for _, transport in handles]))


def _clean_up(transport: RPCTransport | None) -> None:
    # for cell0, which has no queue, Nova may have kept what stood for it in a request
    if type(transport) is RPCTransport:
        transport.cleanup()
