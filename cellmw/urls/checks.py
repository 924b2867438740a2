# SPDX-License-Identifier: Apache-2.0
"""A URL that is complete -> what is doubtful about it; or, where no cell can have it, an error that says why.

Nothing is connected to. The library that is to use the URL has to be there, and to understand it, and what it would
silently make of it has to be what stands there. No message has any more of the URL in it than the names of a driver and
of an option.
"""

from __future__ import annotations

import functools
import re
from importlib import metadata
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

import oslo_messaging
import sqlalchemy
from kombu.transport import TRANSPORT_ALIASES
from oslo_messaging._drivers import amqp, impl_rabbit
from sqlalchemy import exc

from cellmw.cell import NO_TRANSPORT_SCHEME
from cellmw.exceptions import UrlRefused
from cellmw.urls.parts import Parts, split, split_host, split_hosts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from oslo_config import cfg

_ENCODE = "special characters in a user or a password have to be percent-encoded, as in %40 for @"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_NO_PART_OF_A_HOST = re.compile(r"[\s{}\[\]<>\"'\\^`|]")

_PORT = re.compile(r"[1-9]\d{0,4}", re.ASCII)

_HIGHEST_PORT = 65535

_LAST_OF_LATIN_1 = 0xFF

_RABBIT = "oslo_messaging_rabbit"

_CUT_OFF = "behind which the driver for RabbitMQ cuts it off"

_NO_PART_OF_A_VHOST = {
    re.compile("[#?]"): f"a # or a ?, {_CUT_OFF}",
    re.compile(";"): f"a ;, {_CUT_OFF}",
    re.compile("%[0-9A-Fa-f]{2}"): "a % and two hexadecimal digits, which the driver for RabbitMQ decodes once more",
    _CONTROL: "a control character, which the driver for RabbitMQ leaves out",
}
"""What the driver can't do though RabbitMQ can -> how to say it. It puts the name into a URL as it is."""

_PACKAGES = {"MySQLdb": "mysqlclient", "pymysql": "PyMySQL", "psycopg": "psycopg[binary]"}
"""Modules of database drivers -> the packages that they come in, where those are called something else."""


def check_transport_url(conf: cfg.ConfigOpts, url: str, *, may_have_no_queue: bool = False) -> list[str]:
    """Return what is doubtful about a transport URL, in whole sentences without a full stop.

    :param conf: where the driver's options are, which the URL's query comes before
    :param may_have_no_queue: whether ``none:///`` will do
    :raises UrlRefused: if oslo.messaging can't use it
    """
    if url.startswith(NO_TRANSPORT_SCHEME):
        if may_have_no_queue:
            return []
        raise UrlRefused("none:/// stands for no message queue, and nothing could be sent to the cell")
    parts = _parts(url, "a driver of oslo.messaging")
    driver_class = _driver(parts)
    _check_what_is_ignored(parts)
    hosts = _check_hosts(parts.authority or "")
    try:
        parsed = oslo_messaging.TransportURL.parse(conf, url)
    except (oslo_messaging.InvalidTransportURL, ValueError):
        # its message quotes what was taken for a port, which can be half of a password
        raise UrlRefused(f"oslo.messaging can't read it: {_ENCODE}") from None
    if not issubclass(driver_class, impl_rabbit.RabbitDriver):
        return []
    _check_for_rabbit(parts, parsed)
    warnings = [] if hosts or "+" in parts.scheme else ["it names no host, so each service uses its own machine"]
    return warnings + _check_rabbit_options(conf, parsed)


def check_database_connection(url: str) -> list[str]:
    """Return what is doubtful about a database URL, in whole sentences without a full stop.

    :raises UrlRefused: if SQLAlchemy can't use it, or a driver of it is not installed
    """
    _parts(url, "a database of SQLAlchemy")
    try:
        parsed = sqlalchemy.make_url(url)
    except (exc.ArgumentError, ValueError):
        # its message can quote the URL
        raise UrlRefused(f"SQLAlchemy can't read it: {_ENCODE}") from None
    if "@" in (parsed.host or ""):
        raise UrlRefused(f"it has two @ in front of its host: {_ENCODE}")
    _check_host_name(parsed.host or "")
    _check_port(None if parsed.port is None else str(parsed.port))
    _check_utf8(url, parsed.username, parsed.password, parsed.database)
    dialect, dbapi = _dialect(parsed)
    if dialect.is_async:
        raise UrlRefused(f"the driver of {parsed.drivername!r} is one for asyncio")
    try:
        dialect(dbapi=dbapi).create_connect_args(parsed)
    except (exc.SQLAlchemyError, ValueError, TypeError):
        raise UrlRefused(
            f"its driver takes no such host, database or query: see SQLAlchemy's manual on {parsed.drivername!r}"
        ) from None
    if dialect.name == "sqlite":
        return _doubts_of_sqlite(parsed)
    return _doubts_of_password(parsed, dialect.driver) + _doubts_of_server(parsed)


