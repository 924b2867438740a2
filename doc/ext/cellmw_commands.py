# SPDX-License-Identifier: Apache-2.0
"""The commands that ``cellmw-manage`` has -> what they do and take: the directive ``cellmw-command``."""

from __future__ import annotations

import argparse
import textwrap
from typing import TYPE_CHECKING

from oslo_config import cfg
from sphinx.util.docutils import SphinxDirective

from cellmw.cmd.command import NAME, Command
from cellmw.cmd.manage import Manage

if TYPE_CHECKING:
    from collections.abc import Iterator, Set

    from docutils import nodes
    from sphinx.application import Sphinx


class CommandReference(SphinxDirective):
    """Show one command as its own ``--help`` has it: ``.. cellmw-command:: cell_v2 list_cells``, or one word alone.

    What all commands take is left out, but for ``--dry-run``, which tells that one writes. The content of the
    directive, if there is any, stands between what the command does and what it takes.
    """

    required_arguments = 1
    optional_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Write what there is to say as reStructuredText, and have that parsed."""
        return self.parse_text_to_nodes("\n".join(self._entry(" ".join(self.arguments))))

    def _entry(self, name: str) -> Iterator[str]:
        app = Manage(cfg.ConfigOpts())
        try:
            command_class, _, _ = app.command_manager.find_command(name.split())
        except ValueError as missing:
            raise self.error(f"{NAME} has no such command: {name}") from missing
        command = command_class(app, None)
        parser = command.get_parser(f"{NAME} {name}")
        of_all = Command(app, None).get_parser(NAME)._option_string_actions.keys()
        yield f".. program:: {parser.prog}"
        yield f".. describe:: {' '.join([name, *_needed(parser)])}"
        yield ""
        content = (*command.get_description().splitlines(), "", *self.content, "", *_entries(parser, of_all))
        yield from (textwrap.indent(line, "   ") for line in content)


def _needed(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Return what the command is not run without, and the arguments that are no options."""
    for action in parser._actions:
        if action.required or not action.option_strings:
            yield " ".join([*action.option_strings[:1], _value(action)])


def _entries(parser: argparse.ArgumentParser, of_all: Set[str]) -> Iterator[str]:
    for action in parser._actions:
        if of_all.isdisjoint(action.option_strings):
            yield f".. option:: {' '.join([', '.join(action.option_strings), _value(action)]).strip()}"
            yield ""
            yield f"   {action.help}"
            yield ""


def _value(action: argparse.Action) -> str:
    """Return what stands for the values that it takes."""
    if action.nargs == 0:
        return ""
    metavar = action.metavar or (action.option_strings and action.dest.upper()) or action.dest
    value = "{" + ",".join(action.choices) + "}" if action.choices else metavar
    return f"[{value}]" if action.nargs == argparse.OPTIONAL else value


def setup(app: Sphinx) -> dict[str, bool]:
    """Let Sphinx know of the directive."""
    app.add_directive("cellmw-command", CommandReference)
    return {"parallel_read_safe": True}
