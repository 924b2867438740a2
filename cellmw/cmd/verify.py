# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage verify``: the mappings beside what the cells have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellmw.admin import access, verification
from cellmw.admin.cell_tables import CellTables
from cellmw.admin.verification import KINDS, NOT_QUEUED, Verification
from cellmw.cmd.arguments import take_uuid
from cellmw.cmd.command import NAME, Command, Report, note
from cellmw.cmd.progress import Progress

if TYPE_CHECKING:
    import argparse

    from cellmw.admin.verification import Finding

FAULTS = 1
"""The exit code where there are faults that are not repaired."""

INCOMPLETE = 3
"""The exit code where a cell gave no answer, whatever was found in the others."""

COLUMNS = ("Kind", "Instance UUID", "Mapped to", "Found in", "Outcome")
"""What is shown of a finding."""


class Verify(Command):
    """Look for instances that are not mapped to their cell, and for mappings of instances that are not there.

    All instances of all cells are compared with all mappings. It changes nothing without --repair.
    """

    interrupted = "what is repaired is repaired: run it again for the rest"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the cell, and whether to repair."""
        parser = super().get_parser(prog_name)
        take_uuid(parser, "only instances in this cell, and mappings to it (default: all)", required=False)
        parser.add_argument("--repair", action="store_true", help="correct the mappings where that is safe")
        self.take_dry_run(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Look at all of them."""
        with access.open_cells(self.app.conf) as cells:
            only = None if parsed_args.cell_uuid is None else access.get_cell(cells, parsed_args.cell_uuid)
            looking = Verification(
                cells,
                CellTables(self.app.conf),
                only,
                repair=parsed_args.repair or parsed_args.dry_run,
                dry_run=parsed_args.dry_run,
            )
            looking.begin()
            with Progress("instances and mappings", looking.total) as progress:
                for count in looking.pages():
                    progress.advance(count)
        _remark(looking)
        rows = [_row(finding, outcome) for finding, outcome in looking.shown]
        code = INCOMPLETE if looking.silent else FAULTS if looking.remaining else 0
        return Report(COLUMNS, rows, None if rows else _nothing(looking), code)


def _row(finding: Finding, outcome: str) -> tuple[str | None, ...]:
    mapped_to = None if finding.mapped_to is None else str(finding.mapped_to)
    if isinstance(finding.mapped_to, int):
        mapped_to = f"id {finding.mapped_to}, which has no record"
    return (
        finding.kind,
        finding.instance_uuid,
        mapped_to,
        ", ".join(map(str, finding.found_in)) or None,
        outcome,
    )


def _nothing(looking: Verification) -> list[str]:
    return ["nothing was found in the cells that have answered" if looking.silent else "all mappings are right"]


def _remark(looking: Verification) -> None:
    """Say how many there are of each kind, what became of them, and what is left to do."""
    for kind, meaning in KINDS.items():
        outcomes = {outcome: count for (each, outcome), count in looking.counts.items() if each == kind}
        if outcomes:
            counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
            note(f"{kind}: {sum(outcomes.values())} ({counts}): {meaning}")
    left_out = sum(count for (kind, _), count in looking.counts.items() if kind != NOT_QUEUED) - len(looking.shown)
    if left_out:
        note(f"{left_out} more are counted, and not shown: {verification.SHOWN} of each kind are")
    if looking.remaining and not looking.repair:
        note(f"`{NAME} verify --repair` corrects what it can; with --dry-run it says what that is")
    if looking.building:
        note(f"{looking.building} instances are mapped to no cell yet: they are being built")
    for cell, reason in looking.silent.items():
        note(f"cell {cell} could not be looked into, and nothing was said or repaired that depends on it: {reason}")
    if looking.unjudged:
        note(f"{looking.unjudged} mappings can't be judged before all cells answer")


COMMANDS: dict[str, type[Command]] = {"verify": Verify}
"""What is here, by the names of its commands."""
