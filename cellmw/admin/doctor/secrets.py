# SPDX-License-Identifier: Apache-2.0
"""The records as they stand there, and the files on this host -> which passwords more people can read than should."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from cellmw import urls
from cellmw.admin.doctor.finding import NO_CELL, Finding, Severity, counted, listed
from cellmw.credentials import KeyRepository, is_encrypted, is_reference
from cellmw.exceptions import CellMisconfigured, CredentialError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cellmw.cell import Cell

CHECK = "secrets"

_OTHERS = 0o004

_SECRET = re.compile(r"^\s*[\w-]*(password|secret|token)[\w-]*\s*[=:]\s*\S|://[^/\s]*:[^/\s{*]+@", re.MULTILINE | re.I)
"""What a file has in it that is nobody else's business: a secret by its name, or a URL with a password."""


def examine_records(recorded: Sequence[Cell], keys: str | None) -> Iterator[Finding]:
    """Tell which records have passwords in plain text.

    :param recorded: the cells as they stand in the API database
    :param keys: the folder of the keys that records are encrypted with, if there is one
    """
    plain = [
        cell
        for cell in recorded
        if _shows_password(cell.reveal_transport_url) or _shows_password(cell.reveal_database_connection)
    ]
    if keys:
        for cell in plain:
            what = "its record has a password in plain text, though there are keys"
            yield Finding(Severity.WARNING, str(cell), CHECK, what, "`cellmw-manage credential reencrypt`")
    elif plain:
        what = f"{counted(len(plain), 'record')} with a password in plain text: {listed([str(cell) for cell in plain])}"
        todo = "set [cellmw] credential_keys, or record templates or references, where Nova need not read them"
        yield Finding(Severity.INFO, NO_CELL, CHECK, what, todo)


def examine_keys(keys: str | None) -> Iterator[Finding]:
    """Tell whether the keys can be read by the services, and by nobody else."""
    if not keys:
        return
    try:
        KeyRepository(keys).load()
    except CredentialError as error:
        what, _, todo = str(error).partition(": ")
        yield Finding(Severity.ERROR, NO_CELL, CHECK, what, todo or "copy the folder from another host")


def examine_files(paths: Iterable[str]) -> Iterator[Finding]:
    """Tell which of these files have secrets in them, and can be read by everybody on this host."""
    for path in dict.fromkeys(paths):
        try:
            is_open = Path(path).stat().st_mode & _OTHERS
            if is_open and _SECRET.search(Path(path).read_text(errors="replace")):
                what = f"{path} has passwords in it, and everybody on this host can read it"
                yield Finding(Severity.WARNING, NO_CELL, CHECK, what, f"chmod o-rwx {path}")
        except OSError:
            continue  # what has to be there, and is not, is said by whoever needs it


def _shows_password(reveal: Callable[[], str]) -> bool:
    try:
        stored = reveal()
    except CellMisconfigured:
        return False
    return not (is_encrypted(stored) or is_reference(stored)) and urls.mask(stored) != stored
