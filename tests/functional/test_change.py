# SPDX-License-Identifier: Apache-2.0
"""Cell records that change while requests are under way: each request ends on what it began with, the next has the new.

A database answers with its own name, and a worker notes which queue it listens to, so that a request that goes astray
shows. Whether a database is still open is asked at the kernel: by the files that this process has open.
"""

from __future__ import annotations

import itertools
import math
import sqlite3
import subprocess
import sys
import sysconfig
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import oslo_messaging
import pytest
from oslo_config import cfg

from cellmw import rpc
from cellmw.exceptions import CellsClosed
from tests.functional.conftest import PATIENCE, PROJECT, TOPIC, News, Workers, streaming

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _typeshed.wsgi import StartResponse

    from cellmw import CellFilter, RequestContext
    from cellmw.handles import Handles
    from tests.functional.conftest import Answer, Api, Deployment, Exchange

    MakeFilter = Callable[..., CellFilter]
    Get = Callable[..., Answer]

ROOT = Path(__file__).parents[2]

MANAGE = Path(sysconfig.get_path("scripts")) / "cellmw-manage"

SOON = "0.1"
"""The shortest ``refresh_interval`` there is."""

CELLS = ("cell1", "cell2")


def new_database(deployment: Deployment, name: str) -> str:
    """Make a database that no cell has yet, which answers with this name, and return its URL."""
    with closing(sqlite3.connect(deployment.file(name))) as connection, connection:
        connection.execute("CREATE TABLE this_cell (name VARCHAR(255))")
        connection.execute("INSERT INTO this_cell VALUES (?)", (name,))
    return deployment.database_url(name)


def open_files(file: Path) -> int:
    """Return how many times this process has the file open."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed since
            count += descriptor.readlink() == file
    return count


def has_queue(url: str) -> bool:
    """Tell whether somebody is still connected to an in-memory queue that a worker once listened to."""
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, url)
    options = oslo_messaging.TransportOptions(at_least_once=True)
    try:
        oslo_messaging.get_rpc_client(transport, TOPIC, transport_options=options).cast({}, "which")
    except oslo_messaging.MessageUndeliverable:
        return False
    finally:
        transport.cleanup()
    return True


def ask_until(wanted: Any, ask: Callable[[], Any]) -> None:
    """Ask until this is the answer, which it has to be before patience ends."""
    deadline = monotonic() + PATIENCE
    while (answer := ask()) != wanted and monotonic() < deadline:
        pass
    assert answer == wanted


CLOSED = "cell cell1: what it had open is closed"


@pytest.fixture
def reading(make_filter: MakeFilter, api: Api) -> CellFilter:
    """A filter in front of an app that reads from the database for each chunk."""
    return make_filter(streaming(api.database))


@pytest.fixture
def casting(make_filter: MakeFilter, api: Api) -> CellFilter:
    """A filter in front of an app that sends the worker a message for each chunk."""
    return make_filter(streaming(lambda context: api.reboot(context, "one")))


@pytest.fixture
def under_way(exchange: type[Exchange], deployment: Deployment) -> Iterator[Callable[[CellFilter], Exchange]]:
    """Send a request for an instance in cell1, and read the first chunk of its body."""
    with ExitStack() as sent:

        def send(cell_filter: CellFilter) -> Exchange:
            request = exchange(f"/servers/{deployment.map('cell1')}").send(cell_filter)
            sent.callback(request.close)
            next(iter(request.body))
            return request

        yield send


def move_database(deployment: Deployment, cell_filter: CellFilter) -> None:
    """Give cell1 the database ``moved``, which the filter follows."""
    deployment.store.update_cell(deployment.cells["cell1"].uuid, database_connection=new_database(deployment, "moved"))
    cell_filter.cells.refresh()


def move_queue(deployment: Deployment, cell_filter: CellFilter) -> None:
    """Give cell1 the queue ``moved``, which the filter follows."""
    deployment.store.update_cell(deployment.cells["cell1"].uuid, transport_url="memory://moved/")
    cell_filter.cells.refresh()


def test_stream_reads_on(deployment: Deployment, reading: CellFilter, under_way: Any, get: Get) -> None:
    """A body that is under way when its cell's database changes reads on from the old one to its end."""
    stream = under_way(reading)
    move_database(deployment, reading)
    get(reading, deployment.map("cell1"))
    assert stream.finish() == b"cell1 cell1 "


