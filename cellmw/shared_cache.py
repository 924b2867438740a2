# SPDX-License-Identifier: Apache-2.0
"""Instance uuid -> what the API database has told some worker, on this host or another, from a cache that all share.

The cache is memcached or Redis behind oslo.cache, and may be anything: down, frozen, full, or written by strangers.
Whatever is wrong with it is a miss, and never an error.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import json
import logging
import math
import os
import re
from base64 import urlsafe_b64encode
from time import monotonic, time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cellmw.breaker import RETRY_INTERVAL, Breaker
from cellmw.deadline import left
from cellmw.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from oslo_config import cfg

    from cellmw.deadline import Deadline

LOG = logging.getLogger(__name__)

PREFIX = "cellmw:mapping:1:"
"""What every key begins with. The number changes with the form of the entries, so that no version reads another's."""

CLOCK_SKEW = 5.0
"""Seconds by which the clocks of two hosts may differ."""

_LOG_INTERVAL = 10.0
"""Seconds within which there is one line of the log, however much is wrong with the cache."""

_SLOW = 0.9
"""Which part of the time-out an answer may take. python-memcached does not say that it has met the time-out."""

_LONGEST = 30 * 24 * 3600
"""Seconds: what is more, memcached takes for a date."""

_is_uuid = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


class Entry(NamedTuple):
    """What the API database said of an instance that has a cell.

    :ivar asked_at: when it was asked, on the clock of ``time.time()``, by whichever host
    """

    cell_id: int
    project_id: str
    queued_for_delete: bool
    asked_at: float


class Seal(Protocol):
    """What keeps strangers from writing entries, or from reading them. Lives as long as the process."""

    def name(self, instance_uuid: str) -> str:
        """Return what the entry of this instance is called."""

    def seal(self, instance_uuid: str, body: bytes) -> bytes:
        """Return what is put into the cache."""

    def unseal(self, instance_uuid: str, sealed: bytes) -> bytes:
        """Return the body.

        :raises ValueError: if nobody who knows the secret has sealed it, or not for this instance
        """


class Unprotected:
    """No seal: whoever can write to the cache decides where requests go."""

    def name(self, instance_uuid: str) -> str:
        """Return the uuid."""
        return instance_uuid

    def seal(self, instance_uuid: str, body: bytes) -> bytes:
        """Return the body as it is."""
        return body

    def unseal(self, instance_uuid: str, sealed: bytes) -> bytes:
        """Return it as it is."""
        return sealed


class Signed(Unprotected):
    """A signature over the entry and its instance: who can read the cache reads the entries, and can write none."""

    def __init__(self, secret: str) -> None:
        self._key = _key(secret, "sign")

    def seal(self, instance_uuid: str, body: bytes) -> bytes:
        """Return the signature and the body."""
        return self._signature(instance_uuid, body) + body

    def unseal(self, instance_uuid: str, sealed: bytes) -> bytes:
        """Return what has been signed, for this instance."""
        signature, body = sealed[:32], sealed[32:]
        if not hmac.compare_digest(signature, self._signature(instance_uuid, body)):
            raise ValueError("the signature is wrong")
        return body

    def _signature(self, instance_uuid: str, body: bytes) -> bytes:
        return hmac.digest(self._key, f"{PREFIX}{instance_uuid}\n".encode() + body, hashlib.sha256)


class Encrypted:
    """Encryption that also proves who has written: who can read the cache sees how many entries there are."""

    def __init__(self, secret: str) -> None:
        """Take the secret.

        :raises ConfigError: if cryptography is not installed
        """
        fernet = _installed("cryptography.fernet")
        self._fernet = fernet.Fernet(urlsafe_b64encode(_key(secret, "encrypt")))
        self._invalid: type[Exception] = fernet.InvalidToken
        self._key = _key(secret, "name")

    def name(self, instance_uuid: str) -> str:
        """Return a keyed hash of the uuid."""
        return hmac.digest(self._key, instance_uuid.encode(), hashlib.sha256).hex()

    def seal(self, instance_uuid: str, body: bytes) -> bytes:
        """Return the body, encrypted."""
        sealed: bytes = self._fernet.encrypt(body)
        return sealed

    def unseal(self, instance_uuid: str, sealed: bytes) -> bytes:
        """Return the body, which says of which instance it is."""
        try:
            body: bytes = self._fernet.decrypt(sealed)
        except self._invalid:
            raise ValueError("it was encrypted by nobody who knows the secret") from None
        return body


