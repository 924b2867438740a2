# SPDX-License-Identifier: Apache-2.0
"""What is held back: cells that are drained, and instances that are being moved. In tables of our own."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy
from oslo_db import exception as db_exc
from oslo_utils import timeutils
from sqlalchemy import delete, insert, select, update

from cellmw.store.database import AT_ONCE, Database, chunked
from cellmw.store.models import drained_cells, held_instances

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
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


class Hold(NamedTuple):
    """How somebody holds instances back.

    :ivar until: when it ends by itself, in UTC; no two holds of one instance have the same end
    :ivar before: of the instances that somebody else was holding already: until when
    """

    until: datetime
    before: Mapping[str, datetime]


class Held(NamedTuple):
    """All that is held back at one moment."""

    cells: tuple[DrainedCell, ...]
    instances: tuple[HeldInstance, ...]


_KEPT = timedelta(days=1)
"""For how long one can see that an instance was held back by somebody who has not come to the end of it."""

_AT_ONCE = AT_ONCE - 2
"""How many uuids a statement has beside the ends of two holds."""

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

    def hold_instances(self, uuids: Sequence[str], until: datetime) -> Hold:
        """Record that these instances are held back. Locks their rows.

        Where somebody else holds one of them already this hold takes the place of theirs, and lasts longer. Rows that
        have been out of date for long are removed.

        :param until: in UTC, in whole seconds: that is what MariaDB keeps
        """
        now = timeutils.utcnow()
        chunks = _chunks(uuids)

        def work(connection: Connection) -> Hold:
            connection.execute(delete(held_instances).where(held_instances.c.until < now - _KEPT))
            # never deleted and made anew: one that waits for the lock would find a row gone, and not see the new one
            locked = [_INSTANCES.where(_is_one_of(chunk)).with_for_update() for chunk in chunks]
            there = {row.instance_uuid: row.until for rows in locked for row in connection.execute(rows)}
            before = {uuid: until for uuid, until in there.items() if until > now}
            # by its end a hold is told from others
            end = max([until, *(other + timedelta(seconds=1) for other in before.values())])
            for chunk in chunks:
                rows = update(held_instances).where(_is_one_of(chunk))
                connection.execute(rows.values(created_at=now, until=end))
            new = [{"instance_uuid": uuid, "until": end} for chunk in chunks for uuid in chunk if uuid not in there]
            if new:
                connection.execute(insert(held_instances), new)
            return Hold(end, before)

        return self._write_again(work, db_exc.DBDuplicateEntry)

    def let_go_instances(self, uuids: Sequence[str], hold: Hold) -> None:
        """Record that these instances are not held back any more, but for those that somebody else holds. Locks rows.

        Whose hold this one took the place of has it back, as long as that lasts.
        """
        now = timeutils.utcnow()
        before = {uuid: until for uuid, until in hold.before.items() if until > now}

        def work(connection: Connection) -> None:
            for until in sorted(set(before.values())):
                theirs = [uuid for uuid in before if before[uuid] == until]
                for chunk in _chunks(theirs):
                    rows = update(held_instances).where(_is_one_of(chunk), held_instances.c.until == hold.until)
                    connection.execute(rows.values(until=until))
            for chunk in _chunks([uuid for uuid in uuids if uuid not in before]):
                connection.execute(
                    delete(held_instances).where(_is_one_of(chunk), held_instances.c.until == hold.until)
                )

        self._write_again(work)


def _chunks(uuids: Sequence[str]) -> list[list[str]]:
    """Cut them up for statements; in one order, so that two transactions do not wait for each other."""
    return chunked(sorted(uuids), _AT_ONCE)


def _is_one_of(uuids: Sequence[str]) -> sqlalchemy.ColumnElement[bool]:
    return held_instances.c.instance_uuid.in_(uuids)


def _is_new(connection: Connection, row: sqlalchemy.Insert) -> bool:
    try:
        connection.execute(row)
    except db_exc.DBDuplicateEntry:
        connection.rollback()
        return False
    return True
