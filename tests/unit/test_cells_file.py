# SPDX-License-Identifier: Apache-2.0
"""Cells from a file: its form, what is refused, and what becomes of the cells when somebody edits it."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from cellmw import cells_file
from cellmw.cell import CELL0_UUID, Cell
from cellmw.cells_file import CellsFile
from cellmw.exceptions import CellMisconfigured, ConfigError
from tests.faults.fork_child import come_to

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

UUID1 = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01"
UUID2 = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a02"

CELL0 = {
    "id": 1,
    "uuid": CELL0_UUID,
    "name": "cell0",
    "transport_url": "none:///",
    "database_connection": "mysql+pymysql://nova:s3cret@db/cell0",
    "disabled": False,
}
CELL1 = {
    "id": 2,
    "uuid": UUID1,
    "name": "cell1",
    "transport_url": "rabbit://user:s3cret@host1:5672/",
    "database_connection": "mysql+pymysql://nova:s3cret@db/cell1",
    "disabled": True,
}
CELL2 = {
    "id": 3,
    "uuid": UUID2,
    "name": None,
    "transport_url": "rabbit://{username}:{password}@host2/",
    "database_connection": "env:CELL2_DATABASE",
    "disabled": False,
}

YAML = f"""\
# comments are fine
cells:
- id: 1
  uuid: {CELL0_UUID}
  name: no
  transport_url: none:///
  database_connection: file:/run/cell0
- {{id: 12, uuid: {UUID1}, name: 2026-11-21, disabled: true,
    transport_url: 'rabbit://{{username}}:s3cret@host1/', database_connection: "mysql://nova:\\u00fc@db/cell1"}}
"""


def text_of(*records: dict[str, Any]) -> str:
    """Return the JSON of a file with these cells."""
    return json.dumps({"cells": records})


def seen(cells: list[Cell]) -> list[tuple[Any, ...]]:
    """Return all that there is to a cell, for each."""
    return [(cell.id, cell.uuid, cell.name, cell.disabled, cell.fingerprint) for cell in cells]


def cell(record: dict[str, Any]) -> Cell:
    """Return the cell of this record."""
    return Cell(**record)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with cell0 and cell1, closed to others."""
    path = tmp_path / "cells.json"
    path.write_text(text_of(CELL1, CELL0))
    path.chmod(0o640)
    return path


@pytest.fixture
def file(path: Path) -> CellsFile:
    """What reads it."""
    return CellsFile(str(path))


@pytest.fixture
def refusal(path: Path) -> Callable[[str | bytes], str]:
    """Return what a file with this content is refused with."""

    def refuse(content: str | bytes) -> str:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(ConfigError) as caught:
            CellsFile(str(path))
        reason = str(caught.value)
        assert reason.startswith(f"{path}: ")
        return reason.removeprefix(f"{path}: ")

    return refuse


# --- the form


def test_json(file: CellsFile) -> None:
    """The cells of a JSON file come by id, with the URLs as they were written."""
    assert seen(file.list_cells()) == seen([cell(CELL0), cell(CELL1)])


def test_yaml(path: Path) -> None:
    """In YAML, as in JSON, a word is text, be it ``no`` or a date; the rest of YAML's notation is taken."""
    path.write_text(YAML)
    assert seen(cells_file.read(str(path))) == seen(
        [
            Cell(1, CELL0_UUID, "no", False, "none:///", "file:/run/cell0"),
            Cell(12, UUID1, "2026-11-21", True, "rabbit://{username}:s3cret@host1/", "mysql://nova:ü@db/cell1"),
        ]
    )


def test_json_that_is_no_yaml(path: Path) -> None:
    """JSON is read as JSON: with tabs, and with a character that is escaped as two."""
    text = json.dumps({"cells": [CELL1 | {"name": "\N{GRINNING FACE}"}]}, indent="\t")
    path.write_text(f"\N{ZERO WIDTH NO-BREAK SPACE}\n\t{text}")
    assert [cell.name for cell in cells_file.read(str(path))] == ["\N{GRINNING FACE}"]


def test_what_may_be_missing(path: Path) -> None:
    """A cell needs no name, and is not disabled unless it says so."""
    path.write_text(text_of({key: value for key, value in CELL1.items() if key not in ("name", "disabled")}))
    assert seen(cells_file.read(str(path))) == seen([cell(CELL1 | {"name": None, "disabled": False})])