def _parts(url: str, what: str) -> Parts:
    parts = split(url)
    if parts is None or not parts.scheme:
        raise UrlRefused(f"it does not begin with the name of {what} and ://")
    if _CONTROL.search(url):
        raise UrlRefused("it has a control character in it, a tab or the end of a line")
    return parts


@functools.cache
def _entry_points(name: str) -> tuple[metadata.EntryPoint, ...]:
    """Look through all that is installed only once: many cells have the same driver."""
    return tuple(metadata.entry_points(group="oslo.messaging.drivers", name=name))


def _driver(parts: Parts) -> type[Any]:
    name, plus, transport = parts.scheme.lower().partition("+")
    # without // it can be the user of a URL that has lost its beginning, or half of a password
    called = repr(parts.scheme) if parts.authority is not None else "of that name"
    if (plus or name == "kombu") and (name != "kombu" or transport not in TRANSPORT_ALIASES):
        raise UrlRefused(f"there is no oslo.messaging driver {called}")
    entry_points = _entry_points(name)
    if not entry_points:
        raise UrlRefused(f"no oslo.messaging driver {called} is installed")
    try:
        found = next(iter(entry_points)).load()
    except ImportError as missing:
        raise UrlRefused(f"its oslo.messaging driver needs {missing.name}, which is not installed") from None
    assert isinstance(found, type)
    return found


def _check_what_is_ignored(parts: Parts) -> None:
    """Refuse what oslo.messaging would leave out without a word: that is often half of a password."""
    if parts.fragment is not None:
        raise UrlRefused(f"it has a #, and oslo.messaging ignores what is behind it: {_ENCODE}")
    if "@" in parts.path or "@" in (parts.query or ""):
        raise UrlRefused(f"it has an @ behind its hosts: {_ENCODE}")
    for parameter in filter(None, (parts.query or "").split("&")):
        name, _, value = parameter.partition("=")
        if not value:
            raise UrlRefused(f"{_option_called(unquote_plus(name))} has no value, and would be ignored")


def _check_hosts(authority: str) -> int:
    """Check each host, and return how many there are."""
    hosts = [split_host(host) for host in split_hosts(authority)]
    if len({(host.username is None, host.password is None) for host in hosts}) > 1 or (
        len(hosts) == 1 and "," in authority.strip(",")
    ):
        raise UrlRefused("only some of its hosts have a user and a password: give them for each host, or for none")
    for host in hosts:
        _check_host_name(host.hostname)
        _check_port(host.port)
    return len(hosts)


def _check_host_name(name: str) -> None:
    if "{" in name or "}" in name:
        raise UrlRefused("its host has a brace in it: only some names in braces are fields of a template")
    if _NO_PART_OF_A_HOST.search(name):
        raise UrlRefused(f"it has a host that can't be one: {_ENCODE}")


def _check_port(port: str | None) -> None:
    if port and not (_PORT.fullmatch(port) and int(port) <= _HIGHEST_PORT):
        raise UrlRefused(f"its port is not a number from 1 to {_HIGHEST_PORT}: {_ENCODE}")


def _check_utf8(url: str, *decoded: str | None) -> None:
    if "\ufffd" not in url and any("\ufffd" in (text or "") for text in decoded):
        raise UrlRefused("it is percent-encoded in something else than UTF-8")


def _option_called(name: str) -> str:
    return f"its option {name!r}" if re.fullmatch(r"\w+", name) else "an option in its query"


def _check_for_rabbit(parts: Parts, parsed: oslo_messaging.TransportURL) -> None:
    """Check what the driver for RabbitMQ makes of it: another URL, in which not everything is encoded."""
    if parts.authority is None:
        raise UrlRefused("it has no // in front of its host")
    for host in parsed.hosts:
        for what, text in (("user", host.username), ("password", host.password)):
            if "/" in (text or ""):
                raise UrlRefused(
                    f"it has a / in a {what}, encoded or not, which the driver for RabbitMQ takes for the end of the "
                    f"host: give that user another {what if what == 'password' else 'name'}"
                )
        _check_utf8("", host.username, host.password)
    vhost = parsed.virtual_host or ""
    _check_utf8(parts.path, vhost)
    for pattern, what in _NO_PART_OF_A_VHOST.items():
        if pattern.search(vhost):
            raise UrlRefused(f"its virtual host has {what}: give it another name")


