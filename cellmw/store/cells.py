# SPDX-License-Identifier: Apache-2.0
"""The cell records: ``cell_mappings`` -> :class:`cellmw.cell.Cell`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oslo_db import exception as db_exc
from oslo_utils import uuidutils
from sqlalchemy import delete, func, insert, inspect, select, text, update

from cellmw.cell import NO_TRANSPORT_SCHEME, Cell
from cellmw.exceptions import CellChanged, CellExists, CellInUse, CellNotFound
from cellmw.store.database import DATABASE_ERRORS, UNSET, Database, Unset, failure, given, is_locked
from cellmw.store.models import cell_mappings, drained_cells, host_mappings, instance_mappings, progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sqlalchemy import Connection

    from cellmw.deadline import Deadline

    Check = Callable[[Sequence[Cell]], object]
    """Looks at all other cells while nobody else can write any, and raises what there is to raise."""

_CELLS = select(
    cell_mappings.c.id,
    cell_mappings.c.uuid,
    cell_mappings.c.name,
    cell_mappings.c.disabled,
    cell_mappings.c.transport_url,
    cell_mappings.c.database_connection,
)

_LOCK: dict[str, tuple[Any, ...]] = {
    "mysql": (
        # locks what is between the rows, too, where a new one would come; for this transaction only
        text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"),
        _CELLS.order_by(cell_mappings.c.id).with_for_update(),
    ),
    "postgresql": (
        text("SET LOCAL lock_timeout = '10s'"),
        # takes no snapshot: what is read afterwards is as the one before has left it
        text("LOCK TABLE cell_mappings IN SHARE ROW EXCLUSIVE MODE"),
    ),
}
"""What keeps everybody else, nova-manage too, from writing cells until the transaction ends; nobody from reading them.

