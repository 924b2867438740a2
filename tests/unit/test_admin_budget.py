# SPDX-License-Identifier: Apache-2.0
"""How many connections each server may get to see. No server is asked: nobody listens where these cells lead to."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from cellmw import own_urls
from cellmw.admin import budget
from cellmw.admin.budget import Limit, Pool, Server, Workers
from cellmw.crew import MAX_STUCK
from tests.unit.conftest import PASSWORD, PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from oslo_config import cfg

    from cellmw.cell import Cell
    from cellmw.store import Store

    Sums = dict[str, Server]

MARIADB = "MariaDB or MySQL 127.0.0.1:1"
RABBITMQ = "RabbitMQ 127.0.0.1:2"
WORKERS = Workers(hosts=3, processes=4, threads=100)


@pytest.fixture
def add_up(conf: cfg.ConfigOpts, store: Store) -> Callable[..., Sums]:
    """Add up what these workers may have open, by these options of ``[cellmw]``."""

    def add_up(workers: Workers = WORKERS, **options: Any) -> Sums:
        for name, value in options.items():
            conf.set_override(name, value, group="cellmw")
        servers, uncounted = budget.add_up(conf, workers, PATIENCE)
        assert uncounted == []
        return {f"{server.kind} {server.place}": server for server in servers}

    return add_up


@pytest.fixture
def add_cell(store: Store) -> Callable[..., Cell]:
    """Record a cell on a database server and a broker that it shares with all others."""

    def add_cell(name: str, query: str = "", hosts: str = "127.0.0.1:2") -> Cell:
        of_hosts = ",".join(f"user:{PASSWORD}@{host}" for host in hosts.split(","))
        return store.create_cell(
            name=name,
            transport_url=f"rabbit://{of_hosts}/{name}{query}",
            database_connection=f"mysql+pymysql://user:{PASSWORD}@127.0.0.1:1/{name}",
        )

    return add_cell


def test_one_cell(add_up: Callable[..., Sums], add_cell: Callable[..., Cell]) -> None:
    """Each worker has max_connections_per_cell to the database and to the broker, and one for replies."""
    add_cell("cell1")
    servers = add_up(max_connections_per_cell=7)
    assert (servers[MARIADB].per_worker, servers[MARIADB].busy) == (7, 12 * 7)
    assert (servers[RABBITMQ].per_worker, servers[RABBITMQ].busy) == (8, 12 * 8)


def test_servers_are_shared(add_up: Callable[..., Sums], add_cell: Callable[..., Cell]) -> None:
    """Cells on the same server add up, by whatever name of a database or a vhost."""
    for name in ("cell1", "cell2", "cell3"):
        add_cell(name)
    servers = add_up(max_connections_per_cell=7)
    assert [pool.of for pool in servers[MARIADB].pools] == ["cell cell1", "cell cell2", "cell cell3"]
    assert (servers[MARIADB].busy, servers[RABBITMQ].busy) == (12 * 21, 12 * 24)


def test_threads_are_a_bound(add_up: Callable[..., Sums], add_cell: Callable[..., Cell]) -> None:
    """No more of a pool is in use than there are threads."""
    add_cell("cell1")
    servers = add_up(Workers(1, 1, 3))
    assert (servers[MARIADB].busy, servers[RABBITMQ].busy) == (3, 4)


def test_leases_are_a_bound(add_up: Callable[..., Sums], add_cell: Callable[..., Cell]) -> None:
    """Nor more than there may be requests in one cell."""
    add_cell("cell1")
    servers = add_up(Workers(1, 1, 9), max_leases_per_cell=2)
    assert (servers[MARIADB].busy, servers[RABBITMQ].busy) == (2, 3)


def test_pool_of_cells(add_up: Callable[..., Sums], add_cell: Callable[..., Cell], conf: cfg.ConfigOpts) -> None:
    """max_pool_size and max_overflow can make it fewer for the databases alone."""
    add_cell("cell1")
    conf.set_override("max_pool_size", 2, group="cellmw_database")
    conf.set_override("max_overflow", 1, group="cellmw_database")
    servers = add_up(max_connections_per_cell=7)
    assert (servers[MARIADB].per_worker, servers[RABBITMQ].per_worker) == (3, 8)


def test_pool_of_a_url(add_up: Callable[..., Sums], add_cell: Callable[..., Cell]) -> None:
    """What the transport URL says of its pool comes before the option."""
    add_cell("cell1", "?rpc_conn_pool_size=30")
    assert add_up(max_connections_per_cell=7)[RABBITMQ].per_worker == 31


@pytest.mark.parametrize(("size", "overflow", "each"), [(2, 1, 3), (0, 1, 101), (5, -1, 101), (500, 0, 101)])
def test_api_database(add_up: Callable[..., Sums], conf: cfg.ConfigOpts, size: int, overflow: int, each: int) -> None:
    """The API database's pool counts, or the threads where it has no bound, and the thread that reads the cells."""
    conf.set_override("max_pool_size", size, group="api_database")
    conf.set_override("max_overflow", overflow, group="api_database")
    assert add_up()["SQLite files"].per_worker == each


