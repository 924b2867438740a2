# SPDX-License-Identifier: Apache-2.0
"""What the configuration describes, made."""

from __future__ import annotations

import traceback
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from oslo_config import cfg
from sqlalchemy import pool

from cellmw import deploy
from cellmw.conf import Settings
from cellmw.exceptions import ConfigError, InstanceNotMapped

if TYPE_CHECKING:
    from pathlib import Path

    from cellmw.cell import Cell
    from cellmw.cells import Cells
    from cellmw.handles import Handles
    from cellmw.limits import Limits
    from cellmw.store import Store

SECRET = "s3" + "cret"  # in two parts: a traceback quotes the line
UUID = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9"


def test_store(conf: cfg.ConfigOpts, store: Store, cell1: Cell) -> None:
    """The store is the one that [api_database] connection names."""
    with deploy.store(conf) as made:
        assert made.list_cells() == [cell1]


def test_store_connects_to_nothing(conf: cfg.ConfigOpts, tmp_path: Path) -> None:
    """Making the store connects to nothing."""
    conf.set_override("connection", f"sqlite:///{tmp_path}/new.sqlite", group="api_database")
    deploy.store(conf).close()
    assert list(tmp_path.iterdir()) == []


def test_store_does_not_ping(conf: cfg.ConfigOpts) -> None:
    """Connections to the API database are not tested before each look-up: the store tries again instead."""
    conf.set_override("connection", "sqlite:///file", group="api_database")
    with deploy.store(conf) as made:
        assert not made.engine.pool._pre_ping


def test_store_pool_options(conf: cfg.ConfigOpts) -> None:
    """The options of [api_database] are those of the store's pool."""
    conf.set_override("connection", "sqlite:///file", group="api_database")
    conf.set_override("max_pool_size", 7, group="api_database")
    with deploy.store(conf) as made:
        assert isinstance(made.engine.pool, pool.QueuePool)
        assert made.engine.pool.size() == 7


@pytest.mark.parametrize("make", [deploy.store, deploy.cells])
def test_no_connection(conf: cfg.ConfigOpts, make: object) -> None:
    """An API database that is not configured is an error that names the option."""
    with pytest.raises(ConfigError, match=r"\[api_database\] connection is not set"):
        make(conf)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (SECRET, "is not one that SQLAlchemy can read"),
        (f"nosuch://u:{SECRET}@h/d", "no SQLAlchemy dialect is installed for 'nosuch' databases"),
        (f"mysql+pymysql://u:{SECRET}@h:port/d", "is not one that SQLAlchemy can read"),
    ],
    ids=["no URL", "unknown dialect", "port that is none"],
)
def test_bad_connection(conf: cfg.ConfigOpts, url: str, reason: str) -> None:
    """A URL that can't be used is an error that names the option; its whole traceback shows nothing secret."""
    conf.set_override("connection", url, group="api_database")
    with pytest.raises(ConfigError, match=r"^\[api_database\] connection: ") as caught:
        deploy.store(conf)
    assert reason in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_unregistered_configuration(tmp_path: Path) -> None:
    """A service hands its configuration over as it is: the options are registered here."""
    file = tmp_path / "service.conf"
    file.write_text(f"[api_database]\nconnection = sqlite:///{tmp_path}/api.sqlite\n[cellmw]\nmapping_ttl = 5\n")
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[str(file)], default_config_dirs=[])
    assert deploy.settings(conf).mapping_ttl == 5.0
    deploy.cells(conf).close()


def test_settings(conf: cfg.ConfigOpts) -> None:
    """The settings are the options, with a filter's section on top."""
    assert isinstance(deploy.settings(conf), Settings)
    assert deploy.settings(conf, {"building": "409"}).building == "409"
    with pytest.raises(ConfigError):
        deploy.settings(conf, {"building": "yes"})


def test_wrong_value(tmp_path: Path) -> None:
    """A value that an option does not take is an error when the cells are made."""
    file = tmp_path / "service.conf"
    file.write_text("[api_database]\nconnection = sqlite://\n[cellmw]\nmapping_ttl = -1\n")
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[str(file)], default_config_dirs=[])
    with pytest.raises(ConfigError, match=r"\[cellmw\]: mapping_ttl"):
        deploy.cells(conf)


