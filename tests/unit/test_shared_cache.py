# SPDX-License-Identifier: Apache-2.0
"""The shared cache: what is an entry and what is none, and what a cache that is down costs."""

from __future__ import annotations

import importlib
import json
import os
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from oslo_cache import core as oslo_cache

from cellmw import breaker, deadline, deploy, shared_cache
from cellmw.breaker import RETRY_INTERVAL
from cellmw.exceptions import ConfigError
from cellmw.shared_cache import (
    CLOCK_SKEW,
    PREFIX,
    Connection,
    Encrypted,
    Entry,
    Seal,
    SharedMappings,
    Signed,
    Unprotected,
    open_shared,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from oslo_config import cfg

    from cellmw.store import Store

UUID = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9"
OTHER = "ffffffff-ffff-4fff-bfff-ffffffffffff"
TIMEOUT = 1.0
SECRET = "our secret"
NOW = 1_800_000_000.0
ENTRY = Entry(cell_id=7, project_id="project", queued_for_delete=True, asked_at=NOW)
SEALS: dict[str, Callable[[], Seal]] = {
    "sign": lambda: Signed(SECRET),
    "encrypt": lambda: Encrypted(SECRET),
    "none": Unprotected,
}


class Clock:
    """The time, which passes when a test says so."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clocks of the shared cache."""
    clock = Clock()
    monkeypatch.setattr(shared_cache, "time", clock)
    for module in (shared_cache, breaker, deadline):
        monkeypatch.setattr(module, "monotonic", clock)
    return clock


class Server:
    """A region in memory, whose server has moods."""

    def __init__(self, clock: Clock) -> None:
        self.content: dict[str, Any] = {}
        region = oslo_cache.create_region()
        region.configure("dogpile.cache.memory", arguments={"cache_dict": self.content})
        self._backend = region.backend
        self._clock = clock
        self.asked = 0
        self.takes = 0.0
        self.raises: Exception | None = None

    def _meet(self) -> None:
        self.asked += 1
        self._clock.now += self.takes
        if self.raises is not None:
            raise self.raises

    def get_serialized(self, key: str) -> Any:
        self._meet()
        return self._backend.get_serialized(key)

    def set_serialized(self, key: str, value: bytes) -> None:
        self._meet()
        self._backend.set_serialized(key, value)

    def delete(self, key: str) -> None:
        self._meet()
        self._backend.delete(key)


@pytest.fixture
def server(clock: Clock) -> Server:
    """The cache, for all workers of a test."""
    return Server(clock)


@pytest.fixture
def new_worker(server: Server) -> Callable[[Seal], SharedMappings]:
    """Make the shared mappings of one more worker."""
    return lambda seal: SharedMappings(lambda: Connection(server, (LookupError,)), seal, timeout=TIMEOUT)


@pytest.fixture
def worker(new_worker: Callable[[Seal], SharedMappings]) -> SharedMappings:
    """A worker that signs."""
    return new_worker(Signed(SECRET))


def test_shared(new_worker: Callable[[Seal], SharedMappings]) -> None:
    """What one worker puts there the others get, until one deletes it, however it is protected."""
    for seal in SEALS.values():
        one, other = new_worker(seal()), new_worker(seal())
        assert other.get(UUID) is None
        one.put(UUID, ENTRY)
        assert other.get(UUID) == ENTRY
        other.delete(UUID)
        assert one.get(UUID) is None


def test_what_is_seen(new_worker: Callable[[Seal], SharedMappings], server: Server) -> None:
    """A signed entry can be read, and found by its uuid; an encrypted one tells nothing. Each key has the prefix."""
    new_worker(Signed(SECRET)).put(UUID, ENTRY)
    ((key, value),) = server.content.items()
    assert key == PREFIX + UUID == f"cellmw:mapping:1:{UUID}"
    assert json.loads(value[32:]) == [UUID, 7, "project", True, NOW]
    server.content.clear()
    new_worker(Encrypted(SECRET)).put(UUID, ENTRY)
    ((key, value),) = server.content.items()
    assert key.startswith(PREFIX)
    assert UUID not in key
    assert not any(word in value for word in (UUID.encode(), b"project", SECRET.encode()))


def test_moved(new_worker: Callable[[Seal], SharedMappings], server: Server) -> None:
    """An entry that was copied to where another instance's belongs is a miss, however it is protected."""
    for make in SEALS.values():
        seal = make()
        worker = new_worker(seal)
        worker.put(UUID, ENTRY)
        server.content[PREFIX + seal.name(OTHER)] = server.content[PREFIX + seal.name(UUID)]
        assert worker.get(OTHER) is None
        assert worker.get(UUID) == ENTRY


def test_strangers(new_worker: Callable[[Seal], SharedMappings], server: Server) -> None:
    """What was sealed with another secret, in another way or not at all is a miss."""
    ours: Seal
    for ours, other_way in ((Signed(SECRET), Encrypted(SECRET)), (Encrypted(SECRET), Signed(SECRET))):
        for stranger in (type(ours)("their secret"), other_way, Unprotected()):
            server.content.clear()
            new_worker(stranger).put(UUID, ENTRY)
            (value,) = server.content.values()
            server.content[PREFIX + ours.name(UUID)] = value
            assert new_worker(ours).get(UUID) is None


def test_damaged(new_worker: Callable[[Seal], SharedMappings], server: Server) -> None:
    """An entry with one byte changed, wherever, or cut off, wherever, is a miss, and the whole one is read again."""
    for seal in (Signed(SECRET), Encrypted(SECRET)):
        server.content.clear()
        worker = new_worker(seal)
        worker.put(UUID, ENTRY)
        ((key, value),) = server.content.items()
        for position in range(len(value)):
            server.content[key] = value[:position]
            assert worker.get(UUID) is None
            server.content[key] = value[:position] + bytes([value[position] ^ 4]) + value[position + 1 :]
            assert worker.get(UUID) is None
        server.content[key] = value
        assert worker.get(UUID) == ENTRY


def test_nonsense(new_worker: Callable[[Seal], SharedMappings], server: Server) -> None:
    """Whatever is there that is no entry is a miss, and no reason to leave the cache alone."""
    fields = [UUID, 7, "project", True, NOW]
    texts = [b"", b"\xff", b"nonsense", b"[" * 100_000, b"{}", b"[]", b"9" * 10_000]
    for index, wrong in enumerate([OTHER, "7", None, 1, float("nan")]):
        texts.append(json.dumps([*fields[:index], wrong, *fields[index + 1 :]]).encode())
    texts += [json.dumps([*fields, "more"]).encode(), json.dumps([*fields[:4], float("-inf")]).encode()]
    worker = new_worker(Unprotected())
    for value in [*texts, "text", 7, fields]:
        server.content[PREFIX + UUID] = value
        assert worker.get(UUID) is None, value
    assert server.asked == len(texts) + 3


def test_clocks(worker: SharedMappings, clock: Clock) -> None:
    """An entry that another host seems to have made in the future is a miss, if its clock can't just be ahead a bit."""
    worker.put(UUID, ENTRY._replace(asked_at=NOW + CLOCK_SKEW))
    assert worker.get(UUID) is not None
    worker.put(UUID, ENTRY._replace(asked_at=NOW + CLOCK_SKEW + 0.1))
    assert worker.get(UUID) is None
    clock.now += 0.1
    assert worker.get(UUID) is not None


def test_no_uuid(worker: SharedMappings, server: Server) -> None:
    """What is no uuid, and could mean something to a server, is not asked for."""
    for name in ("", "a b", "a\r\nflush_all\r\n", UUID + "\n", UUID.upper(), "x" * 1000):
        worker.put(name, ENTRY)
        assert worker.get(name) is None
        worker.delete(name)
    assert server.asked == 0


@pytest.mark.parametrize(
    ("raises", "takes"), [(OSError(), 0.0), (None, TIMEOUT), (RuntimeError("?"), TIMEOUT)], ids=["no", "late", "never"]
)
def test_no_answer(
    worker: SharedMappings, server: Server, clock: Clock, raises: Exception | None, takes: float
) -> None:
    """A cache that does not answer, or only when its time is up, is asked once in a second, by whoever comes then."""
    worker.put(UUID, ENTRY)
    server.raises, server.takes = raises, takes
    worker.get(UUID)
    server.asked = 0
    for _ in range(3):
        assert worker.get(OTHER) is None
        worker.put(OTHER, ENTRY)
        worker.delete(UUID)
    assert server.asked == 0
    clock.now += RETRY_INTERVAL
    for _ in range(3):
        worker.put(OTHER, ENTRY)
    assert server.asked == 1
    server.raises, server.takes = None, 0.0
    clock.now += RETRY_INTERVAL
    assert worker.get(UUID) == ENTRY
    assert worker.get(UUID) == ENTRY


def test_refusal(worker: SharedMappings, server: Server) -> None:
    """A server that answers, if only by saying no, costs nobody a wait, and goes on being asked."""
    worker.put(UUID, ENTRY)
    server.raises = LookupError("no")
    assert worker.get(UUID) is None
    server.raises = None
    assert worker.get(UUID) == ENTRY


def test_deadline(worker: SharedMappings, server: Server, clock: Clock) -> None:
    """A request that could not wait for the time-out does not ask, and spoils nobody's turn."""
    worker.put(UUID, ENTRY)
    server.asked = 0
    assert worker.get(UUID, clock() + TIMEOUT - 0.1) is None
    worker.put(OTHER, ENTRY, clock() + TIMEOUT - 0.1)
    worker.delete(UUID, clock())
    assert server.asked == 0
    assert worker.get(UUID, clock() + TIMEOUT) == ENTRY


def test_log(worker: SharedMappings, server: Server, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """What is wrong is said once in ten seconds, with no word of what is in the cache or where it is."""
    server.content[PREFIX + UUID] = b"project"
    for _ in range(3):
        worker.get(UUID)
    clock.now += 10
    server.raises = OSError("redis://:password@host is down")
    for _ in range(30):
        clock.now += 0.3
        worker.get(UUID)
    clock.now += 2
    worker.get(UUID)
    clock.now += 10
    server.raises = LookupError(f"{PREFIX}{UUID}")
    worker.get(UUID)
    assert [record.getMessage() for record in caplog.records] == [
        "an entry of the shared cache is damaged, or written by somebody else: it counts as missing",
        "the shared cache does not answer (OSError)",
        "the shared cache does not answer (OSError)",
        "the shared cache refuses what it is asked (LookupError)",
    ]


def test_fork(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process, which has inherited this one's connections, makes its own before it asks."""
    connected: list[int] = []

    def connect() -> Connection:
        connected.append(os.getpid())
        return Connection(server)

    worker = SharedMappings(connect, Unprotected(), timeout=TIMEOUT)
    worker.put(UUID, ENTRY)
    parent = os.getpid()
    assert connected == [parent]
    server.raises = OSError()
    worker.get(UUID)
    server.raises = None
    monkeypatch.setattr(shared_cache.os, "getpid", lambda: parent + 1)
    assert worker.get(UUID) == ENTRY
    assert worker.get(UUID) == ENTRY
    assert connected == [parent, parent + 1]


def test_close(server: Server) -> None:
    """What is closed closes its connections, once, and asks nobody any more."""
    closed: list[str] = []
    worker = SharedMappings(lambda: Connection(server, close=lambda: closed.append("x")), Unprotected(), timeout=1)
    assert repr(worker) == "<SharedMappings open>"
    worker.put(UUID, ENTRY)
    worker.close()
    worker.close()
    assert closed == ["x"]
    assert worker.get(UUID) is None
    assert repr(worker) == "<SharedMappings closed>"


@pytest.fixture
def cache(conf: cfg.ConfigOpts) -> cfg.ConfigOpts:
    """A configuration with a cache."""
    oslo_cache.configure(conf)
    conf.set_override("enabled", True, group="cache")
    conf.set_override("backend", "dogpile.cache.redis", group="cache")
    return conf


def open_(conf: cfg.ConfigOpts, protection: str = "sign", secret: str | None = SECRET) -> SharedMappings:
    """Open it."""
    return open_shared(conf, protection=protection, secret=secret, lifetime=60)


def test_open(cache: cfg.ConfigOpts) -> None:
    """Every backend that can be shared is made, with each protection, and connects to nothing."""
    for backend in shared_cache._BACKENDS:
        cache.set_override("backend", backend, group="cache")
        for protection in SEALS:
            made = open_(cache, protection, None if protection == "none" else SECRET)
            if backend == "dogpile.cache.redis":  # to connect takes as long at most as to have an answer
                client = made._connection.backend.writer_client
                assert client.get_connection_kwargs()["socket_connect_timeout"] == cache.cache.socket_timeout == 1.0


def test_wrong_options(cache: cfg.ConfigOpts) -> None:
    """Options of oslo.cache by which nothing can be shared are an error that says what to change."""
    for options, message in [
        ({"enabled": False}, r"\[cache\] enabled is not: set it to true"),
        ({"backend": "dogpile.cache.null"}, "dogpile.cache.null is none that workers can share: .*dogpile.cache.redis"),
        ({"backend": "dogpile.cache.memory"}, "none that workers can share"),
        ({"backend": "oslo_cache.memcache_pool", "tls_enabled": True}, "unpickles whatever is in the cache"),
        ({"backend": "oslo_cache.memcache_pool", "memcache_sasl_enabled": True}, "unpickles whatever is in the cache"),
        ({"backend": "dogpile.cache.memcached", "tls_enabled": True}, r"\[cache\]: .*tls_enabled"),
        ({"backend": "dogpile.cache.redis", "redis_server": "host:port"}, r"\[cache\]: "),
        ({"backend": "dogpile.cache.pymemcache", "tls_enabled": True, "tls_cafile": "/missing"}, r"\[cache\]: .*file"),
    ]:
        for name, value in options.items():
            cache.set_override(name, value, group="cache")
        with pytest.raises(ConfigError, match=message):
            open_(cache)
        for name in options:
            cache.clear_override(name, group="cache")
        cache.set_override("enabled", True, group="cache")


def test_no_secret(cache: cfg.ConfigOpts) -> None:
    """To sign and to encrypt a secret is needed."""
    for protection in ("sign", "encrypt"):
        with pytest.raises(ConfigError, match=f"shared_cache_secret is not set: {protection} needs a secret"):
            open_(cache, protection, "")


def test_not_installed(cache: cfg.ConfigOpts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where something is not installed the error says which, and what to install."""
    there = importlib.import_module
    for missing in ("oslo_cache.core", "redis.retry", "cryptography.fernet"):

        def import_module(name: str, missing: str = missing) -> Any:
            if name == missing:
                raise ImportError(name=name)
            return there(name)

        monkeypatch.setattr(shared_cache.importlib, "import_module", import_module)
        with pytest.raises(ConfigError, match=rf"shared_cache needs {missing}: install cellmw\[cache\]"):
            open_(cache, "encrypt")


def test_deployed(cache: cfg.ConfigOpts, store: Store) -> None:
    """The cells share their mappings where [cellmw] shared_cache is true; closing them closes that, too."""
    with closing(deploy.cells(cache)) as cells:
        assert cells.mappings._shared is None
    cache.set_override("shared_cache", True, group="cellmw")
    with pytest.raises(ConfigError, match="shared_cache_secret"):
        deploy.cells(cache)
    cache.set_override("shared_cache_secret", SECRET, group="cellmw")
    with closing(deploy.cells(cache)) as cells:
        shared = cells.mappings._shared
        assert repr(shared) == "<SharedMappings open>"
    assert repr(shared) == "<SharedMappings closed>"
