# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage layout``: the deployment as a tree, or as a graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cellmw.admin import drawing, layout_graph
from cellmw.cmd.arguments import take_patience
from cellmw.cmd.command import Command, Refused, Report, note

if TYPE_CHECKING:
    import argparse

    from cellmw.admin.layout_graph import Edge, Graph, Node

_FORMS = ("tree", "dot", "svg", "png")

_PICTURES = ("svg", "png")

_COLUMNS = ("Element", "Id", "Kind", "Name", "Server", "From", "To", "Details", "Answers", "Health")


class Layout(Command):
    """Show the deployment: the API database, the buses, and the cells with their databases and instances.

    Everything is asked whether it answers, all at the same time. No user and no password is shown.
    """

    exit_codes = ((Refused, 1), (drawing.CannotDraw, 1))

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the form."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--to",
            choices=_FORMS,
            help="a tree of text, a graph in Graphviz's DOT, or a picture (default: tree)",
        )
        parser.add_argument(
            "--output", metavar="<file>", help="the file to write, or replace (default: what is drawn is printed)"
        )
        parser.add_argument("--no-health", "--no_health", action="store_true", help="ask nothing whether it answers")
        take_patience(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Draw it."""
        form = parsed_args.to or "tree"
        if parsed_args.formatter and (parsed_args.to or parsed_args.output):
            raise Refused("-f prints rows, and --to and --output draw: give one or the other")
        if form in _PICTURES and parsed_args.output is None and self.app.stdout.isatty():
            raise Refused(f"a picture is not for a terminal: give --output deployment.{form}, or redirect the output")
        graph = layout_graph.look(self.app.conf, parsed_args.patience, ask_them=not parsed_args.no_health)
        if parsed_args.output is not None:
            _write(Path(parsed_args.output), _drawn(graph, form))
            note(f"the deployment is in {parsed_args.output}")
            return Report(_COLUMNS, (), [])
        if form in _PICTURES and not parsed_args.formatter:
            self.app.stdout.flush()
            self.app.stdout.buffer.write(_drawn(graph, form))
            return Report(_COLUMNS, (), [])
        lines = drawing.dot(graph).splitlines() if form == "dot" else self._tree(graph)
        rows = [*map(_node_row, graph.nodes), *map(_edge_row, graph.edges)]
        return Report(_COLUMNS, rows, lines)

    def _tree(self, graph: Graph) -> list[str]:
        """Draw with what the terminal can show."""
        encoding = self.app.stdout.encoding or "ascii"
        can_draw = encoding.lower().replace("-", "") == "utf8" and self.app.stdout.isatty()
        lines = drawing.tree(graph, ascii_only=not can_draw)
        return [line.encode(encoding, "backslashreplace").decode(encoding) for line in lines]


def _drawn(graph: Graph, form: str) -> bytes:
    if form == "tree":
        return "\n".join([*drawing.tree(graph), ""]).encode()
    source = drawing.dot(graph)
    return source.encode() if form == "dot" else drawing.picture(source, form)


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise Refused(f"{path} can't be written: {error.strerror}") from None


def _node_row(node: Node) -> tuple[object, ...]:
    health = node.health
    answers, says = (None, "") if health is None else (health.answers, health.says)
    details = ", ".join([*node.details, *node.marks])
    return ("node", node.id, node.kind, node.name, node.server, "", "", details, answers, says)


def _edge_row(edge: Edge) -> tuple[object, ...]:
    return ("edge", "", edge.what, "", "", edge.source, edge.target, "", None, "")


COMMANDS: dict[str, type[Command]] = {"layout": Layout}
"""What is here, by the names of its commands."""
