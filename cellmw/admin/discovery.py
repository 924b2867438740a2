# SPDX-License-Identifier: Apache-2.0
"""The hosts that the cells' databases have -> the mappings by which the API level finds them.

A host is looked at whether its cell takes it for discovered or not: what counts is whether it has a mapping. So a run
that was cut off between the mapping and the mark in the cell is made good by the next one, and so is a mapping that was
lost. The mark is kept up for Nova, whose own discovery looks at nothing else.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

from oslo_db.exception import DBDeadlock

from cellmw import database, deploy
from cellmw.admin import access
from cellmw.admin.cell_tables import CellTables
from cellmw.bounds import cause
from cellmw.cell import CELL0_UUID
from cellmw.context import RequestContext, target
from cellmw.deadline import after
from cellmw.exceptions import CellError, CellmwError, HostElsewhere, HostInUse
from cellmw.lease import Lease
from cellmw.scatter import scatter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from oslo_config import cfg
    from sqlalchemy.orm import Session

    from cellmw.cell import Cell
    from cellmw.cell_result import CellResult
    from cellmw.cells import Cells
    from cellmw.store import Store

MAPPED = "mapped"
"""The host had no mapping, and has one now."""

ALREADY = "already"
"""The host was mapped to its cell before."""

ELSEWHERE = "elsewhere"
"""The host is mapped to another cell than the one that it was found in, and was left there."""

REFUSED = "refused"
"""The host has no mapping, and can't get one: the name is that of another host, too."""

_AT_ONCE = 500
"""How many hosts are marked in one transaction: nobody else who writes to those rows waits for long."""


class FoundHost(NamedTuple):
    """One host in the database of one cell.

    :ivar state: one of :data:`MAPPED`, :data:`ALREADY`, :data:`ELSEWHERE` and :data:`REFUSED`
    :ivar remark: why it is not mapped to this cell, where it is not
    """

    host: str
    cell: Cell
    state: str
    remark: str = ""


class Discovery(NamedTuple):
    """What came of a look into several cells.

    :ivar hosts: by name, those of the same name by the id of their cell
    :ivar troubles: a line for each cell that could not be read, or in which nothing could be marked
    """

    hosts: list[FoundHost]
    troubles: list[str]

    def having(self, state: str) -> list[FoundHost]:
        """Return the hosts in this state."""
        return [found for found in self.hosts if found.state == state]


class _Hosts(NamedTuple):
    """What the database of one cell has.

    :ivar unmarked: those of them that it does not know to have been discovered
    """

    all: list[str]
    unmarked: set[str]


def discover(
    conf: cfg.ConfigOpts, cells: Cells, among: Iterable[Cell], *, by_service: bool = False, dry_run: bool = False
) -> Discovery:
    """Map the hosts of these cells that have no mapping yet, and tell the cells so. All cells are asked at a time.

    Any number of these may run at a time. A host that two of the cells have is mapped to neither of them. cell0 is not
    asked: it has none.

    :param by_service: look for the services that instances run by instead of compute nodes; the cells are told nothing
    :param dry_run: only say what would be done
    :raises CellNotFound: if one of the cells was deleted meanwhile
    :raises StoreUnavailable: if the API database does not answer
    """
    tables = CellTables(conf)
    read = functools.partial(_worker_hosts if by_service else _hosts, tables)
    answers, troubles = _ask_all(conf, cells, among, read)
    found = [(host, cell) for cell, hosts in answers.items() for host in hosts.all]
    hosts = _map(cells, found, dry_run=dry_run)
    if not dry_run:
        here = {(found.host, found.cell) for found in hosts if found.state in (MAPPED, ALREADY)}
        unmarked = {
            cell: [host for host in hosts.all if host in hosts.unmarked and (host, cell) in here]
            for cell, hosts in answers.items()
        }
        troubles += _mark(conf, cells, tables, unmarked)
    return Discovery(hosts, troubles)


def hosts_in(conf: cfg.ConfigOpts, cell: Cell) -> list[str]:
    """Return the hosts that a cell's database has, by name. The cell need not be recorded.

    :raises CellMisconfigured: if its URLs can't be used
    :raises CellUnavailable: if its database does not answer
    :raises ConfigError: if it does not have the table
    """
    limits = deploy.limits(deploy.settings(conf))
    with contextlib.closing(deploy.open_handles(cell, conf, limits)) as handles, Lease(handles) as lease:
        context = RequestContext()
        target(context, lease)
        with database.reader(context) as session:
            return CellTables(conf).hosts(session)


def delete_host(conf: cfg.ConfigOpts, cells: Cells, cell_uuid: str, host: str, *, dry_run: bool = False) -> None:
    """Forget in which cell a host is, once no instance is on it.

    It is to be discovered again before its mapping goes: whoever is interrupted finds it mapped, and can go on.

    :param dry_run: only look whether it can be done
    :raises CellNotFound: if there is no such cell
    :raises HostNotMapped: if the host is mapped to none
    :raises HostElsewhere: if it is mapped to another one
    :raises HostInUse: if there are instances on it
    :raises CellUnavailable: if the cell's database, which would know of them, does not answer
    """
    cell = cells.get(cells.store.get_cell(cell_uuid).id)
    mapping = cells.store.get_host(host)
    if mapping.cell_id != cell.id:
        raise HostElsewhere(mapping.host, cell)
    tables = CellTables(conf)
    with access.reading(cells, cell) as session:
        if tables.has_instances_on(session, mapping.host):
            raise HostInUse(mapping.host)
    if dry_run:
        return
    with access.writing(cells, cell) as session:
        tables.mark_hosts(session, [mapping.host], mapped=False)
    cells.store.delete_host(mapping.host)


