# SPDX-License-Identifier: Apache-2.0
"""Fork: the child opens handles of its own, and what its parent was doing goes on as if there had been no child.

What became of connections and transactions is asked at the servers.
"""

from __future__ import annotations

import http.client
import importlib.util
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from sqlalchemy import text

from cellmw import RequestContext, database
from tests.faults import fork_rig, fork_script
from tests.faults.fork_child import Child, ChildFailed, come_to
from tests.faults.fork_rig import CELLS, PATIENCE, App, Rig, use, use_cell, wait_for
from tests.faults.worker import ROOT
from tests.functional.conftest import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import sqlalchemy

    from cellmw import CellFilter, Cells
    from tests import servers

pytestmark = [
    # a process with threads that forks is what this is about; the second is eventlet's, which oslo.messaging imports
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Using fork:DeprecationWarning"),
]

NUMBERS = itertools.count(1)
"""What is cast: no number twice."""

EACH = pytest.mark.parametrize("cell", CELLS)


@pytest.fixture(scope="module")
def rig(
    tmp_path_factory: pytest.TempPathFactory,
    postgresql_server: sqlalchemy.URL,
    mariadb_server: sqlalchemy.URL,
    rabbitmq_server: servers.Broker,
) -> Iterator[Rig]:
    """The servers and the workers."""
    with Rig(tmp_path_factory.mktemp("fork"), postgresql_server, mariadb_server, rabbitmq_server) as rig:
        yield rig


@pytest.fixture
def app(rig: Rig) -> App:
    """The service behind the filter; both cells are without marks."""
    rig.clear()
    return App()


@pytest.fixture
def cell_filter(rig: Rig, app: App) -> Iterator[CellFilter]:
    """A filter that has served requests in both cells. In the end it has no lease open."""
    with closing(fork_rig.make_filter(rig.plan, app)) as cell_filter:
        for cell in CELLS:
            fork_rig.ask(rig.plan, cell_filter, cell)
        yield cell_filter
        assert cell_filter.cells.leases == 0


@pytest.fixture
def cells(cell_filter: CellFilter) -> Cells:
    """The cells behind it."""
    return cell_filter.cells


class Parent:
    """What this process is in the middle of: an open transaction in a cell, under a lease. Lives as long as the block.

    :ivar context: the targeted context
    :ivar session: what has an uncommitted mark
    :ivar connection: the number of its connection
    :ivar driver: its connection as the driver has it, which nothing of ours stands before
    """

    def __init__(self, rig: Rig, cell: str, context: Any, session: Any) -> None:
        self.context = context
        self.session = session
        self.connection = fork_rig.connection_number(session)
        self.driver = session.connection().connection.dbapi_connection
        self._rig = rig
        self._cell = cell
        self._queue = rig.queue_connections(cell, os.getpid())
        fork_rig.mark(session, "parent")

    def check(self) -> None:
        """Have a look at what the servers see of it."""
        assert self.connection in self._rig.connections(self._cell)
        assert self._queue == self._rig.queue_connections(self._cell, os.getpid())

    def check_afterwards(self) -> None:
        """Have a look when the children have gone, through its session, too."""
        assert self._queue
        assert fork_rig.connection_number(self.session) == self.connection
        self.check()


@contextmanager
def busy_parent(rig: Rig, cells: Cells, cell: str) -> Iterator[Parent]:
    """Be in the middle of things; in the end the transaction is committed, and seen by others."""
    with cells.target(RequestContext(overwrite=False), cells.get(cell)) as context:
        use(context)
        with database.writer(context) as session:
            parent = Parent(rig, cell, context, session)
            yield parent
            parent.check_afterwards()
            assert "parent" not in rig.marks(cell)
        assert "parent" in rig.marks(cell)
        number = next(NUMBERS)
        assert use(context, number=number)["worker"] == cell
        assert_arrives(rig, cell, number)
        # the one that replies come by, and the one that calls go by, are still the same
        parent.check()


