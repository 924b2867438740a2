# SPDX-License-Identifier: Apache-2.0
"""``drain``, ``undrain``, ``list_held``, ``move_instance``: what they print, their exit codes, and what is recorded."""

from __future__ import annotations

import json
import re
import sqlite3
import uuid
from contextlib import closing
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest

from cellmw import engines
from cellmw.admin.moving import Move
from cellmw.cmd import moves
from cellmw.exceptions import StoreUnavailable
from cellmw.store import Store, migrations
from tests.commands import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cellmw.cell import Cell
    from tests.commands import Manage

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

INSTANCE, OTHER = (str(uuid.UUID(int=number)) for number in (1, 2))

CONFIGURATION = """
[api_database]
connection = sqlite:///{folder}/api.db
[cellmw]
refresh_interval = 0.1
mapping_ttl = 0.1
request_deadline = 0.5
[cellmw_tables]
instance_hidden =
instance_user =
"""


@pytest.fixture
def manage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Manage:
    """Runs a command where nothing takes long but the time that a worker has to read."""
    path = tmp_path / "cellmw.conf"
    path.write_text(CONFIGURATION.format(folder=tmp_path))
    return partial(run, capsys, path)


@pytest.fixture
def ini(tmp_path: Path) -> list[object]:
    """The arguments for a pipeline that goes by longer times than the configuration file says."""
    path = tmp_path / "paste.ini"
    options = "refresh_interval = 30\nmapping_ttl = 600\nrequest_deadline = 90\n"
    path.write_text(f"[filter:slow]\nuse = egg:cellmw#cells\n{options}")
    return ["--ini", path, "--section", "filter:slow"]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a command would wait, one after the other; it does not."""
    waits: list[float] = []
    monkeypatch.setattr(moves, "_wait", waits.append)
    return waits


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Two cells, and an instance that is mapped to the first."""
    with Store(engines.make_engine(f"sqlite:///{tmp_path}/api.db", {}, pre_ping=False)) as store:
        migrations.sync(store.engine)
        for name in ("cell1", "cell2"):
            with closing(sqlite3.connect(tmp_path / f"{name}.db")) as connection, connection:
                connection.execute(
                    "CREATE TABLE instances (id INTEGER PRIMARY KEY, uuid TEXT, project_id TEXT, deleted INTEGER)"
                )
            store.create_cell(
                name=name, transport_url=f"memory://{name}/", database_connection=f"sqlite:///{tmp_path}/{name}.db"
            )
        store.create_instance(INSTANCE, project_id="p", cell_id=1)
        yield store


@pytest.fixture
def cell1(store: Store) -> Cell:
    """The first cell."""
    return store.get_cell(1)


def add_row(folder: Path, cell: str, instance: str, deleted: int = 0) -> None:
    """Bring the instance's row to the database of a cell."""
    with closing(sqlite3.connect(folder / f"{cell}.db")) as connection, connection:
        row = (instance, deleted)
        connection.execute("INSERT INTO instances (uuid, project_id, deleted) VALUES (?, 'p', ?)", row)


def _drained(store: Store) -> dict[str, str | None]:
    return {held.cell_uuid: held.reason for held in store.list_held().cells}


def test_drain(manage: Manage, store: Store, cell1: Cell) -> None:
    """Draining a cell records it, and says how long it takes until every service knows."""
    answer = manage("cell_v2", "drain", "--cell_uuid", cell1.uuid, "--reason", "a new server")
    assert (answer.exit_code, answer.out) == (0, "cell cell1 is drained\n")
    assert "every service knows in 2 s" in answer.err
    assert _drained(store) == {cell1.uuid: "a new server"}


def test_drain_again(manage: Manage, cell1: Cell) -> None:
    """Draining it again changes nothing, and says so."""
    manage("cell_v2", "drain", "--cell_uuid", cell1.uuid)
    assert manage("cell_v2", "drain", "--cell_uuid", cell1.uuid)[:2] == (0, "cell cell1 is drained already\n")


