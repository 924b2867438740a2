# SPDX-License-Identifier: Apache-2.0
"""pytest plugin: the passwords that tests use -> a failure of each test of which one got out.

It remembers the passwords of every URL that a cell, an engine or a transport is made of, and the secrets among the
options. When a test has ended it looks for each of them, as it is and encoded, in all that the test has put out:

* every log record of every logger, from DEBUG up, whatever the levels are. A record of cellmw's own is taken as it is;
  one of a library comes through ``cellmw.log.SecretFilter``, as in a service that follows the manual
* stdout and stderr, those that a test has captured for itself and those of its child processes included
* the filter's own answers, and what tests got as HTTP clients: status, headers and bodies
* what oslo.messaging's drivers send: messages, replies, errors, each with its context
* errors of ours that a test has expected, with their attributes and all that a traceback would show of what led to them

It does not see what a child process logs to nowhere, what is pickled, and what is shown of a frame's variables:
``tests/functional/test_secrets.py`` has tests of these. The source lines in tracebacks are the tests' own, and not
looked at. A test whose very purpose is to show a password says so::

    @pytest.mark.shows_passwords("an export is to be imported again")
"""

from __future__ import annotations

import copy
import functools
import http.client
import json
import logging
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus, unquote

import oslo_messaging
import pytest
import sqlalchemy
from oslo_db.sqlalchemy import engines as oslo_engines
from oslo_messaging._drivers import common

import cellmw.conf
import cellmw.filter
from cellmw.cell import Cell
from cellmw.exceptions import CellmwError
from cellmw.log import SecretFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SHORTEST = 6
"""A shorter password, such as ``pw``, is found in words that have nothing to do with it."""

SHORTEST_OPTION = 16
"""What is in an option to sign or to encrypt with is no password that somebody has to type."""

COMMON = frozenset({"password", "secret", "username"})
"""Nor can these be told from the words that they are. (RabbitMQ's ``guest``, a user as well, is too short already.)"""

MOST = 50_000
"""How many outputs of a test are kept to its end; when there are more they are looked through and dropped."""

_SECRET_NAME = re.compile(r"passw(or)?d|pwd|secret|token", re.IGNORECASE)

_EXCERPT = 60
"""How many characters around a password a failure shows."""


def passwords_in(url: str) -> Iterator[str]:
    """Find each host's password, and the values of query keys that sound secret, each as it stands there."""
    _, _, rest = url.partition("://")
    before_query, _, query = rest.partition("?")
    credentials, at, _ = before_query.rpartition("@")
    if at:
        for host in f"{credentials}@".split(","):
            user_and_password, at, _ = host.rpartition("@")
            if at:
                yield user_and_password.partition(":")[2]
    for parameter in query.split("&"):
        name, _, value = parameter.partition("=")
        if _SECRET_NAME.search(unquote(name)):
            yield value


def forms_of(password: str) -> set[str]:
    """Return the password as people, URLs, JSON and repr() write it."""
    plain = {password, unquote(password)}
    encoded = {encode(each) for each in plain for encode in (quote, quote_plus, functools.partial(quote, safe=""))}
    return plain | encoded | {json.dumps(each)[1:-1] for each in plain} | {repr(each)[1:-1] for each in plain}