@pytest.mark.parametrize("form", cells_file.FORMATS)
def test_round_trip(path: Path, form: str) -> None:
    """What is written is read back, whatever there is in names and URLs."""
    names = ["1", "08", "0x1", "true", "no", "null", "~", "", "2026-11-21", "a: b #c", " ü\N{GRINNING FACE}\u2028'\""]
    cells = [
        Cell(
            number, UUID1[:-2] + str(number), name, False, f"x://{name}:%@=+#{number}?" * 20, f"cellmw:fernet:{number}"
        )
        for number, name in enumerate(names, 10)
    ]
    path.write_text(text := cells_file.as_text(cells, form))
    assert "ü\N{GRINNING FACE}" in text
    assert seen(cells_file.read(str(path))) == seen(cells)


def test_cell_that_no_file_can_have() -> None:
    """A cell without a URL, or with what would be refused when it is read, is not written."""
    with pytest.raises(CellMisconfigured, match="cell1"):
        cells_file.as_text([cell(CELL1 | {"transport_url": None})], "json")
    with pytest.raises(ConfigError, match=r"\(cell1\): uuid"):
        cells_file.as_text([cell(CELL1 | {"uuid": UUID1.upper()})], "yaml")


# --- what is refused


def test_file_of_another_form(refusal: Callable[[str | bytes], str]) -> None:
    """What is no file of cells is refused, with the place and without a word of what stands there."""
    not_a_file_of_cells: list[tuple[str | bytes, str]] = [
        ("", "it has to be a mapping with the key cells"),
        (json.dumps([CELL1]), "it has to be a mapping with the key cells"),
        ('{"cells": {}}', "cells has to be a list"),
        ("cells:", "cells has to be a list"),
        ('{"cells": [], "cell": 1}', "at the top: cell is none of the fields that there are: cells"),
        ("{}", "at the top: cells is missing"),
        ("cells: [s3cret]", "cell no. 1: it has to be a mapping of its fields"),
        ("cells:\n- id: 1\n  id: 2", "cell no. 1: id is there twice"),
        ('{"cells": [{"name": "cell1", "id": 1, "id": 1}]}', "cell no. 1 (cell1): id is there twice"),
        ("cells:\n- name: cell1", "cell no. 1 (cell1): id is missing"),
        ("cells:\n- name: [a, s3cret]", "there is more than one value in line 2, column 9"),
        ("cells:\n- &a [*a]", "there is more than one value in line 2, column 3"),
        ("cells:\n- transport_url: !vault s3cret", "there is a tag in line 2, column 18: tags are not understood"),
        ('cells:\n- transport_url: "rabbit://u:s3cret', "it is neither JSON nor YAML in line 2, column 36"),
        ('{\n\t"cells": [\n\t{"id": 1, s3cret}]}', "it is neither JSON nor YAML in line 3, column 12"),
        ("{cells: [\n{id: s3cret]}", "it is neither JSON nor YAML in line 2, column 12"),
        ("cells:\n- name: s3cret\x07", "it is neither JSON nor YAML in line 2, column 15"),
        ("cells: []\n---\ns3cret", "it is neither JSON nor YAML in line 2, column 1"),
        ("[" * 500, "it is neither JSON nor YAML"),
        (b"cells:\n- name: s3cret\xff", "line 2 is not UTF-8"),
    ]
    for content, reason in not_a_file_of_cells:
        found = refusal(content)
        assert found.startswith(reason), content
        assert "s3cret" not in found


def test_field_that_is_wrong(refusal: Callable[[str | bytes], str]) -> None:
    """A field that is not as it has to be is refused; the reason names the cell and the field, and no value."""
    wrong: list[tuple[str, Any, str]] = [
        ("id", 0, "id has to be a whole number from 1 to 2147483647"),
        ("id", 2**31, "id has to be a whole number"),
        ("id", True, "id has to be a whole number"),
        ("id", 2.0, "id has to be a whole number"),
        ("uuid", "s3cret", "uuid has to be a uuid"),
        ("uuid", None, "uuid has to be a uuid"),
        ("uuid", UUID1.replace("-", ""), "uuid has to be a uuid in lower case, with its hyphens"),
        ("name", 1, "name has to be text: put it into quotes"),
        ("name", "x" * 256, "name is longer than 255 characters"),
        ("transport_url", "", "transport_url is empty"),
        ("transport_url", None, "transport_url has to be text"),
        ("transport_url", "rabbit://u:s3cret@h/\n", "transport_url has a line break"),
        ("database_connection", "s3cret\ud800", "database_connection has a line break or another control character"),
        ("disabled", "no", "disabled has to be true or false"),
        ("disabled", None, "disabled has to be true or false"),
        ("rabbit://u:s3cret@h/", "x", "a key is none of the fields that there are: id, uuid, name"),
        ("transport-url", "x", "transport-url is none of the fields"),
    ]
    for field, value, reason in wrong:
        found = refusal(text_of(CELL0, CELL1 | {field: value}))
        assert found.startswith(f"cell no. 2 ({UUID1 if field == 'name' else 'cell1'}): {reason}")
        assert "s3cret" not in found


