# SPDX-License-Identifier: Apache-2.0
"""The WSGI application that a server loads before it forks; where its plan is says ``CELLMW_FORK_PLAN``.

While it is loaded it serves a request in each cell, and begins a transaction in each, which a thread of the loading
process commits when there is a file of the name that the plan gives.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

from cellmw import RequestContext, database
from tests.faults import fork_rig
from tests.faults.fork_rig import CELLS, PAUSE, App

if TYPE_CHECKING:
    from cellmw import CellFilter


def load(plan: dict[str, Any]) -> CellFilter:
    """Do what is done before the fork."""
    application = fork_rig.make_filter(plan, App())
    loaded = {"process": os.getpid(), "connections": {}}
    for cell in CELLS:
        fork_rig.ask(plan, application, cell)
        begun = threading.Event()
        threading.Thread(target=write, args=(plan, application, cell, loaded, begun), daemon=True).start()
        begun.wait()
    put(plan["loaded"], loaded)
    return application


def put(path: str, what: dict[str, Any]) -> None:
    """Write a file, which is there when all of it is."""
    new = Path(f"{path}.new")
    new.write_text(json.dumps(what))
    new.rename(path)


def write(
    plan: dict[str, Any], application: CellFilter, cell: str, loaded: dict[str, Any], begun: threading.Event
) -> None:
    """Leave a mark, and commit it when the time has come."""
    cells = application.cells
    with cells.target(RequestContext(overwrite=False), cells.get(cell)) as context:
        with database.writer(context) as session:
            fork_rig.mark(session, "master")
            loaded["connections"][cell] = fork_rig.connection_number(session)
            begun.set()
            while not Path(plan["commit"]).exists():
                sleep(PAUSE)
        again = fork_rig.use(context)
    put(f"{plan['committed']}.{cell}", again)


application = load(json.loads(Path(os.environ["CELLMW_FORK_PLAN"]).read_text()))
