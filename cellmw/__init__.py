# SPDX-License-Identifier: Apache-2.0
"""Routes each API request to the database and message queue of its instance's cell.

What a service uses: the filter in its pipeline, ``cellmw.database`` and ``ClientRouter`` in its controllers, and
``cellmw.deploy.cells()`` in code outside a request. The errors are in ``cellmw.exceptions``.
"""

from __future__ import annotations

from cellmw.cell import Cell
from cellmw.cells import Cells
from cellmw.context import RequestContext
from cellmw.filter import CellFilter
from cellmw.rpc import ClientRouter

__all__ = ["Cell", "CellFilter", "Cells", "ClientRouter", "RequestContext"]
