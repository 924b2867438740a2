# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage explain``: what becomes of a request, and why."""

from __future__ import annotations

import argparse
import contextlib
from urllib.parse import urlsplit

from cellmw.admin import explanation
from cellmw.cmd.arguments import configuration, take_ini, take_patience
from cellmw.cmd.command import Command, Report

_WIDTH = 15
"""Of the column with the steps."""


class Explain(Command):
    """Show what the filter answers to a request for an instance, and why.

    Each thing that it goes by is shown as it is now: the route, the mapping, the caches, the cell, and whether its
    database and its queue answer. The answer is that of the filter itself, with nothing behind it. Nothing is changed.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the request."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "subject", metavar="<uuid or path>", type=_subject, help="the uuid of an instance, a path or a whole URL"
        )
        take_ini(parser)
        parser.add_argument(
            "--project", metavar="<id>", help="the project that asks (default: the one that the instance is of)"
        )
        parser.add_argument("--admin", action="store_true", help="let an admin ask")
        take_patience(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Explain it."""
        conf = configuration(self.app.conf, parsed_args)
        caller = explanation.Caller(parsed_args.project, parsed_args.admin)
        found = explanation.explain(conf, parsed_args.subject, caller, patience=parsed_args.patience)
        lines = [line for step in found.steps for line in _lines(step)]
        return Report(("Step", "Result", "Why"), found.steps, lines, exit_code=0 if found.passes else 1)


def _subject(text: str) -> str:
    with contextlib.suppress(ValueError):  # what is no text, and no URL
        if explanation.is_uuid(text) or (text.encode() and (text.startswith("/") or urlsplit(text).scheme)):
            return text
    raise argparse.ArgumentTypeError("it is neither a uuid with dashes nor a URL nor a path, which begins with a slash")


def _lines(step: explanation.Step) -> list[str]:
    lines = [f"{step.step:{_WIDTH}} {step.result}"]
    if step.why:
        lines.append(f"{'':{_WIDTH}} ({step.why})")
    return lines


COMMANDS: dict[str, type[Command]] = {"explain": Explain}
"""What is here, by the names of its commands."""
