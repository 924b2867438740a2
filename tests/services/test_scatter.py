# SPDX-License-Identifier: Apache-2.0
"""Several cells asked at once, on PostgreSQL, MariaDB and SQLite: what is ended there when nobody waits for it."""

from __future__ import annotations

import socket
import threading
from contextlib import closing
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from oslo_config import cfg
from sqlalchemy import text

from cellmw import RequestContext, database, deploy
from cellmw.deadline import after
from cellmw.scatter import scatter
from cellmw.store import migrations
from tests.functional.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cellmw import Cells
    from cellmw.cell_result import CellResult

SLEEP = {"postgresql": text("SELECT pg_sleep(20)"), "mysql": text("SELECT SLEEP(20)"), "sqlite": text("SELECT 1")}
"""A statement that a server works on for long, and one that is done at once."""

DEADLINE = 0.3


@pytest.fixture
def cells(tmp_path: Path, postgresql_url: str, mariadb_url: str) -> Iterator[Cells]:
    """Three cells, called by their databases, each of which was asked once."""
    conf = cfg.ConfigOpts()
    conf([], project="cellmw", default_config_files=[], default_config_dirs=[])
    deploy.settings(conf)
    conf.set_override("connection", f"sqlite:///{tmp_path}/api.sqlite", group="api_database")
    with deploy.store(conf) as store:
        migrations.sync(store.engine)
        for name, url in (
            ("postgresql", postgresql_url),
            ("mysql", mariadb_url),
            ("sqlite", f"sqlite:///{tmp_path}/cell.sqlite"),
        ):
            store.create_cell(name=name, database_connection=url, transport_url=f"memory://{name}/")
    with closing(deploy.cells(conf)) as cells:
        assert outcomes(scatter(RequestContext(), cells, dialect_of, deadline=after(PATIENCE))) == {
            "postgresql": "ok",
            "mysql": "ok",
            "sqlite": "ok",
        }
        yield cells
        assert cells.leases == 0


def dialect_of(context: Any) -> str:
    """Ask a database what it is."""
    with database.reader(context) as session:
        session.scalar(text("SELECT 1"))
        return str(session.get_bind().dialect.name)


def sleep(context: Any) -> str:
    """Have a server work for long."""
    with database.reader(context) as session:
        name = str(session.get_bind().dialect.name)
        session.execute(SLEEP[name])
        return name


def outcomes(results: list[CellResult]) -> dict[str, str]:
    """Return the statuses by the names of the cells."""
    return {str(result.cell): result.status for result in results}


def come_back(cells: Cells) -> None:
    """Wait until no thread is left behind in a cell."""
    deadline = after(PATIENCE / 2)  # and not as long as a server works
    while any(cells.left_behind.values()):
        assert monotonic() < deadline
        threading.Event().wait(0.005)


def test_statements_are_ended(cells: Cells) -> None:
    """By the deadline each server's statement is given up, its thread comes back, and the cells work as ever."""
    began = monotonic()
    results = scatter(RequestContext(), cells, sleep, deadline=after(DEADLINE))
    assert monotonic() - began < DEADLINE + 0.2
    assert outcomes(results) == {"postgresql": "timeout", "mysql": "timeout", "sqlite": "ok"}
    come_back(cells)
    results = scatter(RequestContext(), cells, dialect_of, deadline=after(PATIENCE))
    assert [result.value for result in results] == ["postgresql", "mysql", "sqlite"]


def test_enough(cells: Cells) -> None:
    """What is not needed any more is ended long before its deadline."""
    results = scatter(RequestContext(), cells, sleep, deadline=after(10 * PATIENCE), enough=lambda name: bool(name))
    assert outcomes(results) == {"postgresql": "skipped", "mysql": "skipped", "sqlite": "ok"}
    come_back(cells)
    results = scatter(RequestContext(), cells, dialect_of, deadline=after(PATIENCE))
    assert [result.value for result in results] == ["postgresql", "mysql", "sqlite"]


def test_ten_beside_a_frozen_one(cells: Cells) -> None:
    """A database that has frozen slows no other one down, however often it is asked, and is soon asked no more."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"mysql+pymysql://user:hidden-word@127.0.0.1:{server.getsockname()[1]}/cell"
        cells._store.create_cell(name="frozen", database_connection=url, transport_url="memory://frozen/")
        everyone = cells.all()
        for _ in range(10):
            took: list[float] = []
            began = monotonic()

            def timed(context: Any, took: list[float] = took, began: float = began) -> str:
                name = dialect_of(context)
                took.append(monotonic() - began)
                return name

            results = scatter(RequestContext(), cells, timed, deadline=after(DEADLINE), among=everyone)
            assert monotonic() - began < DEADLINE + 0.2
            assert [result.value for result in results] == ["postgresql", "mysql", "sqlite", None]
            assert max(took) < DEADLINE
        assert results[-1].status == "skipped"
        come_back(cells)
