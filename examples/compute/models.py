# SPDX-License-Identifier: Apache-2.0
"""The tables of a cell's database. Every cell has the same ones, and none of them says which cell it is."""

from __future__ import annotations

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

    def view(self) -> dict[str, Any]:
        """Return what the API shows of it."""
        view: dict[str, Any] = {
            "id": self.uuid,
            "tenant_id": self.project_id,
            "name": self.name,
            "flavor": self.flavor,
            "status": self.state,
            "host": self.host,
            "reboots": self.reboots,
        }
        if self.fault is not None:
            view["fault"] = {"message": self.fault}
        return view


def create_all(url: str) -> None:
    """Create the tables in this database, where they are not there yet."""
    engine = sqlalchemy.create_engine(url)
    try:
        Base.metadata.create_all(engine)
    finally:
        engine.dispose()
