# SPDX-License-Identifier: Apache-2.0
"""Prints how many seconds Nova's lister takes over COUNT cells that take WAIT seconds each to answer.

python -m bench.nova_listing COUNT WAIT

What bench/listing.py runs in a process of its own where nova is installed. The cells answer with a row each, after a
pause; neither a database nor a queue is connected to. The median of a few rounds, with what Nova keeps of its cells
there already.
"""

from __future__ import annotations

import os

# Nova looks at it when it is imported
os.environ["OS_NOVA_DISABLE_EVENTLET_PATCHING"] = "true"

import logging
import statistics
import sys
import uuid
from time import perf_counter, sleep
from typing import Any

from nova import context as nova_context
from nova import objects
from nova.compute.multi_cell_list import CrossCellLister, RecordSortContext
from oslo_config import cfg

ROUNDS = 5


class Lister(CrossCellLister):
    """Nova's lister over cells that take their time. Lives as long as one list, as in Nova."""

    marker_identifier = "uuid"

    def __init__(self, cells: list[Any], wait: float) -> None:
        super().__init__(RecordSortContext(["uuid"], ["asc"]), cells=cells)
        self._wait = wait

    def get_marker_record(self, ctx: Any, marker_id: str) -> Any:
        raise NotImplementedError

    def get_marker_by_values(self, ctx: Any, values: Any) -> Any:
        raise NotImplementedError

    def get_by_filters(self, ctx: Any, filters: Any, limit: int, marker: Any, **kwargs: Any) -> list[dict[str, str]]:
        """Answer with one row."""
        if marker is not None:
            return []
        sleep(self._wait)
        return [{"uuid": str(uuid.uuid4())}]


def list_time(cells: list[Any], wait: float) -> float:
    """Return the seconds that a list takes."""
    context = nova_context.RequestContext(user_id="user", project_id="project", overwrite=False)
    start = perf_counter()
    rows = list(Lister(cells, wait).get_records_sorted(context, {}, 100, None))
    assert len(rows) == len(cells)
    return perf_counter() - start


def main() -> int:
    """Measure."""
    count, wait = int(sys.argv[1]), float(sys.argv[2])
    logging.disable()
    cfg.CONF([], project="nova", default_config_files=[], default_config_dirs=[])
    objects.register_all()
    cells = [
        objects.CellMapping(
            id=number,
            uuid=str(uuid.uuid4()),
            name=f"cell{number}",
            transport_url="none:///",
            database_connection="sqlite://",
        )
        for number in range(1, count + 1)
    ]
    list_time(cells, 0.0)
    print(statistics.median(list_time(cells, wait) for _ in range(ROUNDS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
