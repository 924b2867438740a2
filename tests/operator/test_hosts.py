# SPDX-License-Identifier: Apache-2.0
"""Hosts on MariaDB and PostgreSQL: many at a time, several commands at a time, and commands that are killed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from oslo_config import cfg

from cellmw import engines
from cellmw.admin import access, discovery
from cellmw.admin.discovery import ALREADY, MAPPED, REFUSED
from cellmw.conf import register_opts
from cellmw.exceptions import CellNotFound
from cellmw.store import Store, migrations
from cellmw.store.models import host_mappings
from tests.commands import run
from tests.nova_cell import NovaCell, compute_nodes
from tests.servers.locks import wait_for_waiters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from cellmw.cell import Cell
    from tests.commands import Answer

PATIENCE = 60

HOSTS = {
    "cell1": [f"one-{number:04}" for number in range(600)],
    "cell2": [f"two-{number:04}" for number in range(1500)],
}

AT_ONCE = 4
"""How many commands there are at the same time."""


@pytest.fixture(params=["new_mariadb_url", "new_postgresql_url"])
def new_url(request: pytest.FixtureRequest) -> Callable[[], str]:
    """Make a database on a server."""
    found: Callable[[], str] = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def url(new_url: Callable[[], str]) -> str:
    """The URL of the API database."""
    return new_url()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """The API database."""
    engine = engines.make_engine(url, {}, pre_ping=False)
    migrations.sync(engine)
    with Store(engine) as store:
        yield store


@pytest.fixture
def other(url: str) -> Iterator[Engine]:
    """Somebody else who uses the API database."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    yield engine
    engine.dispose()


@pytest.fixture
def cells(store: Store, new_url: Callable[[], str]) -> dict[str, tuple[Cell, NovaCell]]:
    """Two cells and their databases, with hosts in them that nobody has discovered."""
    databases = {name: new_url() for name in HOSTS}
    return {
        name: (
            store.create_cell(name=name, transport_url=f"rabbit://{name}/", database_connection=database),
            NovaCell(database).add_hosts(HOSTS[name]),
        )
        for name, database in databases.items()
    }


@pytest.fixture
def configuration(url: str, tmp_path: Path) -> Path:
    """The configuration of the commands."""
    path = tmp_path / "cellmw.conf"
    path.write_text(f"[api_database]\nconnection = {url}\n")
    return path


@pytest.fixture
def conf(configuration: Path) -> cfg.ConfigOpts:
    """The same, read."""
    conf = cfg.ConfigOpts()
    conf([], project="cellmw", default_config_files=[str(configuration)], default_config_dirs=[])
    register_opts(conf)
    return conf


@pytest.fixture
def manage(configuration: Path, capsys: pytest.CaptureFixture[str], logging_as_it_was: None) -> Callable[..., Answer]:
    """Runs a command of the family."""
    return partial(run, capsys, configuration, "cell_v2")


def assert_all_mapped(store: Store, cells: dict[str, tuple[Cell, NovaCell]]) -> None:
    """Each host is mapped to its cell, once, and its cell knows."""
    for name, (cell, database) in cells.items():
        assert [mapping.host for mapping in store.all_hosts(cell.id)] == HOSTS[name]
        assert database.marks() == dict.fromkeys(HOSTS[name], 1)
    assert sum(store.count_hosts().values()) == sum(map(len, HOSTS.values()))


# --- what the store does


def new_cell(store: Store, name: str) -> int:
    """Record a cell."""
    return store.create_cell(name=name, transport_url=f"rabbit://{name}/", database_connection=f"sqlite:///{name}").id


def test_mapped_between_look_and_write(store: Store, other: Engine) -> None:
    """Hosts that somebody maps between the look and the write are theirs, and all others are mapped all the same."""
    mine, theirs = new_cell(store, "cell1"), new_cell(store, "cell2")
    hosts = [f"compute{number:02}" for number in range(20)]
    looks = []

    def map_some(_: object, __: object, statement: str, *rest: object) -> None:
        if statement.startswith("SELECT host_mappings"):
            looks.append(statement)
            if len(looks) == 1:
                with other.begin() as transaction:
                    mappings = [{"host": host, "cell_id": theirs} for host in (hosts[3], hosts[18])]
                    transaction.execute(sa.insert(host_mappings), mappings)

    sa.event.listen(store.engine, "after_cursor_execute", map_some)
    created = store.create_hosts(hosts, cell_id=mine)
    assert created == [host for host in hosts if host not in (hosts[3], hosts[18])]
    assert len(looks) == 3  # and not one for each host
    assert store.count_hosts() == {mine: 18, theirs: 2}


