# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage credential``: the keys by which the URLs in the cells' records are encrypted."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

from cellmw import cells_file, deploy
from cellmw.cmd.arguments import at_least
from cellmw.cmd.command import Command, Refused, Report, note
from cellmw.credentials import Credentials, KeyRepository, is_encrypted, key_id
from cellmw.credentials.keys import MAX_ACTIVE_KEYS
from cellmw.exceptions import CellChanged, CellExists, CellMisconfigured, CellNotFound, ConfigError, CredentialError
from cellmw.store import migrations

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from cellmw.cell import Cell
    from cellmw.store import Store

_INCOMPLETE = 3
"""The exit code of a command that has left records as they were that should be different."""

_COLUMNS = {"transport_url": "transport URL", "database_connection": "database connection"}


class _KeysCommand(Command):
    """What the commands of the family do alike."""

    def folder(self) -> str:
        """Return the folder of the keys.

        :raises ConfigError: if it is not set
        """
        folder = deploy.settings(self.app.conf).credential_keys
        if not folder:
            raise ConfigError("[cellmw] credential_keys is not set: set it to the folder for the keys")
        return folder


class Setup(_KeysCommand):
    """Make the folder of [cellmw] credential_keys, with a primary and a staged key in it.

    Run it on one host, as the user that the services run as, and copy the folder to the other hosts. Where there are
    keys already they are left as they are.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take nothing but what all take."""
        parser = super().get_parser(prog_name)
        self.take_dry_run(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Make the keys, and say which one encrypts."""
        repository = KeyRepository(self.folder())
        columns = ("Folder", "Outcome", "Primary Key")
        done = repository.setup(dry_run=parsed_args.dry_run)
        if done and parsed_args.dry_run:
            lines = [f"keys would be made in {repository.folder}"]
            return Report(columns, [(str(repository.folder), "would be created", None)], lines)
        lines = [] if done else [f"there are keys in {repository.folder} already, and they were left as they are"]
        primary = repository.load().primary.id
        row = (str(repository.folder), "created" if done else "unchanged", primary)
        return Report(columns, [row], [*lines, f"the primary key is {primary}"])


class Rotate(_KeysCommand):
    """Make the staged key the primary one, which encrypts from now on, and write a new staged key.

    Copy the folder to the other hosts before it is rotated again. The oldest keys are removed where there are too
    many; one that a record is still encrypted with is kept, and said to be.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the number of keys."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--max-active-keys",
            "--max_active_keys",
            metavar="<number>",
            type=at_least(2),
            default=MAX_ACTIVE_KEYS,
            help=f"how many keys are left, the staged and the primary one included (default: {MAX_ACTIVE_KEYS})",
        )
        self.take_dry_run(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Rotate the keys, and say which one encrypts now."""
        repository = KeyRepository(self.folder())
        in_use = _keys_in_use(self._cells())
        rotated = repository.rotate(parsed_args.max_active_keys, in_use, dry_run=parsed_args.dry_run)
        is_, was = ("would be",) * 2 if parsed_args.dry_run else ("is", "was")
        for kept in rotated.kept:
            note(
                f"key {kept} {was} kept, since records are encrypted with it: run `cellmw-manage credential reencrypt`"
            )
        outcomes = {"primary": [rotated.primary], "removed": rotated.removed, "kept": rotated.kept}
        return Report(
            ("Key", "Outcome"),
            [(key, outcome) for outcome, keys in outcomes.items() for key in keys],
            [
                f"the primary key {is_} {rotated.primary}",
                *(f"key {removed} {was} removed" for removed in rotated.removed),
            ],
        )

    def _cells(self) -> list[Cell]:
        """Return the cells of the API database, and those of a file that stands in its place."""
        path = deploy.settings(self.app.conf).cells_config
        with self.open_store() as store:
            return store.list_cells() + (cells_file.read(path) if path else [])


class Reencrypt(_KeysCommand):
    """Encrypt the URLs of all cells with the primary key: those in plain text, and those with an older key.

    References and none:/// stay as they are. Each cell is changed in a transaction of its own: the command may be
    interrupted, and be run again. An API database that Nova uses is refused, since Nova can't read what is encrypted.
    """

    exit_codes = ((Refused, 1),)

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take which way to go, and how far."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--decrypt", action="store_true", help="write plain text instead: the way back")
        parser.add_argument("--force", action="store_true", help="encrypt in an API database that Nova uses, too")
        self.take_dry_run(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Change the records, and say for each cell what was done."""
        folder = self.folder()
        credentials = Credentials(folder, self.app.conf)
        primary = KeyRepository(folder).load().primary.id
        what = "decrypted" if parsed_args.decrypt else f"encrypted with key {primary}"

        def wanted(stored: str) -> str:
            if parsed_args.decrypt:
                return credentials.decrypt(stored)
            if is_encrypted(stored) and key_id(stored) == primary:
                return stored
            return credentials.protect(credentials.decrypt(stored))

        with self.open_store() as store:
            cells = store.list_cells()
            if not (parsed_args.decrypt or parsed_args.force) and migrations.is_novas(store.engine):
                raise Refused(
                    "Nova uses this API database, and can't read what is encrypted: --force encrypts it anyway"
                )
            doing = f"would be {what}" if parsed_args.dry_run else what
            done = [_change(store, cell, wanted, doing, dry_run=parsed_args.dry_run) for cell in cells]
        return Report(
            ("Name", "UUID", "Outcome", "Columns"),
            [(each.cell.name or "", each.cell.uuid, each.outcome, ", ".join(each.columns)) for each in done],
            [f"cell {each.cell}: {_names(each.columns)}{each.outcome}" for each in done if each.outcome not in _SILENT],
            _INCOMPLETE if any(each.outcome == _LEFT for each in done) else 0,
        )


class _Done(NamedTuple):
    """What became of a record. Lives as long as the command.

    :ivar columns: those that were changed
    """

    cell: Cell
    outcome: str
    columns: tuple[str, ...] = ()


_LEFT = "left as it was"

_DELETED = "deleted meanwhile"

_SILENT = (_LEFT, _DELETED)
"""What has no line on stdout: of the first there is one on stderr."""


def _change(store: Store, cell: Cell, wanted: Callable[[str], str], doing: str, *, dry_run: bool) -> _Done:
    """Bring one record to what is wanted; where that can't be done, say why."""
    try:
        changed: dict[str, Any] = {column: url for column, stored in _stored(cell) if (url := wanted(stored)) != stored}
        if changed and not dry_run:
            store.update_cell(cell.uuid, **changed, read=cell)
    except CellNotFound:
        return _Done(cell, _DELETED)
    except CellChanged:
        note(f"cell {cell} was left as it is: somebody has changed it meanwhile: run the command again")
        return _Done(cell, _LEFT)
    except (CredentialError, CellExists) as error:
        note(f"cell {cell} was left as it is: {error}")
        return _Done(cell, _LEFT)
    return _Done(cell, doing, tuple(changed)) if changed else _Done(cell, "nothing to do")


def _names(columns: tuple[str, ...]) -> str:
    return " and ".join(_COLUMNS[column] for column in columns) + " " * bool(columns)


def _stored(cell: Cell) -> Iterator[tuple[str, str]]:
    """Give what stands in the columns of a record that have something in them."""
    for column, reveal in zip(_COLUMNS, (cell.reveal_transport_url, cell.reveal_database_connection), strict=True):
        with contextlib.suppress(CellMisconfigured):
            yield column, reveal()


def _keys_in_use(cells: list[Cell]) -> set[str]:
    in_use = set()
    for _, stored in (column for cell in cells for column in _stored(cell)):
        # what was cut off can't be decrypted by any key
        with contextlib.suppress(CredentialError):
            if is_encrypted(stored):
                in_use.add(key_id(stored))
    return in_use


COMMANDS: dict[str, type[Command]] = {"reencrypt": Reencrypt, "rotate": Rotate, "setup": Setup}
"""The family, by the names of its commands."""
