# SPDX-License-Identifier: Apache-2.0
"""The whole way of a message: api -> api bus -> super conductor -> cell bus -> worker, and its reply back.

Each of them has a configuration of its own, as each is a process of its own in a deployment: the super conductor has
the API database and reaches every cell, a worker has its cell and nothing else.
"""

from __future__ import annotations

import queue
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import oslo_context.context
import oslo_messaging
import pytest
from oslo_config import cfg
from sqlalchemy import text

from cellmw import ClientRouter, RequestContext, database, deploy, rpc
from cellmw.cell_result import CellResult
from cellmw.exceptions import CellMisconfigured, CellmwError
from tests.functional.conftest import PATIENCE, Deployment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cellmw.cell import Cell
    from cellmw.cells import Cells

CONDUCTOR = oslo_messaging.Target(topic="conductor", version="1.0")
COMPUTE = oslo_messaging.Target(topic="compute", version="1.0")

CELLS = ("cell1", "cell2")

UNKNOWN = "ffffffff-ffff-4fff-bfff-ffffffffffff"

GLOBAL_ID = f"req-{UNKNOWN}"


class Worker:
    """What a cell's worker does. Lives as long as its server."""

    def __init__(self, cells: Cells, seen: queue.SimpleQueue[Any], go_on: threading.Event) -> None:
        self._cells = cells
        self._seen = seen
        self._go_on = go_on

    def reboot(self, context: RequestContext, instance_uuid: str, **more: Any) -> dict[str, Any]:
        """Return where this is, as the cell's database says, and for whom it is done."""
        assert context.cell_uuid is None, "nothing of the sender's target goes along"
        with self._cells.target(context, self._cells.local()) as targeted, database.reader(targeted) as session:
            where = session.scalar(text("SELECT name FROM this_cell"))
        current = oslo_context.context.get_current()
        done = {
            "where": where,
            "instance": instance_uuid,
            "user": context.user_id,
            "ids": [context.request_id, context.global_request_id],
            "logged": current and current.request_id,
        }
        self._seen.put((done, more))
        return done

    def work(self, context: RequestContext, seconds: float) -> str:
        """Take that long, or until all are told to go on."""
        self._go_on.wait(seconds)
        return "done"

    def fail(self, context: RequestContext, error: str) -> None:
        """Fail with this."""
        raise {"zip": zipfile.BadZipFile, "tar": tarfile.TarError, "value": ValueError}[error]("it is broken")


class SuperConductor:
    """What the super conductor does. Lives as long as its server."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._compute = ClientRouter(None, target=COMPUTE, timeout=PATIENCE)

    def reboot(self, context: RequestContext, instance_uuid: str) -> list[Any]:
        """Have it done in the instance's cell; return the cell, and what its worker says."""
        cell = self._cell(instance_uuid)
        with self._cells.target(context, cell) as targeted:
            done = self._compute.client(targeted).call(targeted, "reboot", instance_uuid=instance_uuid)
            assert targeted.cell_uuid == cell.uuid
            # a context that is aimed somewhere may stand in a reply
            return [cell, done, targeted]

    def notify(self, context: RequestContext, instance_uuid: str) -> None:
        """Have the worker told, and with it what a worker has no use for."""
        cell = self._cell(instance_uuid)
        with self._cells.target(context, cell) as targeted:
            client = self._compute.client(targeted)
            client.cast(targeted, "reboot", instance_uuid=instance_uuid, cell=cell, context_of_the_api=targeted)

    def fail(self, context: RequestContext, instance_uuid: str, error: str) -> None:
        """Have the worker fail."""
        with self._cells.target(context, self._cell(instance_uuid)) as targeted:
            self._compute.client(targeted).call(targeted, "fail", error=error)

    def everywhere(self, context: RequestContext) -> list[CellResult]:
        """Return what comes of it in each cell."""
        return [self._ask(context, cell) for cell in self._cells.all()]

    def _cell(self, instance_uuid: str) -> Cell:
        return self._cells.get(self._cells.locate(instance_uuid).cell_id)

    def _ask(self, context: RequestContext, cell: Cell) -> CellResult:
        if cell.disabled:
            return CellResult(cell, "skipped")
        try:
            with self._cells.target(context, cell) as targeted:
                done = self._compute.client(targeted).call(targeted, "reboot", instance_uuid=UNKNOWN)
                return CellResult(cell, "ok", {"done": done, "by": [cell]})
        except CellmwError as error:
            return CellResult(cell, "error", error=error)