def _check_rabbit_options(conf: cfg.ConfigOpts, parsed: oslo_messaging.TransportURL) -> list[str]:
    known = {opt.dest: opt for opt in (*impl_rabbit.rabbit_opts, *amqp.amqp_opts)}
    conf.register_opts(list(known.values()), group=_RABBIT)
    typed = {name: _option(known, name, value) for name, value in parsed.query.items()}
    values = {name: typed.get(name, conf[_RABBIT][name]) for name in known}
    _check_together(values)
    return _doubts_of_tls(values, typed, parsed)


def _option(known: Mapping[str, cfg.Opt], name: str, value: str) -> Any:
    if name not in known:
        raise UrlRefused(f"{_option_called(name)} is none of those in [{_RABBIT}]")
    kind = known[name].type
    try:
        return kind(value)
    except ValueError:
        # its message quotes the value
        choices = getattr(kind, "choices", None)
        takes = f"one of {', '.join(choices)}" if choices else f"another {kind.type_name}"
        raise UrlRefused(f"its option {name!r} takes {takes}") from None


def _check_together(values: Mapping[str, Any]) -> None:
    """Check what the driver checks only when it is made, or when it connects."""
    if values["rpc_conn_pool_size"] < values["conn_pool_min_size"]:
        raise UrlRefused("the option 'rpc_conn_pool_size' is lower than 'conn_pool_min_size'")
    if values["rabbit_stream_fanout"] and not (
        values["rabbit_qos_prefetch_count"] > 0 and values["rabbit_transient_quorum_queue"]
    ):
        raise UrlRefused(
            "the option 'rabbit_stream_fanout' needs a 'rabbit_qos_prefetch_count' and 'rabbit_transient_quorum_queue'"
        )
    if values["ssl"] and values["ssl_version"]:
        try:
            impl_rabbit.Connection.validate_ssl_version(values["ssl_version"])
        except RuntimeError:
            raise UrlRefused("there is no such TLS version as its option 'ssl_version' names") from None


def _doubts_of_tls(values: Mapping[str, Any], typed: Mapping[str, Any], url: oslo_messaging.TransportURL) -> list[str]:
    if not (values["ssl"] or url.transport == "kombu+amqps"):
        without = sorted(name for name in typed if name.startswith("ssl_"))
        return [f"its option {without[0]!r} has no effect without ssl=true"] if without else []
    if values["ssl_ca_file"] and values["ssl"]:
        return []
    if values["ssl"] and values["ssl_version"]:
        return ["it has an ssl_version and no ssl_ca_file: nothing is verified then, anybody can pass for the broker"]
    return ["it has TLS without an ssl_ca_file: who has a certificate for any other name can pass for the broker"]


def _dialect(url: sqlalchemy.URL) -> tuple[type[Any], Any]:
    """Return what SQLAlchemy uses for this URL, and the module of the database driver."""
    try:
        dialect: type[Any] = url.get_dialect()
        return dialect, dialect.import_dbapi()
    except exc.NoSuchModuleError:
        raise UrlRefused(f"SQLAlchemy knows no database by the name of {url.drivername!r}") from None
    except ImportError as missing:
        name = (missing.name or url.get_driver_name()).partition(".")[0]
        way_out = "" if "+" in url.drivername else ", or name another driver, as in mysql+pymysql://"
        raise UrlRefused(
            f"the driver of {url.drivername!r} is not installed: install {_PACKAGES.get(name, name)}{way_out}"
        ) from None


def _doubts_of_sqlite(url: sqlalchemy.URL) -> list[str]:
    if not url.database or url.database == ":memory:" or url.query.get("mode") == "memory":
        return ["it is in memory, so each process has a database of its own"]
    if not url.database.startswith(("/", "file:")):
        return ["its path is relative, so each process looks for it where it was started"]
    return []


def _doubts_of_password(url: sqlalchemy.URL, driver_name: str) -> list[str]:
    password = str(url.password or "")
    if driver_name != "pymysql" or password.isascii():
        return []
    if any(ord(character) > _LAST_OF_LATIN_1 for character in password):
        raise UrlRefused("it has a password with characters that PyMySQL can't send: give that user another password")
    return ["PyMySQL sends its password in Latin-1, and a server that was told it in UTF-8 takes it for another"]


def _doubts_of_server(url: sqlalchemy.URL) -> list[str]:
    return [] if url.database or "service" in url.query else ["it names no database on its server"]
