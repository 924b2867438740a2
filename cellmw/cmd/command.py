# SPDX-License-Identifier: Apache-2.0
"""What every command does alike: show what it has found or done, and turn an error into one line and an exit code."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cliff import lister
from oslo_config import cfg
from oslo_log import log
from tqdm import tqdm

from cellmw import deploy
from cellmw.cmd.interrupts import exit_code
from cellmw.cmd.program import drop_output
from cellmw.exceptions import CellmwError
from cellmw.log import masked

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from cliff.display import DisplayCommandBase
    from cliff.formatters.base import ListFormatter

    from cellmw.cmd.manage import Manage
    from cellmw.store import Store

    class _Lister(DisplayCommandBase[ListFormatter]):
        """cliff's Lister, but for the type of what its take_action() returns: that of ours is a Report."""

        formatter_namespace = formatter_default = ""

        def produce_output(self, parsed_args: argparse.Namespace, column_names: Sequence[str], data: Any) -> int: ...
else:
    _Lister = lister.Lister

LOG = log.getLogger(__name__)

NAME = "cellmw-manage"

ERROR = 255
"""The exit code of an error that has none of its own."""

USAGE = 2
"""The exit code of arguments that can't be read, as argparse has it."""


class Refused(CellmwError):
    """What was asked for can't be done as it was written; the message says how it can.

    :ivar exit_code: the one of this very reason; None for the command's own for this class
    """

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class NotShown(CellmwError):
    """What was found or done can't be printed, as where a disk is full."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"it is done, and what there is to show can't be written: {error.strerror}")


@dataclass(frozen=True)
class Report:
    """What a command has found or done.

    :ivar columns: the header of the rows
    :ivar rows: what ``-f`` shows, as text, numbers, booleans and None
    :ivar lines: what is shown without ``-f``; None for the rows as a table
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    lines: Sequence[str] | None = None
    exit_code: int = 0


class Command(_Lister):
    """One command. Lives as long as the process.

    :cvar exit_codes: errors that have an exit code of their own in this command
    :ivar interrupted: what is said after Ctrl-C and SIGTERM; a command that goes on for long says there where to go on
    """

    app: Manage
    exit_codes: ClassVar[tuple[tuple[type[CellmwError], int], ...]] = ()
    interrupted = "nothing is half-done: run it again"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take what chooses the form of the output; what can't be read is quoted without the passwords in it."""
        parser = super().get_parser(prog_name)
        parser.set_defaults(formatter=None, print_empty=True)
        error = parser.error
        parser.error = lambda message: error(masked(message))  # type: ignore[method-assign]
        return parser

    def take_dry_run(self, parser: argparse.ArgumentParser) -> None:
        """Let a command that writes take ``--dry-run``."""
        parser.add_argument(
            "--dry-run", "--dry_run", action="store_true", help="say what would be done, and change nothing"
        )

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Do it, and return what there is to show."""
        raise NotImplementedError

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Run the command; an error becomes one line on stderr, with its traceback in the debug log."""
        try:
            report = self.take_action(parsed_args)
            self._show_all(report, parsed_args)
        except CellmwError as error:
            LOG.debug("%s failed", self.cmd_name, exc_info=True)
            note(str(error))
            return self._exit_code(error)
        except cfg.Error as error:  # whose traceback can have what is behind a $ in a password
            LOG.debug("%s failed: %s", self.cmd_name, type(error).__name__)
            note(_wrong_option(error))
            return ERROR
        except KeyboardInterrupt as interrupt:
            note(f"interrupted: {self.interrupted}")
            return exit_code(interrupt)
        except BrokenPipeError:
            raise
        except Exception as error:
            LOG.debug("%s failed", self.cmd_name, exc_info=True)
            note(f"{type(error).__name__}, which should not happen: `{NAME} --debug` shows where")
            return ERROR
        return report.exit_code

    def open_store(self) -> Store:
        """Make the store that the configuration names, for a with block."""
        return deploy.store(self.app.conf)

    def _exit_code(self, error: CellmwError) -> int:
        if isinstance(error, Refused) and error.exit_code is not None:
            return error.exit_code
        return dict(self.exit_codes).get(type(error), ERROR)

    def _show_all(self, report: Report, parsed_args: argparse.Namespace) -> None:
        try:
            self._show(report, parsed_args)
            self.app.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            drop_output()
            raise NotShown(error) from None

    def _show(self, report: Report, parsed_args: argparse.Namespace) -> None:
        if report.lines is not None and parsed_args.formatter is None and not parsed_args.columns:
            for line in report.lines:
                print(line, file=self.app.stdout)
            return
        formatter = self._formatter_plugins[parsed_args.formatter or "table"].obj
        assert formatter is not None
        self.formatter = formatter
        known = {self._normalize_column_name(column) for column in report.columns}
        for column in parsed_args.sort_columns:  # cliff would not sort, and not say so
            if self._normalize_column_name(column) not in known:
                there = ", ".join(report.columns)
                raise Refused(f"it is done, and there is no column {column!r} to sort by: there are {there}", USAGE)
        try:
            self.produce_output(parsed_args, report.columns, report.rows)
        except ValueError as unknown_column:
            raise Refused(f"it is done, and can't be shown: {unknown_column}", USAGE) from None


def _wrong_option(error: cfg.Error) -> str:
    """Say what is wrong with the configuration; of a $ in a password oslo.config would show what is behind it."""
    if isinstance(error, (cfg.NoSuchOptError, cfg.TemplateSubstitutionError)):
        return "a value in the configuration refers by $ to an option that there is not: write $$ for a $ that is one"
    return f"the configuration is wrong: {error}"


def note(line: str) -> None:
    """Print what a script that reads the output does not want to see there."""
    with tqdm.external_write_mode(file=sys.stderr):  # a bar goes on below it
        print(f"{NAME}: {masked(line)}", file=sys.stderr)  # noqa: T201 - what a command is for
