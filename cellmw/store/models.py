# SPDX-License-Identifier: Apache-2.0
"""The tables of the API database: three as Nova has them, so that what one creates the other reads, and our own.

Names, types and constraints of the three are Nova's. What is filled in by default is filled in here, in Python: the
schema has no server defaults. Our own, which Nova never looks at, begin with ``cellmw_``; none refers to a row of
another, so that they are in nobody's way.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from oslo_utils import timeutils

metadata = sa.MetaData()

_INNODB: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8"}


def _timestamps() -> list[sa.Column[Any]]:
    return [
        sa.Column("created_at", sa.DateTime, default=timeutils.utcnow),
        sa.Column("updated_at", sa.DateTime, onupdate=timeutils.utcnow),
    ]


cell_mappings = sa.Table(
    "cell_mappings",
    metadata,
    *_timestamps(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("uuid", sa.String(36), nullable=False),
    sa.Column("name", sa.String(255)),
    sa.Column("transport_url", sa.Text),
    sa.Column("database_connection", sa.Text),
    sa.Column("disabled", sa.Boolean, default=False),
    sa.UniqueConstraint("uuid", name="uniq_cell_mappings0uuid"),
    sa.Index("uuid_idx", "uuid"),
    **_INNODB,
)

instance_mappings = sa.Table(
    "instance_mappings",
    metadata,
    *_timestamps(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("instance_uuid", sa.String(36), nullable=False),
    sa.Column("cell_id", sa.Integer, sa.ForeignKey("cell_mappings.id")),
    sa.Column("project_id", sa.String(255), nullable=False),
    sa.Column("queued_for_delete", sa.Boolean, default=False),
    sa.Column("user_id", sa.String(255)),
    sa.UniqueConstraint("instance_uuid", name="uniq_instance_mappings0instance_uuid"),
    sa.Index("instance_uuid_idx", "instance_uuid"),
    sa.Index("project_id_idx", "project_id"),
    sa.Index("instance_mappings_user_id_project_id_idx", "user_id", "project_id"),
    **_INNODB,
)

host_mappings = sa.Table(
    "host_mappings",
    metadata,
    *_timestamps(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("cell_id", sa.Integer, sa.ForeignKey("cell_mappings.id"), nullable=False),
    sa.Column("host", sa.String(255), nullable=False),
    sa.UniqueConstraint("host", name="uniq_host_mappings0host"),
    sa.Index("host_idx", "host"),
    **_INNODB,
)

NOVAS = frozenset(metadata.tables)
"""The names of those that Nova has, too."""

drained_cells = sa.Table(
    "cellmw_drained_cells",
    metadata,
    sa.Column("cell_uuid", sa.String(36), primary_key=True),
    sa.Column("created_at", sa.DateTime, nullable=False, default=timeutils.utcnow),
    sa.Column("reason", sa.String(255)),
    **_INNODB,
)

held_instances = sa.Table(
    "cellmw_held_instances",
    metadata,
    sa.Column("instance_uuid", sa.String(36), primary_key=True),
    sa.Column("created_at", sa.DateTime, nullable=False, default=timeutils.utcnow),
    sa.Column("until", sa.DateTime, nullable=False),
    **_INNODB,
)

progress = sa.Table(
    "cellmw_progress",
    metadata,
    sa.Column("task", sa.String(255), primary_key=True),
    sa.Column("position", sa.Text, nullable=False),
    sa.Column("updated_at", sa.DateTime, nullable=False, default=timeutils.utcnow, onupdate=timeutils.utcnow),
    **_INNODB,
)
