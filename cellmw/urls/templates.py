# SPDX-License-Identifier: Apache-2.0
"""A URL template and a default URL -> the URL.

A template has fields in braces: ``{scheme}``, ``{username}``, ``{password}``, ``{hostname}``, ``{port}``, ``{path}``,
``{query}`` and ``{fragment}``, which stand for the parts of the default URL, and ``{username1}``, ``{password1}``,
``{hostname1}``, ``{port1}``, ``{username2}`` and so on for those of one of its hosts. Nova has the same, and what it
makes of a template is made of it here. The differences are where Nova makes a URL that nobody can use, or gives up and
uses the template itself:

* Nothing else in braces is a field, and a brace that belongs to none stays. Only where the whole text is one that Nova
  can format do ``{{`` and ``}}`` stand for one brace.
* What is filled in is encoded as its place in the template wants; a whole query is taken as it is. An IPv6 address gets
  its brackets.
* What the default URL has not is left out with what is in front of it: the colon of ``:{port}`` and of
  ``:{password}``, the ``@`` of ``{username}@``, the question mark of ``?{query}``.
* The path begins behind one slash, not behind all of them: ``sqlite:////var/lib/x.db`` keeps its absolute path.
* Where the default URL has several hosts, ``{username}:{password}@{hostname}:{port}`` stands for all of them, as in
  Nova. Alone a field without a number stands for what all hosts have in common, and is an error where they differ.

What was filled in is not looked at again, whatever braces it has. Nothing is checked here (checks.py).
"""

from __future__ import annotations

import re
from string import Formatter
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote

from cellmw.exceptions import UrlRefused
from cellmw.urls.parts import Host, split, split_host, split_hosts

if TYPE_CHECKING:
    from collections.abc import Callable

_HOST_FIELDS = "username|password|hostname|port"

_NAME = re.compile(rf"(?P<of_host>{_HOST_FIELDS})(?P<number>[1-9]\d*)?|scheme|path|query|fragment", re.ASCII)

_FIELD = re.compile(rf"\{{({_NAME.pattern})\}}", re.ASCII)

_MARK = "\0"
"""Stands around the name of a field while the URL is made: it can't be part of one."""

_MARKED = re.compile(rf"{_MARK}(\w+){_MARK}", re.ASCII)

_NO_PART_OF_A_HOST = re.compile(r"[\s/?#@,\[\]\x00-\x1f\x7f]")

_NO_PART_OF_A_SCHEME = re.compile(r"[^\w.+-]")

_BYTES_AS_THEY_ARE = "surrogateescape"
"""What was encoded in something else than UTF-8 is encoded likewise again."""


def fields(stored: str) -> set[str]:
    """Return the names of the fields of a template; a URL that is complete has none."""
    return set(_MARKED.findall(_mark(stored)))


def fill_in(stored: str, default: str | None) -> str:
    """Return the URL that a template stands for.

    :param stored: a template, or a URL that is complete
    :param default: what the fields are filled in from
    :raises UrlRefused: if it can't be filled in; the message names the field, and what is missing
    """
    marked = _mark(stored)
    names = _MARKED.findall(marked)
    if not names:
        return marked
    if not default:
        raise UrlRefused(f"{{{names[0]}}}: there is no default URL")
    return _Filling(_Default(default)).url(marked)


def literal(url: str) -> str:
    """Return the text that is filled in to this URL, whatever braces it has."""
    return url.replace("{", "%7B").replace("}", "%7D")


def _mark(stored: str) -> str:
    """Put the fields between marks, and leave one of two braces where Nova does."""
    if _MARK in stored:
        raise UrlRefused("it has a NUL in it")
    try:
        pieces = list(Formatter().parse(stored))
    except ValueError:
        pieces = None
    if pieces is None or not all(_is_plain(*piece) for piece in pieces):
        return _FIELD.sub(rf"{_MARK}\1{_MARK}", stored)
    return "".join(text if name is None else f"{text}{_MARK}{name}{_MARK}" for text, name, _, _ in pieces)


def _is_plain(_: str, name: str | None, specification: str | None, conversion: str | None) -> bool:
    return name is None or bool(_NAME.fullmatch(name) and not specification and not conversion)