class Layout:
    """The services of a deployment with two cells. Lives as long as the module.

    :ivar seen: what the workers have done, and the arguments that they have no use for
    :ivar go_on: set when nobody is to take long any more
    :ivar confs: the configurations, by the names of the services
    """

    def __init__(self, folder: Path, queues: dict[str, str], databases: dict[str, str]) -> None:
        """Start the super conductor, and a worker in each cell.

        :param queues: the URLs of the buses: ``api``, and each cell's by its name
        :param databases: those of the databases
        """
        self.seen: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.go_on = threading.Event()
        self._ends = ExitStack()
        self._buses: list[Any] = []
        self._servers: list[Any] = []
        own = f"[DEFAULT]\ntransport_url = {queues['api']}\n"
        self.confs = {
            "api": _conf(folder / "api.conf", f"{own}[cellmw]\nallowed_remote_exmods = zipfile\n"),
            "conductor": _conf(
                folder / "conductor.conf",
                f"{own}[api_database]\nconnection = {databases['api']}\n[cellmw]\nallowed_remote_exmods = zipfile\n",
            ),
        }
        for name in CELLS:
            self.confs[name] = _conf(
                folder / f"{name}.conf",
                f"[DEFAULT]\ntransport_url = {queues[name]}\n[database]\nconnection = {databases[name]}\n"
                f"[cellmw]\nrole = cell\nlocal_cell_name = {name}\nlocal_cell_uuid = uuid-of-{name}\n",
            )
            cells = self._ends.enter_context(closing(deploy.cells(self.confs[name])))
            self._serve(self.confs[name], COMPUTE(server=name), Worker(cells, self.seen, self.go_on))
        cells = self._ends.enter_context(closing(deploy.cells(self.confs["conductor"])))
        self._serve(self.confs["conductor"], CONDUCTOR(server="host"), SuperConductor(cells))
        self._client = oslo_messaging.get_rpc_client(self._bus(self.confs["api"]), CONDUCTOR, timeout=PATIENCE)
        self.router = ClientRouter(self._client)

    def _bus(self, conf: cfg.ConfigOpts) -> Any:
        self._buses.append(rpc.get_transport(conf))
        return self._buses[-1]

    def _serve(self, conf: cfg.ConfigOpts, target: oslo_messaging.Target, endpoint: object) -> None:
        server = rpc.get_server(self._bus(conf), target, [endpoint])
        server.start()
        self._servers.append(server)

    def call(self, method: str, user: str = "user", **arguments: Any) -> Any:
        """Call the super conductor as the API does, by a context that is aimed at no cell."""
        context = RequestContext(user_id=user, request_id=f"req-{user}", global_request_id=GLOBAL_ID, overwrite=False)
        return self.router.client(context).call(context, method, **arguments)

    def close(self) -> None:
        """Stop all of them."""
        self.go_on.set()
        with ThreadPoolExecutor(2 * len(self._servers)) as threads:
            list(threads.map(lambda server: server.stop(), self._servers))
            list(threads.map(lambda server: server.wait(), self._servers))
            closing_all = [threads.submit(bus.cleanup) for bus in self._buses]
            closing_all.append(threads.submit(self._ends.close))
            for each in closing_all:
                each.result(PATIENCE)


def _conf(file: Path, text: str) -> cfg.ConfigOpts:
    file.write_text(text)
    conf = cfg.ConfigOpts()
    conf([], project="service", default_config_files=[str(file)], default_config_dirs=[])
    return conf


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """cell1 and cell2, and one that is disabled and nowhere."""
    deployment = Deployment(tmp_path_factory.mktemp("deployment"))
    with deployment.store:
        for name in CELLS:
            deployment.add_cell(name)
        deployment.add_cell("cell3", disabled=True)
        yield deployment


@pytest.fixture(scope="module")
def layout(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layout]:
    """The services, on in-memory queues."""
    queues = {name: f"memory://{name}/" for name in ("api", *CELLS)}
    databases = {name: deployment.database_url(name) for name in ("api", *CELLS)}
    with closing(Layout(tmp_path_factory.mktemp("services"), queues, databases)) as layout:
        yield layout
        assert layout.seen.empty()


