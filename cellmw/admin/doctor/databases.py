# SPDX-License-Identifier: Apache-2.0
"""A cell's database, and its replica -> whether it can be used as the services use it, and what it knows of itself.

Nothing is written. Who may write what is not asked, only whether the server takes any writing at all.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy
from sqlalchemy.orm import Session

from cellmw import conf as options
from cellmw import deploy, urls
from cellmw.admin.doctor import certificates
from cellmw.admin.doctor.finding import Finding, Severity, counted
from cellmw.admin.doctor.mappings import CHECK as MAPPINGS
from cellmw.admin.doctor.mappings import HOSTS
from cellmw.admin.doctor.probe import Probe, Unanswered
from cellmw.admin.doctor.records import OVERLAPS
from cellmw.admin.refusals import refusal_of
from cellmw.bounds import Bounds, cause, drivers_error, has_no_place
from cellmw.cell import CELL0_UUID
from cellmw.deadline import after
from cellmw.engines import make_engine
from cellmw.exceptions import ConfigError, DeadlineExceeded
from cellmw.store.database import DATABASE_ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

    from oslo_config import cfg

    from cellmw.admin.cell_tables import CellTables
    from cellmw.cell import Cell
    from cellmw.deadline import Deadline
    from cellmw.limits import Limits

CHECK = "databases"
TABLES = "tables"

_UPDATE = "`cellmw-manage cell_v2 update_cell`"

_URL = f"or record another URL: {_UPDATE}"

_TIMED_OUT = re.compile("timed out|timeout")

_IDENTITY = "SHOW VARIABLES WHERE Variable_name IN ('server_uuid', 'server_uid', 'hostname', 'port')"


@dataclass
class Notebook:
    """What the databases of the cells know, for whoever compares them. Lives as long as the examination.

    A thread writes each entry in one step, so that one which comes late is in nobody's way.

    :ivar servers: id of a cell -> what says which database it is, by whatever way it is reached
    :ivar living: id of a cell -> how many instances live there
    :ivar hosts: id of a cell -> its hosts
    """

    servers: dict[int, Hashable] = field(default_factory=dict)
    living: dict[int, int] = field(default_factory=dict)
    hosts: dict[int, list[str]] = field(default_factory=dict)


def probes(cell: Cell, conf: cfg.ConfigOpts, limits: Limits, tables: CellTables, notebook: Notebook) -> Iterator[Probe]:
    """Give what there is to ask of the database of a cell, and of its replica where it has one."""
    replica = deploy.replica_of(cell, conf)
    engine_options = options.engine_options(conf, options.CELL_DATABASE)
    visit = _Visit(cell, "the database", cell.reveal_database_connection(), engine_options, limits)
    ask = partial(visit.examine, tables, notebook)
    yield Probe([CHECK, TABLES, HOSTS, MAPPINGS, OVERLAPS], str(cell), visit.subject, ask)
    yield _look_at_certificate(visit)
    if replica:
        visit = _Visit(cell, "the replica of the database", replica, engine_options, limits)
        yield Probe([CHECK], str(cell), visit.subject, visit.examine_replica)
        yield _look_at_certificate(visit)


def _look_at_certificate(visit: _Visit) -> Probe:
    return Probe([certificates.CHECK], visit.name, visit.subject, visit.examine_certificate)


class _Until:
    """Whose waits all end by one deadline, and who is told nothing else. Lives as long as a visit."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline

    def check(self) -> None:
        """There is no reason not to connect."""

    def until(self) -> Deadline:
        return self._deadline

    def slow(self) -> None:
        """It says so when it is over."""

    def expired(self, doing: str) -> DeadlineExceeded:
        return DeadlineExceeded(doing)

    def lost(self, error: BaseException, *, connecting: bool) -> None:
        """The driver's own error says more."""


