# SPDX-License-Identifier: Apache-2.0
"""Create our own tables: cells that are drained, instances that are held back, and how far a long command is."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "8b3e6f1a9d02"
down_revision = "5c1d0f8e2a47"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Take the tables as they are where an earlier attempt got half-way."""
    _create(
        "cellmw_drained_cells",
        sa.Column("cell_uuid", sa.String(36), primary_key=True),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("reason", sa.String(255)),
    )
    _create(
        "cellmw_held_instances",
        sa.Column("instance_uuid", sa.String(36), primary_key=True),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("until", sa.DateTime, nullable=False),
    )
    _create(
        "cellmw_progress",
        sa.Column("task", sa.String(255), primary_key=True),
        sa.Column("position", sa.Text, nullable=False),
        sa.Column("updated_at", sa.DateTime, nullable=False),
    )


def _create(table: str, *columns: Any) -> None:
    if not sa.inspect(op.get_bind()).has_table(table):
        op.create_table(table, *columns, mysql_engine="InnoDB", mysql_charset="utf8")
