# SPDX-License-Identifier: Apache-2.0
"""What is held back: cells that are drained, and instances that are being moved. In tables of our own."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy
from oslo_db import exception as db_exc
from oslo_utils import timeutils
from sqlalchemy import delete, insert, select, update

from cellmw.store.database import Database
from cellmw.store.models import drained_cells, held_instances

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from cellmw.deadline import Deadline


class DrainedCell(NamedTuple):
    """A cell that no request is let into.

    :ivar since: when it was drained, in UTC
    :ivar reason: what the operator has said about it, if anything
    """

    cell_uuid: str
    since: datetime
    reason: str | None


class HeldInstance(NamedTuple):
    """An instance for which no request is let through, as it is being moved.

    :ivar since: when that began, in UTC
    :ivar until: when it ends by itself, should whoever has begun it be gone, in UTC
    """

    instance_uuid: str
    since: datetime
    until: datetime


class Held(NamedTuple):
    """All that is held back at one moment."""

    cells: tuple[DrainedCell, ...]
    instances: tuple[HeldInstance, ...]


_KEPT = timedelta(days=1)
"""For how long one can see that an instance was held back by somebody who has not come to the end of it."""

_CELLS = select(drained_cells.c.cell_uuid, drained_cells.c.created_at, drained_cells.c.reason)

_INSTANCES = select(held_instances.c.instance_uuid, held_instances.c.created_at, held_instances.c.until)


class HoldRecords(Database):
    """What the API database knows of drained cells and of instances that are being moved."""

    def list_held(self, deadline: Deadline | None = None) -> Held:
        """Return all that is held back, instances whose time is up included.

        An API database that was never synced by this release has no such tables, and holds nothing back.
        """

        def work(connection: Connection) -> Held:
            there = set(sqlalchemy.inspect(connection).get_table_names())
            if not {drained_cells.name, held_instances.name} <= there:
                return Held((), ())
            cells = connection.execute(_CELLS.order_by(drained_cells.c.cell_uuid))
            instances = connection.execute(_INSTANCES.order_by(held_instances.c.instance_uuid))
            return Held(tuple(DrainedCell(*row) for row in cells), tuple(HeldInstance(*row) for row in instances))

        return self._read(work, deadline)

    def drain_cell(self, uuid: str, reason: str | None = None) -> bool:
        """Record that a cell is drained. Locks nothing but the new row.

        :returns: whether it was not before; where it was, what was recorded stays
        """
        row = insert(drained_cells).values(cell_uuid=uuid, reason=reason)
        return self._write(lambda connection: _is_new(connection, row))

    def undrain_cell(self, uuid: str) -> bool:
        """Record that a cell is not drained any more. Locks its row.

        :returns: whether it was
        """
        row = delete(drained_cells).where(drained_cells.c.cell_uuid == uuid)
        return bool(self._write(lambda connection: connection.execute(row).rowcount))

    def hold_instances(self, uuids: Sequence[str], until: datetime) -> None:
        """Record that these instances are held back; those that are already, until then. Locks their rows.

        Rows that have been out of date for long are removed.

        :param until: in UTC, in whole seconds: that is what MariaDB keeps
        """
        long_ago = timeutils.utcnow() - _KEPT

        def work(connection: Connection) -> None:
            connection.execute(delete(held_instances).where(held_instances.c.until < long_ago))
            for uuid in uuids:
                row = update(held_instances).where(held_instances.c.instance_uuid == uuid).values(until=until)
                if not connection.execute(row).rowcount:
                    connection.execute(insert(held_instances).values(instance_uuid=uuid, until=until))

        self._write(work)

    def let_go_instances(self, uuids: Sequence[str], until: datetime) -> None:
        """Record that these instances are not held back any more, but for those that somebody else holds. Locks rows.

        :param until: as they were held with it
        """
        rows = delete(held_instances).where(held_instances.c.instance_uuid.in_(uuids), held_instances.c.until == until)
        self._write(lambda connection: connection.execute(rows))


def _is_new(connection: Connection, row: sqlalchemy.Insert) -> bool:
    try:
        connection.execute(row)
    except db_exc.DBDuplicateEntry:
        connection.rollback()
        return False
    return True
