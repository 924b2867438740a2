# SPDX-License-Identifier: Apache-2.0
"""X-Auth-Token -> the headers that keystonemiddleware's filter sets: the only thing replaced in Nova's api-paste.ini.

A token is the name of its user, the project and the roles, with colons between: ``alice:PROJECT:member,reader``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class AuthToken:
    """Believes every token. Lives as long as the pipeline."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        token = environ.get("HTTP_X_AUTH_TOKEN", "")
        if token.count(":") != 2:
            start_response("401 Unauthorized", [("Content-Length", "0")])
            return []
        user, project, roles = token.split(":")
        environ |= {
            "HTTP_X_IDENTITY_STATUS": "Confirmed",
            "HTTP_X_USER_ID": user,
            "HTTP_X_PROJECT_ID": project,
            "HTTP_X_ROLES": roles,
        }
        return self._app(environ, start_response)


def filter_factory(global_conf: dict[str, Any], **local_conf: Any) -> Callable[[WSGIApplication], AuthToken]:
    """Make the filter for PasteDeploy."""
    return AuthToken
