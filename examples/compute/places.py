# SPDX-License-Identifier: Apache-2.0
"""API_DB, CELL1_DB, CELL1_MQ ... -> the databases and queues of the demo, empty at first and in the end as found.

What a variable does not name is made in the demo's folder and process. What one names has to be empty, or the demo does
not touch it. Tables that are there are used, and emptied again; those that are not are created, and dropped again. A
table of its own says so while the demo runs, so that one that was killed is cleaned up after by the next; two at a time
on the same databases are one too many.
"""

from __future__ import annotations

import uuid
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import amqp
import oslo_messaging
import sqlalchemy
from oslo_config import cfg
from sqlalchemy import exc

from cellmw.store import models

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

CELLS = ("cell1", "cell2")

DATABASES = {"api": "API_DB", "cell0": "CELL0_DB", "cell1": "CELL1_DB", "cell2": "CELL2_DB"}
"""Which variable names which database, as a SQLAlchemy URL."""

QUEUES = {"cell1": "CELL1_MQ", "cell2": "CELL2_MQ"}
"""Which variable names the queue of which cell, as a transport URL."""

TABLES = ("alembic_version_cellmw", *models.metadata.tables, "instances")
"""What the demo may create and fill."""

VERSIONS = ("alembic_version", "alembic_version_cellmw")
"""Tables with rows that are no data."""

MARK = sqlalchemy.Table(
    "cellmw_demo",
    sqlalchemy.MetaData(),
    sqlalchemy.Column("run", sqlalchemy.String(36)),
    sqlalchemy.Column("found", sqlalchemy.String(64)),
)
"""Says that a demo is here, and in a row each which tables it has found."""

TOPIC = "compute"
"""What a cell's workers call their queues by."""

CONNECT_TIMEOUT = 5


class Refused(Exception):
    """A database or queue that the demo does not use; the message names the variable, and shows no URL."""


class Places(NamedTuple):
    """Where everything is, by the name of the cell, or ``api``."""

    databases: dict[str, str]
    queues: dict[str, str]
    given: list[Place]
    """What variables have named."""

    @classmethod
    def choose(cls, environ: Mapping[str, str], folder: Path) -> Places:
        """Choose what the variables name, SQLite files in the folder and queues in memory for the rest.

        :raises Refused: if what one names can't be used
        """
        databases = {name: environ.get(DATABASES[name]) or f"sqlite:///{folder / name}.sqlite" for name in DATABASES}
        queues = {cell: environ.get(QUEUES[cell]) or f"memory://{cell}/" for cell in CELLS}
        if len(set(queues.values())) != len(queues):
            raise Refused(f"{' and '.join(QUEUES.values())} are the same queue")
        return cls(
            databases,
            queues,
            [
                *(Database(DATABASES[name], url) for name, url in databases.items() if environ.get(DATABASES[name])),
                *(Queue(QUEUES[cell], url, cell) for cell, url in queues.items() if environ.get(QUEUES[cell])),
            ],
        )

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """Have all of it for ourselves, and leave it as it was.

        :raises Refused: if something of it can't be used
        """
        run = str(uuid.uuid4())
        with ExitStack() as exits:
            for place in self.given:
                place.occupy(run)
                exits.callback(place.leave)
            yield


class Database:
    """A database that was given. Lives as long as the demo; keeps no connection."""

    def __init__(self, variable: str, url: str) -> None:
        self._variable = variable
        try:
            self._engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
        except (exc.ArgumentError, ImportError, ValueError):
            # what they say can quote the URL
            raise Refused(f"{variable} is no SQLAlchemy URL, or its driver is not installed") from None

    def occupy(self, run: str) -> None:
        """See that there is no data in it, and mark it as ours.

        :raises Refused: if there is, or it does not answer
        """
        try:
            tables = self._tables()
        except exc.DBAPIError as error:
            raise Refused(f"{self._variable} does not answer: {error.orig}") from error
        if MARK.name in tables:
            self._clean_up_after_another(run)
            tables = self._tables()
        with self._engine.connect() as connection:
            for table in set(tables) - set(VERSIONS):
                row = sqlalchemy.select(sqlalchemy.literal(1)).select_from(sqlalchemy.table(table)).limit(1)
                if connection.execute(row).first():
                    raise Refused(f"{self._variable} holds data that is not the demo's, in table {table}")
        MARK.create(self._engine)
        with self._engine.begin() as connection:
            connection.execute(MARK.insert(), [{"run": run, "found": table} for table in (MARK.name, *tables)])

    def _clean_up_after_another(self, run: str) -> None:
        with self._engine.connect() as connection:
            if connection.execute(MARK.select().where(MARK.c.run == run)).first():
                raise Refused(f"{self._variable} names a database that another variable names, too")
        self.leave()

    def leave(self) -> None:
        """Empty the tables that were found, and drop the others that are ours."""
        ours = sqlalchemy.MetaData()
        names = sorted(set(TABLES) & set(self._tables()))
        ours.reflect(self._engine, only=names, resolve_fks=False)
        with self._engine.begin() as connection:
            found = set(connection.execute(sqlalchemy.select(MARK.c.found)).scalars())
            # without a row the demo was killed before it did anything
            tables = [table for table in ours.sorted_tables if found]
            for table in reversed(tables):
                if table.name not in VERSIONS:
                    connection.execute(table.delete())
        ours.drop_all(self._engine, tables=[table for table in tables if table.name not in found])
        MARK.drop(self._engine)

    def _tables(self) -> list[str]:
        return sqlalchemy.inspect(self._engine).get_table_names()


class Queue:
    """A queue that was given. Lives as long as the demo; keeps no connection.

    Only RabbitMQ is looked into, and not over TLS. Of what the workers leave there, RabbitMQ itself removes the queues
    of their fanouts, after half an hour.
    """

    def __init__(self, variable: str, url: str, cell: str) -> None:
        self._variable = variable
        try:
            self._url = oslo_messaging.TransportURL.parse(cfg.CONF, url)
        except (oslo_messaging.InvalidTransportURL, ValueError):
            # what they say can quote the URL
            raise Refused(f"{variable} is no transport URL") from None
        looked_into = self._url.transport == "rabbit" and "ssl" not in self._url.query and self._url.hosts
        self._names = [TOPIC, f"{TOPIC}.host-of-{cell}"] if looked_into else []
        self._made: list[str] = []

    def occupy(self, run: str) -> None:
        """See that there is no message in it, and nobody who waits for one.

        :raises Refused: if there is, or it does not answer
        """
        if not self._names:
            return
        try:
            with self._connect() as connection:
                for name in self._names:
                    self._look_into(connection, name)
        except (OSError, amqp.AMQPError) as error:
            raise Refused(f"{self._variable} does not answer: {error}") from error

    def _look_into(self, connection: amqp.Connection, name: str) -> None:
        try:
            found = connection.channel().queue_declare(name, passive=True)
        except amqp.NotFound:
            self._made.append(name)
            return
        if found.message_count or found.consumer_count:
            raise Refused(f"{self._variable} has messages or workers that are not the demo's, in queue {name}")

    def leave(self) -> None:
        """Delete the queues that were not found."""
        if self._made:
            with self._connect() as connection:
                for name in self._made:
                    connection.channel().queue_delete(name)

    def _connect(self) -> amqp.Connection:
        host = self._url.hosts[0]
        return amqp.Connection(
            f"{host.hostname}:{host.port or 5672}",
            userid=host.username or "guest",
            password=host.password or "guest",
            virtual_host=self._url.virtual_host or "/",
            connect_timeout=CONNECT_TIMEOUT,
        )


Place = Database | Queue
"""What a variable has named."""
