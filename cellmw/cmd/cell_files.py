# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage cell_v2 export`` and ``import``: the cells between the API database and a file."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cellmw import cells_file
from cellmw.cell import Cell
from cellmw.cmd.cell_urls import CellUrls
from cellmw.cmd.command import Command, Refused, note
from cellmw.exceptions import CellExists, CellMisconfigured, ConfigError, CredentialError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from cellmw.store import Store
    from cellmw.store.cells import Imported


class Export(Command):
    """Write the cells of the API database to a file, which only its owner can read.

    It has what stands in the records, passwords included: what is encrypted there is encrypted in the file.
    """

    exit_codes = ((Refused, 1),)

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the file."""
        parser = super().get_parser(prog_name)
        parser.add_argument("file", metavar="<file>", help="the file to write; never the terminal, as it holds secrets")
        parser.add_argument(
            "-f",
            "--format",
            choices=cells_file.FORMATS,
            help="what to write (default: yaml if the name of the file ends in .yaml or .yml, else json)",
        )
        parser.add_argument("--force", action="store_true", help="replace the file if it is there already")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Write the file."""
        path = Path(parsed_args.file)
        if str(path) == "-":
            raise Refused("the cells have passwords, which are not for a terminal or a pipe: give the name of a file")
        form = parsed_args.format or ("yaml" if path.suffix in (".yaml", ".yml") else "json")
        with self.open_store() as store:
            cells = store.list_cells()
        try:
            _write(path, cells_file.as_text(cells, form), replace=parsed_args.force)
        except (CellMisconfigured, ConfigError) as error:
            raise Refused(f"what is recorded can't be in a file: {error}") from None
        except FileExistsError:
            raise Refused(f"{path} is there already: --force replaces it") from None
        except OSError as error:
            raise Refused(f"{path} can't be written: {error.strerror}") from None
        note(f"the cells are in {path}, which only its owner can read")
        return 0


class Import(Command):
    """Record the cells of a file in the API database, with their ids, and change those that are recorded differently.

    All of them are recorded, or none. A cell that is recorded and not in the file is left as it is. Running it again
    changes nothing.
    """

    exit_codes = ((Refused, 1), (CellExists, 2))

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the file."""
        parser = super().get_parser(prog_name)
        parser.add_argument("file", metavar="<file>", help="the file to read: JSON or YAML")
        parser.add_argument(
            "--dry-run", "--dry_run", action="store_true", help="say what would be done, and do nothing"
        )
        parser.add_argument(
            "--without-urls",
            "--without_urls",
            action="store_true",
            help="record no URL, and remove those that are recorded: for services that read them from the file",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Record the cells."""
        try:
            cells = cells_file.read(parsed_args.file)
        except ConfigError as error:
            raise Refused(str(error)) from None
        urls = CellUrls(self.app.conf)
        with self.open_store() as store:
            if not parsed_args.without_urls:
                recorded = {cell.uuid: cell for cell in store.list_cells()}
                in_file = {cell.uuid for cell in cells}
                urls.check(cells, [cell for cell in recorded.values() if cell.uuid not in in_file])
                cells = [_as_recorded(cell, recorded.get(cell.uuid), urls, store) for cell in cells]
            done = store.import_cells(cells, with_urls=not parsed_args.without_urls, dry_run=parsed_args.dry_run)
        for imported in done:
            self.say(_line(imported, dry_run=parsed_args.dry_run))
        return 0


def _write(path: Path, text: str, *, replace: bool) -> None:
    """Write a whole file or none, which only its owner can read.

    :raises FileExistsError: if it is there already, unless it is to be replaced
    :raises Refused: if it is there and is no file
    """
    if replace and os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise Refused(f"{path} is no file, and is not replaced")
    descriptor, name = tempfile.mkstemp(prefix=".", dir=path.parent)
    temporary = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        if replace:
            temporary.replace(path)
        else:
            # unlike a rename it fails where there is a file already
            path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)


def _as_recorded(cell: Cell, recorded: Cell | None, urls: CellUrls, store: Store) -> Cell:
    """Encrypt what is in plain text, where there are keys; what is recorded already and says the same stays that."""

    def kept(text: str, what: Callable[[Cell], str]) -> str:
        with contextlib.suppress(CellMisconfigured, CredentialError):
            if recorded is not None and text in (what(recorded), urls.decrypt(what(recorded))):
                return what(recorded)
        return urls.protect(text, store)

    transport_url = kept(cell.reveal_transport_url(), Cell.reveal_transport_url)
    database_connection = kept(cell.reveal_database_connection(), Cell.reveal_database_connection)
    return Cell(cell.id, cell.uuid, cell.name, cell.disabled, transport_url, database_connection)


def _line(imported: Imported, *, dry_run: bool) -> str:
    cell, outcome = imported.cell, imported.outcome
    if outcome in ("created", "updated") and dry_run:
        outcome = f"would be {outcome}"
    if imported.changed:
        outcome = f"{outcome} ({', '.join(imported.changed)})"
    if imported.outcome == "left alone":
        outcome = "not in the file, left alone"
    return f"{cell.name} ({cell.uuid}): {outcome}" if cell.name else f"{cell.uuid}: {outcome}"


COMMANDS: dict[str, type[Command]] = {"export": Export, "import": Import}
"""What belongs to the family ``cell_v2``, by the names of its commands."""
