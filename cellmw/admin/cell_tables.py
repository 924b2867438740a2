# SPDX-License-Identifier: Apache-2.0
"""A session in a cell -> the instances and hosts that its database has, in whatever tables ``[cellmw_tables]`` names.

The tables are read as they are found, so that a service other than Nova needs no models here. What is hidden, as the
copy of an instance that is on its way between two cells, is left out, but where a host is asked whether it is empty.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.dialects.mysql import BIT

from cellmw import conf as options
from cellmw.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from oslo_config import cfg
    from sqlalchemy import Pool
    from sqlalchemy.orm import Session

_NUMBERS = (sa.Integer, sa.Numeric, sa.Float)

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class InstanceRow(NamedTuple):
    """One instance, as its cell knows it.

    :ivar key: its place in the order in which they are read
    :ivar project_id: None where the row has none
    :ivar user_id: None where the row, or the table, has none
    :ivar deleted: whether it is kept only as one that was deleted
    """

    key: Any
    uuid: str
    project_id: str | None
    user_id: str | None
    deleted: bool


class CellTables:
    """The tables of the cells' databases. Lives as long as the command; threads may share it.

    Every method takes a session in the cell, and raises ConfigError where there is no such table or column.
    """

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        options.register_opts(conf)
        self._names = conf[options.CELL_TABLES]
        # by what their connections come from: no two cells have that in common, and it is new when a cell has moved
        self._tables: WeakKeyDictionary[Pool, dict[str, sa.Table]] = WeakKeyDictionary()

    def instances(self, session: Session, limit: int, after: Any = None) -> list[InstanceRow]:
        """Return the next instances, deleted ones included, by their key.

        :param after: the key of the last one before them; None to begin
        """
        key = self._key(session)
        page = self._instances(session).where(self._shown(session)).order_by(key).limit(limit)
        if after is not None:
            page = page.where(key > after)
        return [_instance(*row) for row in session.execute(page)]

    def find_instances(self, session: Session, uuids: Iterable[str], *, hidden: bool = False) -> list[InstanceRow]:
        """Return those of these instances that the cell has, deleted ones included, in no order.

        :param uuids: a thousand of them at most
        :param hidden: hidden ones, too
        """
        uuid = self._column(session, "instances_table", "instance_uuid")
        if isinstance(uuid.type, sa.Uuid):  # the database would fail, or find one that is written otherwise
            uuids = filter(_UUID.fullmatch, uuids)
        found = self._instances(session).where(uuid.in_(list(uuids)))
        if not hidden:
            found = found.where(self._shown(session))
        return [_instance(*row) for row in session.execute(found)]

    def count_instances(self, session: Session, after: Any = None) -> int:
        """Return how many instances there are, deleted ones included.

        :param after: only those behind the one with this key
        """
        table = self._table(session, "instances_table")
        count = sa.select(sa.func.count()).select_from(table).where(self._shown(session))
        if after is not None:
            count = count.where(self._key(session) > after)
        return session.scalars(count).one()

    def count_living(self, session: Session) -> int:
        """Return how many instances there are that are not deleted."""
        table = self._table(session, "instances_table")
        living = sa.select(sa.func.count()).select_from(table).where(self._living(session))
        return session.scalars(living).one()

    def count_without_project(self, session: Session) -> int:
        """Return how many instances there are that are not deleted and have no project."""
        project = self._column(session, "instances_table", "instance_project")
        without = sa.select(sa.func.count()).where(self._living(session), sa.or_(project.is_(None), project == ""))
        return session.scalars(without).one()

    def has_instances_on(self, session: Session, host: str) -> bool:
        """Tell whether there are instances on this host that are not deleted; a hidden one takes up the host, too."""
        column = self._column(session, "instances_table", "instance_host")
        found = sa.select(column).where(column == host, sa.not_(self._deleted(session, "instance"))).limit(1)
        return session.execute(found).first() is not None

    def hosts(self, session: Session, *, unmapped: bool = False) -> list[str]:
        """Return the hosts that are not deleted, each once, by name.

        :param unmapped: only those that the cell does not know to have been discovered
        """
        column = self._column(session, "hosts_table", "host_name")
        found = sa.select(column).distinct().where(column.is_not(None), sa.not_(self._deleted(session, "host")))
        if unmapped and self._names.host_mapped:
            mapped = self._column(session, "hosts_table", "host_mapped")
            found = found.where(sa.or_(mapped.is_(None), mapped == 0))
        return list(session.scalars(found.order_by(column)))

    def worker_hosts(self, session: Session) -> list[str]:
        """Return the hosts of the services that instances run by, disabled ones included, each once, by name."""
        host = self._column(session, "services_table", "service_host")
        binary = self._column(session, "services_table", "service_binary")
        found = sa.select(host).distinct().where(host.is_not(None), binary == self._names.worker_binary)
        found = found.where(sa.not_(self._deleted(session, "service")))
        return list(session.scalars(found.order_by(host)))

    def mark_hosts(self, session: Session, hosts: Sequence[str], *, mapped: bool) -> None:
        """Write down that these hosts have been discovered, or that they are to be once more.

        :param hosts: a thousand of them at most
        """
        if not (hosts and self._names.host_mapped):
            return
        column = self._column(session, "hosts_table", "host_mapped")
        rows = sa.update(column.table).where(self._column(session, "hosts_table", "host_name").in_(hosts))
        if mapped:  # a host that comes back as the row of one that was deleted has to be discovered
            rows = rows.where(sa.not_(self._deleted(session, "host")))
        session.execute(rows.values({column.name: int(mapped)}))

    def _instances(self, session: Session) -> sa.Select[Any]:
        user: Any = sa.null()
        if self._names.instance_user:
            user = self._column(session, "instances_table", "instance_user")
        return sa.select(
            self._column(session, "instances_table", "instance_key"),
            self._column(session, "instances_table", "instance_uuid"),
            self._column(session, "instances_table", "instance_project"),
            user,
            self._deleted(session, "instance"),
        )

    def _key(self, session: Session) -> sa.Column[Any]:
        key = self._column(session, "instances_table", "instance_key")
        if not isinstance(key.type, sa.Integer):
            raise ConfigError(
                f"the column {key.name} of the table {key.table.name} of the cell is no integer: "
                f"set [{options.CELL_TABLES}] instance_key to one that is, and that counts up"
            )
        return key

    def _living(self, session: Session) -> sa.ColumnElement[bool]:
        return sa.and_(self._shown(session), sa.not_(self._deleted(session, "instance")))

    def _shown(self, session: Session) -> sa.ColumnElement[bool]:
        """Return what is true of an instance that is not hidden; a row without a uuid is none."""
        has_uuid = self._column(session, "instances_table", "instance_uuid").is_not(None)
        if not self._names.instance_hidden:
            return has_uuid
        return sa.and_(has_uuid, sa.not_(_is_set(self._column(session, "instances_table", "instance_hidden"))))

    def _deleted(self, session: Session, what: str) -> sa.ColumnElement[bool]:
        """Return what is true of a row that is kept only as one that was deleted."""
        option = f"{what}_deleted"
        if not self._names[option]:
            return sa.false()
        return _is_set(self._column(session, f"{what}s_table", option))

    def _column(self, session: Session, table_option: str, option: str) -> sa.Column[Any]:
        table = self._table(session, table_option)
        name = self._names[option]
        try:
            column: sa.Column[Any] = table.columns[name]
            return column
        except KeyError:
            raise ConfigError(
                f"the table {table.name} of the cell has no column {name!r}: set [{options.CELL_TABLES}] {option}"
            ) from None

    def _table(self, session: Session, option: str) -> sa.Table:
        name = self._names[option]
        connection = session.connection()
        tables = self._tables.setdefault(connection.engine.pool, {})
        if name not in tables:
            try:
                found = sa.inspect(connection).get_columns(name)
            except sa.exc.NoSuchTableError:
                raise ConfigError(
                    f"the cell's database has no table {name!r}: make it, or set [{options.CELL_TABLES}] {option}"
                ) from None
            columns = (_described(column["name"], column["type"]) for column in found)
            tables[name] = sa.Table(name, sa.MetaData(), *columns)
        return tables[name]


def _instance(key: Any, uuid: str, project_id: Any, user_id: Any, deleted: bool) -> InstanceRow:
    """Return a row with its owners as text, which mappings have them as, where their columns are of another type."""
    return InstanceRow(
        key, uuid, None if project_id is None else str(project_id), None if user_id is None else str(user_id), deleted
    )


def _described(name: str, kind: Any) -> sa.Column[Any]:
    """Return a column: a uuid as text, and MariaDB's bits as a number, as which they can be compared."""
    if isinstance(kind, sa.Uuid):
        kind = sa.Uuid(as_uuid=False)
    elif isinstance(kind, BIT):
        kind = sa.Integer()
    return sa.Column(name, kind)


def _is_set(column: sa.Column[Any]) -> sa.ColumnElement[bool]:
    """Return what is true where there is anything but NULL, 0, false and an empty text."""
    if isinstance(column.type, sa.Boolean):
        says_so: sa.ColumnElement[bool] = column == sa.true()
    elif isinstance(column.type, _NUMBERS):
        says_so = column != 0
    else:
        says_so = sa.func.lower(sa.cast(column, sa.String(255))).not_in(["", "0", "false"])
    return sa.and_(column.is_not(None), says_so)