def test_replica(add_up: Callable[..., Sums], add_cell: Callable[..., Cell], conf: cfg.ConfigOpts) -> None:
    """A read replica has a pool of its own, at its own server."""
    add_cell("cell1")
    replica = f"cell1:postgresql+psycopg://user:{PASSWORD}@127.0.0.1:3/cell1"
    conf.set_override("slave_connections", replica, group="cellmw_database")
    servers = add_up(max_connections_per_cell=7)
    assert [pool.of for pool in servers["PostgreSQL 127.0.0.1:3"].pools] == ["the replica of cell cell1"]
    assert servers["PostgreSQL 127.0.0.1:3"].per_worker == servers[MARIADB].per_worker == 7


def test_hosts_of_a_broker(add_up: Callable[..., Sums], add_cell: Callable[..., Cell]) -> None:
    """Each host of a cluster has all connections while the others are down; each is compared with the others."""
    add_cell("cell1", hosts="127.0.0.1:2,127.0.0.1:3")
    servers = add_up(max_connections_per_cell=7)
    assert servers[RABBITMQ].busy == servers["RabbitMQ 127.0.0.1:3"].busy == 12 * 8
    assert servers[RABBITMQ].more == 12 * (1 + 2)


def test_more(add_up: Callable[..., Sums], add_cell: Callable[..., Cell]) -> None:
    """On top come probes, and, as long as something hangs, what those have that were left."""
    add_cell("cell1")
    servers = add_up(Workers(1, 1, 4), max_connections_per_cell=7)
    left = 3  # up to the pool's 7, of which 4 are in use
    assert servers[MARIADB].more == 1 + MAX_STUCK + left
    assert servers[RABBITMQ].more == 1 + left


def test_open_cells(add_up: Callable[..., Sums], add_cell: Callable[..., Cell]) -> None:
    """With max_open_cells no more than twice as many are open or being closed: the largest count."""
    for name in ("cell1", "cell2", "cell3"):
        add_cell(name, "?rpc_conn_pool_size=30" if name == "cell2" else "")
    servers = add_up(max_connections_per_cell=7, max_open_cells=1)
    assert (servers[MARIADB].per_worker, servers[RABBITMQ].per_worker) == (14, 31 + 8)


def test_cells_of_other_drivers(add_up: Callable[..., Sums], cell0: Cell, cell1: Cell) -> None:
    """What is no server is no server: a queue in memory, or none. SQLite's files are all in one place."""
    servers = add_up(max_connections_per_cell=7)
    assert list(servers) == ["SQLite files"]
    assert [pool.of for pool in servers["SQLite files"].pools] == ["API database", "cell cell0", "cell cell1"]
    assert (servers["SQLite files"].limit, servers["SQLite files"].findings) == (None, [])