def _key(secret: str, use: str) -> bytes:
    return hmac.digest(secret.encode(), f"cellmw shared cache: {use}".encode(), hashlib.sha256)


class Connection:
    """The backend of a region, as one process uses it, and whether it answers.

    :ivar backend: dogpile.cache's: it takes and gives bytes
    :ivar answers: the exceptions by which its server says that it does not like what it was asked
    :ivar close: closes what this thread or all threads have open to the server
    """

    def __init__(
        self, backend: Any, answers: tuple[type[Exception], ...] = (), close: Callable[[], Any] = lambda: None
    ) -> None:
        self.backend = backend
        self.answers = answers
        self.close = close
        self.breaker = Breaker()
        self.process = os.getpid()


class SharedMappings:
    """The entries of all workers. Lives as long as the process; shared by its threads.

    While the cache does not answer, one request in each second finds out by waiting for it, and no other does.
    """

    def __init__(self, connect: Callable[[], Connection], seal: Seal, *, timeout: float) -> None:
        """Prepare, without connecting to anything.

        :param connect: called once in each process
        :param timeout: seconds for which the backend waits for its server
        """
        self._connect = connect
        self._seal = seal
        self._timeout = timeout
        self._log_again_at = 0.0
        self._closed = False
        self._connection = connect()

    def get(self, instance_uuid: str, deadline: Deadline | None = None) -> Entry | None:
        """Return what is known of this instance, or None.

        :param instance_uuid: in lower case
        """
        if not _is_uuid(instance_uuid):
            return None  # what else may be in a key, each server sees differently
        name = self._name(instance_uuid)
        sealed = self._attempt(lambda backend: backend.get_serialized(name), deadline)
        if not sealed:
            return None  # dogpile's sign for it is false, too
        try:
            if not isinstance(sealed, bytes):
                raise ValueError("it is no bytes")
            return _decoded(instance_uuid, self._seal.unseal(instance_uuid, sealed))
        except (ValueError, RecursionError):
            self._log("an entry of the shared cache is damaged, or written by somebody else: it counts as missing")
            return None

    def put(self, instance_uuid: str, entry: Entry, deadline: Deadline | None = None) -> None:
        """Let the others know."""
        if _is_uuid(instance_uuid):
            name = self._name(instance_uuid)
            sealed = self._seal.seal(instance_uuid, json.dumps([instance_uuid, *entry]).encode())
            self._attempt(lambda backend: backend.set_serialized(name, sealed), deadline)

    def delete(self, instance_uuid: str, deadline: Deadline | None = None) -> None:
        """Drop what the others go by. Where the cache does not answer, they go by it until it is too old."""
        if _is_uuid(instance_uuid):
            name = self._name(instance_uuid)
            self._attempt(lambda backend: backend.delete(name), deadline)

    def close(self) -> None:
        """Close the connections; nothing is found, and nothing kept, from now on."""
        if not self._closed:
            self._closed = True
            self._connection.close()

    def __repr__(self) -> str:
        return f"<SharedMappings {'closed' if self._closed else 'open'}>"

    def _name(self, instance_uuid: str) -> str:
        return PREFIX + self._seal.name(instance_uuid)

    def _attempt(self, what: Callable[[Any], Any], deadline: Deadline | None) -> Any:
        connection = self._connection
        if connection.process != os.getpid():
            # two processes must not read from one socket
            connection = self._connection = self._connect()
        if self._closed or (deadline is not None and left(deadline) < self._timeout):
            return None
        if not connection.breaker.allows():
            return None
        began = monotonic()
        try:
            result = what(connection.backend)
        except connection.answers as error:
            connection.breaker.succeeded()
            self._log("the shared cache refuses what it is asked (%s)", type(error).__name__)
            return None
        except Exception as error:  # noqa: BLE001 - there is nothing that a request should fail for
            connection.breaker.failed()
            self._log("the shared cache does not answer (%s)", type(error).__name__)
            return None
        if monotonic() - began < self._timeout * _SLOW:
            connection.breaker.succeeded()
        else:
            connection.breaker.failed()
            self._log("the shared cache does not answer, or too slowly")
        return result

    def _log(self, message: str, *arguments: str) -> None:
        now = monotonic()
        if now >= self._log_again_at:
            self._log_again_at = now + _LOG_INTERVAL
            LOG.warning(message, *arguments)


