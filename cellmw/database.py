# SPDX-License-Identifier: Apache-2.0
"""Context -> a SQLAlchemy Session on its cell's database.

::

    with database.reader(context) as session:
        instance = session.get(Instance, uuid)

    @database.writer
    def rename(context, uuid, name):
        context.session.get(Instance, uuid).name = name

A context that was never targeted gets what oslo.db's own ``enginefacade.reader`` and ``writer`` give: the service's
``[database] connection``. Both go through oslo.db's enginefacade, so blocks nest and join as they do there.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from oslo_db.exception import CantStartEngineError
from oslo_db.sqlalchemy import enginefacade

from cellmw.exceptions import NotTargeted

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

P = ParamSpec("P")
R = TypeVar("R")


class _Door:
    """``reader`` or ``writer``: takes a context, or a function to decorate. Lives as long as the process; immutable."""

    def __init__(self, mode: str) -> None:
        self._mode = mode

    @overload
    def __call__(self, context: Callable[P, R]) -> Callable[P, R]: ...

    @overload
    def __call__(self, context: Any) -> contextlib.AbstractContextManager[Session]: ...

    def __call__(self, context: Any) -> Any:
        """Give a block with a Session on the context's cell, or decorate a function that takes a context.

        :param context: the context; or a function, whose first argument (the second of a method) is one, and which
            finds the session as ``context.session``
        :raises LeaseClosed: if the request that the context was targeted for has ended
        :raises NotTargeted: if the context was never targeted and ``[database] connection`` is not set
        """
        return self._decorate(context) if inspect.isroutine(context) else self._transaction(context).using(context)

    def _transaction(self, context: Any) -> Any:
        view = getattr(context, "db_connection", None)
        if view is not None:
            return getattr(view, self._mode)
        default = getattr(enginefacade, self._mode)
        try:
            default.get_engine()
        except CantStartEngineError as missing:
            raise NotTargeted("the context is aimed at no cell, and [database] connection is not set") from missing
        return default

    def _decorate(self, function: Callable[P, R]) -> Callable[P, R]:
        names = list(inspect.signature(function).parameters)
        index = 1 if names[0] in ("self", "cls") else 0
        name = names[index]

        @functools.wraps(function)
        def with_session(*args: P.args, **kwargs: P.kwargs) -> R:
            context = args[index] if len(args) > index else kwargs[name]
            with self._transaction(context).using(context):
                return function(*args, **kwargs)

        return with_session


reader = _Door("reader")
"""A block that only reads."""

writer = _Door("writer")
"""A block that writes, and commits at its end."""
