# SPDX-License-Identifier: Apache-2.0
"""Context + lease -> a targeted context, and back.

The attributes are those by which Nova's own database and RPC layers route: ``db_connection``, ``mq_connection`` and
``cell_uuid``. Which environ key holds the context is the filter's business.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import oslo_context.context
from oslo_db.sqlalchemy import enginefacade

from cellmw.lease import DatabaseView, NoTransport, TransportView, new_view

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed.wsgi import WSGIEnvironment

    from cellmw.lease import Lease

Before = tuple[Any, DatabaseView, TransportView | NoTransport, tuple[Any, Any, Any]]
"""A context, the views that were put on it, and the ``db_connection``, ``mq_connection`` and ``cell_uuid`` it had."""


@enginefacade.transaction_context_provider
class RequestContext(oslo_context.context.RequestContext):
    """oslo.context's RequestContext with the attributes that aim it at a cell. Lives as long as one request.

    The filter makes one by ``from_environ`` where the pipeline has no context of its own. The attributes are no part of
    ``to_dict()``, of what is logged or of what goes into a message.
    """

    db_connection: DatabaseView | None = None
    mq_connection: TransportView | NoTransport | None = None
    cell_uuid: str | None = None


class ContextLoan:
    """A context that was made for a request which brought none. Lives as long as the request; ``end()`` takes it back.

    oslo.context keeps the newest context of each thread, for the log: what was there before is put back, unless the
    response ends in another thread, which has its own.
    """

    status = "on loan"  # what the app answers is the trip's to see
    lease = None  # and how far the body is

    def __init__(self, environ: WSGIEnvironment, key: str, make: Callable[[WSGIEnvironment], RequestContext]) -> None:
        self._environ = environ
        self._key = key
        self._before = oslo_context.context.get_current()
        self._context = environ[key] = make(environ)

    def end(self) -> None:
        """Take the context out of the environ and out of oslo.context's memory."""
        self._environ.pop(self._key, None)
        if oslo_context.context.get_current() is self._context:
            if self._before is None:
                del oslo_context.context._request_store.context
            else:
                self._before.update_store()

    def rescue(self, error: Exception) -> None:
        """Let every error through: what there is to answer, the trip has answered."""


def target(context: Any, lease: Lease) -> Before | None:
    """Aim the context at the lease's cell: set ``db_connection``, ``mq_connection`` and ``cell_uuid``.

    :returns: what :func:`untarget` takes; None where the context was aimed at no cell before, and so nothing is to be
        undone: the views stay on the context, closed, and whoever still holds it then gets LeaseClosed instead of the
        service's default database and bus
    """
    try:
        aimed = context.db_connection is not None or context.mq_connection is not None
    except AttributeError:
        aimed = False
    before = (context.db_connection, context.mq_connection, context.cell_uuid) if aimed else None
    handles = lease._handles or lease.handles  # the second raises where there are none any more
    database = new_view(DatabaseView)
    database._lease = lease
    transport: TransportView | NoTransport
    if handles.queue is None:
        transport = NoTransport(lease.cell, handles.conf)
    else:
        transport = new_view(TransportView)
        transport._lease = lease
    context.db_connection = database
    context.mq_connection = transport
    context.cell_uuid = lease.cell.uuid
    return None if before is None else (context, database, transport, before)


def untarget(before: Before) -> None:
    """Bring back the target that was there before, and leave alone whatever the application has put in its place."""
    context, ours, our_transport, (database, transport, cell_uuid) = before
    if context.db_connection is ours:
        context.db_connection = database
        context.cell_uuid = cell_uuid
    if context.mq_connection is our_transport:
        context.mq_connection = transport


def copy_context(context: Any) -> Any:
    """Return a copy of the context that is aimed at no cell."""
    copied = copy.copy(context)
    if getattr(copied, "db_connection", None) is not None or getattr(copied, "mq_connection", None) is not None:
        copied.db_connection = copied.mq_connection = copied.cell_uuid = None
    # a transaction that is open on the original is not one on the copy's cell
    vars(copied).pop("_enginefacade_context", None)
    return copied
