# SPDX-License-Identifier: Apache-2.0
"""Create those of the tables for cells, instances and hosts that are not there yet."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "5c1d0f8e2a47"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Take the tables as they are where Nova made them, or where an earlier attempt got half-way."""
    _create(
        "cell_mappings",
        sa.Column("uuid", sa.String(36), nullable=False),
        sa.Column("name", sa.String(255)),
        sa.Column("transport_url", sa.Text),
        sa.Column("database_connection", sa.Text),
        sa.Column("disabled", sa.Boolean),
        sa.UniqueConstraint("uuid", name="uniq_cell_mappings0uuid"),
        sa.Index("uuid_idx", "uuid"),
    )
    _create(
        "instance_mappings",
        sa.Column("instance_uuid", sa.String(36), nullable=False),
        sa.Column("cell_id", sa.Integer, sa.ForeignKey("cell_mappings.id")),
        sa.Column("project_id", sa.String(255), nullable=False),
        sa.Column("queued_for_delete", sa.Boolean),
        sa.Column("user_id", sa.String(255)),
        sa.UniqueConstraint("instance_uuid", name="uniq_instance_mappings0instance_uuid"),
        sa.Index("instance_uuid_idx", "instance_uuid"),
        sa.Index("project_id_idx", "project_id"),
        sa.Index("instance_mappings_user_id_project_id_idx", "user_id", "project_id"),
    )
    _create(
        "host_mappings",
        sa.Column("cell_id", sa.Integer, sa.ForeignKey("cell_mappings.id"), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.UniqueConstraint("host", name="uniq_host_mappings0host"),
        sa.Index("host_idx", "host"),
    )


def _create(table: str, *items: Any) -> None:
    if sa.inspect(op.get_bind()).has_table(table):
        return
    op.create_table(
        table,
        sa.Column("created_at", sa.DateTime),
        sa.Column("updated_at", sa.DateTime),
        sa.Column("id", sa.Integer, primary_key=True),
        *items,
        mysql_engine="InnoDB",
        mysql_charset="utf8",
    )
