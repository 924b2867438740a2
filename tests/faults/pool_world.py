# SPDX-License-Identifier: Apache-2.0
"""Cells that change, fail and are forked, on SQLite files and in-memory queues -> what was opened, leased and closed.

Every database holds its own name, and somebody listens on every queue, so a request that goes astray shows. The pool,
the leases and the handles are those of production: what is put into them counts what is done with them.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import signal
import sqlite3
import threading
import traceback
import warnings
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import oslo_messaging
from oslo_config import cfg
from sqlalchemy import event, text

from cellmw import RequestContext, database, deploy
from cellmw.conf import register_opts
from cellmw.context import target
from cellmw.exceptions import CellMisconfigured
from cellmw.store import models
from tests.functional.conftest import PATIENCE, PROJECT, TOPIC, Api

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cellmw import Cells
    from cellmw.cell import Cell
    from cellmw.handles import Handles
    from cellmw.lease import Lease

LOG = logging.getLogger(__name__)

_WORLDS = itertools.count()
"""Numbers them, because the queues of a process are told apart by their names alone."""


def new_seed() -> int:
    """Return what makes the order of a run: another each time, or that in CELLMW_TEST_SEED. The log says which."""
    seed = int(os.environ.get("CELLMW_TEST_SEED") or random.SystemRandom().randrange(2**32))
    LOG.warning("CELLMW_TEST_SEED=%d repeats this order", seed)
    return seed


def until(condition: Callable[[], object]) -> None:
    """Return as soon as this is so, which has to be before patience ends."""
    deadline = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < deadline, "patience has ended"


def open_files(files: set[Path]) -> list[str]:
    """Return the names of those of these files that this process has open."""
    names = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed since
            file = descriptor.readlink()
            if file in files:
                names.append(file.name)
    return names


class Place(NamedTuple):
    """Where the URLs of a cell lead to: the names of a database and of a queue."""

    database: str
    queue: str


class CountedLeases(set[int]):
    """The open leases of some handles, which count how many have come and gone. Lives as long as the handles."""

    def __init__(self) -> None:
        super().__init__()
        self._begun, self._ended = itertools.count(), itertools.count()

    def add(self, lease: int) -> None:
        """One more."""
        super().add(lease)
        next(self._begun)

    def remove(self, lease: int) -> None:
        """One less; a KeyError where it is not there (any more)."""
        super().remove(lease)
        next(self._ended)

    @property
    def counts(self) -> tuple[int, int]:
        """How many have begun and ended; to be asked once, when all is over."""
        return next(self._begun), next(self._ended)


class Opened:
    """Handles that were opened for a cell, and what has become of them. Lives as long as its world.

    :ivar place: where they lead to
    :ivar leases: those that are open, which count
    :ivar closed: set when closing them has ended
    :ivar closings: how often their transport and their engine were closed
    :ivar close_fails: whether closing the transport raises, when all is done
    """

    def __init__(self, handles: Handles, may_close: threading.Event) -> None:
        """Watch them from now on.

        :param may_close: what closing them waits for
        """
        self.handles = handles
        self.place = place_of(handles.cell)
        self.leases = handles.leases = CountedLeases()
        self.closed = threading.Event()
        self.closings = [0, 0]
        self.close_fails = False
        self._may_close = may_close
        self._close, self._cleanup = handles.close, handles.transport.cleanup  # type: ignore[union-attr]
        handles.close = self._watch_close  # type: ignore[method-assign]
        handles.transport.cleanup = self._watch_cleanup  # type: ignore[union-attr]
        event.listen(handles.engine, "engine_disposed", self._watch_dispose)

    def _watch_close(self) -> None:
        self._close()
        self.closed.set()

    def _watch_cleanup(self) -> None:
        assert self._may_close.wait(PATIENCE)
        self.closings[0] += 1
        self._cleanup()
        if self.close_fails:
            raise RuntimeError("this transport does not like to be closed")

    def _watch_dispose(self, _: object) -> None:
        self.closings[1] += 1

    def __repr__(self) -> str:
        return f"<Opened {self.place} leases={len(self.leases)} {'closed' if self.closed.is_set() else 'open'}>"


def place_of(cell: Cell) -> Place:
    """Return where the URLs of a cell lead to."""
    database = Path(cell.reveal_database_connection().removeprefix("sqlite:///")).stem
    return Place(database, cell.reveal_transport_url().removeprefix("memory://").removesuffix("/"))


class Request:
    """A request for a cell, from its lease to its release. Lives as long as the test looks at it.

    :ivar context: aimed at the cell
    """

    _api = Api()

    def __init__(self, lease: Lease) -> None:
        """Aim a context by this lease."""
        self.lease = lease
        self.context = RequestContext(user_id="user", project_id=PROJECT, overwrite=False)
        target(self.context, lease)

    def read(self) -> str:
        """Ask the database for its name."""
        return self._api.database(self.context)

    def send(self, number: int) -> None:
        """Send this number to the queue."""
        self._api.reboot(self.context, str(number))

    def write(self) -> None:
        """Count one more visit in the database."""
        self._api.visit(self.context)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The same, in a transaction that lasts as long as a block."""
        with database.writer(self.context) as session:
            session.execute(text("UPDATE this_cell SET visits = visits + 1"))
            yield


