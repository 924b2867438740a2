# SPDX-License-Identifier: Apache-2.0
"""Messages on a cell's queue -> changes in that cell's database.

A worker knows its own cell only, and that by its configuration: ``[DEFAULT] transport_url`` and ``[database]
connection``, as a service had them before there were cells.

    python -m examples.compute.worker --config-file cell1.conf
"""

from __future__ import annotations

import socket
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import oslo_messaging
from oslo_config import cfg
from oslo_db import options as database_options
from sqlalchemy import orm

from cellmw import engines, rpc
from examples.compute.models import Instance

if TYPE_CHECKING:
    import cellmw


class Compute:
    """What a cell's worker does when it is told to. Lives as long as the worker; its threads share it."""

    target = oslo_messaging.Target(version="1.0")

    def __init__(self, sessions: orm.sessionmaker[orm.Session], host: str) -> None:
        """Act on the database of these sessions, in the name of this host."""
        self._sessions = sessions
        self._host = host

    def build(self, context: cellmw.RequestContext, instance_uuid: str) -> None:
        """Start the instance on this host."""
        with self._sessions.begin() as session:
            instance = session.get_one(Instance, instance_uuid)
            instance.host = self._host
            instance.state = "ACTIVE"

    def reboot(self, context: cellmw.RequestContext, instance_uuid: str) -> None:
        """Stop the instance and start it again."""
        with self._sessions.begin() as session:
            instance = session.get_one(Instance, instance_uuid)
            instance.reboots += 1
            instance.state = "ACTIVE"

    def delete(self, context: cellmw.RequestContext, instance_uuid: str) -> None:
        """Stop the instance and forget it."""
        with self._sessions.begin() as session:
            session.delete(session.get_one(Instance, instance_uuid))


class Worker:
    """Serves the queue of one cell out of its database. Lives as long as its process."""

    def __init__(self, conf: cfg.ConfigOpts, host: str, *, transport_url: str | None, database_connection: str) -> None:
        """Connect to nothing yet.

        :param transport_url: the cell's queue; None for the one in ``[DEFAULT] transport_url``
        """
        self._engine = engines.make_engine(database_connection, {"mysql_sql_mode": "TRADITIONAL"}, pre_ping=True)
        self._transport = rpc.get_transport(conf, transport_url)
        self._server = rpc.get_server(
            self._transport,
            oslo_messaging.Target(topic="compute", server=host),
            [self.make_endpoint(orm.sessionmaker(self._engine.execution_options(**engines.WRITER)), host)],
        )

    def make_endpoint(self, sessions: orm.sessionmaker[orm.Session], host: str) -> object:
        """Return the object whose methods the messages name."""
        return Compute(sessions, host)

    def start(self) -> None:
        """Take messages from now on."""
        self._server.start()

    def stop(self) -> None:
        """Take no more messages; those that were taken are still worked on."""
        self._server.stop()

    def close(self) -> None:
        """Wait until the last message has been worked on, and hang up."""
        self._server.wait()
        self._transport.cleanup()
        self._engine.dispose()


def main(arguments: list[str] | None = None) -> int:
    """Serve the cell that the configuration names, until Ctrl-C."""
    conf = cfg.CONF
    conf.register_opts(database_options.database_opts, "database")
    conf(arguments, project="compute")
    worker = Worker(conf, socket.gethostname(), transport_url=None, database_connection=conf.database.connection)
    worker.start()
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
    worker.stop()
    worker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
