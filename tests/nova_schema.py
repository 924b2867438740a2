# SPDX-License-Identifier: Apache-2.0
"""The tables of Nova's API database that cellmw uses: what they look like, and how Nova's own sync leaves them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from sqlalchemy import Engine

COLUMNS: dict[str, dict[str, tuple[str, bool]]] = {
    "cell_mappings": {
        "created_at": ("datetime", True),
        "updated_at": ("datetime", True),
        "id": ("integer", False),
        "uuid": ("varchar(36)", False),
        "name": ("varchar(255)", True),
        "transport_url": ("text", True),
        "database_connection": ("text", True),
        "disabled": ("boolean", True),
    },
    "instance_mappings": {
        "created_at": ("datetime", True),
        "updated_at": ("datetime", True),
        "id": ("integer", False),
        "instance_uuid": ("varchar(36)", False),
        "cell_id": ("integer", True),
        "project_id": ("varchar(255)", False),
        "queued_for_delete": ("boolean", True),
        "user_id": ("varchar(255)", True),
    },
    "host_mappings": {
        "created_at": ("datetime", True),
        "updated_at": ("datetime", True),
        "id": ("integer", False),
        "cell_id": ("integer", False),
        "host": ("varchar(255)", False),
    },
}
"""Table -> column -> its type and whether it may be NULL."""

UNIQUE = {
    "cell_mappings": {"uniq_cell_mappings0uuid": ["uuid"]},
    "instance_mappings": {"uniq_instance_mappings0instance_uuid": ["instance_uuid"]},
    "host_mappings": {"uniq_host_mappings0host": ["host"]},
}

INDEXES = {
    "cell_mappings": {"uuid_idx": ["uuid"]},
    "instance_mappings": {
        "instance_uuid_idx": ["instance_uuid"],
        "project_id_idx": ["project_id"],
        "instance_mappings_user_id_project_id_idx": ["user_id", "project_id"],
    },
    "host_mappings": {"host_idx": ["host"]},
}

TO_CELL_MAPPINGS = [(["cell_id"], "cell_mappings", ["id"])]

FOREIGN_KEYS: dict[str, list[tuple[list[str], str, list[str]]]] = {
    "cell_mappings": [],
    "instance_mappings": TO_CELL_MAPPINGS,
    "host_mappings": TO_CELL_MAPPINGS,
}

NOVA_HEAD = "cdeec0c85668"

NOVA_DDL = [
    "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)",
    f"INSERT INTO alembic_version VALUES ('{NOVA_HEAD}')",
    """CREATE TABLE cell_mappings (
        created_at {datetime}, updated_at {datetime}, id {key} PRIMARY KEY, uuid VARCHAR(36) NOT NULL,
        name VARCHAR(255), transport_url TEXT, database_connection TEXT, disabled BOOLEAN,
        CONSTRAINT uniq_cell_mappings0uuid UNIQUE (uuid))""",
    "CREATE INDEX uuid_idx ON cell_mappings (uuid)",
    """CREATE TABLE instance_mappings (
        created_at {datetime}, updated_at {datetime}, id {key} PRIMARY KEY, instance_uuid VARCHAR(36) NOT NULL,
        cell_id INTEGER, project_id VARCHAR(255) NOT NULL, queued_for_delete BOOLEAN, user_id VARCHAR(255),
        CONSTRAINT uniq_instance_mappings0instance_uuid UNIQUE (instance_uuid),
        FOREIGN KEY (cell_id) REFERENCES cell_mappings (id))""",
    "CREATE INDEX instance_uuid_idx ON instance_mappings (instance_uuid)",
    "CREATE INDEX project_id_idx ON instance_mappings (project_id)",
    "CREATE INDEX instance_mappings_user_id_project_id_idx ON instance_mappings (user_id, project_id)",
    """CREATE TABLE host_mappings (
        created_at {datetime}, updated_at {datetime}, id {key} PRIMARY KEY, cell_id INTEGER NOT NULL,
        host VARCHAR(255) NOT NULL, CONSTRAINT uniq_host_mappings0host UNIQUE (host),
        FOREIGN KEY (cell_id) REFERENCES cell_mappings (id))""",
    "CREATE INDEX host_idx ON host_mappings (host)",
    "INSERT INTO cell_mappings (uuid, name, transport_url, database_connection, disabled) VALUES "
    "('00000000-0000-0000-0000-000000000000', 'cell0', 'none:///', 'sqlite:////nova_cell0.db', FALSE)",
]

DIALECTS = {
    "sqlite": {"datetime": "DATETIME", "key": "INTEGER NOT NULL"},
    "mysql": {"datetime": "DATETIME", "key": "INTEGER NOT NULL AUTO_INCREMENT"},
    "postgresql": {"datetime": "TIMESTAMP WITHOUT TIME ZONE", "key": "SERIAL"},
}


def create_as_nova_does(engine: Engine) -> None:
    """Make Nova's tables, with one cell in them, and the mark of Nova's own sync."""
    with engine.begin() as connection:
        for statement in NOVA_DDL:
            connection.exec_driver_sql(statement.format(**DIALECTS[engine.dialect.name]))


def columns(engine: Engine, table: str) -> dict[str, tuple[str, bool]]:
    """Return what :data:`COLUMNS` says of one table."""
    return {
        column["name"]: (type_name(column["type"]), column["nullable"])
        for column in sa.inspect(engine).get_columns(table)
    }


def type_name(column_type: Any) -> str:
    """Name a type by what it holds, as the databases do by different words."""
    if isinstance(column_type, sa.DateTime):
        return "datetime"
    if isinstance(column_type, sa.Boolean) or getattr(column_type, "display_width", None) == 1:
        return "boolean"
    if isinstance(column_type, sa.Integer):
        return "integer"
    if isinstance(column_type, sa.Text):
        return "text"
    assert isinstance(column_type, sa.String)
    return f"varchar({column_type.length})"


def server_defaults(engine: Engine, table: str) -> set[str]:
    """Return the columns that the server fills in, but for the sequence behind a key."""
    found = sa.inspect(engine).get_columns(table)
    return {column["name"] for column in found if column["default"] is not None and column["name"] != "id"}


def unique(engine: Engine, table: str) -> dict[str, list[str]]:
    """Return what :data:`UNIQUE` says of one table."""
    found = sa.inspect(engine).get_unique_constraints(table)
    return {str(constraint["name"]): constraint["column_names"] for constraint in found}


def indexes(engine: Engine, table: str) -> dict[str, list[Any]]:
    """Return what :data:`INDEXES` says of one table: not those that a database makes for a constraint."""
    found = sa.inspect(engine).get_indexes(table)
    return {str(index["name"]): index["column_names"] for index in found if not index["unique"] and _is_named(index)}


def _is_named(index: Any) -> bool:
    # InnoDB makes one for a foreign key, and calls it after its column
    return index["column_names"] != [index["name"]]


def foreign_keys(engine: Engine, table: str) -> list[tuple[list[str], str, list[str]]]:
    """Return what :data:`FOREIGN_KEYS` says of one table."""
    found = sa.inspect(engine).get_foreign_keys(table)
    return [(key["constrained_columns"], key["referred_table"], key["referred_columns"]) for key in found]


def contents(engine: Engine) -> dict[str, Any]:
    """Return all that Nova's tables are and hold."""
    tables = ["alembic_version", *COLUMNS]
    with engine.connect() as connection:
        rows = {table: connection.exec_driver_sql(f"SELECT * FROM {table}").all() for table in tables}
    inspector = sa.inspect(engine)
    return {
        table: (rows[table], columns(engine, table), indexes(engine, table), inspector.get_pk_constraint(table))
        for table in tables
    }
