# SPDX-License-Identifier: Apache-2.0
"""A database -> that of a cell, with Nova's tables of hosts and instances, and no more columns than are looked at."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, Self

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Iterable

metadata = sa.MetaData()

compute_nodes = sa.Table(
    "compute_nodes",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("host", sa.String(255)),
    sa.Column("hypervisor_hostname", sa.String(255)),
    sa.Column("mapped", sa.Integer),
    sa.Column("deleted", sa.Integer, nullable=False),
    sa.UniqueConstraint("host", "hypervisor_hostname", "deleted"),
)

services = sa.Table(
    "services",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("host", sa.String(255)),
    sa.Column("binary", sa.String(255)),
    sa.Column("disabled", sa.Boolean),
    sa.Column("deleted", sa.Integer, nullable=False),
)

instances = sa.Table(
    "instances",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("uuid", sa.String(36), nullable=False),
    sa.Column("project_id", sa.String(255)),
    sa.Column("user_id", sa.String(255)),
    sa.Column("host", sa.String(255)),
    sa.Column("hidden", sa.Boolean),
    sa.Column("deleted", sa.Integer, nullable=False),
)


class NovaCell:
    """The database of one cell, from outside. Lives as long as the test."""

    def __init__(self, url: str) -> None:
        """Make the tables."""
        self._engine = sa.create_engine(url, poolclass=sa.NullPool)
        metadata.create_all(self._engine)

    def add_hosts(
        self, hosts: Iterable[str | None], *, node: str = "", mapped: int | None = 0, deleted: int = 0
    ) -> Self:
        """Add a compute node for each host."""
        nodes = [
            {"host": host, "hypervisor_hostname": node or host, "mapped": mapped, "deleted": deleted} for host in hosts
        ]
        return self._do(sa.insert(compute_nodes), nodes)

    def add_service(self, host: str, *, binary: str = "nova-compute", disabled: bool = False, deleted: int = 0) -> Self:
        """Add a service."""
        service = {"host": host, "binary": binary, "disabled": disabled, "deleted": deleted}
        return self._do(sa.insert(services), [service])

    def add_instance(self, uuid: str, host: str, *, hidden: bool = False, deleted: int = 0) -> Self:
        """Add an instance."""
        instance = {"uuid": uuid, "project_id": "p", "user_id": "u", "host": host, "hidden": hidden, "deleted": deleted}
        return self._do(sa.insert(instances), [instance])

    def add_instances(self, uuids: Iterable[str], **values: Any) -> Self:
        """Add instances that differ in their uuids."""
        common = {"project_id": "p", "user_id": "u", "host": "h", "hidden": False, "deleted": 0} | values
        return self._do(sa.insert(instances), [common | {"uuid": uuid} for uuid in uuids])

    def run(self, statement: str) -> Self:
        """Run any statement."""
        return self._do(sa.text(statement), [{}])

    def marks(self) -> dict[str, int | None]:
        """Return what stands in ``mapped`` of each host, deleted ones included."""
        with closing(self._engine.connect()) as connection:
            found = connection.execute(sa.select(compute_nodes.c.host, compute_nodes.c.mapped))
            return {row.host: row.mapped for row in found}

    def _do(self, statement: Any, rows: list[dict[str, Any]]) -> Self:
        with self._engine.begin() as connection:
            connection.execute(statement, rows)
        return self
