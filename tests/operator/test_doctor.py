# SPDX-License-Identifier: Apache-2.0
"""What the doctor finds at real databases and brokers: right beside wrong. Clusters and TLS of brokers: ``brokers``."""

from __future__ import annotations

import datetime
import secrets
import time
from contextlib import ExitStack
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from oslo_utils import timeutils

from cellmw.admin.doctor import CHECKS, Diagnosis, Examination, Severity, api_database
from cellmw.cell import CELL0_UUID
from cellmw.engines import make_engine
from cellmw.store import Store, migrations
from tests.conftest import found
from tests.servers import private_mariadb, private_postgresql
from tests.servers.addresses import administration
from tests.servers.certificates import Authority
from tests.unit.test_admin_doctor_databases import TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from oslo_config import cfg

    from cellmw.cell import Cell
    from tests.servers import Broker
    from tests.servers.private import Process

KINDS = ["mariadb", "postgresql"]


@pytest.fixture(params=KINDS)
def new_url(request: pytest.FixtureRequest) -> Callable[[], str]:
    """Make a database on each kind of server, with the tables that a cell has."""
    new: Callable[[], str] = request.getfixturevalue(f"new_{request.param}_url")
    return lambda: with_tables(new())


def with_tables(url: str) -> str:
    """Make the tables of a cell there."""
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        for statement in TABLES:
            connection.exec_driver_sql(statement.replace('"', "`") if "mysql" in url else statement)
    engine.dispose()
    return url


def execute(url: str, *statements: str) -> None:
    """Do something there."""
    with administration(sqlalchemy.make_url(url)) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def at(url: str, **other: Any) -> str:
    """Return the URL with something else in it."""
    return sqlalchemy.make_url(url).set(**other).render_as_string(hide_password=False)


@pytest.fixture
def store(
    conf: cfg.ConfigOpts, new_url: Callable[[], str], new_mariadb_url: Any, new_postgresql_url: Any
) -> Iterator[Store]:
    """An API database on such a server."""
    url = new_url()
    conf.set_override("connection", url, group="api_database")
    with Store(make_engine(url, {}, pre_ping=False)) as store:
        migrations.sync(store.engine)
        yield store


@pytest.fixture
def record(store: Store, new_url: Callable[[], str]) -> Callable[..., Cell]:
    """Record a cell on such a server."""

    def record(name: str, **urls: Any) -> Cell:
        urls.setdefault("transport_url", f"memory://{name}/")
        if "database_connection" not in urls:
            urls["database_connection"] = new_url()
        return store.create_cell(name=name, **urls)

    return record


@pytest.fixture
def cell0(record: Callable[..., Cell]) -> Cell:
    """The cell that has no queue."""
    return record("cell0", uuid=CELL0_UUID, transport_url="none:///")


def told(diagnosis: Diagnosis) -> list[tuple[str, str, str]]:
    """Return what is said above info."""
    return [(each.cell, each.check, each.what) for each in diagnosis.findings if each.severity is not Severity.INFO]


# -- the whole deployment ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cell0")
def test_all_is_well(conf: cfg.ConfigOpts, record: Callable[..., Cell], new_rabbit_url: Callable[[], str]) -> None:
    """A deployment as it should be has nothing that is wrong, on servers that its cells share, too."""
    cells = [record(name, transport_url=new_rabbit_url()) for name in ("cell1", "cell2")]
    diagnosis = Examination(conf).run()
    assert told(diagnosis) == []
    assert {each.check for each in diagnosis.findings} <= {"secrets"}
    assert diagnosis.cells == 1 + len(cells)


@pytest.mark.usefixtures("cell0")
def test_of_both_kinds(
    conf: cfg.ConfigOpts,
    record: Callable[..., Cell],
    new_mariadb_url: Callable[[], str],
    new_postgresql_url: Callable[[], str],
) -> None:
    """Cells may have databases of different kinds."""
    record("cell1", database_connection=with_tables(new_mariadb_url()))
    record("cell2", database_connection=with_tables(new_postgresql_url()))
    assert told(Examination(conf).run()) == []


