# SPDX-License-Identifier: Apache-2.0
"""A transport or database URL -> what may be shown of it.

It does not check or open anything, and it never fails: of what it can't make out it shows too little.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

MASK = "***"
"""Stands where a password was."""

_HOST = r"(?:[^@:/?#,\[\]]*|\[[^@/?#,\]]*\])(?::(?:\d+|\{port\d*\}))?"
_CREDENTIALS = r"[^@:/?#,]*(?::[^@:/?#,]*)?@"
_WELL_FORMED = re.compile(
    rf"(?P<hosts>(?:{_CREDENTIALS}{_HOST}(?:,{_CREDENTIALS}{_HOST})*|{_HOST})(?:,{_HOST})*)"
    r"(?P<rest>(?:/[^@?#]*)?(?:\?[^@#]*)?(?:\#[^@]*)?)"
)
"""What follows ``scheme://``. In what this matches, nothing but a password can be part of one: there is no @ behind the
hosts, and none behind a host that has no user."""

_PASSWORD = re.compile(r":(?!\{password\d*\}@)[^@:,]*@")
"""Whatever stands for a password, but for a field of a template: that is no secret."""

_SCHEME = re.compile(r"[\w+.{}-]+:(//)?")

_FIELD = re.compile(r"\{\w+\}")

_NAME = re.compile(r"[A-Za-z_][\w.%-]*|%[\w.%-]+", re.ASCII)
"""What is certainly the name of a parameter, and not the rest of a value with an & in it."""

_SECRET_VALUE = re.compile(r"(pass|pwd|secret|token|credential|key)\w*\s*=|://[^/]*@", re.IGNORECASE)
"""Values that have secrets inside: a whole ODBC connection string, or another URL."""

RABBIT_OPTIONS = frozenset(
    [
        "amqp_auto_delete",
        "amqp_durable_queues",
        "conn_pool_min_size",
        "conn_pool_ttl",
        "direct_mandatory_flag",
        "enable_cancel_on_failover",
        "heartbeat_rate",
        "heartbeat_timeout_threshold",
        "hostname",
        "kombu_compression",
        "kombu_failover_strategy",
        "kombu_missing_consumer_retry_timeout",
        "kombu_reconnect_delay",
        "kombu_reconnect_splay",
        "processname",
        "rabbit_ha_queues",
        "rabbit_interval_max",
        "rabbit_login_method",
        "rabbit_qos_prefetch_count",
        "rabbit_quorum_delivery_limit",
        "rabbit_quorum_max_memory_bytes",
        "rabbit_quorum_max_memory_length",
        "rabbit_quorum_queue",
        "rabbit_retry_backoff",
        "rabbit_retry_interval",
        "rabbit_stream_fanout",
        "rabbit_transient_queues_ttl",
        "rabbit_transient_quorum_queue",
        "rpc_conn_pool_size",
        "ssl",
        "ssl_ca_file",
        "ssl_cert_file",
        "ssl_enforce_fips_mode",
        "ssl_enforce_hostname_verification",
        "ssl_key_file",
        "ssl_version",
        "use_queue_manager",
    ]
)
"""The options of oslo.messaging's driver for RabbitMQ that hold no secret. Paths of files are none."""

_SHARED_KEYS = frozenset(["autocommit", "connect_timeout", "host", "plugin", "port"])

_MYSQL_KEYS = frozenset(
    [
        "binary_prefix",
        "charset",
        "client_flag",
        "collation",
        "compress",
        "local_infile",
        "max_allowed_packet",
        "program_name",
        "read_default_file",
        "read_default_group",
        "read_timeout",
        "sql_mode",
        "ssl_capath",
        "ssl_ca",
        "ssl_cert",
        "ssl_check_hostname",
        "ssl_cipher",
        "ssl_disabled",
        "ssl_key",
        "ssl_mode",
        "ssl_verify_cert",
        "ssl_verify_identity",
        "unix_socket",
        "use_unicode",
        "write_timeout",
    ]
)

_POSTGRESQL_KEYS = frozenset(
    [
        "application_name",
        "channel_binding",
        "client_encoding",
        "dbname",
        "fallback_application_name",
        "gssencmode",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "krbsrvname",
        "load_balance_hosts",
        "passfile",
        "prepare_threshold",
        "requirepeer",
        "service",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "sslcert",
        "sslcrl",
        "sslcrldir",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslrootcert",
        "sslsni",
        "target_session_attrs",
        "tcp_user_timeout",
        "user",
    ]
)

_SQLITE_KEYS = frozenset(
    ["cache", "check_same_thread", "immutable", "isolation_level", "mode", "timeout", "uri", "vfs"]
)

_SHOWN = RABBIT_OPTIONS | _SHARED_KEYS | _MYSQL_KEYS | _POSTGRESQL_KEYS | _SQLITE_KEYS


def mask(url: str) -> str:
    """Return the URL with a mask for each host's password, and for what in its query is not known to be harmless."""
    scheme = _SCHEME.match(url)
    if scheme is None:
        return MASK if url else ""
    rest = url[scheme.end() :]
    parts = _WELL_FORMED.fullmatch(rest)
    if parts is None:
        return scheme[0] + _mask_all_but_the_end(rest)
    if scheme[1] is None and parts["hosts"]:
        return scheme[0] + MASK
    return scheme[0] + _PASSWORD.sub(f":{MASK}@", parts["hosts"]) + _mask_query(parts["rest"])


def _mask_all_but_the_end(rest: str) -> str:
    """Take everything up to the last @ for a user and a password that nobody has encoded."""
    before, at, end = rest.rpartition("@")
    # an @ in the query: what is behind it are parameters, and the last one may have begun in front of it
    return MASK if not at or "?" in before else f"{MASK}@{_mask_query(end)}"


def _mask_query(rest: str) -> str:
    before, mark, query = rest.partition("?")
    return before + mark + "&".join(_mask_parameter(parameter) for parameter in query.split("&"))


def _mask_parameter(parameter: str) -> str:
    name, equals, value = parameter.partition("=")
    if unquote(name) in _SHOWN and not _SECRET_VALUE.search(unquote(value)):
        return parameter
    if not equals:
        return parameter if not name or _FIELD.fullmatch(name) else MASK
    return f"{name if _NAME.fullmatch(name) else MASK}={value if _FIELD.fullmatch(value) else MASK}"