def test_drain_and_wait(manage: Manage, cell1: Cell) -> None:
    """With --wait it returns when no request can be under way any more, and says what it waits for."""
    answer = manage("cell_v2", "drain", "--cell_uuid", cell1.uuid, "--wait")
    assert answer.exit_code == 0
    assert [line for line in answer.err.splitlines() if "waiting" in line] == [
        "cellmw-manage: waiting 2 s until every service knows",
        "cellmw-manage: waiting 0 s until the last request has ended",
    ]


def test_drain_by_an_ini(manage: Manage, cell1: Cell, ini: list[object], waits: list[float]) -> None:
    """Options that stand in the ini of the pipeline count with --ini."""
    assert (
        "every service knows in 32 s, and 90 s later" in manage("cell_v2", "drain", "--cell_uuid", cell1.uuid, *ini).err
    )
    manage("cell_v2", "drain", "--cell_uuid", cell1.uuid, "--wait", *ini)
    assert waits == [32.0, 90.0]
    assert "every service knows in 32 s" in manage("cell_v2", "undrain", "--cell_uuid", cell1.uuid, *ini).err


@pytest.mark.parametrize(
    "command", [["drain", "--cell_uuid"], ["undrain", "--cell_uuid"], ["move_instance", INSTANCE, "--force", "--to"]]
)
def test_ini_without_the_section(
    manage: Manage, store: Store, cell1: Cell, ini: list[object], command: list[str]
) -> None:
    """An ini that has no such section is refused, before anything is done."""
    answer = manage("cell_v2", *command, cell1.uuid, *ini[:2])
    assert (answer.exit_code, "[filter:cells] of" in answer.err, store.list_held()) == (255, True, ((), ()))


def test_long_reason(manage: Manage, store: Store, cell1: Cell) -> None:
    """A reason that the record has no room for is refused."""
    answer = manage("cell_v2", "drain", "--cell_uuid", cell1.uuid, "--reason", "x" * 256)
    assert (answer.exit_code, _drained(store)) == (1, {})


@pytest.mark.parametrize("reason", ["on fire \U0001f525", "\x1b[31mred", "\udcff"])
def test_odd_reason(manage: Manage, store: Store, cell1: Cell, reason: str) -> None:
    """So is one that a database has no characters for, or that would do something to a terminal."""
    answer = manage("cell_v2", "drain", "--cell_uuid", cell1.uuid, "--reason", reason)
    assert (answer.exit_code, "leave them out" in answer.err, _drained(store)) == (1, True, {})


@pytest.mark.parametrize(
    ("reason", "recorded"),
    [
        ("first\n  second\t", "first second"),
        ("ä" * 255, "ä" * 255),
        (" ", None),
        ("from mysql://nova:Zk41-secret@db/nova", "from mysql://nova:***@db/nova"),
    ],
)
def test_recorded_reason(manage: Manage, store: Store, cell1: Cell, reason: str, recorded: str | None) -> None:
    """A reason is kept in one line, and without a password."""
    assert manage("cell_v2", "drain", "--cell_uuid", cell1.uuid, "--reason", reason).exit_code == 0
    assert _drained(store) == {cell1.uuid: recorded}


def test_reason_of_what_is_drained(manage: Manage, store: Store, cell1: Cell) -> None:
    """Another reason for what is drained already is not recorded, and that is said."""
    manage("cell_v2", "drain", "--cell_uuid", cell1.uuid, "--reason", "first")
    assert (
        "what was recorded with it stays"
        in manage("cell_v2", "drain", "--cell_uuid", cell1.uuid, "--reason", "second").err
    )
    assert _drained(store) == {cell1.uuid: "first"}


@pytest.mark.parametrize("command", ["drain", "undrain"])
def test_upper_case(manage: Manage, store: Store, cell1: Cell, command: str) -> None:
    """A uuid may be written in capitals."""
    assert manage("cell_v2", command, "--cell_uuid", cell1.uuid.upper()).exit_code == 0


