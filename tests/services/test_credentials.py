# SPDX-License-Identifier: Apache-2.0
"""Credentials with special characters, from the command line to the record to the server that checks them.

Each cell is created by the command, and used as a service does it. That the right user came to the right place is asked
at the server. PostgreSQL may trust everybody here, so that its password is looked at in the engine.
"""

from __future__ import annotations

import secrets
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import pytest
import sqlalchemy
from oslo_config import cfg
from sqlalchemy import text

from cellmw import RequestContext, database, deploy
from tests.commands import exit_code_of
from tests.functional.conftest import Api, Workers
from tests.servers.addresses import administration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cellmw.cells import Cells
    from cellmw.store import Store
    from tests import servers

SPECIAL = "=@:%+&, {}\"'$~|ü漢"
"""What anybody could want in a user, a password or a name."""

TEMPLATE = "{scheme}://{username}:{password}@{hostname}:{port}/{path}"


class Account(NamedTuple):
    """A user of a server, and the database or virtual host that only that user may use."""

    user: str
    password: str
    place: str

    def url(self, scheme: str, address: str) -> str:
        """Write it as a URL: everything that can be encoded is."""
        user, password, place = (quote(part, safe="") for part in self)
        return f"{scheme}://{user}:{password}@{address}/{place}"


def new_account(password: str, place: str) -> Account:
    """Make up names that nobody else has."""
    name = f"cellmw_test_{secrets.token_hex(4)}"
    return Account(f"{name}{SPECIAL}", f"{name}_password{password}", f"{name}{place}")


@pytest.fixture(scope="module")
def vhost(rabbitmq_server: servers.Broker) -> Iterator[Account]:
    """A user and a virtual host on RabbitMQ."""
    account = new_account(SPECIAL + "#?;%41", SPECIAL + "/")
    with ExitStack() as made:
        rabbitmq_server.administer("add_user", account.user, account.password)
        made.callback(rabbitmq_server.administer, "delete_user", account.user)
        rabbitmq_server.administer("add_vhost", account.place)
        made.callback(rabbitmq_server.administer, "delete_vhost", account.place)
        rabbitmq_server.administer("set_permissions", "-p", account.place, account.user, *[".*"] * 3)
        yield account


@pytest.fixture
def queue(rabbitmq_server: servers.Broker, vhost: Account) -> str:
    """The transport URL of that account."""
    return vhost.url("rabbit", f"{rabbitmq_server._address.hostname}:{rabbitmq_server.port}")


@contextmanager
def made_database(server: sqlalchemy.URL, account: Account, create: list[str], drop: list[str]) -> Iterator[str]:
    """Make a user with a database, and drop both in the end; gives the URL."""

    def quoted(part: str, mark: str) -> str:
        return mark + part.replace(mark, mark * 2) + mark

    mark = "`" if server.get_backend_name() == "mysql" else '"'
    words = {
        "user": quoted(account.user, "'" if mark == "`" else mark),
        "password": quoted(account.password, "'"),
        "place": quoted(account.place, mark),
    }
    with administration(server) as connection, ExitStack() as made:
        # past SQLAlchemy, which would look for parameters in it
        cursor = made.enter_context(closing(connection.connection.cursor()))
        for statement in drop:
            made.callback(cursor.execute, statement.format_map(words))
        for statement in create:
            cursor.execute(statement.format_map(words))
        yield account.url(server.drivername, f"{server.host}:{server.port}")


@pytest.fixture
def mariadb(mariadb_server: sqlalchemy.URL) -> Iterator[tuple[Account, str]]:
    """A user with a database on MariaDB. PyMySQL takes a password in ASCII only."""
    account = new_account("".join(filter(str.isascii, SPECIAL)) + "/#?;%41", SPECIAL + "/#?;%41")
    create = [
        "CREATE DATABASE {place}",
        "CREATE USER {user} IDENTIFIED BY {password}",
        "GRANT ALL ON {place}.* TO {user}",
    ]
    with made_database(
        mariadb_server, account, create, ["DROP DATABASE IF EXISTS {place}", "DROP USER IF EXISTS {user}"]
    ) as url:
        yield account, url


@pytest.fixture
def postgresql(postgresql_server: sqlalchemy.URL) -> Iterator[tuple[Account, str]]:
    """A user with a database on PostgreSQL."""
    account = new_account(SPECIAL + "/#?;%41", SPECIAL + "/#?;%41")
    create = ["CREATE ROLE {user} LOGIN PASSWORD {password}", "CREATE DATABASE {place} OWNER {user}"]
    drop = ["DROP ROLE IF EXISTS {user}", "DROP DATABASE IF EXISTS {place} WITH (FORCE)"]
    with made_database(postgresql_server, account, create, drop) as url:
        yield account, url