def _hosts(tables: CellTables, session: Session) -> _Hosts:
    return _Hosts(tables.hosts(session), set(tables.hosts(session, unmapped=True)))


def _worker_hosts(tables: CellTables, session: Session) -> _Hosts:
    return _Hosts(tables.worker_hosts(session), set())


def _ask_all(
    conf: cfg.ConfigOpts, cells: Cells, among: Iterable[Cell], read: Callable[[Session], _Hosts]
) -> tuple[dict[Cell, _Hosts], list[str]]:
    """Return what the cells have, and a line for each that gave no answer."""

    def look(context: Any) -> _Hosts:
        with database.reader(context) as session:
            return read(session)

    asked = [cell for cell in among if cell.uuid != CELL0_UUID]
    results = _scatter(conf, cells, look, asked)
    troubles = [f"{_why(result)}: its hosts were not looked at" for result in results if result.status != "ok"]
    return {result.cell: result.value for result in results if result.status == "ok"}, troubles


def _map(cells: Cells, found: Sequence[tuple[str, Cell]], *, dry_run: bool) -> list[FoundHost]:
    """Map those that are not mapped, and return what became of each."""
    homes: dict[str, list[Cell]] = {}
    for host, cell in found:
        homes.setdefault(host, []).append(cell)
    mapped = _cell_ids(cells.store, homes)
    new: dict[int, list[str]] = {}
    for host, owners in homes.items():
        if host not in mapped and len(owners) == 1:
            new.setdefault(owners[0].id, []).append(host)
    created = set()
    for cell_id, hosts in new.items():
        created.update(hosts if dry_run else cells.store.create_hosts(hosts, cell_id=cell_id))
    # those that somebody else has mapped meanwhile
    mapped |= _cell_ids(cells.store, [host for hosts in new.values() for host in hosts if host not in created])
    names = {cell.id: str(cell) for cell in cells.known()}

    def what_became_of(host: str, cell: Cell) -> FoundHost:
        if host in created:
            return FoundHost(host, cell, MAPPED)
        if host not in mapped:
            return FoundHost(host, cell, REFUSED, _clash(homes[host]))
        if mapped[host] == cell.id:
            return FoundHost(host, cell, ALREADY)
        owner = names.get(mapped[host], f"id {mapped[host]}, which has no record")
        return FoundHost(host, cell, ELSEWHERE, f"mapped to cell {owner}")

    return [what_became_of(host, cell) for host in sorted(homes) for cell in homes[host]]


def _cell_ids(store: Store, hosts: Iterable[str]) -> dict[str, int]:
    return {mapping.host: mapping.cell_id for mapping in store.find_hosts(hosts)}


def _clash(owners: Sequence[Cell]) -> str:
    if len(owners) > 1:
        return f"cells {' and '.join(map(str, owners))} have a host of that name each: rename or delete all but one"
    return "the API database takes the name for that of another host: rename it"


def _mark(conf: cfg.ConfigOpts, cells: Cells, tables: CellTables, unmarked: Mapping[Cell, list[str]]) -> list[str]:
    """Tell the cells that these have been discovered, and return a line for each that could not be told."""

    def mark(context: Any) -> None:
        hosts = waiting[context.cell_uuid]
        for begin in range(0, len(hosts), _AT_ONCE):
            while not _is_marked(context, tables, hosts[begin : begin + _AT_ONCE]):
                """Who has won it gets on, so this ends; and at the deadline in any case, with the lease."""

    waiting = {cell.uuid: hosts for cell, hosts in unmarked.items() if hosts}
    results = _scatter(conf, cells, mark, [cell for cell in unmarked if cell.uuid in waiting])
    return [
        f"{_why(result)}: its hosts are mapped, and not marked as discovered in its database"
        for result in results
        if result.status != "ok"
    ]


def _is_marked(context: Any, tables: CellTables, hosts: Sequence[str]) -> bool:
    """Mark these; false if the database has undone that, so that another transaction could go on."""
    try:
        with database.writer(context) as session:
            tables.mark_hosts(session, hosts, mapped=True)
    except DBDeadlock:
        return False
    return True


def _scatter(
    conf: cfg.ConfigOpts, cells: Cells, function: Callable[[Any], object], among: list[Cell]
) -> list[CellResult]:
    deadline = after(deploy.settings(conf).request_deadline)
    return scatter(RequestContext(), cells, function, deadline=deadline, among=among)


def _why(result: CellResult) -> str:
    """Say in a few words why a cell gave no answer."""
    error = result.error
    if isinstance(error, CellError):
        return str(error)
    if isinstance(error, CellmwError):
        return f"cell {result.cell}: {error}"
    return f"cell {result.cell}: its database failed{'' if error is None else f' ({cause(error)})'}"
