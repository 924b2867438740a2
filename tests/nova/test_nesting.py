# SPDX-License-Identifier: Apache-2.0
"""A context that the filter has aimed at a cell -> Nova's own ways, and ours, to go from there to other cells.

A look through a context is a read and, where the instance is on a host, a call: both have to find the same cell. Each
instance has a row in every cell, and each row has another name and host, so a look into the wrong cell shows.
"""

from __future__ import annotations

import gc
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from nova import context as nova_context
from nova import objects
from nova.compute import rpcapi
from nova.context import set_target_cell, target_cell
from nova.db.main import api as db

from cellmw import CellFilter
from cellmw.exceptions import CellHasNoTransport, LeaseClosed
from cellmw.lease import DatabaseView, TransportView
from tests.nova import api, instances
from tests.nova.conftest import CELLS
from tests.nova.instances import ALL_CELLS, cell_mapping
from tests.nova.instances import create_with_decoys as create

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.nova.api import Api
    from tests.nova.conftest import Nova
    from tests.nova.instances import Instance

PAIRS = [("cell1", "cell2"), ("cell2", "cell0"), ("cell0", "cell1")]
"""The cell of the request's instance, and another one that the request goes to."""

THREADS = 8
PATIENCE = 60


pytestmark = pytest.mark.usefixtures("workers")


class Failure(Exception):
    """What a test raises itself."""


def request(pipeline: Api, instance: Instance, call: Callable[[Visit], Any]) -> Any:
    """Make a request for an instance, and return or raise what the call behind the filter does."""
    outcome: list[Any] = []

    def note(environ: dict[str, Any]) -> None:
        try:
            outcome.append(call(Visit(environ, instance)))
        except Exception as error:
            outcome.append(error)
            raise

    pipeline.request("GET", f"/v2.1/servers/{instance.uuid}", call=note)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


class Visit:
    """What a call behind the filter has at hand. Lives as long as its request."""

    def __init__(self, environ: dict[str, Any], instance: Instance) -> None:
        self.context = environ["nova.context"]
        self.cells = environ["cellmw.cells"]
        self.uuid = instance.uuid
        self.own = cell_mapping(instance.cell)

    def look(self, context: Any = None) -> str:
        """Return the name of the cell that this context leads to, or that of the request."""
        return look(context or self.context, self.uuid)

    def ours(self, context: Any, mapping: Any) -> Any:
        """Aim a copy of the context at a cell by our own means."""
        return self.cells.target(context, self.cells.get(mapping.uuid))


def look(context: Any, uuid: str) -> str:
    """Return the name of the cell that this context leads to."""
    row = objects.Instance.get_by_uuid(context, uuid)
    found = row.display_name.removeprefix("in-")
    if row.host is not None:
        assert rpcapi.ComputeAPI().get_console_output(context, row, 1) == f"get_console_output in {found}"
    return found


# Ways from the cell of the request's instance to another one. Each returns the cells that it has seen.


def in_place(visit: Visit, other: Any) -> list[str]:
    """Nova's set_target_cell, on the context of the request."""
    seen = [visit.look()]
    set_target_cell(visit.context, other)
    return [*seen, visit.look()]


def in_place_to_none(visit: Visit, other: Any) -> list[str]:
    """Nova's set_target_cell, to no cell."""
    set_target_cell(visit.context, None)
    return [visit.look()]


def novas(visit: Visit, other: Any) -> list[str]:
    """Nova's target_cell."""
    with target_cell(visit.context, other) as there:
        return [visit.look(), visit.look(there), visit.look()]


def novas_to_none(visit: Visit, other: Any) -> list[str]:
    """Nova's target_cell, to no cell."""
    with target_cell(visit.context, None) as nowhere:
        return [visit.look(), visit.look(nowhere), visit.look()]


def novas_and_back(visit: Visit, other: Any) -> list[str]:
    """Nova's target_cell, twice."""
    with target_cell(visit.context, other) as there, target_cell(there, visit.own) as back:
        return [visit.look(there), visit.look(back), visit.look(there), visit.look()]


def novas_in_reader(visit: Visit, other: Any) -> list[str]:
    """Nova's target_cell, while the request reads."""
    with db.get_context_manager(visit.context).reader.using(visit.context):
        return novas(visit, other)


