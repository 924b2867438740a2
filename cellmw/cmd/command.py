# SPDX-License-Identifier: Apache-2.0
"""What every command does alike: open the store, and turn an error into one line and an exit code."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, ClassVar

from cliff import command
from oslo_log import log

from cellmw import deploy
from cellmw.exceptions import CellmwError
from cellmw.log import masked

if TYPE_CHECKING:
    import argparse

    from cellmw.cmd.manage import Manage
    from cellmw.store import Store

LOG = log.getLogger(__name__)

NAME = "cellmw-manage"

ERROR = 255
"""The exit code of an error that has none of its own."""


class Refused(CellmwError):
    """What was asked for can't be done as it was written; the message says how it can."""


class Command(command.Command):
    """One command. Lives as long as the process.

    :cvar exit_codes: errors that have an exit code of their own in this command
    """

    app: Manage
    exit_codes: ClassVar[tuple[tuple[type[CellmwError], int], ...]] = ()

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take no options; what can't be read is quoted without the passwords in it."""
        parser = super().get_parser(prog_name)
        error = parser.error
        parser.error = lambda message: error(masked(message))  # type: ignore[method-assign]
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Run the command; an error becomes one line on stderr, with its traceback in the debug log."""
        try:
            return super().run(parsed_args)
        except CellmwError as error:
            LOG.debug("%s failed", self.cmd_name, exc_info=True)
            note(str(error))
            return dict(self.exit_codes).get(type(error), ERROR)
        except (BrokenPipeError, KeyboardInterrupt):
            raise
        except Exception as error:
            LOG.debug("%s failed", self.cmd_name, exc_info=True)
            note(f"{type(error).__name__}, which should not happen: `{NAME} --debug` shows where")
            return ERROR

    def open_store(self) -> Store:
        """Make the store that the configuration names, for a with block."""
        return deploy.store(self.app.conf)

    def say(self, line: str) -> None:
        """Print what the command was asked for."""
        print(line, file=self.app.stdout)


def note(line: str) -> None:
    """Print what a script that reads the output does not want to see there."""
    print(f"{NAME}: {masked(line)}", file=sys.stderr)  # noqa: T201 - what a command is for