def test_cell_level_service(conf: cfg.ConfigOpts) -> None:
    """A cell-level service has its own cell, and no API database."""
    own_urls.transport_url(conf)  # each registers its option
    own_urls.database_connection(conf)
    conf.set_override("transport_url", f"rabbit://user:{PASSWORD}@127.0.0.1:2/")
    conf.set_override("connection", f"mysql+pymysql://user:{PASSWORD}@127.0.0.1:1/cell", group="database")
    conf.set_override("role", "cell", group="cellmw")
    servers, _ = budget.add_up(conf, WORKERS, PATIENCE)
    assert [[pool.of for pool in server.pools] for server in servers] == [["cell local"], ["cell local"]]


def test_silent_server(add_up: Callable[..., Sums], add_cell: Callable[..., Cell]) -> None:
    """Of a server that does not answer no limit is known, and why is said."""
    add_cell("cell1")
    server = add_up()[MARIADB]
    assert (server.limit, server.in_use, server.findings) == (None, None, [])
    assert server.silence == "does not answer: the connection is refused"
    assert PASSWORD not in repr(server)


def test_unusable_cell(conf: cfg.ConfigOpts, new_cell: Callable[..., Cell]) -> None:
    """A cell that nobody can open is not in the sum, and that is said."""
    new_cell("odd", database_connection=f"nosuch://user:{PASSWORD}@host/db")
    _, uncounted = budget.add_up(conf, WORKERS, PATIENCE)
    assert uncounted == ["cell odd: no SQLAlchemy dialect is installed for 'nosuch' databases"]


def test_limits_in_common() -> None:
    """Pools of one user, or of one database, have its limit in common; no limit is none."""
    owners = {0: ("nova", 7), 1: ("other", 0), 2: ("nova", 7), 3: ("third", -1), 4: ("fourth", 1)}
    assert list(budget._limits_of("a user", owners)) == [Limit("a user", 7, (0, 2)), Limit("a user", 1, (4,))]


# --- what is too many


def server(most: int, *pools: Pool, per_cell: int = 15, which: tuple[int, ...] | None = None) -> Server:
    """A server of ten workers that takes so many."""
    limits = [Limit("the server takes", most, tuple(range(len(pools))) if which is None else which)]
    return Server("PostgreSQL", "host:1", 10, 0, per_cell, list(pools), limits)


def test_enough() -> None:
    """Where it takes all of them there is nothing to find."""
    enough = server(320, Pool("cell1", 15, 1), Pool("cell2", 15, 1))
    assert (enough.busy, enough.more, enough.findings, enough.doubts) == (300, 20, [], [])


def test_no_room() -> None:
    """Where it takes them as long as all is well, that is a doubt."""
    tight = server(319, Pool("cell1", 15, 1), Pool("cell2", 15, 1))
    assert (tight.findings, tight.doubts) == ([], ["the server takes 319: raise that to 320"])
    assert server(300, Pool("cell1", 15, 1), Pool("cell2", 15, 1)).findings == []


def test_too_many() -> None:
    """Where it does not, it is said what to raise, and to how many per cell the option has to be lowered instead."""
    (finding,) = server(299, Pool("cell1", 15, 1), Pool("cell2", 15, 1)).findings
    assert finding == (
        "300 connections may be wanted, and the server takes 299: raise that to 320, or set [cellmw] "
        "max_connections_per_cell to 14"
    )


def test_advice_fits() -> None:
    """What is advised is the most that fits; replies, and the API database, don't get fewer by it."""
    pools = (Pool(budget.API, 20, 1, fixed=20), Pool("cell1", 16, 1, fixed=1))
    assert server(290, *pools).findings[0].endswith("max_connections_per_cell to 8")


def test_advice_of_one() -> None:
    """One for each cell can be what fits."""
    (finding,) = server(20, Pool("cell1", 15, 1), Pool("cell2", 15, 1)).findings
    assert finding.endswith("max_connections_per_cell to 1")