class _Default:
    """The URL that fields are filled in from."""

    def __init__(self, url: str) -> None:
        parts = split(url)
        authority = "" if parts is None else parts.authority or ""
        if parts is None or (":" in authority and "@" not in authority and "@" in url):
            raise UrlRefused(
                "the default URL can't be read: special characters in a user or a password have to be percent-encoded"
            )
        self.query = parts.query or ""
        self.fragment = parts.fragment or ""
        self.hosts = [split_host(host) for host in split_hosts(authority)]
        self._others = {
            "scheme": parts.scheme,
            "path": _decoded(parts.path.removeprefix("/")),
            "query": self.query,
            "fragment": self.fragment,
        }

    def value(self, name: str) -> str | None:
        """Return what a field stands for, decoded; None if there is nothing.

        :raises UrlRefused: if there is no such host, or more than one that it could be of
        """
        if name in self._others:
            return self._others[name]
        parts = _NAME.fullmatch(name)
        assert parts is not None
        if parts["number"] is None:
            return self._in_common(name)
        if int(parts["number"]) > len(self.hosts):
            raise UrlRefused(f"{{{name}}}: the default URL has {_counted(len(self.hosts))}")
        return _of_host(self.hosts[int(parts["number"]) - 1], parts["of_host"])

    def _in_common(self, name: str) -> str | None:
        values = {_of_host(host, name) for host in self.hosts} or {None}
        if len(values) > 1:
            raise UrlRefused(
                f"{{{name}}}: the default URL has {len(self.hosts)} hosts, and this is not the same for all of them: "
                f"number it, as in {{{name}1}}"
            )
        return values.pop()


def _counted(hosts: int) -> str:
    return ("no host", "only 1 host")[hosts] if hosts < 2 else f"only {hosts} hosts"


def _of_host(host: Host, name: str) -> str | None:
    value: str | None = getattr(host, name)
    return value if value is None or name in ("hostname", "port") else _decoded(value)


def _decoded(text: str) -> str:
    return unquote(text, errors=_BYTES_AS_THEY_ARE)


class _Field(NamedTuple):
    """A field at its place."""

    name: str
    value: str


class _Filling:
    """One template on its way to being a URL, its fields between marks. Lives as long as one call."""

    def __init__(self, default: _Default) -> None:
        self._default = default

    def url(self, marked: str) -> str:
        """Return the whole URL."""
        parts = split(marked)
        if parts is None:
            raise UrlRefused("it is a template of no URL: there is no :// in it")
        return "".join(
            [
                f"{self._filled(parts.scheme, _in_scheme)}:",
                "" if parts.authority is None else f"//{self._hosts(parts.authority)}",
                self._filled(parts.path, _in_path),
                _behind("?", None if parts.query is None else self._query(parts.query)),
                _behind("#", self._as_it_is("fragment", parts.fragment)),
            ]
        )

    def _filled(self, text: str, encode: Callable[[_Field], str]) -> str:
        return _MARKED.sub(lambda mark: encode(_Field(mark[1], self._default.value(mark[1]) or "")), text)

    def _or_nothing(self, text: str | None) -> str | None:
        """Fill in; None for what is but a field that there is nothing for."""
        alone = _MARKED.fullmatch(text or "")
        if text is None or (alone and not self._default.value(alone[1])):
            return None
        return self._filled(text, _anywhere)

    def _as_it_is(self, name: str, text: str | None) -> str | None:
        """Fill in; a field that is all of it stays encoded as the default URL has it, None where there is nothing."""
        if text != f"{_MARK}{name}{_MARK}":
            return None if text is None else self._filled(text, _anywhere)
        return self._default.value(name) or None

    def _hosts(self, authority: str) -> str:
        hosts: list[str] = []
        for host in split_hosts(authority):
            if host == _ALL_HOSTS and len(self._default.hosts) > 1:
                numbers = range(1, len(self._default.hosts) + 1)
                hosts += [_MARKED.sub(rf"{_MARK}\g<1>{number}{_MARK}", host) for number in numbers]
            else:
                hosts.append(host)
        return ",".join(self._host(split_host(host)) for host in hosts)

    def _host(self, host: Host) -> str:
        hostname = self._filled(host.hostname, _in_host)
        place = (f"[{hostname}]" if ":" in hostname else hostname) + _behind(":", self._or_nothing(host.port))
        username, password = self._or_nothing(host.username), self._or_nothing(host.password)
        if username is None and password is None:
            return place
        return f"{username or ''}{_behind(':', password)}@{place}"

    def _query(self, query: str) -> str | None:
        filled = (self._as_it_is("query", parameter) for parameter in query.split("&"))
        return "&".join(parameter for parameter in filled if parameter is not None) or None


_ALL_HOSTS = f"{_MARK}username{_MARK}:{_MARK}password{_MARK}@{_MARK}hostname{_MARK}:{_MARK}port{_MARK}"


def _behind(delimiter: str, text: str | None) -> str:
    return "" if text is None else f"{delimiter}{text}"


def _anywhere(field: _Field) -> str:
    return quote(field.value, safe="", errors=_BYTES_AS_THEY_ARE)


def _in_path(field: _Field) -> str:
    return quote(field.value, safe="/", errors=_BYTES_AS_THEY_ARE)


def _in_host(field: _Field) -> str:
    return _unless(_NO_PART_OF_A_HOST, field, "the name of a host")


def _in_scheme(field: _Field) -> str:
    return _unless(_NO_PART_OF_A_SCHEME, field, "the name of a driver")


def _unless(forbidden: re.Pattern[str], field: _Field, what: str) -> str:
    # there is no way to encode anything in these two places
    if forbidden.search(field.value):
        raise UrlRefused(f"{{{field.name}}}: what it stands for can't be part of {what}")
    return field.value
