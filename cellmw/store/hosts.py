# SPDX-License-Identifier: Apache-2.0
"""The host mappings: compute host -> the id of its cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from oslo_db import exception as db_exc
from sqlalchemy import delete, insert, select, update

from cellmw.exceptions import CellNotFound, HostMapped, HostNotMapped
from cellmw.store.database import Database
from cellmw.store.models import host_mappings

if TYPE_CHECKING:
    from sqlalchemy import Connection


class HostMapping(NamedTuple):
    """Which cell one compute host is in."""

    host: str
    cell_id: int


_HOSTS = select(host_mappings.c.host, host_mappings.c.cell_id)


class HostMappings(Database):
    """What the API database knows of compute hosts."""

    def get_host(self, host: str) -> HostMapping:
        """Return the mapping of this host.

        :raises HostNotMapped: if it has none
        """
        row = self._read(lambda connection: connection.execute(_HOSTS.where(host_mappings.c.host == host)).first())
        if row is None:
            raise HostNotMapped(host)
        return HostMapping(*row)

    def create_host(self, host: str, *, cell_id: int) -> HostMapping:
        """Map a host. Locks nothing but the new row.

        :raises HostMapped: if it is mapped already
        :raises CellNotFound: if there is no such cell; SQLite does not look
        """
        mapping = HostMapping(host, cell_id)
        self._write(lambda connection: _execute(connection, insert(host_mappings), mapping))
        return mapping

    def update_host(self, host: str, *, cell_id: int) -> HostMapping:
        """Map a host to another cell. Locks its row.

        :raises HostNotMapped: if it is not mapped
        :raises CellNotFound: if there is no such cell; SQLite does not look
        """
        mapping = HostMapping(host, cell_id)
        row = update(host_mappings).where(host_mappings.c.host == host)
        if not self._write(lambda connection: _execute(connection, row, mapping)):
            raise HostNotMapped(host)
        return mapping

    def delete_host(self, host: str) -> None:
        """Forget a mapping. Locks its row.

        :raises HostNotMapped: if there is none
        """
        row = delete(host_mappings).where(host_mappings.c.host == host)
        if not self._write(lambda connection: connection.execute(row).rowcount):
            raise HostNotMapped(host)

    def list_hosts(self, cell_id: int | None = None, limit: int = 1000, marker: str | None = None) -> list[HostMapping]:
        """Return one page of the mappings, by host. A page that is not full is the last one.

        :param cell_id: those in this cell only
        :param marker: the host that the page before ended with, whether it is still mapped or not
        """
        page = _HOSTS.order_by(host_mappings.c.host).limit(limit)
        if cell_id is not None:
            page = page.where(host_mappings.c.cell_id == cell_id)
        if marker is not None:
            page = page.where(host_mappings.c.host > marker)
        return [HostMapping(*row) for row in self._read(lambda connection: connection.execute(page).all())]


def _execute(connection: Connection, statement: Any, mapping: HostMapping) -> int:
    try:
        rows: int = connection.execute(statement.values(mapping._asdict())).rowcount
    except db_exc.DBDuplicateEntry:
        raise HostMapped(mapping.host) from None
    except db_exc.DBReferenceError:
        raise CellNotFound(mapping.cell_id) from None
    return rows
