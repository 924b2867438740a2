# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage budget`` as a shell sees it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cellmw.admin import budget
from cellmw.admin.budget import Limit, Server
from tests.unit.conftest import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cellmw.cell import Cell
    from cellmw.store import Store
    from tests.commands import Manage

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

WORKERS = ["--processes", 2, "--threads", 3]


@pytest.fixture
def manage(manage: Manage, store: Store) -> Manage:
    """Run a command on an API database with a cell whose servers do not answer."""
    store.create_cell(
        name="cell1",
        transport_url=f"rabbit://user:{PASSWORD}@127.0.0.1:2/",
        database_connection=f"mysql+pymysql://user:{PASSWORD}@127.0.0.1:1/cell1",
    )
    return manage


def test_lines(manage: Manage) -> None:
    """Each server has its sum, how it comes about, and its limit."""
    assert manage("budget", *WORKERS, "--hosts", 2) == (
        0,
        """\
SQLite files: API database
    at most 16 = 4 x 4, and 20 more for moments
    limit: unlimited, as far as is known
MariaDB or MySQL 127.0.0.1:1: cell cell1
    at most 12 = 4 x 3, and 36 more for moments
    limit: not known, does not answer: the connection is refused
RabbitMQ 127.0.0.1:2: cell cell1
    at most 16 = 4 x 4, and 20 more for moments
    limit: unlimited, as far as is known
""",
        "",
    )


def test_json(manage: Manage) -> None:
    """-f json has a row for each server, with numbers."""
    rows = json.loads(manage("budget", *WORKERS, "-f", "json").out)
    assert rows[1] == {
        "Server": "MariaDB or MySQL 127.0.0.1:1",
        "Of": "cell cell1",
        "At most": 6,
        "More": 18,
        "Limit": None,
        "In use": None,
        "Findings": "does not answer: the connection is refused",
    }


@pytest.mark.parametrize(("most", "exit_code", "says"), [(5, 1, "TOO MANY: 6 conn"), (6, 0, "no room: "), (24, 0, "")])
def test_exit_code(manage: Manage, monkeypatch: pytest.MonkeyPatch, most: int, exit_code: int, says: str) -> None:
    """Too many is 1; no room for what comes on top is said, and is 0."""

    def answer(server: Server) -> None:
        server.limits, server.in_use = [Limit("the server takes", most, (0,))], 1

    monkeypatch.setattr(budget, "_ask_all", answer)
    found: Any = manage("budget", *WORKERS)
    assert (found.exit_code, says in found.out) == (exit_code, True)
    assert f"limit: {most}, of which 1 are in use" in found.out


def test_uncounted_cell(manage: Manage, new_cell: Callable[..., Cell]) -> None:
    """A cell that is not in the sum makes it worth nothing: 1, and a line on stderr."""
    new_cell("odd", database_connection=f"nosuch://user:{PASSWORD}@host/db")
    answer = manage("budget", *WORKERS)
    assert (answer.exit_code, answer.err.count("\n"), "it is not in the sum" in answer.err) == (1, 1, True)


def test_ini(manage: Manage, tmp_path: Path) -> None:
    """With --ini the filter's own section counts."""
    ini = tmp_path / "paste.ini"
    ini.write_text("[filter:cells]\nuse = egg:cellmw#cells\nmax_connections_per_cell = 2\n")
    rows = json.loads(manage("budget", *WORKERS, "--ini", ini, "-f", "json").out)
    assert rows[1]["At most"] == 4


@pytest.mark.parametrize("arguments", [[], WORKERS[:2], [*WORKERS, "--hosts", 0], [*WORKERS, "--hosts", "x"]])
def test_arguments(manage: Manage, arguments: list[object]) -> None:
    """How many workers there are has to be said, and there is no less than one."""
    assert manage("budget", *arguments).exit_code == 2
