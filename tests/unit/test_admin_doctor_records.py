# SPDX-License-Identifier: Apache-2.0
"""Cells as they are recorded -> what is wrong with them, each fault beside the same without it."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from cellmw.admin.doctor import Severity
from cellmw.admin.doctor.records import compare, examine
from cellmw.cell import CELL0_UUID, Cell, Unresolved

SECRET = "open-sesame"


def cell(number: int, **record: Any) -> Cell:
    """Return a cell that has nothing in common with others; number 0 is cell0."""
    values = {
        "uuid": CELL0_UUID if not number else f"6f70656e-0000-4000-8000-{number:012}",
        "name": f"cell{number}",
        "disabled": False,
        "transport_url": f"rabbit://me:{SECRET}@bus{number}/" if number else "none:///",
        "database_connection": f"mysql+pymysql://me:{SECRET}@db{number}/nova",
    }
    return Cell(number + 1, **values | record)


def heads(findings: Any) -> list[tuple[Severity, str, str]]:
    """Return what each is, without its text."""
    return [(found.severity, found.cell, found.check) for found in findings]


GOOD = [cell(0), cell(1), cell(2)]


def test_all_is_well() -> None:
    """Cells as they should be are none to be told of."""
    assert list(examine(GOOD)) == []
    assert list(compare(GOOD, {})) == []


WRONG = {
    "no cell0": ([cell(1)], (Severity.ERROR, "-", "cells"), "there is no cell0"),
    "another that is called cell0": ([cell(1, name="cell0")], (Severity.ERROR, "-", "cells"), "is called cell0"),
    "cell0 with a queue": (
        [cell(0, transport_url=f"rabbit://me:{SECRET}@bus0/"), cell(1)],
        (Severity.WARNING, "cell0", "cells"),
        "has a message queue",
    ),
    "cell0 is disabled": ([cell(0, disabled=True), cell(1)], (Severity.WARNING, "cell0", "cells"), "is disabled"),
    "no other cell": ([cell(0)], (Severity.ERROR, "-", "cells"), "no cell but cell0"),
    "all disabled": (
        [cell(0), cell(1, disabled=True), cell(2, disabled=True)],
        (Severity.WARNING, "-", "cells"),
        "all cells are disabled",
    ),
    "no queue": (
        [cell(0), cell(1, transport_url="none:///")],
        (Severity.WARNING, "cell1", "cells"),
        "no message queue",
    ),
    "two of a name": (
        [cell(0), cell(1), cell(2, name="cell1"), cell(3)],
        (Severity.WARNING, "cell1", "cells"),
        "2 cells have this name",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong(what: str) -> None:
    """What is wrong with the records is told, once."""
    cells, head, text = WRONG[what]
    (found,) = examine(cells)
    assert heads([found]) == [head]
    assert text in found.what
    assert found.todo
    assert SECRET not in repr(found)


def test_one_disabled_cell() -> None:
    """One disabled cell among others, and cells without names, are as they should be."""
    assert list(examine([cell(0), cell(1, disabled=True), cell(2, name=None), cell(3, name=None)])) == []


HERE = socket.gethostname()

SAME = {
    "one database, other users": (
        "database_connection",
        "mysql://a:b@DB/nova?charset=utf8",
        "mysql+pymysql://db:3306/nova",
    ),
    "one vhost, other hosts, too": ("transport_url", "rabbit://a:b@bus:5672,a:b@more/v", "rabbit://bus/v?ssl=true"),
    "one file": ("database_connection", "sqlite:////tmp/../tmp/x.db", "sqlite:////tmp/x.db"),
}


@pytest.mark.parametrize("what", SAME)
def test_same_place(what: str) -> None:
    """Two cells that lead to the same place are told of, however that is written."""
    field, first, second = SAME[what]
    (found,) = compare([cell(0), cell(1, **{field: first}), cell(2, **{field: second}), cell(3)], {})
    assert heads([found]) == [(Severity.ERROR, "cell1", "overlaps")]
    called = "database" if field == "database_connection" else "message queue"
    assert found.what == f"it has the same {called} as cell cell2"


@pytest.mark.parametrize(
    ("field", "url"),
    [("database_connection", "postgresql+psycopg://{}:5432/nova"), ("transport_url", "rabbit://{}:5672/nova")],
)
@pytest.mark.parametrize("names", [("localhost", "127.0.0.1"), ("127.0.0.1", HERE), ("[::1]", "LocalHost")])
def test_names_of_this_machine(field: str, url: str, names: tuple[str, str]) -> None:
    """Names that mean this machine are the same place for whoever is on it, so that is a warning."""
    first, second = (cell(number, **{field: url.format(name)}) for number, name in enumerate(names, 1))
    (found,) = compare([first, second], {})
    assert heads([found]) == [(Severity.WARNING, "cell1", "overlaps")]
    assert "means this machine" in found.what
    elsewhere = cell(2, **{field: url.format("elsewhere")})
    assert list(compare([first, elsewhere], {})) == []
    assert list(compare([first, cell(2, **{field: url.format(names[1]).replace("nova", "other")})], {})) == []


def test_what_the_servers_say() -> None:
    """What a server says of itself proves what the names don't, and disproves what they only suggest."""
    here, there = (
        cell(1, database_connection="mysql://localhost/nova"),
        cell(2, database_connection="mysql://127.0.0.1/nova"),
    )
    (found,) = compare([cell(1), cell(2)], {2: "server 1", 3: "server 1"})
    assert heads([found]) == [(Severity.ERROR, "cell1", "overlaps")]
    assert found.what.endswith("though their URLs look different: the server says so")
    (found,) = compare([here, there], {2: "server 1", 3: "server 1"})
    assert found.severity is Severity.ERROR
    assert list(compare([here, there], {2: "server 1", 3: "server 2"})) == []
    assert list(compare([cell(1), cell(2)], {2: "server 1", 3: "server 2"})) == []
    (found,) = compare([here, there], {2: "server 1"})
    assert found.severity is Severity.WARNING


def test_what_is_not_known() -> None:
    """Cells whose URLs nobody can make out, or read, are not compared."""
    unknown = Unresolved("the key is gone")
    cells = [
        cell(number, transport_url=url, database_connection=url)
        for number, url in enumerate([unknown, unknown, None, None, "no url", "no url"], 1)
    ]
    assert list(compare(cells, {})) == []


def test_nothing_is_compared_with_cell0s_queue() -> None:
    """Two cells without a queue have none in common."""
    assert list(compare([cell(0), cell(1, transport_url="none:///")], {})) == []
