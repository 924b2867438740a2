# SPDX-License-Identifier: Apache-2.0
"""The shared cache on a Redis and a memcached of its own, which are killed, frozen and written to by strangers."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import redis
from oslo_cache import core as oslo_cache
from oslo_config import cfg

from cellmw.breaker import RETRY_INTERVAL
from cellmw.engines import make_engine
from cellmw.mapping import Mappings
from cellmw.shared_cache import PREFIX, Entry, SharedMappings, open_shared
from cellmw.store import Store, models
from tests.conftest import found
from tests.servers.private import Home, Process, free_ports, program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

UUID = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9"
OTHER = "ffffffff-ffff-4fff-bfff-ffffffffffff"
TIMEOUT = 0.25
LIFETIME = 600
PATIENCE = 20
"""Seconds after which a test gives up on what has to come; a test that passes never waits for them."""

# dogpile.cache says setex, which redis would like to be called otherwise
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

BACKENDS = {
    "dogpile.cache.redis": "redis",
    "dogpile.cache.pymemcache": "memcached",
    "dogpile.cache.memcached": "memcached",
    "oslo_cache.memcache_pool": "memcached",
}


class Server(NamedTuple):
    """A server and its process."""

    port: int
    process: Process


def memcached_says(port: int, command: bytes) -> bytes:
    """Send a command to memcached, and return the first line of what it says."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(command)
        with connection.makefile("rb") as answer:
            return answer.readline()


@contextmanager
def redis_started() -> Iterator[Server]:
    """A Redis that is gone when the block ends, and keeps nothing."""
    redis_server = program("redis-server", "redis")
    (port,) = free_ports(1)

    def answer() -> None:
        with redis.Redis(port=port) as client:
            client.ping()

    with Home("Redis") as home:
        process = home.start(
            *(redis_server, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(home.path)),
            answers=answer,
            unless=(redis.RedisError,),
        )
        yield Server(port, process)


@contextmanager
def sentinel_started(master: Server) -> Iterator[Server]:
    """A Redis Sentinel that knows a Redis, and is gone when the block ends."""
    redis_server = program("redis-server", "redis")
    (port,) = free_ports(1)

    def answer() -> None:
        with redis.Redis(port=port) as client:
            client.ping()

    with Home("Sentinel") as home:
        text = f"bind 127.0.0.1\nport {port}\nsentinel monitor mymaster 127.0.0.1 {master.port} 1\n"
        configuration = home.write("sentinel.conf", text)
        configuration.chmod(0o600)  # Sentinel writes to it
        process = home.start(
            *(redis_server, str(configuration), "--sentinel", "--dir", str(home.path)),
            answers=answer,
            unless=(redis.RedisError,),
        )
        yield Server(port, process)


@contextmanager
def memcached_started() -> Iterator[Server]:
    """A memcached that is gone when the block ends."""
    memcached = program("memcached", "memcached")
    (port,) = free_ports(1)
    with Home("memcached") as home:
        process = home.start(
            *(memcached, "--listen=127.0.0.1", f"--port={port}", "--udp-port=0"),
            answers=lambda: memcached_says(port, b"version\r\n"),
            unless=(OSError,),
        )
        yield Server(port, process)


