# SPDX-License-Identifier: Apache-2.0
"""The instance mappings: instance uuid -> the id of its cell, its owner and its state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from oslo_db import exception as db_exc
from sqlalchemy import bindparam, delete, false, func, insert, or_, select, text, update

from cellmw.exceptions import CellNotFound, InstanceMapped, InstanceNotMapped
from cellmw.store.database import UNSET, Database, Unset, chunked, given
from cellmw.store.models import instance_mappings
from cellmw.store.progress import insert_if_new, write_progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from cellmw.deadline import Deadline


class InstanceMapping(NamedTuple):
    """Where one instance is.

    :ivar cell_id: None while the instance is being scheduled
    :ivar user_id: None where it was mapped before Nova kept users
    :ivar queued_for_delete: whether somebody has asked for it to be deleted
    """

    instance_uuid: str
    cell_id: int | None
    project_id: str
    user_id: str | None
    queued_for_delete: bool


class DatedMapping(NamedTuple):
    """A mapping as one of a page of all of them.

    :ivar key: its place in their order
    :ivar written_at: when it was written last, in UTC; None where nobody has noted it
    """

    mapping: InstanceMapping
    key: int
    written_at: datetime | None


NOVA_MARKER = "INSTANCE_MIGRATION_MARKER"
"""The project in the row, which is no instance's, by which ``nova-manage cell_v2 map_instances`` knows where it was."""

_INSTANCES = select(
    instance_mappings.c.instance_uuid,
    instance_mappings.c.cell_id,
    instance_mappings.c.project_id,
    instance_mappings.c.user_id,
    instance_mappings.c.queued_for_delete,
)

_DATED = _INSTANCES.add_columns(
    instance_mappings.c.id, func.coalesce(instance_mappings.c.updated_at, instance_mappings.c.created_at)
)

_IS_INSTANCE = instance_mappings.c.project_id != NOVA_MARKER

_FIND = _INSTANCES.where(instance_mappings.c.instance_uuid == bindparam("uuid"))

_DATES = select(instance_mappings.c.created_at, instance_mappings.c.updated_at).where(
    instance_mappings.c.instance_uuid == bindparam("uuid")
)

_FIND_MANY = _INSTANCES.where(instance_mappings.c.instance_uuid.in_(bindparam("uuids", expanding=True)))

_STILL_SO = (
    instance_mappings.c.instance_uuid == bindparam("was_instance_uuid"),
    instance_mappings.c.cell_id.is_not_distinct_from(bindparam("was_cell_id")),
    instance_mappings.c.project_id == bindparam("was_project_id"),
    instance_mappings.c.user_id.is_not_distinct_from(bindparam("was_user_id")),
    func.coalesce(instance_mappings.c.queued_for_delete, False) == bindparam("was_queued_for_delete"),
)

_FORGET = delete(instance_mappings).where(*_STILL_SO)

_CHANGE = update(instance_mappings).where(*_STILL_SO)

_PLAN_EACH = text("SET LOCAL plan_cache_mode = force_custom_plan")
"""Has PostgreSQL make a plan for each statement of a transaction. One that it keeps from when the table was small reads
the whole table for every thousand instances, which takes seconds.
"""

_CELL_IDS = (
    select(instance_mappings.c.cell_id)
    .distinct()
    .where(
        instance_mappings.c.project_id == bindparam("project_id"),
        instance_mappings.c.cell_id.is_not(None),
        or_(
            instance_mappings.c.queued_for_delete == false(),
            instance_mappings.c.queued_for_delete.is_(None),  # rows that Nova wrote before it had that column
        ),
    )
)
"""The index on the project finds the rows; nothing is computed of a column before it is compared."""


