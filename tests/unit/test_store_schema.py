# SPDX-License-Identifier: Apache-2.0
"""The API database's tables and migrations, on SQLite; tests/services runs the same on servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from cellmw import engines
from cellmw.exceptions import StoreError, StoreUnavailable
from cellmw.store import Store, migrations
from cellmw.store.models import metadata
from tests import nova_schema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

TABLES = sorted(nova_schema.COLUMNS)

OWN_TABLES = {"alembic_version_cellmw", "cellmw_drained_cells", "cellmw_held_instances", "cellmw_progress"}
"""Those that Nova doesn't have."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of an empty database."""
    return f"sqlite:///{tmp_path}/api.db"


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """An engine on an empty database."""
    engine = engines.make_engine(url, {}, pre_ping=False)
    yield engine
    engine.dispose()


@pytest.fixture
def synced(engine: Engine) -> Engine:
    """An engine on a database that sync has made."""
    migrations.sync(engine)
    return engine


@pytest.mark.parametrize("table", TABLES)
def test_columns_are_novas(synced: Engine, table: str) -> None:
    """Each column has the name, the type and the nullability that Nova gives it."""
    assert nova_schema.columns(synced, table) == nova_schema.COLUMNS[table]


@pytest.mark.parametrize("table", TABLES)
def test_no_server_defaults(synced: Engine, table: str) -> None:
    """No column is filled in by the server."""
    assert nova_schema.server_defaults(synced, table) == set()


@pytest.mark.parametrize("table", TABLES)
def test_unique_constraints_are_novas(synced: Engine, table: str) -> None:
    """Each unique constraint has Nova's name."""
    assert nova_schema.unique(synced, table) == nova_schema.UNIQUE[table]


@pytest.mark.parametrize("table", TABLES)
def test_indexes_are_novas(synced: Engine, table: str) -> None:
    """Each index has Nova's name and columns."""
    assert nova_schema.indexes(synced, table) == nova_schema.INDEXES[table]


@pytest.mark.parametrize("table", TABLES)
def test_foreign_keys_are_novas(synced: Engine, table: str) -> None:
    """Hosts and instances refer to cells by id."""
    assert nova_schema.foreign_keys(synced, table) == nova_schema.FOREIGN_KEYS[table]


def test_migrations_make_what_the_models_say(synced: Engine) -> None:
    """Alembic finds nothing to add to what the revisions made."""
    with synced.connect() as connection:
        opts = {"version_table": migrations.VERSION_TABLE, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=opts), metadata) == []


def test_sync_adds_only_its_own_tables(synced: Engine) -> None:
    """What Nova doesn't have, the version table included, is called after cellmw, so that Nova has all names free."""
    assert set(sa.inspect(synced).get_table_names()) == OWN_TABLES.union(TABLES)


def test_version_before_and_after_sync(engine: Engine) -> None:
    """A database has no version before its first sync, and the newest after it."""
    before = migrations.version(engine)
    migrations.sync(engine)
    assert (before, migrations.version(engine)) == (None, migrations.newest())


def test_sync_says_what_it_did(engine: Engine) -> None:
    """Sync returns the version that it reached, and that these tables are not Nova's."""
    assert migrations.sync(engine) == (migrations.newest(), False)


def test_sync_again_changes_nothing(synced: Engine) -> None:
    """A second sync finds everything done."""
    assert migrations.sync(synced) == (migrations.newest(), False)


def test_sync_to_a_named_version(engine: Engine) -> None:
    """Sync stops at the revision that it is given."""
    assert migrations.sync(engine, "5c1d0f8e2a47").version == "5c1d0f8e2a47"


def test_known_versions(synced: Engine) -> None:
    """What a database is at after sync is a revision of ours; another text is none."""
    assert [migrations.is_known(version) for version in (migrations.newest(), "0" * 12)] == [True, False]


@pytest.mark.parametrize("dry_run", [False, True])
def test_sync_after_a_later_release(synced: Engine, dry_run: bool) -> None:
    """A database that a later release has synced is left as it is."""
    with synced.begin() as connection:
        connection.execute(sa.text(f"UPDATE {migrations.VERSION_TABLE} SET version_num = 'fedcba987654'"))
    with pytest.raises(StoreError, match="at fedcba987654, which is of a later release"):
        migrations.sync(synced, dry_run=dry_run)
    assert migrations.version(synced) == "fedcba987654"


