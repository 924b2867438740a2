# SPDX-License-Identifier: Apache-2.0
"""Cell records that change while the cells are in use: who gets what, and what becomes of the rest."""

from __future__ import annotations

import logging
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from oslo_db import exception as db_exc

from cellmw import conf as options
from cellmw import deploy
from cellmw.cell import Cell
from cellmw.exceptions import CellNotFound, StoreUnavailable, UpcallForbidden
from cellmw.lease import Lease
from cellmw.records import Records
from cellmw.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from oslo_config import cfg

    from cellmw.cells import Cells
    from cellmw.deadline import Deadline
    from cellmw.handles import Handles
    from cellmw.limits import Limits

PATIENCE = 20


@pytest.fixture
def other_urls(tmp_path: Path) -> dict[str, str]:
    """Where a cell goes."""
    return {"transport_url": "memory://moved/", "database_connection": f"sqlite:///{tmp_path}/moved.sqlite"}


def _closed(handles: Handles) -> threading.Event:
    """Return what is set when the handles have been closed."""
    closed = threading.Event()
    handles._closing.insert(0, closed.set)
    return closed


@pytest.mark.parametrize("what", ["transport_url", "database_connection"])
def test_changed_url(cells: Cells, store: Store, cell1: Cell, other_urls: dict[str, str], what: str) -> None:
    """When one of its URLs has changed, new leases on a cell are on new handles, and the old ones are closed."""
    with cells.lease(cell1.id) as lease:
        old = lease.handles
    closed = _closed(old)
    store.update_cell(cell1.uuid, **{what: other_urls[what]})
    cells.refresh()
    assert closed.wait(PATIENCE)
    with cells.lease(cell1.id) as lease:
        assert lease.handles is not old
        assert getattr(lease.cell, f"reveal_{what}")() == other_urls[what]


def test_lease_that_is_open(cells: Cells, store: Store, cell1: Cell, other_urls: dict[str, str]) -> None:
    """A lease that is open keeps its handles, open, until its end; so they are there side by side with the new ones."""
    with cells.lease(cell1.id) as before:
        old = before.handles
        closed = _closed(old)
        store.update_cell(cell1.uuid, **other_urls)
        cells.refresh()
        with cells.lease(cell1.id) as after:
            assert after.handles is not old
            assert before.handles is old
            assert cells.leases == 2
        assert not closed.is_set()
    assert closed.wait(PATIENCE)
    assert cells.leases == 0


def test_what_is_the_same_stays(cells: Cells, store: Store, cell1: Cell, cell2: Cell, other_urls: Any) -> None:
    """Cells whose URLs are the same keep their handles."""
    handles = [cells.lease(cell.id) for cell in (cell1, cell2)]
    second = handles[1].handles
    store.update_cell(cell1.uuid, **other_urls)
    cells.refresh()
    for lease in handles:
        lease.release()
    with cells.lease(cell2.id) as lease:
        assert lease.handles is second


def test_renamed(cells: Cells, store: Store, cell1: Cell) -> None:
    """A cell that has got another name, or was disabled, goes by that at once, on the handles that it has."""
    with cells.lease(cell1.id) as lease:
        handles = lease.handles
    store.update_cell(cell1.uuid, name="renamed", disabled=True)
    cells.refresh()
    with cells.lease(cell1.id) as lease:
        assert (lease.handles, lease.cell.name, lease.cell.disabled) == (handles, "renamed", True)


def test_deleted(cells: Cells, store: Store, cell1: Cell) -> None:
    """The handles of a cell that was deleted are closed, and there is no lease on it any more."""
    with cells.lease(cell1.id) as lease:
        closed = _closed(lease.handles)
        store.delete_cell(cell1.uuid)
        cells.refresh()
        assert not closed.is_set()
    assert closed.wait(PATIENCE)
    with pytest.raises(CellNotFound):
        cells.lease(cell1.id)