def test_request_during_a_stream(deployment: Deployment, reading: CellFilter, under_way: Any, get: Get) -> None:
    """A request that comes meanwhile reads from the new one."""
    under_way(reading)
    move_database(deployment, reading)
    assert get(reading, deployment.map("cell1")).content == b"moved moved moved "


def test_old_database_is_closed(deployment: Deployment, reading: CellFilter, under_way: Any, news: News) -> None:
    """The old database is open as long as the stream that reads from it, and no longer."""
    stream = under_way(reading)
    move_database(deployment, reading)
    assert open_files(deployment.file("cell1")) > 0
    stream.finish()
    news.wait_for(CLOSED)
    assert open_files(deployment.file("cell1")) == 0


def test_other_cell_stays_open(deployment: Deployment, reading: CellFilter, get: Get, news: News) -> None:
    """A cell whose record is the same keeps its connections."""
    for cell in ("cell2", "cell1"):
        get(reading, deployment.map(cell))
    before = open_files(deployment.file("cell2"))
    move_database(deployment, reading)
    news.wait_for(CLOSED)
    assert open_files(deployment.file("cell2")) == before > 0


@pytest.fixture
def both_queues() -> Iterator[Workers]:
    """A worker on the old queue of cell1, and one on the new. A message that the test does not take is a failure."""
    with closing(Workers({"old": "memory://cell1/", "new": "memory://moved/"})) as workers:
        yield workers


def test_casts(
    deployment: Deployment, casting: CellFilter, under_way: Any, get: Get, both_queues: Workers, api: Api
) -> None:
    """A stream's messages go to the queue that its cell had when it began, others' to the one that it has now."""
    stream = under_way(casting)
    assert both_queues.next() == ("old", "one", PROJECT)
    move_queue(deployment, casting)
    get(casting, deployment.map("cell1"))
    assert [both_queues.next()[0] for _ in range(3)] == ["new"] * 3
    stream.finish()
    assert [both_queues.next()[0] for _ in range(2)] == ["old"] * 2


def test_old_queue_is_closed(deployment: Deployment, casting: CellFilter, under_way: Any, news: News) -> None:
    """The old queue is connected as long as the stream that sends to it, and no longer."""
    stream = under_way(casting)
    Workers({"old": "memory://cell1/"}).close()
    move_queue(deployment, casting)
    assert has_queue("memory://cell1/")
    stream.finish()
    news.wait_for(CLOSED)
    assert not has_queue("memory://cell1/")


class SlowWorker:
    """Answers a call when the test says so. Lives as long as its ``with`` block."""

    def __init__(self, url: str) -> None:
        """Listen."""
        self.asked, self.go_on = threading.Event(), threading.Event()
        self._transport = oslo_messaging.get_rpc_transport(cfg.CONF, url)
        target = oslo_messaging.Target(topic=TOPIC.topic, server="slow")
        self._server = oslo_messaging.get_rpc_server(
            self._transport, target, [self], serializer=rpc.ContextSerializer()
        )

    def which(self, context: RequestContext) -> str:
        """Wait, and answer."""
        self.asked.set()
        assert self.go_on.wait(PATIENCE)
        return "old"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.go_on.set()
        self._server.stop()
        self._server.wait()
        self._transport.cleanup()


