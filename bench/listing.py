# SPDX-License-Identifier: Apache-2.0
"""What it costs to read across cells: a table. Fails where a limit is exceeded.

=========== ====================================================================================================
``scatter`` a function that does nothing, in 16 cells, beside the same 16 times in a ``ThreadPoolExecutor(16)``
``cells``   1 to 64 cells that take 50 ms each to answer: a scatter, and a page of a list. Beside them Nova's
            lister over cells that take as long, where nova is installed
``hung``    16 cells, one of which takes 20 seconds: a page with a deadline of 2 seconds, which has to have every
            row of the other 15. Ten of them in a row, and how long the other 15 take before, meanwhile and after
``pages``   a million rows in 16 cells, walked through by the cursor: rows a second, and how long a page takes and how
            much memory there is at the end, beside the beginning
=========== ====================================================================================================

The cells are SQLite files, and what takes 50 ms is a function that their statements call. Where nothing else is said
all cells are open already, and a figure is the median of its rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import logging
import random
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import TYPE_CHECKING, Any

import sqlalchemy
from oslo_config import cfg
from sqlalchemy import event

from bench.figures import call_time, in_turn, interval
from bench.request import PROJECT
from cellmw import conf as options
from cellmw import database, deploy
from cellmw.context import RequestContext
from cellmw.deadline import after
from cellmw.listing import list_sorted
from cellmw.scatter import scatter
from cellmw.store import migrations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cellmw.cell import Cell
    from cellmw.handles import Handles
    from cellmw.limits import Limits
    from cellmw.listing import Page

PARTS = ("scatter", "cells", "hung", "pages")

CELLS = 16
COUNTS = (1, 2, 4, 8, 16, 32, 64)

WAIT = 0.05
"""Seconds that each cell takes to answer."""

HANG = 20.0
"""Seconds that a hung cell takes."""

DEADLINE = 2.0
"""Seconds that a list over a hung cell may take."""

PATIENCE = 60.0
"""Seconds that any other list may take."""

HUNG_LISTS = 10
ROUNDS = 15
SCATTERS = 200
ROWS = 1_000_000
PAGE = 1000
SMALL = 100
"""How many rows there are where their number is of no interest, and how many a page has."""

SCATTER_LIMIT = 2.0
"""How many times as long as by a bare executor a scatter may take."""

CELLS_LIMIT = 1.5
"""How many times as long as one cell 16 may take."""

HUNG_LIMIT = 2.2
"""Seconds by which a list over a hung cell has to be there."""

SLOWED_LIMIT = 1.2
"""How many times as long as before the other cells may take beside a hung one."""

GROWTH_LIMIT = 0.05
"""By what part of itself the memory may grow from the second quarter of the pages to the last."""

SECRET = "signs the cursors"

BEGIN = datetime(2026, 1, 1)

TABLE = sqlalchemy.Table(
    "instances",
    sqlalchemy.MetaData(),
    sqlalchemy.Column("uuid", sqlalchemy.String(36), primary_key=True),
    sqlalchemy.Column("created_at", sqlalchemy.DateTime),
    sqlalchemy.Column("name", sqlalchemy.String(255)),
)

STATEMENT = sqlalchemy.select(TABLE)

# in a subquery, which is evaluated once and not for each row
WAITING = STATEMENT.where(sqlalchemy.select(sqlalchemy.func.wait(WAIT)).scalar_subquery() == 1)


class Deployment:
    """Cells in SQLite files that take as long as they are told. Lives as long as its ``with`` block.

    :ivar cells: the cells
    :ivar every: their records
    :ivar hung: the name of the one that hangs, if one does
    :ivar answered_at: when each has answered last, on the clock of ``perf_counter()``
    """

    def __init__(self, count: int, rows: int, stack: contextlib.ExitStack) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.hung = ""
        self.answered_at: dict[str, float] = {}
        self._over = threading.Event()
        self._context = RequestContext(project_id=PROJECT, overwrite=False)
        conf = cfg.ConfigOpts()
        conf([], default_config_files=[], default_config_dirs=[])
        options.register_opts(conf)
        conf.set_override("connection", f"sqlite:///{folder}/api.db", options.API_DATABASE)
        chances = random.Random(rows)
        with deploy.store(conf) as store:
            migrations.sync(store.engine)
            for number in range(count):
                file = folder / f"cell{number}.db"
                fill(file, rows // count + (number < rows % count), chances)
                store.create_cell(
                    name=f"cell{number}", transport_url="none:///", database_connection=f"sqlite:///{file}"
                )
        self.cells = stack.enter_context(deploy.cells(conf, opener=self._open))
        # before the cells are closed: what hangs comes back
        stack.callback(self._over.set)
        self.every = self.cells.all()

    def scatter(self, function: Callable[[Any], Any], deadline: float = PATIENCE) -> list[Any]:
        """Ask all of them, and return their answers."""
        results = scatter(self._context, self.cells, function, deadline=after(deadline))
        assert all(result.status == "ok" for result in results), results
        return [result.value for result in results]

    def page(
        self,
        statement: sqlalchemy.Select[Any] = WAITING,
        *,
        limit: int = SMALL,
        cursor: str | None = None,
        deadline: float = PATIENCE,
        among: list[Cell] | None = None,
    ) -> Page:
        """List the newest rows."""
        return list_sorted(
            self._context,
            self.cells,
            statement,
            sort=[("created_at", "desc")],
            unique="uuid",
            limit=limit,
            cursor=cursor,
            secret=SECRET,
            deadline=after(deadline),
            among=among,
        )

    def rows(self, cells: list[Cell]) -> set[str]:
        """Return the uuids that are in these cells, read at the files themselves."""
        found = set()
        for cell in cells:
            file = cell.reveal_database_connection().removeprefix("sqlite:///")
            with contextlib.closing(sqlite3.connect(file)) as connection:
                found |= {row[0] for row in connection.execute("SELECT uuid FROM instances")}
        return found

    def _open(self, cell: Cell, conf: cfg.ConfigOpts, limits: Limits) -> Handles:
        handles = deploy.open_handles(cell, conf, limits)

        def wait(seconds: float) -> int:
            if str(cell) == self.hung:
                self._over.wait(HANG)
            else:
                sleep(seconds)
            self.answered_at[str(cell)] = perf_counter()
            return 1

        def connected(connection: sqlite3.Connection, _: object) -> None:
            connection.create_function("wait", 1, wait)
            # what SQLite keeps of its file in this process is no part of a list
            connection.execute("PRAGMA cache_size = -100").close()

        event.listen(handles.engine, "connect", connected)
        return handles


def fill(file: Path, rows: int, chances: random.Random) -> None:
    """Make a cell's database with rows whose times are spread over those of all cells; some have the same."""

    def make() -> Iterator[tuple[str, str, str]]:
        for number in range(rows):
            created_at = BEGIN + timedelta(seconds=chances.randrange(ROWS))
            yield str(uuid.UUID(int=chances.getrandbits(128))), f"{created_at}.000000", f"instance {number}"

    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("CREATE TABLE instances (uuid VARCHAR(36) PRIMARY KEY, created_at DATETIME, name VARCHAR)")
        connection.executemany("INSERT INTO instances VALUES (?, ?, ?)", make())
        connection.execute("CREATE INDEX by_age ON instances (created_at, uuid)")


