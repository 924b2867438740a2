# SPDX-License-Identifier: Apache-2.0
"""A new instance -> the cell that it is built in. The only file of the service that knows of cells."""

from __future__ import annotations

import itertools
import uuid
from typing import TYPE_CHECKING

from cellmw import database
from cellmw.cell import CELL0_UUID
from examples.compute.models import Instance

if TYPE_CHECKING:
    import cellmw
    from cellmw.cell import Cell
    from cellmw.cells import Cells
    from cellmw.rpc import ClientRouter

MEMORY = {"small": 2, "large": 32, "too-big": 1024}
"""Flavor -> the memory that it takes, in GiB."""

HOST_MEMORY = 64
"""What each host has, in GiB."""


class NoValidHost(Exception):
    """No host of any cell can take the instance."""


class Scheduler:
    """Builds instances in the enabled cells in turn. Lives as long as the process; threads share it."""

    def __init__(self, compute_rpc: ClientRouter) -> None:
        """Send ``build`` by this client to the cell that was chosen."""
        self._compute_rpc = compute_rpc
        self._turns = itertools.count()

    def build(self, cells: Cells, context: cellmw.RequestContext, name: str, flavor: str) -> str:
        """Start to build an instance and return its uuid.

        The mapping comes first: from then on the API knows the uuid, whatever becomes of the instance.
        """
        wanted = {"uuid": str(uuid.uuid4()), "project_id": context.project_id, "name": name, "flavor": flavor}
        cells.mappings.create(wanted["uuid"], project_id=context.project_id, user_id=context.user_id)
        try:
            cell = self._choose(cells, flavor)
        except NoValidHost as fault:
            self._bury(cells, context, wanted | {"state": "ERROR", "fault": str(fault)})
        else:
            self._send(cells, context, cell, wanted)
        return wanted["uuid"]

    def _choose(self, cells: Cells, flavor: str) -> Cell:
        candidates = [cell for cell in cells.all() if cell.has_transport and not cell.disabled]
        if not candidates or MEMORY[flavor] > HOST_MEMORY:
            raise NoValidHost(f"no host has room for flavor {flavor}")
        return candidates[next(self._turns) % len(candidates)]

    def _send(self, cells: Cells, context: cellmw.RequestContext, cell: Cell, wanted: dict[str, str]) -> None:
        """Leave the instance in this cell's database and tell a worker of the cell to build it."""
        with cells.target(context, cell) as targeted:
            with database.writer(targeted) as session:
                session.add(Instance(**wanted))
            cells.mappings.schedule(wanted["uuid"], cell)
            self._compute_rpc.client(targeted).cast(targeted, "build", instance_uuid=wanted["uuid"])

    def _bury(self, cells: Cells, context: cellmw.RequestContext, failed: dict[str, str]) -> None:
        """Keep it in cell0, where an instance that could not be built can be shown and deleted."""
        cell0 = cells.get(CELL0_UUID)
        with cells.target(context, cell0) as targeted, database.writer(targeted) as session:
            session.add(Instance(**failed))
        cells.mappings.schedule(failed["uuid"], cell0)