@pytest.fixture(scope="module")
def servers() -> Iterator[Callable[[str], Server]]:
    """Start a server when it is asked for first."""
    starts = {"redis": redis_started, "memcached": memcached_started}
    started: dict[str, Server] = {}
    with ExitStack() as stack:

        def server(kind: str) -> Server:
            if kind not in started:
                if kind == "memcached" and shutil.which("memcached") is None:
                    pytest.skip("memcached is not installed; one of the two is enough where servers are required")
                started[kind] = found(lambda: stack.enter_context(starts[kind]()))
            return started[kind]

        yield server


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a backend."""
    return str(request.param)


@pytest.fixture
def server(servers: Callable[[str], Server], backend: str) -> Iterator[Server]:
    """The server of the backend, up and empty."""
    server = servers(BACKENDS[backend])
    if BACKENDS[backend] == "redis":
        with redis.Redis(port=server.port) as client:
            client.flushall()
    else:
        assert memcached_says(server.port, b"flush_all\r\n") == b"OK\r\n"
    yield server
    server.process.thaw()


@pytest.fixture
def options(server: Server, backend: str) -> cfg.ConfigOpts:
    """A configuration that names the server."""
    conf = cfg.ConfigOpts()
    conf([], project="cellmw", default_config_files=[], default_config_dirs=[])
    oslo_cache.configure(conf)
    address = f"127.0.0.1:{server.port}"
    values = {"enabled": True, "backend": backend, "redis_server": address, "memcache_servers": [address]}
    for name, value in {**values, "socket_timeout": TIMEOUT}.items():
        conf.set_override(name, value, group="cache")
    return conf


@pytest.fixture
def new_worker(options: cfg.ConfigOpts) -> Iterator[Callable[..., SharedMappings]]:
    """Make the shared mappings of one more worker."""
    with ExitStack() as stack:

        def new(protection: str = "sign") -> SharedMappings:
            made = open_shared(options, protection=protection, secret="our secret", lifetime=LIFETIME)
            return stack.enter_context(closing(made))

        yield new


@pytest.fixture
def worker(new_worker: Callable[..., SharedMappings]) -> SharedMappings:
    """The shared mappings of a worker."""
    return new_worker()


def entry() -> Entry:
    """What is known of an instance, now."""
    return Entry(cell_id=7, project_id="project", queued_for_delete=False, asked_at=time())


def until(condition: Callable[[], object]) -> None:
    """Return when it is true; who answers again is asked in his own time."""
    deadline = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < deadline
        sleep(0.05)


class Counted:
    """A backend that counts what it is asked, and how long the longest took."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.count = 0
        self.longest = 0.0

    def get_serialized(self, key: str) -> Any:
        self.count += 1
        began = monotonic()
        try:
            return self._backend.get_serialized(key)
        finally:
            self.longest = max(self.longest, monotonic() - began)

    def set_serialized(self, key: str, value: bytes) -> None:
        self.count += 1
        self._backend.set_serialized(key, value)


@pytest.fixture
def counted(worker: SharedMappings) -> Counted:
    """What the worker asks its backend, counted."""
    worker._connection.backend = Counted(worker._connection.backend)
    return worker._connection.backend


def test_shared(new_worker: Callable[..., SharedMappings], server: Server, backend: str) -> None:
    """What one worker puts there another one gets, until one of them deletes it or the server does at its end."""
    for protection in ("encrypt", "sign"):
        one, other = new_worker(protection), new_worker(protection)
        assert other.get(UUID) is None
        put = entry()
        one.put(UUID, put)
        assert other.get(UUID) == put
        assert other.get(OTHER) is None
        other.delete(UUID)
        assert one.get(UUID) is None
    one.put(UUID, entry())
    if BACKENDS[backend] == "redis":
        with redis.Redis(port=server.port) as client:
            left = client.ttl(PREFIX + UUID)
    else:
        # "HD t600": the item is there, and has so many seconds to live
        left = int(memcached_says(server.port, f"mg {PREFIX}{UUID} t\r\n".encode()).split()[1][1:])
    assert LIFETIME - PATIENCE <= left <= LIFETIME


class Bomb:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._folder),)


def test_strangers(worker: SharedMappings, server: Server, backend: str, tmp_path: Path) -> None:
    """What is no entry of ours, a pickle above all, is not opened, is a miss, and does not stop the cache."""
    folder = tmp_path / "made"
    pickled = pickle.dumps(Bomb(folder))
    if BACKENDS[backend] == "redis":
        with redis.Redis(port=server.port) as client:
            client.set(PREFIX + UUID, pickled)
            client.rpush(PREFIX + OTHER, pickled)
        strangers = [UUID, OTHER]
    else:
        strangers = []
        for flags in range(64):  # one says that it is pickled, others compressed, a number, text
            strangers.append(f"{flags:08x}-0000-4000-8000-000000000000")
            for stranger in (pickled, zlib.compress(pickled)):
                command = f"set {PREFIX}{strangers[-1]} {flags} 0 {len(stranger)}\r\n".encode()
                assert memcached_says(server.port, command + stranger + b"\r\n") == b"STORED\r\n"
                assert worker.get(strangers[-1]) is None
    for uuid in strangers:
        assert worker.get(uuid) is None
        put = entry()
        worker.put(uuid, put)
        assert worker.get(uuid) == put
    assert not folder.exists()


