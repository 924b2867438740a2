# SPDX-License-Identifier: Apache-2.0
"""The API database -> what is wrong with its tables, and what is left over in them."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import pytest
from oslo_utils import timeutils

from cellmw.admin.doctor.api_database import compare_clocks, examine, examine_holds
from cellmw.cell import Cell
from cellmw.engines import make_engine
from cellmw.exceptions import StoreUnavailable
from cellmw.store import Store, migrations
from cellmw.store.holds import DrainedCell, Held, HeldInstance
from tests import nova_schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from cellmw.admin.doctor import Finding

CELL1 = Cell(1, "uuid1", "cell1", False, None, None)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An API database that nobody has made any tables in."""
    with Store(make_engine(f"sqlite:///{tmp_path}/api.sqlite", {}, pre_ping=False)) as store:
        yield store


def told(findings: Iterable[Finding]) -> list[tuple[str, str, str]]:
    """Return what is said, without what to do."""
    return [(str(each.severity), each.check, each.what) for each in findings]


def execute(store: Store, statement: str) -> None:
    """Change something behind everybody's back."""
    with store.engine.begin() as connection:
        connection.exec_driver_sql(statement)


def test_synced(store: Store) -> None:
    """Tables at the newest revision are as they should be, Nova's as well as ours."""
    migrations.sync(store.engine)
    assert told(examine(store)) == []


def test_synced_in_novas(store: Store) -> None:
    """So are Nova's tables with ours beside them."""
    nova_schema.create_as_nova_does(store.engine)
    migrations.sync(store.engine)
    assert told(examine(store)) == []


def test_never_synced(store: Store) -> None:
    """Tables that are missing are named, with who makes them."""
    (found,) = examine(store)
    assert told([found])[0][:2] == ("error", "api-database")
    assert "the table cell_mappings" in found.what
    assert found.todo == "`cellmw-manage api_db sync`"


def test_nova_alone(store: Store) -> None:
    """In Nova's database Nova's own sync comes into it."""
    nova_schema.create_as_nova_does(store.engine)
    (found,) = examine(store)
    assert "the table instance_mappings" not in found.what
    assert "the table cellmw_" in found.what
    assert "nova-manage api_db sync" in found.todo


def test_column_is_missing(store: Store) -> None:
    """So is a column."""
    migrations.sync(store.engine)
    execute(store, "ALTER TABLE cell_mappings RENAME COLUMN disabled TO off")
    assert told(examine(store)) == [("error", "api-database", "it lacks the column disabled of cell_mappings")]


@pytest.mark.parametrize(
    ("revision", "text"),
    [
        ("5c1d0f8e2a47", "it is at revision 5c1d0f8e2a47, and the newest is "),
        ("ffffffffffff", "it is at revision ffffffffffff, of a newer release than this one"),
        (None, "it is at revision None, and the newest is "),
    ],
)
def test_revisions(store: Store, revision: str | None, text: str) -> None:
    """Another revision than the newest is told of, whichever it is."""
    migrations.sync(store.engine)
    execute(store, f"DELETE FROM {migrations.VERSION_TABLE}")
    if revision:
        execute(store, f"INSERT INTO {migrations.VERSION_TABLE} VALUES ('{revision}')")
    (found,) = examine(store)
    assert told([found])[0][:2] == ("warning", "api-database")
    assert found.what.startswith(text)


def test_clock_of_a_file(store: Store) -> None:
    """SQLite has no clock of its own."""
    assert told(compare_clocks(store)) == []


def test_no_answer(conf: Any) -> None:
    """That the database does not answer is an error of the store's."""
    url = "postgresql+psycopg://127.0.0.1:1/x"
    with Store(make_engine(url, {}, pre_ping=False)) as store:
        for check in (examine, compare_clocks):
            with pytest.raises(StoreUnavailable):
                list(check(store))


def drained(hours: float, cell_uuid: str = "uuid1", reason: str | None = None) -> Held:
    """Return that a cell is drained since so many hours."""
    since = timeutils.utcnow() - datetime.timedelta(hours=hours)
    return Held((DrainedCell(cell_uuid, since, reason),), ())


def test_nothing_held() -> None:
    """Where nothing is held back there is nothing to tell."""
    assert told(examine_holds([CELL1], Held((), ()))) == []


def test_drained() -> None:
    """A drained cell is told of, and after a day it is a warning."""
    for hours, severity in ((23, "info"), (25, "warning")):
        (found,) = examine_holds([CELL1], drained(hours, reason="new disks"))
        assert (str(found.severity), found.cell, found.check) == (severity, "cell1", "drains")
        assert found.what.endswith(" UTC, and answers 503: new disks")
        assert "undrain --cell_uuid uuid1" in found.todo
    (found,) = examine_holds([CELL1], drained(1))
    assert found.what.endswith("and answers 503")


def test_drained_and_gone() -> None:
    """What is drained and has no record any more is in nobody's way."""
    assert told(examine_holds([CELL1], drained(99, "uuid7"))) == [
        ("info", "drains", "cell uuid7, which has no record, is drained")
    ]


def test_interrupted_moves() -> None:
    """Instances whose time is up were left over; those that are being moved are not told of."""
    now = timeutils.utcnow()
    held = [
        HeldInstance(name, now, now + datetime.timedelta(seconds=s)) for name, s in (("a", -5), ("b", -5), ("c", 60))
    ]
    assert told(examine_holds([CELL1], Held((), tuple(held)))) == [
        ("info", "drains", "there are 2 instances whose move was interrupted; the filter lets them through again")
    ]
