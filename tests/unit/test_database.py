# SPDX-License-Identifier: Apache-2.0
"""A session on the context's cell, as a block and by a decorator; and the service's own database."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from oslo_config import cfg
from oslo_db import options as oslo_db_options
from oslo_db.sqlalchemy import enginefacade
from sqlalchemy import text
from sqlalchemy.exc import InvalidRequestError

from cellmw import database
from cellmw.context import RequestContext, target
from cellmw.exceptions import LeaseClosed, NotTargeted
from cellmw.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cellmw.handles import Handles

    Where = Callable[[Any], str]

NAME = text("SELECT name FROM this_cell")
INSERT = text("INSERT INTO this_cell VALUES ('new')")


def names(handles: Handles) -> list[str]:
    """Return what stands in a cell's table."""
    with handles.engine.connect() as connection:
        return list(connection.execute(NAME).scalars())


@pytest.fixture
def service_database(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | None], None]]:
    """Set ``[database] connection`` of cfg.CONF, which is what the service's own database is, for this test alone."""
    fresh = enginefacade._TransactionFactory()
    reset = enginefacade._context_manager.patch_factory(fresh)
    cfg.CONF.register_opts(oslo_db_options.database_opts, "database")

    def set_connection(url: str | None) -> None:
        cfg.CONF.set_override("connection", url, group="database")

    set_connection(None)
    yield set_connection
    cfg.CONF.clear_override("connection", group="database")
    reset()
    if fresh.is_started:
        fresh._writer_engine.dispose()


@pytest.fixture
def service_url(service_database: Callable[[str | None], None], tmp_path: Path) -> str:
    """The URL of the service's own database, whose table is that of a cell."""
    url = f"sqlite:///{tmp_path}/service.sqlite"
    service_database(url)
    with enginefacade.writer.using(RequestContext(overwrite=False)) as session:
        session.execute(text("CREATE TABLE this_cell (name VARCHAR(255))"))
        session.execute(text("INSERT INTO this_cell VALUES ('service')"))
    return url


DOORS = pytest.mark.parametrize("door", [database.reader, database.writer], ids=["reader", "writer"])


@DOORS
def test_block(door: Any, context: RequestContext, where: Where) -> None:
    """A block has a session on the context's cell."""
    with door(context) as session:
        assert where(session) == "cell1"
        assert context.session is session


def test_writer_commits(context: RequestContext, handles1: Handles) -> None:
    """What a writer's block writes is there when it has ended."""
    with database.writer(context) as session:
        session.execute(INSERT)
    assert names(handles1) == ["cell1", "new"]


def insert_and_fail(context: RequestContext) -> None:
    """Write something in a block that fails."""
    with database.writer(context) as session:
        session.execute(INSERT)
        raise ZeroDivisionError


def test_writer_rolls_back(context: RequestContext, handles1: Handles) -> None:
    """What a writer's block writes is gone when it fails."""
    with pytest.raises(ZeroDivisionError):
        insert_and_fail(context)
    assert names(handles1) == ["cell1"]


def test_reader_writes_nothing(context: RequestContext, handles1: Handles) -> None:
    """What a reader's block writes is not kept."""
    with database.reader(context) as session:
        session.execute(INSERT)
    assert names(handles1) == ["cell1"]


class ForeignContext:
    """A context whose class takes no part in enginefacade."""

    __slots__ = ("cell_uuid", "db_connection", "mq_connection")


@pytest.fixture
def foreign(lease: Lease) -> Any:
    """Such a context, aimed at cell1."""
    context = ForeignContext()
    target(context, lease)
    return context


@DOORS
def test_foreign_context(door: Any, foreign: Any, where: Where) -> None:
    """A context that knows nothing of enginefacade has sessions as well."""
    with door(foreign) as session:
        assert where(session) == "cell1"


