# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage explain`` as a shell sees it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from cellmw.cell import Cell
    from cellmw.store import Store
    from tests.commands import Manage

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

UUID = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9"


@pytest.fixture
def manage(manage: Manage, store: Store, cell1: Cell) -> Manage:
    """Run a command on an API database with an instance in a cell."""
    store.create_instance(UUID, project_id="project", cell_id=cell1.id)
    return manage


def test_reached(manage: Manage) -> None:
    """A request that reaches its cell is 0; each step is a line, with the reason in brackets below it."""
    answer = manage("explain", UUID)
    assert (answer.exit_code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert lines[:2] == [
        f"path            /servers/{UUID}",
        "                (made for this uuid from the first of [cellmw] routes)",
    ]
    assert lines[-1] == "answer          targeted: the app answers, aimed at cell1"


def test_passes_through(manage: Manage) -> None:
    """So is one that passes through."""
    assert manage("explain", "/flavors").exit_code == 0


def test_refused(manage: Manage) -> None:
    """One that is refused is 1, and nothing is on stderr: it is what was asked for."""
    answer = manage("explain", UUID, "--project", "stranger")
    assert (answer.exit_code, answer.err, "404 Not Found" in answer.out) == (1, "", True)
    assert manage("explain", UUID, "--project", "stranger", "--admin").exit_code == 0


def test_json(manage: Manage) -> None:
    """-f json has a row for each step."""
    rows = json.loads(manage("explain", UUID, "-f", "json").out)
    assert [row["Step"] for row in rows][:4] == ["path", "route", "instance", "mapping"]
    assert rows[-1] == {"Step": "answer", "Result": "targeted: the app answers, aimed at cell1", "Why": ""}


def test_ini(manage: Manage, tmp_path: Path) -> None:
    """With --ini the filter's own section counts, whatever it is called."""
    ini = tmp_path / "paste.ini"
    ini.write_text("[filter:mine]\nuse = egg:cellmw#cells\nroutes = /volumes/{instance_uuid}\n")
    answer = manage("explain", UUID, "--ini", ini, "--section", "filter:mine")
    assert (answer.exit_code, f"/volumes/{UUID}" in answer.out) == (0, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        [UUID.replace("-", "")],
        [UUID, "--timeout", "0"],
        [],
        ["http://[nonsense/servers"],
        ["/servers/\udcff"],
    ],
)
def test_arguments(manage: Manage, arguments: list[str]) -> None:
    """What is neither a uuid nor a path nor a URL can't be read, nor can no time at all."""
    assert manage("explain", *arguments).exit_code == 2


@pytest.mark.parametrize("timeout", ["soon", "nan", "0.01", "1e9"])
def test_timeout_that_is_none(manage: Manage, timeout: str) -> None:
    """A timeout is a number of seconds that servers and options can take, for every command in the same words."""
    answer = manage("explain", UUID, "--timeout", timeout)
    assert (answer.exit_code, answer.out) == (2, "")
    assert answer.err.endswith(f"error: argument --timeout: {timeout!r} is no number of seconds from 0.1 to 3600\n")


@pytest.mark.parametrize("timeout", ["0.1", "3600"])
def test_timeout(manage: Manage, timeout: str) -> None:
    """The shortest and the longest one are taken."""
    assert manage("explain", "/flavors", "--timeout", timeout).exit_code == 0


def test_error(manage: Manage, tmp_path: Path) -> None:
    """A filter that could not be made is one line, and 255."""
    answer = manage("explain", UUID, "--ini", tmp_path / "none.ini")
    assert (answer.exit_code, answer.out, answer.err.count("\n")) == (255, "", 1)
