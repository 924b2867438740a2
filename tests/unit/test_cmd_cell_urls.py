# SPDX-License-Identifier: Apache-2.0
"""URLs that another cell gets after they were found to be nobody's: whoever goes to write them is refused."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from cellmw import engines
from cellmw.cell import CELL0_UUID
from cellmw.store import Store, migrations
from tests.commands import run
from tests.nova_cell import NovaCell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.commands import Answer

    Manage = Callable[..., Answer]

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

UUID1 = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01"

QUEUE, SAME_QUEUE = "rabbit://user:s3cret@broker1/", "rabbit://other:s3cret@BROKER1:5672//"

DATABASE, SAME_DATABASE = "mysql+pymysql://user:s3cret@db/new", "mysql+pymysql://other:s3cret@DB:3306/new"

URLS = {"transport_url": QUEUE, "database_connection": DATABASE}

SAME_DATABASE_ONLY = {"transport_url": "rabbit://elsewhere/", "database_connection": SAME_DATABASE}

SAME_QUEUE_ONLY = {"transport_url": SAME_QUEUE, "database_connection": "mysql+pymysql://elsewhere/new"}

TYPED = ("--transport-url", QUEUE, "--database_connection", DATABASE)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An API database with one cell."""
    with Store(engines.make_engine(f"sqlite:///{tmp_path}/api.sqlite", {}, pre_ping=False)) as store:
        migrations.sync(store.engine)
        store.create_cell(
            uuid=UUID1, name="cell1", transport_url="rabbit://h1/", database_connection="mysql+pymysql://db/cell1"
        )
        yield store


@pytest.fixture
def manage(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Manage:
    """Runs a command of the family."""
    configuration = tmp_path / "cellmw.conf"
    nova = f"sqlite:///{tmp_path}/nova.sqlite"
    configuration.write_text(
        f"[DEFAULT]\ntransport_url = {QUEUE}\n[database]\nconnection = {nova}\n"
        f"[api_database]\nconnection = sqlite:///{tmp_path}/api.sqlite\n"
    )
    return partial(run, capsys, configuration, "cell_v2")


@pytest.fixture
def rival(store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Have somebody else record a cell with these URLs as soon as a command goes to write."""

    def comes(urls: dict[str, str]) -> None:
        for name in ("create_cell", "update_cell", "import_cells"):
            monkeypatch.setattr(Store, name, partial(write, getattr(Store, name), urls))

    def write(method: Callable[..., object], urls: dict[str, str], *arguments: Any, **values: Any) -> object:
        monkeypatch.undo()
        store.create_cell(name="rival", **urls)
        return method(store, *arguments, **values)

    return comes


COMMANDS = {
    "create_cell": (("create_cell", *TYPED), 2),
    "update_cell": (("update_cell", "--cell_uuid", UUID1, *TYPED), 3),
    "ensure_cell, new": (("ensure_cell", "--name", "new", *TYPED), 2),
    "ensure_cell, changed": (("ensure_cell", "--name", "cell1", *TYPED), 2),
    "map_cell0": (("map_cell0", "--database_connection", DATABASE), 2),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_database_taken_meanwhile(
    manage: Manage, store: Store, rival: Callable[[dict[str, str]], None], command: str
) -> None:
    """A cell that leads to the same database and was recorded after the check is found by what writes."""
    arguments, code = COMMANDS[command]
    before = store.get_cell(UUID1).fingerprint
    rival(SAME_DATABASE_ONLY)
    answer = manage(*arguments)
    assert answer == (code, "", "cellmw-manage: cell rival has that database already\n")
    assert [cell.name for cell in store.list_cells()] == ["cell1", "rival"]
    assert store.get_cell(UUID1).fingerprint == before


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"map_cell0"}))
def test_queue_taken_meanwhile(
    manage: Manage, store: Store, rival: Callable[[dict[str, str]], None], command: str
) -> None:
    """So is one with the same message queue."""
    arguments, code = COMMANDS[command]
    rival(SAME_QUEUE_ONLY)
    assert manage(*arguments) == (code, "", "cellmw-manage: cell rival has that message queue already\n")
    assert [cell.name for cell in store.list_cells()] == ["cell1", "rival"]


@pytest.mark.parametrize(
    ("urls", "taken"), [(SAME_DATABASE_ONLY, "database"), (SAME_QUEUE_ONLY, "message queue")], ids=["database", "queue"]
)
def test_taken_before_an_import(
    manage: Manage,
    store: Store,
    rival: Callable[[dict[str, str]], None],
    tmp_path: Path,
    urls: dict[str, str],
    taken: str,
) -> None:
    """Cells of a file are compared with those that were recorded since it was read, and none of them is recorded."""
    path = tmp_path / "cells.json"
    file = {"id": 70, "uuid": "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a70", "name": "new", "disabled": False, **URLS}
    path.write_text(json.dumps({"cells": [file]}))
    rival(urls)
    answer = manage("import", path)
    assert answer == (2, "", f"cellmw-manage: cell new would have the {taken} of cell rival\n")
    assert [cell.name for cell in store.list_cells()] == ["cell1", "rival"]


def test_taken_before_the_first_cell(
    manage: Manage, store: Store, rival: Callable[[dict[str, str]], None], tmp_path: Path
) -> None:
    """The cell of [database] connection is not recorded where another one has its queue by then; no host is mapped."""
    nova = NovaCell(f"sqlite:///{tmp_path}/nova.sqlite")
    nova.add_hosts(["compute1"])
    rival(SAME_QUEUE_ONLY)
    answer = manage("map_cell_and_hosts")
    assert answer == (2, "", "cellmw-manage: cell rival has that message queue already\n")
    assert ([cell.name for cell in store.list_cells()], store.list_hosts()) == (["cell1", "rival"], [])


def test_what_was_compared_is_not_compared_again(manage: Manage, store: Store) -> None:
    """What can't be compared is noted once, and no reference is looked up while others wait for the records."""
    store.create_cell(name="odd", uuid=CELL0_UUID, transport_url="env:CELLMW_NOT_SET", database_connection="sqlite://")
    answer = manage("create_cell", *TYPED)
    assert (answer.exit_code, answer.err.count("was not compared")) == (0, 1)