def assert_arrives(rig: Rig, cell: str, number: int) -> None:
    """A number that was cast is noted by the worker of the cell."""
    assert number in wait_for(rig.workers[cell].received, lambda received: number in received)


def look(parent: Parent, cells: Cells, cell: str, number: int) -> dict[str, Any]:
    """Do in a child what it can and what it can't."""
    inherited = [fork_rig.raised(partial(way, parent.context)) for way in (fork_rig.read, fork_rig.cast)]
    return {"inherited": inherited, "own": use_cell(cells, cell, "child", number)}


def check_report(rig: Rig, parent: Parent, cell: str, report: dict[str, Any], number: int) -> None:
    """What a child has said of itself is right, and the server says so, too."""
    assert report["inherited"] == ["CellsClosed", "CellsClosed"]
    assert report["own"]["worker"] == cell
    assert report["own"]["connection"] != parent.connection
    assert {report["own"]["connection"], parent.connection} <= rig.connections(cell)
    assert rig.marks(cell) == ["child"]
    assert_arrives(rig, cell, number)


def roll_back(parent: Parent, cells: Cells) -> None:
    """Roll back what was inherited; that it fails is all right."""
    with suppress(Exception):
        parent.session.rollback()


def close_session(parent: Parent, cells: Cells) -> None:
    """Close what was inherited; that it fails is all right."""
    with suppress(Exception):
        parent.session.close()


def commit(parent: Parent, cells: Cells) -> None:
    """Commit what was inherited, which is refused: it is not the child's to commit."""
    assert fork_rig.raised(parent.session.commit)


def close_cells(parent: Parent, cells: Cells) -> None:
    """Close all handles that the child has."""
    cells.close()


def end_by_driver(parent: Parent, cells: Cells) -> None:
    """Roll back and close, past everything of ours, what was inherited; that it fails is all right."""
    for way in (parent.driver.rollback, parent.driver.close):
        with suppress(Exception):
            way()


ENDS: dict[str, Callable[[Parent, Cells], object]] = {
    "exits": lambda parent, cells: None,
    "rolls back": roll_back,
    "closes its session": close_session,
    "commits": commit,
    "rolls back by the driver": end_by_driver,
    "closes the cells": close_cells,
}


@EACH
@pytest.mark.parametrize("end", ENDS)
def test_parent_is_whole(rig: Rig, cells: Cells, cell: str, end: str) -> None:
    """Whatever a child does with what it has inherited, its parent's transaction and connections stay whole."""
    number = next(NUMBERS)
    with (
        busy_parent(rig, cells, cell) as parent,
        Child(lambda: look(parent, cells, cell, number), lambda: ENDS[end](parent, cells)) as child,
    ):
        check_report(rig, parent, cell, child.report(), number)
        parent.check()
        child.end()
    assert rig.marks(cell) == ["child", "parent"]


@EACH
def test_inherited_session(rig: Rig, cells: Cells, cell: str) -> None:
    """A child can't use an inherited session, as is said, and it can leave it as if nothing were the matter."""
    with busy_parent(rig, cells, cell) as parent:

        def use_it() -> list[str]:
            session = parent.session
            ways: list[Callable[[], object]] = [
                lambda: session.execute(text("SELECT 1")),
                session.commit,
                session.rollback,
                session.close,
            ]
            return [fork_rig.raised(way) for way in ways]

        assert come_to(use_it) == ["CellsClosed", "CellsClosed", "", ""]


@EACH
def test_breaker_is_held(rig: Rig, cells: Cells, cell: str) -> None:
    """A child leaves an inherited session whatever another thread of its parent was doing to the breaker."""
    breaker = cells._pool.handles[cells.get(cell).id].database.breaker
    with busy_parent(rig, cells, cell) as parent:
        with breaker._lock:
            child = Child(lambda: roll_back(parent, cells))
        with child:
            child.report()


