# SPDX-License-Identifier: Apache-2.0
"""The tables of a cell's database. Every cell has the same ones, and none of them says which cell it is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy
from sqlalchemy import orm


class Base(orm.DeclarativeBase):
    """What the tables of a cell have in common."""


class Instance(Base):
    """One instance, as its cell knows it."""

    __tablename__ = "instances"

    uuid: orm.Mapped[str] = orm.mapped_column(sqlalchemy.String(36), primary_key=True)
    project_id: orm.Mapped[str] = orm.mapped_column(sqlalchemy.String(255), index=True)
    name: orm.Mapped[str] = orm.mapped_column(sqlalchemy.String(255))
    flavor: orm.Mapped[str] = orm.mapped_column(sqlalchemy.String(255))
    state: orm.Mapped[str] = orm.mapped_column(sqlalchemy.String(16), default="BUILD")
    host: orm.Mapped[str | None] = orm.mapped_column(sqlalchemy.String(255), default=None)
    fault: orm.Mapped[str | None] = orm.mapped_column(sqlalchemy.Text, default=None)
    reboots: orm.Mapped[int] = orm.mapped_column(default=0)
    created_at: orm.Mapped[datetime | None] = orm.mapped_column(default=lambda: datetime.now(UTC).replace(tzinfo=None))


def view(instance: Any) -> dict[str, Any]:
    """Return what the API shows of an instance, or of its row in a list."""
    view: dict[str, Any] = {
        "id": instance.uuid,
        "tenant_id": instance.project_id,
        "name": instance.name,
        "flavor": instance.flavor,
        "status": instance.state,
        "host": instance.host,
        "reboots": instance.reboots,
        "created": None if instance.created_at is None else f"{instance.created_at:%Y-%m-%dT%H:%M:%SZ}",
    }
    if instance.fault is not None:
        view["fault"] = {"message": instance.fault}
    return view


def create_all(url: str) -> None:
    """Create the tables in this database, where they are not there yet."""
    engine = sqlalchemy.create_engine(url)
    try:
        Base.metadata.create_all(engine)
    finally:
        engine.dispose()
