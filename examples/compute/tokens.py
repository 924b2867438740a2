# SPDX-License-Identifier: Apache-2.0
"""Console tokens: a look-up by something that no mapping says the cell of, so that all cells are asked at once.

A user who wants a console is given a token, which the cell of the instance keeps. The proxy that is then called with it
asks here what it stands for, and nobody but that cell knows.
"""

from __future__ import annotations

import hashlib
from time import monotonic
from typing import TYPE_CHECKING, Any

import webob
from sqlalchemy import String, orm
from webob import exc

from cellmw import database
from cellmw.scatter import scatter
from cellmw.selection import without_cell0
from examples.compute.context import CONTEXT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    import cellmw

PATIENCE = 2.0
"""Seconds that cells which do not answer are waited for."""


class Base(orm.DeclarativeBase):
    """The tables of this example, which each cell's database has."""


class ConsoleToken(Base):
    """What a token stands for. The token itself is not kept: who can read the table can't use it."""

    __tablename__ = "console_auth_tokens"

    token_hash: orm.Mapped[str] = orm.mapped_column(String(64), primary_key=True)
    instance_uuid: orm.Mapped[str] = orm.mapped_column(String(36))
    host: orm.Mapped[str] = orm.mapped_column(String(255))
    port: orm.Mapped[int]


def hashed(token: str) -> str:
    """Return what is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


class TokensAPI:
    """GET /os-console-auth-tokens/TOKEN. Lives as long as the process."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        request = webob.Request(environ)
        if request.path_info_pop() != "os-console-auth-tokens":
            return exc.HTTPNotFound()(environ, start_response)
        return self._show(request, request.path_info_pop() or "")(environ, start_response)

    def _show(self, request: webob.Request, token: str) -> webob.Response:
        cells, token_hash = request.environ["cellmw.cells"], hashed(token)

        def find(context: cellmw.RequestContext) -> dict[str, Any] | None:
            with database.reader(context) as session:
                row = session.get(ConsoleToken, token_hash)
                return row and {"instance_uuid": row.instance_uuid, "host": row.host, "port": row.port}

        results = scatter(
            request.environ[CONTEXT],
            cells,
            find,
            deadline=monotonic() + PATIENCE,
            among=without_cell0(cells),  # whose instances are nowhere, and have no console
            enough=bool,
        )
        for result in results:
            if result.value:
                return webob.Response(json_body={"console": result.value})
        if all(result.status == "ok" for result in results):
            return exc.HTTPNotFound("no cell knows this token")
        return exc.HTTPServiceUnavailable("a cell that may know this token does not answer")