def novas_in_writer(visit: Visit, other: Any) -> list[str]:
    """Nova's target_cell, while the request writes."""
    with db.get_context_manager(visit.context).writer.using(visit.context):
        return novas(visit, other)


def novas_after_in_place(visit: Visit, other: Any) -> list[str]:
    """Nova's target_cell, back to the cell that set_target_cell has left."""
    set_target_cell(visit.context, other)
    with target_cell(visit.context, visit.own) as there:
        return [visit.look(there), visit.look()]


def ours(visit: Visit, other: Any) -> list[str]:
    """Our target()."""
    with visit.ours(visit.context, other) as there:
        return [visit.look(), visit.look(there), visit.look()]


def ours_in_reader(visit: Visit, other: Any) -> list[str]:
    """Our target(), while the request reads."""
    with db.get_context_manager(visit.context).reader.using(visit.context):
        return ours(visit, other)


def ours_in_writer(visit: Visit, other: Any) -> list[str]:
    """Our target(), while the request writes."""
    with db.get_context_manager(visit.context).writer.using(visit.context):
        return ours(visit, other)


def ours_after_in_place(visit: Visit, other: Any) -> list[str]:
    """Our target(), back to the cell that set_target_cell has left."""
    set_target_cell(visit.context, other)
    with visit.ours(visit.context, visit.own) as there:
        return [visit.look(there), visit.look()]


def ours_in_novas(visit: Visit, other: Any) -> list[str]:
    """Nova's target_cell, and back by our target()."""
    with target_cell(visit.context, other) as there, visit.ours(there, visit.own) as back:
        return [visit.look(there), visit.look(back), visit.look(there), visit.look()]


def novas_in_ours(visit: Visit, other: Any) -> list[str]:
    """Our target(), and back by Nova's target_cell."""
    with visit.ours(visit.context, other) as there, target_cell(there, visit.own) as back:
        return [visit.look(there), visit.look(back), visit.look(there), visit.look()]


def in_place_in_ours(visit: Visit, other: Any) -> list[str]:
    """Nova's set_target_cell, on a context of our target()."""
    with visit.ours(visit.context, other) as there:
        set_target_cell(there, visit.own)
        return [visit.look(there), visit.look()]


def scatter(visit: Visit, other: Any) -> list[str]:
    """Nova's scatter, to two cells."""
    found = nova_context.scatter_gather_cells(visit.context, [other, visit.own], PATIENCE, look, visit.uuid)
    return [found[other.uuid], found[visit.own.uuid], visit.look()]


def scatter_to_one(visit: Visit, other: Any) -> list[str]:
    """Nova's scatter, to one other cell."""
    found = nova_context.scatter_gather_single_cell(visit.context, other, look, visit.uuid)
    return [found[other.uuid], visit.look()]


def scatter_to_all(visit: Visit, other: Any) -> list[str]:
    """Nova's scatter, to all cells."""
    found = nova_context.scatter_gather_all_cells(visit.context, look, visit.uuid)
    return [found[cell_mapping(cell).uuid] for cell in ALL_CELLS] + [visit.look()]


def scatter_in_writer(visit: Visit, other: Any) -> list[str]:
    """Nova's scatter, while the request writes."""
    with db.get_context_manager(visit.context).writer.using(visit.context):
        return scatter(visit, other)


WAYS: dict[Callable[[Visit, Any], list[str]], list[str]] = {
    in_place: ["own", "other"],
    in_place_to_none: ["cell0"],
    novas: ["own", "other", "own"],
    novas_to_none: ["own", "cell0", "own"],
    novas_and_back: ["other", "own", "other", "own"],
    novas_in_reader: ["own", "other", "own"],
    novas_in_writer: ["own", "other", "own"],
    novas_after_in_place: ["own", "other"],
    ours: ["own", "other", "own"],
    ours_in_reader: ["own", "other", "own"],
    ours_in_writer: ["own", "other", "own"],
    ours_after_in_place: ["own", "other"],
    ours_in_novas: ["other", "own", "other", "own"],
    novas_in_ours: ["other", "own", "other", "own"],
    in_place_in_ours: ["own", "own"],
    scatter: ["other", "own", "own"],
    scatter_to_one: ["other", "own"],
    scatter_to_all: [*ALL_CELLS, "own"],
    scatter_in_writer: ["other", "own", "own"],
}
"""Each way, and the cells that it has to see: the request's own one, the other one, or a certain one."""


