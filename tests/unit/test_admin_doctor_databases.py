# SPDX-License-Identifier: Apache-2.0
"""A cell's database -> what is told of it, by SQLite files and sockets. Real servers are in tests/services."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from cellmw.admin.cell_tables import CellTables
from cellmw.admin.doctor.databases import Notebook, probes
from cellmw.admin.doctor.probe import run
from cellmw.cell import CELL0_UUID, Cell
from cellmw.crew import Crew
from cellmw.limits import Limits
from tests.servers.certificates import Authority
from tests.servers.private import free_ports
from tests.unit.somebody import Somebody

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from oslo_config import cfg

SECRET = "open-sesame"

CHECKS = ("databases", "certificates", "tables", "mappings", "hosts", "overlaps")

INSTANCES = """CREATE TABLE instances (
    id INTEGER PRIMARY KEY, uuid VARCHAR(36), project_id VARCHAR(255), user_id VARCHAR(255), host VARCHAR(255),
    deleted INTEGER, hidden BOOLEAN)"""

HOSTS = "CREATE TABLE compute_nodes (host VARCHAR(255), mapped INTEGER, deleted INTEGER)"

SERVICES = 'CREATE TABLE services (host VARCHAR(255), "binary" VARCHAR(255), deleted INTEGER)'

TABLES = [INSTANCES, HOSTS, SERVICES]

SERVER = f"postgresql+psycopg://me:{SECRET}@127.0.0.1:1/nova"


@pytest.fixture
def new_database(tmp_path: Path) -> Callable[..., str]:
    """Make a database by these statements."""

    def new(*statements: str, name: str = "cell1") -> str:
        with closing(sqlite3.connect(tmp_path / name)) as connection, connection:
            for statement in statements:
                connection.execute(statement)
        return f"sqlite:///{tmp_path}/{name}"

    return new


@pytest.fixture
def notebook() -> Notebook:
    """Where what was found out is written."""
    return Notebook()


@pytest.fixture
def told(conf: cfg.ConfigOpts, notebook: Notebook) -> Callable[..., list[tuple[str, str, str]]]:
    """Return what is said of the database of a cell, without what to do."""

    def told(url: str, *, uuid: str = "uuid1", patience: float = 20.0) -> list[tuple[str, str, str]]:
        cell = Cell(1, uuid, "cell1", False, "none:///", url)
        limits = Limits(patience=patience)
        found = run(list(probes(cell, conf, limits, CellTables(conf), notebook)), CHECKS, Crew(), patience)
        findings = [(str(each.severity), each.check, each.what) for each in found if each.cell == "cell1" and each.todo]
        assert SECRET not in repr(findings)
        return findings

    return told


def test_all_is_well(told: Callable[..., Any], new_database: Callable[..., str], notebook: Notebook) -> None:
    """A database with its tables is as it should be, and says how much is in it."""
    url = new_database(
        *TABLES,
        "INSERT INTO instances VALUES (1, 'a', 'p', 'u', 'host1', 0, 0), (2, 'b', 'p', 'u', 'host1', 2, 0)",
        "INSERT INTO compute_nodes VALUES ('host2', 1, 0), ('host1', 0, 0), ('host0', 0, 3)",
    )
    assert told(url) == []
    assert (notebook.living, notebook.hosts) == ({1: 1}, {1: ["host1", "host2"]})
    assert notebook.servers == {}


def test_nothing_is_made(told: Callable[..., Any], tmp_path: Path) -> None:
    """A file that is missing is told of, and is missing still."""
    assert told(f"sqlite:///{tmp_path}/none") == [("error", "databases", "the database: there is no such file")]
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ([HOSTS, SERVICES], [("error", "tables", "the cell's database has no table 'instances'")]),
        ([INSTANCES, SERVICES], [("warning", "tables", "the cell's database has no table 'compute_nodes'")]),
        ([INSTANCES, HOSTS], [("warning", "tables", "the cell's database has no table 'services'")]),
        (
            [INSTANCES.replace("project_id", "tenant"), HOSTS, SERVICES],
            [("error", "tables", "the table instances of the cell has no column 'project_id'")],
        ),
        (
            [INSTANCES.replace("host ", "node "), HOSTS, SERVICES],
            [("error", "tables", "the table instances of the cell has no column 'host'")],
        ),
    ],
    ids=["no instances", "no hosts", "no services", "no project", "no host"],
)
def test_tables(
    told: Callable[..., Any],
    new_database: Callable[..., str],
    statements: list[str],
    expected: list[tuple[str, str, str]],
) -> None:
    """A table or column that is missing is named: without instances nothing can be done, without hosts much."""
    assert told(new_database(*statements)) == expected


def test_cell0_has_no_hosts(told: Callable[..., Any], new_database: Callable[..., str], notebook: Notebook) -> None:
    """Of cell0 no tables of hosts are wanted, and nothing is said of its hosts."""
    assert told(new_database(INSTANCES), uuid=CELL0_UUID) == []
    assert (notebook.living, notebook.hosts) == ({1: 0}, {})


def test_without_a_project(told: Callable[..., Any], new_database: Callable[..., str]) -> None:
    """Instances without a project are counted, those that are deleted or hidden are not."""
    rows = "(1, 'a', NULL, 'u', 'h', 0, 0), (2, 'b', '', 'u', 'h', 0, 0), (3, 'c', NULL, 'u', 'h', 3, 0)"
    more = "(4, 'd', NULL, 'u', 'h', 0, 1), (5, 'e', 'p', 'u', 'h', 0, 0)"
    assert told(new_database(*TABLES, f"INSERT INTO instances VALUES {rows}, {more}")) == [
        ("warning", "mappings", "there are 2 instances in it without a project, which nobody can map")
    ]


def test_tables_that_cant_be_read(
    told: Callable[..., Any], new_database: Callable[..., str], notebook: Notebook
) -> None:
    """What fails in reading is told of without the server's words, and the rest is looked at all the same."""
    url = new_database(INSTANCES, SERVICES, f"CREATE VIEW compute_nodes AS SELECT '{SECRET}' AS host, 1 AS mapped, x")
    assert told(url)[0][:2] == ("warning", "tables")
    assert notebook.living == {1: 0}