class InstanceMappings(Database):
    """What the API database knows of instances."""

    def find_instance(self, uuid: str, deadline: Deadline | None = None) -> InstanceMapping | None:
        """Return the mapping of this instance, or None: the look-up that stands in every request's way."""
        row = self._read(lambda connection: connection.execute(_FIND, {"uuid": uuid}).first(), deadline)
        return None if row is None else _mapping(row)

    def find_instances(self, uuids: Iterable[str], deadline: Deadline | None = None) -> list[InstanceMapping]:
        """Return the mappings of those of these instances that have one, each once, in no order.

        One query for each thousand of them, or nearly; all of them in one transaction.
        """
        chunks = chunked(uuids)

        def work(connection: Connection) -> list[InstanceMapping]:
            return [_mapping(row) for chunk in chunks for row in connection.execute(_FIND_MANY, {"uuids": chunk})]

        return self._read(work, deadline) if chunks else []

    def list_cell_ids(self, project_id: str, deadline: Deadline | None = None) -> list[int]:
        """Return the ids of the cells in which this project has instances, but for those whose deletion has begun."""
        rows = self._read(lambda connection: connection.scalars(_CELL_IDS, {"project_id": project_id}).all(), deadline)
        return sorted(rows)

    def find_dates(self, uuid: str, deadline: Deadline | None = None) -> tuple[datetime | None, datetime | None]:
        """Return when the mapping of this instance was made, and when it was changed last, in UTC; None for never."""
        row = self._read(lambda connection: connection.execute(_DATES, {"uuid": uuid}).first(), deadline)
        return (None, None) if row is None else (row[0], row[1])

    def get_instance(self, uuid: str) -> InstanceMapping:
        """Return the mapping of this instance.

        :raises InstanceNotMapped: if it has none
        """
        return self._read(lambda connection: _get(connection, uuid))

    def create_instance(
        self, uuid: str, *, project_id: str, user_id: str | None = None, cell_id: int | None = None
    ) -> InstanceMapping:
        """Map an instance. Locks nothing but the new row.

        :param cell_id: None for an instance that has not been scheduled yet
        :raises InstanceMapped: if it is mapped already
        :raises CellNotFound: if there is no such cell; SQLite does not look
        """
        mapping = InstanceMapping(uuid, cell_id, project_id, user_id, queued_for_delete=False)
        self._write(lambda connection: _execute(connection, insert(instance_mappings), mapping._asdict()))
        return mapping

    def update_instance(
        self,
        uuid: str,
        *,
        cell_id: int | Unset | None = UNSET,
        project_id: str | Unset = UNSET,
        user_id: str | Unset | None = UNSET,
        queued_for_delete: bool | Unset = UNSET,
    ) -> InstanceMapping:
        """Change what is given of a mapping. Locks its row.

        :raises InstanceNotMapped: if there is none
        :raises CellNotFound: if there is no such cell; SQLite does not look
        """
        values = given(cell_id=cell_id, project_id=project_id, user_id=user_id, queued_for_delete=queued_for_delete)

        def work(connection: Connection) -> InstanceMapping:
            if values:
                row = update(instance_mappings).where(instance_mappings.c.instance_uuid == uuid)
                _execute(connection, row, values)
            return _get(connection, uuid)

        return self._write(work)

    def delete_instance(self, uuid: str) -> None:
        """Forget a mapping. Locks its row.

        :raises InstanceNotMapped: if there is none
        """
        row = delete(instance_mappings).where(instance_mappings.c.instance_uuid == uuid)
        if not self._write(lambda connection: connection.execute(row).rowcount):
            raise InstanceNotMapped(uuid)

    def list_instances(
        self,
        *,
        cell_id: int | None = None,
        project_id: str | None = None,
        limit: int = 1000,
        marker: str | None = None,
        deadline: Deadline | None = None,
    ) -> list[InstanceMapping]:
        """Return one page of the mappings, by instance uuid. A page that is not full is the last one.

        :param cell_id: those in this cell only
        :param project_id: those of this project only
        :param marker: the instance uuid that the page before ended with, whether it is still mapped or not
        """
        page = _INSTANCES.where(_IS_INSTANCE).order_by(instance_mappings.c.instance_uuid).limit(limit)
        if cell_id is not None:
            page = page.where(instance_mappings.c.cell_id == cell_id)
        if project_id is not None:
            page = page.where(instance_mappings.c.project_id == project_id)
        if marker is not None:
            page = page.where(instance_mappings.c.instance_uuid > marker)
        return [_mapping(row) for row in self._read(lambda connection: connection.execute(page).all(), deadline)]

    def count_instances(self) -> dict[int | None, int]:
        """Return how many instances are mapped to each cell id, deleted ones included; None has those without one."""
        counts = select(instance_mappings.c.cell_id, func.count()).where(_IS_INSTANCE)
        counts = counts.group_by(instance_mappings.c.cell_id)
        return {row[0]: row[1] for row in self._read(lambda connection: connection.execute(counts).all())}

    def count_living(self) -> dict[int | None, int]:
        """Return how many instances whose deletion has not begun are mapped to each cell id."""
        living = func.coalesce(instance_mappings.c.queued_for_delete, False).is_(False)
        counts = select(instance_mappings.c.cell_id, func.count()).where(_IS_INSTANCE, living)
        counts = counts.group_by(instance_mappings.c.cell_id)
        return {row[0]: row[1] for row in self._read(lambda connection: connection.execute(counts).all())}

    def page_instances(self, limit: int, after: int | None = None, *, cell_id: int | None = None) -> list[DatedMapping]:
        """Return one page of the mappings, in the order in which they were made. An empty page is the last one.

        :param after: the key of the last one before them; None to begin
        :param cell_id: those in this cell only
        """
        page = _DATED.where(_IS_INSTANCE).order_by(instance_mappings.c.id).limit(limit)
        if after is not None:
            page = page.where(instance_mappings.c.id > after)
        if cell_id is not None:
            page = page.where(instance_mappings.c.cell_id == cell_id)
        return [_dated(row) for row in self._read(lambda connection: connection.execute(page).all())]

    def date_instances(self, uuids: Sequence[str]) -> list[DatedMapping]:
        """Return the mappings of those of these instances that have one, and when they were written.

        :param uuids: a thousand of them at most
        """
        found = _DATED.where(instance_mappings.c.instance_uuid.in_(uuids))
        return [_dated(row) for row in self._read(lambda connection: connection.execute(found).all())]

    def map_instances(
        self, mappings: Sequence[InstanceMapping], *, task: str | None = None, position: str = ""
    ) -> list[InstanceMapping]:
        """Map those of these instances that are not mapped yet. Locks the new rows, and that of the task's progress.

        :param task: whose progress is written down with them
        :param position: where that is to go on when these are mapped
        :returns: the mappings of those that were mapped already, which stay as they are
        :raises CellNotFound: if there is no such cell; SQLite does not look
        """

        def work(connection: Connection) -> list[InstanceMapping]:
            if connection.dialect.name == "postgresql":
                connection.execute(_PLAN_EACH)
            if task is not None:
                # first of all: two that do the same wait here for each other, and nowhere else
                write_progress(connection, task, position)
            chunks = chunked(mapping.instance_uuid for mapping in mappings)
            there = [_mapping(row) for chunk in chunks for row in connection.execute(_FIND_MANY, {"uuids": chunk})]
            known = {mapping.instance_uuid.lower() for mapping in there}
            new = [mapping._asdict() for mapping in mappings if mapping.instance_uuid.lower() not in known]
            if new:
                # somebody else may map some of them at this moment
                rows = insert_if_new(connection, instance_mappings, "instance_uuid")
                try:
                    connection.execute(rows, new)
                except db_exc.DBReferenceError:
                    raise CellNotFound(str(new[0]["cell_id"])) from None
            return there

        return self._write_again(work)

    def change_instances(self, changes: Sequence[tuple[InstanceMapping, InstanceMapping | None]]) -> list[bool]:
        """Change mappings that are still as they were read. Locks their rows.

        :param changes: each mapping as it was read, and as it is to be: None to forget it
        :returns: of each whether it was still so
        :raises CellNotFound: if there is no such cell; SQLite does not look
        """
        return self._write_again(lambda connection: [_change(connection, *change) for change in changes])

    def forget_nova_marker(self) -> None:
        """Let ``nova-manage cell_v2 map_instances`` begin anew. Locks the row that it goes on by."""
        marker = delete(instance_mappings).where(instance_mappings.c.project_id == NOVA_MARKER)
        self._write(lambda connection: connection.execute(marker))