def test_undrain_of_a_cell_that_is_gone(manage: Manage, store: Store, cell1: Cell) -> None:
    """One that nova-manage has deleted while it was drained can be undrained, so that nothing is left of it."""
    store.drain_cell("5a1d0c52-7c0e-4a53-9f6e-0f6d3c1b2a11")
    answer = manage("cell_v2", "undrain", "--cell_uuid", "5a1d0c52-7c0e-4a53-9f6e-0f6d3c1b2a11")
    assert answer[:2] == (0, "cell 5a1d0c52-7c0e-4a53-9f6e-0f6d3c1b2a11 is not drained any more\n")
    assert _drained(store) == {}


def test_undrain(manage: Manage, store: Store, cell1: Cell) -> None:
    """Undraining takes it back; a cell that is not drained is left as it is."""
    manage("cell_v2", "drain", "--cell_uuid", cell1.uuid)
    answers = [manage("cell_v2", "undrain", "--cell_uuid", cell1.uuid) for _ in range(2)]
    assert [answer[:2] for answer in answers] == [
        (0, "cell cell1 is not drained any more\n"),
        (0, "cell cell1 is not drained\n"),
    ]
    assert _drained(store) == {}


@pytest.mark.parametrize("command", ["drain", "undrain"])
def test_unknown_cell(manage: Manage, store: Store, command: str) -> None:
    """A cell that is not recorded is 1."""
    assert manage("cell_v2", command, "--cell_uuid", "nope").exit_code == 1


@pytest.mark.parametrize(("drained", "state"), [(False, "would be drained"), (True, "unchanged")])
def test_dry_drain(manage: Manage, store: Store, cell1: Cell, drained: bool, state: str) -> None:
    """A dry run says what would be done."""
    if drained:
        store.drain_cell(cell1.uuid)
    answer = manage("cell_v2", "drain", "--cell_uuid", cell1.uuid, "--dry-run", "-f", "json")
    assert json.loads(answer.out) == [{"Name": "cell1", "UUID": cell1.uuid, "Outcome": state}]
    assert bool(_drained(store)) == drained


def test_dry_undrain(manage: Manage, store: Store, cell1: Cell) -> None:
    """So does that of undraining."""
    store.drain_cell(cell1.uuid)
    answer = manage("cell_v2", "undrain", "--cell_uuid", cell1.uuid, "--dry-run", "-f", "value", "-c", "Outcome")
    assert (answer.out, len(_drained(store))) == ("would be undrained\n", 1)


def test_list(manage: Manage, store: Store, cell1: Cell, tmp_path: Path) -> None:
    """What is held back is shown with the cell's name, the reason, and the end of a hold."""
    store.drain_cell(cell1.uuid, "a new server")
    store.hold_instances([INSTANCE], datetime(2099, 1, 1))
    rows = json.loads(manage("cell_v2", "list_held", "-f", "json").out)
    assert [(row["What"], row["UUID"], row["Name"], row["Reason"]) for row in rows] == [
        ("cell", cell1.uuid, "cell1", "a new server"),
        ("instance", INSTANCE, "", None),
    ]
    assert (rows[0]["Until"], rows[1]["Until"][:4], rows[0]["Since"][-1]) == (None, "2099", "Z")


# --- move_instance


def test_move(manage: Manage, store: Store, tmp_path: Path) -> None:
    """An instance whose row is in the other cell's database by now is mapped to it, and let go."""
    add_row(tmp_path, "cell2", INSTANCE)
    answer = manage("cell_v2", "move_instance", INSTANCE.upper(), "--to", "cell2", "-f", "json")
    assert json.loads(answer.out) == [{"Instance UUID": INSTANCE, "From": "cell1", "To": "cell2", "Outcome": "moved"}]
    assert (answer.exit_code, store.get_instance(INSTANCE).cell_id, store.list_held().instances) == (0, 2, ())


