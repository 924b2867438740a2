# SPDX-License-Identifier: Apache-2.0
"""A plan on standard input -> a parent and a child whose interpreter ends as any does; what they saw.

The child's end runs what is registered for it, collects what it has inherited, and clears every module.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from cellmw import RequestContext, database
from tests.faults import fork_rig
from tests.faults.fork_rig import CELLS, App

if TYPE_CHECKING:
    from collections.abc import Iterator

WAYS = ("exit", "error", "collect")


def say(report: dict[str, Any]) -> None:
    """Tell the test."""
    sys.stdout.write(f"{json.dumps(report)}\n")
    sys.stdout.flush()


def lines(opened: ExitStack, plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Serve requests, be in the middle of a transaction, fork; say what there is to say of the parent and the child."""
    cell_filter = opened.enter_context(closing(fork_rig.make_filter(plan, App())))
    for cell in CELLS:
        fork_rig.ask(plan, cell_filter, cell)
    cells, cell = cell_filter.cells, plan["cell"]
    with cells.target(RequestContext(overwrite=False), cells.get(cell)) as context:
        with database.writer(context) as session:
            fork_rig.mark(session, "parent")
            connection = fork_rig.connection_number(session)
            pid = os.fork()
            if not pid:
                opened.pop_all()
                yield {"child": fork_rig.use_cell(cells, cell, "child")}
                end(plan["way"])
            _, status = os.waitpid(pid, 0)
            yield {"status": os.waitstatus_to_exitcode(status)}
            same = fork_rig.connection_number(session) == connection
        yield {"parent": fork_rig.use(context), "same": same}


def end(way: str) -> None:
    """Leave, in the child, through all that its parent is in the middle of."""
    if way == "collect":
        gc.collect()
    if way == "error":
        raise RuntimeError("the child ends")
    sys.exit(3)


def main() -> int:
    """Do what the plan says."""
    plan = json.loads(sys.stdin.readline())
    with ExitStack() as opened:
        for report in lines(opened, plan):
            say(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