def _decoded(instance_uuid: str, body: bytes) -> Entry:
    match json.loads(body):
        case [str(uuid), int(cell_id), str(project_id), bool(queued_for_delete), float(asked_at)]:
            if uuid == instance_uuid and math.isfinite(asked_at) and asked_at <= time() + CLOCK_SKEW:
                return Entry(cell_id, project_id, queued_for_delete, asked_at)
    raise ValueError("it is no entry of this instance")


def open_shared(conf: cfg.ConfigOpts, *, protection: str, secret: str | None, lifetime: float) -> SharedMappings:
    """Make what ``[cache]``, the options of oslo.cache, describe; nothing is connected to yet.

    :param protection: ``sign``, ``encrypt`` or ``none``
    :param secret: what is signed or encrypted with
    :param lifetime: seconds after which the cache may drop an entry
    :raises ConfigError: if the options don't describe a cache that can be shared, or something is not installed
    """
    oslo_cache = _installed("oslo_cache.core")
    oslo_cache.configure(conf)
    _check(conf.cache)
    prepare = _BACKENDS[conf.cache.backend]
    timeout = conf.cache.socket_timeout
    seconds = math.ceil(min(max(lifetime, 1), _LONGEST))

    def connect() -> Connection:
        try:
            region = oslo_cache.configure_cache_region(conf, oslo_cache.create_region())
            # the bytes go past the region itself, which would have them pickled, and unpickle whatever it finds
            return Connection(region.backend, *prepare(region.actual_backend, timeout, seconds))
        except ImportError as error:
            raise _not_installed(error.name) from error
        except (_installed("oslo_cache.exception").ConfigurationError, OSError, ValueError) as error:
            raise ConfigError(f"[cache]: {error}") from error

    return SharedMappings(connect, _seal(protection, secret), timeout=timeout)


def _check(group: Any) -> None:
    if not group.enabled:
        raise ConfigError("[cellmw] shared_cache is true, and [cache] enabled is not: set it to true")
    if group.backend not in _BACKENDS:
        raise ConfigError(
            f"[cache] backend: {group.backend} is none that workers can share: set it to one of {', '.join(_BACKENDS)}"
        )
    if group.backend == "oslo_cache.memcache_pool" and (group.tls_enabled or group.memcache_sasl_enabled):
        raise ConfigError(
            "[cache] backend: with TLS or SASL, oslo_cache.memcache_pool unpickles whatever is in the cache: set it to "
            "dogpile.cache.pymemcache or dogpile.cache.redis"
        )


def _seal(protection: str, secret: str | None) -> Seal:
    if protection == "none":
        return Unprotected()
    if not secret:
        raise ConfigError(
            f"[cellmw] shared_cache_secret is not set: {protection} needs a secret, the same one for all workers"
        )
    return Signed(secret) if protection == "sign" else Encrypted(secret)


_Prepared = tuple[tuple[type[Exception], ...], "Callable[[], Any]"]