def on_the(way: Callable[[Visit, Any], list[str]], own: str, other: str) -> list[str]:
    """Return the cells that a way has to see."""
    return [{"own": own, "other": other}.get(cell, cell) for cell in WAYS[way]]


@pytest.mark.parametrize(("own", "other"), PAIRS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_way(nova: Nova, own: str, other: str, way: Callable[[Visit, Any], list[str]]) -> None:
    """Each look goes to the cell that it was meant for: inside another cell's block, and outside of it again."""
    seen = request(nova.probe, create(own), lambda visit: way(visit, cell_mapping(other)))
    assert seen == on_the(way, own, other)


# What stays of set_target_cell


MOVES = list(itertools.product(ALL_CELLS, repeat=2))
"""The cell of the request's instance, and the one that its context is aimed at in place."""


def aim_in_place(visit: Visit, cell: str | None) -> Any:
    """Aim the context of the request at a cell by Nova's set_target_cell, and return it."""
    set_target_cell(visit.context, None if cell is None else cell_mapping(cell))
    return visit.context


@pytest.mark.parametrize(("own", "other"), MOVES)
def test_in_place_goes_on(nova: Nova, own: str, other: str) -> None:
    """A context that Nova has aimed in place stays aimed after the response: the handles are Nova's."""
    instance = create(own)
    kept = request(nova.probe, instance, lambda visit: aim_in_place(visit, other))
    assert look(kept, instance.uuid) == other


@pytest.mark.parametrize("own", ALL_CELLS)
def test_in_place_to_none_goes_on(nova: Nova, own: str) -> None:
    """A context that Nova has aimed at nothing stays so after the response."""
    instance = create(own)
    kept = request(nova.probe, instance, lambda visit: aim_in_place(visit, None))
    assert look(kept, instance.uuid) == "cell0"


def test_lease_of_in_place(nova: Nova) -> None:
    """The lease ends with the request although nothing of it is on the context any more."""

    def keep(visit: Visit) -> Any:
        database = visit.context.db_connection
        aim_in_place(visit, "cell2")
        assert visit.cells.leases == 1
        return database

    kept = request(nova.probe, create("cell1"), keep)
    assert nova.probe.cells is not None
    assert nova.probe.cells.leases == 0
    with pytest.raises(LeaseClosed, match="cell1"):
        kept.writer.get_engine()


@contextmanager
def cold_cache() -> Iterator[dict[str, Any]]:
    """Nova's cache of the cells' handles, with nothing in it at first."""
    cache: dict[str, Any] = {}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nova_context, "CELL_CACHE", cache)
            yield cache
    finally:
        api.close_cells(cache)


KEPT = [(own, other) for own, other in MOVES if other != "cell0" or own == "cell0"]
"""Those moves in which set_target_cell replaces everything that it finds on the context: cell0 has no queue."""


@pytest.mark.parametrize(("own", "other"), KEPT)
def test_cache(nova: Nova, own: str, other: str) -> None:
    """What Nova has cached in a request is of no lease, and serves the cell's later requests."""
    instance, another = create(own), create(other)
    with cold_cache() as cache:
        request(nova.probe, instance, lambda visit: aim_in_place(visit, other))
        later = nova_context.get_admin_context()
        set_target_cell(later, cell_mapping(other))
        assert look(later, another.uuid) == other
        if other == "cell0":
            with pytest.raises(CellHasNoTransport):
                rpcapi.ComputeAPI().router.client(later).call(later, "anything")
        assert not any(isinstance(handle, (DatabaseView, TransportView)) for pair in cache.values() for handle in pair)


