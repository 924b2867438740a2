# SPDX-License-Identifier: Apache-2.0
"""An engine -> an API database whose tables are those of ``models``, by alembic.

The revisions have a version table of their own, so that they get along with those of a service that keeps its tables
in the same database. Nova's tables are used as they are: no revision may change them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from cellmw import engines
from cellmw.exceptions import StoreError
from cellmw.store.database import DATABASE_ERRORS, failure
from cellmw.store.models import NOVAS, metadata

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

VERSION_TABLE = "alembic_version_cellmw"
"""Where alembic keeps which of our revisions the database is at."""

_VERSION_TABLE_OF_NOVA = "alembic_version"


class Synced(NamedTuple):
    """What :func:`sync` did.

    :ivar version: the revision that the database is at now
    :ivar nova: whether the tables are Nova's, and were left as they are
    """

    version: str
    nova: bool


def sync(engine: Engine, version: str | None = None, *, dry_run: bool = False) -> Synced:
    """Bring the API database to a revision, by default the newest; one that it is past already changes nothing.

    :param dry_run: only check that it can be done, and return what would be the outcome
    :raises StoreUnavailable: if the database gives no answer
    :raises StoreError: if there is no such revision, if a later release has synced the database, or if tables that are
        there already lack a column
    """
    config = _config()
    _check_revision(config, version)
    try:
        with engine.execution_options(**engines.WRITER).begin() as connection:
            nova = _is_managed_by_nova(connection)
            _check_current(connection)
            _check_columns(connection)
            if dry_run:
                return Synced(_after_sync(config, _current(connection), version), nova)
            config.attributes["connection"] = connection
            command.upgrade(config, version or "head")
            return Synced(_current(connection) or "", nova)
    except DATABASE_ERRORS as error:
        raise failure(error) from error


def version(engine: Engine) -> str | None:
    """Return the revision that the database is at, or None if it was never synced.

    :raises StoreUnavailable: if the database gives no answer
    """
    try:
        with engine.connect() as connection:
            return _current(connection)
    except DATABASE_ERRORS as error:
        raise failure(error) from error


def is_novas(engine: Engine) -> bool:
    """Tell whether the tables are Nova's.

    :raises StoreUnavailable: if the database gives no answer
    """
    try:
        with engine.connect() as connection:
            return _is_managed_by_nova(connection)
    except DATABASE_ERRORS as error:
        raise failure(error) from error


def missing(engine: Engine) -> list[str]:
    """Return the tables that are not there, and the columns that tables lack, each in a few words.

    :raises StoreUnavailable: if the database gives no answer
    """
    lacking = []
    try:
        inspector = sa.inspect(engine)
        for table in metadata.sorted_tables:
            if not inspector.has_table(table.name):
                lacking.append(f"the table {table.name}")
                continue
            there = {column["name"] for column in inspector.get_columns(table.name)}
            lacking += [f"the column {name} of {table.name}" for name in set(table.columns.keys()) - there]
    except DATABASE_ERRORS as error:
        raise failure(error) from error
    return sorted(lacking)


def newest() -> str:
    """Return the revision that :func:`sync` brings a database to."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def is_known(version: str) -> bool:
    """Tell whether this is a revision of this release."""
    try:
        _check_revision(_config(), version)
    except StoreError:
        return False
    return True


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def _check_revision(config: Config, version: str | None) -> None:
    try:
        if (version or "").startswith(("+", "-")):  # counted from where the database is, which can be nowhere
            raise CommandError("relative")
        ScriptDirectory.from_config(config).get_revisions(version or "head")
    except CommandError:
        raise StoreError(f"there is no revision {version!r} of the API database: the newest is {newest()}") from None


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def _after_sync(config: Config, current: str | None, version: str | None) -> str:
    """Return the revision that a database which is at the current one would be at."""
    revisions = ScriptDirectory.from_config(config)
    there = {revision.revision for revision in revisions.iterate_revisions(current or "base", "base")}
    wanted = revisions.get_revisions(version or "head")
    return next((each.revision for each in wanted if each.revision not in there), current or "")


def _check_current(connection: Connection) -> None:
    """Refuse what a later release has made of the database."""
    current = _current(connection)
    if current is not None and not is_known(current):
        raise StoreError(f"the API database is at {current}, which is of a later release than this: install that")


def _is_managed_by_nova(connection: Connection) -> bool:
    """Tell by the mark that Nova's own sync leaves, as it makes these tables in its first revision."""
    tables = set(sa.inspect(connection).get_table_names())
    if not tables >= {_VERSION_TABLE_OF_NOVA, *NOVAS}:
        return False
    return connection.execute(sa.select(sa.table(_VERSION_TABLE_OF_NOVA, sa.column("version_num")))).first() is not None


def _check_columns(connection: Connection) -> None:
    """Refuse tables that an old release of Nova left behind: whoever made them has to bring them up to date."""
    inspector = sa.inspect(connection)
    for table in metadata.sorted_tables:
        if inspector.has_table(table.name):
            there = {column["name"] for column in inspector.get_columns(table.name)}
            if missing := sorted(set(table.columns.keys()) - there):
                raise StoreError(
                    f"the table {table.name} is there already, without {', '.join(missing)}: "
                    "where it is Nova's, run `nova-manage api_db sync` of a current release first"
                )