@EACH
def test_killed(rig: Rig, cells: Cells, cell: str) -> None:
    """A child that is killed takes nothing of its parent's with it."""
    number = next(NUMBERS)
    with busy_parent(rig, cells, cell) as parent, Child(lambda: look(parent, cells, cell, number)) as child:
        check_report(rig, parent, cell, child.report(), number)
        child.kill()


@EACH
def test_own_connections_go(rig: Rig, cells: Cells, cell: str) -> None:
    """What a child has opened itself is gone when it has closed its cells."""
    with busy_parent(rig, cells, cell) as parent:
        before = rig.connections(cell)
        with Child(lambda: use_cell(cells, cell), cells.close) as child:
            own = child.report()["connection"]
            assert own in rig.connections(cell) - before
            assert rig.queue_connections(cell, child.pid)
            child.end()
        assert wait_for(lambda: rig.connections(cell), lambda seen: own not in seen) == before
        assert wait_for(lambda: rig.queue_connections(cell, child.pid), lambda seen: not seen) == set()
        assert parent.connection in before


def test_api_database(rig: Rig, cells: Cells) -> None:
    """A child asks the API database by a connection of its own, and its parent goes on with the one that it has."""

    def ask() -> list[str | None]:
        return [cell.name for cell in cells.all()]

    names = ask()
    before = rig.connections("api")
    with Child(ask, cells.close) as child:
        assert child.report() == names
        during = rig.connections("api")
        assert before < during
        child.end()
    assert wait_for(lambda: rig.connections("api"), lambda seen: seen == before) == before
    assert ask() == names
    assert rig.connections("api") == before


@EACH
def test_several_at_once(rig: Rig, cells: Cells, cell: str) -> None:
    """Children that live at the same time, forked by a parent in the middle of things, each have their own."""
    with busy_parent(rig, cells, cell) as parent, ExitStack() as living:
        children = [living.enter_context(Child(lambda: use_cell(cells, cell, "child"))) for _ in range(4)]
        reports = [child.report() for child in children]
        numbers = {report["connection"] for report in reports}
        assert len(numbers | {parent.connection}) == 5
        assert numbers | {parent.connection} <= rig.connections(cell)
        parent.check()
        for child in children:
            child.end()
    assert rig.marks(cell) == [*["child"] * 4, "parent"]


@EACH
def test_grandchild(rig: Rig, cells: Cells, cell: str) -> None:
    """A child that has used its cells and is in the middle of things can have a child, as its parent can."""

    def child() -> dict[str, Any]:
        with cells.target(RequestContext(overwrite=False), cells.get(cell)) as context:
            use(context)
            with database.writer(context) as session:
                fork_rig.mark(session, "child")
                own = fork_rig.connection_number(session)
                with Child(lambda: use_cell(cells, cell, "grandchild"), session.rollback) as one:
                    grandchild = one.report()
                    with suppress(ChildFailed):  # the rollback may fail
                        one.end()
            return {"child": own, "grandchild": grandchild["connection"], "worker": use(context)["worker"]}

    with busy_parent(rig, cells, cell) as parent:
        report = come_to(child)
        assert report["worker"] == cell
        assert len({report["child"], report["grandchild"], parent.connection}) == 3
    assert rig.marks(cell) == ["child", "grandchild", "parent"]


@EACH
def test_in_a_handler(rig: Rig, app: App, cell_filter: CellFilter, cell: str) -> None:
    """A handler that forks answers its request; its child has nothing of the request, and serves its own."""
    reports = []

    def serve(context: Any) -> dict[str, Any]:
        app.handle = lambda context: None
        inherited = [fork_rig.raised(partial(way, context)) for way in (fork_rig.read, fork_rig.cast)]
        return {"inherited": inherited, "own": fork_rig.ask(rig.plan, cell_filter, cell)}

    def handle(context: Any) -> None:
        with database.writer(context) as session:
            fork_rig.mark(session, "parent")
            with Child(lambda: serve(context)) as child:
                reports.append(child.report())
                child.end()

    app.handle = handle
    answer = fork_rig.ask(rig.plan, cell_filter, cell)
    assert answer["worker"] == cell
    [report] = reports
    assert report["inherited"] == ["CellsClosed", "CellsClosed"]
    assert report["own"]["worker"] == cell
    assert report["own"]["process"] != answer["process"]
    assert report["own"]["connection"] != answer["connection"]
    assert rig.marks(cell) == ["parent"]