@pytest.mark.parametrize("own", CELLS)
def test_cache_from_a_queue_to_none(nova: Nova, own: str) -> None:
    """A Nova that has not met cell0 yet keeps what it finds as cell0's queue: ours refuses, where its own would send.

    Nova meets all cells when it starts.
    """
    instance = create(own)
    with cold_cache():
        request(nova.probe, instance, lambda visit: aim_in_place(visit, "cell0"))
        later = nova_context.get_admin_context()
        set_target_cell(later, cell_mapping("cell0"))
        with pytest.raises(LeaseClosed, match=own):
            rpcapi.ComputeAPI().router.client(later)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_later_request(nova: Nova, way: Callable[[Visit, Any], list[str]]) -> None:
    """After each way the next requests start in their own cells again, for the same instance and for another one."""
    instance, another = create("cell1"), create("cell2")
    request(nova.probe, instance, lambda visit: way(visit, cell_mapping("cell2")))
    assert [request(nova.probe, each, Visit.look) for each in (instance, another)] == ["cell1", "cell2"]


# What comes out of a scatter


def gather(visit: Visit) -> list[Any]:
    """Return the row of the instance in each cell."""
    found = nova_context.scatter_gather_all_cells(visit.context, objects.Instance.get_by_uuid, visit.uuid)
    return [found[cell_mapping(cell).uuid] for cell in ALL_CELLS]


def rename(rows: list[Any]) -> None:
    """Load something of each row, and save something else."""
    for row in rows:
        assert list(row.tags) == []
        row.display_name = f"{row.display_name} renamed"
        row.save()


def names(uuid: str) -> list[str]:
    """Return the name that the instance has in each cell."""
    return [instances.read(cell, uuid).display_name for cell in ALL_CELLS]


@pytest.mark.parametrize("own", ALL_CELLS)
def test_objects_of_a_scatter(nova: Nova, own: str) -> None:
    """Objects that a scatter has found load and save in the cells that they come from."""
    instance = create(own)
    request(nova.probe, instance, lambda visit: rename(gather(visit)))
    assert names(instance.uuid) == [f"in-{cell} renamed" for cell in ALL_CELLS]


@pytest.mark.parametrize("own", ALL_CELLS)
def test_late_objects_of_a_scatter(nova: Nova, own: str) -> None:
    """They do so after the response, too: their contexts are Nova's."""
    instance = create(own)
    rename(request(nova.probe, instance, gather))
    assert names(instance.uuid) == [f"in-{cell} renamed" for cell in ALL_CELLS]


@pytest.mark.parametrize(("own", "other"), PAIRS)
def test_error_in_a_scatter(nova: Nova, own: str, other: str) -> None:
    """An error in one cell is that cell's result, and takes none of the others with it."""

    def fail_there(context: Any, uuid: str) -> str:
        found = look(context, uuid)
        if found == other:
            raise Failure
        return found

    def call(visit: Visit) -> list[Any]:
        found = nova_context.scatter_gather_all_cells(visit.context, fail_there, visit.uuid)
        return [type(found[cell_mapping(other).uuid]), found[visit.own.uuid], visit.look()]

    assert request(nova.probe, create(own), call) == [Failure, own, own]


# Errors


def rename_and_fail(context: Any, uuid: str) -> None:
    """Fail in a block that has written something."""
    with db.get_context_manager(context).writer.using(context):
        rename([objects.Instance.get_by_uuid(context, uuid)])
        raise Failure


def fail_in_novas(visit: Visit, other: Any) -> None:
    """Fail in Nova's target_cell."""
    with target_cell(visit.context, other) as there:
        rename_and_fail(there, visit.uuid)


def fail_in_ours(visit: Visit, other: Any) -> None:
    """Fail in our target()."""
    with visit.ours(visit.context, other) as there:
        rename_and_fail(there, visit.uuid)


def fail_in_novas_in_writer(visit: Visit, other: Any) -> None:
    """Fail in Nova's target_cell, while the request writes."""
    with db.get_context_manager(visit.context).writer.using(visit.context):
        rename([objects.Instance.get_by_uuid(visit.context, visit.uuid)])
        fail_in_novas(visit, other)


def fail_in_ours_in_writer(visit: Visit, other: Any) -> None:
    """Fail in our target(), while the request writes."""
    with db.get_context_manager(visit.context).writer.using(visit.context):
        rename([objects.Instance.get_by_uuid(visit.context, visit.uuid)])
        fail_in_ours(visit, other)


def fail_in_ours_in_novas(visit: Visit, other: Any) -> None:
    """Fail in our target(), inside Nova's target_cell."""
    with target_cell(visit.context, other) as there, visit.ours(there, visit.own) as back:
        rename_and_fail(back, visit.uuid)


