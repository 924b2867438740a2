# SPDX-License-Identifier: Apache-2.0
"""What a request did, seen from outside: in the databases and at the ends of the queues.

Nothing here asks cellmw. Every instance has a decoy in each of the other cells: a row with the same uuid and another
name, so that a request which goes to the wrong cell finds something there, and shows it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Rows = dict[str, dict[str, Any]]
"""Instance uuid -> its row."""


class Databases:
    """The databases of the deployment. Lives as long as the demo; keeps no connection."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        """Look into these, which need not be there yet.

        :param urls: the API database's by ``api``, and each cell's by the cell's name
        """
        self._engines = {
            name: sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool) for name, url in urls.items()
        }
        self._cells = [name for name in urls if name != "api"]

    def rows(self) -> dict[str, Rows]:
        """Return every instance that is in any cell, decoys included."""
        return {
            cell: {row["uuid"]: row for row in self.execute(cell, "SELECT * FROM instances")} for cell in self._cells
        }

    def mapped(self, instance_uuid: str) -> str | None:
        """Return the name of the cell that the API database says the instance is in."""
        found = self.execute(
            "api",
            "SELECT cell_mappings.name FROM instance_mappings JOIN cell_mappings"
            " ON cell_mappings.id = instance_mappings.cell_id WHERE instance_uuid = :uuid",
            uuid=instance_uuid,
        )
        return found[0]["name"] if found else None

    def holding(self, instance_uuid: str, name: str) -> list[str]:
        """Return the cells in whose database the instance has this name."""
        return [cell for cell, rows in self.rows().items() if rows.get(instance_uuid, {}).get("name") == name]

    def plant_decoys(self, instance_uuid: str) -> None:
        """Put a decoy into every cell that does not have the instance."""
        for cell, rows in self.rows().items():
            if instance_uuid not in rows:
                self.execute(
                    cell,
                    "INSERT INTO instances (uuid, project_id, name, flavor, state, host, reboots)"
                    " VALUES (:uuid, 'decoy', :name, 'decoy', 'DECOY', 'decoy', 0)",
                    uuid=instance_uuid,
                    name=f"decoy in {cell}",
                )

    def execute(self, database: str, statement: str, **values: object) -> list[dict[str, Any]]:
        """Run a statement in a transaction of its own, and return the rows that it finds."""
        with self._engines[database].begin() as connection:
            result = connection.execute(sqlalchemy.text(statement), values)
            return [dict(row) for row in result.mappings()] if result.returns_rows else []


class Message(NamedTuple):
    """A message that a worker has worked on."""

    queue: str
    method: str
    instance_uuid: str


class Queues:
    """What came out of the queues so far. Lives as long as the demo; its lock guards the list."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._arrived = threading.Condition()

    def wait(self, seen: int, expected: int, timeout: float = 10.0) -> list[Message]:
        """Return the messages that came after the first ``seen`` ones, once as many as expected are there."""
        with self._arrived:
            self._arrived.wait_for(lambda: len(self._messages) >= seen + expected, timeout)
            return self._messages[seen:]

    def __len__(self) -> int:
        return len(self._messages)

    def note(self, message: Message) -> None:
        """Keep what a worker has worked on."""
        with self._arrived:
            self._messages.append(message)
            self._arrived.notify_all()


class Watched:
    """An RPC endpoint that has every method noted, after it is done. Lives as long as its worker."""

    def __init__(self, endpoint: Any, queue: str, note: Callable[[Message], None]) -> None:
        self.target = endpoint.target
        self._endpoint = endpoint
        self._queue = queue
        self._note = note

    def __getattr__(self, method: str) -> Callable[..., Any]:
        work = getattr(self._endpoint, method)

        def work_and_note(context: object, instance_uuid: str) -> Any:
            try:
                return work(context, instance_uuid)
            finally:
                self._note(Message(self._queue, method, instance_uuid))

        return work_and_note
