# SPDX-License-Identifier: Apache-2.0
"""Processes and threads -> how many connections each server may get to see, beside how many it takes.

What counts is what bounds it in a worker: the pools are made as a worker makes them, and asked for their size. Of a
pool no more is in use than there are threads, each of which has one connection at a time. The servers are asked for
their own limits; nothing else is read there, and nothing written.
"""

from __future__ import annotations

import socket
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import text

from cellmw import conf as options
from cellmw import deploy, engines, urls
from cellmw.admin.access import open_cells
from cellmw.admin.asking import ask
from cellmw.admin.health import database_words
from cellmw.crew import MAX_STUCK
from cellmw.exceptions import CellmwError
from cellmw.queues.brokers import Brokers
from cellmw.store.database import DATABASE_ERRORS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from oslo_config import cfg
    from sqlalchemy import Connection, Engine

    from cellmw.cell import Cell
    from cellmw.crew import Crew
    from cellmw.handles import Handles

API = "API database"

_PROBE = 1
"""Connections that a probe makes, beside the pool."""

_COMPARISON = 2
"""Connections by which is found out whether several brokers are one cluster, at the first contact."""

_REPLIES = 1
"""Connections on which replies arrive, beside the pool."""

_UPKEEP = 1
"""Threads of a worker that ask the API database beside those for requests."""


class Workers(NamedTuple):
    """What serves the requests.

    :ivar hosts: how many there are
    :ivar processes: on each host
    :ivar threads: in each process
    """

    hosts: int
    processes: int
    threads: int

    @property
    def in_all(self) -> int:
        """How many processes there are."""
        return self.hosts * self.processes


class Pool(NamedTuple):
    """What one worker may have open to one database or vhost.

    :ivar of: whose it is
    :ivar busy: how many at most, as long as all is well
    :ivar more: how many beyond that for moments, or while it does not answer
    :ivar fixed: how many of the busy ones no option makes fewer
    """

    of: str
    busy: int
    more: int
    fixed: int = 0


class Limit(NamedTuple):
    """What a server says that it takes.

    :ivar what: what takes no more, as the beginning of a sentence
    :ivar most: connections
    :ivar pools: which pools it counts for, by their place in the list
    """

    what: str
    most: int
    pools: tuple[int, ...]


@dataclass
class Server:
    """One server, with all that leads there. Lives as long as the command.

    :ivar kind: ``MariaDB or MySQL``, ``PostgreSQL``, ``RabbitMQ``, ``SQLite``
    :ivar place: host and port; of a server with several names all of them
    :ivar workers: how many processes use it, on all hosts
    :ivar open_cells: of how many cells a worker has something open at a time, at most; 0 for any number
    :ivar per_cell: ``max_connections_per_cell``
    :ivar pools: what one worker may have open there
    :ivar limits: what it has said that it takes, that for everybody first; none where it was not asked, or is silent
    :ivar in_use: how many connections it has now; None where it was not asked, or does not say
    :ivar silence: why it has said nothing; empty where it has
    :ivar urls: by which it is asked, with passwords; in the order of the pools, as none of a broker is asked
    :ivar address: host and port for the resolver; None where it is no host
    """

    kind: str
    place: str
    workers: int
    open_cells: int
    per_cell: int
    pools: list[Pool] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    in_use: int | None = None
    silence: str = ""
    urls: list[str] = field(default_factory=list, repr=False)
    address: tuple[str, object] | None = None

    def take_over(self, other: Server) -> None:
        """Count what leads to another name of it; of a cluster that is named twice in one URL each pool once."""
        self.place = f"{self.place}, {other.place}"
        known = {pool.of for pool in self.pools}
        self.pools += [pool for pool in other.pools if pool.of not in known]
        self.urls += other.urls

    @property
    def per_worker(self) -> int:
        """How many connections one worker has at most, as long as all is well."""
        return self._total(range(len(self.pools)), more=False)

    @property
    def busy(self) -> int:
        """How many connections all workers have at most, as long as all is well."""
        return self.workers * self.per_worker

    @property
    def more(self) -> int:
        """How many beyond that for moments, or while it does not answer."""
        return self.workers * self._total(range(len(self.pools)), busy=False, more=True)

    @property
    def limit(self) -> int | None:
        """What the server takes of all together, None for any number or where it has not said."""
        return self.limits[0].most if self.limits else None

    @property
    def findings(self) -> list[str]:
        """What is too many, and what to do."""
        return [self._finding(limit) for limit in self.limits if limit.most < self._wanted(limit, more=False)]

    @property
    def doubts(self) -> list[str]:
        """What leaves no room for what comes on top for moments."""
        tight = (limit for limit in self.limits if self._wanted(limit, more=False) <= limit.most < self._wanted(limit))
        return [f"{limit.what} {limit.most}: raise that to {self._wanted(limit)}" for limit in tight]

    def _finding(self, limit: Limit) -> str:
        wanted = f"{self._wanted(limit, more=False)} connections may be wanted, and {limit.what} {limit.most}"
        advice = f"raise that to {self._wanted(limit)}"
        for fewer in range(self.per_cell - 1, 0, -1):
            if self._wanted(limit, per_cell=fewer, more=False) <= limit.most:
                return f"{wanted}: {advice}, or set [cellmw] max_connections_per_cell to {fewer}"
        is_for_api = any(self.pools[at].of == API for at in limit.pools)
        return f"{wanted}: {advice}, or run fewer workers{', or a smaller pool in [api_database]' * is_for_api}"

    def _wanted(self, limit: Limit, *, per_cell: int | None = None, more: bool = True) -> int:
        return self.workers * self._total(limit.pools, per_cell=per_cell, more=more)

    def _total(self, which: Any, *, per_cell: int | None = None, more: bool, busy: bool = True) -> int:
        """Add up the largest of these pools: as many as one worker may have open at a time."""

        def size(pool: Pool) -> int:
            bounded = pool.busy if per_cell is None else min(pool.busy, pool.fixed + per_cell)
            return busy * bounded + more * pool.more

        of_api = [size(self.pools[at]) for at in which if self.pools[at].of == API]
        of_cells = sorted((size(self.pools[at]) for at in which if self.pools[at].of != API), reverse=True)
        return sum(of_api) + sum(of_cells[: self.open_cells or None])