def test_locked(told: Callable[..., Any], new_database: Callable[..., str], tmp_path: Path) -> None:
    """Tables that are not read in time are told of."""
    url = new_database(*TABLES)
    with closing(sqlite3.connect(tmp_path / "cell1", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        found = told(url, patience=0.3)
        connection.execute("ROLLBACK")
    assert [each[1] for each in found] == ["tables", "tables"]


@pytest.mark.parametrize("scheme", ["mysql+pymysql", "postgresql+psycopg"])
def test_frozen(told: Callable[..., Any], scheme: str) -> None:
    """A server that is frozen is left in time, and its threads don't hold up the end."""
    with closing(Somebody(None)) as frozen:
        begun = monotonic()
        assert told(f"{scheme}://me:{SECRET}@{frozen.address}/nova", patience=0.5) == [
            ("error", "databases", "the database: no answer within 0.5 s")
        ]
        assert monotonic() - begun < 2.5


@pytest.mark.parametrize("scheme", ["mysql+pymysql", "postgresql+psycopg"])
def test_nobody(told: Callable[..., Any], scheme: str) -> None:
    """Where nobody listens that is told, and a name that nobody knows."""
    (port,) = free_ports(1)
    assert told(f"{scheme}://me:{SECRET}@127.0.0.1:{port}/nova") == [
        ("error", "databases", "the database: nobody listens there")
    ]
    assert told(f"{scheme}://me:{SECRET}@no-such-host.invalid/nova") == [
        ("error", "databases", "the database: nobody knows its name here")
    ]


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("a..b/nova?ssl_ca=", "nobody knows its name here"),
        ("127.0.0.1:1/nova?read_timeout=0&ssl_ca=", "its driver takes no such option or value as there is in its URL"),
    ],
)
def test_what_a_driver_does_not_take(told: Callable[..., Any], tmp_path: Path, place: str, what: str) -> None:
    """A host that can't be one, and an option that the driver refuses when it connects, are told of once."""
    (tmp_path / "ca.pem").write_text(Authority("ours").certificate)
    url = f"mysql+pymysql://me:{SECRET}@{place}{tmp_path}/ca.pem"
    assert told(url) == [("error", "databases", f"the database: {what}")]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('FATAL:  password authentication failed for user "me"', "it refuses the user or the password"),
        ('FATAL:  role "me" does not exist', "it refuses the user or the password"),
        ("(1045, \"Access denied for user 'me'@'host' (using password: YES)\")", "it refuses the user or the password"),
        ('FATAL:  database "nova" does not exist', "there is no database of that name on it"),
        ("(1049, \"Unknown database 'nova'\")", "there is no database of that name on it"),
        (
            'no pg_hba.conf entry for host "::1", user "me", no encryption',
            "it wants TLS, and its URL does not ask for that",
        ),
        (
            "(3159, 'Connections using insecure transport are prohibited')",
            "it wants TLS, and its URL does not ask for that",
        ),
        ("server does not support SSL, but SSL was required", "it does not speak TLS, and its URL asks for that"),
        ("SSL error: something else", "TLS fails between us"),
        ("connection timeout expired", "no answer within 20 s"),
        ("FATAL:  out of memory", "OperationalError"),
    ],
)
def test_refusals(told: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, text: str, what: str) -> None:
    """What drivers say where nobody gets in is told in our words, and otherwise by no more than the error's name."""

    def refuse(*_: object, **__: object) -> Any:
        raise psycopg.OperationalError(text)

    monkeypatch.setattr(psycopg, "connect", refuse)
    assert told(SERVER) == [("error", "databases", f"the database: {what}")]


@pytest.mark.parametrize("query", ["ssl_ca=/nowhere/ca.pem", "ssl_ca={folder}"], ids=["not there", "a folder"])
def test_file_for_tls(told: Callable[..., Any], tmp_path: Path, query: str) -> None:
    """A file of the TLS options that is not there, or none, is told of as that, before anything is connected to."""
    with closing(Somebody(None)) as somebody:
        url = f"mysql+pymysql://me:{SECRET}@{somebody.address}/nova?{query.format(folder=tmp_path)}"
        assert told(url, patience=0.5)[0] == (
            "error",
            "databases",
            "the database: a file of its TLS options can't be used",
        )


def test_full(told: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has no place for one more connection is told of as that."""

    def refuse(*_: object, **__: object) -> Any:
        raise psycopg.OperationalError("FATAL:  sorry, too many clients already")

    monkeypatch.setattr(psycopg, "connect", refuse)
    assert told(SERVER) == [("error", "databases", "the database: it has as many connections as it takes")]


def test_replica(
    conf: cfg.ConfigOpts, told: Callable[..., Any], new_database: Callable[..., str], tmp_path: Path
) -> None:
    """A replica has to answer, too, by the name of the cell or its uuid."""
    url = new_database(*TABLES)
    new_database("CREATE TABLE x (y INTEGER)", name="replica")
    for ref in ("cell1", "uuid1"):
        conf.set_override("slave_connections", {ref: f"sqlite:///{tmp_path}/replica"}, group="cellmw_database")
        assert told(url) == []
        conf.set_override("slave_connections", {ref: f"sqlite:///{tmp_path}/none"}, group="cellmw_database")
        assert told(url) == [("error", "databases", "the replica of the database: there is no such file")]
