# SPDX-License-Identifier: Apache-2.0
"""Several cells asked at once: what comes of each, who waits for whom, and what is left when it is over."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import threading
import traceback
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any

import oslo_context.context
import pytest
from sqlalchemy import text

from cellmw import database, deploy
from cellmw import scatter as module
from cellmw.cell import Cell
from cellmw.context import RequestContext, target
from cellmw.crew import MAX_STUCK
from cellmw.deadline import after
from cellmw.exceptions import (
    CellBusy,
    CellMisconfigured,
    CellNotFound,
    CellsClosed,
    CellUnavailable,
    DeadlineExceeded,
    LeaseClosed,
)
from cellmw.scatter import scatter
from tests.faults.fork_child import come_to
from tests.unit.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from oslo_config import cfg

    from cellmw.cell_result import CellResult
    from cellmw.cells import Cells
    from cellmw.store import Store

    Where = Callable[[Any], str]

SHORT = 0.15
"""Seconds within which a cell that answers has answered."""

ENDLESS = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")
"""A statement that SQLite works on until it is interrupted."""


@pytest.fixture(autouse=True)
def nothing_stays_open(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does, no lease is open after it, and every thread comes back."""
    cells: Cells = request.getfixturevalue("cells")
    yield
    until(lambda: not any(cells.left_behind.values()) and cells.leases == 0)


@pytest.fixture
def context() -> RequestContext:
    """A context that is aimed at no cell."""
    return RequestContext(user_id="user", project_id="project", overwrite=False)


@pytest.fixture
def hang() -> Iterator[Hang]:
    """A function that does not come back from cell1 before the test lets it, at its end at the latest."""
    hang = Hang("cell1")
    yield hang
    hang.let_go.set()


class Hang:
    """A function that does not come back from one cell, and returns ``"done"`` from others. Lives as long as the test.

    :ivar seen: the contexts that it was called with in the cell, and what each had of the cell when it came back
    """

    def __init__(self, name: str) -> None:
        self.let_go = threading.Event()
        self.is_there = threading.Semaphore(0)
        self.seen: list[tuple[Any, BaseException | None]] = []
        self._name = name

    def __call__(self, context: Any) -> str:
        """Ask the cell."""
        if context.db_connection._lease.cell.name != self._name:
            return "done"
        self.is_there.release()
        assert self.let_go.wait(PATIENCE)
        error = None
        try:
            with database.reader(context) as session:
                session.scalar(text("SELECT 1"))
        except LeaseClosed as closed:
            error = closed
        self.seen.append((context, error))
        return "late"


def until(condition: Callable[[], object]) -> None:
    """Return when this is so."""
    deadline = after(PATIENCE)
    while not condition():
        assert monotonic() < deadline
        threading.Event().wait(0.001)


def name_of(context: Any) -> str:
    """Ask the cell's database for the name of the cell."""
    with database.reader(context) as session:
        return str(session.scalar(text("SELECT name FROM this_cell")))