def test_foreign_writer(foreign: Any, handles1: Handles) -> None:
    """A writer of such a context commits at the end of its block, and rolls back where that fails."""
    with database.writer(foreign) as session:
        session.execute(INSERT)
    with pytest.raises(ZeroDivisionError):
        insert_and_fail(foreign)
    with database.reader(foreign) as session:
        session.execute(INSERT)
    assert names(handles1) == ["cell1", "new"]
    assert handles1.engine.pool.checkedout() == 0


def test_foreign_context_after_the_release(foreign: Any, lease: Lease) -> None:
    """Such a context has no session after the release."""
    block = database.reader(foreign)
    lease.release()
    for late in (block, database.reader(foreign)):
        with pytest.raises(LeaseClosed), late:
            pass


def test_foreign_session_that_was_left_open(
    foreign: Any, lease: Lease, handles1: Handles, caplog: pytest.LogCaptureFixture
) -> None:
    """A session of such a context that was left open is ended with the request, too."""
    block = database.writer(foreign)
    block.__enter__().execute(INSERT)
    lease.release()
    assert "a session was left open" in caplog.text
    assert handles1.engine.pool.checkedout() == 0
    with pytest.raises(InvalidRequestError):
        block.__exit__(None, None, None)
    assert names(handles1) == ["cell1"]


def test_decorator_with_a_foreign_context(foreign: Any) -> None:
    """A decorated function, which finds its session on the context, says what such a context lacks."""
    with pytest.raises(TypeError, match=r"name_of\(\) finds no session on a ForeignContext: decorate its class"):
        name_of(foreign)


def test_async_reader(context: RequestContext, where: Where) -> None:
    """Where the cell has no replica, an asynchronous reader reads from its database, as block and as decorator."""

    @database.reader.async_
    def name_of(context: RequestContext) -> str:
        return where(context.session)

    with database.reader.async_(context) as session:
        assert where(session) == "cell1"
    assert name_of(context) == "cell1"


def test_async_reader_of_the_service(service_url: str, where: Where) -> None:
    """A context that was never targeted has asynchronous readers as well."""
    with database.reader.async_(RequestContext(overwrite=False)) as session:
        assert where(session) == "service"


def test_async_writer() -> None:
    """There is no asynchronous writer."""
    with pytest.raises(TypeError, match="a replica can't be written to"):
        _ = database.writer.async_


@database.reader
def name_of(context: RequestContext, suffix: str = "") -> str:
    """Return the name of the context's cell."""
    return str(context.session.execute(NAME).scalar_one()) + suffix


@database.writer
def insert(context: RequestContext) -> None:
    context.session.execute(INSERT)


class Repository:
    """Decorated methods."""

    @database.reader
    def name_of(self, context: RequestContext) -> str:
        return str(context.session.execute(NAME).scalar_one())

    @classmethod
    @database.reader
    def class_name_of(cls, context: RequestContext) -> str:
        return str(context.session.execute(NAME).scalar_one())

    @staticmethod
    @database.reader
    def static_name_of(context: RequestContext) -> str:
        return str(context.session.execute(NAME).scalar_one())


@pytest.mark.parametrize(
    "call",
    [
        name_of,
        lambda context: name_of(context=context),
        lambda context: name_of(context, suffix=""),
        lambda context: name_of(suffix="", context=context),
        lambda context: Repository().name_of(context),
        lambda context: Repository().name_of(context=context),
        lambda context: Repository.class_name_of(context),
        lambda context: Repository.static_name_of(context),
    ],
    ids=[
        "function",
        "function, by keyword",
        "function, mixed",
        "function, all by keyword",
        "method",
        "method, by keyword",
        "class method",
        "static method",
    ],
)
def test_decorator(call: Callable[[RequestContext], str], context: RequestContext) -> None:
    """A decorated function has its session on the context's cell, however it is called."""
    assert call(context) == "cell1"


def test_decorated_writer(context: RequestContext, handles1: Handles) -> None:
    """A decorated writer commits when it returns."""
    insert(context)
    assert names(handles1) == ["cell1", "new"]