@pytest.mark.usefixtures("cell0")
def test_numbers(conf: cfg.ConfigOpts, record: Callable[..., Cell], store: Store, new_url: Callable[[], str]) -> None:
    """Instances and hosts are counted and compared as each server has them."""
    url = new_url()
    execute(
        url,
        "INSERT INTO instances VALUES (1, 'a', 'p', 'u', 'host1', 0, false), (2, 'b', 'p', 'u', 'host1', 0, NULL)",
        "INSERT INTO instances VALUES (3, 'c', NULL, 'u', 'host1', 0, false), (4, 'd', NULL, 'u', 'host1', 4, false)",
        "INSERT INTO compute_nodes VALUES ('host1', 1, 0), ('host2', 0, 0)",
    )
    cell = record("cell1", database_connection=url)
    store.create_instance("a", project_id="p", cell_id=cell.id)
    store.create_instance("b", project_id="p", cell_id=cell.id)
    store.create_host("host1", cell_id=cell.id)
    assert told(Examination(conf).run()) == [
        ("cell1", "mappings", "there is 1 instance in it without a project, which nobody can map"),
        ("cell1", "mappings", "there are 3 instances in it that live, and 2 mapped to it"),
        ("cell1", "hosts", "there is 1 host in it that no instance is sent to, not being mapped: host2"),
    ]


# -- databases ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cell0")
@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"database": "cellmw_no_such_database"}, "there is no database of that name on it"),
        ({"username": "cellmw_nobody", "password": "no-such-secret"}, "it refuses the user or the password"),
    ],
    ids=["no database", "nobody"],
)
def test_not_let_in(
    conf: cfg.ConfigOpts, record: Callable[..., Cell], new_url: Callable[[], str], other: Any, what: str
) -> None:
    """What a server has against us is told; that nothing is known of the cell then is not told as something else."""
    record("cell1", database_connection=at(new_url(), **other))
    assert told(Examination(conf).run()) == [("cell1", "databases", f"the database: {what}")]


@pytest.mark.usefixtures("cell0")
def test_one_database_by_two_names(
    conf: cfg.ConfigOpts, record: Callable[..., Cell], new_url: Callable[[], str]
) -> None:
    """That two URLs lead to one database is proven by the server, whatever they call its host."""
    url = new_url()
    record("cell1", database_connection=url)
    record("cell2", database_connection=at(url, host="localhost"))
    record("cell3", database_connection=at(new_url(), host="localhost"))
    assert told(Examination(conf).run()) == [
        (
            "cell1",
            "overlaps",
            "it has the same database as cell cell2, though their URLs look different: the server says so",
        )
    ]


@pytest.mark.usefixtures("cell0")
def test_tables_that_are_missing(conf: cfg.ConfigOpts, record: Callable[..., Cell], new_url: Callable[[], str]) -> None:
    """Tables that are not there are named, on each server."""
    url = new_url()
    execute(url, "DROP TABLE services", "ALTER TABLE instances RENAME COLUMN deleted TO gone")
    record("cell1", database_connection=url)
    assert told(Examination(conf).run()) == [
        ("cell1", "tables", "the table instances of the cell has no column 'deleted'"),
        ("cell1", "tables", "the cell's database has no table 'services'"),
    ]


@pytest.fixture
def stranger(new_url: Callable[[], str]) -> Iterator[str]:
    """The URL of a database in which the user may read nothing but the tables of instances and services."""
    url, name = new_url(), f"cellmw_{secrets.token_hex(4)}"
    is_mysql = "mysql" in url
    user = f"'{name}'@'%%'" if is_mysql else name
    execute(
        url,
        f"CREATE USER {user}",  # without a password, as nobody else knows of it
        *(f"GRANT SELECT ON {table} TO {user}" for table in ("instances", "services")),
        "INSERT INTO instances VALUES (1, 'a', 'p', 'u', 'host1', 0, false)",
    )
    yield at(url, username=name)
    execute(url, *([] if is_mysql else [f"DROP OWNED BY {user}"]), f"DROP USER {user}")


@pytest.mark.usefixtures("cell0")
def test_tables_that_may_not_be_read(conf: cfg.ConfigOpts, record: Callable[..., Cell], stranger: str) -> None:
    """A table that the user may not read is told of without the server's words, and the others are read."""
    record("cell1", database_connection=stranger)
    tables, mappings = sorted(told(Examination(conf).run()), reverse=True)
    assert tables[:2] == ("cell1", "tables")
    assert "compute_nodes" not in tables[2]
    assert mappings == ("cell1", "mappings", "there is 1 instance in it that live, and 0 mapped to it")


