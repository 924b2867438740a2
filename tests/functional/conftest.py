# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a deployment of cells on SQLite files and in-memory queues, filters in front of an app, and a client.

The client plays the server's part of WSGI, one step at a time, so that a test says how a response ends.
"""

from __future__ import annotations

import io
import json
import queue
import sys
import uuid
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import oslo_messaging
import pytest
import sqlalchemy
from oslo_config import cfg
from sqlalchemy import text

from cellmw import CellFilter, database, rpc
from cellmw.cell import CELL0_UUID
from cellmw.engines import make_engine
from cellmw.store import Store, migrations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    import cellmw
    from cellmw.cell import Cell

PROJECT = "project-1"

PATIENCE = 20
"""Seconds after which a test gives up on what has to come; a test that passes never waits for them."""

TARGET = oslo_messaging.Target(topic="compute", version="1.0")


class Deployment:
    """An API database, and cells: each a SQLite file whose one row names the cell, and an in-memory queue.

    Lives as long as one test.

    :ivar store: the API database, for what is done behind the filter's back
    :ivar cells: the cells' records, by name
    """

    def __init__(self, folder: Path) -> None:
        """Take an empty folder, and create the API database in it."""
        self._folder = folder
        engine = make_engine(self.database_url("api"), {}, pre_ping=False)
        migrations.sync(engine)
        self.store = Store(engine)
        self.cells: dict[str, Cell] = {}
        self.configuration = folder / "cellmw.conf"
        self.configure(self.database_url("api"))

    def configure(self, api_database: str) -> None:
        """Write the configuration file that names this API database."""
        self.configuration.write_text(f"[api_database]\nconnection = {api_database}\n")

    @property
    def global_conf(self) -> dict[str, str]:
        """What the ini's ``[DEFAULT]`` section says of the configuration file."""
        return {"oslo_config_project": "cellmw", "oslo_config_file": str(self.configuration)}

    def database_url(self, name: str) -> str:
        """Return the URL of one of the SQLite files."""
        return f"sqlite:///{self._folder / name}.sqlite"

    def add_cell(self, name: str, transport_url: str | None = None, **record: Any) -> Cell:
        """Create a cell with a database that knows the cell's name."""
        urls = {"transport_url": transport_url or f"memory://{name}/", "database_connection": self.database_url(name)}
        with closing_engine(urls["database_connection"]) as connection:
            connection.execute(text("CREATE TABLE this_cell (name VARCHAR(255), visits INTEGER)"))
            connection.execute(text("INSERT INTO this_cell VALUES (:name, 0)"), {"name": name})
        cell = self.cells[name] = self.store.create_cell(name=name, **urls | record)
        return cell

    def map(self, cell: str | None, project_id: str = PROJECT) -> str:
        """Map a new instance to this cell, or to none yet, and return its uuid."""
        instance_uuid = str(uuid.uuid4())
        cell_id = None if cell is None else self.cells[cell].id
        self.store.create_instance(instance_uuid, project_id=project_id, cell_id=cell_id)
        return instance_uuid

    def visits(self, cell: str) -> int:
        """Return how many writers have committed in the cell's database, asked at the file itself."""
        with closing_engine(self.database_url(cell)) as connection:
            found: int = connection.execute(text("SELECT visits FROM this_cell")).scalar_one()
            return found

    def close(self) -> None:
        """Close the API database."""
        self.store.close()


class closing_engine:  # noqa: N801 - it is used as a function
    """A connection in a transaction to the database of a URL; nothing of it stays open after the block."""

    def __init__(self, url: str) -> None:
        self._engine = sqlalchemy.create_engine(url)

    def __enter__(self) -> sqlalchemy.Connection:
        self._transaction = self._engine.begin()
        return self._transaction.__enter__()

    def __exit__(self, *exc_info: Any) -> None:
        self._transaction.__exit__(*exc_info)
        self._engine.dispose()
