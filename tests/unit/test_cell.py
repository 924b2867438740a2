# SPDX-License-Identifier: Apache-2.0
"""The value that names a cell and guards its URLs."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import pprint
from typing import TYPE_CHECKING, Any

import pytest
from oslo_serialization import jsonutils

from cellmw.cell import CELL0_UUID, Cell
from cellmw.exceptions import CellMisconfigured

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "s3cret"
TRANSPORT = f"rabbit://user:{SECRET}@host1:5672/vhost?ssl=true"
DATABASE = f"mysql+pymysql://user:{SECRET}@host2/nova"
CELL = Cell(7, "uuid-7", "cell7", False, TRANSPORT, DATABASE)


def cell(**changes: Any) -> Cell:
    """Return a cell that differs from CELL in these."""
    values: dict[str, Any] = {"id": 7, "uuid": "uuid-7", "name": "cell7", "disabled": False}
    return Cell(**values | {"transport_url": TRANSPORT, "database_connection": DATABASE} | changes)


def _to_primitive(value: Any) -> Any:
    return jsonutils.to_primitive(value, fallback=str)


SHOWN: dict[str, Callable[[Any], object]] = {
    "repr": repr,
    "str": str,
    "format": format,
    "pformat": pprint.pformat,
    "asdict": dataclasses.asdict,
    "astuple": dataclasses.astuple,
    "fields": dataclasses.fields,
    "values of the fields": lambda cell: [getattr(cell, field.name) for field in dataclasses.fields(cell)],
    "hash": hash,
    "pickle": pickle.dumps,
    "oldest pickle": lambda cell: pickle.dumps(cell, protocol=0),
    "state": lambda cell: cell.__getstate__(),
    "json of asdict": lambda cell: json.dumps(dataclasses.asdict(cell)),
    "oslo's json": lambda cell: jsonutils.dumps([cell], default=_to_primitive),
    "to_primitive": lambda cell: jsonutils.to_primitive(cell, fallback=repr),
}


@pytest.mark.parametrize("show", SHOWN.values(), ids=SHOWN.keys())
def test_urls_are_not_shown(show: Callable[[Cell], object]) -> None:
    """Nothing that shows, copies or serializes a cell gives its URLs, nor any part of them."""
    shown = show(CELL)
    for part in (SECRET, "host1", "host2"):
        assert part not in str(shown)
        assert part not in repr(shown)


def test_vars() -> None:
    """A cell has no __dict__ that could show its URLs."""
    with pytest.raises(TypeError):
        vars(CELL)


def test_json_refuses() -> None:
    """oslo's JSON refuses a cell instead of digging its slots out, and the error shows no URL."""
    with pytest.raises(ValueError, match="Cannot convert") as caught:
        jsonutils.to_primitive(CELL)
    assert SECRET not in str(caught.value)


def test_repr() -> None:
    """A cell shows what it is called by."""
    assert repr(CELL) == "Cell(id=7, uuid='uuid-7', name='cell7', disabled=False)"


@pytest.mark.parametrize(("name", "shown"), [("cell7", "cell7"), (None, "uuid-7"), ("", "uuid-7")])
def test_str(name: str | None, shown: str) -> None:
    """A cell is called by its name, or by its uuid where it has none."""
    assert str(cell(name=name)) == shown


def test_reveal() -> None:
    """Whoever opens a cell gets its URLs as they are."""
    assert (CELL.reveal_transport_url(), CELL.reveal_database_connection()) == (TRANSPORT, DATABASE)


@pytest.mark.parametrize("missing", [None, ""])
def test_missing_urls(missing: str | None) -> None:
    """A URL that is missing is an error that names the cell and the URL."""
    without = cell(transport_url=missing, database_connection=missing)
    with pytest.raises(CellMisconfigured, match="cell cell7: its transport URL is missing"):
        without.reveal_transport_url()
    with pytest.raises(CellMisconfigured, match="cell cell7: its database connection is missing"):
        without.reveal_database_connection()


def test_pickle_loses_the_urls() -> None:
    """A cell that comes out of a pickle is the same cell, and leads nowhere."""
    unpickled = pickle.loads(pickle.dumps(CELL))
    assert unpickled == CELL
    with pytest.raises(CellMisconfigured):
        unpickled.reveal_database_connection()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copies_are_the_cell(duplicate: Callable[[Cell], Cell]) -> None:
    """A cell is immutable, so its copy is the cell itself, URLs included."""
    assert duplicate(CELL) is CELL


def test_frozen() -> None:
    """A cell can't be changed."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        CELL.name = "other"  # type: ignore[misc]


def test_equality() -> None:
    """Cells are equal by what they are called, not by where they lead."""
    assert cell() == CELL == cell(transport_url="memory://x/", database_connection=None)
    assert hash(cell()) == hash(CELL)
    assert cell(id=8) != CELL
    assert cell(uuid="uuid-8") != CELL


@pytest.mark.parametrize(
    "changes",
    [
        {"transport_url": TRANSPORT.replace(SECRET, "other")},
        {"transport_url": TRANSPORT.replace("true", "false")},
        {"transport_url": None},
        {"database_connection": DATABASE + "?charset=utf8"},
        {"database_connection": None},
        {"transport_url": DATABASE, "database_connection": TRANSPORT},
    ],
    ids=str,
)
def test_fingerprint_differs(changes: dict[str, str]) -> None:
    """A fingerprint tells cells apart by both URLs, down to the password and the query."""
    assert cell(**changes).fingerprint != CELL.fingerprint


def test_fingerprint_is_of_the_urls_alone() -> None:
    """A cell that was renamed or disabled leads to the same place."""
    assert cell(name="new", disabled=True).fingerprint == CELL.fingerprint


def test_fingerprint_shows_nothing() -> None:
    """A fingerprint is a sha256 in hex, the same in every process."""
    assert len(CELL.fingerprint) == 64
    assert int(CELL.fingerprint, 16)
    assert cell(transport_url=None, database_connection=None).fingerprint == (
        "67c79a8faf1145d57a9b61e3869875b47a7a2cbcbd4c6e44a154b4a27e01ecdb"
    )


@pytest.mark.parametrize(
    ("transport_url", "has_transport"),
    [(TRANSPORT, True), ("none:", False), ("none:///", False), ("none://localhost/", False), ("nonesuch://h/", True)],
)
def test_has_transport(transport_url: str, has_transport: bool) -> None:
    """A cell whose transport URL has the scheme none has no message queue."""
    assert cell(transport_url=transport_url).has_transport is has_transport


def test_cell0_uuid() -> None:
    """cell0 is known by the nil uuid, as in Nova."""
    assert CELL0_UUID == "00000000-0000-0000-0000-000000000000"
