# SPDX-License-Identifier: Apache-2.0
"""The cells' records, side by side -> whether they are the ones that a deployment needs, and lead to different places.

Names of hosts are compared as they are, and once more with those that mean this machine taken for one. What a database
server has said of itself proves what the names don't.
"""

from __future__ import annotations

import collections
import itertools
import socket
from typing import TYPE_CHECKING, Any

from cellmw import urls
from cellmw.admin.doctor.finding import NO_CELL, Finding, Severity
from cellmw.cell import CELL0_UUID
from cellmw.exceptions import CellMisconfigured, UrlRefused

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping, Sequence

    from cellmw.cell import Cell

CHECK = "cells"
OVERLAPS = "overlaps"

_HERE = "this machine"

_SEPARATE = "give each cell its own: `cellmw-manage cell_v2 update_cell`, or delete_cell for the one that is too many"


def examine(cells: Sequence[Cell]) -> Iterator[Finding]:
    """Tell whether there is cell0, as it has to be, and another cell, and whether each name is one cell's."""
    others = [cell for cell in cells if cell.uuid != CELL0_UUID]
    cell0 = next((cell for cell in cells if cell.uuid == CELL0_UUID), None)
    yield from _no_cell0(others) if cell0 is None else _of_cell0(cell0)
    if not others:
        what = "there is no cell but cell0, and none that an instance could live in"
        yield Finding(Severity.ERROR, NO_CELL, CHECK, what, "`cellmw-manage cell_v2 create_cell`")
    elif all(cell.disabled for cell in others):
        what = "all cells are disabled, so no new instance finds one"
        todo = "`cellmw-manage cell_v2 update_cell --enable` for one of them"
        yield Finding(Severity.WARNING, NO_CELL, CHECK, what, todo)
    for cell in others:
        if not cell.has_transport:
            what = "it has no message queue (none:), as only cell0 should: nothing can be sent to what lives there"
            todo = "record one: `cellmw-manage cell_v2 update_cell --transport-url`"
            yield Finding(Severity.WARNING, str(cell), CHECK, what, todo)
    for name, count in collections.Counter(cell.name for cell in cells if cell.name).items():
        if count > 1:
            uuids = ", ".join(cell.uuid for cell in cells if cell.name == name)
            what = f"{count} cells have this name ({uuids}), so none of them can be asked for by it"
            todo = "name them differently: `cellmw-manage cell_v2 update_cell --name`"
            yield Finding(Severity.WARNING, name, CHECK, what, todo)


def _no_cell0(others: Sequence[Cell]) -> Iterator[Finding]:
    what = "there is no cell0, where instances go that no cell could take"
    named = [cell.uuid for cell in others if cell.name == "cell0"]
    if named:
        what += f"; that {named[0]} is called cell0 does not make it that"
    yield Finding(Severity.ERROR, NO_CELL, CHECK, what, "`cellmw-manage cell_v2 map_cell0`")


def _of_cell0(cell0: Cell) -> Iterator[Finding]:
    if cell0.has_transport:
        what = "cell0 has a message queue, and nothing in it would take a message"
        todo = f"`cellmw-manage cell_v2 update_cell --cell_uuid {CELL0_UUID} --transport-url none:///`"
        yield Finding(Severity.WARNING, str(cell0), CHECK, what, todo)
    if cell0.disabled:
        what = "cell0 is disabled, which is for cells that new instances could be scheduled to"
        todo = "no command has done that, nor undoes it: set disabled to 0 in its row of cell_mappings"
        yield Finding(Severity.WARNING, str(cell0), CHECK, what, todo)


def compare(cells: Sequence[Cell], servers: Mapping[int, Hashable]) -> Iterator[Finding]:
    """Tell which cells have a database or a message queue in common.

    :param servers: id of a cell -> what its database says that it is, where that is known
    """
    databases = {cell.id: _database(cell) for cell in cells}
    queues = {cell.id: _queues(cell) for cell in cells}
    for one, other in itertools.combinations(cells, 2):
        yield from _compare_databases(one, other, databases, servers)
        if queues[one.id] & queues[other.id]:
            yield _same("message queue", one, other)
        elif {_from_here(place) for place in queues[one.id]} & {_from_here(place) for place in queues[other.id]}:
            yield _perhaps("message queue", one, other)


def _compare_databases(
    one: Cell, other: Cell, places: Mapping[int, Any], servers: Mapping[int, Hashable]
) -> Iterator[Finding]:
    first, second = places[one.id], places[other.id]
    known = one.id in servers and other.id in servers
    if first is not None and first == second:
        yield _same("database", one, other)
    elif known and servers[one.id] == servers[other.id]:
        yield _same("database", one, other, ", though their URLs look different: the server says so")
    elif first is not None and second is not None and not known and _from_here(first[1:]) == _from_here(second[1:]):
        yield _perhaps("database", one, other)


def _same(what: str, one: Cell, other: Cell, proof: str = "") -> Finding:
    return Finding(Severity.ERROR, str(one), OVERLAPS, f"it has the same {what} as cell {other}{proof}", _SEPARATE)


def _perhaps(what: str, one: Cell, other: Cell) -> Finding:
    text = f"it has the same {what} as cell {other}, if what their URLs call the host means this machine in both"
    todo = "write one name for one machine, the same in each URL; if it is one, give each cell its own"
    return Finding(Severity.WARNING, str(one), OVERLAPS, text, todo)


def _database(cell: Cell) -> tuple[object, ...] | None:
    try:
        return urls.database_place(cell.reveal_database_connection())
    except (CellMisconfigured, UrlRefused):
        return None  # which the check of the URLs says


def _queues(cell: Cell) -> frozenset[tuple[str, int, str]]:
    try:
        return urls.transport_place(cell.reveal_transport_url())
    except (CellMisconfigured, UrlRefused):
        return frozenset()


def _from_here(place: tuple[object, ...]) -> tuple[object, ...]:
    """Return the place with one name for the host where that means this machine."""
    host, *rest = place
    here = {"localhost", "127.0.0.1", "::1", name := socket.gethostname().lower(), name.partition(".")[0]}
    return (_HERE if host in here else host, *rest)