@pytest.mark.usefixtures("cell0")
def test_clock(conf: cfg.ConfigOpts, record: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks that are apart are told of, in either direction."""
    record("cell1")
    for apart in (-60, 4, 60):
        monkeypatch.setattr(api_database.time, "time", lambda now=time.time, apart=apart: now() + apart)
        diagnosis = Examination(conf, checks={"clock"}).run()
        monkeypatch.undo()
        text = "its clock and the one of this host are 60 s apart"
        assert told(diagnosis) == ([] if apart == 4 else [("-", "clock", text)])


@pytest.mark.usefixtures("cell0")
def test_drained(
    conf: cfg.ConfigOpts, record: Callable[..., Cell], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long a cell is drained is read as the server keeps it."""
    cell = record("cell1")
    store.drain_cell(cell.uuid)
    assert told(Examination(conf, checks={"drains"}).run()) == []
    later = timeutils.utcnow() + datetime.timedelta(hours=25)
    monkeypatch.setattr(timeutils, "utcnow", lambda: later)
    ((name, check, _),) = told(Examination(conf, checks={"drains"}).run())
    assert (name, check) == ("cell1", "drains")


# -- databases of one's own --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Who has signed all certificates."""
    return Authority("ours")


@pytest.fixture(params=KINDS)
def private(request: pytest.FixtureRequest, authority: Authority, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start a server that shows such a certificate; return the URL of a database there, and its process."""
    module = {"mariadb": private_mariadb, "postgresql": private_postgresql}[request.param]
    (tmp_path / "ca.pem").write_text(authority.certificate)
    query = {
        "mariadb": {"ssl_ca": f"{tmp_path}/ca.pem"},
        "postgresql": {"sslmode": "verify-full", "sslrootcert": f"{tmp_path}/ca.pem"},
    }[request.param]
    with ExitStack() as servers:

        def start(host: str = "127.0.0.1", **options: Any) -> tuple[str, Process]:
            server = authority.for_server(host, **options)
            url, process = found(lambda: servers.enter_context(module.started_with_process(server)))
            execute(at(url), "CREATE DATABASE nova")
            return at(with_tables(at(url, database="nova")), query=query), process

        yield start


@pytest.fixture
def only(conf: cfg.ConfigOpts, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Examine a cell with this database, in a deployment that has nothing else, and return what is told of it."""
    url = f"sqlite:///{tmp_path}/api.sqlite"
    conf.set_override("connection", url, group="api_database")
    with Store(make_engine(url, {}, pre_ping=False)) as store:
        migrations.sync(store.engine)

        def only(url: str, **options: Any) -> Any:
            for cell in store.list_cells():
                store.delete_cell(cell.uuid)
            store.create_cell(name="cell1", transport_url="memory://cell1/", database_connection=url)
            return told(Examination(conf, checks=set(CHECKS) - {"cells"}, **options).run())

        yield only


def test_certificate_and_what_is_not_written(private: Callable[..., Any], only: Callable[..., Any]) -> None:
    """A sound certificate is as it should be; a server that takes no writing is told of, and one that is frozen."""
    url, process = private(days=40)
    assert only(url) == []
    if "mysql" in url:
        execute(url, "SET GLOBAL read_only = 1")
        why = "read_only is on"
    else:
        execute(url, "ALTER DATABASE nova SET default_transaction_read_only = on")
        why = "default_transaction_read_only is on"
    assert only(url) == [("cell1", "databases", f"the database can't be written to: {why}")]
    process.freeze()
    begun = monotonic()
    assert only(url, timeout=1.0) == [("cell1", "databases", "the database: no answer within 1 s")]
    assert monotonic() - begun < 3.5


def test_certificate_that_ends_soon(private: Callable[..., Any], only: Callable[..., Any]) -> None:
    """A certificate that ends soon is told of, and the database is of use."""
    url, _ = private(days=20)
    ((cell, check, what),) = only(url)
    assert (cell, check) == ("cell1", "certificates")
    assert what.startswith("the database: its certificate ends in 19 days, on ")


def test_certificate_that_has_expired(private: Callable[..., Any], only: Callable[..., Any]) -> None:
    """One that has expired is told of, and that nobody gets in by it."""
    url, _ = private(expired=True)
    tls, (cell, check, what) = only(url)
    # libpq does not say why
    says = "its certificate has expired" if "mysql" in url else "its certificate is refused"
    assert tls == ("cell1", "databases", f"the database: {says}")
    assert (cell, check) == ("cell1", "certificates")
    assert what.startswith("the database: its certificate has expired on ")


def test_certificate_of_another_host(private: Callable[..., Any], only: Callable[..., Any]) -> None:
    """One for another host does not let us in, where the URL wants to know."""
    url, _ = private("db.example.org", days=40)
    assert only(url) == [("cell1", "databases", "the database: its certificate is for another host")]


def test_certificate_of_a_stranger(private: Callable[..., Any], only: Callable[..., Any], tmp_path: Path) -> None:
    """One that was signed by somebody else is told of as that."""
    url, _ = private()
    (tmp_path / "ca.pem").write_text(Authority("another").certificate)
    says = "not signed by a CA that is trusted here" if "mysql" in url else "refused"
    assert only(url)[0] == ("cell1", "databases", f"the database: its certificate is {says}")


# -- brokers -----------------------------------------------------------------------------------------------------------


def split(url: str) -> tuple[str, str]:
    """Return the user and the virtual host of a transport URL."""
    credentials, _, place = url.removeprefix("rabbit://").rpartition("@")
    return credentials.partition(":")[0], place.partition("/")[2]


@pytest.fixture
def of_broker(only: Callable[..., Any], conf: cfg.ConfigOpts, tmp_path: Path) -> Callable[[str], Any]:
    """Return what is told of a cell with this transport URL."""

    def of_broker(transport_url: str) -> Any:
        only(f"sqlite:///{tmp_path}/none")
        with Store(make_engine(conf.api_database.connection, {}, pre_ping=False)) as store:
            (cell,) = store.list_cells()
            store.update_cell(cell.uuid, transport_url=transport_url)
        return told(Examination(conf, checks={"brokers", "clusters"}).run())

    return of_broker


def test_permissions(of_broker: Callable[[str], Any], rabbit_url: str, rabbitmq_server: Broker) -> None:
    """A user who may do all is as it should be; each permission that is missing is named, and nothing is left."""
    user, vhost = split(rabbit_url)
    place = rabbit_url.rpartition("@")[2].partition("/")[0]
    for what, permissions in {
        "": [".*", ".*", ".*"],
        # what a careful operator allows, by the names that oslo.messaging gives
        " ": ["^(nova|reply_).*", "^(nova|reply_|amq.default).*", "^(nova|reply_).*"],
        "configure": ["^nova$", ".*", ".*"],
        "write": [".*", "^nova$", ".*"],
        "read": [".*", ".*", "^nova$"],
    }.items():
        rabbitmq_server.administer("set_permissions", "-p", vhost, user, *permissions)
        text = f"the broker {place}: the user has no permission to {what}"
        assert of_broker(rabbit_url) == ([("cell1", "brokers", text)] if what.strip() else [])
    assert "reply_" not in rabbitmq_server.administer("list_queues", "-p", vhost, "name")
    assert "reply_" not in rabbitmq_server.administer("list_exchanges", "-p", vhost, "name")


def test_not_let_in_by_the_broker(of_broker: Callable[[str], Any], rabbit_url: str) -> None:
    """A password that is wrong, and a virtual host that is not there, are told apart."""
    _, vhost = split(rabbit_url)
    credentials, _, place = rabbit_url.removeprefix("rabbit://").rpartition("@")
    place = place.partition("/")[0]
    assert of_broker(rabbit_url.replace(credentials, f"{credentials}-not")) == [
        ("cell1", "brokers", f"the broker {place}: it refuses the user or the password")
    ]
    assert of_broker(rabbit_url.replace(vhost, "no-such-vhost")) == [
        ("cell1", "brokers", f"the broker {place}: there is no such virtual host, or the user may not enter it")
    ]