def test_advice_where_none_fits() -> None:
    """Where even one for each cell is too many there have to be fewer workers, or a smaller pool of the API's."""
    assert server(19, Pool("cell1", 15, 1), Pool("cell2", 15, 1)).findings[0].endswith("or run fewer workers")
    pools = (Pool(budget.API, 20, 1, fixed=20), Pool("cell1", 15, 1))
    assert server(200, *pools).findings[0].endswith("or a smaller pool in [api_database]")


def test_limit_of_some() -> None:
    """A limit of one user counts for what that user has, and for nothing else."""
    pools = (Pool("cell1", 15, 0), Pool("cell2", 5, 0))
    assert server(50, *pools, which=(1,)).findings == []
    assert server(49, *pools, which=(1,)).findings != []


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Where names lead; others, and none that is an address, lead nowhere."""
    names: dict[str, list[str]] = {}

    def look_up(host: str, port: str, **_: Any) -> list[tuple[Any, ...]]:
        if host not in names:
            raise socket.gaierror
        families = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(families[":" in address], 0, 0, "", (address, int(port))) for address in names[host]]

    monkeypatch.setattr(budget.socket, "getaddrinfo", look_up)
    return names


def test_server_with_several_names(add_up: Callable[..., Sums], store: Store, names: dict[str, list[str]]) -> None:
    """Names that lead to the same addresses are one server, and what leads there adds up; ports tell servers apart."""
    names |= {"db": ["192.0.2.1"], "db.example.org": ["192.0.2.1", "2001:db8::1"], "mq": ["192.0.2.1"]}
    for number, place in enumerate(("db:1", "db.example.org:1", "db:2")):
        store.create_cell(
            name=f"cell{number}",
            transport_url=f"rabbit://user:{PASSWORD}@mq:{number}9/",
            database_connection=f"mysql+pymysql://user:{PASSWORD}@{place}/cell{number}",
        )
    servers = add_up()
    (one,) = (server for server in servers.values() if "db.example.org" in server.place)
    assert (one.place, [pool.of for pool in one.pools], len(one.urls)) == (
        "db:1, db.example.org:1",
        ["cell cell0", "cell cell1"],
        2,
    )
    assert one.per_worker == 30
    assert [server.place for server in servers.values() if server.kind == "RabbitMQ"] == ["mq:9", "mq:19", "mq:29"]


def test_host_of_a_cluster(add_up: Callable[..., Sums], store: Store, names: dict[str, list[str]]) -> None:
    """A name of several hosts is none of them."""
    names |= {"galera": ["192.0.2.1", "192.0.2.2"], "node1": ["192.0.2.1"], "node2": ["192.0.2.2"]}
    for name in names:
        store.create_cell(
            name=name,
            transport_url=f"rabbit://user:{PASSWORD}@{name}/",
            database_connection=f"mysql+pymysql://user:{PASSWORD}@{name}:1/nova",
        )
    assert [server.place for server in add_up().values() if "MySQL" in server.kind] == [
        "galera:1",
        "node1:1",
        "node2:1",
    ]


def test_broker_that_is_named_twice(add_up: Callable[..., Sums], add_cell: Callable[..., Cell]) -> None:
    """A URL that names one broker by two names has one pool there all the same."""
    add_cell("cell1", hosts="127.0.0.1:2,localhost:2")
    (broker,) = (server for server in add_up().values() if server.kind == "RabbitMQ")
    assert (broker.place, len(broker.pools)) == ("127.0.0.1:2, localhost:2", 1)


def test_password_that_nobody_has_encoded(add_up: Callable[..., Sums], store: Store) -> None:
    """Of a URL whose password has an @ in it no part of that is taken for the host."""
    store.create_cell(
        name="cell1",
        transport_url=f"rabbit://user:{PASSWORD}@127.0.0.1:2/",
        database_connection="mysql+pymysql://user:pw@Zk41-secret@127.0.0.1:1/nova",
    )
    assert MARIADB in add_up()
