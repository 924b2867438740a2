# SPDX-License-Identifier: Apache-2.0
"""Context -> a SQLAlchemy Session on its cell's database.

::

    with database.reader(context) as session:
        instance = session.get(Instance, uuid)

    @database.writer
    def rename(context, uuid, name):
        context.session.get(Instance, uuid).name = name

``database.reader.async_`` reads from a replica where there is one, as oslo.db's does.

A context whose class takes part in oslo.db's enginefacade goes through that, so blocks nest and join as they do there.
Any other gets a plain Session, a new one for each block. A context that was never targeted gets what oslo.db's own
``enginefacade.reader`` and ``writer`` give: the service's ``[database] connection``.
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
    from collections.abc import Callable, Iterator

    from sqlalchemy.orm import Session

P = ParamSpec("P")
R = TypeVar("R")


class _Door:
    """``reader`` or ``writer``: takes a context, or a function to decorate. Lives as long as the process; immutable."""

    def __init__(self, *modifiers: str) -> None:
        self._modifiers = modifiers

    @property
    def async_(self) -> _Door:
        """The same door to a read replica, whose data may be a little old.

        :raises TypeError: for a writer
        """
        if "writer" in self._modifiers:
            raise TypeError("a replica can't be written to")
        return _Door(*self._modifiers, "async_")

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
        :raises TypeError: if a decorated function gets a context whose class takes no part in oslo.db's enginefacade
        """
        if inspect.isroutine(context):
            return self._decorate(context)
        transaction = self._transaction(context)
        return transaction.using(context) if _takes_part(context) else _plain_session(transaction)

    def _transaction(self, context: Any) -> Any:
        """Return the oslo.db transaction context of the context's cell, or of the service's own database."""
        view = getattr(context, "db_connection", None)
        transaction = functools.reduce(getattr, self._modifiers, enginefacade if view is None else view)
        if view is None:
            try:
                transaction._factory.get_writer_engine()
            except CantStartEngineError as missing:
                raise NotTargeted("the context is aimed at no cell, and [database] connection is not set") from missing
        return transaction

    def _decorate(self, function: Callable[P, R]) -> Callable[P, R]:
        names = list(inspect.signature(function).parameters)
        index = 1 if names[0] in ("self", "cls") else 0
        name = names[index]

        @functools.wraps(function)
        def with_session(*args: P.args, **kwargs: P.kwargs) -> R:
            context = args[index] if len(args) > index else kwargs[name]
            if not _takes_part(context):
                raise TypeError(
                    f"{function.__qualname__}() finds no session on a {type(context).__name__}: decorate its class "
                    "with oslo.db's enginefacade.transaction_context_provider, or use the block form"
                )
            with self._transaction(context).using(context):
                return function(*args, **kwargs)

        return with_session


def _takes_part(context: Any) -> bool:
    return hasattr(type(context), "transaction_ctx")


@contextlib.contextmanager
def _plain_session(transaction: Any) -> Iterator[Session]:
    with transaction._factory._create_session(transaction._mode) as session:
        yield session
        if transaction._mode is enginefacade._WRITER:
            session.commit()


reader = _Door("reader")
"""A block that only reads."""

writer = _Door("writer")
"""A block that writes, and commits at its end."""