Both wait, MySQL and MariaDB for innodb_lock_wait_timeout; there, a host or an instance that is mapped to a cell waits,
too. Where there is no cell yet they let several in, and end all but one of them. A SQLite file has one writer at a time
as it is.
"""

_MOVE_SEQUENCE = text(
    "SELECT setval(ids, greatest(:used, pg_sequence_last_value(ids))) "
    "FROM CAST(pg_get_serial_sequence('cell_mappings', 'id') AS regclass) AS ids"
)
"""PostgreSQL counts by itself, and would give an id that was brought along to the next cell, too."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of one cell in an import.

    :ivar cell: as it is recorded now
    :ivar outcome: ``created``, ``updated``, ``unchanged``, or ``left alone`` where it was not among those imported
    :ivar changed: the columns that an update has changed
    """

    cell: Cell
    outcome: str
    changed: tuple[str, ...] = ()


_UNSHARED = {
    "id": "id",
    "uuid": "uuid",
    "database_connection": "database connection",
    "transport_url": "transport URL",
}
"""What no two cells may have in common, and what it is called."""


class CellRecords(Database):
    """What the API database knows of cells. No two of its cells may have a database or a message queue in common."""

    def get_cell(self, ref: int | str) -> Cell:
        """Return the cell with this id or uuid.

        :raises CellNotFound: if there is none
        """
        return self._read(lambda connection: _get(connection, ref))

    def list_cells(self, deadline: Deadline | None = None) -> list[Cell]:
        """Return every cell, by id."""
        rows = self._read(lambda connection: connection.execute(_CELLS.order_by(cell_mappings.c.id)).all(), deadline)
        return [_cell(row) for row in rows]

    def create_cell(
        self,
        *,
        name: str | None,
        transport_url: str,
        database_connection: str,
        disabled: bool = False,
        uuid: str | None = None,
        check: Check | None = None,
    ) -> Cell:
        """Record a cell. Locks all cells: of two that are recorded at the same moment one sees the other's URLs.

        :param uuid: a new one by default
        :param check: what else there is to check of the other cells
        :raises CellExists: if another cell has that uuid or one of those URLs
        """
        values: dict[str, Any] = {
            "uuid": uuid or uuidutils.generate_uuid(),
            "name": name,
            "transport_url": transport_url,
            "database_connection": database_connection,
            "disabled": disabled,
        }

        def work(connection: Connection) -> Cell:
            _lock_cells(connection)
            _check_that_new(connection, values, check)
            try:
                key = connection.execute(insert(cell_mappings).values(values)).inserted_primary_key
            except db_exc.DBDuplicateEntry:
                raise _same_uuid(values["uuid"]) from None
            assert key is not None
            return Cell(id=key[0], **values)

        return self._write_again(work)

    def update_cell(
        self,
        uuid: str,
        *,
        name: str | Unset | None = UNSET,
        transport_url: str | Unset = UNSET,
        database_connection: str | Unset = UNSET,
        disabled: bool | Unset = UNSET,
        read: Cell | None = None,
        check: Check | None = None,
    ) -> Cell:
        """Change what is given of a cell. Locks its row, and all cells where it gets a URL.

        :param read: the cell as it was read before: where its URLs are others by now nothing is changed
        :param check: what else there is to check of the other cells
        :raises CellNotFound: if there is none
        :raises CellChanged: if it is not as it was read
        :raises CellExists: if another cell has one of those URLs
        """
        values = given(
            name=name, transport_url=transport_url, database_connection=database_connection, disabled=disabled
        )

        def work(connection: Connection) -> Cell:
            if {"transport_url", "database_connection"} & values.keys():
                _lock_cells(connection)
            # compared here, as MySQL takes two passwords for the same that differ in case
            if read is not None and _get(connection, uuid, lock=True).fingerprint != read.fingerprint:
                raise CellChanged(uuid)
            _check_that_new(connection, values | {"uuid": uuid}, check, updated=uuid)
            if values:
                connection.execute(update(cell_mappings).where(cell_mappings.c.uuid == uuid).values(values))
            return _get(connection, uuid)

        return self._write_again(work)

    def import_cells(
        self, cells: Iterable[Cell], *, with_urls: bool = True, dry_run: bool = False, check: Check | None = None
    ) -> list[Imported]:
        """Record these cells, with their ids, and change those that are recorded differently; no other is touched.

        All of them, or none. Locks all cells.

        :param with_urls: whether to record their URLs; without them each has NULL there, and one that it had is gone
        :param dry_run: only say what would be done
        :param check: what else there is to check of those that are recorded and not among these
        :returns: what became of each, by id, those included that are recorded and not among these
        :raises CellExists: if another cell has an id or, when all is done, a URL of one of these
        """
        wanted = [_record(cell, with_urls) for cell in cells]

        def work(connection: Connection) -> list[Imported]:
            if not dry_run:
                _lock_cells(connection)
            recorded = {
                row.uuid: row._asdict() | {"disabled": bool(row.disabled)} for row in connection.execute(_CELLS)
            }
            _check_import(wanted, recorded)
            others = recorded.keys() - {record["uuid"] for record in wanted}
            if check is not None:
                check([Cell(**recorded[uuid]) for uuid in others])
            done = [_imported(record, recorded.get(record["uuid"])) for record in wanted]
            if not dry_run:
                _write_import(connection, done, {record["uuid"]: record for record in wanted})
            done += [Imported(Cell(**recorded[uuid]), "left alone") for uuid in others]
            return sorted(done, key=lambda imported: imported.cell.id)

        return self._write_again(work)

    def delete_cell(self, uuid: str, *, force: bool = False, dry_run: bool = False) -> None:
        """Forget a cell that no host and no instance is mapped to. Locks its row, and those of its mappings.

        With it goes that it is drained, and where a long task in it is to go on: the next one may get its uuid.

        :param force: forget the mappings of its hosts with it, and those of instances that are queued for deletion
        :param dry_run: only check that it can be done
        :raises CellNotFound: if there is none
        :raises CellInUse: by ``hosts``, by ``instances``, or by ``deleted instances`` that are queued for deletion
        """

        def work(connection: Connection) -> None:
            cell = _get(connection, uuid)
            mapped = _mapped_to(connection, cell)
            if force:
                mapped = [what for what in mapped if what == "instances"]
            if mapped:
                raise CellInUse(uuid, mapped)
            if dry_run:
                return
            try:
                if force:
                    connection.execute(delete(host_mappings).where(host_mappings.c.cell_id == cell.id))
                    connection.execute(delete(instance_mappings).where(_instances_of(cell), _is_deleted()))
                connection.execute(delete(cell_mappings).where(cell_mappings.c.id == cell.id))
                _forget_the_rest(connection, cell)
            except db_exc.DBReferenceError as newcomer:
                is_host = str(newcomer.constraint).startswith(host_mappings.name)
                raise CellInUse(uuid, ["hosts" if is_host else "instances"]) from None

        self._write(work)


def _cell(row: Sequence[Any]) -> Cell:
    return Cell(row[0], row[1], row[2], bool(row[3]), row[4], row[5])


def _get(connection: Connection, ref: int | str, *, lock: bool = False) -> Cell:
    column = cell_mappings.c.id if isinstance(ref, int) else cell_mappings.c.uuid
    found = _CELLS.where(column == ref)
    row = connection.execute(found.with_for_update() if lock else found).first()
    if row is None:
        raise CellNotFound(ref)
    return _cell(row)


def _lock_cells(connection: Connection) -> None:
    """Keep everybody else from writing cells; the first thing in a transaction."""
    try:
        for statement in _LOCK.get(connection.dialect.name, ()):
            connection.execute(statement)
    except DATABASE_ERRORS as error:
        if is_locked(error):
            raise failure(error) from None  # for oslo.db it is a deadlock, which would be tried again and again
        raise


def _check_that_new(
    connection: Connection, values: dict[str, Any], check: Check | None, *, updated: str | None = None
) -> None:
    """Refuse what only one cell can have; the one that is updated may go on having it."""
    rows = connection.execute(_CELLS.order_by(cell_mappings.c.id)).all()
    others = [row for row in rows if row.uuid != updated]
    for other in others:
        if other.uuid == values["uuid"]:
            raise _same_uuid(other.uuid)
        if other.database_connection and other.database_connection == values.get("database_connection"):
            raise CellExists(f"cell {other.uuid} has that database connection already")
        if not other.transport_url or _is_no_transport(other.transport_url):
            continue
        if other.transport_url == values.get("transport_url"):
            raise CellExists(f"cell {other.uuid} has that transport URL already")
    if check is not None:
        check([_cell(other) for other in others])


def _record(cell: Cell, with_urls: bool) -> dict[str, Any]:
    return {
        "id": cell.id,
        "uuid": cell.uuid,
        "name": cell.name,
        "disabled": cell.disabled,
        "transport_url": cell.reveal_transport_url() if with_urls else None,
        "database_connection": cell.reveal_database_connection() if with_urls else None,
    }


def _check_import(wanted: Sequence[Mapping[str, Any]], recorded: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse what would take an id from its cell, and what only one cell can have and two would."""
    owners: dict[tuple[str, object], str] = {}
    uuids = {record["uuid"] for record in wanted}
    for uuid, record in recorded.items():
        if uuid not in uuids:
            owners |= dict.fromkeys(_unshared(record), uuid)
    for record in wanted:
        uuid = record["uuid"]
        if uuid in recorded and recorded[uuid]["id"] != record["id"]:
            raise CellExists(f"cell {uuid} has the id {recorded[uuid]['id']} already, and mappings may refer to that")
        for column, value in _unshared(record):
            if (column, value) in owners:
                raise CellExists(f"cell {uuid} can't have the {_UNSHARED[column]} of cell {owners[column, value]}")
            owners[column, value] = uuid