def leave_behind(context: Any, cells: Cells, hang: Hang, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave as many threads in the cell that hangs as may be stuck there."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "SLOW", 0.0)
        for _ in range(MAX_STUCK):
            in_time(context, cells, hang, enough=lambda _: hang.is_there.acquire(timeout=PATIENCE))


def outcomes(results: list[CellResult]) -> dict[str, str]:
    """Return the statuses, by the names of the cells."""
    return {str(result.cell): result.status for result in results}


def in_time(context: Any, cells: Cells, function: Callable[[Any], Any], **options: Any) -> list[CellResult]:
    """Ask with much time."""
    return scatter(context, cells, function, deadline=after(PATIENCE), **options)


# what comes of it


def test_every_cell_at_once(
    cells: Cells, context: RequestContext, cell0: Cell, cell1: Cell, new_cell: Callable[..., Cell]
) -> None:
    """Every cell is asked, cell0 and disabled ones included, all at the same time; results are in the cells' order."""
    disabled = new_cell("disabled", disabled=True)
    barrier = threading.Barrier(3)

    def function(context: Any) -> str:
        barrier.wait(PATIENCE)
        return name_of(context)

    results = in_time(context, cells, function)
    assert [(result.cell, result.value) for result in results] == [
        (cell, cell.name) for cell in sorted([cell0, cell1, disabled], key=lambda cell: cell.id)
    ]
    assert {(result.status, result.error) for result in results} == {("ok", None)}
    assert cells.leases == 0


def test_among(cells: Cells, context: RequestContext, cell0: Cell, cell1: Cell, cell2: Cell) -> None:
    """Only those cells are asked that are wanted; results are in the order in which they were."""
    results = in_time(context, cells, name_of, among=iter([cell2, cell1]))
    assert [result.value for result in results] == ["cell2", "cell1"]
    assert [result.value for result in in_time(context, cells, name_of, among=[cell1])] == ["cell1"]
    assert in_time(context, cells, name_of, among=[]) == []


def test_no_cells(cells: Cells, context: RequestContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no cells, which are read in time, there is nothing to wait for."""
    known, deadlines = cells.known, []

    def read(deadline: float) -> list[Cell]:
        deadlines.append(deadline)
        return known(deadline)

    monkeypatch.setattr(cells, "known", read)
    deadline = after(PATIENCE)
    assert (scatter(context, cells, name_of, deadline=deadline), deadlines) == ([], [deadline])


def test_two_hundred_cells(cells: Cells, context: RequestContext, store: Store) -> None:
    """As many cells are asked at once as there are."""
    store.import_cells(
        Cell(number, f"{number:036}", f"cell{number}", False, f"memory://{number}/", f"sqlite:///{number}")
        for number in range(1, 201)
    )
    barrier = threading.Barrier(200)
    results = in_time(context, cells, lambda _: barrier.wait(PATIENCE))
    assert sorted(result.value for result in results) == list(range(200))


def test_own_context(cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell) -> None:
    """Each call has a copy of the context, aimed at its cell by a lease of its own, which ends with the call."""

    def look(context: Any) -> tuple[Any, str, float]:
        return context, context.cell_uuid, context.db_connection._lease.deadline

    deadline = after(PATIENCE)
    seen = [result.value for result in scatter(context, cells, look, deadline=deadline)]
    copies = [copied for copied, *_ in seen]
    assert [each for _, *each in seen] == [[cell1.uuid, deadline], [cell2.uuid, deadline]]
    assert len({id(each) for each in (context, *copies)}) == 3
    assert {copied.request_id for copied in copies} == {context.request_id}
    assert (context.db_connection, context.mq_connection, context.cell_uuid) == (None, None, None)
    for copied in copies:
        with pytest.raises(LeaseClosed):
            name_of(copied)


def test_within_a_request(cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell) -> None:
    """A context that is aimed at a cell, in the middle of a transaction there, stays as it is."""
    with cells.target(context, cell2) as targeted, database.reader(targeted) as session:
        assert [result.value for result in in_time(targeted, cells, name_of)] == ["cell1", "cell2"]
        assert name_of(targeted) == "cell2"
        assert session is targeted.session
        assert cells.leases == 1


class OddError(BaseException):
    """An error of a function's own."""


@pytest.mark.parametrize("error", [KeyError("k"), OddError(), SystemExit(1), LookupError()], ids=repr)
def test_error(cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell, error: BaseException) -> None:
    """An error is that of its cell alone, and is the very one, with the traceback into the function."""

    def fail(context: Any) -> None:
        if name_of(context) == "cell1":
            raise error

    first, second = in_time(context, cells, fail)
    assert (first.status, first.value, second.status) == ("error", None, "ok")
    assert first.error is error
    assert traceback.extract_tb(error.__traceback__)[-1].name == "fail"


def test_errors_of_waits(cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell) -> None:
    """What a function was too late for is a timeout; a cell that it has lost was asked, and not skipped."""

    def fail(context: Any) -> None:
        cell = context.db_connection._lease.cell
        raise DeadlineExceeded("something") if cell == cell1 else CellUnavailable(cell, "database")

    results = in_time(context, cells, fail)
    assert outcomes(results) == {"cell1": "timeout", "cell2": "error"}
    assert [type(result.error) for result in results] == [DeadlineExceeded, CellUnavailable]


def test_cell_that_cannot_be_leased(
    cells: Cells, context: RequestContext, cell1: Cell, new_cell: Callable[..., Cell]
) -> None:
    """A cell that can't be opened, and one that is gone, are errors of their own, and nobody else's."""
    new_cell("bad", database_connection="nosuch://user:hidden-word@host/")
    gone = Cell(99, "gone", "gone", False, None, None)
    results = in_time(context, cells, name_of, among=[*cells.all(), gone])
    assert outcomes(results) == {"cell1": "ok", "bad": "error", "gone": "error"}
    assert [type(result.error) for result in results[1:]] == [CellMisconfigured, CellNotFound]
    assert "hidden-word" not in repr(results)


def test_too_many_leases(conf: cfg.ConfigOpts, cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell) -> None:
    """A cell that has as many leases as it may have is not asked; what the caller has leased counts."""
    conf.set_override("max_leases_per_cell", 1, group="cellmw")
    with deploy.cells(conf) as limited, limited.target(context, cell1) as targeted:
        results = in_time(targeted, limited, name_of)
        assert outcomes(results) == {"cell1": "skipped", "cell2": "ok"}
        assert isinstance(results[0].error, CellBusy)
        assert limited.leases == 1


def test_closed(cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell) -> None:
    """Once the cells have been closed, each says so."""
    in_time(context, cells, name_of)
    cells.close()
    assert [type(result.error) for result in in_time(context, cells, name_of)] == [CellsClosed, CellsClosed]


def test_no_more_threads(
    cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell that no thread could be sent to is an error of its own."""
    give, given = cells.crew.give, []

    def give_one(visit: Any) -> None:
        given.append(visit)
        if len(given) > 1:
            raise RuntimeError("can't start new thread")
        give(visit)

    monkeypatch.setattr(cells.crew, "give", give_one)
    assert outcomes(in_time(context, cells, name_of)) == {"cell1": "ok", "cell2": "error"}


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_remembered(cells: Cells, context: RequestContext, cell1: Cell, fails: bool) -> None:
    """What a function was given, has returned or raised is freed with the results, and not some time later."""
    seen: list[weakref.ref[Any]] = []

    def function(context: Any) -> Any:
        seen.append(weakref.ref(context))
        if fails:
            raise LookupError
        return context

    gc.disable()
    try:
        results = in_time(context, cells, function)
        assert len(results) == 1
        del results
        until(lambda: seen[0]() is None)
    finally:
        gc.enable()


# cells that do not answer


@pytest.mark.parametrize("down_cell", ["503", "degrade"])
def test_down(conf: cfg.ConfigOpts, cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell, down_cell: str):
    """A cell whose database is known to be down is skipped at once, and says why, however requests treat it."""
    conf.set_override("down_cell", down_cell, group="cellmw")
    with deploy.cells(conf) as cells:
        in_time(context, cells, name_of)
        with cells.lease(cell1.id) as lease:
            lease.handles.database.breaker.failed("TimeoutError")
        asked: list[str] = []
        results = in_time(context, cells, lambda context: asked.append(context.cell_uuid))
        assert outcomes(results) == {"cell1": "skipped", "cell2": "ok"}
        assert asked == [cell2.uuid]
        assert isinstance(results[0].error, CellUnavailable)
        assert results[0].error.cause == "TimeoutError"
        assert cells.leases == 0


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """A server that accepts whoever connects, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def url_of(server: socket.socket) -> str:
    """Return the URL of a database there."""
    return f"mysql+pymysql://user:hidden-word@127.0.0.1:{server.getsockname()[1]}/cell"


def test_dead(
    cells: Cells, context: RequestContext, cell1: Cell, new_cell: Callable[..., Cell], server: socket.socket
) -> None:
    """A database that nobody listens for is its cell's error, and delays nobody; next time the cell is skipped."""
    new_cell("dead", database_connection=url_of(server))
    server.close()
    results = in_time(context, cells, name_of)
    assert outcomes(results) == {"cell1": "ok", "dead": "error"}
    assert isinstance(results[1].error, CellUnavailable)
    assert outcomes(in_time(context, cells, name_of)) == {"cell1": "ok", "dead": "skipped"}


def test_frozen(
    cells: Cells, context: RequestContext, cell1: Cell, new_cell: Callable[..., Cell], server: socket.socket
) -> None:
    """A database that says nothing is waited for until the deadline, and no longer."""
    new_cell("frozen", database_connection=url_of(server))
    in_time(context, cells, name_of, among=[cell1])
    began = monotonic()
    results = scatter(context, cells, name_of, deadline=after(SHORT))
    took = monotonic() - began
    assert outcomes(results) == {"cell1": "ok", "frozen": "timeout"}
    assert isinstance(results[1].error, DeadlineExceeded)
    assert SHORT <= took < 1
    # the driver is let go of, in which the connecting thread is stuck
    server.close()


def test_statement_is_ended(cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell) -> None:
    """A statement that takes too long is ended, and the thread that waits for it comes back."""
    in_time(context, cells, name_of)
    ended = threading.Event()

    def function(context: Any) -> None:
        if context.cell_uuid == cell1.uuid:
            try:
                with database.reader(context) as session:
                    session.scalar(ENDLESS)
            finally:
                ended.set()

    results = scatter(context, cells, function, deadline=after(SHORT))
    assert outcomes(results) == {"cell1": "timeout", "cell2": "ok"}
    assert ended.wait(PATIENCE)
    assert outcomes(in_time(context, cells, name_of)) == {"cell1": "ok", "cell2": "ok"}


def test_hung_function(cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell, hang: Hang) -> None:
    """A function that hangs has lost its lease when it goes on: it gets nothing of the cell, and nobody its result."""
    in_time(context, cells, name_of)
    results = scatter(context, cells, hang, deadline=after(SHORT))
    assert outcomes(results) == {"cell1": "timeout", "cell2": "ok"}
    assert isinstance(results[0].error, DeadlineExceeded)
    assert all(visit.overdue_at <= monotonic() for visit in cells.left_behind[cell1.id])  # type: ignore[attr-defined]
    assert (cells.leases, len(cells.left_behind[cell1.id]), len(cells.left_behind[cell2.id])) == (0, 1, 0)
    hang.let_go.set()
    until(lambda: not cells.left_behind[cell1.id])
    ((_, error),) = hang.seen
    assert isinstance(error, LeaseClosed)
    assert (results[0].status, results[0].value) == ("timeout", None)


def test_open_transaction_of_a_hung_function(
    cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell, hang: Hang
) -> None:
    """A connection that a function has in its hands is nobody else's before it is back, and no use to itself."""
    in_time(context, cells, name_of)
    connections: list[Any] = []
    errors: list[BaseException] = []

    def function(context: Any) -> bool:
        if context.cell_uuid == cell2.uuid:
            return hang.is_there.acquire(timeout=PATIENCE)
        try:
            with database.writer(context) as session:
                session.execute(text("UPDATE this_cell SET name = 'late'"))
                connections.append(session.connection().connection.dbapi_connection)
                hang.is_there.release()
                assert hang.let_go.wait(PATIENCE)
                session.execute(text("SELECT 1"))
        except LeaseClosed as error:
            errors.append(error)
        return False

    assert outcomes(in_time(context, cells, function, enough=bool)) == {"cell1": "skipped", "cell2": "ok"}
    with cells.target(context, cell1) as targeted, database.reader(targeted) as session:
        assert session.connection().connection.dbapi_connection is not connections[0]
    hang.let_go.set()
    until(lambda: not cells.left_behind[cell1.id])
    assert [type(error) for error in errors] == [LeaseClosed]
    assert in_time(context, cells, name_of)[0].value == "cell1"


def test_too_many_stuck(
    cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell, hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell in which several functions hang is skipped at once, as long as they do; others are asked as ever."""
    leave_behind(context, cells, hang, monkeypatch)
    for _ in range(10):
        results = in_time(context, cells, hang)
        assert outcomes(results) == {"cell1": "skipped", "cell2": "ok"}
        assert isinstance(results[0].error, CellBusy)
    assert (cells.leases, len(cells.left_behind[cell1.id])) == (0, MAX_STUCK)
    hang.let_go.set()
    until(lambda: not cells.left_behind[cell1.id])
    assert outcomes(in_time(context, cells, name_of)) == {"cell1": "ok", "cell2": "ok"}


def test_threads(cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell, hang: Hang) -> None:
    """There are as many threads as cells are asked at a time, and those that hang; the next time they are the same."""
    before = threading.active_count()
    for _ in range(10):
        scatter(context, cells, hang, deadline=after(SHORT / 10))
    # one of the two may have been on its way back when the next were needed
    assert threading.active_count() - before <= MAX_STUCK + 2 + 1


def test_deadline_has_passed(cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell) -> None:
    """Where there is no time no cell is asked."""
    asked: list[object] = []
    results = scatter(context, cells, asked.append, deadline=after(0) - 1, among=[cell1, cell2])
    assert outcomes(results) == {"cell1": "timeout", "cell2": "timeout"}
    assert (asked, cells.leases, cells.left_behind) == ([], 0, {})


# enough


def test_enough(cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell, hang: Hang) -> None:
    """When one cell has said enough the others are not waited for, and lose their leases."""
    results = in_time(context, cells, hang, enough=lambda value: hang.is_there.acquire(timeout=PATIENCE))
    assert [(result.status, result.value, result.error) for result in results] == [
        ("skipped", None, None),
        ("ok", "done", None),
    ]
    assert cells.leases == 0
    hang.let_go.set()
    until(lambda: not cells.left_behind[cell1.id])
    assert [type(error) for _, error in hang.seen] == [LeaseClosed]


def test_enough_before_the_others_have_begun(
    cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell that nobody has got to yet when there is enough is not asked any more."""
    give, kept = cells.crew.give, []

    def keep_first(visit: Any) -> None:
        kept.append(visit)
        if len(kept) > 1:
            give(visit)

    monkeypatch.setattr(cells.crew, "give", keep_first)
    asked: list[str] = []
    results = in_time(context, cells, lambda context: asked.append(context.cell_uuid), enough=lambda _: True)
    assert outcomes(results) == {"cell1": "skipped", "cell2": "ok"}
    assert not any(cells.left_behind.values())
    leased: list[object] = []
    monkeypatch.setattr(cells, "lease", lambda *arguments: leased.append(arguments))
    kept[0].do()
    assert (asked, leased) == ([cell2.uuid], [])


@pytest.mark.parametrize("moment", ["at the beginning", "before the lease", "after the lease", "in the function"])
def test_visit_that_is_left_while_it_goes_on(
    cells: Cells, context: RequestContext, cell1: Cell, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever moment a visit is left, it is a timeout, keeps no lease, and counts until it has come back."""
    returned: list[CellResult] = []

    def leave(*_: object) -> str:
        returned.append(visit.end("timeout"))
        assert len(cells.left_behind[cell1.id]) == 1
        return "late"

    visit = module._Visit(module._Errand(cells, leave, after(PATIENCE), 1, tells_all=False), cell1, context)
    lease = cells.lease

    def lease_late(*arguments: Any) -> Any:
        leave()
        return lease(*arguments)

    def target_late(*arguments: Any) -> Any:
        leave()
        return target(*arguments)

    if moment == "at the beginning":
        visit._begun = True
        leave()
    elif moment == "before the lease":
        monkeypatch.setattr(cells, "lease", lease_late)
    elif moment == "after the lease":
        monkeypatch.setattr(module, "target", target_late)
    visit.do()
    assert [(result.status, result.value) for result in returned] == [("timeout", None)]
    assert (cells.leases, list(cells.left_behind[cell1.id])) == (0, [])


def test_visit_that_is_done_while_it_is_left(cells: Cells, context: RequestContext, cell1: Cell) -> None:
    """Whoever has found a visit not done goes by that, though it is done a moment later."""
    visit = module._Visit(module._Errand(cells, name_of, after(PATIENCE), 1, tells_all=False), cell1, context)

    class Lock:
        """Released, it lets somebody else in."""

        def __enter__(self) -> None:
            """There is nobody else."""

        def __exit__(self, *_: object) -> None:
            visit._lock = threading.Lock()
            visit._arrive("ok", "late")

    visit._lock = Lock()  # type: ignore[assignment]
    result = visit.end("timeout")
    assert (result.status, result.value, type(result.error)) == ("timeout", None, DeadlineExceeded)


def test_never_enough(cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell) -> None:
    """Where no answer is enough all are waited for; errors are nothing that could be."""
    asked: list[str] = []

    def function(context: Any) -> str:
        if name_of(context) == "cell1":
            raise LookupError
        return "cell2"

    def enough(value: str) -> bool:
        return bool(asked.append(value))

    assert outcomes(in_time(context, cells, function, enough=enough)) == {"cell1": "error", "cell2": "ok"}
    assert asked == ["cell2"]


def test_cells_that_were_not_needed(
    cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell, hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that is not waited for any more is stuck only if it does not come back for a while."""
    monkeypatch.setattr(module, "SLOW", PATIENCE)
    for _ in range(MAX_STUCK + 1):
        in_time(context, cells, hang, enough=lambda value: hang.is_there.acquire(timeout=PATIENCE))
    assert len(cells.left_behind[cell1.id]) == MAX_STUCK + 1
    for visit in cells.left_behind[cell1.id]:
        visit.overdue_at = after(0)  # type: ignore[attr-defined]
    assert outcomes(in_time(context, cells, hang)) == {"cell1": "skipped", "cell2": "ok"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, LookupError])
def test_error_of_the_caller(
    cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell, hang: Hang, error: type[BaseException]
) -> None:
    """Where the caller's own part fails no lease stays open."""

    def enough(_: object) -> bool:
        assert hang.is_there.acquire(timeout=PATIENCE)
        raise error

    with pytest.raises(error):
        in_time(context, cells, hang, enough=enough)
    assert (cells.leases, len(cells.left_behind[cell1.id])) == (0, 1)


def test_interrupt(cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell, hang: Hang) -> None:
    """Somebody who presses Ctrl-C while a cell is waited for leaves no lease open."""

    def function(context: Any) -> None:
        if context.cell_uuid == cell2.uuid:
            assert hang.is_there.acquire(timeout=PATIENCE)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        hang(context)

    with pytest.raises(KeyboardInterrupt):
        in_time(context, cells, function)
    assert cells.leases == 0


# the thread's own


def test_log(cells: Cells, context: RequestContext, cell1: Cell, caplog: pytest.LogCaptureFixture) -> None:
    """What a function logs carries the request id; nothing of it stays in the thread, nor in the caller's."""
    mine = oslo_context.context.get_current()

    def function(context: Any) -> Any:
        logging.getLogger(__name__).warning("%s", oslo_context.context.get_current().request_id)
        RequestContext()  # of the function's own, which is not to stay either
        return threading.get_ident()

    (result,) = in_time(context, cells, function)
    assert caplog.messages == [context.request_id]
    assert oslo_context.context.get_current() is mine
    for _ in range(5):
        assert cells.crew.run(oslo_context.context.get_current, after(PATIENCE), set(), "") is None
    assert result.value != threading.get_ident()


def test_context_of_another_kind(cells: Cells, cell1: Cell) -> None:
    """A context that is none of oslo.context's is aimed all the same."""

    class Context:
        request_id = "other"

    (result,) = in_time(Context(), cells, lambda context: (name_of(context), oslo_context.context.get_current()))
    assert result.value == ("cell1", None)


# in a child process


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Using fork:DeprecationWarning")
def test_fork(
    cells: Cells, context: RequestContext, cell1: Cell, cell2: Cell, hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child asks with threads of its own; those that its parent has left behind are none of its own."""
    leave_behind(context, cells, hang, monkeypatch)
    assert come_to(lambda: outcomes(in_time(context, cells, name_of))) == {"cell1": "ok", "cell2": "ok"}
    assert outcomes(in_time(context, cells, name_of)) == {"cell1": "skipped", "cell2": "ok"}
