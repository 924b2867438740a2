# SPDX-License-Identifier: Apache-2.0
"""The API database -> whether its tables are those of this release, what is left over in them, and its clock."""

from __future__ import annotations

import datetime
import time
from typing import TYPE_CHECKING

from oslo_utils import timeutils

from cellmw.admin.doctor.finding import NO_CELL, Finding, Severity, counted
from cellmw.store import migrations
from cellmw.store.database import DATABASE_ERRORS, failure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cellmw.cell import Cell
    from cellmw.store import Store
    from cellmw.store.holds import Held

CHECK = "api-database"
CLOCK = "clock"
DRAINS = "drains"

_SYNC = "`cellmw-manage api_db sync`"

_APART = 5.0
"""Seconds that two clocks may be apart without being wrong."""

_LONG = datetime.timedelta(days=1)
"""How long a cell is drained, at most, that somebody works on."""

_NOW = {
    "postgresql": "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)",
    "mysql": "SELECT CAST(UNIX_TIMESTAMP(SYSDATE(6)) AS DOUBLE)",
    "mariadb": "SELECT CAST(UNIX_TIMESTAMP(SYSDATE(6)) AS DOUBLE)",
}
"""Dialect -> what asks it for the time, in seconds since 1970. SQLite has no clock of its own."""


def examine(store: Store) -> Iterator[Finding]:
    """Tell whether the tables are there, and at the newest revision.

    :raises StoreUnavailable: if the database does not answer
    """
    lacking = migrations.missing(store.engine)
    if lacking:
        todo = _SYNC
        if migrations.is_novas(store.engine):
            todo += "; what is Nova's: `nova-manage api_db sync` of a current release"
        yield Finding(Severity.ERROR, NO_CELL, CHECK, f"it lacks {', '.join(lacking)}", todo)
        return
    version = migrations.version(store.engine)
    if version == migrations.newest():
        return
    if version is not None and not migrations.is_known(version):
        what = f"it is at revision {version}, of a newer release than this one"
        yield Finding(Severity.WARNING, NO_CELL, CHECK, what, "use the newest release of cellmw on every host")
    else:
        what = f"it is at revision {version}, and the newest is {migrations.newest()}"
        yield Finding(Severity.WARNING, NO_CELL, CHECK, what, _SYNC)


def compare_clocks(store: Store) -> Iterator[Finding]:
    """Tell whether its clock and that of this host are apart.

    :raises StoreUnavailable: if the database does not answer
    """
    statement = _NOW.get(store.engine.dialect.name)
    if statement is None:
        return
    try:
        with store.engine.connect() as connection:
            begun = time.time()
            theirs = float(connection.exec_driver_sql(statement).scalar_one())
            ended = time.time()
    except DATABASE_ERRORS as error:
        raise failure(error) from error
    apart = max(begun - theirs, theirs - ended, 0.0)
    if apart > _APART:
        what = f"its clock and the one of this host are {apart:.0f} s apart"
        todo = "have both hosts keep time, by NTP: until when an instance is held back is written in it"
        yield Finding(Severity.WARNING, NO_CELL, CLOCK, what, todo)


def examine_holds(cells: Sequence[Cell], held: Held) -> Iterator[Finding]:
    """Tell which cells are drained, and what was left over by a move that was interrupted."""
    now = timeutils.utcnow()
    names = {cell.uuid: str(cell) for cell in cells}
    for drained in held.cells:
        name = names.get(drained.cell_uuid, NO_CELL)
        severity = Severity.WARNING if now - drained.since > _LONG else Severity.INFO
        reason = f": {drained.reason}" if drained.reason else ""
        what = f"it is drained since {drained.since:%Y-%m-%d %H:%M} UTC, and answers 503{reason}"
        if name == NO_CELL:
            severity, what = Severity.INFO, f"cell {drained.cell_uuid}, which has no record, is drained"
        todo = f"when that is over: `cellmw-manage cell_v2 undrain --cell_uuid {drained.cell_uuid}`"
        yield Finding(severity, name, DRAINS, what, todo)
    over = sum(instance.until < now for instance in held.instances)
    if over:
        what = f"{counted(over, 'instance')} whose move was interrupted; the filter lets them through again"
        todo = "`cellmw-manage cell_v2 move_instance` again, where they are still in the wrong cell"
        yield Finding(Severity.INFO, NO_CELL, DRAINS, what, todo)
