# SPDX-License-Identifier: Apache-2.0
"""The demo with its API and its workers as processes, on real servers: it works, and leaves them as it found them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import sqlalchemy

from examples.compute import demo, models, witness
from examples.compute.places import MARK

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests import servers

FOREIGN = "CREATE TABLE somebody (name VARCHAR(10))"


@pytest.fixture(autouse=True)
def leaks_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leak is an error in the demo's processes, too."""
    monkeypatch.setenv("PYTHONWARNINGS", "error::ResourceWarning")


def run(url: str, *statements: str) -> list[tuple[object, ...]]:
    """Run statements in a database, and return what the last one finds."""
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        results = [connection.exec_driver_sql(statement) for statement in statements]
        return [tuple(row) for row in results[-1]] if results[-1].returns_rows else []


def tables(url: str) -> list[str]:
    """Return the names of the tables in a database."""
    return sorted(sqlalchemy.inspect(sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)).get_table_names())


def queues(broker: servers.Broker, url: str) -> list[str]:
    """Return the names of the queues in a vhost, but for those that go by themselves."""
    listed = broker.administer("list_queues", "-p", url.rpartition("/")[2], "name").split()
    return [name for name in listed[1:] if not name.startswith("compute_fanout_")]


def test_succeeds(
    new_mariadb_url: Callable[[], str],
    postgresql_url: str,
    new_rabbit_url: Callable[[], str],
    rabbitmq_server: servers.Broker,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Every request reaches its own cell, and nothing is left in databases and queues that were empty."""
    environ = {
        "API_DB": new_mariadb_url(),
        "CELL1_DB": postgresql_url,
        "CELL1_MQ": new_rabbit_url(),
        "CELL2_DB": new_mariadb_url(),
        "CELL2_MQ": new_rabbit_url(),
    }
    assert demo.main([], environ) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    assert re.search(r"^reboot web-1 .* 202 +cell1 +cell1 +cell1$", printed.out, re.MULTILINE)
    assert re.search(r"^reboot web-2 .* 202 +cell2 +cell2 +cell2$", printed.out, re.MULTILINE)
    left = {name: tables(url) if name.endswith("DB") else queues(rabbitmq_server, url) for name, url in environ.items()}
    assert left == dict.fromkeys(environ, [])


def test_part(postgresql_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """What is not given is made; tables that were there stay, and are empty again."""
    models.create_all(postgresql_url)
    assert demo.main([], {"CELL1_DB": postgresql_url}) == 0
    assert capfd.readouterr().err == ""
    assert tables(postgresql_url) == ["instances"]
    assert run(postgresql_url, "SELECT * FROM instances") == []


def test_after_a_killed_one(postgresql_url: str, mariadb_url: str) -> None:
    """What a demo has left that was killed is removed, but for a table that it had found."""


@pytest.mark.parametrize("variable", ["API_DB", "CELL0_DB", "CELL2_DB"])
def test_data(variable: str, postgresql_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A database in which there is anything is refused, and left alone."""
    run(postgresql_url, "CREATE TABLE somebody (name VARCHAR(10))", "INSERT INTO somebody VALUES ('me')")
    assert demo.main([], {variable: postgresql_url}) == 2
    assert capfd.readouterr() == ("", f"{variable} holds data that is not the demo's, in table somebody\n")
    assert tables(postgresql_url) == ["somebody"]
