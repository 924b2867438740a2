# SPDX-License-Identifier: Apache-2.0
"""Which cells to ask, and which of many instances are in which of them."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event

from cellmw import deploy, own_urls, selection
from cellmw.exceptions import StoreUnavailable, UpcallForbidden
from cellmw.store.models import instance_mappings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from oslo_config import cfg

    from cellmw.cell import Cell
    from cellmw.cells import Cells
    from cellmw.store import Store

A, B, C, D, E = (f"5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a0{last}" for last in "abcde")


@pytest.fixture
def disabled(new_cell: Callable[..., Cell]) -> Cell:
    """A cell that gets no new instances."""
    return new_cell("disabled", disabled=True)


@pytest.fixture
def queries(cells: Cells) -> Iterator[list[str]]:
    """What the API database is asked by the cells, from now on."""
    statements: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        if statement.startswith("SELECT"):
            statements.append(statement)

    engine: Any = cells._store
    event.listen(engine.engine, "before_cursor_execute", note)
    yield statements
    event.remove(engine.engine, "before_cursor_execute", note)


@pytest.mark.parametrize(
    ("select", "names"),
    [
        (selection.everywhere, ["cell0", "cell1", "disabled"]),
        (selection.enabled, ["cell0", "cell1"]),
        (selection.without_cell0, ["cell1", "disabled"]),
    ],
)
def test_cells_by_what_they_are(
    cells: Cells,
    cell0: Cell,
    cell1: Cell,
    disabled: Cell,
    select: Callable[[Cells], list[Cell]],
    names: list[str],
    queries: list[str],
) -> None:
    """All cells, those that are enabled, all but cell0: by id, and without a query once they are known."""
    assert [cell.name for cell in select(cells)] == names
    queries.clear()
    assert [cell.name for cell in select(cells)] == names
    assert queries == []


def test_cells_of_a_project(
    cells: Cells, store: Store, cell0: Cell, cell1: Cell, cell2: Cell, disabled: Cell, queries: list[str]
) -> None:
    """Those in which a project has instances are found by one query, whatever else they are."""
    for cell in (disabled, cell0, disabled):
        store.create_instance(str(uuid.uuid4()), project_id="p", cell_id=cell.id)
    store.create_instance(str(uuid.uuid4()), project_id="other", cell_id=cell2.id)
    cells.known()
    queries.clear()
    assert selection.of_project(cells, "p") == [cell0, disabled]
    assert len(queries) == 1
    assert selection.of_project(cells, "nobody's") == []


def test_cell_that_is_new(cells: Cells, store: Store, cell1: Cell, new_cell: Callable[..., Cell]) -> None:
    """A cell that was recorded a moment ago is found by what is in it."""
    cells.known()
    new = new_cell("new")
    store.create_instance(A, project_id="p", cell_id=new.id)
    assert selection.of_project(cells, "p") == [new]
    assert selection.group_by_cell(cells, [A]).by_cell == {new: [A]}


def test_group(cells: Cells, store: Store, cell1: Cell, cell2: Cell, queries: list[str]) -> None:
    """Instances are told apart by their cells, those that have none yet, and those that nobody knows, by one query."""
    for each, cell in ((A, cell2), (B, cell1), (C, cell2), (D, None)):
        store.create_instance(each, project_id="p", cell_id=cell and cell.id)
    store.update_instance(C, queued_for_delete=True)
    cells.known()
    queries.clear()
    grouped = selection.group_by_cell(cells, iter([E, D, C, B, A]))
    assert list(grouped.by_cell.items()) == [(cell1, [B]), (cell2, [C, A])]
    assert (grouped.building, grouped.unmapped) == ([D], [E])
    assert len(queries) == 1


def test_group_of_nothing(cells: Cells, queries: list[str]) -> None:
    """For no instances nothing is asked."""
    assert selection.group_by_cell(cells, []) == selection.Grouped()
    assert queries == []


def test_spelling(cells: Cells, store: Store, cell1: Cell) -> None:
    """An instance is found however its uuid is spelled, and is in the answer once, as it was asked for."""
    store.create_instance(A, project_id="p", cell_id=cell1.id)
    assert selection.group_by_cell(cells, [A.upper()]).by_cell == {cell1: [A.upper()]}
    assert selection.group_by_cell(cells, [A, A, E, E]) == selection.Grouped({cell1: [A]}, [], [E])


def test_mapping_to_a_cell_that_is_gone(cells: Cells, store: Store, cell1: Cell) -> None:
    """A mapping to a cell that has no record leads nowhere."""
    store.create_instance(A, project_id="p", cell_id=cell1.id)
    with store.engine.begin() as connection:
        connection.execute(
            instance_mappings.insert().values(instance_uuid=B, project_id="p", cell_id=99, queued_for_delete=False)
        )
    assert selection.group_by_cell(cells, [A, B, C]) == selection.Grouped({cell1: [A]}, [], [C, B])
    assert selection.of_project(cells, "p") == [cell1]


QUESTIONS: list[Callable[[Cells], Any]] = [
    lambda cells: selection.of_project(cells, "p"),
    lambda cells: selection.group_by_cell(cells, [A]),
]


@pytest.mark.parametrize("ask", QUESTIONS)
def test_api_database_is_down(cells: Cells, cell1: Cell, queries: list[str], ask: Callable[[Cells], Any]) -> None:
    """Where the API database is known to be down nobody waits for it."""
    store: Any = cells._store
    cells.known()
    queries.clear()
    store.breaker.failed("TimeoutError")
    with pytest.raises(StoreUnavailable):
        ask(cells)
    assert queries == []


@pytest.mark.parametrize("ask", QUESTIONS)
def test_in_a_cell(conf: cfg.ConfigOpts, ask: Callable[[Cells], Any]) -> None:
    """A cell-level service does not know where instances are; the one cell that it has it may ask."""
    conf.set_override("role", "cell", group="cellmw")
    own_urls.transport_url(conf)  # which has the two options registered
    own_urls.database_connection(conf)
    conf.set_override("transport_url", "memory://here/")
    conf.set_override("connection", "sqlite://", group="database")
    with deploy.cells(conf) as cells:
        assert selection.everywhere(cells) == selection.enabled(cells) == [cells.local()]
        with pytest.raises(UpcallForbidden):
            ask(cells)
