# SPDX-License-Identifier: Apache-2.0
"""The net under the whole suite: it catches what it should, wherever it gets out, and nothing else."""

from __future__ import annotations

import logging
import subprocess
import textwrap
from typing import TYPE_CHECKING

import oslo_messaging
import pytest

import cellmw.filter
from cellmw import deploy
from cellmw.cell import Cell
from cellmw.engines import make_engine
from tests import leaks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from oslo_config import cfg

pytest_plugins = ["pytester"]

PASSWORD = "R4-of-this-test"

PREAMBLE = f'''
import http.client, io, logging, os, subprocess, sys, threading
import oslo_messaging, pytest
import cellmw.filter
from cellmw.cell import Cell
from cellmw.exceptions import CellUnavailable
from oslo_config import cfg

PASSWORD = "{PASSWORD}"
CELL = Cell(1, "uuid", "cell1", False, f"rabbit://u:{{PASSWORD}}@h/", "sqlite://")
URL = CELL.reveal_transport_url()
'''

LEAKS = {
    "the DEBUG log of cellmw.pool": "logging.getLogger('cellmw.pool').debug('at %s', URL)",
    "the INFO log of cellmw.a": """
        try:
            raise ValueError(URL)
        except ValueError:
            logging.getLogger('cellmw.a').info('failed', exc_info=True)
    """,
    "the DEBUG log of cellmw.b": """
        thread = threading.Thread(target=lambda: logging.getLogger('cellmw.b').debug(URL))
        thread.start()
        thread.join()
    """,
    "the WARNING log of a.library": "logging.getLogger('a.library').warning('%s is wrong', PASSWORD)",
    "stdout of the test": "print(URL)",
    "stderr of the test": "os.write(2, URL.encode())",
    "stdout that the test has captured": """
        print(URL)
        assert 'rabbit' in capsys.readouterr().out
    """,
    "stderr of a child process": """
        show = f'import sys; print({URL!r}, file=sys.stderr)'
        subprocess.run([sys.executable, '-S', '-c', show], capture_output=True)
    """,
    "the filter's 503 Service Unavailable": "cellmw.filter.fault(CellUnavailable(CELL, 'queue', URL), {}, admin=True)",
    "an HTTP response": """
        answer = io.BytesIO(f'HTTP/1.0 200 OK\\r\\n\\r\\nat {URL}'.encode())
        answer.makefile = lambda mode: answer
        response = http.client.HTTPResponse(answer)
        response.begin()
        assert response.read()
    """,
    "a message": """
        conf = cfg.ConfigOpts()
        conf([], default_config_files=[], default_config_dirs=[])
        transport = oslo_messaging.get_rpc_transport(conf, 'memory://x/')
        client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic='t'))
        from cellmw.queues.message_queue import register_messaging_groups
        register_messaging_groups(conf)
        client.cast({}, 'boot', where=URL)
        transport.cleanup()
    """,
    "a CellUnavailable": """
        with pytest.raises(CellUnavailable):
            raise CellUnavailable(CELL, 'queue') from OSError(URL)
    """,
}  # fmt: skip
"""What the failure is to name, and the body of a test that fails by it."""

HARMLESS = {
    "nothing": "pass",
    "a masked URL": "print(URL.replace(PASSWORD, '***'))",
    "what a library logs and the net of the log masks": "logging.getLogger('a.library').warning('at %s', URL)",
    "a value": "print(CELL)",
    "a marked test": "print(URL)",
}


def body(statements: str) -> str:
    """Indent the body of a test."""
    return textwrap.indent(textwrap.dedent(statements).strip(), "    ")


@pytest.mark.shows_passwords("the tests within this one are there to leak")
def test_every_way_out(pytester: pytest.Pytester) -> None:
    """A test fails by each way that a password can take, the failure names the way, and shows no password."""
    tests = [f"def test_leak_{number}(capsys):\n{body(each)}" for number, each in enumerate(LEAKS.values())]
    tests += [f"def test_harmless_{number}():\n{body(each)}" for number, each in enumerate(HARMLESS.values())]
    tests[-1] = f"@pytest.mark.shows_passwords('why')\n{tests[-1]}"
    pytester.makepyfile(PREAMBLE + "\n\n".join(tests))
    result = pytester.runpytest_inprocess("-p", "tests.leaks", "-p", "no:cacheprovider", "-q", "--tb=short")
    result.assert_outcomes(passed=len(LEAKS) + len(HARMLESS), errors=len(LEAKS))
    for place in LEAKS:
        result.stdout.re_match_lines([rf"{place} shows a password of cell cell1: .*\*\*\*"])
    result.stdout.no_fnmatch_line(f"*{PASSWORD}*")


@pytest.mark.shows_passwords("the test within this one is there to leak")
def test_not_under_nova(pytester: pytest.Pytester) -> None:
    """Where the tests in Nova run, which have an option of their own, nothing is looked for."""
    pytester.makeconftest("def pytest_addoption(parser): parser.addoption('--deployment', default='sqlite')")
    pytester.makepyfile(f"{PREAMBLE}\ndef test_leak():\n    print(URL)")
    result = pytester.runpytest_inprocess("-p", "tests.leaks", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)


@pytest.fixture
def net() -> Iterator[leaks.Net]:
    """A net of this test's own, which is under everything."""
    net = leaks.Net()
    net.spread()
    yield net
    net.fold()