class _Visit:
    """What is asked of one database. Lives as long as its probes.

    :ivar name: of its cell
    :ivar subject: what it is to the cell
    """

    def __init__(self, cell: Cell, subject: str, url: str, engine_options: Mapping[str, Any], limits: Limits) -> None:
        self.name = str(cell)
        self.subject = subject
        self._cell = cell
        self._url = url
        self._engine_options = engine_options
        self._limits = limits

    def examine(self, tables: CellTables, notebook: Notebook) -> Iterator[Finding]:
        """Look at the database of the cell, and write down what it knows.

        :raises Unanswered: if nobody gets in
        """
        with self._session() as session:
            dialect = session.get_bind().dialect.name
            if dialect in _SERVERS:
                yield from self._look_at_server(session, _SERVERS[dialect], notebook)
            if self._cell.uuid != CELL0_UUID:  # which has no hosts, and not everywhere the tables of such
                yield from self._look(session, Severity.WARNING, partial(self._read_hosts, tables, session, notebook))
            # last, as to count them can take long
            yield from self._look(session, Severity.ERROR, partial(self._read_instances, tables, session, notebook))

    def examine_replica(self) -> Iterator[Finding]:
        """Look whether the replica answers.

        :raises Unanswered: if nobody gets in
        """
        with self._session():
            return iter(())

    def examine_certificate(self) -> Iterator[Finding]:
        """Look at the certificate of each server. That one does not answer the other probe says."""
        servers = certificates.servers(self._url)
        for server in servers:
            whose = self.subject if len(servers) == 1 else f"{self.subject}, {server}"
            with contextlib.suppress(OSError, UnicodeError):
                certificate = certificates.of_database(self._url, server, self._limits.patience / len(servers))
                if certificate is not None:
                    now = datetime.datetime.now(datetime.UTC)
                    yield from certificates.judge(self.name, whose, certificate, now)

    @contextlib.contextmanager
    def _session(self) -> Iterator[Session]:
        self._refuse_missing_file()
        engine = make_engine(self._url, self._engine_options, pre_ping=False)
        try:
            deadline = after(self._limits.patience)
            with Session(Bounds(engine, self._limits).claimed(engine, _Until(deadline))) as session:
                try:
                    session.connection()
                except DeadlineExceeded:
                    raise self._silent() from None
                except (*DATABASE_ERRORS, OSError, TypeError, ValueError) as error:  # of what a driver looks at first
                    raise self._refused(error) from None
                yield session
        finally:
            engine.dispose()

    def _refuse_missing_file(self) -> None:
        """SQLite would make one: nothing is to be written."""
        backend, place, *_ = urls.database_place(self._url)
        if backend == "sqlite" and str(place).startswith("/") and not Path(str(place)).exists():
            raise Unanswered("there is no such file", f"make it, {_URL}")

    def _silent(self) -> Unanswered:
        return Unanswered(f"no answer within {self._limits.patience:g} s", "see whether it is alive, and the network")

    def _refused(self, error: Exception) -> Unanswered:
        original = drivers_error(error)
        if has_no_place(original):
            return Unanswered(
                "it has as many connections as it takes", "let it take more; `cellmw-manage budget` tells how many"
            )
        refusal = refusal_of(original)
        if refusal is not None:
            return Unanswered(refusal.what, f"{refusal.todo}: {_UPDATE}")
        if _TIMED_OUT.search(str(original)):
            return self._silent()
        return Unanswered(cause(original), "see the server's log")

    def _look_at_server(self, session: Session, server: _Server, notebook: Notebook) -> Iterator[Finding]:
        try:
            read_only = server.read_only(session)
        except DATABASE_ERRORS as error:
            raise self._refused(error) from None
        if read_only:
            what = f"{self.subject} can't be written to: {read_only}"
            yield Finding(Severity.ERROR, self.name, CHECK, what, f"find out why, and have that ended, {_URL}")
        with contextlib.suppress(*DATABASE_ERRORS):  # what it does not tell everybody nobody compares
            identity = server.identity(session)
            if identity is not None:
                notebook.servers[self._cell.id] = identity
        session.rollback()

    def _look(self, session: Session, severity: Severity, read: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
        """Read something from the tables, and tell if that can't be done."""
        try:
            yield from read()
        except ConfigError as error:
            what, _, todo = str(error).partition(": ")
            yield Finding(severity, self.name, TABLES, what, todo)
        except DATABASE_ERRORS as error:
            session.rollback()
            what = f"{self.subject}: its tables can't be read: {cause(drivers_error(error))}"
            yield Finding(severity, self.name, TABLES, what, "see to what the user may read, and the server's log")
        except DeadlineExceeded:
            what = f"{self.subject}: its tables were not read within {self._limits.patience:g} s"
            yield Finding(Severity.WARNING, self.name, TABLES, what, "give it more time: --timeout")

    def _read_hosts(self, tables: CellTables, session: Session, notebook: Notebook) -> Iterator[Finding]:
        tables.worker_hosts(session)
        notebook.hosts[self._cell.id] = tables.hosts(session)
        return iter(())

    def _read_instances(self, tables: CellTables, session: Session, notebook: Notebook) -> Iterator[Finding]:
        """Name every column that a command may read, and count."""
        tables.instances(session, 1)
        tables.has_instances_on(session, "")
        without = tables.count_without_project(session)
        if without:
            what = f"{counted(without, 'instance')} in it without a project, which nobody can map"
            todo = "`cellmw-manage verify` names them: give each its project"
            yield Finding(Severity.WARNING, self.name, MAPPINGS, what, todo)
        notebook.living[self._cell.id] = tables.count_living(session)


def _read_only_postgresql(session: Session) -> str:
    in_recovery, read_only = session.execute(
        sqlalchemy.text("SELECT pg_is_in_recovery(), current_setting('transaction_read_only')")
    ).one()
    if in_recovery:
        return "it is in recovery, as a replica is"
    return "default_transaction_read_only is on" if read_only == "on" else ""


def _read_only_mysql(session: Session) -> str:
    # a number, and in newer releases of MariaDB a word
    value = str(session.scalar(sqlalchemy.text("SELECT @@global.read_only")))
    return "" if value.upper() in ("0", "OFF") else "read_only is on"


def _server_postgresql(session: Session) -> Hashable:
    row = session.execute(
        sqlalchemy.text("SELECT system_identifier, current_database() FROM pg_control_system()")
    ).one()
    return "postgresql", *row


def _server_mysql(session: Session) -> Hashable:
    """Return the server's id, with what tells apart machines that were cloned."""
    rows = session.execute(sqlalchemy.text(_IDENTITY)).all()
    values = {row[0].lower(): row[1] for row in rows}
    if not ({"server_uuid", "server_uid"} & values.keys()):
        return None
    return "mysql", tuple(sorted(values.items())), session.scalar(sqlalchemy.text("SELECT DATABASE()"))


class _Server(NamedTuple):
    """What is asked of one kind of server.

    :ivar read_only: why it can't be written to, empty if it can
    :ivar identity: which database it is; None where it does not say
    """

    read_only: Callable[[Session], str]
    identity: Callable[[Session], Hashable]


_POSTGRESQL = _Server(_read_only_postgresql, _server_postgresql)
_MYSQL = _Server(_read_only_mysql, _server_mysql)

_SERVERS = {"postgresql": _POSTGRESQL, "mysql": _MYSQL, "mariadb": _MYSQL}
