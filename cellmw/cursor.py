# SPDX-License-Identifier: Apache-2.0
"""Where a page ended <-> the opaque, signed text from which the next page goes on.

The text has the sort values of the page's last row in it, so that nobody has to look that row up again: it may be
deleted meanwhile, and its cell may be down. It is signed, not encrypted: whoever has it can read the values of the
columns that the list is sorted by.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hmac
import json
import uuid
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from cellmw.exceptions import BadCursor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Order = tuple[tuple[str, str], ...]
"""What a list is sorted by: names of columns, each with ``"asc"`` or ``"desc"``; the unique one is the last."""

_VERSION = "1"
"""How a cursor begins. Another one is for what is signed, or written, in another way."""

_SIGNATURE_SIZE = 32


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page ended. Lives as long as the request.

    :ivar values: those of the last row's sort columns; none before the first row
    :ivar down: ids of the cells that are not asked any more, as their rows are to come from the instance mappings
    :ivar given: ids of the cells that such rows are not to come of, as the list has had rows of their own
    :ivar mapped: the last uuid out of the instance mappings, empty before the first; None where the cells' own rows are
        not over yet
    """

    values: tuple[Any, ...] = ()
    down: frozenset[int] = frozenset()
    given: frozenset[int] = frozenset()
    mapped: str | None = None


class Cursors:
    """Makes cursors and reads them. Lives as long as the process, or the call; immutable."""

    def __init__(self, secret: str) -> None:
        """Sign with this secret, which all workers of the service have to have.

        :raises ValueError: if it is empty
        """
        if not secret:
            raise ValueError("an empty secret signs nothing")
        self._secret = secret.encode()

    def write(self, order: Order, position: Position) -> str:
        """Return the text, of letters, digits, ``-`` and ``_``, for the page after this position.

        :raises TypeError: if a value is of a type that no list is sorted by
        """
        content: dict[str, Any] = {"s": order, "v": [_pack(value) for value in position.values]}
        if position.down:
            content["d"] = sorted(position.down)
        if position.given:
            content["g"] = sorted(position.given)
        if position.mapped is not None:
            content["m"] = position.mapped
        payload = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
        return _VERSION + base64.urlsafe_b64encode(self._sign(payload) + payload).decode().rstrip("=")

    def read(self, text: str, order: Order) -> Position:
        """Return the position that this text was made for.

        :raises BadCursor: if it was not made with this secret, or for a list that is sorted in another way
        """
        if not text.startswith(_VERSION):
            raise BadCursor("it is not one of this version")
        try:
            data = base64.b64decode(text[1:] + "=" * (-len(text[1:]) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise BadCursor("it is damaged") from None
        signature, payload = data[:_SIGNATURE_SIZE], data[_SIGNATURE_SIZE:]
        if not hmac.compare_digest(signature, self._sign(payload)):
            raise BadCursor("its signature is wrong")
        content = json.loads(payload.decode("utf-8", "surrogatepass"))
        made_for = tuple((name, direction) for name, direction in content["s"])
        if made_for != order:
            raise BadCursor(f"it is for a list that is sorted by {_phrase(made_for)}, not by {_phrase(order)}")
        return Position(
            tuple(_unpack(value) for value in content["v"]),
            frozenset(content.get("d", ())),
            frozenset(content.get("g", ())),
            content.get("m"),
        )

    def _sign(self, payload: bytes) -> bytes:
        return hmac.digest(self._secret, b"cellmw cursor " + _VERSION.encode() + b"\0" + payload, "sha256")


def _phrase(order: Order) -> str:
    return ", ".join(f"{name} {direction}" for name, direction in order)


_PACKERS: dict[type, tuple[str, Callable[[Any], str], Callable[[str], Any]]] = {
    Decimal: ("decimal", str, Decimal),
    datetime.datetime: ("datetime", datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    datetime.date: ("date", datetime.date.isoformat, datetime.date.fromisoformat),
    bytes: ("bytes", bytes.hex, bytes.fromhex),
    uuid.UUID: ("uuid", str, uuid.UUID),
}
"""Type -> its name in a cursor, and how its values get there and back."""

_UNPACKERS = {name: unpack for name, _, unpack in _PACKERS.values()}


def _pack(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    try:
        name, pack, _ = _PACKERS[type(value)]
    except KeyError:
        raise TypeError(f"no list is sorted by values of type {type(value).__name__}") from None
    return [name, pack(value)]


def _unpack(packed: Any) -> Any:
    if isinstance(packed, list):
        pair: Sequence[str] = packed
        return _UNPACKERS[pair[0]](pair[1])
    return packed