def add_up(conf: cfg.ConfigOpts, workers: Workers, patience: float) -> tuple[list[Server], list[str]]:
    """Return the servers with what they may get to see and what they take, and which cells could not be counted.

    :param patience: seconds after which a server that does not answer is given up
    :raises StoreUnavailable: if the API database, which knows the cells, does not answer
    """
    sums = _Sums(conf, workers)
    with open_cells(conf) as cells:
        every = cells.all()
        if deploy.settings(conf).role == "api":
            sums.add_api_database(cells.store.engine, conf[options.API_DATABASE].connection)
        crew = cells.crew
        for cell in every:
            sums.add_cell(cell)
        servers = _merged(list(sums.servers.values()), patience, crew)
        asked = {number: partial(_ask_all, server) for number, server in enumerate(servers) if server.urls}
        for number, answer in ask(asked, patience, crew).items():
            if isinstance(answer, Exception):
                servers[number].silence = "it does not answer in time"
    return servers, sums.uncounted


def _merged(servers: list[Server], patience: float, crew: Crew) -> list[Server]:
    """Make one of those whose names lead to the same addresses."""
    named = {number: partial(_addresses, *server.address) for number, server in enumerate(servers) if server.address}
    answers = ask(named, patience, crew)
    found: dict[tuple[object, ...], Server] = {}
    merged = []
    for number, server in enumerate(servers):
        answer = answers.get(number)
        # who can't be found is asked all the same, which says why
        keys = [] if answer is None or isinstance(answer, Exception) else [(server.kind, *key) for key in answer]
        first = next((found[key] for key in keys if key in found), None)
        if first is None:
            merged.append(server)
        else:
            first.take_over(server)
        found |= {key: first or server for key in keys if key not in found}
    return merged


def _addresses(host: str, port: object) -> list[tuple[object, ...]]:
    """Return where a name leads: for each family all of its addresses, as a name of several hosts is none of these."""
    found: dict[int, set[object]] = {}
    for family, _, _, _, address in socket.getaddrinfo(host, str(port), type=socket.SOCK_STREAM):
        found.setdefault(family, set()).add(address[0])
    return [(family, port, frozenset(addresses)) for family, addresses in found.items()]


