# SPDX-License-Identifier: Apache-2.0
"""The budget beside what real servers count, and the limits that they say they have."""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import oslo_messaging
import pytest
import sqlalchemy
from oslo_config import cfg
from sqlalchemy import pool, text

from cellmw import CellFilter, database, deploy, rpc
from cellmw.admin import budget
from cellmw.admin.budget import Workers
from cellmw.store import Store, migrations
from tests.functional.conftest import PATIENCE, PROJECT, Exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests import servers

INSTANCE = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01"
POOL = 4
COUNT = {
    "postgresql": text("SELECT count(*) FROM pg_stat_activity WHERE datname = :name"),
    "mysql": text("SELECT count(*) FROM information_schema.processlist WHERE db = :name"),
}

KIND = {"postgresql": "PostgreSQL", "mysql": "MariaDB or MySQL"}


@pytest.fixture(params=["postgresql", "mariadb"])
def url(request: pytest.FixtureRequest) -> str:
    """The database of the cell."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def conf(tmp_path: Path, url: str, rabbit_url: str) -> cfg.ConfigOpts:
    """A deployment with one cell on these servers, with an instance in it."""
    conf = cfg.ConfigOpts()
    conf([], project="cellmw", default_config_files=[], default_config_dirs=[])
    deploy.settings(conf)
    conf.set_override("connection", f"sqlite:///{tmp_path}/api.sqlite", group="api_database")
    conf.set_override("max_connections_per_cell", POOL, group="cellmw")
    with deploy.store(conf) as store:
        migrations.sync(store.engine)
        record(store, url, rabbit_url)
    return conf


def record(store: Store, url: str, rabbit_url: str) -> None:
    """Record a cell, and map an instance to it."""
    cell = store.create_cell(name="cell1", database_connection=url, transport_url=rabbit_url)
    store.create_instance(INSTANCE, project_id=PROJECT, cell_id=cell.id)


@contextmanager
def counting(url: str) -> Iterator[Callable[[], int]]:
    """Count the connections to this database, by one that is to no database, or to another."""
    parsed = sqlalchemy.make_url(url)
    of_its_own = parsed.set(database="postgres" if parsed.get_backend_name() == "postgresql" else "mysql")
    engine = sqlalchemy.create_engine(of_its_own, poolclass=pool.NullPool, isolation_level="AUTOCOMMIT")

    def count() -> int:
        with engine.connect() as connection:
            return int(connection.scalar(COUNT[parsed.get_backend_name()], {"name": parsed.database}) or 0)

    yield count


def of(conf: cfg.ConfigOpts, url: str, threads: int) -> budget.Server:
    """Return the budget of the server that this URL leads to."""
    found, _ = budget.add_up(conf, Workers(hosts=1, processes=1, threads=threads), PATIENCE)
    kind = KIND[sqlalchemy.make_url(url).get_backend_name()]
    (server,) = (server for server in found if server.kind == kind)
    return server


class Service:
    """An app that is in a transaction in its cell until as many requests are as can be. Lives as long as the test.

    :ivar seen: how many connections there were at each of these moments
    """

    def __init__(self, together: int, count: Callable[[], int]) -> None:
        self.seen: list[int] = []
        self._barrier = threading.Barrier(together, action=lambda: self.seen.append(count()))
        self._router = rpc.ClientRouter(None, target=oslo_messaging.Target(topic="nobody"), timeout=PATIENCE)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        context = environ["cellmw.context"]
        with database.writer(context) as session:
            session.execute(text("SELECT 1"))
            self._barrier.wait(PATIENCE)
        self._router.client(context).cast(context, "do")
        start_response("200 OK", [])
        return [b""]


@pytest.mark.parametrize("threads", [POOL - 1, 2 * POOL])
def test_figure_is_reached_and_not_exceeded(
    conf: cfg.ConfigOpts, url: str, rabbit_url: str, rabbitmq_server: servers.Broker, threads: int
) -> None:
    """With all threads in transactions in the cell the server counts what the budget says, and never one more."""
    allowed = of(conf, url, threads).busy
    assert allowed == min(POOL, threads)
    with counting(url) as count, ThreadPoolExecutor(threads) as executor:
        service = Service(allowed, count)
        with closing(CellFilter(service, conf)) as cell_filter:
            requests = [
                executor.submit(lambda: Exchange(f"/servers/{INSTANCE}").fetch(cell_filter)) for _ in range(4 * allowed)
            ]
            assert [request.result(PATIENCE).code for request in requests] == [200] * 4 * allowed
            assert service.seen == [allowed] * 4
            vhost = urlsplit(rabbit_url).path[1:]
            sending = rabbitmq_server.administer("list_connections", "vhost").split().count(vhost)
    found, _ = budget.add_up(conf, Workers(1, 1, threads), PATIENCE)
    (broker,) = (server for server in found if server.kind == "RabbitMQ")
    assert (broker.busy, 1 <= sending <= broker.busy) == (min(POOL, threads) + 1, True)


def test_limits_of_the_server(conf: cfg.ConfigOpts, url: str) -> None:
    """The server says how many it takes, and how many there are, ours not counted; with enough workers that is less."""
    server = of(conf, url, threads=1)
    assert server.limit is not None
    assert server.in_use is not None
    assert 10 < server.limit < 100_000
    assert 0 <= server.in_use <= server.limit
    assert server.findings == []
    found, _ = budget.add_up(conf, Workers(server.limit + 1, 1, 1), PATIENCE)
    (finding,) = next(other for other in found if other.kind == server.kind).findings
    assert f"the server takes {server.limit}: raise that to" in finding


@pytest.fixture
def limited(url: str, conf: cfg.ConfigOpts) -> Iterator[None]:
    """Let the cell's database be used by somebody who may have three connections."""
    parsed = sqlalchemy.make_url(url)
    name, password = f"cellmw_{secrets.token_hex(4)}", secrets.token_hex(8)
    engine = sqlalchemy.create_engine(parsed, poolclass=pool.NullPool, isolation_level="AUTOCOMMIT")
    is_postgresql = parsed.get_backend_name() == "postgresql"
    with engine.connect() as connection:
        if is_postgresql:
            connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN PASSWORD '{password}' CONNECTION LIMIT 3")
        else:
            connection.exec_driver_sql(f"CREATE USER {name} IDENTIFIED BY '{password}' WITH MAX_USER_CONNECTIONS 3")
            connection.exec_driver_sql(f"GRANT ALL ON {parsed.database}.* TO {name}")
    with deploy.store(conf) as store:
        (cell,) = store.list_cells()
        theirs = parsed.set(username=name, password=password).render_as_string(hide_password=False)
        store.update_cell(cell.uuid, database_connection=theirs)
    yield
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DROP {'ROLE' if is_postgresql else 'USER'} {name}")


@pytest.mark.shows_passwords("SQLAlchemy logs the statement that makes the user")
@pytest.mark.usefixtures("limited")
def test_limit_of_a_user(conf: cfg.ConfigOpts, url: str) -> None:
    """What the cell's own user may have counts as well, and any user gets to see it."""
    assert of(conf, url, threads=3).findings == []
    (finding,) = of(conf, url, threads=4).findings
    assert finding.startswith("4 connections may be wanted, and a user of it may have 3: ")
    assert finding.endswith("max_connections_per_cell to 3")


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_limit_of_a_database(conf: cfg.ConfigOpts, url: str) -> None:
    """So does what one database may have, where servers have such a limit."""
    parsed = sqlalchemy.make_url(url)
    engine = sqlalchemy.create_engine(parsed, poolclass=pool.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {parsed.database} CONNECTION LIMIT 2")
    (finding,) = of(conf, url, threads=4).findings
    assert "a database of it may have 2" in finding
