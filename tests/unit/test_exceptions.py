# SPDX-License-Identifier: Apache-2.0
"""The tree of errors."""

from __future__ import annotations

import inspect
import re

import pytest

from cellmw import exceptions
from cellmw.cell import Cell
from cellmw.cell_result import CellResult

SECRET = "s3cret"
CELL = Cell(3, "uuid-3", "cell3", False, f"rabbit://u:{SECRET}@h/", f"mysql+pymysql://u:{SECRET}@h/d")

MISSING = (CellResult(CELL, "timeout"), CellResult(Cell(4, "uuid-4", None, False, None, None), "error"))

CELL_ERRORS = [
    exceptions.CellError(CELL, "message"),
    exceptions.CellMisconfigured(CELL, "its transport URL is missing"),
    exceptions.CellUnavailable(CELL, "database"),
    exceptions.CellHasNoTransport(CELL),
    exceptions.LeaseClosed(CELL),
]


def drawn() -> dict[str, str]:
    """Return the parent of each class that the module's docstring draws."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for indent, name in re.findall(r"^    ([│├└─ ]*)(\w+)", exceptions.__doc__ or "", re.MULTILINE):
        path[len(indent) // 4 :] = [name]
        parents[name] = path[-2] if len(path) > 1 else "Exception"
    return parents


def test_tree_is_as_drawn() -> None:
    """Every class is in the picture on top of the module, under its own parent, and nothing else is."""
    classes = {
        name: cls.__base__.__name__
        for name, cls in inspect.getmembers(exceptions, inspect.isclass)
        if cls.__module__ == exceptions.__name__
    }
    assert drawn() == classes


@pytest.mark.parametrize("error", CELL_ERRORS, ids=lambda error: type(error).__name__)
def test_cell_errors_carry_their_cell(error: exceptions.CellError) -> None:
    """What concerns a known cell has the cell itself, for whoever catches it."""
    assert error.cell is CELL


@pytest.mark.parametrize("error", CELL_ERRORS[1:], ids=lambda error: type(error).__name__)
def test_cell_errors_name_their_cell(error: exceptions.CellError) -> None:
    """What concerns a known cell says its name."""
    assert "cell cell3" in str(error)


@pytest.mark.parametrize("error", CELL_ERRORS, ids=lambda error: type(error).__name__)
def test_cell_errors_show_no_url(error: exceptions.CellError) -> None:
    """Neither the message nor the arguments of an error have a URL in them."""
    assert SECRET not in f"{error} {error!r} {error.args}"


def test_cell_without_a_name() -> None:
    """A cell that has no name is called by its uuid."""
    nameless = Cell(3, "uuid-3", None, False, None, None)
    assert "cell uuid-3" in str(exceptions.LeaseClosed(nameless))


@pytest.mark.parametrize(
    ("error", "data", "message"),
    [
        (exceptions.CellNotFound("cell9"), {"cell": "cell9"}, "no cell 'cell9' is recorded"),
        (exceptions.CellNotFound(9), {"cell": 9}, "no cell 9 is recorded"),
        (exceptions.CellExists("cell u has that URL already"), {}, "cell u has that URL already"),
        (
            exceptions.CellInUse("cell3", ["hosts", "instances"]),
            {"cell": "cell3", "mapped": ("hosts", "instances")},
            "cell cell3 still has hosts and instances mapped to it",
        ),
        (exceptions.InstanceNotMapped("i"), {"instance_uuid": "i"}, "instance i has no mapping"),
        (exceptions.InstanceMapped("i"), {"instance_uuid": "i"}, "instance i is mapped already"),
        (exceptions.InstanceBuilding("i"), {"instance_uuid": "i"}, "instance i is still being built"),
        (
            exceptions.MappingDangling("i", 9),
            {"instance_uuid": "i", "cell_id": 9},
            "instance i is mapped to cell id 9, which has no record",
        ),
        (
            exceptions.HeaderMalformed("X-Id"),
            {"header": "X-Id"},
            "header X-Id has to be there once, with one value of the right form",
        ),
        (exceptions.HeaderNotSigned("X-Id"), {"header": "X-Id"}, "header X-Id has no valid signature"),
        (exceptions.CellsClosed(), {}, "the cells have been closed: nothing can be leased any more"),
        (exceptions.HostNotMapped("h"), {"host": "h"}, "host 'h' has no mapping"),
        (exceptions.HostMapped("h"), {"host": "h"}, "host 'h' is mapped already"),
        (
            exceptions.HostElsewhere("h", CELL),
            {"host": "h", "cell": CELL},
            "host 'h' is not mapped to cell cell3, but to another",
        ),
        (exceptions.HostInUse("h"), {"host": "h"}, "there are instances on host 'h'"),
        (
            exceptions.HostsScattered(["a", "b"]),
            {"cells": ("a", "b")},
            "hosts that are in [database] connection are mapped to several cells: a, b; delete those that are wrong",
        ),
        (
            exceptions.DeadlineExceeded("cell cell3 to be opened"),
            {"waited_for": "cell cell3 to be opened"},
            "the deadline passed while waiting for cell cell3 to be opened",
        ),
        (exceptions.CellUnavailable(CELL, "queue"), {"resource": "queue"}, "cell cell3: its queue does not answer"),
        (
            exceptions.CellsMissing(list(MISSING)),
            {"missing": MISSING},
            "no answer of these cells: cell3 (timeout), uuid-4 (error)",
        ),
        (exceptions.ListingError("the limit is 0"), {}, "the limit is 0"),
        (exceptions.BadMarker("i"), {"marker": "i"}, "marker 'i' is not in the list"),
        (exceptions.BadCursor("it is cut"), {"reason": "it is cut"}, "the cursor can't be used: it is cut"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_message_and_data(error: exceptions.CellmwError, data: dict[str, object], message: str) -> None:
    """An error builds its message from what it was given, and keeps that for whoever catches it."""
    assert str(error) == message
    assert {name: getattr(error, name) for name in data} == data


def test_lease_closed_says_what_to_do() -> None:
    """Who uses a handle too late reads how to get one of his own."""
    assert "cells.target()" in str(exceptions.LeaseClosed(CELL))
