# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage cell_v2 export`` and ``import``: the cells between the API database and a file."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cellmw import cells_file
from cellmw.cell import Cell
from cellmw.cmd.cell_urls import CellUrls
from cellmw.cmd.command import Command, Refused, Report, note
from cellmw.exceptions import CellExists, CellMisconfigured, ConfigError

if TYPE_CHECKING:
    import argparse

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
            "--file-format",
            "--file_format",
            choices=cells_file.FORMATS,
            help="what to write (default: yaml if the name of the file ends in .yaml or .yml, else json)",
        )
        parser.add_argument("--force", action="store_true", help="replace the file if it is there already")
        self.take_dry_run(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Write the file."""
        path = Path(parsed_args.file)
        if str(path) == "-":
            raise Refused("the cells have passwords, which are not for a terminal or a pipe: give the name of a file")
        form = parsed_args.file_format or ("yaml" if path.suffix in (".yaml", ".yml") else "json")
        with self.open_store() as store:
            cells = store.list_cells()
        try:
            text = cells_file.as_text(cells, form)
            if parsed_args.dry_run:
                _check(path, replace=parsed_args.force)
            else:
                _write(path, text, replace=parsed_args.force)
        except (CellMisconfigured, ConfigError) as error:
            raise Refused(f"what is recorded can't be in a file: {error}") from None
        except FileExistsError:
            raise Refused(f"{path} is there already: --force replaces it") from None
        except OSError as error:
            raise Refused(f"{path} can't be written: {error.strerror}") from None
        are = "would be" if parsed_args.dry_run else "are"
        note(f"the cells {are} in {path}, which only its owner can read")
        return Report(("File", "Format", "Cells"), [(str(path), form, len(cells))], [])


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
        self.take_dry_run(parser)
        parser.add_argument(
            "--without-urls",
            "--without_urls",
            action="store_true",
            help="record no URL, and remove those that are recorded: for services that read them from the file",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Record the cells."""
        try:
            cells = cells_file.read(parsed_args.file)
        except ConfigError as error:
            raise Refused(str(error)) from None
        urls = CellUrls(self.app.conf)
        recheck = None
        with self.open_store() as store:
            if not parsed_args.without_urls:
                recorded = {cell.uuid: cell for cell in store.list_cells()}
                in_file = {cell.uuid for cell in cells}
                recheck = urls.check(cells, [cell for cell in recorded.values() if cell.uuid not in in_file])
                cells = [_as_recorded(cell, recorded.get(cell.uuid), urls, store) for cell in cells]
            done = store.import_cells(
                cells, with_urls=not parsed_args.without_urls, dry_run=parsed_args.dry_run, check=recheck
            )
        outcomes = [(imported.cell, _outcome(imported, dry_run=parsed_args.dry_run), imported) for imported in done]
        return Report(
            ("Name", "UUID", "Outcome", "Columns"),
            [(cell.name or "", cell.uuid, outcome, ", ".join(each.changed)) for cell, outcome, each in outcomes],
            [_line(imported, outcome) for _, outcome, imported in outcomes],
        )


def _check(path: Path, *, replace: bool) -> None:
    """Check that there can be such a file.

    :raises FileExistsError: if it is there already, unless it is to be replaced
    :raises Refused: if it is there and is no file
    """
    if os.path.lexists(path):
        if not replace:
            raise FileExistsError(path)
        if not stat.S_ISREG(path.lstat().st_mode):
            raise Refused(f"{path} is no file, and is not replaced")
    with tempfile.TemporaryFile(dir=path.parent):
        """That a file can be made there is all that there is to know."""


def _write(path: Path, text: str, *, replace: bool) -> None:
    """Write a whole file or none, which only its owner can read.

    :raises FileExistsError: if it is there already, unless it is to be replaced
    :raises Refused: if it is there and is no file
    """
    _check(path, replace=replace)
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
            # unlike a rename it fails where there is a file by now
            path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)


def _as_recorded(cell: Cell, recorded: Cell | None, urls: CellUrls, store: Store) -> Cell:
    """Encrypt what is in plain text, where there are keys; what is recorded already and says the same stays that."""
    before = recorded or Cell(cell.id, cell.uuid, None, False, None, None)
    transport_url = urls.as_recorded(cell.reveal_transport_url(), before.reveal_transport_url, store)
    database = urls.as_recorded(cell.reveal_database_connection(), before.reveal_database_connection, store)
    return Cell(cell.id, cell.uuid, cell.name, cell.disabled, transport_url, database)


def _outcome(imported: Imported, *, dry_run: bool) -> str:
    return f"would be {imported.outcome}" if dry_run and imported.outcome in _WRITTEN else imported.outcome


def _line(imported: Imported, outcome: str) -> str:
    cell = imported.cell
    if imported.changed:
        outcome = f"{outcome} ({', '.join(imported.changed)})"
    if imported.outcome == "left alone":
        outcome = "not in the file, left alone"
    return f"{cell.name} ({cell.uuid}): {outcome}" if cell.name else f"{cell.uuid}: {outcome}"


_WRITTEN = ("created", "updated")
"""What is only said where it is a dry run."""

COMMANDS: dict[str, type[Command]] = {"export": Export, "import": Import}
"""What belongs to the family ``cell_v2``, by the names of its commands."""
