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

_PASSWORD = re.compile(r":[^@:,]*@")

_SCHEME = re.compile(r"[\w+.{}-]+:(//)?")

_SECRET_NAME = re.compile(r"pass|pwd|secret|token|credential|(api|access|private|account)_?key", re.IGNORECASE)

_SECRET_VALUE = re.compile(rf"({_SECRET_NAME.pattern})\w*\s*=|://[^/]*@", re.IGNORECASE)
"""Values that have secrets inside: a whole ODBC connection string, or another URL."""


def mask(url: str) -> str:
    """Return the URL with a mask for each host's password and for the values of query keys that sound secret."""
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
    _, at, end = rest.rpartition("@")
    return f"{MASK}@{_mask_query(end)}" if at else MASK


def _mask_query(rest: str) -> str:
    before, mark, query = rest.partition("?")
    return before + mark + "&".join(_mask_parameter(parameter) for parameter in query.split("&"))


def _mask_parameter(parameter: str) -> str:
    name, equals, value = parameter.partition("=")
    is_secret = _SECRET_NAME.search(unquote(name)) or _SECRET_VALUE.search(unquote(value))
    return f"{name}={MASK}" if equals and is_secret else parameter