class _Sums:
    """Counts what the workers may have open. Lives as long as the command."""

    def __init__(self, conf: cfg.ConfigOpts, workers: Workers) -> None:
        self._conf = conf
        self._settings = deploy.settings(conf)
        self._limits = deploy.limits(self._settings)
        self._workers = workers
        # a lease has one connection at a time
        self._threads = min(workers.threads, self._settings.max_leases_per_cell or workers.threads)
        self.servers: dict[tuple[object, ...], Server] = {}
        self.uncounted: list[str] = []

    def add_api_database(self, engine: Engine, url: str) -> None:
        busy = _bounded(_size(engine), self._workers.threads + _UPKEEP)
        self._add_database(url, Pool(API, busy, _PROBE + MAX_STUCK, fixed=busy))

    def add_cell(self, cell: Cell) -> None:
        try:
            with closing(deploy.open_handles(cell, self._conf, self._limits)) as handles:
                self._add_databases(cell, handles)
                self._add_queue(cell, handles)
        except CellmwError as error:
            self.uncounted.append(str(error))

    def _add_databases(self, cell: Cell, handles: Handles) -> None:
        of = f"cell {cell}"
        self._add_database(cell.reveal_database_connection(), self._database_pool(of, handles.database.engine))
        if handles.database.replica is not handles.database.engine:
            url = deploy.replica_of(cell, self._conf) or ""
            self._add_database(url, self._database_pool(f"the replica of {of}", handles.database.replica))

    def _database_pool(self, of: str, engine: Engine) -> Pool:
        size = _size(engine)
        busy = _bounded(size, self._threads)
        # a thread that was left may still have one of the pool, and one that connects has one beside it
        left = _bounded(size, self._threads + MAX_STUCK) - busy
        return Pool(of, busy, left + MAX_STUCK + _PROBE)

    def _add_database(self, url: str, pool: Pool) -> None:
        backend, *place = urls.database_place(url)
        if backend == "sqlite":
            server = self._server(urls.server_kind(backend), "files")
        else:
            host = urls.harmless(place[0])
            server = self._server(urls.server_kind(backend), f"{host}:{place[1]}")
            server.urls.append(url)
            server.address = None if host.startswith("/") else (host, place[1])
        server.pools.append(pool)

    def _add_queue(self, cell: Cell, handles: Handles) -> None:
        driver = None if handles.queue is None else handles.queue.transport._driver
        brokers = Brokers.of(driver)
        if brokers is None:
            return
        size = driver._connection_pool._max_size  # type: ignore[union-attr]
        busy = _bounded(size, self._threads)
        left = _bounded(size, self._threads + MAX_STUCK) - busy
        compared = _COMPARISON if len(brokers.addresses) > 1 else 0
        pool = Pool(f"cell {cell}", busy + _REPLIES, left + compared + _PROBE, fixed=_REPLIES)
        # while the others are down, each host has all of them
        for address in dict.fromkeys(brokers.addresses):
            server = self._server("RabbitMQ", urls.harmless(address))
            server.address = (address.host, address.port)
            server.pools.append(pool)

    def _server(self, kind: str, place: str) -> Server:
        # as many cells again as may be open can be about to be closed
        open_cells = 2 * self._settings.max_open_cells
        made = Server(kind, place, self._workers.in_all, open_cells, self._settings.max_connections_per_cell)
        return self.servers.setdefault((kind, place), made)


def _size(engine: Engine) -> int:
    """Return how many connections the pool of an engine may have, 0 for any number."""
    pool: Any = engine.pool
    overflow: int = getattr(pool, "_max_overflow", -1)
    return 0 if overflow < 0 else pool.size() + overflow


def _bounded(size: int, threads: int) -> int:
    return min(size, threads) if size else threads


class _Said(NamedTuple):
    """What a server says to one of its users; 0 for no limit."""

    user: str
    database: str
    most: int
    in_use: int
    of_user: int
    of_database: int


def _ask_all(server: Server) -> None:
    """Ask a server for its limits, as each of those who log in there."""
    said: dict[int, _Said] = {}
    for at, url in enumerate(server.urls):
        engine = engines.make_engine(url, {}, pre_ping=False)
        ask_as = _ASK.get(engine.dialect.name)
        if ask_as is None:
            server.silence = "how it is asked is not known"
            return
        try:
            with engine.connect() as connection:
                said[at] = _Said(*ask_as(connection))
        except DATABASE_ERRORS as error:
            server.silence = database_words(error)
        finally:
            engine.dispose()
    if said:
        some = next(iter(said.values()))
        server.silence, server.in_use = "", some.in_use - 1  # the one that asks
        everybody = tuple(range(len(server.pools)))
        server.limits = [
            Limit("the server takes", some.most, everybody),
            *_limits_of("a user of it may have", {at: (each.user, each.of_user) for at, each in said.items()}),
            *_limits_of(
                "a database of it may have", {at: (each.database, each.of_database) for at, each in said.items()}
            ),
        ]


def _limits_of(what: str, owners: dict[int, tuple[str, int]]) -> Iterator[Limit]:
    """Put together the pools that have one limit in common."""
    for owner in dict.fromkeys(owners.values()):
        if owner[1] > 0:
            yield Limit(what, owner[1], tuple(at for at, other in owners.items() if other == owner))


def _ask_mysql(connection: Connection) -> tuple[Any, ...]:
    # of the session it is the user's own limit, or else the one for every user
    said = connection.execute(
        text("SELECT CURRENT_USER(), @@global.max_connections, @@session.max_user_connections")
    ).one()
    in_use = connection.execute(text("SHOW GLOBAL STATUS LIKE 'Threads_connected'")).one()
    return said[0], "", int(said[1]), int(in_use[1]), int(said[2]), 0


def _ask_postgresql(connection: Connection) -> tuple[Any, ...]:
    return tuple(
        connection.execute(
            text(
                "SELECT current_user::text, current_database()::text, current_setting('max_connections')::int"
                " - current_setting('superuser_reserved_connections')::int"
                " - coalesce(current_setting('reserved_connections', true)::int, 0),"
                " (SELECT sum(numbackends)::int FROM pg_stat_database),"
                " (SELECT CASE WHEN rolsuper THEN 0 ELSE rolconnlimit END FROM pg_roles WHERE rolname = current_user),"
                " (SELECT datconnlimit FROM pg_database WHERE datname = current_database())"
            )
        ).one()
    )


_ASK = {"mysql": _ask_mysql, "postgresql": _ask_postgresql}
"""How a server is asked."""
