# SPDX-License-Identifier: Apache-2.0
"""Configuration -> the objects that it describes: the only place where options become arguments."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from cellmw import conf as options
from cellmw import engines
from cellmw.cells import Cells
from cellmw.cells_file import CellsFile
from cellmw.credentials import Credentials
from cellmw.exceptions import ConfigError, UpcallForbidden
from cellmw.handles import Handles
from cellmw.holds import Holds
from cellmw.limits import Limits
from cellmw.local import LocalCell, LocalMappings, logged
from cellmw.mapping import Mappings
from cellmw.pool import Pool
from cellmw.records import Records
from cellmw.resolver import Resolver
from cellmw.shared_cache import open_shared
from cellmw.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from oslo_config import cfg

    from cellmw.cell import Cell
    from cellmw.records import Source
    from cellmw.shared_cache import SharedMappings


def store(conf: cfg.ConfigOpts, limits: Limits | None = None) -> Store:
    """Make the store that ``[api_database] connection`` names; nothing is connected to yet.

    :param limits: what bounds its waits, for a service; an operator's command may take its time
    :raises ConfigError: if the option is not set, or its URL can't be used
    :raises UpcallForbidden: with ``role = cell``
    """
    options.register_opts(conf)
    if conf[options.GROUP].role == "cell":
        raise logged(UpcallForbidden("the API database"))
    url = conf[options.API_DATABASE].connection
    if not url:
        raise ConfigError("[api_database] connection is not set: set it to the URL of the API database")
    engine_options = options.engine_options(conf, options.API_DATABASE)
    try:
        make_engine = functools.partial(engines.make_engine, url, engine_options, pre_ping=False)
        return Store(make_engine(), limits, make_engine)
    except ConfigError as error:
        raise ConfigError(f"[api_database] connection: {error}") from error


def settings(conf: cfg.ConfigOpts, overrides: Mapping[str, str] | None = None) -> options.Settings:
    """Return the checked values of ``[cellmw]``, with a filter's ini section on top.

    :raises ConfigError: if a key is not an option, or a value not one that the option takes
    """
    options.register_opts(conf)
    return options.settings(conf, overrides)


def limits(chosen: options.Settings) -> Limits:
    """Make what bounds all that a filter with these settings may wait for."""
    return Limits(
        patience=chosen.request_deadline,
        probe_interval=chosen.probe_interval,
        max_connections=chosen.max_connections_per_cell,
    )


def open_handles(
    cell: Cell, conf: cfg.ConfigOpts, limits: Limits, *, allowed_remote_exmods: Sequence[str] = ()
) -> Handles:
    """Open the handles of this cell as ``[cellmw_database]`` has them; nothing is connected to yet.

    :param allowed_remote_exmods: modules whose exceptions come back from remote calls as themselves
    :raises CellMisconfigured: if the cell's URLs can't be used
    """
    group = conf[options.CELL_DATABASE]
    return Handles.open(
        cell,
        conf,
        options.engine_options(conf, options.CELL_DATABASE),
        replica=replica_of(cell, conf),
        synchronous_reader=group.synchronous_reader,
        limits=limits,
        allowed_remote_exmods=allowed_remote_exmods,
    )


def replica_of(cell: Cell, conf: cfg.ConfigOpts) -> str | None:
    """Return the URL of the read replica of this cell's database, None where it has none."""
    replicas = conf[options.CELL_DATABASE].slave_connections
    url: str | None = replicas.get(cell.name) or replicas.get(cell.uuid)
    return url


def resolver(conf: cfg.ConfigOpts, chosen: options.Settings) -> Resolver:
    """Make what turns recorded cells into ones that can be opened; no key is read yet."""
    return Resolver(conf, Credentials(chosen.credential_keys, conf))


def shared_mappings(conf: cfg.ConfigOpts, chosen: options.Settings) -> SharedMappings | None:
    """Make the shared cache where ``[cellmw] shared_cache`` says so; nothing is connected to yet.

    :raises ConfigError: if ``[cache]`` describes none that can be shared, or something is not set or not installed
    """
    if not chosen.shared_cache:
        return None
    return open_shared(
        conf,
        protection=chosen.shared_cache_protection,
        secret=chosen.shared_cache_secret,
        lifetime=chosen.mapping_ttl + chosen.stale_ttl,
    )


def cells(
    conf: cfg.ConfigOpts,
    chosen: options.Settings | None = None,
    *,
    api_database: Callable[[cfg.ConfigOpts, Limits], Store] = store,
    opener: Callable[[Cell, cfg.ConfigOpts, Limits], Handles] | None = None,
    shared: Callable[[cfg.ConfigOpts, options.Settings], SharedMappings | None] = shared_mappings,
    operators: bool = False,
) -> Cells:
    """Make the Cells that the configuration describes; nothing is connected to yet.

    :param chosen: the values to go by where they are not just those of ``[cellmw]``
    :param api_database: makes the store, which is closed with the cells
    :param opener: opens the handles of each cell, by default :func:`open_handles`
    :param shared: makes the cache that workers share
    :param operators: whether they are for an operator's command, which reaches what requests are kept away from
    :raises ConfigError: if an option is not set that has to be, or has a value that it does not take
    """
    chosen = chosen or settings(conf)
    bounds = limits(chosen)
    opener = opener or functools.partial(open_handles, allowed_remote_exmods=chosen.allowed_remote_exmods)
    behind: Store | LocalCell
    source: Source
    if chosen.role == "cell":
        source = behind = LocalCell(conf, name=chosen.local_cell_name, uuid=chosen.local_cell_uuid)
        resolve = _as_it_is
        holds = Holds(None)
        mappings: Mappings = LocalMappings(behind)
    else:
        behind = api_database(conf, bounds)
        source = CellsFile(chosen.cells_config) if chosen.cells_config else behind
        resolve = resolver(conf, chosen).resolve
        holds = Holds(None if operators else behind)
        mappings = Mappings(
            behind,
            ttl=chosen.mapping_ttl,
            size=chosen.mapping_cache_size,
            stale_ttl=chosen.stale_ttl,
            shared=shared(conf, chosen),
            holds=holds,
        )
    pool = Pool(
        lambda cell: opener(cell, conf, bounds),
        holds=holds,
        max_open_cells=chosen.max_open_cells,
        idle_timeout=chosen.idle_timeout,
        drain_timeout=chosen.drain_timeout,
    )
    return Cells(
        behind,
        mappings,
        pool,
        Records(source, pool.follow, resolve),
        holds=holds,
        crew=bounds.crew,
        refresh_interval=chosen.refresh_interval,
        max_leases_per_cell=chosen.max_leases_per_cell,
        refuses_down=chosen.down_cell == "503",
    )


def _as_it_is(cell: Cell) -> Cell:
    """A cell-level service has the URLs of its cell in its own configuration."""
    return cell