def _unshared(record: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Return what no other cell may have, of a record that may be incomplete."""
    unshared = [(column, record[column]) for column in _UNSHARED]
    return [(column, value) for column, value in unshared if value and not _is_no_transport(str(value))]


def _imported(record: dict[str, Any], before: Mapping[str, Any] | None) -> Imported:
    cell = Cell(**record)
    if before is None:
        return Imported(cell, "created")
    changed = tuple(column for column, value in record.items() if value != before[column])
    return Imported(cell, "updated" if changed else "unchanged", changed)


def _write_import(connection: Connection, done: Sequence[Imported], records: Mapping[str, dict[str, Any]]) -> None:
    for imported in done:
        if imported.changed:
            record = records[imported.cell.uuid]
            values = {column: record[column] for column in imported.changed}
            connection.execute(update(cell_mappings).where(cell_mappings.c.uuid == record["uuid"]).values(values))
    created = [records[imported.cell.uuid] for imported in done if imported.outcome == "created"]
    if not created:
        return
    try:
        connection.execute(insert(cell_mappings), created)
    except db_exc.DBDuplicateEntry:
        raise CellExists("a cell with one of those ids or uuids was recorded meanwhile") from None
    if connection.dialect.name == "postgresql":
        connection.execute(_MOVE_SEQUENCE, {"used": max(record["id"] for record in created)})


def _same_uuid(uuid: str) -> CellExists:
    return CellExists(f"cell {uuid} is there already")


def _is_no_transport(transport_url: str | None) -> bool:
    return (transport_url or "").startswith(NO_TRANSPORT_SCHEME)


def _forget_the_rest(connection: Connection, cell: Cell) -> None:
    """Forget what our own tables have of a cell, as far as they are there."""
    there = inspect(connection).get_table_names()
    if drained_cells.name in there:
        connection.execute(delete(drained_cells).where(drained_cells.c.cell_uuid == cell.uuid))
    if progress.name in there:
        connection.execute(delete(progress).where(progress.c.task.endswith(f"/{cell.uuid}", autoescape=True)))


def _instances_of(cell: Cell) -> Any:
    return instance_mappings.c.cell_id == cell.id


def _is_deleted() -> Any:
    return func.coalesce(instance_mappings.c.queued_for_delete, False)


def _mapped_to(connection: Connection, cell: Cell) -> list[str]:
    questions = {
        "hosts": select(host_mappings.c.id).where(host_mappings.c.cell_id == cell.id),
        "instances": select(instance_mappings.c.id).where(_instances_of(cell), ~_is_deleted()),
        "deleted instances": select(instance_mappings.c.id).where(_instances_of(cell), _is_deleted()),
    }
    return [what for what, rows in questions.items() if connection.execute(rows.limit(1)).first()]
