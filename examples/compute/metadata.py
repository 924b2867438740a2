# SPDX-License-Identifier: Apache-2.0
"""The metadata API: what an instance gets to know of itself, out of its own cell.

The requests come from inside the instances, by a proxy that says in a signed header which instance asks. The cells
filter has checked that and aimed the context; etc/metadata-paste.ini is the pipeline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import webob
from webob import exc

from cellmw import database
from examples.compute.context import CONTEXT
from examples.compute.models import Instance

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

PATH = "/openstack/latest/meta_data.json"


class MetadataAPI:
    """The WSGI application. Lives as long as the process."""

    @classmethod
    def factory(cls, global_conf: dict[str, str], **local_conf: str) -> MetadataAPI:
        """Make it for paste.deploy."""
        return cls()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        request = webob.Request(environ)
        target = environ.get("cellmw.target")
        if target is None:
            response: webob.Response = exc.HTTPBadRequest("this request did not come by the metadata proxy")
        elif request.path_info != PATH:
            response = exc.HTTPNotFound()
        else:
            response = self._metadata(request, target.instance_uuid)
        return response(environ, start_response)

    def _metadata(self, request: webob.Request, instance_uuid: str) -> webob.Response:
        with database.reader(request.environ[CONTEXT]) as session:
            instance = session.get(Instance, instance_uuid)
            if instance is None:
                return exc.HTTPNotFound()
            return webob.Response(
                json_body={"uuid": instance.uuid, "name": instance.name, "project_id": instance.project_id}
            )