def test_cell_without_record(store: Store) -> None:
    """Hosts can't be mapped to a cell that is gone."""
    with pytest.raises(CellNotFound):
        store.create_hosts(["a"], cell_id=99)


def test_names_that_are_the_same_to_the_database(store: Store) -> None:
    """A name that differs from another's in its case only is another's to MariaDB, and keeps none from being mapped."""
    cell = new_cell(store, "cell1")
    store.create_host("compute7", cell_id=cell)
    hosts = ["Compute7", *(f"compute{number}" for number in range(20, 40))]
    created = store.create_hosts(hosts, cell_id=cell)
    assert created == sorted(hosts)[store.engine.dialect.name == "mysql" :]


def wins_every_deadlock(engine: Engine) -> str:
    """Return the statement by which a transaction that writes much is not the one that is undone."""
    if engine.dialect.name == "postgresql":
        return "SET deadlock_timeout = '60s'"  # who looks for a deadlock first is undone
    return "SET innodb_lock_wait_timeout = 60"  # who has written least is


def test_deadlock(store: Store, other: Engine) -> None:
    """Who is undone by the database for the good of somebody else looks again."""
    mine, theirs = new_cell(store, "cell1"), new_cell(store, "cell2")
    with ThreadPoolExecutor(1) as thread, other.connect() as transaction:
        transaction.exec_driver_sql(wins_every_deadlock(other))
        mappings = [{"host": host, "cell_id": theirs} for host in ("b", *HOSTS["cell1"])]
        transaction.execute(sa.insert(host_mappings), mappings)
        created = thread.submit(store.create_hosts, ["a", "b", "c"], cell_id=mine)
        wait_for_waiters(other, work=created)
        transaction.execute(sa.insert(host_mappings), [{"host": "a", "cell_id": theirs}])
        transaction.commit()
        assert created.result(PATIENCE) == ["c"]
    assert store.count_hosts() == {mine: 1, theirs: len(HOSTS["cell1"]) + 2}


# --- discovery


def test_discovery(manage: Callable[..., Answer], store: Store, cells: dict[str, tuple[Cell, NovaCell]]) -> None:
    """The hosts of all cells are mapped and marked, and then there is nothing to do."""
    assert manage("discover_hosts", "--strict").exit_code == 0
    assert_all_mapped(store, cells)
    answer = manage("discover_hosts", "--strict", "-f", "json")
    assert (answer.exit_code, json.loads(answer.out)) == (1, [])
    assert_all_mapped(store, cells)


def test_deletion(manage: Callable[..., Answer], store: Store, cells: dict[str, tuple[Cell, NovaCell]]) -> None:
    """A host is deleted where it has no instances, and is discovered again."""
    manage("discover_hosts")
    cell, database = cells["cell1"]
    database.add_instance("5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01", "one-0002")
    delete = ("delete_host", "--cell_uuid", cell.uuid, "--host")
    assert [manage(*delete, host).exit_code for host in ("one-0001", "one-0002", "one-0003")] == [0, 4, 0]
    assert {host for host, mapped in database.marks().items() if not mapped} == {"one-0001", "one-0003"}
    assert manage("discover_hosts", "--strict").exit_code == 0
    assert_all_mapped(store, cells)


def test_discovery_of_a_name_that_is_taken(conf: cfg.ConfigOpts, store: Store, new_url: Callable[[], str]) -> None:
    """A host whose name is another's to the API database is refused; to PostgreSQL it is a name of its own."""
    database = new_url()
    NovaCell(database).add_hosts(["Compute7"])
    cell = store.create_cell(name="cell1", transport_url="rabbit://cell1/", database_connection=database)
    store.create_host("compute7", cell_id=cell.id)
    with access.open_cells(conf) as opened:
        (found,) = discovery.discover(conf, opened, opened.all()).hosts
    assert found.state == (REFUSED if store.engine.dialect.name == "mysql" else MAPPED)


