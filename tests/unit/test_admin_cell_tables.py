# SPDX-License-Identifier: Apache-2.0
"""Tables of instances and hosts as somebody else has made them, on SQLite; tests/services runs the same on servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from cellmw.admin.cell_tables import CellTables, InstanceRow
from cellmw.exceptions import ConfigError
from tests.nova_cell import NovaCell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from oslo_config import cfg

ONE = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01"
TWO = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a02"
THREE = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a03"


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of an empty database."""
    return f"sqlite:///{tmp_path}/a.sqlite"


@pytest.fixture
def other_url(tmp_path: Path) -> str:
    """The URL of another one."""
    return f"sqlite:///{tmp_path}/b.sqlite"


@pytest.fixture
def session(url: str) -> Iterator[Session]:
    """A session in the cell."""
    engine = sa.create_engine(url)
    with Session(engine) as session:
        yield session
    engine.dispose()


@pytest.fixture
def tables(conf: cfg.ConfigOpts) -> CellTables:
    """The tables by Nova's names."""
    return CellTables(conf)


def run(url: str, *statements: str) -> None:
    """Execute them in the cell."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


# --- Nova's tables


def test_instances_in_pages(url: str, session: Session, tables: CellTables) -> None:
    """Instances come by their key, deleted ones included, each on one page."""
    NovaCell(url).add_instances([TWO, ONE]).add_instances([THREE], deleted=3)
    first = tables.instances(session, 2)
    assert first == [InstanceRow(1, TWO, "p", "u", False), InstanceRow(2, ONE, "p", "u", False)]
    assert tables.instances(session, 2, first[-1].key) == [InstanceRow(3, THREE, "p", "u", True)]
    assert tables.instances(session, 2, 3) == []


def test_whether_deleted_is_a_bool(url: str, session: Session, tables: CellTables) -> None:
    """Every database says whether an instance is deleted by True and False."""
    NovaCell(url).add_instances([ONE]).add_instances([TWO], deleted=2)
    assert [row.deleted for row in tables.instances(session, 2)] == [False, True]
    assert all(isinstance(row.deleted, bool) for row in tables.instances(session, 2))


def test_hidden_instances_are_left_out(url: str, session: Session, tables: CellTables) -> None:
    """What is hidden is on no page, not counted, and found only by who asks for it."""
    NovaCell(url).add_instances([ONE], hidden=True).add_instances([TWO], hidden=None).add_instances([THREE])
    assert [row.uuid for row in tables.instances(session, 9)] == [TWO, THREE]
    assert (tables.count_instances(session), tables.count_living(session)) == (2, 2)
    assert [row.uuid for row in tables.find_instances(session, [ONE, TWO])] == [TWO]
    assert {row.uuid for row in tables.find_instances(session, [ONE, TWO], hidden=True)} == {ONE, TWO}


def test_counts(url: str, session: Session, tables: CellTables) -> None:
    """Counted are all instances, those behind one, and those that are not deleted."""
    NovaCell(url).add_instances([ONE, TWO]).add_instances([THREE], deleted=3)
    assert tables.count_instances(session) == 3
    assert tables.count_instances(session, 1) == 2
    assert tables.count_living(session) == 2


def test_rows_without_a_project(url: str, session: Session, tables: CellTables) -> None:
    """A project or a user that is NULL is None."""
    NovaCell(url).add_instances([ONE], project_id=None, user_id=None)
    assert tables.find_instances(session, [ONE]) == [InstanceRow(1, ONE, None, None, False)]


# --- tables of others


def test_owners_by_number(url: str, session: Session, tables: CellTables) -> None:
    """A project and a user are text, as in the mappings, where their columns have numbers."""
    run(
        url,
        "CREATE TABLE instances (id INTEGER PRIMARY KEY, uuid VARCHAR(36), project_id INTEGER, user_id INTEGER, "
        "hidden BOOLEAN, deleted INTEGER)",
        f"INSERT INTO instances VALUES (1, '{ONE}', 5, 6, FALSE, 0), (2, '{TWO}', NULL, NULL, FALSE, 0)",
    )
    expected = [InstanceRow(1, ONE, "5", "6", False), InstanceRow(2, TWO, None, None, False)]
    assert tables.instances(session, 9) == expected
    assert sorted(tables.find_instances(session, [ONE, TWO])) == expected


@pytest.mark.parametrize("hidden", ["hidden", ""])
def test_rows_without_a_uuid(url: str, session: Session, conf: cfg.ConfigOpts, hidden: str) -> None:
    """A row without a uuid is no instance."""
    tables = CellTables(conf)
    conf.set_override("instance_hidden", hidden, group="cellmw_tables")
    run(
        url,
        "CREATE TABLE instances (id INTEGER PRIMARY KEY, uuid VARCHAR(36), project_id VARCHAR(9), "
        "user_id VARCHAR(9), hidden BOOLEAN, deleted INTEGER)",
        f"INSERT INTO instances VALUES (1, NULL, NULL, NULL, FALSE, 0), (2, '{ONE}', 'p', 'u', FALSE, 0)",
    )
    assert tables.instances(session, 9) == [InstanceRow(2, ONE, "p", "u", False)]
    assert (tables.count_instances(session), tables.count_living(session)) == (1, 1)
    assert tables.count_without_project(session) == 0


@pytest.mark.parametrize(
    ("kind", "living", "deleted"),
    [
        ("INTEGER", ["0", "NULL"], ["1", "77"]),
        ("BOOLEAN", ["FALSE", "NULL"], ["TRUE"]),
        ("NUMERIC(10, 2)", ["0", "NULL"], ["1"]),
        ("VARCHAR(36)", ["'0'", "''", "'False'", "'false'", "NULL"], ["'1'", f"'{ONE}'", "'True'"]),
        ("TIMESTAMP NULL", ["NULL"], ["'2026-01-01 00:00:00'"]),
    ],
)
def test_types_of_deleted(
    url: str, session: Session, tables: CellTables, kind: str, living: list[str], deleted: list[str]
) -> None:
    """Deleted is where there is anything but NULL, 0, false and an empty text, whatever the column is."""
    rows = [f"({key}, '{key}', 'p', 'u', FALSE, {value})" for key, value in enumerate(living + deleted)]
    run(
        url,
        "CREATE TABLE instances (id INTEGER PRIMARY KEY, uuid VARCHAR(36), project_id VARCHAR(9), user_id VARCHAR(9), "
        f"hidden BOOLEAN, deleted {kind})",
        f"INSERT INTO instances VALUES {', '.join(rows)}",
    )
    found = [row.deleted for row in tables.instances(session, 99)]
    assert found == [False] * len(living) + [True] * len(deleted)
    assert tables.count_living(session) == len(living)


def test_hidden_as_a_number(url: str, session: Session, tables: CellTables) -> None:
    """What is hidden may be said by a number, too."""
    run(
        url,
        "CREATE TABLE instances (id INTEGER PRIMARY KEY, uuid VARCHAR(36), project_id VARCHAR(9), user_id VARCHAR(9), "
        "hidden INTEGER, deleted INTEGER)",
        f"INSERT INTO instances VALUES (1, '{ONE}', 'p', 'u', 0, 0), (2, '{TWO}', 'p', 'u', 1, 0)",
    )
    assert [row.uuid for row in tables.instances(session, 9)] == [ONE]


def test_other_names(url: str, session: Session, conf: cfg.ConfigOpts) -> None:
    """Tables and columns may be called what they are called, and what there is not is left empty."""
    names = {
        "instances_table": "machines",
        "instance_key": "number",
        "instance_uuid": "name",
        "instance_project": "owner",
        "instance_user": "",
        "instance_deleted": "",
        "instance_hidden": "",
    }
    for option, name in names.items():
        conf.set_override(option, name, group="cellmw_tables")
    run(
        url,
        "CREATE TABLE machines (number BIGINT PRIMARY KEY, name VARCHAR(36), owner VARCHAR(9))",
        f"INSERT INTO machines VALUES (7, '{ONE}', 'p')",
    )
    tables = CellTables(conf)
    assert tables.instances(session, 9) == [InstanceRow(7, ONE, "p", None, False)]
    assert tables.count_living(session) == 1


@pytest.mark.parametrize(
    ("statement", "option"),
    [
        ("CREATE TABLE nodes (id INTEGER)", "instances_table"),
        ("CREATE TABLE instances (id INTEGER, uuid VARCHAR(36), user_id VARCHAR(9))", "instance_project"),
        (
            "CREATE TABLE instances (id VARCHAR(9), uuid VARCHAR(36), project_id VARCHAR(9), user_id VARCHAR(9), "
            "hidden BOOLEAN, deleted INTEGER)",
            "instance_key",
        ),
    ],
)
def test_what_is_missing(url: str, session: Session, tables: CellTables, statement: str, option: str) -> None:
    """A table or column that is not there, and a key that does not count, are said by the option that names them."""
    run(url, statement)
    with pytest.raises(ConfigError, match=rf"\[cellmw_tables\] {option}"):
        tables.instances(session, 9)


def test_two_cells(url: str, other_url: str, session: Session, tables: CellTables) -> None:
    """Each cell's tables are as they are in that cell."""
    NovaCell(url).add_instances([ONE])
    run(
        other_url,
        "CREATE TABLE instances (id INTEGER PRIMARY KEY, uuid VARCHAR(36), project_id VARCHAR(9), user_id VARCHAR(9), "
        "hidden BOOLEAN, deleted VARCHAR(36))",
        f"INSERT INTO instances VALUES (1, '{TWO}', 'p', 'u', FALSE, 'False')",
    )
    other = sa.create_engine(other_url)
    for _ in range(2):
        assert [row.uuid for row in tables.instances(session, 9)] == [ONE]
        with Session(other) as elsewhere:
            assert tables.instances(elsewhere, 9) == [InstanceRow(1, TWO, "p", "u", False)]
    other.dispose()


def test_table_that_comes_later(url: str, session: Session, tables: CellTables) -> None:
    """That a table was missing is not remembered."""
    with pytest.raises(ConfigError):
        tables.count_instances(session)
    session.rollback()
    NovaCell(url)
    assert tables.count_instances(session) == 0
