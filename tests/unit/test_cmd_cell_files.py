# SPDX-License-Identifier: Apache-2.0
"""``cell_v2 export`` and ``import`` as a shell sees them: the file, what is printed, and the exit code."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cellmw import cells_file, engines
from cellmw.cell import CELL0_UUID, Cell
from cellmw.cells_file import CellsFile
from cellmw.credentials import Credentials, KeyRepository, is_encrypted
from cellmw.records import Records
from cellmw.store import Store, migrations
from tests.commands import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.commands import Answer

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

UUID1 = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01"
UUID2 = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a02"

CELL0 = Cell(1, CELL0_UUID, "cell0", False, "none:///", "mysql+pymysql://nova:s3cret@db/cell0")
CELL1 = Cell(2, UUID1, "cell1", False, "rabbit://user:s3cret@host1:5672/", "mysql+pymysql://nova:s3cret@db/cell1")
CELL2 = Cell(7, UUID2, None, True, "cellmw:fernet:0123456789ab:x", "{scheme}://{username}:{password}@db/cell2")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty API database."""
    engine = engines.make_engine(f"sqlite:///{tmp_path}/api.db", {"sqlite_synchronous": False}, pre_ping=False)
    migrations.sync(engine)
    with Store(engine) as store:
        yield store


@pytest.fixture
def configuration(tmp_path: Path, store: Store) -> Path:
    """A configuration file that names it."""
    path = tmp_path / "cellmw.conf"
    path.write_text(f"[api_database]\nconnection = sqlite:///{tmp_path}/api.db\n")
    return path