def test_all_look_before_the_first_writes(
    conf: cfg.ConfigOpts, store: Store, cells: dict[str, tuple[Cell, NovaCell]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several discoveries that have all seen the same new hosts, one maps each of them, and the others see that."""
    barrier = threading.Barrier(AT_ONCE)
    create_hosts = Store.create_hosts

    def together(self: Store, hosts: list[str], *, cell_id: int) -> list[str]:
        barrier.wait(PATIENCE)
        return create_hosts(self, hosts, cell_id=cell_id)

    monkeypatch.setattr(Store, "create_hosts", together)

    def discover(_: int) -> list[tuple[str, str]]:
        with access.open_cells(conf) as opened:
            found = discovery.discover(conf, opened, opened.all())
        assert found.troubles == []
        return [(host.host, host.state) for host in found.hosts]

    with ThreadPoolExecutor(AT_ONCE) as threads:
        runs = list(threads.map(discover, range(AT_ONCE)))
    everything = sorted(HOSTS["cell1"] + HOSTS["cell2"])
    assert sorted(host for run in runs for host, state in run if state == MAPPED) == everything
    assert sum(state == ALREADY for run in runs for _, state in run) == len(everything) * (AT_ONCE - 1)
    assert_all_mapped(store, cells)


def test_deadlock_in_a_cell(conf: cfg.ConfigOpts, store: Store, cells: dict[str, tuple[Cell, NovaCell]]) -> None:
    """A cell's database that undoes the marks, so that another transaction there can go on, gets them once more."""
    cell, _ = cells["cell1"]
    engine = sa.create_engine(cell.reveal_database_connection(), poolclass=sa.NullPool)
    first, last = HOSTS["cell1"][0], HOSTS["cell1"][499]
    with access.open_cells(conf) as opened, ThreadPoolExecutor(1) as thread, engine.connect() as transaction:
        transaction.exec_driver_sql(wins_every_deadlock(engine))
        transaction.execute(
            sa.insert(compute_nodes), [{"host": host, "deleted": 1, "mapped": 0} for host in HOSTS["cell2"]]
        )
        transaction.execute(sa.update(compute_nodes).where(compute_nodes.c.host == last).values(mapped=0))
        found = thread.submit(discovery.discover, conf, opened, opened.all())
        wait_for_waiters(engine, work=found)
        transaction.execute(sa.update(compute_nodes).where(compute_nodes.c.host == first).values(mapped=0))
        transaction.rollback()
        assert found.result(PATIENCE).troubles == []
    assert_all_mapped(store, cells)


START = """
import sys
from cellmw.cmd.manage import main
print("ready", flush=True)
sys.stdin.readline()
sys.exit(main(sys.argv[1:]))
"""
"""A command that has everything imported, and begins when it is told to."""

HELD_UP = """
import sys, threading
from cellmw.admin import discovery
from cellmw.cmd.manage import main
from cellmw.store import Store, hosts

def stop(*_):
    print("there", flush=True)
    threading.Event().wait()

place, *arguments = sys.argv[1:]
if place == "between two cells":
    create_hosts = Store.create_hosts
    cells = []
    def create_first(self, hosts, *, cell_id):
        if cells:
            stop()
        cells.append(cell_id)
        return create_hosts(self, hosts, cell_id=cell_id)
    Store.create_hosts = create_first
elif place == "in a transaction":
    execute = hosts._execute_many
    hosts._execute_many = lambda *arguments: (execute(*arguments), stop())
elif place == "before the marks":
    discovery._mark = stop
main(arguments)
"""
"""A command that stays at one place for ever."""


def child(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a command of its own process."""
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_at_the_same_moment(
    configuration: Path, store: Store, cells: dict[str, tuple[Cell, NovaCell]]
) -> None:
    """Of several processes that discover hosts at the same moment each exits with 0, and each host is mapped by one."""
    with ExitStack() as stack:
        arguments = ("--config-file", configuration, "cell_v2", "discover_hosts", "-f", "json")
        children = [stack.enter_context(child(START, *arguments)) for _ in range(AT_ONCE)]
        for each in children:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        for each in children:
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        outputs = [each.communicate(timeout=PATIENCE)[0] for each in children]
    assert [each.returncode for each in children] == [0] * AT_ONCE
    mapped = [row["Hostname"] for output in outputs for row in json.loads(output)]
    assert sorted(mapped) == sorted(HOSTS["cell1"] + HOSTS["cell2"])
    assert_all_mapped(store, cells)


@pytest.mark.parametrize("place", ["in a transaction", "between two cells", "before the marks"])
def test_killed(
    configuration: Path,
    manage: Callable[..., Answer],
    store: Store,
    cells: dict[str, tuple[Cell, NovaCell]],
    place: str,
) -> None:
    """A discovery that is killed, wherever it is, is made good by the next one."""
    with child(HELD_UP, place, "--config-file", configuration, "cell_v2", "discover_hosts") as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "there\n"
        killed.kill()
        killed.communicate()
    assert (
        len(list(store.all_hosts()))
        == {
            "in a transaction": 0,
            "between two cells": len(HOSTS["cell1"]),
            "before the marks": len(HOSTS["cell1"] + HOSTS["cell2"]),
        }[place]
    )
    assert set(cells["cell1"][1].marks().values()) == {0}
    assert manage("discover_hosts").exit_code == 0
    assert_all_mapped(store, cells)
