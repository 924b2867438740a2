# SPDX-License-Identifier: Apache-2.0
"""The URLs of a service that knows no cells -> the cell that they lead to, with its hosts mapped to it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from cellmw import urls
from cellmw.admin import access
from cellmw.admin.cell_tables import CellTables
from cellmw.admin.discovery import MAPPED, REFUSED, Discovery, FoundHost, discover, hosts_in
from cellmw.cell import CELL0_UUID, Cell
from cellmw.exceptions import (
    CellMisconfigured,
    CellUnavailable,
    ConfigError,
    DeadlineExceeded,
    HostsScattered,
    UrlRefused,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from oslo_config import cfg

    from cellmw.cells import Cells


class FirstCell(NamedTuple):
    """What came of it.

    :ivar cell: the cell; None where it was not recorded, as no host is there, or as it was only to be said what would
        be done
    :ivar found: its hosts
    """

    cell: Cell | None
    found: Discovery


def set_up(
    conf: cfg.ConfigOpts,
    cells: Cells,
    *,
    name: str | None,
    transport_url: str,
    database_connection: str,
    record: Callable[[], Cell | None],
    dry_run: bool = False,
) -> FirstCell:
    """Map the hosts of this database to its cell, which is recorded first where it is not yet.

    The cell is the one that is recorded with this database, or else the one that hosts of it are mapped to; that its
    URL is another then need not mean that it leads to another database. So the hosts are looked for there.

    :param name: what a new cell is called, for people; only shown here
    :param transport_url: of the service's message queue, filled in or looked up where that is needed
    :param database_connection: of its database, likewise
    :param record: records the cell; where it returns None that was only to be tried
    :param dry_run: only say what would be done
    :raises CellUnavailable: if a new cell's database does not answer; what is wrong with one that is recorded is among
        the troubles
    :raises HostsScattered: if hosts of it are mapped to several cells
    """
    cell = _with_database(cells.all(), database_connection)
    if cell is not None:
        return FirstCell(cell, discover(conf, cells, [cell], dry_run=dry_run))
    configured = Cell(0, "of [database] connection", name, False, transport_url, database_connection)
    hosts = hosts_in(conf, configured)
    if not hosts:
        return FirstCell(None, Discovery([], []))
    cell = _having(cells, hosts)
    if cell is None:
        recorded = record()
        if recorded is None:
            new = Cell(0, "", name, False, None, None)
            return FirstCell(None, Discovery([FoundHost(host, new, MAPPED) for host in hosts], []))
        cell = cells.get(recorded.uuid)
    found = discover(conf, cells, [cell], dry_run=dry_run)
    if found.troubles:
        return FirstCell(cell, found)
    strangers = set(hosts) - {host.host for host in found.hosts}
    remark = f"in [database] connection, and not in the database of cell {cell}, which others of there are mapped to"
    found.hosts.extend(FoundHost(host, cell, REFUSED, remark) for host in sorted(strangers))
    return FirstCell(cell, found)


def look_at_cell0(conf: cfg.ConfigOpts, cells: Cells) -> str | None:
    """Return what is wrong with cell0's database; None where it has the table of instances.

    :raises CellNotFound: if cell0 is not recorded
    """
    cell0 = cells.get(CELL0_UUID)
    try:
        with access.reading(cells, cell0) as session:
            CellTables(conf).instances(session, limit=1)
    except ConfigError as error:
        return f"cell {cell0}: {error}"
    except (CellMisconfigured, CellUnavailable, DeadlineExceeded) as error:
        return str(error)
    return None


def _with_database(cells: Iterable[Cell], database_connection: str) -> Cell | None:
    """Return the cell that is recorded with this database, however its URL is written."""
    place = urls.database_place(database_connection)
    for cell in cells:
        with contextlib.suppress(CellMisconfigured, UrlRefused):  # nobody knows where that one leads
            if cell.uuid != CELL0_UUID and urls.database_place(cell.reveal_database_connection()) == place:
                return cell
    return None


def _having(cells: Cells, hosts: Iterable[str]) -> Cell | None:
    """Return the cell that these hosts are mapped to, as far as they are."""
    owners = {mapping.cell_id for mapping in cells.store.find_hosts(hosts)}
    if len(owners) > 1:
        raise HostsScattered([str(cells.get(owner)) for owner in sorted(owners)])
    return cells.get(owners.pop()) if owners else None
