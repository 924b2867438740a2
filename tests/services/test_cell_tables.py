# SPDX-License-Identifier: Apache-2.0
"""The tests of a cell's tables in tests/unit, on MariaDB and PostgreSQL, and what only one of them has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from cellmw.admin.cell_tables import CellTables, InstanceRow
from tests.unit.test_admin_cell_tables import *  # noqa: F403 - every test there, with the databases from here
from tests.unit.test_admin_cell_tables import ONE, TWO, run

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(params=["new_mariadb_url", "new_postgresql_url"])
def new_url(request: pytest.FixtureRequest) -> Callable[[], str]:
    """Makes a database on a server."""
    found: Callable[[], str] = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def url(new_url: Callable[[], str]) -> str:
    """The URL of an empty database."""
    return new_url()


@pytest.fixture
def other_url(new_url: Callable[[], str]) -> str:
    """The URL of another one."""
    return new_url()


@pytest.mark.parametrize(("server", "kind"), [("postgresql", "UUID"), ("mariadb", "UUID")])
def test_uuid_columns(request: pytest.FixtureRequest, tables: CellTables, server: str, kind: str) -> None:
    """A uuid is text in a column of the server's own type for uuids, too, and only one is found there, by its text."""
    url = request.getfixturevalue(f"{server}_url")
    run(
        url,
        f"CREATE TABLE instances (id INTEGER PRIMARY KEY, uuid {kind}, project_id VARCHAR(9), user_id VARCHAR(9), "
        "hidden BOOLEAN, deleted INTEGER)",
        f"INSERT INTO instances VALUES (1, '{ONE}', 'p', 'u', FALSE, 0), (2, '{TWO}', 'p', 'u', FALSE, 2)",
    )
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with Session(engine) as session:
        assert [row.uuid for row in tables.instances(session, 9)] == [ONE, TWO]
        others = ["my instance", ONE.replace("-", ""), f"{{{ONE}}}"]
        assert tables.find_instances(session, [*others, TWO]) == [InstanceRow(2, TWO, "p", "u", True)]
        assert tables.find_instances(session, others) == []


def test_bits(mariadb_url: str, tables: CellTables) -> None:
    """A bit of MariaDB's says yes and no as a boolean does."""
    run(
        mariadb_url,
        "CREATE TABLE instances (id INTEGER PRIMARY KEY, uuid VARCHAR(36), project_id VARCHAR(9), user_id VARCHAR(9), "
        "hidden BIT(1), deleted BIT(1))",
        f"INSERT INTO instances VALUES (1, '{ONE}', 'p', 'u', b'0', b'0'), (2, '{TWO}', 'p', 'u', b'0', b'1')",
    )
    engine = sa.create_engine(mariadb_url, poolclass=sa.NullPool)
    with Session(engine) as session:
        assert [row.deleted for row in tables.instances(session, 9)] == [False, True]