@pytest.fixture
def cell_v2(configuration: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs a command of the family; none of them ever shows a password."""

    def run_it(*arguments: object) -> Answer:
        answer = run(capsys, configuration, "cell_v2", *arguments)
        assert "s3cret" not in answer.out + answer.err
        return answer

    return run_it


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where there is no file yet, in a folder with nothing else in it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / "cells.json"


def seen(cells: list[Cell]) -> list[tuple[object, ...]]:
    """Everything that there is to each cell."""
    return [(cell.id, cell.uuid, cell.name, cell.disabled, cell.fingerprint) for cell in cells]


# --- export


@pytest.mark.parametrize(
    ("name", "options", "is_json"),
    [("cells.json", [], True), ("cells.yml", [], False), ("cells", ["--file-format", "yaml"], False)],
)
def test_export(
    cell_v2: Callable[..., Answer], store: Store, path: Path, name: str, options: list[str], *, is_json: bool
) -> None:
    """The file has the cells as they are recorded, is its owner's alone, and is all that is left behind."""
    store.import_cells([CELL0, CELL1, CELL2])
    path = path.with_name(name)
    answer = cell_v2("export", path, *options)
    assert answer == (0, "", f"cellmw-manage: the cells are in {path}, which only its owner can read\n")
    assert (path.stat().st_mode & 0o777, os.listdir(path.parent)) == (0o600, [name])
    assert seen(cells_file.read(str(path))) == seen([CELL0, CELL1, CELL2])
    assert path.read_text().startswith("{" if is_json else "cells:")


def test_export_by_a_dry_run(cell_v2: Callable[..., Answer], store: Store, path: Path) -> None:
    """A dry run refuses what the real one would, and leaves nothing behind."""
    store.import_cells([CELL1])
    answer = cell_v2("export", path, "--dry-run")
    assert (answer.exit_code, "would be in" in answer.err, os.listdir(path.parent)) == (0, True, [])
    path.write_text("mine")
    assert cell_v2("export", path, "--dry-run").exit_code == 1
    assert cell_v2("export", path, "--dry-run", "--force").exit_code == 0
    assert (path.read_text(), os.listdir(path.parent)) == ("mine", [path.name])
    assert cell_v2("export", path / "x", "--dry-run").exit_code == 1
    store.import_cells([CELL1], with_urls=False)
    assert cell_v2("export", path, "--dry-run", "--force").exit_code == 1


def test_export_for_scripts(cell_v2: Callable[..., Answer], store: Store, path: Path) -> None:
    """-f is the form of what is printed, whatever that of the file is; the cells are in the file alone."""
    store.import_cells([CELL1])
    answer = cell_v2("export", path, "-f", "json", "--file-format", "yaml")
    assert json.loads(answer.out) == [{"File": str(path), "Format": "yaml", "Cells": 1}]
    assert path.read_text().startswith("cells:")


def test_export_replaces_no_file_unless_forced(cell_v2: Callable[..., Answer], path: Path) -> None:
    """A file that is there stays as it is, but with --force, which makes a new one in its place."""
    path.write_text("mine")
    path.chmod(0o644)
    refused = cell_v2("export", path)
    assert (refused.exit_code, "--force" in refused.err, path.read_text()) == (1, True, "mine")
    with path.open() as old:
        assert cell_v2("export", path, "--force").exit_code == 0
        assert (old.read(), json.loads(path.read_text())) == ("mine", {"cells": []})
    assert (path.stat().st_mode & 0o777, os.listdir(path.parent)) == (0o600, [path.name])


def test_export_to_what_is_no_file(cell_v2: Callable[..., Answer], path: Path) -> None:
    """The terminal, a pipe, a link and a folder that is not there are refused, with one line that says why."""
    path.symlink_to("elsewhere")
    for where, reason in (
        ("-", "passwords"),
        (path, "no file"),
        (path.parent, "no file"),
        (path / "x", "No such file"),
        ("/dev/full", "no file"),
    ):
        answer = cell_v2("export", where, "--force")
        assert (answer.exit_code, answer.out, answer.err.count("\n"), reason in answer.err) == (1, "", 1, True)
    assert path.is_symlink()
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_export_of_what_no_file_can_have(cell_v2: Callable[..., Answer], store: Store, path: Path) -> None:
    """A cell without its URLs is named, and no file is written."""
    store.import_cells([CELL1], with_urls=False)
    answer = cell_v2("export", path)
    assert (answer.exit_code, "cell1" in answer.err, os.listdir(path.parent)) == (1, True, [])


# --- import


def test_import(cell_v2: Callable[..., Answer], store: Store, path: Path) -> None:
    """The table is brought to what the file says; each cell has a line; and when it is run again nothing changes."""
    left = store.create_cell(name="left", transport_url="none:///", database_connection="mysql+pymysql://db/left")
    cells = [Cell(5, CELL0_UUID, "cell0", False, "none:///", "mysql+pymysql://nova:s3cret@db/cell0"), CELL2]
    path.write_text(cells_file.as_text(cells, "yaml"))
    store.import_cells([Cell(7, UUID2, "cell2", False, "rabbit://x/", "mysql+pymysql://db/cell2")])
    rest = f"left ({left.uuid}): not in the file, left alone\ncell0 ({CELL0_UUID}): "
    changes = "(name, disabled, transport_url, database_connection)"
    dry = cell_v2("import", path, "--dry-run")
    assert dry[:2] == (0, f"{rest}would be created\n{UUID2}: would be updated {changes}\n")
    assert "database was not compared" in dry.err  # cell2's URLs can't be made out here, as they may on other hosts
    assert [cell.id for cell in store.list_cells()] == [1, 7]
    assert cell_v2("import", path)[:2] == (0, f"{rest}created\n{UUID2}: updated {changes}\n")
    assert seen(store.list_cells()) == seen([left, *cells])
    for options in ([], ["--dry-run"]):
        assert cell_v2("import", path, *options)[:2] == (0, f"{rest}unchanged\n{UUID2}: unchanged\n")


def test_import_for_scripts(cell_v2: Callable[..., Answer], store: Store, path: Path) -> None:
    """With a format there is a row for each cell."""
    left = store.create_cell(name="left", transport_url="none:///", database_connection="mysql+pymysql://db/left")
    path.write_text(cells_file.as_text([CELL1], "json"))
    rows = [json.loads(cell_v2("import", path, *dry, "-f", "json").out) for dry in (["--dry-run"], [])]
    for row, outcome in zip([each[1] for each in rows], ("would be created", "created"), strict=True):
        assert row == {"Name": "cell1", "UUID": UUID1, "Outcome": outcome, "Columns": ""}
    assert rows[0][0] == {"Name": "left", "UUID": left.uuid, "Outcome": "left alone", "Columns": ""}


@pytest.mark.parametrize(
    ("transport_url", "database_connection", "exit_code", "reason"),
    [
        (
            "rabbit://user:s3cret@h/a%23b",
            "sqlite:////x",
            1,
            "cell cell9: the transport URL is refused: its virtual host",
        ),
        ("none:///", "mysql+pymysql://u:p@db:port/x", 1, "cell cell9: the database URL is refused: "),
        ("none:///", "mysql+pymysql://other@db:3306/cell1", 2, "cell cell9 would have the database of cell cell1"),
        ("rabbit://b@host1,c@host2/", "sqlite:////x", 2, "cell cell9 would have the message queue of cell cell1"),
    ],
)
def test_import_of_what_nobody_could_use(
    cell_v2: Callable[..., Answer],
    store: Store,
    path: Path,
    transport_url: str,
    database_connection: str,
    exit_code: int,
    reason: str,
) -> None:
    """A file with a URL that nobody can use, or that leads where another cell's does, is refused as a whole."""
    store.import_cells([CELL1])
    bad = Cell(9, UUID2, "cell9", False, transport_url, database_connection)
    path.write_text(cells_file.as_text([CELL0, bad], "json"))
    answer = cell_v2("import", path)
    assert (answer.exit_code, answer.out) == (exit_code, "")
    assert reason in answer.err
    assert "s3cret" not in answer.err
    assert [cell.id for cell in store.list_cells()] == [CELL1.id]


def test_table_and_file_are_the_same_to_cells(cell_v2: Callable[..., Answer], store: Store, path: Path) -> None:
    """Exported or imported, the cells of the file and those of the table are the same, by every name."""
    path.write_text(cells_file.as_text([CELL0, CELL1, CELL2], "json"))
    cell_v2("import", path)
    exported = path.with_name("exported.yaml")
    cell_v2("export", exported)
    snapshots = [
        {ref: seen([cell]) for ref, cell in Records(source, lambda _: None).read().items()}
        for source in (store, CellsFile(str(path)), CellsFile(str(exported)))
    ]
    assert snapshots[0] == snapshots[1] == snapshots[2]
    assert snapshots[0].keys() == {1, 2, 7, "cell0", "cell1", CELL0_UUID, UUID1, UUID2}


def test_import_without_urls(cell_v2: Callable[..., Answer], store: Store, path: Path) -> None:
    """--without-urls records rows for mappings to refer to, without a secret in them; they can come later."""
    path.write_text(cells_file.as_text([CELL1], "json"))
    for outcome in ("created", "unchanged"):
        assert cell_v2("import", path, "--without-urls") == (0, f"cell1 ({UUID1}): {outcome}\n", "")
    (cell,) = store.list_cells()
    assert seen([cell]) == seen([Cell(2, UUID1, "cell1", False, None, None)])
    assert cell_v2("import", path).out == f"cell1 ({UUID1}): updated (transport_url, database_connection)\n"
    assert seen(store.list_cells()) == seen([CELL1])


def test_import_that_is_refused(cell_v2: Callable[..., Answer], store: Store, path: Path) -> None:
    """A file of the wrong form exits with 1, a clash with what is recorded with 2; and nothing is written."""
    store.import_cells([CELL1])
    text = cells_file.as_text([CELL0, Cell(2, UUID2, "cell2", False, "none:///", "mysql+pymysql://db/cell2")], "json")
    for content, exit_code, reason in (
        (text.replace('"id": 2', '"id": 1'), 1, "cell no. 2 (cell2): id is that of cell no. 1 (cell0), too"),
        (text, 2, f"cell {UUID2} can't have the id of cell {UUID1}"),
    ):
        path.write_text(content)
        answer = cell_v2("import", path)
        assert (answer.exit_code, answer.out, answer.err.count("\n")) == (exit_code, "", 1)
        assert reason in answer.err
        assert seen(store.list_cells()) == seen([CELL1])


def test_other_errors_have_another_exit_code(cell_v2: Callable[..., Answer], configuration: Path, path: Path) -> None:
    """What is wrong with the configuration is not a refusal of the file."""
    path.write_text('{"cells": []}')
    configuration.write_text("")
    answer = cell_v2("import", path)
    assert (answer.exit_code, "[api_database] connection" in answer.err) == (255, True)


def test_import_encrypts_where_there_are_keys(
    cell_v2: Callable[..., Answer], configuration: Path, store: Store, path: Path, tmp_path: Path
) -> None:
    """Where there are keys, plain text is recorded encrypted; what is recorded and says the same is left as it is."""
    keys = str(tmp_path / "keys")
    KeyRepository(keys).setup()
    with configuration.open("a") as file:
        file.write(f"[cellmw]\ncredential_keys = {keys}\n")
    path.write_text(cells_file.as_text([CELL0, CELL1], "json"))
    assert cell_v2("import", path).out.count("created") == 2
    stored = seen(store.list_cells())
    cell0, cell1 = store.list_cells()
    assert cell0.reveal_transport_url() == "none:///"
    assert is_encrypted(cell1.reveal_transport_url())
    credentials = Credentials(keys, None)
    assert credentials.decrypt(cell1.reveal_database_connection()) == CELL1.reveal_database_connection()
    assert cell_v2("import", path).out.count("unchanged") == 2
    assert seen(store.list_cells()) == stored