class Deployment:
    """An API database in a file, and a configuration. Lives as long as the test."""

    def __init__(self, folder: Path) -> None:
        """Create the tables."""
        self._folder = folder
        self._file = folder / "cellmw.conf"
        self.configure(f"[api_database]\nconnection = sqlite:///{folder}/api.db\n")
        assert self._manage("api_db", "sync") == 0

    def configure(self, options: str) -> None:
        """Add options to the configuration."""
        with self._file.open("a") as file:
            file.write(options)

    def create_cell(self, queue: str = "memory://credentials/", database: str = "") -> int:
        """Record a cell, and return the exit code of the command."""
        urls = ["--transport-url", queue, "--database_connection", database or f"sqlite:///{self._folder}/cell1.db"]
        return self._manage("cell_v2", "create_cell", "--name", "cell1", *urls)

    def _manage(self, *arguments: str) -> int:
        exit_code: int = exit_code_of(["--config-file", str(self._file), *arguments])
        return exit_code

    def open(self) -> Cells:
        """Open the cells as a service does."""
        return deploy.cells(self._conf())

    def store(self) -> Store:
        """Open the API database."""
        return deploy.store(self._conf())

    def _conf(self) -> cfg.ConfigOpts:
        conf = cfg.ConfigOpts()
        conf(["--config-file", str(self._file)], project="cellmw")
        return conf


@pytest.fixture
def deployment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Deployment:
    """An API database with no cells in it."""
    made = Deployment(tmp_path)
    capsys.readouterr()
    return made


@pytest.fixture
def targeted(deployment: Deployment) -> Iterator[Callable[[], Any]]:
    """A context that is aimed at the cell which was created."""
    with ExitStack() as stack:

        def targeted() -> Any:
            cells = stack.enter_context(deployment.open())
            return stack.enter_context(cells.target(RequestContext(project_id="p"), cells.get("cell1")))

        yield targeted


@pytest.mark.parametrize("stored", ["URL", "template"])
def test_rabbitmq(
    rabbitmq_server: servers.Broker,
    vhost: Account,
    queue: str,
    deployment: Deployment,
    targeted: Callable[[], Any],
    stored: str,
) -> None:
    """A message goes to the virtual host, by the user, that the URL or the template leads to."""
    if stored == "template":
        deployment.configure(f"[DEFAULT]\ntransport_url = {queue}\n")
    assert deployment.create_cell(queue=queue if stored == "URL" else TEMPLATE) == 0
    with closing(Workers({"cell1": queue})) as workers:
        context, api = targeted(), Api()
        api.reboot(context, "instance1")
        assert workers.next() == ("cell1", "instance1", "p")
        if stored == "URL":
            connected = rabbitmq_server.administer("list_connections", "user", "vhost").splitlines()
            assert f"{vhost.user}\t{vhost.place}" in connected


@pytest.mark.parametrize("stored", ["URL", "template"])
def test_mariadb(
    mariadb: tuple[Account, str], deployment: Deployment, targeted: Callable[[], Any], stored: str
) -> None:
    """A statement goes to the database, by the user, that the URL or the template leads to; the password is checked."""
    account, url = mariadb
    if stored == "template":
        deployment.configure(f"[database]\nconnection = {url}\n")
    assert deployment.create_cell(database=url if stored == "URL" else TEMPLATE) == 0
    with database.reader(targeted()) as session:
        user, place = session.execute(text("SELECT user(), database()")).one()
    assert (user.rpartition("@")[0], place) == (account.user, account.place)


@pytest.mark.parametrize("stored", ["URL", "template"])
def test_postgresql(
    postgresql: tuple[Account, str], deployment: Deployment, targeted: Callable[[], Any], stored: str
) -> None:
    """A statement goes to the database, by the user and with the password, that the URL or the template leads to."""
    account, url = postgresql
    if stored == "template":
        deployment.configure(f"[database]\nconnection = {url}\n")
    assert deployment.create_cell(database=url if stored == "URL" else TEMPLATE) == 0
    with database.reader(targeted()) as session:
        seen = session.execute(text("SELECT current_user, current_database()")).one()
        bind = session.get_bind()
    assert tuple(seen) == (account.user, account.place)
    assert isinstance(bind, sqlalchemy.Engine)
    assert bind.url.password == account.password


@pytest.mark.parametrize(
    "urls",
    [
        {"queue": Account("user", "s3cret/", "vhost").url("rabbit", "host")},
        {"queue": Account("user", "s3cret", "vhost#").url("rabbit", "host")},
        {"database": Account("user", "s3cret漢", "cell1").url("mysql+pymysql", "host")},
    ],
)
def test_what_the_driver_cannot_do(
    deployment: Deployment, capsys: pytest.CaptureFixture[str], urls: dict[str, str]
) -> None:
    """What a driver would make something else of is refused with the reason in one line, and never stored."""
    assert deployment.create_cell(**urls) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n"), "s3cret" in printed.err) == ("", 1, False)
    with deployment.store() as store:
        assert store.list_cells() == []
