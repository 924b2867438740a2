# SPDX-License-Identifier: Apache-2.0
"""The example of a look-up that no mapping helps with: a console token, of which all cells are asked at once."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from time import monotonic
from typing import TYPE_CHECKING

import pytest
import sqlalchemy
from sqlalchemy import orm

from cellmw.deadline import SLOW
from examples.compute import tokens
from examples.compute.context import ContextFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cellmw import CellFilter
    from tests.functional.conftest import Answer, Deployment, Exchange

    Ask = Callable[[str], Answer]

INSTANCE = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01"


@pytest.fixture(autouse=True)
def known_tokens(deployment: Deployment) -> None:
    """A token in each of the two cells that have hosts, called as its cell, which is where the console is."""
    for cell in ("cell1", "cell2"):
        engine = sqlalchemy.create_engine(deployment.database_url(cell))
        tokens.Base.metadata.create_all(engine)
        with orm.Session(engine) as session, session.begin():
            row = {"token_hash": tokens.hashed(cell), "instance_uuid": INSTANCE, "host": cell, "port": 5900}
            session.add(tokens.ConsoleToken(**row))
        engine.dispose()


@pytest.fixture
def ask(make_filter: Callable[..., CellFilter], exchange: type[Exchange]) -> Ask:
    """Ask the API, behind the filters that a service has in front of it, for a token."""
    app = ContextFilter(make_filter(tokens.TokensAPI()))
    return lambda token: exchange(f"/os-console-auth-tokens/{token}").fetch(app)


@pytest.fixture
def cell2_hangs(deployment: Deployment, ask: Ask) -> Iterator[None]:
    """cell2 lets nobody read, once it has been in use, until the test has ended."""
    ask("cell2")
    with closing(sqlite3.connect(deployment.file("cell2"))) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


def test_found(ask: Ask) -> None:
    """A token is found wherever it is."""
    for cell in ("cell1", "cell2"):
        answer = ask(cell)
        console = {"instance_uuid": INSTANCE, "host": cell, "port": 5900}
        assert (answer.code, answer.json) == (200, {"console": console})


def test_not_found(ask: Ask) -> None:
    """What no cell knows is not there."""
    assert [ask(token).code for token in ("nosuch", "")] == [404, 404]


@pytest.mark.usefixtures("cell2_hangs")
def test_found_beside_a_cell_that_hangs(ask: Ask) -> None:
    """A cell that does not answer delays nothing that another one knows."""
    began = monotonic()
    assert ask("cell1").json["console"]["host"] == "cell1"
    assert monotonic() - began < SLOW


@pytest.mark.usefixtures("cell2_hangs")
def test_perhaps_in_a_cell_that_hangs(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody knows while a cell does not answer may be there: that is no 404."""
    monkeypatch.setattr(tokens, "PATIENCE", 0.1)
    assert ask("cell2").code == 503
