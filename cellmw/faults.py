# SPDX-License-Identifier: Apache-2.0
"""An error of ours -> the answer that the client gets, as JSON in the shape that Nova's clients parse.

Which error means which answer is decided here and nowhere else. The log names the cell; the body does so only to an
admin; neither ever shows a URL.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import webob.exc

from cellmw import exceptions

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

LOG = logging.getLogger(__name__)

RETRY_AFTER = 5
"""Seconds after which a client may try again what a 503 refused."""

_NAMES = {
    400: "badRequest",
    403: "forbidden",
    404: "itemNotFound",
    409: "conflictingRequest",
    500: "computeFault",
    503: "serviceUnavailable",
}

_NOT_FOUND = (webob.exc.HTTPNotFound, "Instance {uuid} could not be found.")
_BAD_HEADER = (webob.exc.HTTPBadRequest, "A header that routing or the deadline goes by can't be read.")
_FORGED = (webob.exc.HTTPForbidden, "The header that says which instance this is has no valid signature.")
_BUILDING = (webob.exc.HTTPConflict, "The instance is still being built.")
_NO_QUEUE = (webob.exc.HTTPConflict, "The instance never reached a host, so this can't be done to it.")
_TRY_LATER = (webob.exc.HTTPServiceUnavailable, "The service for this instance is not available at the moment.")
_BAD_LIST = (webob.exc.HTTPBadRequest, "")
_CELLS_MISSING = (webob.exc.HTTPServiceUnavailable, "Some of the cells do not answer at the moment.")
_BROKEN = (webob.exc.HTTPInternalServerError, "The request could not be routed: tell the operator.")

_ANSWERS: dict[type, tuple[type[webob.exc.WSGIHTTPException], str]] = {
    exceptions.HeaderMalformed: _BAD_HEADER,
    exceptions.HeaderNotSigned: _FORGED,
    exceptions.InstanceNotMapped: _NOT_FOUND,
    exceptions.InstanceBuilding: _BUILDING,
    exceptions.InstanceHeld: _TRY_LATER,
    exceptions.CellHasNoTransport: _NO_QUEUE,
    exceptions.StoreUnavailable: _TRY_LATER,
    exceptions.ListingError: _BAD_LIST,
    exceptions.CellsMissing: _CELLS_MISSING,
    exceptions.CellsClosed: _TRY_LATER,
    exceptions.CellUnavailable: _TRY_LATER,
    exceptions.CellBusy: _TRY_LATER,
    exceptions.CellDrained: _TRY_LATER,
    exceptions.DeadlineExceeded: _TRY_LATER,
}
"""Every other error of ours is a mistake in the deployment: _BROKEN."""

ESCAPED = (
    exceptions.CellDrained,
    exceptions.CellHasNoTransport,
    exceptions.CellsMissing,
    exceptions.CellUnavailable,
    exceptions.DeadlineExceeded,
    exceptions.InstanceHeld,
    exceptions.ListingError,
)
"""Errors of ours that are answered when the app lets them escape; any other that escapes stays the app's error."""


_WANTED = (exceptions.CellDrained, exceptions.InstanceHeld)
"""What an operator does on purpose, and is not to be told of as if it were an accident."""


def fault(error: Exception, environ: WSGIEnvironment, *, admin: bool) -> webob.exc.WSGIHTTPException:
    """Return the answer to this error, a WSGI application, and log what the operator has to know.

    :param admin: whether the caller may read the error's own message, which names the cell
    """
    answer, message = next((_ANSWERS[kind] for kind in type(error).__mro__ if kind in _ANSWERS), _BROKEN)
    request_id = environ.get("openstack.request_id")
    code: int = answer.code
    if code >= 500:
        level = logging.INFO if isinstance(error, _WANTED) else logging.ERROR
        LOG.log(level, "request %s: answered %d: %s", request_id, code, error, exc_info=code == 500)
    if answer is webob.exc.HTTPNotFound:
        message = message.format(uuid=getattr(error, "instance_uuid", ""))
    elif admin or not message:  # what is wrong with a list's parameters is for whoever has sent them
        message = str(error)
    environ.setdefault("REQUEST_METHOD", "GET")  # a WebOb answer looks it up, also where a server sets none
    response = answer()
    if code == 503:
        response.retry_after = RETRY_AFTER
    body: dict[str, Any] = {"code": code, "message": message}
    if request_id:
        body["request_id"] = request_id
    response.content_type = "application/json"
    response.charset = None
    response.body = json.dumps({_NAMES[code]: body}).encode()
    return response
