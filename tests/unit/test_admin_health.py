# SPDX-License-Identifier: Apache-2.0
"""Whether cells answer, in words that show nothing of their URLs."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pymysql
import pytest

from cellmw import deploy
from cellmw.admin import health
from cellmw.admin.health import Health, probe
from tests.unit.conftest import PASSWORD, PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from oslo_config import cfg

    from cellmw.admin.health import CellHealth
    from cellmw.cell import Cell


@pytest.fixture
def ask(conf: cfg.ConfigOpts) -> Callable[..., dict[Cell, CellHealth]]:
    """Ask these cells."""
    limits = deploy.limits(deploy.settings(conf))
    return lambda *cells, seconds=PATIENCE: probe(conf, cells, limits, seconds)


def test_answers(ask: Callable[..., Any], cell0: Cell, cell1: Cell) -> None:
    """What answers is said with how long it took; what there is not, and what can't be asked, is neither."""
    found = ask(cell0, cell1)
    assert list(found) == [cell0, cell1]
    assert found[cell0].queue == Health(None, "it has none")
    assert found[cell1].queue == Health(None, "not asked: it is no RabbitMQ")
    for cell in (cell0, cell1):
        assert found[cell].database.answers
        assert found[cell].database.says.startswith("answers in ")


def test_refused(ask: Callable[..., Any], new_cell: Callable[..., Cell]) -> None:
    """A port on which nobody listens is said to refuse the connection."""
    cell = new_cell(
        "refusing",
        transport_url=f"rabbit://user:{PASSWORD}@127.0.0.1:1/",
        database_connection=f"mysql+pymysql://user:{PASSWORD}@127.0.0.1:1/db",
    )
    assert ask(cell)[cell] == (
        Health(False, "does not answer: the connection is refused"),
        Health(False, "does not answer: ConnectionRefusedError"),
    )


def test_silent(ask: Callable[..., Any], new_cell: Callable[..., Cell], cell1: Cell) -> None:
    """One that takes connections and says nothing is left at the deadline, and holds up no other."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        silent = new_cell(
            "silent",
            transport_url=f"rabbit://user:{PASSWORD}@127.0.0.1:{port}/",
            database_connection=f"postgresql+psycopg://user:{PASSWORD}@127.0.0.1:{port}/db",
        )
        found = ask(silent, cell1, seconds=0.5)
    assert found[silent] == (Health(False, "does not answer in time"),) * 2
    assert found[cell1].database.answers


def test_silent_for_as_long_as_a_probe(ask: Callable[..., Any], new_cell: Callable[..., Cell]) -> None:
    """A probe has a bound of its own, which is said."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        url = f"mysql+pymysql://user:{PASSWORD}@127.0.0.1:{server.getsockname()[1]}/db"
        silent = new_cell("silent", database_connection=url)
        assert ask(silent)[silent].database == Health(False, "does not answer within 2 s")


def test_unusable(ask: Callable[..., Any], new_cell: Callable[..., Cell]) -> None:
    """Of a record that nobody can use it is said what is wrong with it."""
    odd = new_cell("odd", transport_url=f"nosuch://user:{PASSWORD}@host/")
    says = "can't be used: no oslo.messaging driver 'nosuch' is installed"
    assert ask(odd)[odd] == (Health(False, says), Health(False, says))


def test_everything_is_closed(
    ask: Callable[..., Any], cell1: Cell, cell2: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is opened to ask is closed."""
    opened: list[Any] = []
    open_handles = deploy.open_handles

    def remember(*arguments: Any) -> Any:
        opened.append(open_handles(*arguments))
        return opened[-1]

    monkeypatch.setattr(deploy, "open_handles", remember)
    ask(cell1, cell2)
    assert [handles.closed for handles in opened] == [True, True]


def test_missing_file(ask: Callable[..., Any], new_cell: Callable[..., Cell], tmp_path: Path) -> None:
    """A SQLite file that is not there is not made by looking for it."""
    lost = new_cell("lost", database_connection=f"sqlite:///{tmp_path}/gone.sqlite")
    assert ask(lost)[lost].database == Health(False, "there is no such file")
    assert not (tmp_path / "gone.sqlite").exists()


def test_sqlite_in_memory(ask: Callable[..., Any], new_cell: Callable[..., Cell]) -> None:
    """One in memory has no file."""
    cell = new_cell("memory", database_connection="sqlite://")
    assert ask(cell)[cell].database.answers


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (pymysql.err.OperationalError(1045, "Access denied for 'u'@'h'"), "refuses the user or the password"),
        (pymysql.err.OperationalError(1698, "Access denied for 'u'@'h'"), "refuses the user or the password"),
        (psycopg.OperationalError('password authentication failed for user "u"'), "refuses the user or the password"),
        (pymysql.err.OperationalError(1049, "Unknown database 'd'"), "has no database of that name"),
        (psycopg.OperationalError('FATAL:  database "d" does not exist'), "has no database of that name"),
        (pymysql.err.OperationalError(1044, "Access denied"), "does not let the user in"),
        (pymysql.err.OperationalError(2003, "[Errno -2] Name or service not known"), "its host has no address"),
        (psycopg.OperationalError("could not translate host name"), "its host has no address"),
        (psycopg.OperationalError('role "u" does not exist'), "refuses the user or the password"),
        (
            pymysql.err.OperationalError(2026, "SSL connection error: x"),
            "does not take the TLS of the URL, or has one that fails",
        ),
        (psycopg.OperationalError("something else"), "does not answer: OperationalError"),
        (pymysql.err.OperationalError(2013, "Lost connection to h"), "does not answer: OperationalError 2013"),
    ],
)
def test_words(error: Exception, says: str) -> None:
    """What a driver says becomes a few words, without what it quotes."""
    assert health.database_words(error) == says
