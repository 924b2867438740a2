# SPDX-License-Identifier: Apache-2.0
"""All cells, or what the API database knows of instances -> the cells to ask.

For ``among=`` of :func:`cellmw.scatter.scatter`, and of everything that is made of it. It asks no cell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cellmw.cell import CELL0_UUID
from cellmw.exceptions import CellNotFound

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cellmw.cell import Cell
    from cellmw.cells import Cells
    from cellmw.deadline import Deadline


@dataclass(frozen=True, slots=True)
class Grouped:
    """Instances by where they are. Lives as long as one call. Each uuid is in it once, as it was asked for.

    :ivar by_cell: cell -> its instances, cells by id, instances in the order in which they were asked for
    :ivar building: those that are mapped, and have no cell yet
    :ivar unmapped: those that have no mapping, or one to a cell that has no record
    """

    by_cell: dict[Cell, list[str]] = field(default_factory=dict)
    building: list[str] = field(default_factory=list)
    unmapped: list[str] = field(default_factory=list)


def everywhere(cells: Cells, deadline: Deadline | None = None) -> list[Cell]:
    """Return every cell, cell0 and disabled ones included.

    :raises StoreUnavailable: if the cells are not known yet, and the API database does not answer
    """
    return cells.known(deadline)


def enabled(cells: Cells, deadline: Deadline | None = None) -> list[Cell]:
    """Return the cells that are not disabled.

    :raises StoreUnavailable: if the cells are not known yet, and the API database does not answer
    """
    return [cell for cell in cells.known(deadline) if not cell.disabled]


def without_cell0(cells: Cells, deadline: Deadline | None = None) -> list[Cell]:
    """Return every cell but cell0.

    :raises StoreUnavailable: if the cells are not known yet, and the API database does not answer
    """
    return [cell for cell in cells.known(deadline) if cell.uuid != CELL0_UUID]


def of_project(cells: Cells, project_id: str, deadline: Deadline | None = None) -> list[Cell]:
    """Return the cells in which this project has instances, but for those whose deletion has begun, in one query.

    :raises StoreUnavailable: if the API database does not answer
    :raises UpcallForbidden: in a cell-level service
    """
    cells.store.check()
    ids = cells.store.list_cell_ids(project_id, deadline)
    found = (_find(cells, cell_id, deadline) for cell_id in ids)
    return [cell for cell in found if cell is not None]


def group_by_cell(cells: Cells, uuids: Iterable[str], deadline: Deadline | None = None) -> Grouped:
    """Return in which cells these instances are, in one query for each thousand of them.

    It asks the API database, and not the cache: what it says is how things are now.

    :raises StoreUnavailable: if the API database does not answer
    :raises UpcallForbidden: in a cell-level service
    """
    asked = {uuid.lower(): uuid for uuid in uuids}
    cells.store.check()
    mappings = cells.store.find_instances(asked, deadline)
    cell_ids = {mapping.instance_uuid.lower(): mapping.cell_id for mapping in mappings}
    by_id: dict[int, list[str]] = {}
    grouped = Grouped()
    for lower, uuid in asked.items():
        cell_id = cell_ids.get(lower)
        if cell_id is not None:
            by_id.setdefault(cell_id, []).append(uuid)
        elif lower in cell_ids:
            grouped.building.append(uuid)
        else:
            grouped.unmapped.append(uuid)
    for cell_id in sorted(by_id):
        cell = _find(cells, cell_id, deadline)
        if cell is None:
            grouped.unmapped.extend(by_id[cell_id])
        else:
            grouped.by_cell[cell] = by_id[cell_id]
    return grouped


def _find(cells: Cells, cell_id: int, deadline: Deadline | None) -> Cell | None:
    try:
        return cells.get(cell_id, deadline)
    except CellNotFound:
        return None  # a database with foreign keys has no such mapping
