# SPDX-License-Identifier: Apache-2.0
"""What alembic runs to apply the revisions, on the connection that ``migrations.sync`` hands over."""

from __future__ import annotations

from alembic import context

from cellmw.store.migrations import VERSION_TABLE
from cellmw.store.models import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
