# SPDX-License-Identifier: Apache-2.0
"""The instance mappings: instance uuid -> the id of its cell, its owner and its state."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from oslo_db import exception as db_exc
from sqlalchemy import bindparam, delete, false, insert, or_, select, update

from cellmw.exceptions import CellNotFound, InstanceMapped, InstanceNotMapped
from cellmw.store.database import UNSET, Database, Unset, given
from cellmw.store.models import instance_mappings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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


_INSTANCES = select(
    instance_mappings.c.instance_uuid,
    instance_mappings.c.cell_id,
    instance_mappings.c.project_id,
    instance_mappings.c.user_id,
    instance_mappings.c.queued_for_delete,
)

_FIND = _INSTANCES.where(instance_mappings.c.instance_uuid == bindparam("uuid"))

_FIND_MANY = _INSTANCES.where(instance_mappings.c.instance_uuid.in_(bindparam("uuids", expanding=True)))

_AT_ONCE = 999
"""How many parameters a statement may have on every database: as many as a SQLite from before 3.32 takes."""

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
        wanted = iter(dict.fromkeys(uuids))
        chunks = list(iter(lambda: list(islice(wanted, _AT_ONCE)), []))

        def work(connection: Connection) -> list[InstanceMapping]:
            return [_mapping(row) for chunk in chunks for row in connection.execute(_FIND_MANY, {"uuids": chunk})]

        return self._read(work, deadline) if chunks else []

    def list_cell_ids(self, project_id: str, deadline: Deadline | None = None) -> list[int]:
        """Return the ids of the cells in which this project has instances, but for those whose deletion has begun."""
        rows = self._read(lambda connection: connection.scalars(_CELL_IDS, {"project_id": project_id}).all(), deadline)
        return sorted(rows)

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
        page = _INSTANCES.order_by(instance_mappings.c.instance_uuid).limit(limit)
        if cell_id is not None:
            page = page.where(instance_mappings.c.cell_id == cell_id)
        if project_id is not None:
            page = page.where(instance_mappings.c.project_id == project_id)
        if marker is not None:
            page = page.where(instance_mappings.c.instance_uuid > marker)
        return [_mapping(row) for row in self._read(lambda connection: connection.execute(page).all(), deadline)]


def _mapping(row: Sequence[Any]) -> InstanceMapping:
    instance_uuid, cell_id, project_id, user_id, queued_for_delete = row
    return InstanceMapping(instance_uuid, cell_id, project_id, user_id, bool(queued_for_delete))


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
