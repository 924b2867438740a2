# SPDX-License-Identifier: Apache-2.0
"""The demo with its API and its workers as processes, on real servers: it works, and leaves them as it found them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import amqp
import pytest
import sqlalchemy

from cellmw.engines import make_engine
from cellmw.store import migrations
from examples.compute import demo, models
from examples.compute.places import MARK, Places

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests import servers

DECOY = "INSERT INTO instances (uuid, project_id, name, flavor, state, reboots) VALUES ('u', 'p', 'n', 'f', 's', 0)"


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[[dict[str, str]], str]:
    """Run the demo, which has to refuse these places, and return what it says."""

    def start(environ: dict[str, str]) -> str:
        assert demo.main([], environ) == 2
        printed = capfd.readouterr()
        assert printed.out == ""
        return printed.err

    return start


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
    assert left == {variable: [] for variable in environ}


def test_part(postgresql_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """What is not given is made; tables that were there stay, and are empty again."""
    models.create_all(postgresql_url)
    assert demo.main([], {"CELL1_DB": postgresql_url}) == 0
    assert capfd.readouterr().err == ""
    assert tables(postgresql_url) == ["instances"]
    assert run(postgresql_url, "SELECT * FROM instances") == []


def test_after_a_killed_one(postgresql_url: str, mariadb_url: str, tmp_path: Path) -> None:
    """What a demo has left that was killed is removed, but for a table that it had found."""
    models.create_all(postgresql_url)
    environ = {"API_DB": mariadb_url, "CELL1_DB": postgresql_url}
    for place in Places.choose(environ, tmp_path).given:
        place.occupy("killed")
    migrations.sync(make_engine(mariadb_url, {}, pre_ping=False))
    run(mariadb_url, "INSERT INTO cell_mappings (uuid, transport_url, database_connection) VALUES ('u', 't', 'd')")
    run(postgresql_url, DECOY)
    with Places.choose(environ, tmp_path).occupied():
        assert tables(mariadb_url) == [MARK.name]
        assert run(postgresql_url, "SELECT * FROM instances") == []
    assert (tables(mariadb_url), tables(postgresql_url)) == ([], ["instances"])


@pytest.mark.parametrize("variable", ["API_DB", "CELL0_DB", "CELL2_DB"])
def test_data(variable: str, postgresql_url: str, refused: Callable[[dict[str, str]], str]) -> None:
    """A database in which there is anything is refused, and left alone."""
    run(postgresql_url, "CREATE TABLE somebody (name VARCHAR(10))", "INSERT INTO somebody VALUES ('me')")
    assert refused({variable: postgresql_url}) == f"{variable} holds data that is not the demo's, in table somebody\n"
    assert tables(postgresql_url) == ["somebody"]


def test_one_database_twice(mariadb_url: str, refused: Callable[[dict[str, str]], str]) -> None:
    """A database can't be that of two cells, by whatever addresses."""
    environ = {"CELL1_DB": mariadb_url, "CELL2_DB": f"{mariadb_url}?charset=utf8mb4"}
    assert refused(environ) == "CELL2_DB names a database that another variable names, too\n"
    assert tables(mariadb_url) == []


def test_one_queue_twice(rabbit_url: str, refused: Callable[[dict[str, str]], str]) -> None:
    """Nor can a queue."""
    assert refused({"CELL1_MQ": rabbit_url, "CELL2_MQ": rabbit_url}) == "CELL1_MQ and CELL2_MQ are the same queue\n"


def test_queue_in_use(rabbit_url: str, refused: Callable[[dict[str, str]], str]) -> None:
    """A queue in which there is a message is refused, and left alone."""
    address = urlsplit(rabbit_url)
    place, user = f"{address.hostname}:{address.port}", {"userid": address.username, "password": address.password}
    with amqp.Connection(place, virtual_host=address.path[1:], **user) as connection:
        channel = connection.channel()
        channel.queue_declare("compute", auto_delete=False)
        channel.basic_publish(amqp.Message("one"), routing_key="compute")
        said = refused({"CELL1_MQ": rabbit_url})
        assert said == "CELL1_MQ has messages or workers that are not the demo's, in queue compute\n"
        assert channel.basic_get("compute").body == "one"


@pytest.mark.parametrize(
    ("variable", "url", "said"),
    [
        ("API_DB", "postgresql+psycopg://me:secret@127.0.0.1:1/demo", "does not answer"),
        ("CELL1_DB", "mysql+pymysql://me:secret@127.0.0.1:1/demo", "does not answer"),
        ("CELL2_DB", "mysql+none://me:secret@127.0.0.1/demo", "is no SQLAlchemy URL"),
        ("CELL2_DB", "me:secret", "is no SQLAlchemy URL"),
        ("CELL1_MQ", "rabbit://me:secret@127.0.0.1:1/", "does not answer"),
        ("CELL1_MQ", "rabbit://me:secret@127.0.0.1:none/", "is no transport URL"),
        ("CELL2_MQ", "secret", "is no transport URL"),
    ],
)
def test_no_such_place(variable: str, url: str, said: str, refused: Callable[[dict[str, str]], str]) -> None:
    """What does not answer is named by its variable, and no password is shown."""
    message = refused({variable: url})
    assert message.startswith(f"{variable} {said}")
    assert "secret" not in message