def test_move_by_an_ini(
    manage: Manage, store: Store, tmp_path: Path, ini: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --ini it waits as long as the filter of that pipeline goes by what it knows, and the hold outlasts that."""
    holds: list[tuple[float, bool]] = []

    def wait(seconds: float) -> None:
        (held,) = store.list_held().instances
        holds.append((seconds, held.until - held.since > timedelta(seconds=32 + 600)))

    monkeypatch.setattr(moves, "_wait", wait)
    add_row(tmp_path, "cell2", INSTANCE)
    assert manage("cell_v2", "move_instance", INSTANCE, "--to", "cell2", *ini).exit_code == 0
    assert holds == [(32.0, True), (600.0, True)]


def test_move_again(manage: Manage, store: Store, tmp_path: Path) -> None:
    """One that is mapped to the cell already is left as it is, at once."""
    store.update_instance(INSTANCE, cell_id=2)
    add_row(tmp_path, "cell2", INSTANCE)
    answer = manage("cell_v2", "move_instance", INSTANCE, "--to", "cell2")
    assert answer == (0, f"instance {INSTANCE}: unchanged\n", "")


def test_move_again_after_one_that_was_killed(manage: Manage, store: Store) -> None:
    """One that was killed after the change has left its hold: until when that lasts is said."""
    store.update_instance(INSTANCE, cell_id=2)
    store.hold_instances([INSTANCE], datetime(2099, 1, 1))
    answer = manage("cell_v2", "move_instance", INSTANCE, "--to", "cell2", "--force")
    assert answer[:2] == (0, f"instance {INSTANCE}: unchanged\n")
    assert "a move that is not done or was killed: until 2099-01-01T00:00:00Z" in answer.err


def test_move_without_rows(manage: Manage, store: Store) -> None:
    """One that the cell does not have is refused; nothing is held back."""
    answer = manage("cell_v2", "move_instance", INSTANCE, "--to", "cell2")
    assert (answer.exit_code, answer.err) == (
        1,
        f"cellmw-manage: the database of cell cell2 has no instance {INSTANCE}: "
        "bring its rows there first, or give --force\n",
    )
    assert (store.get_instance(INSTANCE).cell_id, store.list_held().instances) == (1, ())


def test_move_of_a_deleted_row(manage: Manage, store: Store, tmp_path: Path) -> None:
    """A row that is kept as that of a deleted instance does not count."""
    add_row(tmp_path, "cell2", INSTANCE, deleted=1)
    assert manage("cell_v2", "move_instance", INSTANCE, "--to", "cell2").exit_code == 1


def test_forced_move(manage: Manage, store: Store) -> None:
    """With --force nobody looks."""
    assert manage("cell_v2", "move_instance", INSTANCE, "--to", store.get_cell(2).uuid, "--force").exit_code == 0
    assert store.get_instance(INSTANCE).cell_id == 2


def test_dry_move(manage: Manage, store: Store) -> None:
    """A dry run changes nothing and holds nothing back."""
    answer = manage("cell_v2", "move_instance", INSTANCE, "--to", "cell2", "--force", "--dry-run")
    assert answer == (0, f"instance {INSTANCE}: would be moved\n", "")
    assert (store.get_instance(INSTANCE).cell_id, store.list_held().instances) == (1, ())


@pytest.mark.parametrize("arguments", [[OTHER, "--to", "cell2"], [INSTANCE, "--to", "cell3"]])
def test_nothing_to_move(manage: Manage, store: Store, arguments: list[str]) -> None:
    """An instance that is not mapped, and a cell that is not recorded, are 1."""
    assert manage("cell_v2", "move_instance", *arguments, "--force").exit_code == 1


def test_move_of_what_somebody_else_moves(manage: Manage, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapping that somebody else changes meanwhile stays what they have made of it; the exit code is 2."""
    hold = Move.hold

    def hold_and_change(move: Move) -> None:
        hold(move)
        store.update_instance(INSTANCE, project_id="other")

    monkeypatch.setattr(Move, "hold", hold_and_change)
    answer = manage("cell_v2", "move_instance", INSTANCE, "--to", "cell2", "--force")
    assert (answer.exit_code, answer.out) == (2, f"instance {INSTANCE}: changed meanwhile\n")
    assert (store.get_instance(INSTANCE).cell_id, store.list_held().instances) == (1, ())


@pytest.mark.parametrize(
    ("step", "cell_id", "held", "said"),
    [
        ("hold", 1, 0, "no instance was moved, and requests are let through again, TIME at the latest: run it again"),
        ("change", 2, 1, "the instances are mapped to cell cell2, and requests are let through again at TIME"),
    ],
)
def test_interrupted_move(
    manage: Manage, store: Store, monkeypatch: pytest.MonkeyPatch, step: str, cell_id: int, held: int, said: str
) -> None:
    """After Ctrl-C it is said where the instances are, and when requests are let through again."""
    waits = iter([step == "hold", True])

    def wait(seconds: float) -> None:
        if next(waits):
            raise KeyboardInterrupt

    monkeypatch.setattr(moves, "_wait", wait)
    answer = manage("cell_v2", "move_instance", INSTANCE, "--to", "cell2", "--force")
    last = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME", answer.err).splitlines()[-1]
    assert (answer.exit_code, last) == (130, f"cellmw-manage: interrupted: {said}")
    assert (store.get_instance(INSTANCE).cell_id, len(store.list_held().instances)) == (cell_id, held)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (1, "no instance was moved, and requests are let through again, TIME at the latest: run it again"),
        (2, "requests are let through again at TIME: run it again"),
        (3, "the instances are mapped to cell cell2, and requests are let through again at TIME"),
    ],
)
def test_move_without_the_api_database(
    manage: Manage, store: Store, monkeypatch: pytest.MonkeyPatch, step: int, said: str
) -> None:
    """When the API database is gone half-way it is said how far it came, and when requests are let through again."""

    def be_down(*_: object) -> None:
        raise StoreUnavailable("down")

    def wait(seconds: float) -> None:
        if step == 1:
            monkeypatch.setattr(Store, "let_go_instances", be_down)
            raise KeyboardInterrupt
        monkeypatch.setattr(Store, "change_instances" if step == 2 else "let_go_instances", be_down)

    monkeypatch.setattr(moves, "_wait", wait)
    answer = manage("cell_v2", "move_instance", INSTANCE, "--to", "cell2", "--force")
    last = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME", answer.err).splitlines()[-2:]
    if step == 1:
        assert (answer.exit_code, last[-1]) == (130, f"cellmw-manage: interrupted: {said}")
    else:
        assert (answer.exit_code, last) == (255, [f"cellmw-manage: stopped: {said}", "cellmw-manage: down"])
    assert len(store.list_held().instances) == 1


