# SPDX-License-Identifier: Apache-2.0
"""What a request did, seen from outside: in the files of the databases and at the ends of the queues.

Nothing here asks cellmw. Every instance has a decoy in each of the other cells: a row with the same uuid and another
name, so that a request which goes to the wrong cell finds something there, and shows it.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

Rows = dict[str, dict[str, Any]]
"""Instance uuid -> its row."""


class Databases:
    """The SQLite files of the deployment. Lives as long as the demo.

    :ivar api: the API database
    :ivar cells: the database of each cell, by the cell's name
    """

    def __init__(self, api: Path, cells: Mapping[str, Path]) -> None:
        """Look into these files, which need not be there yet."""
        self.api = api
        self.cells = dict(cells)

    def rows(self) -> dict[str, Rows]:
        """Return every instance that is in any cell, decoys included."""
        return {
            cell: {row["uuid"]: row for row in _query(file, "SELECT * FROM instances")}
            for cell, file in self.cells.items()
        }

    def mapped(self, instance_uuid: str) -> str | None:
        """Return the name of the cell that the API database says the instance is in."""
        found = _query(
            self.api,
            "SELECT cell_mappings.name FROM instance_mappings JOIN cell_mappings"
            " ON cell_mappings.id = instance_mappings.cell_id WHERE instance_uuid = ?",
            instance_uuid,
        )
        return found[0]["name"] if found else None

    def holding(self, instance_uuid: str, name: str) -> list[str]:
        """Return the cells in whose database the instance has this name."""
        return [cell for cell, rows in self.rows().items() if rows.get(instance_uuid, {}).get("name") == name]

    def plant_decoys(self, instance_uuid: str) -> None:
        """Put a decoy into every cell that does not have the instance."""
        for cell, rows in self.rows().items():
            if instance_uuid not in rows:
                _execute(
                    self.cells[cell],
                    "INSERT INTO instances (uuid, project_id, name, flavor, state, host, reboots)"
                    " VALUES (?, 'decoy', ?, 'decoy', 'DECOY', 'decoy', 0)",
                    instance_uuid,
                    f"decoy in {cell}",
                )


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

    def watch(self, queue: str, endpoint: object) -> Watched:
        """Stand in front of the endpoint that serves this queue."""
        return Watched(endpoint, lambda method, instance_uuid: self._note(Message(queue, method, instance_uuid)))

    def wait(self, seen: int, expected: int, timeout: float = 10.0) -> list[Message]:
        """Return the messages that came after the first ``seen`` ones, once as many as expected are there."""
        with self._arrived:
            self._arrived.wait_for(lambda: len(self._messages) >= seen + expected, timeout)
            return self._messages[seen:]

    def __len__(self) -> int:
        return len(self._messages)

    def _note(self, message: Message) -> None:
        with self._arrived:
            self._messages.append(message)
            self._arrived.notify_all()


class Watched:
    """An RPC endpoint that has every method noted, after it is done. Lives as long as its worker."""

    def __init__(self, endpoint: Any, note: Callable[[str, str], None]) -> None:
        self.target = endpoint.target
        self._endpoint = endpoint
        self._note = note

    def __getattr__(self, method: str) -> Callable[..., Any]:
        work = getattr(self._endpoint, method)

        def work_and_note(context: object, instance_uuid: str) -> Any:
            try:
                return work(context, instance_uuid)
            finally:
                self._note(method, instance_uuid)

        return work_and_note


def _query(file: Path, statement: str, *values: object) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(statement, values)]


def _execute(file: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(statement, values)