class World:
    """An API database, cells that come, go and change, and a process that uses them. Lives as long as an example.

    :ivar store: the API database, for what happens behind the back of the process
    :ivar cells: what the process goes by
    :ivar opened: all handles that were ever opened, in order
    :ivar broken: the ids of cells that can't be opened
    :ivar may_open: cells can be opened while it is set
    :ivar may_close: handles can be closed while it is set
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        """Create an API database without cells in this folder.

        :param options: of ``[cellmw]``
        """
        self._folder = folder
        self._name = f"world{next(_WORLDS)}"
        self._numbers = itertools.count()
        self._inboxes: dict[str, Any] = {}
        self._ends = ExitStack()
        self.opened: list[Opened] = []
        self.broken: set[int] = set()
        self.may_open, self.may_close = threading.Event(), threading.Event()
        self.may_open.set()
        self.may_close.set()
        self.conf = cfg.ConfigOpts()
        self.conf([], project="cellmw", default_config_files=[], default_config_dirs=[])
        register_opts(self.conf)
        self.conf.set_override("connection", self._url(f"{self._name}-api"), group="api_database")
        for group in ("api_database", "cellmw_database"):
            self.conf.set_override("sqlite_synchronous", False, group=group)
        for name, value in options.items():
            self.conf.set_override(name, value, group="cellmw")
        self.store = self._ends.enter_context(deploy.store(self.conf))
        models.metadata.create_all(self.store.engine)
        self.cells = self.start()

    def start(self) -> Cells:
        """Begin anew with nothing open, as a process does that has just started."""
        self.cells = deploy.cells(self.conf, opener=self._open)
        return self.cells

    def new_cell(self) -> Cell:
        """Record a cell in a new place."""
        return self.store.create_cell(name=None, **self.urls(self.new_place()))

    def new_place(self) -> Place:
        """Make a database and a queue that no cell has yet."""
        return Place(self.new_database(), self.new_queue())

    def new_database(self) -> str:
        """Make a database, and return its name, which it holds."""
        name = f"{self._name}-database{next(self._numbers)}"
        with closing(sqlite3.connect(self._file(name))) as connection, connection:
            connection.executescript(
                f"PRAGMA synchronous = OFF; CREATE TABLE this_cell (name VARCHAR(255), visits INTEGER);"
                f"INSERT INTO this_cell VALUES ('{name}', 0)"
            )
        return name

    def new_queue(self) -> str:
        """Listen on a queue, and return its name."""
        name = f"{self._name}-queue{next(self._numbers)}"
        transport = oslo_messaging.get_rpc_transport(self.conf, f"memory://{name}/")
        self._ends.callback(transport.cleanup)
        listener = transport._driver.listen(oslo_messaging.Target(topic=TOPIC.topic, server="worker"), 1, None)
        self._inboxes[name] = listener._poll_style_listener
        return name

    def urls(self, place: Place) -> dict[str, Any]:
        """Return what the record of a cell in this place says."""
        return {"database_connection": self._url(place.database), "transport_url": f"memory://{place.queue}/"}

    def arrived(self, queue: str) -> list[int]:
        """Take what has arrived in a queue: a message is there as soon as its cast returns."""
        inbox, numbers = self._inboxes[queue], []
        while incoming := inbox.poll(timeout=0):
            numbers += [int(each.message["args"]["instance_uuid"]) for each in incoming]
        return numbers

    def everything_arrived(self) -> dict[str, list[int]]:
        """Take what has arrived in all queues, where there is anything."""
        return {queue: numbers for queue in self._inboxes if (numbers := self.arrived(queue))}

    def visits(self, database: str) -> int:
        """Ask a database, past the process, how many visits were committed."""
        with closing(sqlite3.connect(self._file(database))) as connection:
            visits: int = connection.execute("SELECT visits FROM this_cell").fetchone()[0]
            return visits

    def request(self, cell_id: int, deadline: float | None = None) -> Request:
        """Begin a request for this cell."""
        return Request(self.cells.lease(cell_id, deadline))

    def opened_as(self, handles: Handles) -> Opened:
        """Return what is known of these handles."""
        (opened,) = (each for each in self.opened if each.handles is handles)
        return opened

    def close(self) -> None:
        """End the process, which has to leave nothing open: asked at the kernel."""
        self.cells.close()
        for opened in self.opened:
            assert opened.closed.wait(PATIENCE), opened
        databases = {self._file(opened.place.database) for opened in self.opened}
        left_open = open_files(databases)
        self._ends.close()
        assert left_open == []

    def _open(self, cell: Cell, *how: Any) -> Handles:
        if cell.id in self.broken:
            raise CellMisconfigured(cell, "it is broken")
        handles = deploy.open_handles(cell, *how)
        self.opened.append(Opened(handles, self.may_close))
        assert self.may_open.wait(PATIENCE)
        return handles

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.sqlite"

    def _url(self, name: str) -> str:
        return f"sqlite:///{self._file(name)}"


def in_child(function: Callable[[], Any]) -> Any:
    """Fork, and return what the function returns in the child, by way of JSON; what it raises fails here, as text.

    A child that is stuck is ended by the kernel when patience ends.
    """
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # Python 3.12 and newer: there are threads. That is the point
        process = os.fork()
    if process == 0:
        try:
            signal.alarm(PATIENCE)
            try:
                report = ["returned", function()]
            except BaseException:  # noqa: BLE001 - it is reported
                report = ["raised", traceback.format_exc()]
            with os.fdopen(write, "w") as pipe:
                json.dump(report, pipe)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        reported = pipe.read()
    os.waitpid(process, 0)
    assert reported, "the child has ended without a report"
    how, what = json.loads(reported)
    assert how == "returned", what
    return what