@pytest.mark.parametrize(
    ("url", "passwords"),
    [
        ("rabbit://user:one@h1:5672,user:two@h2/v", ["one", "two"]),
        ("rabbit://user:one@h1:5672,h2:5673/v", ["one"]),
        ("mysql://:one@h/db", ["one"]),
        ("mysql://user:a:b%40c@h/db?charset=utf8&ssl_key_password=d&x_token=e", ["a:b%40c", "d", "e"]),
        ("mysql://user@h/db", [""]),
        ("sqlite:////x/y?a=b", []),
        ("none:///", []),
        ("encrypted", []),
    ],
)
def test_passwords_in(url: str, passwords: list[str]) -> None:
    """Each host's password and each secret value of the query is found, as it stands there."""
    assert list(leaks.passwords_in(url)) == passwords


ODD = "a%2Fb%20c%25%C3%A9%27"


@pytest.mark.parametrize(
    ("password", "shown"),
    [
        (ODD, "a/b c%é'"),
        (ODD, "a%2Fb%20c%25%C3%A9%27"),
        (ODD, "a/b%20c%25%C3%A9%27"),
        (ODD, "a%2Fb+c%25%C3%A9%27"),
        (ODD, "a/b c%\\u00e9'"),
        ("a%27b%22c-pw", "a\\'b\"c-pw"),
    ],
)
def test_however_it_is_written(net: leaks.Net, password: str, shown: str) -> None:
    """A password is found as it is, percent-encoded, and as JSON and repr() have it, whatever stood in the URL."""
    net.watch_url(f"rabbit://u:{password}@h/", "cell x")
    net.take("somewhere", f"<{shown}>")
    (line,) = net.haul()
    assert line.startswith("somewhere shows a password of cell x: ")
    assert shown not in line


def test_learned_later(net: leaks.Net) -> None:
    """What got out before anybody knew that it is a password is found all the same."""
    net.take("somewhere", PASSWORD)
    net.watch_url(f"rabbit://u:{PASSWORD}@h/", "cell x")
    assert len(net.haul()) == 1
    assert net.haul() == []


def test_no_more_than_so_much(net: leaks.Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that puts out a great deal is looked through in between, and what was found then is not forgotten."""
    monkeypatch.setattr(leaks, "MOST", 10)
    net.watch_url(f"rabbit://u:{PASSWORD}@h/", "cell x")
    net.take("somewhere", PASSWORD)
    for number in range(25):
        net.take("elsewhere", number)
    assert len(net._outputs) <= 10
    assert len(net.haul()) == 1


@pytest.mark.parametrize("password", ["", "pw", "guest", "password", "%73ecret", "{password}"])
def test_too_common(net: leaks.Net, password: str) -> None:
    """What can't be told from other words is not looked for."""
    net.watch_url(f"rabbit://u:{password}@h/", "cell x")
    net.take("somewhere", f"guest password secret {{password}} pw {password}")
    assert net.haul() == []


def test_secrets_of_options(net: leaks.Net, conf: cfg.ConfigOpts) -> None:
    """The two options that hold a secret are known as soon as somebody reads the options."""
    for name in ("shared_cache_secret", "instance_header_secret"):
        conf.set_override(name, f"{name}-{PASSWORD}", group="cellmw")
        net.take(name, f"{name}-{PASSWORD}")
    deploy.settings(conf)
    assert [line.partition(" ")[0] for line in net.haul()] == ["shared_cache_secret", "instance_header_secret"]


def test_folded() -> None:
    """Once it is folded everything is as it was."""

    def wrapped() -> list[object]:
        log = logging.Logger
        return [log.handle, log.isEnabledFor, subprocess.Popen.communicate, cellmw.filter.fault, Cell.__post_init__]

    before = wrapped()
    net = leaks.Net()
    net.spread()
    assert not [each for each in wrapped() if each in before]
    net.fold()
    assert wrapped() == before


def test_every_url(net: leaks.Net, conf: cfg.ConfigOpts) -> None:
    """The password of each URL that an engine or a transport is made of is known, be it no cell's."""
    make_engine("postgresql+psycopg://u:of-an-engine@h/db", {}, pre_ping=False).dispose()
    oslo_messaging.TransportURL.parse(conf, "rabbit://u:of-a-transport@h/")
    net.take("one", "of-an-engine")
    net.take("two", "of-a-transport")
    assert [line.rpartition(":")[0] for line in net.haul()] == [
        "one shows a password of a database URL",
        "two shows a password of a transport URL",
    ]


def test_exchanges(net: leaks.Net) -> None:
    """What the functional tests' own client gets is in the net."""

    class Exchange:
        def start_response(self, status: str, headers: list[tuple[str, str]]) -> None:
            """Take the headers."""

        def finish(self) -> bytes:
            return b"in-a-body"

    net.under_exchanges(Exchange)
    Exchange().start_response("200 OK", [("X-Where", "in-a-header")])
    Exchange().finish()
    for password in ("in-a-body", "in-a-header"):
        net.watch_for(password, "cell x")
    assert [line.partition(" shows")[0] for line in net.haul()] == ["an HTTP response's header", "an HTTP response"]


def test_levels_stay(net: leaks.Net, caplog: pytest.LogCaptureFixture) -> None:
    """What a logger's level keeps from its handlers is still kept from them."""
    logger = logging.getLogger("cellmw.quiet")
    logger.setLevel(logging.ERROR)
    logger.warning("for the net alone: %s", "known-to-nobody-else")
    logger.setLevel(logging.NOTSET)
    net.watch_for("known-to-nobody-else", "cell x")
    assert len(net.haul()) == 1
    assert caplog.records == []
