# SPDX-License-Identifier: Apache-2.0
"""Encrypted records and references, with real databases: what a running service notices of a change."""

from __future__ import annotations

import secrets
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from oslo_config import cfg
from sqlalchemy import pool, text

from cellmw import RequestContext, database, deploy
from cellmw.engines import make_engine
from cellmw.store import Store, migrations
from tests.commands import exit_code_of
from tests.functional.conftest import Api, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cellmw import Cell, Cells

QUEUE = "memory://encrypted/"

WHO = text("SELECT current_user || ' ' || pg_backend_pid()")


def execute(url: str | sqlalchemy.URL, *statements: str) -> list[Any]:
    """Execute statements by a connection of our own; return the rows of the last."""
    with sqlalchemy.create_engine(url, poolclass=pool.NullPool).begin() as connection:
        for statement in statements:
            result = connection.execute(text(statement))
        return list(result.all()) if result.returns_rows else []


def run(configuration: str, command: str) -> None:
    """Run a command of cellmw-manage."""
    assert exit_code_of(["--config-file", configuration, "credential", command]) == 0


@pytest.fixture
def database_url(postgresql_url: str) -> str:
    """The URL of a database that says that it is cell1's."""
    execute(postgresql_url, "CREATE TABLE this_cell (name VARCHAR(255))", "INSERT INTO this_cell VALUES ('cell1')")
    return postgresql_url


@pytest.fixture
def configuration(tmp_path: Path, mariadb_url: str) -> str:
    """A configuration file with an API database on MariaDB, and a folder for keys."""
    path = tmp_path / "cellmw.conf"
    path.write_text(f"[api_database]\nconnection = {mariadb_url}\n[cellmw]\ncredential_keys = {tmp_path}/keys\n")
    return str(path)


@pytest.fixture
def store(mariadb_url: str) -> Iterator[Store]:
    """The API database, with its tables."""
    with Store(make_engine(mariadb_url, {}, pre_ping=False)) as store:
        migrations.sync(store.engine)
        yield store


@pytest.fixture
def new_cells(configuration: str) -> Iterator[Callable[[], Cells]]:
    """Each call makes the cells of a service that has just been started."""
    with ExitStack() as services:

        def start() -> Cells:
            conf = cfg.ConfigOpts()
            conf(["--config-file", configuration], project="cellmw")
            return services.enter_context(closing(deploy.cells(conf)))

        yield start


def ask(cells: Cells, cell: Cell) -> str:
    """Return as whom, and by which connection, a request for this cell reaches its database."""
    with cells.target(RequestContext(), cell) as targeted, database.reader(targeted) as session:
        return str(session.scalar(WHO))


def test_records_are_encrypted_under_a_running_service(
    database_url: str,
    store: Store,
    configuration: str,
    new_cells: Callable[[], Cells],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Plain text is encrypted, and encrypted by another key, while a service goes on with what it has open."""
    cell = store.create_cell(name="cell1", transport_url=QUEUE, database_connection=database_url)
    running = new_cells()
    before = ask(running, cell)
    recorded = []
    for command in ("setup", "reencrypt", "rotate", "reencrypt", "rotate", "rotate"):
        run(configuration, command)
        running.refresh()
        assert ask(running, cell) == before
        recorded += execute(store.engine.url, "SELECT transport_url, database_connection FROM cell_mappings")
    assert len(set(recorded)) == 3
    assert all(stored.startswith("cellmw:fernet:") for row in recorded[1:] for stored in row)
    api = Api()
    with closing(Workers({"cell1": QUEUE})), new_cells().target(RequestContext(), cell) as targeted:
        assert (api.database(targeted), api.queue(targeted)) == ("cell1", "cell1")
    assert "://" not in "".join(capsys.readouterr())


@pytest.mark.shows_passwords("it makes the roles itself, by statements with their passwords")
def test_password_is_changed_without_an_outage(
    database_url: str,
    postgresql_server: sqlalchemy.URL,
    store: Store,
    tmp_path: Path,
    new_cells: Callable[[], Cells],
) -> None:
    """A file that is replaced gives new requests the new user, and those that are under way keep the old one."""
    old, new = (f"cellmw_{secrets.token_hex(4)}" for _ in range(2))
    url = sqlalchemy.make_url(database_url)

    def replace(user: str) -> None:
        (tmp_path / "next").write_text(url.set(username=user, password=user).render_as_string(hide_password=False))
        (tmp_path / "next").rename(tmp_path / "url")

    try:
        execute(database_url, *(f"CREATE ROLE {user} LOGIN PASSWORD '{user}'" for user in (old, new)))
        replace(old)
        cell = store.create_cell(name="cell1", transport_url="none:///", database_connection=f"file:{tmp_path}/url")
        cells = new_cells()
        with cells.target(RequestContext(), cell) as under_way:
            assert ask(cells, cell).split()[0] == old
            replace(new)
            cells.refresh()
            assert ask(cells, cell).split()[0] == new
            with database.reader(under_way) as session:
                assert str(session.scalar(WHO)).split()[0] == old
        (tmp_path / "url").unlink()
        execute(database_url, f"ALTER ROLE {old} NOLOGIN")
        cells.refresh()
        assert ask(cells, cell).split()[0] == new
        cells.close()
    finally:
        execute(postgresql_server, *(f"DROP ROLE IF EXISTS {user}" for user in (old, new)))
