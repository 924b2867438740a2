# SPDX-License-Identifier: Apache-2.0
"""A request -> a call of the test's own, with the context that Nova's filters and ours have made.

It stands at the end of Nova's pipeline, where Nova's own application stands otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

CALL_KEY = "tests.nova.call"
"""Environ key of what is called, with the environ."""


def _app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    environ[CALL_KEY](environ)
    start_response("204 No Content", [])
    return []


def app_factory(global_conf: dict[str, Any], **local_conf: Any) -> WSGIApplication:
    """Make the application for PasteDeploy."""
    return _app