def test_call_that_outlives_its_request(
    deployment: Deployment, make_filter: MakeFilter, api: Api, get: Get, news: News
) -> None:
    """A call that was on its way when its request ended, and its queue was changed, still gets its answer."""
    with SlowWorker("memory://cell1/") as worker, ThreadPoolExecutor(1) as threads:

        def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
            calls.append(threads.submit(api.queue, environ["cellmw.context"]))
            assert worker.asked.wait(PATIENCE)
            start_response("200 OK", [])
            return []

        calls: list[Any] = []
        cell_filter = make_filter(app)
        get(cell_filter, deployment.map("cell1"))
        cell_filter.cells.lease(deployment.cells["cell2"].id).release()
        deployment.store.update_cell(deployment.cells["cell2"].uuid, transport_url="memory://moved-too/")
        move_queue(deployment, cell_filter)
        # what is retired is looked at in turn, cell1 first
        news.wait_for("cell cell2: what it had open is closed")
        worker.go_on.set()
        assert calls[0].result(PATIENCE) == "old"
        news.wait_for(CLOSED)


def test_new_cell(deployment: Deployment, reading: CellFilter, under_way: Any, get: Get) -> None:
    """A cell that was created while requests are under way is used at once."""
    under_way(reading)
    deployment.add_cell("cell3")
    assert get(reading, deployment.map("cell3")).content == b"cell3 cell3 cell3 "


def delete_row(deployment: Deployment, cell: str) -> None:
    """Delete the record of a cell although instances are mapped to it, which the store would refuse."""
    with closing(sqlite3.connect(deployment.file("api"))) as connection, connection:
        connection.execute("DELETE FROM cell_mappings WHERE uuid = ?", (deployment.cells[cell].uuid,))


def test_deleted_cell_is_closed(deployment: Deployment, reading: CellFilter, get: Get, news: News) -> None:
    """A cell that was deleted is closed."""
    instance_uuid = deployment.map("cell1")
    get(reading, instance_uuid)
    deployment.store.delete_instance(instance_uuid)
    deployment.store.delete_cell(deployment.cells["cell1"].uuid)
    reading.cells.refresh()
    news.wait_for(CLOSED)
    assert open_files(deployment.file("cell1")) == 0


def test_stream_in_a_deleted_cell(deployment: Deployment, reading: CellFilter, under_way: Any) -> None:
    """A body that is under way when its cell is deleted reads on to its end."""
    stream = under_way(reading)
    delete_row(deployment, "cell1")
    reading.cells.refresh()
    assert stream.finish() == b"cell1 cell1 "


def test_instance_of_a_deleted_cell(deployment: Deployment, reading: CellFilter, get: Get) -> None:
    """Requests for an instance whose mapping still names a deleted cell are a mistake of the operator's, each time."""
    instance_uuid = deployment.map("cell1")
    get(reading, instance_uuid)
    delete_row(deployment, "cell1")
    reading.cells.refresh()
    assert [get(reading, instance_uuid).code for _ in range(2)] == [500, 500]


def test_corrected_mapping(deployment: Deployment, reading: CellFilter, get: Get) -> None:
    """When somebody else has corrected that mapping the very next request is served."""
    instance_uuid = deployment.map("cell1")
    get(reading, instance_uuid)
    delete_row(deployment, "cell1")
    reading.cells.refresh()
    get(reading, instance_uuid)
    deployment.store.update_instance(instance_uuid, cell_id=deployment.cells["cell2"].id)
    assert get(reading, instance_uuid).content == b"cell2 cell2 cell2 "


class Period(NamedTuple):
    """Between which steps of the test a cell may have been on a database."""

    database: str
    begin: float
    end: float


class Visit(NamedTuple):
    """A request: its cell, between which steps of the test it was made, and its answer."""

    cell: str
    begin: int
    end: int
    answer: Answer


class Chronicle:
    """In what order a test's threads have done what, counted in steps and not in seconds. Lives as long as the test."""

    def __init__(self) -> None:
        self._steps = itertools.count()
        self._periods: dict[str, list[Period]] = {cell: [Period(cell, -math.inf, math.inf)] for cell in CELLS}
        self.visits: list[Visit] = []

    def visit(self, cell: str, ask: Callable[[], Answer]) -> str:
        """Note a request and its answer, and return what it says."""
        begin = next(self._steps)
        answer = ask()
        self.visits.append(Visit(cell, begin, next(self._steps), answer))
        return answer.content.decode()

    def change(self, cell: str, database: str) -> None:
        """Note that the cell is about to get this database."""
        self._periods[cell].append(Period(database, next(self._steps), math.inf))

    def changed(self, cell: str) -> None:
        """Note that a request was served by the newest database: none that begins later may see the one before."""
        self._periods[cell][-2] = self._periods[cell][-2]._replace(end=next(self._steps))

    def wrong(self) -> list[Visit]:
        """Return the requests that failed, or were served by anything but one database that their cell then had."""
        return [
            visit
            for visit in self.visits
            if visit.answer.code != 200
            or visit.answer.content.decode()
            not in {
                f"{period.database} " * 3
                for period in self._periods[visit.cell]
                if period.begin <= visit.end and visit.begin <= period.end
            }
        ]


