# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage`` where it waits for a lock in the API database: interrupted, and several at the same moment."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from cellmw import engines
from cellmw.store import Store, migrations
from tests.servers.locks import wait_for_waiters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PATIENCE = 60

SCRIPT = str(Path(sys.executable).with_name("cellmw-manage"))

LOCK = {"postgresql": "LOCK TABLE cell_mappings IN {} MODE", "mysql": "LOCK TABLES cell_mappings {}"}

AGAINST_READERS = {"postgresql": "ACCESS EXCLUSIVE", "mysql": "WRITE"}

AGAINST_WRITERS = {"postgresql": "EXCLUSIVE", "mysql": "READ"}

URLS = ["--transport-url", "rabbit://u:s3cret@h/", "--database_connection", "mysql+pymysql://u:s3cret@h/cell1"]


@pytest.fixture(params=["mariadb_url", "postgresql_url"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """The API database there."""
    with Store(engines.make_engine(url, {}, pre_ping=False)) as store:
        migrations.sync(store.engine)
        yield store


@pytest.fixture
def started(url: str, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command of the family."""
    configuration = tmp_path / "cellmw.conf"
    configuration.write_text(f"[api_database]\nconnection = {url}\n")
    with ExitStack() as processes:

        def start(*arguments: str) -> subprocess.Popen[str]:
            command = [SCRIPT, "--config-file", str(configuration), "cell_v2", *arguments]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            process = processes.enter_context(subprocess.Popen(command, text=True, **pipes))
            processes.callback(process.kill)
            return process

        yield start


@contextmanager
def locked(store: Store, modes: dict[str, str]) -> Iterator[None]:
    """Keep others out of the table of cells."""
    dialect = store.engine.dialect.name
    with store.engine.connect() as connection:
        try:
            connection.execute(text(LOCK[dialect].format(modes[dialect])))
            yield
        finally:
            connection.invalidate()  # MariaDB keeps it until the connection ends


def answers(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Return exit code, stdout and stderr of each."""
    outputs = [process.communicate(timeout=PATIENCE) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_while_it_waits(
    store: Store, started: Callable[..., subprocess.Popen[str]], number: int, exit_code: int
) -> None:
    """A command that waits for the database can be interrupted at any moment, and has done nothing then."""
    with locked(store, AGAINST_READERS):
        process = started("create_cell", *URLS)
        wait_for_waiters(store.engine, 1)
        process.send_signal(number)
        ((code, out, err),) = answers([process])
    assert (code, out) == (exit_code, "")
    assert err == "cellmw-manage: interrupted: nothing is half-done: run it again\n"
    assert store.list_cells() == []


def test_created_by_two_at_the_same_moment(store: Store, started: Callable[..., subprocess.Popen[str]]) -> None:
    """Both have found no such cell when they go to write: one is recorded, and the other refused as a later one is."""
    same = ["--transport-url", "rabbit://other@H:5672/", "--database_connection", "mysql+pymysql://other@h:3306/cell1"]
    with locked(store, AGAINST_WRITERS):
        processes = [started("create_cell", *options) for options in (URLS, same)]
        wait_for_waiters(store.engine, len(processes))
    done = answers(processes)
    (cell,) = store.list_cells()
    assert sorted(done) == [(0, "", ""), (2, "", f"cellmw-manage: cell {cell} has that database already\n")]


@pytest.mark.parametrize(("which", "taken"), [(0, "message queue"), (2, "database")])
def test_two_cells_given_one_url_at_the_same_moment(
    store: Store, started: Callable[..., subprocess.Popen[str]], which: int, taken: str
) -> None:
    """Of two cells that are to have the same message queue, or the same database, one gets it."""
    cells = [
        store.create_cell(name=name, transport_url=f"rabbit://{name}/", database_connection=f"mysql://{name}/{name}")
        for name in ("cell1", "cell2")
    ]
    with locked(store, AGAINST_WRITERS):
        processes = [
            started("update_cell", "--cell_uuid", cell.uuid, URLS[which], URLS[which + 1].replace("u:s3cret", user))
            for cell, user in zip(cells, ("u:s3cret", "v"), strict=True)
        ]
        wait_for_waiters(store.engine, len(processes))
    done = answers(processes)
    changed = cells[[code for code, _, _ in done].index(0)]
    assert sorted(code for code, _, _ in done) == [0, 3]
    assert f"cellmw-manage: cell {changed} has that {taken} already\n" in [err for _, _, err in done]


@pytest.mark.parametrize("who", [["--cell_uuid", "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01"], ["--name", "cell1"]])
def test_ensured_by_several_at_the_same_moment(
    store: Store, started: Callable[..., subprocess.Popen[str]], who: list[str]
) -> None:
    """All of them find no cell and go to write; one creates it, and the others say that it is there."""
    with locked(store, AGAINST_WRITERS):
        processes = [started("ensure_cell", *who, *URLS, "-f", "value", "-c", "Outcome") for _ in range(3)]
        wait_for_waiters(store.engine, len(processes))
    done = answers(processes)
    assert sorted(out for _, out, _ in done) == ["created\n", *["unchanged\n"] * 2]
    assert [(code, err) for code, _, err in done] == [(0, "")] * 3
    assert len(store.list_cells()) == 1


def test_changed_by_several_at_the_same_moment(store: Store, started: Callable[..., subprocess.Popen[str]]) -> None:
    """All of them find another URL and go to change it; one does, and the others find it changed."""
    cell = store.create_cell(name="cell1", transport_url="rabbit://old/", database_connection=URLS[3])
    with locked(store, AGAINST_WRITERS):
        command = ["ensure_cell", "--name", "cell1", *URLS, "-f", "value", "-c", "Outcome"]
        processes = [started(*command) for _ in range(3)]
        wait_for_waiters(store.engine, len(processes))
    done = answers(processes)
    assert sorted(out for _, out, _ in done) == ["changed\n", *["unchanged\n"] * 2]
    assert [code for code, _, _ in done] == [0] * 3
    assert store.get_cell(cell.uuid).reveal_transport_url() == URLS[1]