@EACH
def test_multiprocessing(rig: Rig, cells: Cells, cell: str) -> None:
    """A process that multiprocessing forks is a child like any other."""
    forking = multiprocessing.get_context("fork")
    receiver, sender = forking.Pipe(duplex=False)
    number = next(NUMBERS)
    with busy_parent(rig, cells, cell) as parent:
        child = forking.Process(target=lambda: sender.send(look(parent, cells, cell, number)))
        child.start()
        sender.close()
        try:
            assert receiver.poll(PATIENCE)
            report = receiver.recv()
            child.join(PATIENCE)
            assert child.exitcode == 0
        finally:
            child.kill()
            child.join()
            receiver.close()
        assert report["inherited"] == ["CellsClosed", "CellsClosed"]
        assert report["own"]["connection"] != parent.connection
        assert_arrives(rig, cell, number)
    assert rig.marks(cell) == ["child", "parent"]


@EACH
def test_inside_a_statement(rig: Rig, cells: Cells, cell: str) -> None:
    """A statement of another thread's that is under way goes on, and its thread gets to see its result."""

    def wait_for_lock() -> int:
        with (
            cells.target(RequestContext(overwrite=False), cells.get(cell)) as context,
            database.writer(context) as session,
        ):
            return session.execute(text("UPDATE marks SET name = 'thread' WHERE name IN ('before', 'locked')")).rowcount

    use_cell(cells, cell, "before")
    with ThreadPoolExecutor(1) as threads:
        with busy_parent(rig, cells, cell) as parent:
            parent.session.execute(text("UPDATE marks SET name = 'locked' WHERE name = 'before'"))
            waiting = threads.submit(wait_for_lock)
            assert wait_for(lambda: updates(rig, cell), bool)
            assert use_cell_in_child(cells, cell)["worker"] == cell
            assert updates(rig, cell)
        assert waiting.result(PATIENCE) == 1
    assert rig.marks(cell) == ["parent", "thread"]


def updates(rig: Rig, cell: str) -> list[str]:
    """Return the updates that a cell's database is doing."""
    return [statement for statement in rig.statements(cell) if (statement or "").startswith("UPDATE marks")]


def use_cell_in_child(cells: Cells, cell: str) -> dict[str, Any]:
    """Use a cell in a child, which then closes all that it has."""
    with Child(lambda: use_cell(cells, cell), cells.close) as child:
        report: dict[str, Any] = child.report()
        child.end()
    return report


