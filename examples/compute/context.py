# SPDX-License-Identifier: Apache-2.0
"""X-Project-Id, X-User-Id and X-Roles -> the context of the request, in the environ.

It believes these headers. A real service has keystonemiddleware's ``authtoken`` in front, which checks a token, removes
what the client claims to be and sets them from what Keystone says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oslo_middleware import base
from webob import exc

import cellmw

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

CONTEXT = "cellmw.context"
"""Environ key of the context: what ``context_key`` names in the section of the cells filter."""


class ContextFilter(base.ConfigurableMiddleware):
    """Puts a ``cellmw.RequestContext`` into the environ; who names no project gets a 401. Lives as long as the process.

    A service that has a context class and a filter of its own keeps both.
    """

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Pass the request on with its context, untouched otherwise."""
        context = cellmw.RequestContext.from_environ(environ)
        if not context.project_id:
            return exc.HTTPUnauthorized("X-Project-Id is missing")(environ, start_response)
        environ[CONTEXT] = context
        return self.application(environ, start_response)
