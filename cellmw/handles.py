# SPDX-License-Identifier: Apache-2.0
"""Cell -> its open handles: the oslo.messaging transport and the database engine that all requests share.

Opening them connects to nothing; the first message and the first statement do. Nobody outside the pool and its leases
gets to see them: what a request sees are views (lease.py).
"""

from __future__ import annotations

import contextlib
import logging
from time import monotonic
from typing import TYPE_CHECKING, Any

import oslo_messaging
from oslo_config import cfg
from oslo_db.sqlalchemy import orm
from sqlalchemy.orm import sessionmaker

from cellmw.engines import WRITER, make_engine
from cellmw.exceptions import CellMisconfigured, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from cellmw.cell import Cell

LOG = logging.getLogger(__name__)

_GROUPS_OF_THE_GLOBAL_CONF = ("oslo_messaging_metrics", "oslo_messaging_tracing")


class Handles:
    """A cell's open transport and database. Lives from the first lease on the cell until the pool is closed.

    Shared by all threads.

    :ivar leases: the ``id()`` of each lease that is open, and the one place that says so. Adding one and removing one
        are single steps of the interpreter, so no lock guards them and a finalizer can take them anywhere.
    :ivar cell: whose they are
    :ivar retired: whether nobody may begin to use them any more
    :ivar ended: called, with them, whenever something has ended that used them, where somebody waits for that
    :ivar used_at: when the last lease has ended, on the clock of ``time.monotonic()``
    :ivar closed: whether ``close()`` was called
    :ivar conf: the options that the transport and its clients go by
    :ivar transport: None for a cell that has no message queue
    :ivar engine: the database's; readers and writers use the same pool of connections
    :ivar replica: the engine of the database's read replica, or of the database itself where it has none
    """

    def __init__(
        self,
        cell: Cell,
        conf: cfg.ConfigOpts,
        transport: oslo_messaging.Transport | None,
        engine: Engine,
        replica: Engine | None = None,
        *,
        synchronous_reader: bool = True,
    ) -> None:
        self.cell = cell
        self.conf = conf
        self.transport = transport
        self.engine = engine
        self.replica = engine if replica is None else replica
        self.synchronous_reader = synchronous_reader
        self.reader_maker = _session_maker(engine)
        self.async_reader_maker = _session_maker(self.replica)
        self.writer_maker = _session_maker(engine.execution_options(**WRITER))
        self.leases: set[int] = set()
        self.retired = False
        self.ended: Callable[[Handles], object] | None = None
        self.used_at = monotonic()
        self.closed = False
        self._operations: set[int] = set()
        engines = [engine] if replica is None else [engine, replica]
        # in the order of opening: closed from the end
        self._closing: list[Callable[[], object]] = [*(each.dispose for each in engines), self._close_transport]

    @classmethod
    def open(
        cls,
        cell: Cell,
        conf: cfg.ConfigOpts,
        engine_options: Mapping[str, Any],
        *,
        replica: str | None = None,
        synchronous_reader: bool = True,
    ) -> Handles:
        """Open the handles of this cell, which connects to nothing yet.

        :param engine_options: keyword arguments of ``oslo_db.sqlalchemy.engines.create_engine``
        :param replica: the URL of the database's read replica
        :param synchronous_reader: whether readers that don't say ``async_`` keep to the database itself
        :raises CellMisconfigured: if one of its URLs is missing, malformed or names a driver that isn't installed
        """
        try:
            engine = make_engine(cell.reveal_database_connection(), engine_options, pre_ping=True)
            follower = None if replica is None else make_engine(replica, engine_options, pre_ping=True)
        except ConfigError as wrong:
            raise CellMisconfigured(cell, str(wrong)) from None
        _register_messaging_groups(conf)
        transport = _open_transport(cell, conf)
        return cls(cell, conf, transport, engine, follower, synchronous_reader=synchronous_reader)

    @property
    def in_use(self) -> bool:
        """Whether there is a lease on them, or a message on its way."""
        return bool(self.leases or self._operations)

    @contextlib.contextmanager
    def operation(self) -> Iterator[None]:
        """Count something that goes on with the transport, and that the end of its lease does not interrupt."""
        operation = object()
        self._operations.add(id(operation))
        try:
            yield
        finally:
            self._operations.remove(id(operation))
            if self.ended is not None:
                self.ended(self)

    def retire(self, ended: Callable[[Handles], object]) -> None:
        """Let nobody begin to use them any more.

        :param ended: called now, and each time that a lease or an operation has ended
        """
        self.ended = ended
        self.retired = True
        ended(self)

    def close(self) -> None:
        """Close the transport and the database's pool, once; one failing close is logged and never skips the other."""
        self.closed = True
        while self._closing:
            with contextlib.suppress(IndexError):  # another thread took the last one
                close = self._closing.pop()
                try:
                    close()
                except Exception:
                    LOG.warning("cell %s: closing a handle failed", self.cell, exc_info=True)

    def _close_transport(self) -> None:
        if self.transport is not None:
            self.transport.cleanup()

    def __repr__(self) -> str:
        return f"<Handles cell={self.cell} leases={len(self.leases)} {'closed' if self.closed else 'open'}>"


def _open_transport(cell: Cell, conf: cfg.ConfigOpts) -> oslo_messaging.Transport | None:
    url = cell.reveal_transport_url()
    if not cell.has_transport:
        return None
    try:
        return oslo_messaging.get_rpc_transport(conf, url=url)
    except ImportError as missing:
        raise CellMisconfigured(
            cell, f"its oslo.messaging driver needs {missing.name}, which is not installed"
        ) from None
    except oslo_messaging.DriverLoadFailure as failure:
        raise CellMisconfigured(cell, f"no oslo.messaging driver {failure.driver!r} is installed") from None
    except (oslo_messaging.InvalidTransportURL, cfg.NoSuchOptError, ValueError):
        # their messages can quote the URL, with its password
        raise CellMisconfigured(cell, "its transport URL is not one that oslo.messaging can read") from None


def _register_messaging_groups(conf: cfg.ConfigOpts) -> None:
    """Register the options that oslo.messaging registers on ``cfg.CONF`` alone but reads from whatever it is given."""
    if conf is cfg.CONF:
        return
    for group in _GROUPS_OF_THE_GLOBAL_CONF:
        with contextlib.suppress(cfg.NoSuchGroupError):
            opts = cfg.CONF._get_group(group)._opts.values()
            conf.register_opts([opt["opt"] for opt in opts], group=group)


def _session_maker(engine: Engine) -> sessionmaker[Session]:
    # what oslo.db's own maker passes, and that a session which was closed stays so: by default it opens itself again
    return sessionmaker(
        bind=engine,
        class_=orm.Session,
        query_cls=orm.Query,
        expire_on_commit=False,
        close_resets_only=False,
    )