def test_cells(cells: Cells, cell1: Cell, cell2: Cell) -> None:
    """The cells are those of the API database, and can be leased."""
    assert cells.all() == [cell1, cell2]
    with cells.lease(cell2.id) as lease:
        assert lease.cell == cell2


def test_cells_connect_to_nothing(conf: cfg.ConfigOpts, tmp_path: Path) -> None:
    """Making the cells reads and connects to nothing."""
    conf.set_override("connection", f"sqlite:///{tmp_path}/new.sqlite", group="api_database")
    deploy.cells(conf).close()
    assert list(tmp_path.iterdir()) == []


def test_pools_of_the_cells(conf: cfg.ConfigOpts, cells: Cells, cell1: Cell) -> None:
    """A cell's pool is as [cellmw_database] says, and not as [api_database] does."""
    with cells.lease(cell1.id) as lease:
        assert (lease.handles.engine.pool.size(), lease.handles.engine.pool._max_overflow) == (5, 10)


@pytest.mark.parametrize("key", ["name", "uuid"])
def test_replicas(conf: cfg.ConfigOpts, cells: Cells, cell1: Cell, cell2: Cell, tmp_path: Path, key: str) -> None:
    """A cell's read replica is configured by the cell's name or uuid; other cells have none."""
    replica = f"sqlite:///{tmp_path}/replica.sqlite"
    conf.set_override("slave_connections", {getattr(cell1, key): replica}, group="cellmw_database")
    with cells.lease(cell1.id) as lease:
        assert str(lease.handles.database.replica.url).endswith("/replica.sqlite")
    with cells.lease(cell2.id) as lease:
        assert lease.handles.database.replica is lease.handles.engine


def test_asynchronous_readers(conf: cfg.ConfigOpts, cells: Cells, cell1: Cell) -> None:
    """Whether readers keep to the database itself is configured."""
    conf.set_override("synchronous_reader", False, group="cellmw_database")
    with cells.lease(cell1.id) as lease:
        assert not lease.handles.database.synchronous_reader


def test_mapping_options(conf: cfg.ConfigOpts, store: Store) -> None:
    """The cache of the mappings is as [cellmw] says."""
    conf.set_override("mapping_ttl", 0.0, group="cellmw")
    conf.set_override("mapping_cache_size", 1, group="cellmw")
    with closing(deploy.cells(conf)) as cells:
        with pytest.raises(InstanceNotMapped):
            cells.locate(UUID)
        store.create_instance(UUID, project_id="project")
        assert cells.locate(UUID).project_id == "project"


def test_chosen_settings(conf: cfg.ConfigOpts, store: Store) -> None:
    """A filter's own settings go before those of the configuration."""
    with closing(deploy.cells(conf, deploy.settings(conf, {"mapping_ttl": "0"}))) as cells:
        with pytest.raises(InstanceNotMapped):
            cells.locate(UUID)
        store.create_instance(UUID, project_id="project")
        assert cells.locate(UUID).project_id == "project"


def test_store_of_the_callers(conf: cfg.ConfigOpts, store: Store, cell1: Cell) -> None:
    """Who has a store already hands it over: it is used, and closed with the cells."""
    conf.clear_override("connection", group="api_database")
    cells = deploy.cells(conf, api_database=lambda *_: store)
    assert cells.all() == [cell1]
    cells.close()
    assert repr(store) == "<Store sqlite closed>"


def test_opener_of_the_callers(conf: cfg.ConfigOpts, store: Store, cell1: Cell) -> None:
    """Who opens cells in a way of his own does it with the same configuration."""
    asked: list[tuple[Cell, cfg.ConfigOpts]] = []

    def opener(cell: Cell, conf: cfg.ConfigOpts, limits: Limits) -> Handles:
        asked.append((cell, conf))
        return deploy.open_handles(cell, conf, limits)

    with closing(deploy.cells(conf, opener=opener)) as cells, cells.lease(cell1.id) as lease:
        assert asked == [(cell1, conf)]
        assert lease.handles.cell == cell1


def test_nothing_is_shared(conf: cfg.ConfigOpts, store: Store, cell1: Cell) -> None:
    """Cells that are made twice share nothing: closing one leaves the other alone."""
    first, second = deploy.cells(conf), deploy.cells(conf)
    with closing(second), second.lease(cell1.id) as lease:
        with first.lease(cell1.id) as other:
            assert other.handles is not lease.handles
        first.close()
        assert "open" in repr(lease.handles)