@pytest.fixture(scope="module")
def instances(deployment: Deployment) -> dict[str, str]:
    """An instance in each cell, by the cell's name."""
    return {cell: deployment.map(cell) for cell in CELLS}


@pytest.mark.parametrize("cell", CELLS)
def test_call(layout: Layout, deployment: Deployment, instances: dict[str, str], cell: str) -> None:
    """A call arrives in the instance's own cell, for the same request, and its reply comes back through both."""
    where, done, context = layout.call("reboot", instance_uuid=instances[cell])
    assert done == {
        "where": cell,
        "instance": instances[cell],
        "user": "user",
        "ids": ["req-user", GLOBAL_ID],
        "logged": "req-user",
    }
    assert layout.seen.get(timeout=PATIENCE) == (done, {})
    assert where == deployment.cells[cell]
    with pytest.raises(CellMisconfigured):
        where.reveal_transport_url()
    assert (type(context), context.request_id, context.db_connection) == (RequestContext, "req-user", None)


@pytest.mark.parametrize("cell", CELLS)
def test_cast(layout: Layout, deployment: Deployment, instances: dict[str, str], cell: str) -> None:
    """So does a cast; a cell and a targeted context among its arguments arrive without what they lead to."""
    layout.call("notify", instance_uuid=instances[cell])
    done, more = layout.seen.get(timeout=PATIENCE)
    assert (done["where"], done["ids"]) == (cell, ["req-user", GLOBAL_ID])
    assert more["cell"] == deployment.cells[cell]
    context = more["context_of_the_api"]
    assert (context.user_id, context.mq_connection, context.cell_uuid) == ("user", None, None)
    with pytest.raises(CellMisconfigured):
        more["cell"].reveal_database_connection()


def test_side_by_side(layout: Layout, instances: dict[str, str]) -> None:
    """Messages of many requests at once each arrive in their own cell, and for their own request."""

    def call(number: int) -> bool:
        cell = CELLS[number % 2]
        _, done, _ = layout.call("reboot", f"user-{number}", instance_uuid=instances[cell])
        ids = [f"req-user-{number}", GLOBAL_ID]
        return (done["where"], done["user"], done["ids"], done["logged"]) == (cell, f"user-{number}", ids, ids[0])

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(call, range(24)))
    for _ in range(24):
        layout.seen.get(timeout=PATIENCE)


def test_results(layout: Layout, deployment: Deployment) -> None:
    """What several cells have answered comes back as it is."""
    results = layout.call("everywhere")
    assert [type(result) for result in results] == [CellResult] * 3
    assert [(str(result.cell), result.status) for result in results] == [
        ("cell1", "ok"),
        ("cell2", "ok"),
        ("cell3", "skipped"),
    ]
    assert results[0].value["done"] == layout.seen.get(timeout=PATIENCE)[0]
    assert results[1].value["by"] == [deployment.cells["cell2"]]
    layout.seen.get(timeout=PATIENCE)


@pytest.mark.parametrize(
    ("error", "kind"),
    [("zip", zipfile.BadZipFile), ("tar", oslo_messaging.RemoteError), ("value", ValueError)],
)
def test_errors(layout: Layout, instances: dict[str, str], error: str, kind: type[Exception]) -> None:
    """What a worker raises comes back through both: as what it was where that is allowed."""
    with pytest.raises(kind, match="it is broken") as raised:
        layout.call("fail", instance_uuid=instances["cell2"], error=error)
    if kind is oslo_messaging.RemoteError:
        assert isinstance(raised.value, oslo_messaging.RemoteError)


def test_error_of_ours(layout: Layout) -> None:
    """What the super conductor itself raises comes back as a remote error that says what it was."""
    with pytest.raises(oslo_messaging.RemoteError) as raised:
        layout.call("reboot", instance_uuid=UNKNOWN)
    assert raised.value.exc_type == "InstanceNotMapped"
    assert UNKNOWN in raised.value.value


def test_workers_have_their_cell_and_no_more(layout: Layout) -> None:
    """A worker can't do what the super conductor is there for."""
    with closing(deploy.cells(layout.confs["cell1"])) as cells:
        for upcall in _upcalls(cells):
            with pytest.raises(CellmwError, match="out of reach of a cell-level service"):
                upcall()


def _upcalls(cells: Cells) -> list[Callable[[], Any]]:
    return [lambda: cells.get("cell2"), lambda: cells.locate(UNKNOWN)]
