# SPDX-License-Identifier: Apache-2.0
"""How far long tasks have come, so that one which was interrupted goes on there. In a table of our own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from oslo_utils import timeutils
from sqlalchemy.dialects import mysql, postgresql, sqlite

from cellmw.store.database import Database
from cellmw.store.models import progress

if TYPE_CHECKING:
    from sqlalchemy import Connection


class ProgressRecords(Database):
    """What the API database knows of tasks that are not done yet."""

    def keeps_progress(self) -> bool:
        """Tell whether there is the table for it; on a database that this release has never synced there is none."""
        return self._read(lambda connection: sa.inspect(connection).has_table(progress.name))

    def find_progress(self, task: str) -> str | None:
        """Return where this task is to go on; None where it begins."""
        position = sa.select(progress.c.position).where(progress.c.task == task)
        found: str | None = self._read(lambda connection: connection.scalar(position))
        return found

    def forget_progress(self, task: str) -> None:
        """Let this task begin anew, as it is done, or is to be done once more. Locks its row."""
        self._write(lambda connection: connection.execute(sa.delete(progress).where(progress.c.task == task)))


def insert_if_new(connection: Connection, table: sa.Table, key: str, on_conflict: dict[str, Any] | None = None) -> Any:
    """Return an INSERT that leaves rows alone which are there already; any other error stays one.

    :param key: the column by which they are
    :param on_conflict: what is written into them nevertheless
    """
    if connection.dialect.name in ("postgresql", "sqlite"):
        dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
        row = dialect.insert(table)
        if on_conflict is None:
            return row.on_conflict_do_nothing(index_elements=[key])
        return row.on_conflict_do_update(index_elements=[key], set_=on_conflict)
    # not INSERT IGNORE, which would ignore that there is no such cell as well
    return mysql.insert(table).on_duplicate_key_update(on_conflict or {key: table.c[key]})


def write_progress(connection: Connection, task: str, position: str) -> None:
    """Write down how far a task is, in the transaction that takes it there. Locks its row."""
    values = {"position": position, "updated_at": timeutils.utcnow()}
    connection.execute(insert_if_new(connection, progress, "task", values), {"task": task, **values})