def test_decorator_keeps_the_function() -> None:
    """A decorated function has its own name and docstring."""
    assert (name_of.__name__, name_of.__doc__) == ("name_of", "Return the name of the context's cell.")


def test_decorator_without_a_context() -> None:
    """A decorated function that is called without a context fails as any function does."""
    with pytest.raises((TypeError, KeyError)):
        name_of()  # type: ignore[call-arg]


def test_decorated_function_follows_its_context(context: RequestContext, handles2: Handles, service_url: str) -> None:
    """One function goes to the cell of the context that it is given, each time."""
    other, never = RequestContext(overwrite=False), RequestContext(overwrite=False)
    with Lease(handles2) as lease:
        target(other, lease)
        assert [name_of(each) for each in (context, other, never, context)] == ["cell1", "cell2", "service", "cell1"]


def test_blocks_join(context: RequestContext) -> None:
    """A block or function inside a block of the same context is part of its transaction."""
    with database.writer(context) as outer:
        outer.execute(text("DELETE FROM this_cell"))
        outer.execute(INSERT)
        assert name_of(context) == "new"
        with database.reader(context) as inner:
            assert inner is outer


def test_writer_inside_reader(context: RequestContext) -> None:
    """A reader's transaction does not become a writer's, as with oslo.db's own."""
    with database.reader(context), pytest.raises(TypeError, match="READER"):
        insert(context)


@DOORS
def test_after_the_release(door: Any, context: RequestContext, lease: Lease, service_url: str) -> None:
    """After the release there is no session, neither on the cell nor on the service's own database."""
    block = door(context)
    lease.release()
    for late in (block, door(context)):
        with pytest.raises(LeaseClosed), late:
            pass
    with pytest.raises(LeaseClosed):
        name_of(context)


@DOORS
def test_never_targeted(door: Any, service_url: str, where: Where) -> None:
    """A context that was never targeted has sessions on the service's own database."""
    with door(RequestContext(overwrite=False)) as session:
        assert where(session) == "service"


@DOORS
def test_no_database_of_its_own(door: Any, service_database: Callable[[str | None], None]) -> None:
    """Where the service has no database of its own, a context that was never targeted is an error that says so."""
    with pytest.raises(NotTargeted, match=r"\[database\] connection is not set"), door(RequestContext(overwrite=False)):
        pass


def test_decorator_without_a_database(service_database: Callable[[str | None], None]) -> None:
    """A decorated function says the same."""
    with pytest.raises(NotTargeted, match=r"\[database\] connection is not set"):
        name_of(RequestContext(overwrite=False))


def test_targeted_without_a_database(service_database: Callable[[str | None], None], context: RequestContext) -> None:
    """A service without a database of its own reads its cells all the same."""
    assert name_of(context) == "cell1"


def test_joins_the_services_own_blocks(service_url: str) -> None:
    """What was never targeted is part of the transactions that the service makes by oslo.db itself."""
    context = RequestContext(overwrite=False)
    with enginefacade.writer.using(context) as outer, database.writer(context) as inner:
        assert inner is outer


def test_nested_over_databases(service_url: str, context: RequestContext) -> None:
    """Inside a block on the cell the service's own database is its own, and the other way round."""
    with database.writer(context), enginefacade.reader.using(context) as service:
        assert service.execute(NAME).scalar_one() == "service"
        assert name_of(context) == "cell1"


def test_transaction_context_of_another_library(context: RequestContext, service_url: str, where: Where) -> None:
    """A transaction context that somebody else has put on the context, as Nova does, is used as it is."""
    context.db_connection = enginefacade._context_manager
    with database.reader(context) as session:
        assert where(session) == "service"


def test_importing_reads_no_configuration() -> None:
    """Importing the module registers nothing on cfg.CONF."""
    script = "import cellmw.database; from oslo_config import cfg; print('database' in cfg.CONF)"
    command = [sys.executable, "-W", "ignore", "-c", script]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