def _redis(backend: Any, timeout: float, lifetime: int) -> _Prepared:
    """What redis does by default: three attempts, with seconds between them, of five seconds each to connect."""
    exceptions = _installed("redis.exceptions")
    no_backoff = _installed("redis.backoff").NoBackoff()
    # a connection that the server has dropped meanwhile is worth a second attempt; a time-out is not
    retry = _installed("redis.retry").Retry(no_backoff, 1, supported_errors=(exceptions.ConnectionError,))
    # a replica may not have heard yet that an entry was deleted
    client = backend.reader_client = backend.writer_client
    sentinels = getattr(getattr(client.connection_pool, "sentinel_manager", None), "sentinels", [])
    for each in (client, *sentinels):
        each.get_connection_kwargs().update(socket_timeout=timeout, socket_connect_timeout=timeout)
        each.set_retry(retry)
    backend.redis_expiration_time = lifetime
    return (exceptions.ResponseError,), client.close


def _python_memcached(backend: Any, timeout: float, lifetime: int) -> _Prepared:
    """python-memcached unpickles an entry that says it is a pickle, and leaves a server alone that it calls dead."""

    def prepare(client: Any) -> None:
        client.unpickler = client.decompressor = _refuse
        for server in client.servers:
            server.dead_retry = RETRY_INTERVAL

    backend.set_arguments["time"] = lifetime
    pool = getattr(backend, "client_pool", None)
    if pool is None:
        _prepare_each(backend, "_create_client", prepare)
    else:
        _prepare_each(pool, "_create_connection", prepare)
    return (ValueError,), lambda: backend.client.disconnect_all()


def _pymemcache(backend: Any, timeout: float, lifetime: int) -> _Prepared:
    """dogpile.cache gives pymemcache no time-out, has it unpickle, and leave a server alone for a minute."""

    def prepare(client: Any) -> None:
        client.default_kwargs.update(connect_timeout=timeout, timeout=timeout)
        for connection in client.clients.values():
            connection.connect_timeout = connection.timeout = timeout

    backend.set_arguments["expire"] = lifetime
    backend.serde = _Bytes()
    backend.enable_retry_client = False
    backend.hashclient_retry_attempts = 0
    backend.dead_timeout = RETRY_INTERVAL
    _prepare_each(backend, "_create_client", prepare)
    exceptions = _installed("pymemcache.exceptions")
    return (exceptions.MemcacheClientError, exceptions.MemcacheServerError), lambda: backend.client.close()


_BACKENDS = {
    "dogpile.cache.redis": _redis,
    "dogpile.cache.redis_sentinel": _redis,
    "dogpile.cache.pymemcache": _pymemcache,
    "dogpile.cache.memcached": _python_memcached,
    "oslo_cache.memcache_pool": _python_memcached,
}
"""The backends that can be shared, and what makes them safe and quick; it returns a Connection's answers and close."""


def _prepare_each(maker: Any, hook: str, prepare: Callable[[Any], None]) -> None:
    """Prepare each client that the method of this name makes, which is there for backends to override."""
    make = getattr(maker, hook)

    def make_prepared() -> Any:
        client = make()
        prepare(client)
        return client

    setattr(maker, hook, make_prepared)


def _refuse(*_: Any) -> Any:
    """Stands where a pickle would be opened, or what is compressed be blown up: there is no such entry of ours."""
    raise ValueError("an entry is neither pickled nor compressed")


class _Bytes:
    """Stands where pymemcache has pickle."""

    def serialize(self, key: Any, value: bytes) -> tuple[bytes, int]:
        return value, 0

    def deserialize(self, key: Any, value: bytes, flags: int) -> bytes:
        return value


def _installed(module: str) -> Any:
    """Import what only the shared cache needs, so that it has to be there only for that.

    :raises ConfigError: if it is not installed
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _not_installed(module) from error


def _not_installed(module: str | None) -> ConfigError:
    return ConfigError(f"[cellmw] shared_cache needs {module}: install cellmw[cache]")
