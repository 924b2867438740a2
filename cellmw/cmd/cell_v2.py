# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage cell_v2``: the cells, with the names, options and exit codes of ``nova-manage cell_v2``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cliff import lister

from cellmw import urls
from cellmw.cell import CELL0_UUID
from cellmw.cmd import cell_files
from cellmw.cmd.cell_urls import CellUrls
from cellmw.cmd.command import Command, Refused, note
from cellmw.credentials import is_encrypted, is_reference, key_id
from cellmw.exceptions import CellExists, CellInUse, CellMisconfigured, CellNotFound, CredentialError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from cellmw.cell import Cell


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
        parser.add_argument(
            "--transport-url",
            "--transport_url",
            metavar="<transport_url>",
            help="the URL of its message queue, a template or a reference (default: [DEFAULT] transport_url)",
        )
        parser.add_argument(
            "--database_connection",
            "--database-connection",
            metavar="<database_connection>",
            help="the URL of its database, a template or a reference (default: [database] connection)",
        )
        parser.add_argument("--disabled", action="store_true", help="keep new instances away from the cell")
        parser.add_argument("--verbose", action="store_true", help="print the uuid of the new cell")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Record the cell."""
        urls_of_cell = CellUrls(self.app.conf)
        transport = urls_of_cell.transport(parsed_args.transport_url)
        database = urls_of_cell.database(parsed_args.database_connection)
        with self.open_store() as store:
            urls_of_cell.refuse_shared(store.list_cells(), database, transport)
            cell = store.create_cell(
                name=parsed_args.name,
                transport_url=urls_of_cell.protect(transport.stored, store),
                database_connection=urls_of_cell.protect(database.stored, store),
                disabled=parsed_args.disabled,
            )
        if not parsed_args.transport_url:
            note("the cell has the transport URL of [DEFAULT] transport_url")
        if not parsed_args.database_connection:
            note("the cell has the database of [database] connection")
        if parsed_args.verbose:
            self.say(cell.uuid)
        return 0


class ListCells(Command, lister.Lister):
    """Show the cells, by name, with what stands in their records. Passwords are never shown."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take nova-manage's option."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--verbose", action="store_true", help="for scripts written for nova-manage: passwords stay masked here"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
        """Return the header and the rows."""
        with self.open_store() as store:
            cells = sorted(store.list_cells(), key=lambda cell: cell.name or "")
        header = ("Name", "UUID", "Transport URL", "Database Connection", "Disabled")
        return header, [(cell.name or "", cell.uuid, *_shown_urls(cell), cell.disabled) for cell in cells]


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
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Record cell0."""
        urls_of_cell = CellUrls(self.app.conf)
        database = urls_of_cell.database_of_cell0(parsed_args.database_connection)
        with self.open_store() as store:
            cells = store.list_cells()
            if any(cell.uuid == CELL0_UUID for cell in cells):
                self.say("cell0 is recorded already, and was left as it is")
                return 0
            urls_of_cell.refuse_shared(cells, database)
            store.create_cell(
                uuid=CELL0_UUID,
                name="cell0",
                transport_url="none:///",
                database_connection=urls_of_cell.protect(database.stored, store),
            )
        return 0


class DeleteCell(Command):
    """Forget a cell. Its database and message queue are not contacted, and keep what they have.

    A cell that hosts or instances are mapped to is not forgotten. With --force the mappings of its hosts, and those of
    instances that are queued for deletion, go with it; any other instance is still a reason to refuse.
    """

    exit_codes = ((CellNotFound, 1),)

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the cell."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--cell_uuid", "--cell-uuid", metavar="<cell_uuid>", required=True, help="the uuid of the cell"
        )
        parser.add_argument(
            "--force", action="store_true", help="forget its hosts, and instances queued for deletion, with it"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Delete the cell's record."""
        with self.open_store() as store:
            try:
                store.delete_cell(parsed_args.cell_uuid, force=parsed_args.force)
            except CellInUse as error:
                exit_code, way_out = _IN_USE[error.mapped[0]]
                note(f"{error}: {way_out}")
                return exit_code
        return 0


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
    **cell_files.COMMANDS,
}
"""The family, by the names of its commands."""
