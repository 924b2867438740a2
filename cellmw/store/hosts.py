# SPDX-License-Identifier: Apache-2.0
"""The host mappings: compute host -> the id of its cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from oslo_db import exception as db_exc
from sqlalchemy import delete, func, insert, select, update

from cellmw.exceptions import CellNotFound, HostMapped, HostNotMapped
from cellmw.store.database import Database, chunked
from cellmw.store.models import host_mappings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection


class HostMapping(NamedTuple):
    """Which cell one compute host is in."""

    host: str
    cell_id: int


_HOSTS = select(host_mappings.c.host, host_mappings.c.cell_id)


class _Deadlock(Exception):
    """The database has undone the transaction, so that another one could go on."""


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

    def create_hosts(self, hosts: Iterable[str], *, cell_id: int) -> list[str]:
        """Map those of these hosts that are not mapped yet, and return them, by name.

        One transaction for each thousand, or nearly, which locks nothing but the new rows. What somebody else maps at
        the same moment is theirs: of all who try exactly one gets a host returned.

        :raises CellNotFound: if there is no such cell; SQLite does not look
        """
        # whoever maps the same hosts has them in the same order, so that nobody waits in a circle
        return [host for chunk in chunked(sorted(hosts)) for host in self._create_missing(chunk, cell_id)]

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

    def find_hosts(self, hosts: Iterable[str]) -> list[HostMapping]:
        """Return the mappings of those of these hosts that have one, in no order. One query for each thousand."""
        chunks = chunked(hosts)

        def work(connection: Connection) -> list[HostMapping]:
            return [
                HostMapping(*row) for chunk in chunks for row in connection.execute(_HOSTS.where(_is_one_of(chunk)))
            ]

        return self._read(work) if chunks else []

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

    def all_hosts(self, cell_id: int | None = None, page_size: int = 1000) -> Iterator[HostMapping]:
        """Find all mappings, or those in one cell, a page at a time, by host as the database sorts it."""
        marker = None
        while page := self.list_hosts(cell_id, page_size, marker):
            yield from page
            marker = page[-1].host

    def count_hosts(self) -> dict[int, int]:
        """Return how many hosts are mapped to each cell id."""
        counts = select(host_mappings.c.cell_id, func.count()).group_by(host_mappings.c.cell_id)
        return {row[0]: row[1] for row in self._read(lambda connection: connection.execute(counts).all())}

    def _create_missing(self, hosts: list[str], cell_id: int) -> list[str]:
        def work(connection: Connection) -> list[str]:
            mapped = set(connection.scalars(select(host_mappings.c.host).where(_is_one_of(hosts))))
            missing = [HostMapping(host, cell_id) for host in hosts if host not in mapped]
            if missing:
                _execute_many(connection, missing)
            return [mapping.host for mapping in missing]

        while True:
            try:
                return self._write(work)
            except _Deadlock:  # who has won it gets on, so this ends
                continue
            except HostMapped:  # meanwhile, or by a name that is the same to the database: which one it does not say
                if len(hosts) == 1:
                    return []
                half = len(hosts) // 2
                return self._create_missing(hosts[:half], cell_id) + self._create_missing(hosts[half:], cell_id)


def _is_one_of(hosts: list[str]) -> Any:
    return host_mappings.c.host.in_(hosts)


def _execute_many(connection: Connection, mappings: list[HostMapping]) -> None:
    try:
        connection.execute(insert(host_mappings), [mapping._asdict() for mapping in mappings])
    except db_exc.DBDuplicateEntry:
        raise HostMapped(mappings[0].host) from None
    except db_exc.DBReferenceError:
        raise CellNotFound(mappings[0].cell_id) from None
    except db_exc.DBDeadlock:
        raise _Deadlock from None


def _execute(connection: Connection, statement: Any, mapping: HostMapping) -> int:
    try:
        rows: int = connection.execute(statement.values(mapping._asdict())).rowcount
    except db_exc.DBDuplicateEntry:
        raise HostMapped(mapping.host) from None
    except db_exc.DBReferenceError:
        raise CellNotFound(mapping.cell_id) from None
    return rows
