# SPDX-License-Identifier: Apache-2.0
"""``cell_v2 ensure_cell`` as configuration management sees it: the record afterwards, and what it is told."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cellmw import engines
from cellmw.cell import CELL0_UUID
from cellmw.cmd.cell_v2 import Wish
from cellmw.store import Store, migrations
from tests.commands import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.commands import Answer

    Ensure = Callable[..., Answer]

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

UUID = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01"

QUEUE = "rabbit://user:s3cret@host1:5672/"

DATABASE = "mysql+pymysql://nova:s3cret@db/cell1"

OTHER = ["--transport-url", "none:///", "--database_connection", "mysql+pymysql://db/other"]

URLS = ["--transport-url", QUEUE, "--database_connection", DATABASE]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty API database."""
    with Store(engines.make_engine(f"sqlite:///{tmp_path}/api.db", {}, pre_ping=False)) as store:
        migrations.sync(store.engine)
        yield store


@pytest.fixture
def ensure(tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> Ensure:
    """Runs the command, which never shows a password."""
    path = tmp_path / "cellmw.conf"
    path.write_text(f"[api_database]\nconnection = sqlite:///{tmp_path}/api.db\n")
    run_it = partial(run, capsys, path, "cell_v2", "ensure_cell")

    def run_and_look(*arguments: str) -> Answer:
        answer = run_it(*arguments)
        assert "s3cret" not in answer.out + answer.err
        return answer

    return run_and_look


def records(store: Store) -> list[tuple[object, ...]]:
    """What is recorded of each cell."""
    return [
        (cell.uuid, cell.name, cell.disabled, cell.reveal_transport_url(), cell.reveal_database_connection())
        for cell in store.list_cells()
    ]


@pytest.mark.parametrize("who", [["--cell_uuid", UUID, "--name", "cell1"], ["--name", "cell1"]])
def test_ensure_cell(ensure: Ensure, store: Store, who: list[str]) -> None:
    """It creates, changes and leaves alone; each time stdout says which, and the exit code is 0."""
    assert ensure(*who, *URLS) == (0, "cell cell1: created\n", "")
    ((uuid, *created),) = records(store)
    assert created == ["cell1", False, QUEUE, DATABASE]
    assert ensure(*who, *URLS) == (0, "cell cell1: unchanged\n", "")
    assert ensure("--name", "cell2", *OTHER, "--disable").exit_code == 0
    assert store.list_cells()[1].disabled
    store.delete_cell(store.list_cells()[1].uuid)
    moved = ["--database-connection", "mysql+pymysql://nova:s3cret@db2/cell1"]
    changed = ensure(*who, *URLS, *moved, "--disable")
    assert changed[:2] == (0, "cell cell1: changed (disabled, database_connection)\n")
    assert "within 10 s" in changed.err
    assert records(store) == [(uuid, "cell1", True, QUEUE, moved[1])]
    assert ensure(*who).out == "cell cell1: unchanged\n"
    assert ensure(*who, "--enable").out == "cell cell1: changed (disabled)\n"


def test_ensure_cell_for_scripts(ensure: Ensure) -> None:
    """As json there is one row with a flag, by which Ansible can tell whether something was changed."""
    answers = [json.loads(ensure("--cell_uuid", UUID, *URLS, "--name", name, "-f", "json").out) for name in "aab"]
    assert [(row["Outcome"], row["Columns"], row["Changed"]) for (row,) in answers] == [
        ("created", "", True),
        ("unchanged", "", False),
        ("changed", "name", True),
    ]
    assert {row["UUID"] for (row,) in answers} == {UUID}


def test_ensure_cell_by_a_dry_run(ensure: Ensure, store: Store) -> None:
    """A dry run says what it would do, with the flag that the real one has, and does nothing."""
    assert ensure("--name", "cell1", *URLS, "--dry-run")[:2] == (0, "cell cell1: would be created\n")
    assert store.list_cells() == []
    ensure("--name", "cell1", *URLS)
    before = records(store)
    assert ensure("--name", "cell1", "--disable", "--dry-run").out == "cell cell1: would be changed (disabled)\n"
    (row,) = json.loads(ensure("--name", "cell1", "--disable", "--dry-run", "-f", "json").out)
    assert (row["Changed"], records(store)) == (True, before)
    assert ensure("--name", "cell1", "--dry-run").out == "cell cell1: unchanged\n"


def test_ensure_cell_without_its_urls(ensure: Ensure, store: Store) -> None:
    """A cell that is not there is not made of what is configured: its URLs have to be given."""
    for urls in ([], URLS[:2], URLS[2:]):
        answer = ensure("--name", "cell1", *urls)
        assert (answer.exit_code, "--transport-url and --database_connection" in answer.err) == (1, True)
    assert store.list_cells() == []


def test_ensure_cell0(ensure: Ensure, store: Store) -> None:
    """cell0 has no queue and its own name, without being told; a name that it has is left."""
    cell0 = ["--cell_uuid", CELL0_UUID, *URLS[2:]]
    assert ensure(*cell0) == (0, "cell cell0: created\n", "")
    assert records(store) == [(CELL0_UUID, "cell0", False, "none:///", DATABASE)]
    store.update_cell(CELL0_UUID, name=None)
    assert ensure(*cell0) == (0, f"cell {CELL0_UUID}: unchanged\n", "")
    assert ensure(*cell0, "--disable").exit_code == 1


def test_ensure_cell_without_saying_which(ensure: Ensure) -> None:
    """A uuid or a name is needed, a uuid has to be one, and a cell has one state."""
    assert ensure(*URLS).exit_code == 1
    assert "no uuid" in ensure("--cell_uuid", "cell1", *URLS).err
    assert ensure("--name", "cell1", "--enable", "--disable").exit_code == 2


def test_ensure_cell_takes_uuids_as_people_write_them(ensure: Ensure, store: Store) -> None:
    """A uuid in upper case is the same."""
    assert ensure("--cell_uuid", UUID.upper(), *URLS).out == f"cell {UUID}: created\n"
    assert ensure("--cell-uuid", UUID, *URLS).out == f"cell {UUID}: unchanged\n"


def test_two_cells_of_one_name(ensure: Ensure, store: Store) -> None:
    """Where two cells have the name, it does not tell which; their uuids do."""
    for number in (1, 2):
        database = f"mysql+pymysql://db/{number}"
        store.create_cell(name="cell1", transport_url="none:///", database_connection=database)
    answer = ensure("--name", "cell1", "--disable")
    assert (answer.exit_code, all(cell.uuid in answer.err for cell in store.list_cells())) == (1, True)
    assert ensure("--cell_uuid", store.list_cells()[0].uuid, "--disable").exit_code == 0
    assert [cell.disabled for cell in store.list_cells()] == [True, False]


def test_cell_that_was_renamed(ensure: Ensure, store: Store) -> None:
    """A cell that was made by its name, and has another since, is not made again."""
    ensure("--name", "cell1", *URLS)
    store.update_cell(store.list_cells()[0].uuid, name="renamed")
    answer = ensure("--name", "cell1", *OTHER)
    assert (answer.exit_code, "called something else" in answer.err, len(store.list_cells())) == (1, True, 1)


def test_ensure_cell_refuses_what_another_cell_has(ensure: Ensure, store: Store) -> None:
    """A new cell and one that is changed can't have another's queue or database: 2."""
    store.create_cell(name="two", transport_url="rabbit://h2/", database_connection="mysql+pymysql://db/cell2")
    shared = ["--transport-url", "rabbit://x@H2:5672/", *URLS[2:]]
    created = ensure("--name", "cell1", *shared)
    ensure("--name", "cell1", *URLS)
    changed = ensure("--name", "cell1", *shared)
    for answer in (created, changed):
        assert (answer.exit_code, answer.err.count("\n"), "cell two" in answer.err) == (2, 1, True)


def test_ensure_cell_refuses_a_bad_url(ensure: Ensure, store: Store) -> None:
    """A URL that nobody could use is refused with 1, whether there is a cell or not."""
    bad = ["--transport-url", "rabbit://user:s3cret/x@host/", *URLS[2:]]
    assert (ensure("--name", "cell1", *bad).exit_code, store.list_cells()) == (1, [])
    ensure("--name", "cell1", *URLS)
    assert (ensure("--name", "cell1", *bad).exit_code, records(store)[0][3]) == (1, QUEUE)


@pytest.mark.parametrize("who", [["--cell_uuid", UUID], ["--name", "cell1"]])
def test_two_create_it_at_the_same_moment(
    ensure: Ensure, store: Store, monkeypatch: pytest.MonkeyPatch, who: list[str]
) -> None:
    """The one that comes second finds the other's cell, with nothing to do or with what is still different."""
    record = Wish.record

    def somebody_else_first(self: Wish, *args: object) -> object:
        monkeypatch.setattr(Wish, "record", record)
        assert ensure(*who, *URLS).exit_code == 0
        return record(self, store)

    for state, outcome in ([], "unchanged"), (["--disable"], "changed (disabled)"):
        monkeypatch.setattr(Wish, "record", somebody_else_first)
        answer = ensure(*who, *URLS, *state)
        assert (answer.exit_code, answer.out.endswith(f": {outcome}\n"), len(store.list_cells())) == (0, True, 1)
        store.delete_cell(store.list_cells()[0].uuid)


def test_two_change_it_at_the_same_moment(ensure: Ensure, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that comes second looks again; and where the cell is gone by then, it is made anew."""
    ensure("--cell_uuid", UUID, *URLS)
    moved = ["--transport-url", "rabbit://user:s3cret@host2:5672/", *URLS[2:]]
    update = Store.update_cell

    def somebody_else_first(first: Callable[[], object], *args: object, **values: object) -> object:
        monkeypatch.setattr(Store, "update_cell", update)
        first()
        return update(store, *args, **values)

    for first, outcome in (
        (lambda: ensure("--cell_uuid", UUID, *moved), "unchanged"),
        (lambda: store.delete_cell(UUID), "created"),
    ):
        store.update_cell(UUID, transport_url=QUEUE)
        monkeypatch.setattr(Store, "update_cell", partial(somebody_else_first, first))
        answer = ensure("--cell_uuid", UUID, *moved)
        assert (answer.exit_code, answer.out) == (0, f"cell {UUID}: {outcome}\n")
        assert records(store) == [(UUID, None, False, moved[1], DATABASE)]