@pytest.fixture
def hole(rig: Rig) -> Iterator[socket.socket]:
    """What takes connections for the database of one more cell, "hole", and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        port = listener.getsockname()[1]
        rig.add_cell(f"hole-{port}", f"postgresql+psycopg://nobody@127.0.0.1:{port}/nothing?connect_timeout=60")
        yield listener


@EACH
def test_while_another_connects(rig: Rig, cells: Cells, hole: socket.socket, cell: str) -> None:
    """A thread that is connecting meanwhile hinders no child, and is hindered by none."""
    name = f"hole-{hole.getsockname()[1]}"
    with ThreadPoolExecutor(1) as threads:
        connecting = threads.submit(lambda: fork_rig.raised(lambda: use_cell(cells, name)))
        taken, _ = hole.accept()
        with taken, busy_parent(rig, cells, cell):
            assert use_cell_in_child(cells, cell)["worker"] == cell
            assert not connecting.done()
        hole.close()
        assert connecting.result(PATIENCE) == "CellUnavailable"


def test_while_another_waits_for_a_lease(rig: Rig, app: App) -> None:
    """A child has all the places for open cells, whoever waits for one in its parent, who then gets it."""
    busy, wanted = CELLS
    with closing(fork_rig.make_filter(rig.plan, app, max_open_cells="1")) as cell_filter:
        cells = cell_filter.cells
        cells.get(wanted)
        with ThreadPoolExecutor(1) as threads:
            with busy_parent(rig, cells, busy):
                waiting = threads.submit(use_cell, cells, wanted)
                assert wait_for(lambda: len(cells._pool._waiting), bool)

                def use_all() -> list[str]:
                    return [use_cell(cells, cell)["worker"] for cell in (busy, wanted, busy)]

                assert come_to(use_all) == [busy, wanted, busy]
                assert not waiting.done()
            assert waiting.result(PATIENCE)["worker"] == wanted


def test_under_load(rig: Rig, cells: Cells) -> None:
    """Children are forked at any moment of what other threads do: all of them and all threads get their answers."""
    ended = threading.Event()

    def go_on(cell: str) -> int:
        count = 0
        while not ended.is_set():
            assert use_cell(cells, cell)["worker"] == cell
            count += 1
        return count

    with ThreadPoolExecutor(4) as threads:
        counts = [threads.submit(go_on, cell) for cell in CELLS * 2]
        try:
            for cell in CELLS * 5:
                assert come_to(lambda cell=cell: use_cell(cells, cell))["worker"] == cell
        finally:
            ended.set()
        assert all(count.result(PATIENCE) for count in counts)


@EACH
@pytest.mark.parametrize("way", fork_script.WAYS)
def test_interpreter_ends(rig: Rig, app: App, cell: str, way: str) -> None:
    """A child whose interpreter ends, by itself or by an error, with all finalizers, leaves its parent whole."""
    plan = rig.plan | {"cell": cell, "way": way}
    ran = subprocess.run(
        # what oslo.messaging's imports warn of is not about us
        [sys.executable, "-W", "ignore", "-m", "tests.faults.fork_script"],
        cwd=ROOT,
        input=f"{json.dumps(plan)}\n",
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    said: dict[str, Any] = {}
    for line in ran.stdout.splitlines():
        said |= json.loads(line)
    assert said["child"]["worker"] == said["parent"]["worker"] == cell
    # which of them is not the question: an inherited session may be left with an error
    assert said["status"] in (1, 3)
    assert said["same"]
    assert rig.marks(cell) == ["child", "parent"]


class Server:
    """A WSGI server with workers, which loads the application before it forks. Lives as long as its block.

    :ivar loaded: what the master has said of itself
    """

    def __init__(self, rig: Rig, folder: Path, command: list[str]) -> None:
        """Start nothing yet.

        :param command: the server, which takes ``{socket}`` as the path of the socket that it listens at
        """
        self._rig = rig
        self._folder = folder
        self._socket = folder / "socket"
        self._command = [part.format(socket=self._socket) for part in command]

    def __enter__(self) -> Self:
        names = ("loaded", "commit", "committed")
        self._plan = self._rig.plan | {name: str(self._folder / name) for name in names}
        (self._folder / "plan").write_text(json.dumps(self._plan))
        paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment = {
            "CELLMW_FORK_PLAN": str(self._folder / "plan"),
            "PYTHONWARNINGS": "ignore",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        self._output = (self._folder / "output").open("w+")
        self._process = subprocess.Popen(
            self._command,
            env=os.environ | environment,
            cwd=ROOT,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            assert wait_for(lambda: self._is_up() or self._process.poll() is not None, bool), self.output()
            assert self._process.poll() is None, self.output()
            self.loaded = json.loads((self._folder / "loaded").read_text())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # to gunicorn and to uWSGI it says: end at once
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._output.close()

    def _is_up(self) -> bool:
        # uWSGI listens before it loads
        if not (self._folder / "loaded").exists():
            return False
        with socket.socket(socket.AF_UNIX) as connection:
            return connection.connect_ex(str(self._socket)) == 0

    def output(self) -> str:
        """Return what it has printed."""
        return (self._folder / "output").read_text()

    def ask(self, cell: str) -> dict[str, Any]:
        """Ask for the instance in a cell."""
        client = http.client.HTTPConnection("localhost", timeout=PATIENCE)
        with closing(client), socket.socket(socket.AF_UNIX) as client.sock:
            client.sock.settimeout(PATIENCE)
            client.sock.connect(str(self._socket))
            headers = {"X-Project-Id": PROJECT, "Connection": "close"}
            client.request("GET", f"/servers/{self._plan['instances'][cell]}", headers=headers)
            response = client.getresponse()
            content = response.read()
        assert response.status == 200, (content, self.output())
        answer: dict[str, Any] = json.loads(content)
        return answer

    def ask_until_all_have_answered(self, cell: str, workers: int) -> list[dict[str, Any]]:
        """Ask, several at a time, until this many workers have answered; return their answers."""
        answers: list[dict[str, Any]] = []

        def ask_more() -> int:
            answers.extend(threads.map(self.ask, [cell] * 8))
            return len({answer["process"] for answer in answers})

        with ThreadPoolExecutor(8) as threads:
            assert wait_for(ask_more, lambda seen: seen >= workers) == workers
        return answers

    def commit(self) -> dict[str, Any]:
        """Have the master commit; return what it has done after that, in each cell."""
        (self._folder / "commit").touch()
        committed = {cell: self._folder / f"committed.{cell}" for cell in CELLS}
        assert wait_for(lambda: all(file.exists() for file in committed.values()), bool), self.output()
        return {cell: json.loads(file.read_text()) for cell, file in committed.items()}


def check_server(rig: Rig, folder: Path, command: list[str]) -> None:
    """Workers have connections of their own, and leave their master's alone."""
    with Server(rig, folder, command) as server:
        masters = server.loaded["connections"]
        before = {cell: rig.connections(cell) for cell in CELLS}
        queues = {cell: rig.queue_connections(cell, server.loaded["process"]) for cell in CELLS}
        for cell in CELLS:
            answers = server.ask_until_all_have_answered(cell, workers=2)
            assert {answer["worker"] for answer in answers} == {cell}
            by_process: dict[int, set[int]] = {}
            for answer in answers:
                by_process.setdefault(answer["process"], set()).add(answer["connection"])
            assert server.loaded["process"] not in by_process
            first, second = by_process.values()
            assert not first & second
            # not even those that were idle in the master
            assert not (first | second) & before[cell]
            assert masters[cell] in rig.connections(cell)
            for process in by_process:
                assert rig.queue_connections(cell, process)
            assert rig.marks(cell) == []
        again = server.commit()
        for cell in CELLS:
            assert again[cell]["worker"] == cell
            assert rig.marks(cell) == ["master"]
            assert queues[cell]
            assert queues[cell] == rig.queue_connections(cell, server.loaded["process"])


@pytest.mark.skipif(importlib.util.find_spec("gunicorn") is None, reason="gunicorn is not installed")
def test_gunicorn(rig: Rig, app: App, tmp_path: Path) -> None:
    """The workers of gunicorn --preload, with threads."""
    options = ["--preload", "--workers", "2", "--worker-class", "gthread", "--threads", "2", "--bind", "unix:{socket}"]
    check_server(rig, tmp_path, [sys.executable, "-m", "gunicorn", *options, "tests.faults.fork_server:application"])


@pytest.mark.skipif(shutil.which("uwsgi") is None, reason="uWSGI is not installed")
def test_uwsgi(rig: Rig, app: App, tmp_path: Path) -> None:
    """The workers of uWSGI, which forks after loading.

    Without its fork hooks it forks whatever threads are doing in Python: its workers get stuck where one of them runs.
    """
    options = ["--master", "--processes", "2", "--enable-threads", "--threads", "2", "--py-call-uwsgi-fork-hooks"]
    home = ["--virtualenv", sys.prefix, "--http-socket", "{socket}", "--module", "tests.faults.fork_server:application"]
    check_server(rig, tmp_path, [str(shutil.which("uwsgi")), *options, *home])
