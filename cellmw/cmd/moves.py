# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage cell_v2``: cells and instances that are held back while they are worked on."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from oslo_utils import timeutils

from cellmw import deploy
from cellmw.admin.access import open_cells, reading
from cellmw.admin.cell_tables import CellTables
from cellmw.admin.moving import CHANGED, HoldTaken, Move, Pace
from cellmw.cell import Cell
from cellmw.cmd.arguments import configuration, take_ini, take_uuid
from cellmw.cmd.command import Command, Refused, Report, note
from cellmw.cmd.progress import Progress
from cellmw.deadline import after, left
from cellmw.exceptions import CellNotFound, InstanceNotMapped, StoreUnavailable
from cellmw.log import masked
from cellmw.store.database import chunked

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from datetime import datetime

    from cellmw.admin.moving import Moved
    from cellmw.cells import Cells

_CHANGED = 2
"""The exit code of a move of which at least one instance was not moved, as somebody else has changed its mapping."""

_LONGEST_REASON = 255

_LAST_CHARACTER = "\uffff"
"""Of those that a table has room for in MariaDB and MySQL where it is as Nova makes its own, in utf8mb3."""


class _CellCommand(Command):
    """What commands for one cell take."""

    exit_codes = ((Refused, 1), (CellNotFound, 1))

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the cell."""
        parser = super().get_parser(prog_name)
        take_uuid(parser)
        take_ini(parser)
        self.take_dry_run(parser)
        return parser


class Drain(_CellCommand):
    """Have every service refuse requests for the instances of a cell, with 503 and Retry-After.

    Requests that are under way go on to their end, and the connections of the services to the cell are closed after the
    last of them. Nothing in the cell is touched. Other cells are served as ever.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take why, and whether to wait."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--reason", metavar="<text>", help="what others are to read about it")
        parser.add_argument("--wait", action="store_true", help="return when no request can be under way any more")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Record that it is drained."""
        reason = _reason(parsed_args.reason)
        conf = configuration(self.app.conf, parsed_args)
        pace = Pace.of(conf)
        with deploy.store(conf) as store:
            cell = store.get_cell(parsed_args.cell_uuid)
            if parsed_args.dry_run:
                drained = {held.cell_uuid for held in store.list_held().cells}
                outcome = "unchanged" if cell.uuid in drained else "would be drained"
                return _report(cell, outcome, f"cell {cell}: {outcome}")
            is_new = store.drain_cell(cell.uuid, reason)
        line = f"cell {cell} is drained"
        if not is_new:
            line += " already"
            if reason:
                note("what was recorded with it stays: `cell_v2 list_held` shows it")
        self.interrupted = f"{line}; `cell_v2 undrain` undoes it"
        if parsed_args.wait:
            self._wait(pace.told, "until every service knows")
            self._wait(pace.ended, "until the last request has ended")
        else:
            note(
                f"every service knows in {pace.told:.0f} s, and {pace.ended:.0f} s later the last request has ended, "
                "but for responses that go on being streamed; --wait waits for that"
            )
        return _report(cell, "drained" if is_new else "unchanged", line)

    def _wait(self, seconds: float, what: str) -> None:
        note(f"waiting {seconds:.0f} s {what}")
        _wait(seconds)


class Undrain(_CellCommand):
    """Have every service let requests for the instances of a cell through again."""

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Record that it is not drained any more."""
        conf = configuration(self.app.conf, parsed_args)
        pace = Pace.of(conf)
        with deploy.store(conf) as store:
            uuid = parsed_args.cell_uuid
            drained = {held.cell_uuid for held in store.list_held().cells}
            try:
                cell = store.get_cell(uuid)
            except CellNotFound:
                if uuid not in drained:
                    raise
                # nova-manage, which has deleted it, knows nothing of our table
                cell = Cell(0, uuid, None, False, None, None)
            if uuid not in drained:
                return _report(cell, "unchanged", f"cell {cell} is not drained")
            if parsed_args.dry_run:
                return _report(cell, "would be undrained", f"cell {cell}: would be undrained")
            store.undrain_cell(uuid)
        note(f"every service knows in {pace.told:.0f} s")
        return _report(cell, "undrained", f"cell {cell} is not drained any more")


