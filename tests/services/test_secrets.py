# SPDX-License-Identifier: Apache-2.0
"""On real servers, with users whose passwords are marked: nothing of them is in a message, in an error or in a log.

Nothing masks what is looked at here: it is raw from the broker, and from every logger at DEBUG.
"""

from __future__ import annotations

import logging
import secrets
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import amqp
import oslo_messaging
import pytest
import sqlalchemy
from oslo_config import cfg
from oslo_db.sqlalchemy import engines as oslo_engines
from sqlalchemy import text

from cellmw import RequestContext, database, rpc
from cellmw.cell import Cell
from cellmw.conf import register_opts
from cellmw.context import target
from cellmw.exceptions import CellUnavailable
from cellmw.handles import Handles
from cellmw.lease import Lease
from cellmw.limits import Limits
from tests.functional.conftest import PATIENCE
from tests.servers.addresses import administration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests import servers

MARK = "zQ7mark"

TOPIC = "cellmw_test_secrets"


def marked(*outputs: object) -> list[str]:
    """Return those of the outputs that show a password."""
    return [str(output) for output in outputs if MARK.lower() in str(output).lower()]


def shown(error: BaseException) -> list[str]:
    """Return all texts of an error, with what a traceback shows, the variables of frames left out."""
    return [str(error), repr(error), repr(vars(error)), *traceback.format_exception(error)]


@pytest.fixture(scope="module")
def rabbit_url(rabbitmq_server: servers.Broker) -> Iterator[str]:
    """A transport URL with a vhost and a user of its own, whose password has to be encoded."""
    name = f"cellmw_test_{secrets.token_hex(6)}"
    with ExitStack() as made:
        for what, *password in (("user", f"{MARK}-%@"), ("vhost",)):
            rabbitmq_server.administer(f"add_{what}", name, *password)
            made.callback(rabbitmq_server.administer, f"delete_{what}", name)
        rabbitmq_server.administer("set_permissions", "-p", name, name, *[".*"] * 3)
        yield f"rabbit://{name}:{MARK}-%25%40@{rabbitmq_server._address.hostname}:{rabbitmq_server.port}/{name}"


@pytest.fixture
def mariadb_url(new_mariadb_url: Callable[[], str], mariadb_server: sqlalchemy.URL) -> Iterator[sqlalchemy.URL]:
    """The URL of an empty database, with a user of its own."""
    url = sqlalchemy.make_url(new_mariadb_url()).set(password=f"{MARK}-%@/")
    with administration(mariadb_server) as connection:
        # by the driver itself: what SQLAlchemy logs has the parameters of a statement
        connection.connection.cursor().execute(f"CREATE USER {url.database} IDENTIFIED BY %s", (url.password,))
        connection.exec_driver_sql(f"GRANT ALL ON {url.database}.* TO {url.database}")
    yield url.set(username=url.database)
    with administration(mariadb_server) as connection:
        connection.exec_driver_sql(f"DROP USER {url.database}")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What every logger says, from DEBUG up; oslo.db would set the level of SQLAlchemy's with each engine."""
    monkeypatch.setattr(oslo_engines, "_setup_logging", lambda *_: None)
    for name in (None, "sqlalchemy", "sqlalchemy.engine", "sqlalchemy.pool"):
        caplog.set_level(logging.DEBUG, name)
    return caplog


@contextmanager
def aimed_at(transport_url: str, database_connection: object) -> Iterator[RequestContext]:
    """Give a context that is aimed at a cell with these URLs."""
    conf = cfg.ConfigOpts()
    conf([], project="cellmw", default_config_files=[], default_config_dirs=[])
    register_opts(conf)
    if isinstance(database_connection, sqlalchemy.URL):
        database_connection = database_connection.render_as_string(hide_password=False)
    cell = Cell(1, "uuid", "cell1", False, transport_url, str(database_connection))
    with ExitStack() as opened:
        handles = Handles.open(cell, conf, {}, limits=Limits(patience=5))
        opened.callback(handles.close)
        context = RequestContext(user_id="user", overwrite=False)
        target(context, opened.enter_context(Lease(handles)))
        yield context