def test_back_and_forth(deployment: Deployment, make_filter: MakeFilter, api: Api, get: Get) -> None:
    """Whatever is changed how often under load, each request is served by one database that its cell then has.

    At the end no lease and nothing old is open.
    """
    names = [f"{cell} {where}" for cell in CELLS for where in ("here", "there", "at last")]
    urls = {name: new_database(deployment, name) for name in names}
    cell_filter = make_filter(streaming(api.database), refresh_interval=SOON)
    instances = {cell: deployment.map(cell) for cell in CELLS}
    chronicle = Chronicle()
    over = threading.Event()

    def visit(cell: str) -> str:
        return chronicle.visit(cell, lambda: get(cell_filter, instances[cell]))

    def keep_visiting(_: int) -> None:
        for cell in itertools.cycle(CELLS):
            if over.is_set():
                return
            visit(cell)

    def switch(where: str) -> None:
        for cell in CELLS:
            chronicle.change(cell, f"{cell} {where}")
            url = urls[f"{cell} {where}"]
            deployment.store.update_cell(deployment.cells[cell].uuid, database_connection=url)
        for cell in CELLS:
            ask_until(f"{cell} {where} " * 3, lambda cell=cell: visit(cell))
            chronicle.changed(cell)

    with ThreadPoolExecutor(8) as threads:
        visitors = threads.map(keep_visiting, range(8))
        try:
            for where in ["here", "there"] * 5 + ["at last"]:
                switch(where)
        finally:
            over.set()
        list(visitors)
    assert chronicle.wrong() == []
    assert cell_filter.cells.leases == 0
    old = [deployment.file(name) for name in urls if "at last" not in name]
    ask_until(0, lambda: sum(map(open_files, old)))


