# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage cell_v2``: which instances are in which cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellmw.admin import access
from cellmw.admin.cell_tables import CellTables
from cellmw.admin.instance_mapping import InstanceMapper, locate
from cellmw.cmd.arguments import take_uuid
from cellmw.cmd.command import NAME, Command, Refused, Report, note
from cellmw.cmd.progress import Progress

if TYPE_CHECKING:
    import argparse

    from cellmw.admin.instance_mapping import Whereabouts
    from cellmw.cell import Cell

MORE = 1
"""The exit code where there are more instances to map."""

WITHOUT_PROJECT = 3
"""The exit code where all were dealt with, and some can't be mapped as they belong to no project."""

NO_COUNT = 127
"""The exit code of a number of instances that is none."""

_STATES = {"mapped": 0, "unmapped": 1, "building": 2, "deleted": 3, "gone": 4}
"""Where an instance is -> the exit code."""


class MapInstances(Command):
    """Map the instances of a cell that are not mapped yet, deleted ones included, oldest first.

    It may be interrupted at any moment, and goes on from there when it is run again; each cell has a place of its own.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the cell, and how far to go."""
        parser = super().get_parser(prog_name)
        take_uuid(parser, "the cell")
        parser.add_argument(
            "--max-count",
            "--max_count",
            metavar="<max_count>",
            help="deal with that many instances at most; exits with 1 as long as there may be more (default: all)",
        )
        parser.add_argument(
            "--reset", action="store_true", help="begin anew, wherever an earlier run was interrupted; nova-manage, too"
        )
        self.take_dry_run(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Map them."""
        max_count = _positive(parsed_args.max_count)
        with access.open_cells(self.app.conf) as cells:
            cell = access.get_cell(cells, parsed_args.cell_uuid)
            mapper = InstanceMapper(cells, CellTables(self.app.conf), cell, dry_run=parsed_args.dry_run)
            mapper.begin(reset=parsed_args.reset, max_count=max_count)
            with Progress("instances", mapper.total) as progress:
                for count in mapper.batches(max_count):
                    progress.advance(count)
                    if not parsed_args.dry_run:
                        self.interrupted = f"{mapper.done} instances are dealt with: run it again, and it goes on there"
        _remark(mapper, cell)
        return _mapped(mapper, cell, progress, parsed_args.dry_run)


class VerifyInstance(Command):
    """Say whether an instance is mapped to a cell, and whether it is there."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the instance."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--uuid", metavar="<instance_uuid>", required=True, help="the instance")
        parser.add_argument("--quiet", action="store_true", help="print nothing: the exit code says it")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Look for it."""
        uuid = parsed_args.uuid.lower()
        with access.open_cells(self.app.conf) as cells:
            found = locate(cells, CellTables(self.app.conf), uuid)
        lines = []
        if parsed_args.quiet:
            parsed_args.formatter = None
        else:
            lines = _told(uuid, found)
        row = (
            uuid,
            found.state,
            found.cell and found.cell.name,
            found.cell and found.cell.uuid,
            ", ".join(map(str, found.found_in)) or None,
        )
        columns = ("Instance UUID", "State", "Cell Name", "Cell UUID", "Found in")
        return Report(columns, [row], lines, _STATES[found.state])


def _positive(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and int(text)):
        raise Refused("--max-count takes a number of instances, 1 or more", NO_COUNT)
    return int(text)


def _remark(mapper: InstanceMapper, cell: Cell) -> None:
    """Say what was left for the operator to do."""
    if mapper.without_project:
        named = ", ".join(mapper.named)
        note(
            f"{mapper.without_project} instances can't be mapped, as their rows in the database of cell {cell} name no "
            f"project ({named}{', ...' if mapper.without_project > len(mapper.named) else ''}): "
            "write it there, and run this again when all others are mapped"
        )
    if mapper.elsewhere:
        note(
            f"{mapper.elsewhere} instances are mapped already, but not to cell {cell}, and were left alone: "
            f"`{NAME} verify` says where each of them is"
        )


def _mapped(mapper: InstanceMapper, cell: Cell, progress: Progress, dry_run: bool) -> Report:
    code = MORE
    if mapper.complete:
        code = WITHOUT_PROJECT if mapper.without_project else 0
    line = (
        f"cell {cell}: {mapper.done} instances, {mapper.mapped} {'would be ' if dry_run else ''}mapped, "
        f"{progress.rate:.0f} a second; "
    )
    line += "that was all of them" if mapper.complete else "there may be more: run it again"
    columns = ("Cell UUID", "Instances", "Mapped", "Unchanged", "Elsewhere", "Without project", "Rate", "Complete")
    counts = (mapper.done, mapper.mapped, mapper.unchanged, mapper.elsewhere, mapper.without_project)
    row = (cell.uuid, *counts, round(progress.rate), mapper.complete)
    return Report(columns, [row], [line], code)


def _told(uuid: str, found: Whereabouts) -> list[str]:
    """Say where an instance is, and what there is to do."""
    cell = found.cell and f"cell {found.cell.uuid} ({found.cell.name or 'without a name'})"
    if found.state == "unmapped":
        return [f"instance {uuid} has no mapping: there is no such instance, or `{NAME} cell_v2 map_instances` is due"]
    if found.state == "building":
        return [f"instance {uuid} has a mapping and no cell yet: it is being built"]
    if found.state == "mapped":
        return [f"instance {uuid} is in {cell}"]
    if found.state == "deleted":
        return [
            f"instance {uuid} was deleted, and its row is still in {cell}: "
            "the service that deletes such rows for good, as `nova-manage db archive_deleted_rows`, removes the mapping"
        ]
    lines = [f"instance {uuid} is mapped to {cell}, and is not there"]
    lines += [f"instance {uuid} is in cell {other.uuid} ({other.name or 'without a name'})" for other in found.found_in]
    lines += [f"cell {other} does not answer: it may be there" for other in found.unanswered]
    if found.found_in or not found.unanswered:
        lines.append(f"`{NAME} verify --repair` corrects the mapping")
    return lines


COMMANDS: dict[str, type[Command]] = {"map_instances": MapInstances, "verify_instance": VerifyInstance}
"""What is here, by the names of its commands."""
