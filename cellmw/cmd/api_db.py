# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage api_db``: the tables of the API database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellmw.cmd.command import Command, Report, note
from cellmw.store import migrations

if TYPE_CHECKING:
    import argparse


class Sync(Command):
    """Create the tables of the API database, or bring them up to date.

    On a database that Nova manages, Nova's tables are left as they are. Running it again changes nothing.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the revision to stop at."""
        parser = super().get_parser(prog_name)
        parser.add_argument("version", nargs="?", help="the revision to bring the tables to (default: the newest)")
        self.take_dry_run(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Sync the database, and say whose the tables are."""
        with self.open_store() as store:
            before = migrations.version(store.engine)
            done = migrations.sync(store.engine, parsed_args.version, dry_run=parsed_args.dry_run)
        whose = "Nova's tables are left as they are; " if done.nova else ""
        is_at = f"would go from {before} to" if parsed_args.dry_run and before != done.version else "is at"
        return Report(
            ("Version", "Before", "Nova"),
            [(done.version, before, done.nova)],
            [f"{whose}the API database {is_at} {done.version}"],
        )


class Version(Command):
    """Print the revision that the API database is at, or None if it was never synced."""

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Find the revision out."""
        with self.open_store() as store:
            version = migrations.version(store.engine)
        if version is None:
            note("the API database was never synced: run `cellmw-manage api_db sync`")
        return Report(("Version",), [(version,)], [str(version)])


COMMANDS: dict[str, type[Command]] = {"sync": Sync, "version": Version}
"""The family, by the names of its commands."""