def test_number_that_is_not_decimal(refusal: Callable[[str | bytes], str]) -> None:
    """What older YAML takes for an octal number is no id."""
    assert "id has to be" in refusal(f"cells:\n- {{id: 010, uuid: {UUID1}, transport_url: a, database_connection: b}}")


def test_field_that_another_cell_has(refusal: Callable[[str | bytes], str]) -> None:
    """What only one cell can have is refused in a second one, by the names of the cells."""
    for field in ("id", "uuid", "transport_url", "database_connection"):
        found = refusal(text_of(CELL1, CELL2 | {"name": "cell2", field: CELL1[field]}))
        assert found == f"cell no. 2 (cell2): {field} is that of cell no. 1 (cell1), too"


def test_what_cells_may_share(path: Path) -> None:
    """Cells may have the same name, and any number of them no message queue."""
    path.write_text(text_of(CELL0, CELL1 | {"name": "cell0", "transport_url": "none:///"}))
    assert len(cells_file.read(str(path))) == 2


@pytest.mark.parametrize("what", ["missing", "folder", "fifo"])
def test_file_that_is_none(tmp_path: Path, what: str) -> None:
    """What is no file is refused when the service is set up, and a pipe is not waited for."""
    path = tmp_path / what
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    with pytest.raises(ConfigError, match="it can't be read: No such file" if what == "missing" else "no file"):
        CellsFile(str(path))


# --- changes


def test_change_is_followed(path: Path, file: CellsFile) -> None:
    """The next list has what the file says now, even when its size and its time are what they were."""
    before = path.stat()
    path.write_text(text_of(CELL1 | {"name": "cellX"}, CELL0))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [cell.name for cell in file.list_cells()] == ["cell0", "cellX"]