def test_move_that_somebody_else_begins_again(manage: Manage, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody else begins to move it nothing is changed; the exit code is 2."""
    later = datetime(2099, 1, 1)
    monkeypatch.setattr(moves, "_wait", lambda seconds: store.hold_instances([INSTANCE], later))
    answer = manage("cell_v2", "move_instance", INSTANCE, "--to", "cell2", "--force")
    assert (answer.exit_code, "somebody else has begun to move instance" in answer.err) == (2, True)
    assert (store.get_instance(INSTANCE).cell_id, store.list_held().instances[0].until) == (1, later)


def test_move_after_one_that_was_killed(manage: Manage, store: Store, waits: list[float]) -> None:
    """It can be run again at once; the hold of the one that was killed goes on to its end, which is said."""
    until = datetime(2099, 1, 1)
    store.hold_instances([INSTANCE], until)
    answer = manage("cell_v2", "move_instance", INSTANCE, "--to", "cell2", "--force")
    assert (answer.exit_code, store.get_instance(INSTANCE).cell_id) == (0, 2)
    assert "that is not done or was killed: they are until 2099-01-01T00:00:00Z" in answer.err
    assert store.list_held().instances[0].until == until


def test_move_to_a_drained_cell(manage: Manage, store: Store, waits: list[float]) -> None:
    """Where nobody will reach it that is said."""
    store.drain_cell(store.get_cell(2).uuid)
    answer = manage("cell_v2", "move_instance", INSTANCE, "--to", "cell2", "--force")
    assert answer.exit_code == 0
    assert "cell cell2 is drained: requests for them are refused until `cell_v2 undrain`" in answer.err