def _mapping(row: Sequence[Any]) -> InstanceMapping:
    instance_uuid, cell_id, project_id, user_id, queued_for_delete = row
    return InstanceMapping(instance_uuid, cell_id, project_id, user_id, bool(queued_for_delete))


def _dated(row: Sequence[Any]) -> DatedMapping:
    return DatedMapping(_mapping(row[:5]), *row[5:])


def _change(connection: Connection, read: InstanceMapping, wanted: InstanceMapping | None) -> bool:
    was = {f"was_{name}": value for name, value in read._asdict().items()}
    if wanted is None:
        return bool(connection.execute(_FORGET, was).rowcount)
    try:
        return bool(connection.execute(_CHANGE, was | wanted._asdict()).rowcount)
    except db_exc.DBReferenceError:
        raise CellNotFound(str(wanted.cell_id)) from None


def _get(connection: Connection, uuid: str) -> InstanceMapping:
    row = connection.execute(_FIND, {"uuid": uuid}).first()
    if row is None:
        raise InstanceNotMapped(uuid)
    return _mapping(row)


def _execute(connection: Connection, statement: Any, values: dict[str, Any]) -> None:
    try:
        connection.execute(statement.values(values))
    except db_exc.DBDuplicateEntry:
        raise InstanceMapped(values["instance_uuid"]) from None
    except db_exc.DBReferenceError:
        raise CellNotFound(values["cell_id"]) from None
