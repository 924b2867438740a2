# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage cell_v2``: the cells, with the names, options and exit codes of ``nova-manage cell_v2``."""

from __future__ import annotations

import contextlib
import unicodedata
from typing import TYPE_CHECKING, Any

from cellmw import deploy, urls
from cellmw.cell import CELL0_UUID
from cellmw.cmd.arguments import take_urls, take_uuid
from cellmw.cmd.cell_urls import NO_QUEUE, CellUrls
from cellmw.cmd.command import Command, Refused, Report, note
from cellmw.credentials import is_encrypted, is_reference, key_id
from cellmw.exceptions import CellChanged, CellExists, CellInUse, CellMisconfigured, CellNotFound, CredentialError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Collection, Iterable, Sequence

    from oslo_config import cfg

    from cellmw.cell import Cell
    from cellmw.cmd.cell_urls import Recheck
    from cellmw.store import Store


class CreateCell(Command):
    """Record a cell, so that every running service uses it from now on.

    The cell's database and message queue are not contacted. A URL that nobody could use is refused, and so is a cell
    that shares its database or its message queue with another.
    """

    exit_codes = ((Refused, 1), (CellExists, 2))

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the fields of the record."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--name", metavar="<cell_name>", help="the name of the cell, for people")
        take_urls(parser, "a template or a reference (default: {})")
        parser.add_argument("--disabled", action="store_true", help="keep new instances away from the cell")
        parser.add_argument("--verbose", action="store_true", help="print the uuid of the new cell")
        self.take_dry_run(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Record the cell."""
        check_name(parsed_args.name)
        urls_of_cell = CellUrls(self.app.conf)
        transport = urls_of_cell.transport(parsed_args.transport_url)
        database = urls_of_cell.database(parsed_args.database_connection)
        with self.open_store() as store:
            recheck = urls_of_cell.refuse_shared(store.list_cells(), database, transport)
            record: dict[str, Any] = {
                "name": parsed_args.name,
                "transport_url": urls_of_cell.protect(transport.stored, store),
                "database_connection": urls_of_cell.protect(database.stored, store),
                "disabled": parsed_args.disabled,
            }
            uuid = None if parsed_args.dry_run else store.create_cell(**record, check=recheck).uuid
        if not parsed_args.transport_url:
            note("the cell has the transport URL of [DEFAULT] transport_url")
        if not parsed_args.database_connection:
            note("the cell has the database of [database] connection")
        if parsed_args.dry_run:
            return outcome(parsed_args.name, None, "would be created", lines=["the cell would be recorded"])
        return outcome(parsed_args.name, uuid, "created", lines=[str(uuid)] if parsed_args.verbose else [])


class ListCells(Command):
    """Show the cells, by name, with what stands in their records. Passwords are never shown."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take nova-manage's option."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--verbose", action="store_true", help="for scripts written for nova-manage: passwords stay masked here"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Read the records."""
        with self.open_store() as store:
            cells = sorted(store.list_cells(), key=lambda cell: cell.name or "")
        header = ("Name", "UUID", "Transport URL", "Database Connection", "Disabled")
        return Report(header, [(cell.name or "", cell.uuid, *_shown_urls(cell), cell.disabled) for cell in cells])


class MapCell0(Command):
    """Record cell0, where instances go that no cell could take. It has a database and no message queue.

    Where cell0 is recorded already, it is left as it is.
    """

    exit_codes = ((Refused, 1), (CellExists, 2))

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the database."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--database_connection",
            "--database-connection",
            metavar="<database_connection>",
            help="the URL of its database (default: [database] connection, with _cell0 behind the database's name)",
        )
        self.take_dry_run(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Record cell0."""
        urls_of_cell = CellUrls(self.app.conf)
        database = urls_of_cell.database_of_cell0(parsed_args.database_connection)
        with self.open_store() as store:
            cells = store.list_cells()
            if any(cell.uuid == CELL0_UUID for cell in cells):
                left = "cell0 is recorded already, and was left as it is"
                return outcome("cell0", CELL0_UUID, "unchanged", lines=[left])
            recheck = urls_of_cell.refuse_shared(cells, database)
            record: dict[str, Any] = {
                "uuid": CELL0_UUID,
                "name": "cell0",
                "transport_url": NO_QUEUE.stored,
                "database_connection": urls_of_cell.protect(database.stored, store),
            }
            if parsed_args.dry_run:
                return outcome("cell0", CELL0_UUID, "would be created", lines=["cell0 would be recorded"])
            store.create_cell(**record, check=recheck)
        return outcome("cell0", CELL0_UUID, "created", lines=[])


class DeleteCell(Command):
    """Forget a cell. Its database and message queue are not contacted, and keep what they have.

    A cell that hosts or instances are mapped to is not forgotten. With --force the mappings of its hosts, and those of
    instances that are queued for deletion, go with it; any other instance is still a reason to refuse.
    """

    exit_codes = ((CellNotFound, 1),)

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the cell."""
        parser = super().get_parser(prog_name)
        take_uuid(parser)
        parser.add_argument(
            "--force", action="store_true", help="forget its hosts, and instances queued for deletion, with it"
        )
        self.take_dry_run(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Delete the cell's record."""
        uuid, dry_run = parsed_args.cell_uuid, parsed_args.dry_run
        with self.open_store() as store:
            name = store.get_cell(uuid).name
            try:
                store.delete_cell(uuid, force=parsed_args.force, dry_run=dry_run)
            except CellInUse as error:
                exit_code = _IN_USE[error.mapped[0]][0]
                # --force is of no use to a cell with instances, whatever else is mapped to it
                way_out = _IN_USE["instances" if "instances" in error.mapped else error.mapped[0]][1]
                raise Refused(f"{error}: {way_out}", exit_code) from None
        if dry_run:
            return outcome(name, uuid, "would be deleted", lines=[f"cell {uuid} would be forgotten"])
        return outcome(name, uuid, "deleted", lines=[])


class UpdateCell(Command):
    """Change what is given of a cell's record, and nothing else: running services follow within refresh_interval.

    A disabled cell goes on being served. In Nova, instances are placed there until nova-scheduler gets a SIGHUP, and
    where it is enabled again they are not before the next one.
    """

    exit_codes = ((CellNotFound, 1), (Refused, 2), (CellChanged, 2), (CellExists, 3))

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the cell, and what is to be different."""
        parser = super().get_parser(prog_name)
        take_uuid(parser)
        parser.add_argument("--name", metavar="<cell_name>", help="its new name")
        take_urls(parser, "a template or a reference, from now on")
        parser.add_argument("--disable", action="store_true", help="keep new instances away from it")
        parser.add_argument("--enable", action="store_true", help="let it have new instances again")
        self.take_dry_run(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Change the record."""
        uuid, dry_run = parsed_args.cell_uuid, parsed_args.dry_run
        with self.open_store() as store:
            cells = store.list_cells()
            cell = next((cell for cell in cells if cell.uuid == uuid), None)
            if cell is None:
                raise CellNotFound(uuid)
            wish = Wish(parsed_args, CellUrls(self.app.conf))
            changed = wish.changes(cell, store)
            recheck = wish.refuse_shared(changed, (other for other in cells if other is not cell))
            _refuse_states(cell, parsed_args)
            if changed and not dry_run:
                store.update_cell(uuid, **changed, read=cell, check=recheck)
        if not changed:
            return outcome(cell.name, uuid, "unchanged", lines=[f"cell {cell}: nothing to change"])
        columns = tuple(changed)
        if dry_run:
            doing = f"cell {cell} would be changed ({', '.join(columns)})"
            return outcome(cell.name, uuid, "would be changed", columns, lines=[doing])
        say_when(self.app.conf, columns)
        return outcome(changed.get("name", cell.name), uuid, "changed", columns, lines=[])


class Wish:
    """What the options of a command want of a cell's record. Lives as long as the command."""

    def __init__(self, parsed_args: argparse.Namespace, urls_of_cell: CellUrls) -> None:
        """Take what was typed; an empty text is nothing.

        :raises Refused: if nobody could use one of the URLs, or the column does not take the name
        """
        self.name: str | None = parsed_args.name or None
        check_name(self.name)
        self.disabled = True if parsed_args.disable else False if parsed_args.enable else None
        self._urls = urls_of_cell
        self.transport = urls_of_cell.transport(parsed_args.transport_url) if parsed_args.transport_url else None
        self.database = (
            urls_of_cell.database(parsed_args.database_connection) if parsed_args.database_connection else None
        )

    def changes(self, cell: Cell, store: Store) -> dict[str, Any]:
        """Return the columns of the record that are to be different, with what is to stand there.

        :raises Refused: if Nova could not read what would be recorded
        """
        before = _record(cell)
        wanted = {"name": self.name, "disabled": self.disabled}
        if self.transport is not None:
            wanted["transport_url"] = self._urls.as_recorded(self.transport.stored, cell.reveal_transport_url, store)
        if self.database is not None:
            stored = self._urls.as_recorded(self.database.stored, cell.reveal_database_connection, store)
            wanted["database_connection"] = stored
        return {column: value for column, value in wanted.items() if value not in (None, before[column])}

    def refuse_shared(self, columns: Collection[str], others: Iterable[Cell]) -> Recheck:
        """Refuse URLs that lead to the database or to the queue of another cell.

        :param columns: those that are to be written
        :returns: refuses the same of cells that are recorded meanwhile
        :raises CellExists: if one does
        """
        return self._urls.refuse_shared(
            others,
            self.database if "database_connection" in columns else None,
            self.transport if "transport_url" in columns else None,
        )

    def record(self, store: Store) -> dict[str, Any]:
        """Return the columns of a new record, but for the uuid.

        :raises Refused: if a URL is missing, or Nova could not read what would be recorded
        """
        if self.transport is None or self.database is None:
            raise Refused("there is no such cell: to create it give --transport-url and --database_connection")
        return {
            "name": self.name,
            "transport_url": self._urls.protect(self.transport.stored, store),
            "database_connection": self._urls.protect(self.database.stored, store),
            "disabled": bool(self.disabled),
        }


def _record(cell: Cell) -> dict[str, Any]:
    """Return what stands in a record that can be changed, None where there is nothing."""
    record: dict[str, Any] = {"name": cell.name, "disabled": cell.disabled}
    reveals = {"transport_url": cell.reveal_transport_url, "database_connection": cell.reveal_database_connection}
    for column, reveal in reveals.items():
        record[column] = None
        with contextlib.suppress(CellMisconfigured):
            record[column] = reveal()
    return record


def check_name(name: str | None) -> None:
    """Refuse a name that not every database takes, or that is more than a line where it is shown.

    :raises Refused: if it is one
    """
    if name and len(name) > _LONGEST_NAME:
        raise Refused(f"the name has more than {_LONGEST_NAME} characters: give a shorter one")
    if name and any(unicodedata.category(character) in _IN_NO_NAME for character in name):
        raise Refused("the name has a control character in it, or is not UTF-8: give another one")


def say_when(conf: cfg.ConfigOpts, columns: Collection[str]) -> None:
    """Note when services do as the record has it now."""
    note(f"running services follow within {deploy.settings(conf).refresh_interval:g} s ([cellmw] refresh_interval)")
    if "disabled" in columns:
        note("the cell is served as before; nova-scheduler follows when it gets a SIGHUP")


def outcome(
    name: str | None, uuid: str | None, what: str, columns: Sequence[str] = (), *, lines: Sequence[str]
) -> Report:
    """Report what became of one record, or would become of it.

    :param columns: those that were changed
    """
    row = (name or "", uuid, what, ", ".join(columns), what != "unchanged")
    return Report(("Name", "UUID", "Outcome", "Columns", "Changed"), [row], lines)


def _refuse_states(cell: Cell, parsed_args: argparse.Namespace) -> None:
    if parsed_args.enable and parsed_args.disable:
        raise Refused("a cell can't be enabled and disabled: give --enable or --disable", _BOTH_STATES)
    if (parsed_args.enable or parsed_args.disable) and cell.uuid == CELL0_UUID:
        raise Refused("cell0 is neither enabled nor disabled: no instance is scheduled to it", _STATE_OF_CELL0)


def _shown_urls(cell: Cell) -> tuple[str, str]:
    return _shown(cell.reveal_transport_url), _shown(cell.reveal_database_connection)


def _shown(reveal: Callable[[], str]) -> str:
    try:
        stored = reveal()
        if is_encrypted(stored):
            return f"encrypted with key {key_id(stored)}"
    except CellMisconfigured:
        return ""
    except CredentialError:
        return "encrypted, and cut off or changed"
    return stored if is_reference(stored) else urls.mask(stored)


_LONGEST_NAME = 255
"""How many characters the column takes; SQLite takes more, which no other database would take over."""

_IN_NO_NAME = ("Cc", "Cs")
"""What Unicode calls control characters, and what stands for bytes that are no character."""

_BOTH_STATES = 4

_STATE_OF_CELL0 = 5

_IN_USE = {
    "hosts": (2, "--force forgets the hosts, too"),
    "instances": (3, "delete the instances, or move them to another cell, first"),
    "deleted instances": (4, "--force forgets the deleted instances, too"),
}
"""What a cell is used by -> the exit code of delete_cell and what to do about it."""

COMMANDS: dict[str, type[Command]] = {
    "create_cell": CreateCell,
    "delete_cell": DeleteCell,
    "list_cells": ListCells,
    "map_cell0": MapCell0,
    "update_cell": UpdateCell,
}
"""The family, by the names of its commands."""
