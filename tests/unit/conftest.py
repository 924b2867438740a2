# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a private configuration, an API database, cells on SQLite and in-memory queues, commands, and threads.

Whatever a fixture opens is closed when its test has ended.
"""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from typing import TYPE_CHECKING, Any

import oslo_messaging
import pytest
from oslo_config import cfg
from sqlalchemy import text

from cellmw import deploy
from cellmw.cell import CELL0_UUID
from cellmw.context import RequestContext, target
from cellmw.engines import make_engine
from cellmw.handles import Handles
from cellmw.lease import Lease
from cellmw.store import Store, models
from tests.commands import run
from tests.nova_cell import NovaCell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cellmw.cell import Cell
    from cellmw.cells import Cells
    from tests.commands import Manage

PATIENCE = 20
"""Seconds after which a test gives up on what has to come; a test that passes never waits for them."""

PASSWORD = "cell-Qx93-pw"
"""What the in-memory queue never looks at, and the URL of each has: where it shows, the test fails."""


@pytest.fixture
def store(conf: cfg.ConfigOpts, tmp_path: Path) -> Iterator[Store]:
    """An API database with its tables, which ``[api_database] connection`` names."""
    url = f"sqlite:///{tmp_path}/api.sqlite"
    conf.set_override("connection", url, group="api_database")
    engine = make_engine(url, {"sqlite_synchronous": False}, pre_ping=False)
    models.metadata.create_all(engine)
    with Store(engine) as store:
        yield store


@pytest.fixture
def new_cell(store: Store, tmp_path: Path) -> Callable[..., Cell]:
    """Record a cell whose database has one table, with the cell's name in it."""

    def new(name: str, **record: Any) -> Cell:
        file = tmp_path / f"{name}.sqlite"
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("CREATE TABLE this_cell (name VARCHAR(255))")
            connection.execute("INSERT INTO this_cell VALUES (?)", (name,))
        urls = {"transport_url": f"memory://user:{PASSWORD}@{name}/", "database_connection": f"sqlite:///{file}"}
        return store.create_cell(name=name, **urls | record)

    return new


@pytest.fixture
def cell0(new_cell: Callable[..., Cell]) -> Cell:
    """The cell that has no queue."""
    return new_cell("cell0", uuid=CELL0_UUID, transport_url="none:///")


@pytest.fixture
def cell1(new_cell: Callable[..., Cell]) -> Cell:
    """A cell."""
    return new_cell("cell1")


@pytest.fixture
def cell2(new_cell: Callable[..., Cell]) -> Cell:
    """Another cell."""
    return new_cell("cell2")


@pytest.fixture
def nova1(cell1: Cell) -> NovaCell:
    """The database of cell1, with the tables that Nova has there."""
    return NovaCell(cell1.reveal_database_connection())


@pytest.fixture
def nova2(cell2: Cell) -> NovaCell:
    """The database of cell2, with the tables that Nova has there."""
    return NovaCell(cell2.reveal_database_connection())


@pytest.fixture
def configuration(store: Store, tmp_path: Path) -> Path:
    """A configuration file with nothing but the API database in it."""
    path = tmp_path / "cellmw.conf"
    path.write_text(f"[api_database]\nconnection = sqlite:///{tmp_path}/api.sqlite\n")
    return path


@pytest.fixture
def manage(configuration: Path, capsys: pytest.CaptureFixture[str]) -> Manage:
    """Run a command of ``cellmw-manage`` on the API database."""
    return partial(run, capsys, configuration)


@pytest.fixture
def cell_v2(manage: Manage) -> Manage:
    """Run a command of the family ``cell_v2``."""
    return partial(manage, "cell_v2")


@pytest.fixture
def open_handles(conf: cfg.ConfigOpts) -> Iterator[Callable[[Cell], Handles]]:
    """Open the handles of a cell."""
    with ExitStack() as opened:

        def open_(cell: Cell) -> Handles:
            handles = Handles.open(cell, conf, {})
            opened.callback(handles.close)
            return handles

        yield open_


@pytest.fixture
def handles1(open_handles: Callable[[Cell], Handles], cell1: Cell) -> Handles:
    """The handles of cell1."""
    return open_handles(cell1)


@pytest.fixture
def handles2(open_handles: Callable[[Cell], Handles], cell2: Cell) -> Handles:
    """The handles of cell2."""
    return open_handles(cell2)


@pytest.fixture
def handles0(open_handles: Callable[[Cell], Handles], cell0: Cell) -> Handles:
    """The handles of cell0."""
    return open_handles(cell0)


@pytest.fixture
def lease(handles1: Handles) -> Iterator[Lease]:
    """A lease on cell1."""
    with Lease(handles1) as lease:
        yield lease


@pytest.fixture
def context(lease: Lease) -> RequestContext:
    """A context that is aimed at cell1 by the lease."""
    context = RequestContext(user_id="user", project_id="project", roles=["member"])
    target(context, lease)
    return context


@pytest.fixture
def cells(conf: cfg.ConfigOpts, store: Store) -> Iterator[Cells]:
    """The cells of the API database."""
    with closing(deploy.cells(conf)) as cells:
        yield cells


@pytest.fixture
def where() -> Callable[[Any], str]:
    """Return the name of the cell whose database a session or connection is on."""
    return lambda connection: connection.execute(text("SELECT name FROM this_cell")).scalar_one()


class Queue:
    """The receiving end of a topic on a cell's queue. Lives as long as the fixture."""

    def __init__(self, transport: oslo_messaging.Transport, topic: str) -> None:
        """Listen: messages that were sent before are lost."""
        target = oslo_messaging.Target(topic=topic, server="worker")
        self._listener = transport._driver.listen(target, 1, None)._poll_style_listener

    def next(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the context and the message that arrives next."""
        (incoming,) = self._listener.poll(timeout=PATIENCE)
        return incoming.ctxt, incoming.message

    @property
    def is_empty(self) -> bool:
        """Whether nothing has arrived: a message is in the queue as soon as its cast returns."""
        return not self._listener.poll(timeout=0)


@pytest.fixture
def queue_of(conf: cfg.ConfigOpts) -> Iterator[Callable[[Cell], Queue]]:
    """Listen to the topic ``compute`` on the queue of a cell."""
    with ExitStack() as transports:

        def listen(cell: Cell) -> Queue:
            transport = oslo_messaging.get_rpc_transport(conf, cell.reveal_transport_url())
            transports.callback(transport.cleanup)
            return Queue(transport, "compute")

        yield listen


@pytest.fixture
def in_thread() -> Callable[[Callable[[], Any]], Any]:
    """Call a function in another thread, and return or raise what it returns or raises."""

    def call(function: Callable[[], Any]) -> Any:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(function).result(PATIENCE)

    return call


@pytest.fixture
def together() -> Callable[[int, Callable[[int], Any]], list[Any]]:
    """Call a function in many threads at the same moment; return what each call returned or raised, in order."""

    def call(count: int, function: Callable[[int], Any]) -> list[Any]:
        barrier = threading.Barrier(count)

        def wait_and_call(number: int) -> Any:
            barrier.wait(PATIENCE)
            return function(number)

        with ThreadPoolExecutor(count) as threads:
            calls = [threads.submit(wait_and_call, number) for number in range(count)]
        return [done.exception() or done.result() for done in calls]

    return call
