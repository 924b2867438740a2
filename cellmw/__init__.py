# SPDX-License-Identifier: Apache-2.0
"""Routes each API request to the database and message queue of its instance's cell.

What a service uses: the filter in its pipeline, ``cellmw.database`` and ``ClientRouter`` in its controllers, and
``cellmw.deploy.cells()`` in code outside a request. The errors are in ``cellmw.exceptions``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cellmw.cell import Cell
    from cellmw.cells import Cells
    from cellmw.context import RequestContext
    from cellmw.filter import CellFilter
    from cellmw.rpc import ClientRouter

__all__ = ["Cell", "CellFilter", "Cells", "ClientRouter", "RequestContext"]

_HOMES = {
    "Cell": "cellmw.cell",
    "CellFilter": "cellmw.filter",
    "Cells": "cellmw.cells",
    "ClientRouter": "cellmw.rpc",
    "RequestContext": "cellmw.context",
}


def __getattr__(name: str) -> object:
    # imported when they are asked for: who wants the options or a command does not wait for all of oslo.messaging
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
