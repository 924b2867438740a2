# SPDX-License-Identifier: Apache-2.0
"""A context and the arguments of a message -> what goes over the wire, and back.

What stays where it is: handles, which are of no use elsewhere, and URLs, which are nobody else's business.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import oslo_context.context
import oslo_messaging
from oslo_messaging.transport import Transport

from cellmw import conf as options
from cellmw.cell import Cell
from cellmw.cell_result import CellResult
from cellmw.context import RequestContext
from cellmw.lease import DatabaseView

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from oslo_config import cfg

_PLAIN = (str, int, float, bool, type(None), bytes)

_HANDLES = (Transport, DatabaseView)

_REMOTE = "_Remote"
"""What oslo.messaging puts behind the name of an exception's class that came back from a remote call."""


class _Tag:
    """The one key of a dict that stands for something else, whose value says for what."""

    CELL = "cellmw.cell"
    CONTEXT = "cellmw.context"
    RESULT = "cellmw.cell_result"
    DICT = "cellmw.dict"
    """A dict of the sender's own whose one key is one of these."""


_TAGS = frozenset((_Tag.CELL, _Tag.CONTEXT, _Tag.RESULT, _Tag.DICT))


class ContextSerializer(oslo_messaging.NoOpSerializer):
    """Sends a context as its ``to_dict()`` and gives the receiver a RequestContext.

    What arrives is not aimed at any cell. A context, a Cell and a CellResult can also stand anywhere in the arguments
    or in the reply; a Cell arrives without its URLs, and the error of a CellResult as an
    ``oslo_messaging.RemoteError``. Everything else passes as it is.
    """

    def __init__(
        self,
        context_class: type[RequestContext] = RequestContext,
        attributes: Collection[str] = options.CONTEXT_ATTRIBUTES,
    ) -> None:
        """Serialize contexts.

        :param context_class: what the receiver gets, made by its ``from_dict``
        :param attributes: the keys of ``to_dict()`` that are sent
        """
        self._context_class = context_class
        self._attributes = frozenset(attributes)

    @classmethod
    def configured(cls, conf: cfg.ConfigOpts) -> ContextSerializer:
        """Make one that sends what ``[cellmw] context_attributes`` says."""
        options.register_opts(conf)
        return cls(attributes=conf[options.GROUP].context_attributes)

    def serialize_context(self, context: Any) -> dict[str, Any]:
        if isinstance(context, dict):
            # whoever has a dict has chosen what is in it
            return {key: value for key, value in context.items() if not isinstance(value, _HANDLES)}
        return {key: value for key, value in context.to_dict().items() if key in self._attributes}

    def deserialize_context(self, context: dict[str, Any]) -> RequestContext:
        return self._context_class.from_dict(context)

    def serialize_entity(self, context: Any, entity: Any) -> Any:
        """Make plain data of what is ours.

        :raises TypeError: if it is a handle
        """
        if isinstance(entity, _PLAIN):
            return entity
        if isinstance(entity, dict):
            plain = {key: self.serialize_entity(context, value) for key, value in entity.items()}
            return {_Tag.DICT: plain} if len(plain) == 1 and not _TAGS.isdisjoint(plain) else plain
        if isinstance(entity, (list, tuple, set, frozenset)):
            return [self.serialize_entity(context, each) for each in entity]
        if isinstance(entity, Cell):
            return {_Tag.CELL: [entity.id, entity.uuid, entity.name, entity.disabled]}
        if isinstance(entity, oslo_context.context.RequestContext):
            return {_Tag.CONTEXT: self.serialize_context(entity)}
        if isinstance(entity, CellResult):
            value = self.serialize_entity(context, entity.value)
            error = None if entity.error is None else _described(entity.error)
            return {_Tag.RESULT: [self.serialize_entity(context, entity.cell), entity.status, value, error]}
        if isinstance(entity, _HANDLES):
            raise TypeError(f"{entity!r} can't be sent: the handles of a cell stay in their process")
        return entity

    def deserialize_entity(self, context: Any, entity: Any) -> Any:
        """Make of plain data what it was made of. What only looks as if it were ours stays as it is."""
        if isinstance(entity, list):
            return [self.deserialize_entity(context, each) for each in entity]
        if not isinstance(entity, dict):
            return entity
        if len(entity) == 1:
            match entity:
                case {_Tag.CELL: [int(id_), str(uuid), str() | None as name, bool(disabled)]}:
                    return Cell(id_, uuid, name, disabled, None, None)
                case {_Tag.CONTEXT: dict(values)}:
                    with current_context_kept():
                        return self.deserialize_context(values)
                case {_Tag.RESULT: [plain, str(status), value, [str(), str()] | None as error]}:
                    cell = self.deserialize_entity(context, plain)
                    if isinstance(cell, Cell):
                        remote = error and oslo_messaging.RemoteError(*error)
                        return CellResult(cell, status, self.deserialize_entity(context, value), remote)
                case {_Tag.DICT: dict(entity)}:
                    pass
        return {key: self.deserialize_entity(context, value) for key, value in entity.items()}


@contextlib.contextmanager
def current_context_kept() -> Iterator[None]:
    """Leave the thread's current context, which the log shows, what it is: oslo.context makes it each new one."""
    before = oslo_context.context.get_current()
    try:
        yield
    finally:
        if before is not None:
            before.update_store()
        elif oslo_context.context.get_current() is not None:
            del oslo_context.context._request_store.context


def _described(error: BaseException) -> list[str]:
    if isinstance(error, oslo_messaging.RemoteError):  # which says of another one what we would
        return [str(error.exc_type), str(error.value)]
    return [type(error).__name__.removesuffix(_REMOTE), str(error)]
