# SPDX-License-Identifier: Apache-2.0
"""Records and files -> the passwords in them that more people can read than should."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cellmw.admin.doctor.secrets import examine_files, examine_keys, examine_records
from cellmw.cell import Cell
from cellmw.credentials import Credentials, KeyRepository

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from oslo_config import cfg

    from cellmw.admin.doctor import Finding

SECRET = "open-sesame"

PLAIN = f"rabbit://me:{SECRET}@bus/"

SAFE = [
    "none:///",
    "env:CELL1_URL",
    "rabbit://bus/",
    "rabbit://me@bus/",
    "rabbit://{username}:{password}@bus/",
    None,
]


def cell(name: str, transport_url: Any = "none:///", database_connection: Any = "sqlite:////x.db") -> Cell:
    """Return a cell with these URLs."""
    return Cell(1, f"uuid-{name}", name, False, transport_url, database_connection)


def told(findings: Iterable[Finding]) -> list[tuple[str, str, str]]:
    """Return what is said, without what to do."""
    found = [(str(each.severity), each.cell, each.what) for each in findings]
    assert SECRET not in repr(found)
    return found


@pytest.mark.parametrize("stored", SAFE)
@pytest.mark.parametrize("keys", ["/keys", None])
def test_no_password(stored: str | None, keys: str | None) -> None:
    """A record without a password has none to hide."""
    assert told(examine_records([cell("cell1", stored)], keys)) == []


def test_encrypted(tmp_path: Path, conf: cfg.ConfigOpts) -> None:
    """What is encrypted is not plain text."""
    KeyRepository(f"{tmp_path}/keys").setup()
    encrypted = Credentials(f"{tmp_path}/keys", conf).protect(PLAIN)
    assert told(examine_records([cell("cell1", encrypted)], f"{tmp_path}/keys")) == []


def test_plain_text() -> None:
    """Plain text is to be known of where there are no keys, and wrong where there are."""
    cells = [cell("cell1", PLAIN), cell("cell2"), cell("cell3", "none:///", f"mysql://me:{SECRET}@db/x")]
    assert told(examine_records(cells, None)) == [
        ("info", "-", "there are 2 records with a password in plain text: cell1, cell3")
    ]
    text = "its record has a password in plain text, though there are keys"
    assert told(examine_records(cells, "/keys")) == [("warning", "cell1", text), ("warning", "cell3", text)]


def test_keys(tmp_path: Path) -> None:
    """Keys that are nobody else's are as they should be; others, and missing ones, are told of with what to do."""
    folder = tmp_path / "keys"
    assert told(examine_keys(None)) == []
    assert told(examine_keys(str(folder))) == [("error", "-", f"there is no {folder}")]
    KeyRepository(str(folder)).setup()
    assert told(examine_keys(str(folder))) == []
    folder.chmod(0o755)
    (found,) = examine_keys(str(folder))
    assert told([found]) == [("error", "-", f"{folder} is open to everybody on this host")]
    assert found.todo == f"chmod o-rwx {folder}"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"connection = mysql://me:{SECRET}@db/x", True),
        (f"admin_password = {SECRET}", True),
        (f"[cellmw]\n  instance_header_secret={SECRET}", True),
        (f'{{"transport_url": "rabbit://me:{SECRET}@bus/"}}', True),
        ("connection = mysql://db/x\npassword =\n", False),
        ("transport_url = rabbit://{username}:{password}@bus/", False),
        ("url = http://host:80/a@b", False),
    ],
)
def test_files(tmp_path: Path, text: str, secret: bool) -> None:
    """A file that everybody can read is told of where there is a secret in it."""
    path = tmp_path / "cellmw.conf"
    path.write_text(text)
    path.chmod(0o644)
    found = list(examine_files([str(path), str(path), f"{tmp_path}/none", str(tmp_path)]))
    expected = ("warning", "-", f"{path} has passwords in it, and everybody on this host can read it")
    assert told(found) == ([expected] if secret else [])
    assert [each.todo for each in found] == [f"chmod o-rwx {path}"] * len(found)
    path.chmod(0o640)
    assert told(examine_files([str(path)])) == []