class ListHeld(Command):
    """Show what is held back: cells that are drained, and instances that are being moved."""

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Read the records."""
        with self.open_store() as store:
            held = store.list_held()
            names = {cell.uuid: cell.name or "" for cell in store.list_cells()}
        rows: list[tuple[object, ...]] = [
            ("cell", cell.cell_uuid, names.get(cell.cell_uuid, ""), _time(cell.since), None, cell.reason)
            for cell in held.cells
        ]
        rows += [
            ("instance", instance.instance_uuid, "", _time(instance.since), _time(instance.until), None)
            for instance in held.instances
        ]
        return Report(("What", "UUID", "Name", "Since", "Until", "Reason"), rows)


class MoveInstance(Command):
    """Map instances to another cell, in whose database they are by now, so that no request reaches them in both.

    They are held back, with 503 and Retry-After, until every service knows, then mapped to the cell, and then held back
    until no service goes by the old mapping any more. Their rows, volumes and processes are not this command's affair.
    """

    exit_codes = ((Refused, 1), (CellNotFound, 1), (InstanceNotMapped, 1), (HoldTaken, _CHANGED))

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the instances and the cell."""
        parser = super().get_parser(prog_name)
        parser.add_argument("uuids", nargs="+", metavar="<instance_uuid>", help="the uuid of an instance")
        parser.add_argument("--to", required=True, metavar="<cell>", help="the uuid or the name of the cell")
        parser.add_argument("--force", action="store_true", help="also where the cell's database has no such instance")
        take_ini(parser)
        self.take_dry_run(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Move them."""
        conf = configuration(self.app.conf, parsed_args)
        pace = Pace.of(conf)
        uuids = [uuid.lower() for uuid in parsed_args.uuids]
        with open_cells(conf) as cells:
            cell = cells.get(parsed_args.to)
            names = {each.id: str(each) for each in cells.known()}
            drained = {held.cell_uuid for held in cells.store.list_held().cells}
            if not parsed_args.force:
                _check(CellTables(conf), cells, cell, uuids)
            with Move(cells, uuids, cell, pace) as move:
                if parsed_args.dry_run or not move.is_needed:
                    rows = [
                        (mapping.instance_uuid, names.get(mapping.cell_id or 0), str(cell), outcome)
                        for mapping in move.mappings
                        for outcome in ["unchanged" if mapping.cell_id == cell.id else "would be moved"]
                    ]
                    if until := _held_until(cells, uuids):
                        note(f"some are held back, by a move that is not done or was killed: until {_time(until)}")
                    return _moves(rows)
                moved = self._carry_out(move, cell, pace)
        rows = [(done.instance_uuid, names.get(done.before or 0), str(cell), done.outcome) for done in moved]
        report = _moves(rows)
        if cell.uuid in drained:
            note(f"cell {cell} is drained: requests for them are refused until `cell_v2 undrain`")
        if any(done.outcome == CHANGED for done in moved):
            note("somebody else has changed mappings meanwhile, and they were left at that: see where they are now")
            return Report(report.columns, report.rows, report.lines, _CHANGED)
        return report

    def _carry_out(self, move: Move, cell: Cell, pace: Pace) -> list[Moved]:
        """Go from step to step, and have it said where they are wherever it ends."""
        try:
            move.hold()
            note(f"requests are refused; waiting {pace.told:.0f} s until every service knows")
            later = f"requests are let through again at {_time(move.until)}"
            self.interrupted = (
                f"no instance was moved, and requests are let through again, {_time(move.until)} at the latest: "
                "run it again"
            )
            _wait(pace.told)
            self.interrupted = f"{later}: run it again"
            moved = move.change()
            self.interrupted = f"the instances are mapped to cell {cell}, and {later}"
            note(f"mapped to cell {cell}; waiting {pace.over:.0f} s until no service goes by an old mapping")
            _wait(pace.over)
            move.let_go()
        except StoreUnavailable:
            note(f"stopped: {self.interrupted}")
            raise
        if until := move.held_by_others:
            note(f"some were held back before, by a move that is not done or was killed: they are until {_time(until)}")
        return moved


def _reason(text: str | None) -> str | None:
    """Return a reason in one line, without a password that it may quote.

    :raises Refused: if not every database can keep it, or not every terminal show it
    """
    reason = masked(" ".join((text or "").split()))
    if len(reason) > _LONGEST_REASON:
        raise Refused(f"the reason has more than {_LONGEST_REASON} characters: shorten it")
    if not reason.isprintable() or max(reason, default="") > _LAST_CHARACTER:
        raise Refused("the reason has characters that not every database or terminal takes: leave them out")
    return reason or None


def _check(tables: CellTables, cells: Cells, cell: Cell, uuids: Sequence[str]) -> None:
    """Refuse to map an instance to where it is not."""
    there: set[str] = set()
    with reading(cells, cell) as session:
        for chunk in chunked(uuids):
            there |= {row.uuid.lower() for row in tables.find_instances(session, chunk) if not row.deleted}
    for uuid in uuids:
        if uuid not in there:
            raise Refused(
                f"the database of cell {cell} has no instance {uuid}: bring its rows there first, or give --force"
            )


def _held_until(cells: Cells, uuids: Sequence[str]) -> datetime | None:
    """Return until when one of these is held back; None where none is."""
    wanted = set(uuids)
    held = (held.until for held in cells.store.list_held().instances if held.instance_uuid in wanted)
    return max((until for until in held if until > timeutils.utcnow()), default=None)


def _wait(seconds: float) -> None:
    """Wait, and show that something goes on."""
    never = threading.Event()
    deadline = after(seconds)
    with Progress("seconds", round(seconds)) as progress:
        while still := left(deadline):
            never.wait(min(still, 1.0))
            progress.advance(round(seconds - left(deadline)) - progress.done)


def _report(cell: Cell, outcome: str, line: str) -> Report:
    return Report(("Name", "UUID", "Outcome"), [(cell.name or "", cell.uuid, outcome)], [line])


def _moves(rows: Sequence[tuple[str, str | None, str, str]]) -> Report:
    lines = [f"instance {uuid}: {outcome}" for uuid, _, _, outcome in rows]
    return Report(("Instance UUID", "From", "To", "Outcome"), rows, lines)


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


COMMANDS: dict[str, type[Command]] = {
    "drain": Drain,
    "list_held": ListHeld,
    "move_instance": MoveInstance,
    "undrain": Undrain,
}
"""What belongs to the family ``cell_v2``, by the names of its commands."""