@pytest.mark.parametrize("backend", ["dogpile.cache.redis"], indirect=True)
def test_sentinel(server: Server, options: cfg.ConfigOpts, new_worker: Callable[..., SharedMappings]) -> None:
    """Where Sentinel says which Redis it is, a Redis and a Sentinel that are frozen hold up nobody for long."""
    with sentinel_started(server) as sentinel:
        options.set_override("backend", "dogpile.cache.redis_sentinel", group="cache")
        options.set_override("redis_sentinels", [f"127.0.0.1:{sentinel.port}"], group="cache")
        worker = new_worker()
        put = entry()
        worker.put(UUID, put)
        assert worker.get(UUID) == put
        waits = []

        def waits_in_vain() -> bool:
            began = monotonic()
            assert worker.get(UUID) is None
            waits.append(monotonic() - began)
            return waits[-1] >= TIMEOUT

        server.process.freeze()
        until(waits_in_vain)
        sentinel.process.freeze()
        worker._connection.backend.writer_client.connection_pool.disconnect()
        server.process.thaw()
        until(waits_in_vain)
        assert max(waits) < 4 * TIMEOUT + 1
        sentinel.process.thaw()
        until(lambda: worker.get(UUID) == put)


def test_frozen(worker: SharedMappings, server: Server, counted: Counted) -> None:
    """While the server is frozen nobody waits longer than the time-out, and one request in a second at most does."""
    put = entry()
    worker.put(UUID, put)
    server.process.freeze()
    counted.count = 0
    began = monotonic()
    calls = 0
    while monotonic() < began + 2.5 * RETRY_INTERVAL:
        assert worker.get(UUID) is None
        worker.put(UUID, put)
        calls += 1
    assert calls > 100
    assert 2 <= counted.count <= 1 + (monotonic() - began) / RETRY_INTERVAL
    assert counted.longest < 2 * TIMEOUT + 1
    server.process.thaw()
    until(lambda: worker.get(UUID) == put)


def test_killed(worker: SharedMappings, server: Server) -> None:
    """A server that is gone is a miss, and is used again a moment after it is back."""
    worker.put(UUID, entry())
    server.process.kill()
    assert [worker.get(UUID) for _ in range(3)] == [None] * 3
    worker.delete(UUID)
    server.process.restart()

    def shared() -> bool:
        worker.put(UUID, entry())
        return worker.get(UUID) is not None

    began = monotonic()
    until(shared)
    assert monotonic() - began < RETRY_INTERVAL + 5


@pytest.mark.parametrize("backend", ["dogpile.cache.redis"], indirect=True)
def test_frozen_under_requests(worker: SharedMappings, server: Server, counted: Counted, tmp_path: Path) -> None:
    """While the server is frozen the threads of a worker find their mappings in the API database, without a wait."""
    engine = make_engine(f"sqlite:///{tmp_path}/api.sqlite", {"sqlite_synchronous": False}, pre_ping=False)
    models.metadata.create_all(engine)
    uuids = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(200)]
    with Store(engine) as store:
        cell = store.create_cell(name="cell1", transport_url="none:///", database_connection="sqlite://")
        for uuid in uuids:
            store.create_instance(uuid, project_id="project", cell_id=cell.id)
        mappings = Mappings(store, ttl=60, size=1000, shared=worker)
        server.process.freeze()
        mappings.find(OTHER)  # meets the time-out
        counted.count = 0
        began = monotonic()
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda uuid: mappings.find(uuid, monotonic() + PATIENCE).cell_id, uuids))
        assert found == [cell.id] * len(uuids)
        assert counted.count <= 1 + (monotonic() - began) / RETRY_INTERVAL