def test_retired_while_it_is_found_open(
    deployment: Deployment, reading: CellFilter, get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that finds a cell open that was not a moment ago does not bring it back when it is retired meanwhile."""
    get(reading, deployment.map("cell1"))
    pool = reading.cells._pool
    keep = pool._keep

    def keep_late(handles: Handles) -> None:
        move_database(deployment, reading)
        keep(handles)

    monkeypatch.setattr(pool, "_keep", keep_late)
    pool.open(reading.cells.get("cell1"))
    # a request would ask for the cell again and again, and get these each time
    brought_back = [handles for handles in pool.handles.values() if handles.retired]
    pool.handles.clear()
    assert brought_back == []


class OtherProcess:
    """A worker process of the service, with a filter of its own. Lives as long as its ``with`` block."""

    _PROGRAM = """
import sys
from cellmw import CellFilter
from tests.functional.conftest import Api, Exchange, Show

settings = {"oslo_config_project": "cellmw", "oslo_config_file": sys.argv[1]}
cell_filter = CellFilter.factory(settings, refresh_interval=sys.argv[2])(Show(Api()))
for line in sys.stdin:
    answer = Exchange(f"/servers/{line.strip()}").fetch(cell_filter)
    print(answer.content.decode() if answer.code == 200 else answer.code, flush=True)
"""

    def __init__(self, deployment: Deployment) -> None:
        """Start it."""
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", self._PROGRAM, deployment.global_conf["oslo_config_file"], SOON],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def get(self, instance_uuid: str) -> str:
        """Ask it for an instance; return the database that has answered, or else the status."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{instance_uuid}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.communicate(timeout=PATIENCE)


@pytest.fixture
def other_process(deployment: Deployment) -> Iterator[OtherProcess]:
    """A worker process; it has ended by itself after the test, when nobody asks it any more."""
    with OtherProcess(deployment) as process:
        yield process
    assert process._process.returncode == 0


def manage(deployment: Deployment, *arguments: str) -> None:
    """Run cellmw-manage."""
    command = [MANAGE, "--config-file", deployment.global_conf["oslo_config_file"], "cell_v2", *arguments]
    subprocess.run(command, check=True)


def test_change_in_another_process(deployment: Deployment, other_process: OtherProcess) -> None:
    """A process follows a change that another one has made."""
    instance_uuid = deployment.map("cell1")
    assert other_process.get(instance_uuid) == "cell1"
    deployment.store.update_cell(deployment.cells["cell1"].uuid, database_connection=new_database(deployment, "moved"))
    ask_until("moved", lambda: other_process.get(instance_uuid))


def test_cell_created_by_the_command(deployment: Deployment, other_process: OtherProcess) -> None:
    """A process uses a cell at once that cellmw-manage has created while it ran."""
    other_process.get(deployment.map("cell1"))
    url = new_database(deployment, "cell3")
    manage(deployment, "create_cell", "--name=cell3", "--transport-url=memory://cell3/", f"--database_connection={url}")
    (deployment.cells["cell3"],) = (cell for cell in deployment.store.list_cells() if cell.name == "cell3")
    assert other_process.get(deployment.map("cell3")) == "cell3"


def test_cell_deleted_by_the_command(deployment: Deployment, other_process: OtherProcess) -> None:
    """A process notices that cellmw-manage has deleted a cell, and that its instances are gone."""
    instance_uuid = deployment.map("cell1")
    other_process.get(instance_uuid)
    deployment.store.delete_instance(instance_uuid)
    manage(deployment, "delete_cell", "--cell_uuid", deployment.cells["cell1"].uuid)
    ask_until("404", lambda: other_process.get(instance_uuid))


@pytest.fixture
def closing_filter(
    make_filter: MakeFilter, api: Api, under_way: Any, news: News
) -> Iterator[tuple[CellFilter, Exchange]]:
    """A filter that is being closed by another thread, and the stream that it waits for."""
    cell_filter = make_filter(streaming(api.database), drain_timeout=str(PATIENCE))
    stream = under_way(cell_filter)
    with ThreadPoolExecutor(1) as threads:
        closed = threads.submit(cell_filter.close)
        news.wait_for("cell cell1: everything is being closed")
        yield cell_filter, stream
        stream.close()
        closed.result(PATIENCE)


def test_request_while_closing(deployment: Deployment, closing_filter: tuple[CellFilter, Exchange], get: Get) -> None:
    """While the filter is being closed new requests, for whichever cell, are told to come again."""
    answers = [get(closing_filter[0], deployment.map(cell)) for cell in CELLS]
    assert [(answer.code, answer.headers["Retry-After"]) for answer in answers] == [(503, "5")] * 2


def test_stream_while_closing(closing_filter: tuple[CellFilter, Exchange]) -> None:
    """The stream that is under way goes on to its end."""
    assert closing_filter[1].finish() == b"cell1 cell1 "


def test_closed_after_the_stream(
    deployment: Deployment, closing_filter: tuple[CellFilter, Exchange], news: News
) -> None:
    """After that everything is closed."""
    assert open_files(deployment.file("cell1")) > 0
    closing_filter[1].finish()
    news.wait_for(CLOSED)
    assert open_files(deployment.file("cell1")) == 0


def test_stream_that_outlasts_closing(
    deployment: Deployment, make_filter: MakeFilter, api: Api, under_way: Any
) -> None:
    """A stream that is under way when the time for that is up finds its cell closed."""
    cell_filter = make_filter(streaming(api.database), drain_timeout="0")
    stream = under_way(cell_filter)
    cell_filter.close()
    with pytest.raises(CellsClosed):
        next(iter(stream.body))
    assert open_files(deployment.file("cell1")) == 0
    stream.close()
