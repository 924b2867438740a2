# SPDX-License-Identifier: Apache-2.0
"""A cell's two URLs -> what is wrong with them, without connecting to anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cellmw.admin.doctor import Severity
from cellmw.admin.doctor.urls import examine, refuse_useless
from cellmw.cell import Cell, Unresolved
from cellmw.exceptions import CellMisconfigured, UrlRefused

if TYPE_CHECKING:
    from oslo_config import cfg

SECRET = "open-sesame"

QUEUE = f"rabbit://me:{SECRET}@bus/"

DATABASE = f"mysql+pymysql://me:{SECRET}@db/nova"


def cell(transport_url: Any = QUEUE, database_connection: Any = DATABASE) -> Cell:
    """Return a cell with these URLs."""
    return Cell(1, "u", "cell1", False, transport_url, database_connection)


@pytest.mark.parametrize("queue", [QUEUE, "none:///", f"{QUEUE}?ssl=true&ssl_ca_file=/ca", "memory://cell1/"])
def test_all_is_well(conf: cfg.ConfigOpts, queue: str) -> None:
    """URLs that can be used are none to be told of, nor is that a cell has no queue."""
    assert list(examine(cell(queue), conf)) == []


WRONG = {
    "no transport URL": ({"transport_url": None}, Severity.ERROR, "its transport URL is missing"),
    "no database": ({"database_connection": None}, Severity.ERROR, "its database connection is missing"),
    "a key is missing": (
        {"transport_url": Unresolved("its transport URL can't be read: there is no key")},
        Severity.ERROR,
        "its transport URL can't be read: there is no key",
    ),
    "no such driver": (
        {"transport_url": f"kafkaesque://me:{SECRET}@bus/"},
        Severity.ERROR,
        "its transport URL: no oslo",
    ),
    "no such database": (
        {"database_connection": f"access://me:{SECRET}@db/x"},
        Severity.ERROR,
        "its database URL: SQLAl",
    ),
    "TLS without a CA": ({"transport_url": f"{QUEUE}?ssl=true"}, Severity.WARNING, "its transport URL: it has TLS"),
    "no database named": (
        {"database_connection": f"mysql+pymysql://me:{SECRET}@db/"},
        Severity.WARNING,
        "its database URL: it names no database",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong(conf: cfg.ConfigOpts, what: str) -> None:
    """What is wrong with a URL is told, with the cell's name, and none of the URL."""
    urls, severity, text = WRONG[what]
    (found,) = examine(cell(**urls), conf)
    assert (found.severity, found.cell, found.check) == (severity, "cell1", "urls")
    assert found.what.startswith(text)
    assert SECRET not in repr(found)


def test_useless() -> None:
    """A database that nobody can open is not tried."""
    refuse_useless(cell())
    with pytest.raises(UrlRefused):
        refuse_useless(cell(database_connection="access://db/x"))
    with pytest.raises(CellMisconfigured):
        refuse_useless(cell(database_connection=None))
