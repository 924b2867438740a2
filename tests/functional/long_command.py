# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage count``: a long command that stands still where a test wants it to, in a process of its own."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from cellmw.cmd import manage
from cellmw.cmd.command import Command, Report, note
from cellmw.cmd.progress import Progress

if TYPE_CHECKING:
    import argparse

TOTAL = 1000


class Count(Command):
    """Count to a thousand, and stop for ever in the middle where that is asked for."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take where to stop."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--hang", action="store_true", help="wait for Ctrl-C")
        parser.add_argument("--stuck", action="store_true", help="wait for a second one while unwinding")
        parser.add_argument("--note", action="store_true", help="say something in the middle")
        parser.add_argument("--rows", type=int, default=3, help="how many rows there are in the end")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Count."""
        with Progress("instances", TOTAL) as progress:
            progress.advance(TOTAL // 2)
            self.interrupted = f"{progress.done} of {TOTAL} are done: run it again for the rest"
            try:
                if parsed_args.note or parsed_args.hang or parsed_args.stuck:
                    note("in the middle")
                if parsed_args.hang or parsed_args.stuck:
                    threading.Event().wait()
            finally:
                if parsed_args.stuck:
                    note("stuck")
                    threading.Event().wait()
            progress.advance(TOTAL // 2)
        return Report(("Number",), [(number,) for number in range(parsed_args.rows)])


if __name__ == "__main__":
    manage._COMMANDS["count"] = Count
    sys.exit(manage.main())