def wait_in_cell(context: Any) -> None:
    """Have a cell take its time."""
    with database.reader(context) as session:
        session.execute(sqlalchemy.select(sqlalchemy.func.wait(WAIT)))


def do_nothing(_: object) -> None:
    """Take no time."""


def heading() -> None:
    """Print what stands in the columns."""
    print(f"{'figure':<36}{'measured':>14}{'beside':>14}{'':>10}  {'95 %':<16}limit")


def row(figure: str, measured: str, beside: str = "", ratio: str = "", spread: str = "", verdict: str = "") -> None:
    """Print a figure."""
    print(f"{figure:<36}{measured:>14}{beside:>14}{ratio:>10}  {spread:<16}{verdict}".rstrip(), flush=True)


def verdict(limit: str, kept: bool) -> str:
    """Say whether a limit is kept."""
    return f"{limit}, {'reached' if kept else 'EXCEEDED'}"


def milliseconds(seconds: float) -> str:
    """Say how long it took."""
    return f"{seconds * 1e3:.1f} ms"


def measure_scatter(rounds: int) -> bool:
    """Measure what a scatter takes where its cells take nothing."""
    with contextlib.ExitStack() as stack:
        deployment = Deployment(CELLS, 0, stack)
        executor = stack.enter_context(ThreadPoolExecutor(CELLS))
        calls = max(1, SCATTERS // ROUNDS)
        times = in_turn(
            {
                "bare": lambda: call_time(lambda: list(executor.map(do_nothing, range(CELLS))), calls),
                "scatter": lambda: call_time(lambda: deployment.scatter(do_nothing), calls),
            },
            rounds * 5,
        )
    ratios = [ours / bare for ours, bare in zip(times["scatter"], times["bare"], strict=True)]
    ratio, (low, high) = statistics.median(ratios), interval(ratios)
    kept = ratio <= SCATTER_LIMIT
    row(
        "scatter",
        f"{statistics.median(times['scatter']):.0f} us",
        f"{statistics.median(times['bare']):.0f} us",
        f"{ratio:.2f} x",
        f"{low:.2f} to {high:.2f}",
        verdict(f"{SCATTER_LIMIT:g} x", kept),
    )
    return kept


def measure_cells(rounds: int, counts: list[int]) -> bool:
    """Measure cells that take their time, more and more of them."""
    kept = True
    for count in counts:
        theirs = nova_time(count)
        times = cell_times(count, rounds)
        for figure, values in times.items():
            time = statistics.median(values)
            is_limited = count == CELLS
            keeps = not is_limited or time <= CELLS_LIMIT * WAIT
            kept &= keeps
            low, high = interval(values)
            row(
                f"{figure}: {count} cell{'s' if count > 1 else ''} x {WAIT * 1e3:g} ms",
                milliseconds(time),
                "" if theirs is None or figure == "scatter" else milliseconds(theirs),
                f"{time / WAIT:.2f} x",
                f"{low * 1e3:.0f} to {high * 1e3:.0f}",
                verdict(f"{CELLS_LIMIT:g} x", keeps) if is_limited else "",
            )
    return kept


def cell_times(count: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds that this many cells take which take their time."""
    with contextlib.ExitStack() as stack:
        deployment = Deployment(count, SMALL, stack)
        return in_turn(
            {
                "scatter": lambda: call_time(lambda: deployment.scatter(wait_in_cell)) / 1e6,
                "list": lambda: call_time(deployment.page) / 1e6,
            },
            rounds,
        )


def nova_time(count: int) -> float | None:
    """Return the seconds that Nova's lister takes over as many cells, None where nova is not installed.

    It goes by one configuration for each process, so it has a process of its own.
    """
    if importlib.util.find_spec("nova") is None:
        return None
    command = [sys.executable, "-m", "bench.nova_listing", str(count), str(WAIT)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def measure_hung(rounds: int) -> bool:
    """Measure lists over cells of which one hangs, one list after the other."""
    with contextlib.ExitStack() as stack:
        deployment = Deployment(CELLS, SMALL, stack)
        sick, *others = deployment.every
        expected = deployment.rows(others)
        names = {str(cell) for cell in others}

        def ask(among: list[Cell] | None = None) -> tuple[float, float, bool]:
            """Return how long a list took, how long its healthy cells took, and whether it has all their rows."""
            deployment.answered_at.clear()
            start = perf_counter()
            page = deployment.page(deadline=DEADLINE, among=among)
            whole = perf_counter() - start
            answered = [at for name, at in deployment.answered_at.copy().items() if name in names]
            found = {row.uuid for row in page.rows}
            return whole, max(answered) - start, found >= expected and len(answered) == len(others)

        ask()
        before = [ask() for _ in range(rounds)]
        deployment.hung = str(sick)
        meanwhile = [ask() for _ in range(HUNG_LISTS)]
        after_it = [ask(others) for _ in range(rounds)]
    complete = all(is_complete for *_, is_complete in before + meanwhile + after_it)
    longest = max(whole for whole, *_ in meanwhile)
    kept = longest <= HUNG_LIMIT and complete
    row(
        f"list: 1 of {CELLS} cells hangs {HANG:g} s",
        f"{meanwhile[0][0]:.2f} s",
        verdict=verdict(f"{HUNG_LIMIT:g} s, with all rows of the others", meanwhile[0][0] <= HUNG_LIMIT and complete),
    )
    row(
        f"  the longest of {HUNG_LISTS} in a row",
        f"{longest:.2f} s",
        verdict=verdict(f"{HUNG_LIMIT:g} s", longest <= HUNG_LIMIT),
    )
    usual = statistics.median(healthy for _, healthy, _ in before)
    for figure, asked in (("meanwhile", meanwhile), ("after it", after_it)):
        healthy = statistics.median(healthy for _, healthy, _ in asked)
        keeps = healthy <= SLOWED_LIMIT * usual
        kept &= keeps
        row(
            f"  the other {len(others)} cells, {figure}",
            milliseconds(healthy),
            milliseconds(usual),
            f"{healthy / usual:.2f} x",
            verdict=verdict(f"{SLOWED_LIMIT:g} x", keeps),
        )
    return kept


def measure_pages(rows: int) -> bool:
    """Walk through many rows, and look at the memory at each page."""
    with contextlib.ExitStack() as stack:
        deployment = Deployment(CELLS, rows, stack)
        memory: list[int] = []
        times: list[float] = []
        found = 0
        last = (datetime.max, "")
        in_order = True
        cursor = None
        start = monotonic()
        while True:
            asked_at = perf_counter()
            page = deployment.page(STATEMENT, limit=PAGE, cursor=cursor)
            times.append(perf_counter() - asked_at)
            keys = [(each.created_at, each.uuid) for each in page.rows]
            in_order &= all(one > other for one, other in itertools.pairwise([last, *keys]))
            found, last, cursor = found + len(keys), keys[-1] if keys else last, page.cursor
            memory.append(resident())
            if cursor is None:
                break
        seconds = monotonic() - start
    complete = found == rows and in_order
    row(
        f"pages: {rows:,} rows, {len(memory):,} pages",
        f"{rows / seconds:,.0f} rows/s",
        verdict=verdict("each row once, in order", complete),
    )
    quarter = max(1, len(memory) // 4)
    early, late = statistics.median(times[:quarter]), statistics.median(times[-quarter:])
    row("  a page, in the last quarter", milliseconds(late), milliseconds(early), f"{late / early:.2f} x")
    # in the first quarter fills what is kept for the next page
    first, rest = max(memory[quarter : 2 * quarter]), max(memory[-quarter:])
    kept = rest - first <= GROWTH_LIMIT * first
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row(
        "  memory, in the last quarter",
        f"{rest / 2**20:.1f} MB",
        f"{first / 2**20:.1f} MB",
        f"{rest / first:.3f} x",
        f"peak {peak:.0f} MB",
        verdict(f"{1 + GROWTH_LIMIT:g} x the second", kept),
    )
    return complete and kept


def resident() -> int:
    """Return how many bytes of memory this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> int:
    """Measure everything, or the parts that are named."""
    parser = argparse.ArgumentParser(prog="python -m bench.listing", description="what it costs to read across cells")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"what to measure: {', '.join(PARTS)} (all of them)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each figure takes its turn (%(default)s)")
    parser.add_argument("--rows", type=int, default=ROWS, help="how many rows are walked through (%(default)s)")
    parser.add_argument(
        "--cells", type=int, nargs="+", default=COUNTS, help="how many cells take their time", metavar="COUNT"
    )
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}")
    measures: dict[str, Callable[[], bool]] = {
        "scatter": lambda: measure_scatter(chosen.rounds),
        "cells": lambda: measure_cells(chosen.rounds, chosen.cells),
        "hung": lambda: measure_hung(chosen.rounds),
        "pages": lambda: measure_pages(chosen.rows),
    }
    logging.disable()
    heading()
    kept = {name: measures[name]() for name in PARTS if name in (chosen.parts or PARTS)}
    return int(not all(kept.values()))


if __name__ == "__main__":
    sys.exit(main())