def fail_in_novas_in_ours(visit: Visit, other: Any) -> None:
    """Fail in Nova's target_cell, inside our target()."""
    with visit.ours(visit.context, other) as there, target_cell(there, visit.own) as back:
        rename_and_fail(back, visit.uuid)


def fail_in_place(visit: Visit, other: Any) -> None:
    """Fail after Nova's set_target_cell."""
    set_target_cell(visit.context, other)
    rename_and_fail(visit.context, visit.uuid)


def fail_in_scatter(visit: Visit, other: Any) -> None:
    """Fail in Nova's scatter, in each cell."""
    found = nova_context.scatter_gather_cells(visit.context, [other, visit.own], PATIENCE, rename_and_fail, visit.uuid)
    raise found[other.uuid]


FAILURES = [
    fail_in_novas,
    fail_in_ours,
    fail_in_novas_in_writer,
    fail_in_ours_in_writer,
    fail_in_ours_in_novas,
    fail_in_novas_in_ours,
    fail_in_place,
    fail_in_scatter,
]


@pytest.mark.parametrize(("own", "other"), PAIRS)
@pytest.mark.parametrize("fail", FAILURES, ids=lambda fail: fail.__name__)
def test_error(nova: Nova, own: str, other: str, fail: Callable[[Visit, Any], None]) -> None:
    """An error leaves nothing written and nothing locked: the next request writes the same rows."""
    instance = create(own)
    with pytest.raises(Failure):
        request(nova.probe, instance, lambda visit: fail(visit, cell_mapping(other)))
    assert names(instance.uuid) == [f"in-{cell}" for cell in ALL_CELLS]
    request(nova.probe, instance, lambda visit: rename(gather(visit)))
    assert names(instance.uuid) == [f"in-{cell} renamed" for cell in ALL_CELLS]


# The filter twice


@pytest.fixture(scope="module")
def twice(whole_nova: Nova) -> Iterator[Api]:
    """The pipeline of the probe, with the filter in it twice."""
    file = whole_nova.deployment.folder / "api-paste-twice.ini"
    file.write_text(whole_nova.deployment.filtered_paste_ini.read_text().replace(" cells ", " cells cells "))
    assert " cells cells probeapp" in file.read_text()
    pipeline = api.load(whole_nova.deployment, file, "probe")
    yield pipeline
    assert pipeline.cells is not None
    pipeline.cells.close()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_twice(nova: Nova, twice: Api, way: Callable[[Visit, Any], list[str]]) -> None:
    """A second filter in the pipeline changes nothing."""
    seen = request(twice, create("cell1"), lambda visit: way(visit, cell_mapping("cell2")))
    assert seen == on_the(way, "cell1", "cell2")
    assert twice.cells is not None
    assert twice.cells.leases == 0


def test_lease_of_twice(nova: Nova, twice: Api) -> None:
    """A second filter takes no lease of its own."""

    def count(visit: Visit) -> int:
        # each filter has cells of its own, and the environ shows those of the first one only
        return sum(each.cells.leases for each in gc.get_objects() if type(each) is CellFilter)

    assert request(twice, create("cell1"), count) == 1


# At the same time


def test_threads(nova: Nova) -> None:
    """Requests that go all these ways at the same time see the cells that each is to see, and leave no lease open."""
    shared = {cell: create(cell) for cell in ALL_CELLS}
    barrier = threading.Barrier(THREADS)

    def work(number: int) -> list[tuple[str, list[str], list[str]]]:
        ways = list(WAYS)
        pairs = itertools.cycle(PAIRS[number % len(PAIRS) :] + PAIRS[: number % len(PAIRS)])
        barrier.wait(PATIENCE)
        wrong = []
        for way in ways[number:] + ways[:number]:
            own, other = next(pairs)
            seen = request(nova.probe, shared[own], lambda visit, way=way, other=other: way(visit, cell_mapping(other)))
            if seen != on_the(way, own, other):
                wrong.append((way.__name__, seen, on_the(way, own, other)))
        return wrong

    with ThreadPoolExecutor(THREADS) as threads:
        assert [*threads.map(work, range(THREADS))] == [[]] * THREADS
    assert nova.probe.cells is not None
    assert nova.probe.cells.leases == 0
