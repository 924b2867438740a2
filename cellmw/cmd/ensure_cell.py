# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage cell_v2 ensure_cell``: what a cell's record is to say -> the record that says so, and what was done.

It is for configuration management, which runs it again and again, and from several hosts at the same moment.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from oslo_utils import uuidutils

from cellmw.cell import CELL0_UUID
from cellmw.cmd.arguments import take_urls, take_uuid
from cellmw.cmd.cell_urls import NO_QUEUE, CellUrls
from cellmw.cmd.cell_v2 import Wish, outcome, say_when
from cellmw.cmd.command import Command, Refused, Report
from cellmw.exceptions import CellChanged, CellExists, CellNotFound

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from cellmw.cell import Cell
    from cellmw.cmd.cell_urls import Recheck
    from cellmw.store import Store

_NAMESPACE = uuid.UUID("b0a3c2de-6d1f-4f0e-9a57-3c1f0e8d2a64")
"""What the uuids of cells that are made by a name alone are made in."""


class EnsureCell(Command):
    """See to it that a cell is recorded with what is given: create it, change what differs, or leave it as it is.

    The uuid tells which cell it is, or else the name does. What is not given is left as it is.
    """

    exit_codes = ((Refused, 1), (CellExists, 2), (CellChanged, 3), (CellNotFound, 3))

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take what the record is to say."""
        parser = super().get_parser(prog_name)
        take_uuid(parser, required=False)
        parser.add_argument(
            "--name", metavar="<cell_name>", help="its name; without a uuid, the one by which the cell is found"
        )
        take_urls(parser, "a template or a reference; a new cell needs it")
        state = parser.add_mutually_exclusive_group()
        state.add_argument("--disable", action="store_true", help="keep new instances away from it")
        state.add_argument("--enable", action="store_true", help="let it have new instances, as a new cell has anyway")
        self.take_dry_run(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Compare what is recorded with what is given, and write what differs."""
        _check(parsed_args)
        wish = Wish(parsed_args, CellUrls(self.app.conf))
        if parsed_args.cell_uuid == CELL0_UUID and wish.transport is None:
            wish.transport = NO_QUEUE
        with self.open_store() as store:
            try:
                return self._ensure(parsed_args, wish, store)
            except (CellChanged, CellNotFound):
                # by another one like this, most likely, which may have left nothing to do
                return self._ensure(parsed_args, wish, store)

    def _ensure(self, parsed_args: argparse.Namespace, wish: Wish, store: Store) -> Report:
        cells = store.list_cells()
        cell = _find(cells, parsed_args.cell_uuid, parsed_args.name)
        if cell is None:
            return self._create(parsed_args, wish, cells, store)
        changed = wish.changes(cell, store)
        recheck = wish.refuse_shared(changed, (other for other in cells if other is not cell))
        if not changed:
            return outcome(cell.name, cell.uuid, "unchanged", lines=[f"cell {cell}: unchanged"])
        if not parsed_args.dry_run:
            store.update_cell(cell.uuid, **changed, read=cell, check=recheck)
            say_when(self.app.conf, changed.keys())
        what = "would be changed" if parsed_args.dry_run else "changed"
        line = f"cell {cell}: {what} ({', '.join(changed)})"
        return outcome(changed.get("name", cell.name), cell.uuid, what, tuple(changed), lines=[line])

    def _create(self, parsed_args: argparse.Namespace, wish: Wish, cells: Sequence[Cell], store: Store) -> Report:
        record = wish.record(store)
        recheck = wish.refuse_shared(record, cells)
        # one uuid for one name, so that two who create it at the same moment do not get two cells
        record["uuid"] = parsed_args.cell_uuid or str(uuid.uuid5(_NAMESPACE, parsed_args.name))
        if record["uuid"] == CELL0_UUID:
            record["name"] = wish.name or "cell0"
        if any(cell.uuid == record["uuid"] for cell in cells):
            raise Refused(f"the cell that was made as {wish.name} is called something else now: give --cell_uuid")
        what = "would be created" if parsed_args.dry_run else "created"
        if not parsed_args.dry_run:
            _write(store, record, recheck)
        line = f"cell {record['name'] or record['uuid']}: {what}"
        return outcome(record["name"], record["uuid"], what, lines=[line])


def _check(parsed_args: argparse.Namespace) -> None:
    """Refuse what tells no cell from the others, and what no cell can be."""
    if not (parsed_args.cell_uuid or parsed_args.name):
        raise Refused("which cell is it? give --cell_uuid, --name, or both")
    if not parsed_args.cell_uuid:
        return
    if not uuidutils.is_uuid_like(parsed_args.cell_uuid):
        raise Refused(f"{parsed_args.cell_uuid!r} is no uuid")
    parsed_args.cell_uuid = str(uuid.UUID(parsed_args.cell_uuid))
    if parsed_args.cell_uuid == CELL0_UUID and (parsed_args.disable or parsed_args.enable):
        raise Refused("cell0 is neither enabled nor disabled: no instance is scheduled to it")


def _find(cells: Sequence[Cell], cell_uuid: str | None, name: str) -> Cell | None:
    """Return the cell that is meant, None where there is none.

    :raises Refused: if there are two
    """
    found = [cell for cell in cells if (cell.uuid == cell_uuid if cell_uuid else cell.name == name)]
    if len(found) > 1:
        uuids = " and ".join(cell.uuid for cell in found)
        raise Refused(f"{len(found)} cells are called {name}, {uuids}: give --cell_uuid")
    return found[0] if found else None


def _write(store: Store, record: dict[str, Any], recheck: Recheck) -> None:
    """Write a new record.

    :raises CellChanged: if the cell was not there a moment ago, and is now
    """
    try:
        store.create_cell(**record, check=recheck)
    except CellExists:
        if any(cell.uuid == record["uuid"] for cell in store.list_cells()):
            raise CellChanged(record["uuid"]) from None
        raise


COMMANDS: dict[str, type[Command]] = {"ensure_cell": EnsureCell}
"""What belongs to the family ``cell_v2``, by the names of its commands."""