def test_any_reading_is_followed(cells: Cells, store: Store, cell1: Cell, other_urls: dict[str, str]) -> None:
    """Whoever reads the cells, for whatever reason, brings the change along."""
    with cells.lease(cell1.id) as lease:
        old = lease.handles
    store.update_cell(cell1.uuid, **other_urls)
    cells.all()
    with cells.lease(cell1.id) as lease:
        assert lease.handles is not old


def test_late_reader(
    cells: Cells, store: Store, cell1: Cell, other_urls: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that has read older records, and is late, changes nothing."""
    old = store.list_cells()
    store.update_cell(cell1.uuid, **other_urls)
    list_cells = type(cells._store).list_cells

    def overtaken(self: Store, deadline: Deadline | None) -> list[Cell]:
        monkeypatch.setattr(type(cells._store), "list_cells", list_cells)
        cells.refresh()
        return old

    monkeypatch.setattr(type(cells._store), "list_cells", overtaken)
    cells.refresh()
    with cells.lease(cell1.id) as lease:
        assert lease.cell.reveal_transport_url() == other_urls["transport_url"]


def test_changed_while_it_is_opened(
    conf: cfg.ConfigOpts, store: Store, cell1: Cell, other_urls: dict[str, str]
) -> None:
    """Where the record changes while its cell is being opened, what was opened by the old one is not used."""
    opened: list[str] = []

    def opener(cell: Cell, conf: cfg.ConfigOpts, limits: Limits) -> Handles:
        opened.append(cell.reveal_transport_url())
        if len(opened) == 1:
            store.update_cell(cell1.uuid, **other_urls)
            cells.refresh()
        return deploy.open_handles(cell, conf, limits)

    with closing(deploy.cells(conf, opener=opener)) as cells, cells.lease(cell1.id) as lease:
        assert lease.cell.reveal_transport_url() == other_urls["transport_url"]
    assert [url.rpartition("@")[2].removeprefix("memory://") for url in opened] == ["cell1/", "moved/"]


def test_retired_before_it_was_leased(
    cells: Cells, store: Store, cell1: Cell, other_urls: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that got hold of handles just before they were retired does not use them."""
    with cells.lease(cell1.id) as lease:
        old = lease.handles
    add = Lease.__init__

    def late(self: Lease, handles: Handles, instance_uuid: str, deadline: Deadline | None) -> None:
        if handles is old and not old.retired:
            store.update_cell(cell1.uuid, **other_urls)
            cells.refresh()
        add(self, handles, instance_uuid, deadline)

    monkeypatch.setattr(Lease, "__init__", late)
    with cells.lease(cell1.id) as lease:
        assert lease.handles is not old
    assert cells.leases == 0


def test_leases_and_changes_side_by_side(
    cells: Cells, store: Store, cell1: Cell, tmp_path: Path, together: Callable[..., list[Any]]
) -> None:
    """However leases and changes fall together, no lease ever has closed handles, and in the end none is open."""
    changing = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            for change in range(8):
                store.update_cell(cell1.uuid, database_connection=f"sqlite:///{tmp_path}/{change}.sqlite")
                cells.refresh()
            changing.set()
            return 0
        taken = 0
        while not changing.is_set():
            with cells.lease(cell1.id) as lease:
                assert not lease.handles.closed
                taken += 1
        return taken

    taken = together(4, work)
    assert all(count > 0 for count in taken[1:])
    assert cells.leases == 0
    with cells.lease(cell1.id) as lease:
        assert lease.cell.reveal_database_connection().endswith("/7.sqlite")


def test_upkeep_follows_changes(conf: cfg.ConfigOpts, store: Store, cell1: Cell, other_urls: dict[str, str]) -> None:
    """Nobody has to ask: the records are read again in each interval, once something of the cells is in use."""
    conf.set_override("refresh_interval", 0.1, options.GROUP)
    with closing(deploy.cells(conf)) as cells:
        with cells.lease(cell1.id) as lease:
            closed = _closed(lease.handles)
        store.update_cell(cell1.uuid, **other_urls)
        assert closed.wait(PATIENCE)


def test_nothing_is_read_before_the_first_lease(conf: cfg.ConfigOpts, cell1: Cell) -> None:
    """Before anything is in use there is nobody who reads the records again and again."""
    with closing(deploy.cells(conf)) as cells:
        cells.get(cell1.id)
        assert "cellmw-upkeep" not in [thread.name for thread in threading.enumerate()]


def test_unreadable_cells(cells: Cells, cell1: Cell, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """While the API database is down what is known is used, and the log says so once, and when it is over."""
    caplog.set_level(logging.INFO, "cellmw.records")
    with cells.lease(cell1.id) as lease:
        handles = lease.handles
    with monkeypatch.context() as down:
        down.setattr(cells._store._bounded, "connect", _refuse)
        for _ in range(3):
            cells._records.keep_up()
    with cells.lease(cell1.id) as lease:
        assert lease.handles is handles
    cells._records.keep_up()
    cells._records.keep_up()
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "the cells can't be read, those that are known are used",
        "the cells can be read again",
    ]


def test_unknown_cell_while_down(cells: Cells, cell1: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the API database is known to be down, requests for a cell that is not known are answered at once."""
    attempts: list[None] = []
    monkeypatch.setattr(cells._store._bounded, "connect", lambda: attempts.append(None))
    assert cells._store.breaker is not None
    monkeypatch.setattr(cells._store.breaker, "is_open", True)
    with pytest.raises(StoreUnavailable):
        cells.get(cell1.id)
    assert attempts == []


class Elsewhere:
    """A source that is no API database. Lives as long as its test."""

    def __init__(self, *cells: Cell) -> None:
        self.cells = list(cells)
        self.deadlines: list[float | None] = []
        self.checked: list[int | str] = []
        self.error: Exception | None = None

    def list_cells(self, deadline: float | None = None) -> list[Cell]:
        self.deadlines.append(deadline)
        if self.error is not None:
            raise self.error
        return self.cells

    def check(self, ref: int | str) -> None:
        self.checked.append(ref)
        if ref == "forbidden":
            raise UpcallForbidden("cell forbidden")


def test_other_sources(cell1: Cell, cell2: Cell) -> None:
    """The records can come from anywhere: who is not known is looked for there, by the deadline, if that is of use."""
    source, followed = Elsewhere(cell1, cell2), []
    records = Records(source, followed.append)
    assert records.get("cell1", 5.0) == cell1
    assert (source.checked, source.deadlines) == (["cell1"], [5.0])
    assert records.get(cell2.uuid) == cell2
    assert source.deadlines == [5.0]
    with pytest.raises(CellNotFound):
        records.get("nosuch")
    with pytest.raises(UpcallForbidden):
        records.get("forbidden")
    assert len(source.deadlines) == len(followed) == 2
    assert followed[-1] is records.known


def test_cells_are_resolved(cell1: Cell, cell2: Cell, other_urls: dict[str, str]) -> None:
    """What is known, and followed, are the cells as they can be opened, not as they are recorded."""
    resolved = Cell(cell1.id, cell1.uuid, cell1.name, cell1.disabled, **other_urls)
    followed: list[Any] = []
    records = Records(Elsewhere(cell1, cell2), followed.append, lambda cell: resolved if cell == cell1 else cell)
    for known in (records.get(cell1.id), records.read()["cell1"], records.known[cell1.uuid], followed[0][cell1.id]):
        assert known is resolved
    assert records.get("cell2") is cell2


def test_sources_that_fail(cell1: Cell, cell2: Cell, caplog: Any) -> None:
    """A source that can't be read is said to be so, once; what is known is kept, and what is new is an error."""
    source = Elsewhere(cell1)
    records = Records(source, lambda known: None)
    records.read()
    source.error, source.cells = StoreUnavailable("the file is gone"), [cell1, cell2]
    for _ in range(2):
        records.keep_up()
        assert records.get("cell1") == cell1
    with pytest.raises(StoreUnavailable):
        records.get("cell2")
    assert [record.getMessage() for record in caplog.records] == [
        "the cells can't be read, those that are known are used: the file is gone"
    ]


def _refuse() -> Any:
    raise db_exc.DBConnectionError