class Net:
    """What is looked for, and where. Lives as long as a test run. Any thread may put something in.

    :ivar patches: what is different while it is spread
    """

    def __init__(self) -> None:
        """Know of nothing yet."""
        self.patches = pytest.MonkeyPatch()
        self._passwords: dict[str, str] = {}
        # a dict for its order, and because much is said more than once
        self._outputs: dict[tuple[str, str], None] = {}
        self._leaks: dict[str, None] = {}

    def watch_for(self, secret: str | None, whose: str) -> None:
        """Look for this from now on, and in what is in the net already; not if it can't be told from other words."""
        if secret and len(plain := unquote(secret)) >= SHORTEST and plain.lower() not in COMMON and "{" not in plain:
            for form in forms_of(secret):
                self._passwords.setdefault(form, whose)

    def watch_url(self, url: object, whose: str) -> None:
        """Look for the passwords of a URL."""
        if isinstance(url, sqlalchemy.URL):
            url = url.render_as_string(hide_password=False)
        if isinstance(url, str):
            for password in passwords_in(url):
                self.watch_for(password, whose)

    def take(self, output: str, text: object) -> None:
        """Take something that has got out.

        :param output: where
        """
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        if text:
            self._outputs[output, str(text)] = None
            if len(self._outputs) > MOST:
                self._sift()

    def haul(self) -> list[str]:
        """Return a line for each output with a password in it, the password masked, and empty the net."""
        self._sift()
        leaks, self._leaks = self._leaks, {}
        return list(leaks)

    def _sift(self) -> None:
        """Look through what is there, and keep no more of it than lines about leaks."""
        outputs, self._outputs = self._outputs, {}
        everything = "\0".join(text for _, text in list(outputs))
        found = [password for password in list(self._passwords) if password in everything]
        if not found:
            return
        anyone = _any_of(found)
        for output, text in list(outputs):
            if match := anyone.search(text):
                excerpt = self.masked(text[max(0, match.start() - _EXCERPT) : match.end() + _EXCERPT])
                self._leaks[f"{output} shows a password of {self._passwords[match[0]]}: {excerpt!r}"] = None

    def masked(self, text: str) -> str:
        """Mask all that it knows in this text."""
        return _any_of(list(self._passwords)).sub("***", text) if self._passwords else text

    def spread(self) -> None:
        """Put it under everything, until :meth:`fold`."""
        self._find_passwords()
        self._under_logs()
        self._under_output()
        self._under_http()
        self._under_messages()
        self._under_errors()

    def fold(self) -> None:
        """Leave everything as it was."""
        self.patches.undo()

    def _before(self, owner: Any, name: str, look: Callable[..., object]) -> None:
        """Have a look at the arguments of each call."""
        self._wrap(owner, name, lambda call, *args, **kwargs: (look(*args, **kwargs), call(*args, **kwargs))[1])

    def _after(self, owner: Any, name: str, look: Callable[[Any], object]) -> None:
        """Have a look at what each call returns."""

        def wrapper(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            look(result)
            return result

        self._wrap(owner, name, wrapper)

    def _wrap(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, *args, **kwargs)

        self.patches.setattr(owner, name, wrapped)

    def _find_passwords(self) -> None:
        def made(cell: Cell, *urls: object) -> None:
            for url in urls:
                self.watch_url(url, f"cell {cell}")

        def connected(sql_connection: object, *_: object, **__: object) -> None:
            self.watch_url(sql_connection, "a database URL")

        def parsed(conf: object, url: object = None, *_: object) -> None:
            self.watch_url(url, "a transport URL")

        def configured(settings: Any) -> None:
            for name in ("shared_cache_secret", "instance_header_secret"):
                secret = getattr(settings, name)
                # where Hypothesis makes up secrets and headers, short ones are the same
                if secret and len(secret) >= SHORTEST_OPTION:
                    self.watch_for(secret, f"[cellmw] {name}")

        self._before(Cell, "__post_init__", made)
        self._before(oslo_engines, "create_engine", connected)
        self._before(oslo_messaging.TransportURL, "parse", parsed)
        self._after(cellmw.conf, "settings", configured)

    def _under_logs(self) -> None:
        is_enabled_for, handle = logging.Logger.isEnabledFor, logging.Logger.handle

        def is_worth_a_record(logger: logging.Logger, level: int) -> bool:
            return level >= logging.DEBUG or is_enabled_for(logger, level)

        def take_and_handle(logger: logging.Logger, record: logging.LogRecord) -> None:
            self.take(f"the {record.levelname} log of {record.name}", text_of_record(record))
            if is_enabled_for(logger, record.levelno):
                handle(logger, record)

        self.patches.setattr(logging.Logger, "isEnabledFor", is_worth_a_record)
        self.patches.setattr(logging.Logger, "handle", take_and_handle)

    def _under_output(self) -> None:
        def take(output: str, result: Iterable[object]) -> None:
            for stream, text in zip(("stdout", "stderr"), result, strict=True):
                self.take(f"{stream} {output}", text)

        self._after(pytest.CaptureFixture, "readouterr", functools.partial(take, "that the test has captured"))
        self._after(subprocess.Popen, "communicate", functools.partial(take, "of a child process"))

    def _under_http(self) -> None:
        def fault(answer: Any) -> None:
            self.take(f"the filter's {answer.status}", f"{answer.headerlist} {answer.body!r}")

        def read(call: Callable[..., bytes], response: http.client.HTTPResponse, *args: Any, **kwargs: Any) -> bytes:
            content = call(response, *args, **kwargs)
            self.take("an HTTP response's header", response.headers)
            self.take("an HTTP response", content)
            return content

        self._after(cellmw.filter, "fault", fault)
        self._wrap(http.client.HTTPResponse, "read", read)

    def under_exchanges(self, exchange: Any) -> None:
        """Take what the functional tests' own HTTP client gets to see."""
        self._before(exchange, "start_response", lambda _, *answer: self.take("an HTTP response's header", answer))
        self._after(exchange, "finish", functools.partial(self.take, "an HTTP response"))

    def _under_messages(self) -> None:
        self._after(common, "serialize_msg", functools.partial(self.take, "a message"))

    def _under_errors(self) -> None:
        def expected(_: object, kind: object, error: BaseException | None, *__: object) -> None:
            if isinstance(error, CellmwError):
                self.take(f"a {type(error).__name__}", f"{text_of_error(error)} {error!r} {vars(error)}")

        self._before(pytest.RaisesExc, "__exit__", expected)


def _any_of(passwords: list[str]) -> re.Pattern[str]:
    # the longest first: one may be a part of another
    return re.compile("|".join(map(re.escape, sorted(passwords, key=len, reverse=True))))


def text_of_record(record: logging.LogRecord) -> str:
    """Return what a handler could show of the record, without the lines of source code."""
    if record.name.partition(".")[0] != "cellmw":
        record = copy.copy(record)
        SecretFilter().filter(record)
    try:
        text = record.getMessage()
    except Exception as error:  # noqa: BLE001 - it is not for us to say that a test logs nonsense
        text = f"{record.msg} {record.args} {error!r}"
    if record.exc_info and record.exc_info[1] is not None:
        text += f" {text_of_error(record.exc_info[1])}"
    return text


def text_of_error(error: BaseException) -> str:
    """Return what a traceback shows of the error and all that has led to it, the lines of source code left out."""
    waiting, texts = [error], []
    for each in waiting:
        texts.append(f"{type(each).__name__}: {each} {getattr(each, '__notes__', '')}")
        cause = each.__cause__ if each.__cause__ or each.__suppress_context__ else each.__context__
        members = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        waiting += [other for other in (cause, *members) if other is not None and other not in waiting]
    return "\n".join(texts)


_NET = pytest.StashKey[Net]()

MARKER = "shows_passwords(why): what this test puts out may have passwords in it"


def pytest_configure(config: pytest.Config) -> None:
    """Spread the net; not under the tests in Nova, which has passwords of its own and an environment of its own."""
    config.addinivalue_line("markers", MARKER)
    if config.getoption("deployment", default=None) is None:  # that is their option
        config.stash[_NET] = net = Net()
        net.spread()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Fold it."""
    if (net := config.stash.get(_NET, None)) is not None:
        net.fold()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Put it under the functional tests' client, where that is in use."""
    net, client = session.config.stash.get(_NET, None), sys.modules.get("tests.functional.conftest")
    if net is not None and client is not None:
        net.under_exchanges(client.Exchange)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Fail the test when it has ended, its fixtures included, and a password is in the net."""
    try:
        return (yield)
    finally:
        if (net := item.config.stash.get(_NET, None)) is not None:
            for _, key, content in item._report_sections:
                if key in ("stdout", "stderr"):
                    net.take(f"{key} of the test", content)
            leaks = net.haul()
            if leaks and item.get_closest_marker("shows_passwords") is None:
                # pytest shows with a failure what the test has printed
                shown = [(when, key, net.masked(content)) for when, key, content in item._report_sections]
                item._report_sections[:] = shown
                pytest.fail("\n".join(leaks), pytrace=False)
