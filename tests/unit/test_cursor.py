# SPDX-License-Identifier: Apache-2.0
"""Where a page ended -> text -> where the next one begins."""

from __future__ import annotations

import base64
import hmac
import re
import uuid
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from cellmw.cursor import Cursors, Position
from cellmw.exceptions import BadCursor

ORDER = (("name", "desc"), ("uuid", "asc"))
POSITION = Position(("a", "u1"))

VALUES = [
    "",
    "a b\n\0",
    "\u20ac \U0001f600",
    "\udc80",
    0,
    -(2**63),
    True,
    False,
    None,
    0.1,
    1e300,
    float("-inf"),
    Decimal("0.10"),
    Decimal("NaN"),
    b"",
    b"\0\xff",
    uuid.UUID(int=7),
    date(2026, 1, 31),
    datetime(2026, 1, 31, 12, 0, 0, 1),
    datetime(2026, 1, 31, tzinfo=UTC),
    datetime(2026, 1, 31, tzinfo=timezone(timedelta(hours=-5, minutes=-30))),
]


@pytest.fixture
def cursors() -> Cursors:
    """What makes and reads cursors."""
    return Cursors("the secret")


@pytest.mark.parametrize("value", VALUES, ids=ascii)
def test_value(cursors: Cursors, value: Any) -> None:
    """A value of each type that lists are sorted by comes back as it was, of its own type."""
    (read,) = cursors.read(cursors.write(ORDER, Position((value,))), ORDER).values
    assert (type(read), repr(read)) == (type(value), repr(value))


@pytest.mark.parametrize(
    "position",
    [
        Position(),
        Position(("a", 1)),
        Position(("a", 1), frozenset({2, 10}), frozenset({3})),
        Position(("a", 1), frozenset({2}), frozenset(), ""),
        Position((), frozenset({2}), frozenset(), "u1"),
    ],
)
def test_position(cursors: Cursors, position: Position) -> None:
    """All that a position knows comes back."""
    assert cursors.read(cursors.write(ORDER, position), ORDER) == position


def test_text_is_for_urls(cursors: Cursors) -> None:
    """The text can stand in a query as it is, whatever is in it."""
    texts = [cursors.write(ORDER, Position((character * 3,))) for character in map(chr, range(256))]
    assert all(re.fullmatch("[A-Za-z0-9_-]+", text) for text in texts)


def test_workers_agree(cursors: Cursors) -> None:
    """What one process has made another one with the same secret reads, and would have made alike."""
    text = cursors.write(ORDER, POSITION)
    assert Cursors("the secret").read(text, ORDER) == POSITION
    assert Cursors("the secret").write(ORDER, POSITION) == text


def test_tampered(cursors: Cursors) -> None:
    """A text in which any one character is another one is not read."""
    text = cursors.write(ORDER, POSITION)
    for place in range(len(text) - 1):  # of the last character two bits may be padding
        other = "A" if text[place] != "A" else "B"
        with pytest.raises(BadCursor):
            cursors.read(text[:place] + other + text[place + 1 :], ORDER)


def test_characters_of_no_cursor(cursors: Cursors) -> None:
    """Nor one that has other characters in it, which carry nothing."""
    text = cursors.write(ORDER, POSITION)
    for strange in "\n .?":
        with pytest.raises(BadCursor, match="it is damaged"):
            cursors.read(text[:10] + 4 * strange + text[10:], ORDER)


def test_signed_for_something_else(cursors: Cursors) -> None:
    """Nor what the service has signed with the same secret for another purpose."""
    payload = b'{"s":[["name","desc"],["uuid","asc"]],"v":["a","u1"]}'
    signature = hmac.digest(b"the secret", payload, "sha256")
    text = "1" + base64.urlsafe_b64encode(signature + payload).decode().rstrip("=")
    with pytest.raises(BadCursor, match="its signature is wrong"):
        cursors.read(text, ORDER)


def test_cut(cursors: Cursors) -> None:
    """Nor is the beginning of a text."""
    text = cursors.write(ORDER, POSITION)
    for size in range(len(text)):
        with pytest.raises(BadCursor):
            cursors.read(text[:size], ORDER)


@pytest.mark.parametrize("text", ["1?", "1\u20ac", "1a b", "1====", "1\n", "1+/8"])
def test_damaged(cursors: Cursors, text: str) -> None:
    """Nor is what is no cursor at all."""
    with pytest.raises(BadCursor):
        cursors.read(text, ORDER)


def test_other_version(cursors: Cursors) -> None:
    """A text of another version is named as such."""
    with pytest.raises(BadCursor, match="it is not one of this version"):
        cursors.read("2" + cursors.write(ORDER, POSITION)[1:], ORDER)


def test_other_secret(cursors: Cursors) -> None:
    """What was signed with another secret is not read."""
    with pytest.raises(BadCursor, match="its signature is wrong"):
        Cursors("another secret").read(cursors.write(ORDER, POSITION), ORDER)


@pytest.mark.parametrize(
    ("order", "phrase"),
    [
        ((("name", "asc"), ("uuid", "asc")), "name asc, uuid asc"),
        ((("uuid", "asc"),), "uuid asc"),
        ((("size", "desc"), ("uuid", "asc")), "size desc, uuid asc"),
    ],
)
def test_other_sort(cursors: Cursors, order: tuple[tuple[str, str], ...], phrase: str) -> None:
    """A cursor of a list that was sorted in another way is refused, and both ways are named."""
    with pytest.raises(BadCursor, match=f"sorted by name desc, uuid asc, not by {phrase}$"):
        cursors.read(cursors.write(ORDER, POSITION), order)


def test_empty_secret() -> None:
    """An empty secret is refused."""
    with pytest.raises(ValueError, match="empty"):
        Cursors("")


@pytest.mark.parametrize("value", [object(), timedelta(1), 1j, ["a"]], ids=lambda value: type(value).__name__)
def test_type_of_no_list(cursors: Cursors, value: Any) -> None:
    """A value of a type that is not known is refused, by the type's name."""
    with pytest.raises(TypeError, match=f"of type {type(value).__name__}$"):
        cursors.write(ORDER, Position((value,)))


def test_secret_is_not_shown(cursors: Cursors) -> None:
    """Nothing that is printed has the secret in it."""
    assert "the secret" not in repr(cursors)