def test_file_that_is_the_same_is_not_read(file: CellsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as nobody changes the file it is only looked at."""
    monkeypatch.setattr(cells_file, "open", None, raising=False)
    assert len(file.list_cells()) == 2


def test_link_that_leads_elsewhere(tmp_path: Path) -> None:
    """A change of the link in the middle of the path, as Kubernetes makes it, is followed."""
    for version, record in (("1", CELL0), ("2", CELL1)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "cells.json").write_text(text_of(record))
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "cells.json").symlink_to("..data/cells.json")
    file = CellsFile(str(tmp_path / "cells.json"))
    assert file.list_cells() == [cell(CELL0)]
    (tmp_path / "..tmp").symlink_to("2")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    assert file.list_cells() == [cell(CELL1)]


@pytest.mark.parametrize("edit", ["cut off", "malformed", "gone", "unreadable", "folder"])
def test_broken_edit(
    path: Path, file: CellsFile, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, edit: str
) -> None:
    """A broken edit leaves the cells as they were, is one warning, and one line more when it is over."""
    caplog.set_level(logging.INFO, "cellmw")
    good = path.read_text()
    path.unlink()
    if edit == "folder":
        path.mkdir()
    elif edit != "gone":
        path.write_text(good[:-40] if edit == "cut off" else text_of(CELL1 | {"id": "s3cret"}))
        path.chmod(0o640)
    if edit == "unreadable":

        def refused(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(cells_file, "open", refused, raising=False)
    for _ in range(3):
        assert seen(file.list_cells()) == seen([cell(CELL0), cell(CELL1)])
    (warning,) = caplog.messages
    assert warning.startswith(f"the cells stay as they were: {path}: ")
    assert "s3cret" not in caplog.text
    monkeypatch.undo()
    if edit == "folder":
        path.rmdir()
    path.write_text(text_of(CELL1))
    path.chmod(0o640)
    for _ in range(2):
        assert file.list_cells() == [cell(CELL1)]
    path.write_text(text_of(CELL0))
    assert file.list_cells() == [cell(CELL0)]
    assert caplog.messages[1:] == [f"{path} can be read again: the cells are as it has them"]


def test_another_broken_edit(path: Path, file: CellsFile, caplog: pytest.LogCaptureFixture) -> None:
    """Who edits a broken file and leaves it broken is told again, even of the same mistake."""
    for comment in ("#", "##"):
        path.write_text(f"cells: {comment}")
        file.list_cells()
    assert [("cells has to be a list" in message) for message in caplog.messages] == [True, True]


def test_failure_to_read_is_tried_again(path: Path, file: CellsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that could not be read for want of a descriptor is read as soon as there is one."""
    path.write_text(text_of(CELL1))
    monkeypatch.setattr(cells_file, "open", lambda *_: (_ for _ in ()).throw(OSError(24, "x")), raising=False)
    assert len(file.list_cells()) == 2
    monkeypatch.undo()
    assert file.list_cells() == [cell(CELL1)]


def test_folder_that_is_gone_for_a_while(
    file: CellsFile, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time that the file can't be looked at is told, and its end, even where it is the same file all along."""
    caplog.set_level(logging.INFO, "cellmw")
    for _ in range(2):
        with monkeypatch.context() as patches:
            patches.setattr(cells_file.os, "stat", lambda *_: (_ for _ in ()).throw(OSError(116, "Stale file handle")))
            assert len(file.list_cells()) == 2
        file.list_cells()
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "the cells stay as they were",
        f"{file._path} can be read again",
    ] * 2


def test_change_while_it_is_read(path: Path, file: CellsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written behind the back of a reader is read by the next one."""
    path.write_text(text_of(CELL1))

    def read_and_write(*_: object) -> io.BytesIO:
        assert file._reading.locked()
        content = path.read_bytes()
        path.write_text(text_of(CELL0, CELL2))
        return io.BytesIO(content)

    monkeypatch.setattr(cells_file, "open", read_and_write, raising=False)
    assert file.list_cells() == [cell(CELL1)]
    monkeypatch.undo()
    assert file.list_cells() == [cell(CELL0), cell(CELL2)]


def test_threads_read_one_at_a_time(
    path: Path, file: CellsFile, caplog: pytest.LogCaptureFixture, together: Callable[..., list[Any]]
) -> None:
    """Of many threads that meet a broken file one says so, and all get the cells."""
    path.write_text("cells:")
    assert together(8, lambda _: len(file.list_cells())) == [2] * 8
    assert len(caplog.messages) == 1


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Using fork:DeprecationWarning")
def test_fork_while_it_is_read(file: CellsFile) -> None:
    """A child process does not wait for a reader that only its parent has."""
    with file._reading:
        assert come_to(lambda: len(file.list_cells())) == 2


def test_what_callers_get_is_theirs(file: CellsFile) -> None:
    """A list that a caller changes is not the next one's."""
    file.check(7)
    file.list_cells(threading.TIMEOUT_MAX).clear()
    assert len(file.list_cells()) == 2


# --- who can read it


def test_passwords_that_everybody_can_read(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is open to everybody is warned of, once, if there is a password in it."""
    encrypted = "cellmw:fernet:0123456789ab:x"
    expected = f"{path} has passwords in it, and everybody on this host can get at it: chmod 640"
    files: list[tuple[dict[str, Any], int, bool]] = [
        (CELL1, 0o640, False),
        (CELL1, 0o644, True),
        (CELL1 | {"transport_url": encrypted}, 0o604, True),
        (CELL1 | {"transport_url": encrypted, "database_connection": "castellan:1"}, 0o644, False),
        (CELL2, 0o644, False),
        (CELL2 | {"transport_url": "rabbit://user:s3cret@{hostname}/"}, 0o644, True),
    ]
    for record, mode, is_open in files:
        path.write_text(text_of(record))
        path.chmod(mode)
        file = CellsFile(str(path))
        path.write_text(text_of(record, CELL0 | {"database_connection": "file:/x"}))
        assert len(file.list_cells()) == 2
        assert caplog.messages == [expected] * is_open
        caplog.clear()