def test_what_is_missing(synced: Engine) -> None:
    """Each table that is not there is named, and each column that one lacks; after sync there is none."""
    assert migrations.missing(synced) == []
    with synced.begin() as connection:
        connection.execute(sa.text("DROP TABLE cellmw_drained_cells"))
        connection.execute(sa.text("ALTER TABLE host_mappings DROP COLUMN updated_at"))
    assert migrations.missing(synced) == [
        "the column updated_at of host_mappings",
        "the table cellmw_drained_cells",
    ]


def test_sync_to_an_unknown_version(engine: Engine) -> None:
    """A revision that there is not is an error that names the newest one."""
    with pytest.raises(StoreError, match=migrations.newest()):
        migrations.sync(engine, "17")


def test_sync_goes_on_where_it_was_interrupted(synced: Engine) -> None:
    """Tables that an interrupted sync has made already are kept, and the rest is made."""
    with synced.begin() as connection:
        connection.exec_driver_sql("DROP TABLE host_mappings")
        connection.exec_driver_sql("DROP TABLE cellmw_held_instances")
        connection.exec_driver_sql("DROP TABLE alembic_version_cellmw")
    migrations.sync(synced)
    assert set(sa.inspect(synced).get_table_names()) == OWN_TABLES.union(TABLES)


def test_sync_leaves_novas_tables_untouched(engine: Engine) -> None:
    """On a database that Nova manages, sync changes nothing of Nova's and says whose the tables are."""
    nova_schema.create_as_nova_does(engine)
    before = nova_schema.contents(engine)
    assert migrations.sync(engine) == (migrations.newest(), True)
    assert nova_schema.contents(engine) == before


def test_sync_adds_its_own_tables_to_novas(engine: Engine) -> None:
    """On a database that Nova manages, sync adds the tables that Nova doesn't have and nothing else."""
    nova_schema.create_as_nova_does(engine)
    before = set(sa.inspect(engine).get_table_names())
    migrations.sync(engine)
    assert set(sa.inspect(engine).get_table_names()) - before == OWN_TABLES


def test_sync_goes_on_from_an_older_release(engine: Engine) -> None:
    """A database that was synced by the first release gets what has come since, and keeps what is in it."""
    migrations.sync(engine, "5c1d0f8e2a47")
    store = Store(engine)
    cell = store.create_cell(name="cell1", transport_url="rabbit://host1/", database_connection="sqlite:///1.db")
    migrations.sync(engine)
    assert set(sa.inspect(engine).get_table_names()) == OWN_TABLES.union(TABLES)
    assert store.list_cells() == [cell]


def test_older_release_says_what_to_run(engine: Engine) -> None:
    """What needs a table that has come since says which command makes it."""
    migrations.sync(engine, "5c1d0f8e2a47")
    with pytest.raises(StoreUnavailable, match="lacks tables of this release: run `cellmw-manage api_db sync`"):
        Store(engine).drain_cell("x")


def test_store_works_on_novas_tables(engine: Engine) -> None:
    """The store reads and writes tables that Nova made, with no sync of ours."""
    nova_schema.create_as_nova_does(engine)
    store = Store(engine)
    store.create_cell(name="cell1", transport_url="rabbit://host1/", database_connection="sqlite:///1.db")
    assert [cell.name for cell in store.list_cells()] == ["cell0", "cell1"]


def test_sync_refuses_tables_that_lack_a_column(engine: Engine) -> None:
    """Tables of an old Nova are named with what they lack, and nothing is stamped."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE host_mappings (id INTEGER PRIMARY KEY, host VARCHAR(255))")
    with pytest.raises(StoreError, match=r"host_mappings .* without cell_id, created_at, updated_at"):
        migrations.sync(engine)
    assert migrations.version(engine) is None


def test_missing_tables_say_what_to_run(engine: Engine) -> None:
    """A store on a database that was never synced says which command makes the tables."""
    with pytest.raises(StoreUnavailable, match="cellmw-manage api_db sync"):
        Store(engine).find_instance("x")


def test_sync_by_a_dry_run(engine: Engine) -> None:
    """A dry run says what a real one would have reached, from wherever it begins, and changes nothing."""
    first = "5c1d0f8e2a47"
    for begin in (None, first, migrations.newest()):
        if begin is not None:
            migrations.sync(engine, begin)
        before = sorted(sa.inspect(engine).get_table_names())
        newest, to_first = migrations.sync(engine, dry_run=True), migrations.sync(engine, first, dry_run=True)
        assert newest == (migrations.newest(), False)
        assert to_first.version == (first if begin != migrations.newest() else begin)
        assert (sorted(sa.inspect(engine).get_table_names()), migrations.version(engine)) == (before, begin)