def client_of(context: RequestContext) -> Any:
    """Return the client that reaches the context's cell, and does not wait long for a reply."""
    return rpc.ClientRouter(None, target=oslo_messaging.Target(topic=TOPIC), timeout=1).client(context)


def test_messages(rabbit_url: str, log: pytest.LogCaptureFixture) -> None:
    """A call and a cast, about a context that has handles and a cell, are raw at the broker without any password."""
    parts = urlsplit(rabbit_url)
    raw: list[Any] = []
    with (
        amqp.Connection(
            f"{parts.hostname}:{parts.port}", userid=parts.username, password=f"{MARK}-%@", virtual_host=parts.path[1:]
        ) as connection,
        aimed_at(rabbit_url, "sqlite://") as context,
    ):
        channel = connection.channel()
        channel.exchange_declare("openstack", "topic", durable=False, auto_delete=False)
        channel.queue_declare(TOPIC, auto_delete=False)
        channel.queue_bind(TOPIC, "openstack", "#")
        channel.basic_consume(TOPIC, no_ack=True, callback=raw.append)
        client = client_of(context)
        cell = context.db_connection._lease.cell
        client.cast(context, "boot", cell=repr(cell), where=str(context.mq_connection))
        with ThreadPoolExecutor(1) as thread:
            # a call's message is gone from the queue when its caller has given up
            call = thread.submit(client.call, context, "boot", cell=repr(cell), where=str(context.db_connection))
            while len(raw) < 2:
                connection.drain_events(PATIENCE)
            timeout = call.exception()
    texts = [f"{message.body} {message.properties} {message.headers} {message.delivery_info}" for message in raw]
    assert all("boot" in text for text in texts)
    assert isinstance(timeout, oslo_messaging.MessagingTimeout)
    assert not marked(*texts, *shown(timeout), log.text)


def test_wrong_password_of_a_queue(rabbit_url: str, log: pytest.LogCaptureFixture) -> None:
    """A broker that refuses the password: neither the error nor what the libraries log of it shows that."""
    with aimed_at(rabbit_url.replace(MARK, f"{MARK}-wrong"), "sqlite://") as context:
        client = client_of(context)
        for send in (client.cast, client.call):
            with pytest.raises(CellUnavailable) as refused:
                send(context, "boot")
            assert not marked(*shown(refused.value))
    assert "cell1" in log.text
    assert not marked(log.text)


@pytest.mark.parametrize("wrong", ["password", "database"])
def test_refused_by_a_database(mariadb_url: sqlalchemy.URL, wrong: str, log: pytest.LogCaptureFixture) -> None:
    """MariaDB lets the user in, and refuses a wrong password or database: no error and no log shows a password."""
    changed = {wrong: f"{getattr(mariadb_url, wrong)}x"}
    with aimed_at("none:///", mariadb_url) as context, database.reader(context) as session:
        assert session.scalar(text("SELECT CURRENT_USER()")).startswith("cellmw_test_")
    with aimed_at("none:///", mariadb_url.set(**changed)) as context:
        with pytest.raises(CellUnavailable) as refused, database.reader(context) as session:
            session.execute(text("SELECT 1"))
        assert not marked(*shown(refused.value))
    assert "SELECT CURRENT_USER()" in log.text
    assert not marked(log.text)


def test_postgresql(postgresql_url: str, log: pytest.LogCaptureFixture) -> None:
    """PostgreSQL, whether it finds the database or not: no error and no log shows a password."""
    url = sqlalchemy.make_url(postgresql_url).set(password=f"{MARK}-%@/")
    with aimed_at("none:///", url) as context, database.writer(context) as session:
        assert session.scalar(text("SELECT current_database()")) == url.database
    with aimed_at("none:///", url.set(database="cellmw_test_none")) as context:
        with pytest.raises(CellUnavailable) as refused, database.reader(context) as session:
            session.execute(text("SELECT 1"))
        assert not marked(*shown(refused.value))
    assert not marked(log.text)
