# SPDX-License-Identifier: Apache-2.0
"""The options: ``[cellmw]`` and its checked values, ``[api_database]``, ``[cellmw_database]``, ``[cellmw_tables]``.

Only ``[cellmw]`` can also be set in the ini section of a filter. Nothing here reads a file or keeps a value: whoever
registers the options passes the ``ConfigOpts``.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from oslo_config import cfg
from oslo_db import options as oslo_db_options

from cellmw.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

GROUP = "cellmw"
API_DATABASE = "api_database"
CELL_DATABASE = "cellmw_database"
CELL_TABLES = "cellmw_tables"

DEFAULT_CONTEXT_KEY = "cellmw.context"
"""The only environ key under which the filter makes a context where there is none."""

DEFAULT_ROUTES = (
    "/servers/{instance_uuid}",
    "/{project_id}/servers/{instance_uuid}",
    "/{version}/servers/{instance_uuid}",
    "/{version}/{project_id}/servers/{instance_uuid}",
)
"""Where Nova has instances, with and without a project and a version in front."""

CONTEXT_ATTRIBUTES = (
    "auth_token",
    "domain",
    "global_request_id",
    "is_admin",
    "is_admin_project",
    "project",
    "project_domain",
    "project_id",
    "read_only",
    "request_id",
    "resource_uuid",
    "roles",
    "show_deleted",
    "system_scope",
    "user",
    "user_domain",
    "user_identity",
)
"""What oslo.context's own ``to_dict()`` has."""

_CONTEXT_ATTRIBUTES = "context_attributes"

_CELLMW_OPTS = (
    cfg.BoolOpt(
        "enabled",
        default=True,
        help="""
Whether the filter routes requests. Where it is false every request passes through as if the filter were not there, and
uses the service's own database and message queue. Set it to false to take cellmw out of a deployment without editing
its pipeline.
""",
    ),
    cfg.StrOpt(
        "role",
        default="api",
        choices=[
            ("api", "an API-level service: it has the API database and reaches every cell"),
            ("cell", "a cell-level service: it has its own cell, and no API database"),
        ],
        help="""
Where this service stands. A cell-level service, as the metadata API that is run once per cell, lives in the cell of
``[DEFAULT] transport_url`` and ``[database] connection``: every request is aimed at that, without any look-up, and
``[api_database]`` is not used. Whatever wants another cell there, or the API database, gets UpcallForbidden.
""",
    ),
    cfg.StrOpt(
        "local_cell_name",
        default="local",
        help="""
What a cell-level service calls its own cell, in the log and for ``cells.get()``. Set it to the name that the cell has
in its record.
""",
    ),
    cfg.StrOpt(
        "local_cell_uuid",
        default="local",
        help="""
What stands as ``cell_uuid`` on the contexts of a cell-level service. Set it to the uuid of the cell's record, as
``cellmw-manage cell_v2 list_cells`` shows it.
""",
    ),
    cfg.StrOpt(
        "context_key",
        default=DEFAULT_CONTEXT_KEY,
        help="""
The WSGI environ key under which the service keeps the context of a request: ``nova.context`` in Nova's pipeline,
``cinder.context`` in Cinder's. The filter has to stand behind the one that puts the context there; a request without
one is answered with a 500, and the log says so. Only under the default key does the filter make a context of its own,
from the headers that keystonemiddleware sets.
""",
    ),
    cfg.ListOpt(
        "routes",
        default=list(DEFAULT_ROUTES),
        help="""
Templates of the paths that name an instance, separated by commas. A template is matched on whole segments from the
start of PATH_INFO (what the server or a urlmap left of the path), and whatever follows it belongs to the instance too.
Each ends with ``{instance_uuid}``, which stands for the uuid; ``{version}`` stands for a segment like ``v2.1``; any
other name in braces stands for any one segment. The default covers Nova's paths. Change it for a service with other
words, as in ``/volumes/{instance_uuid}``. A path that no template matches passes through untouched.
""",
    ),
    cfg.StrOpt(
        "instance_header",
        help="""
Name of the header that names the instance, for a metadata-style API in whose paths no instance stands:
``X-Instance-ID``. Where it is set, the header is all that counts and ``routes`` are not looked at; a request without it
passes through untouched. The header has to be signed with ``instance_header_secret``: a missing or wrong signature is
answered with a 403, a header that is there twice or is no uuid with a 400. The project that is checked is that of the
header ``X-Tenant-ID``, for admins as well, and other headers that say who the caller is are not believed.
""",
    ),
    cfg.StrOpt(
        "instance_header_secret",
        secret=True,
        help="""
The secret that the proxy in front of a metadata-style API signs the instance header with: HMAC-SHA256 of its value, in
hex, in the header of the same name with ``-Signature`` behind it. In a Nova deployment it is the proxy's
``metadata_proxy_shared_secret``.
""",
    ),
    cfg.BoolOpt(
        "trust_header",
        default=False,
        help="""
Whether the instance header is believed without a signature. Set it to true only where nobody but the proxy can reach
this service: whoever can set the header gets the data of any instance.
""",
    ),
    cfg.StrOpt(
        "unmapped",
        default="404",
        choices=[
            ("404", "answer 404, as for an instance that does not exist"),
            ("pass", "let the request through, untargeted"),
        ],
        help="""
What becomes of a request for an instance that has no mapping. Set it to ``pass`` while a deployment is being moved to
cells and some of its instances are not mapped yet: their requests then go to the service's own database and queue.
""",
    ),
    cfg.StrOpt(
        "building",
        default="pass",
        choices=[
            ("pass", "let the request through, untargeted"),
            ("409", "answer 409: the instance is still being built"),
        ],
        help="""
What becomes of a request for an instance that is mapped to no cell yet because it is still being scheduled. The
default suits a service that keeps such instances in its API database, as Nova keeps its build requests.
""",
    ),
    cfg.BoolOpt(
        "project_check",
        default=True,
        help="""
Whether a request for an instance of another project than the caller's is answered with the 404 of an instance that
does not exist, unless the caller is an admin. Set it to false where the service has rules of its own for who may see
what, as Nova has: its policy then decides.
""",
    ),
    cfg.ListOpt(
        "admin_roles",
        default=["admin"],
        help="""
Roles, separated by commas, whose holders pass the check of the project, in addition to contexts whose ``is_admin`` is
true. Empty it to go by ``is_admin`` alone.
""",
    ),
    cfg.FloatOpt(
        "mapping_ttl",
        default=60.0,
        min=0.0,
        help="""
Seconds for which the cell of an instance is remembered. It bounds how long a worker goes on asking the old cell after
a mapping has changed. Raise it to spare the API database; lower it where instances move between cells. 0 asks the
API database for every request.
""",
    ),
    cfg.FloatOpt(
        "stale_ttl",
        default=3600.0,
        min=0.0,
        help="""
Seconds for which the cell of an instance that was looked up before is still used, beyond ``mapping_ttl``, while the API
database does not answer. Raise it to survive longer outages; lower it where instances often move between cells, since
for so long an instance that has moved may be looked for in its old cell. 0 answers 503 as soon as ``mapping_ttl`` is
over.
""",
    ),
    cfg.IntOpt(
        "mapping_cache_size",
        default=100_000,
        min=1,
        help="""
How many mappings one worker process remembers, at about 500 bytes each; the one looked up first goes first. Raise it
where more instances than this are in use at a time, which shows as a steady rate of look-ups in the API database.
""",
    ),
    cfg.BoolOpt(
        "shared_cache",
        default=False,
        help="""
Whether workers share the mappings that they have looked up, in the memcached or Redis that the options of oslo.cache in
the group ``[cache]`` name; ``cellmw[cache]`` has to be installed. Set it to true where many workers ask the API
database for the same instances, or where a worker that starts while it is down has to know them.
""",
    ),
    cfg.StrOpt(
        "shared_cache_protection",
        default="sign",
        choices=[
            ("sign", "entries are signed: who can write to the cache can't make any"),
            ("encrypt", "entries are encrypted and signed: who can read the cache learns nothing from them either"),
            ("none", "entries are believed as they are"),
        ],
        help="""
How the entries of the shared cache are protected. An entry that is not signed or encrypted with
``shared_cache_secret``, or was made for another instance, counts as missing. Set it to ``none`` only where nobody but
the workers can write to the cache: whoever can decides which cell a request goes to, and for which project.
""",
    ),
    cfg.StrOpt(
        "shared_cache_secret",
        secret=True,
        help="""
The secret that the entries of the shared cache are signed or encrypted with: 32 or more random characters, the same
for all workers. Deployments with different secrets can use one cache without believing each other. To change it, change
it everywhere: workers with the old and with the new one replace each other's entries until then.
""",
    ),
    cfg.StrOpt(
        "cells_config",
        help="""
Path of a JSON or YAML file with the cells, which is read in place of the API database's records of them:
``cellmw-manage cell_v2 export`` writes one. A change of it is followed within ``refresh_interval``; an edit that can't
be read is logged, and the cells stay as they were. Set it where the URLs of the cells are to come from configuration
management and not from a database. The mappings of instances stay in the API database.
""",
    ),
    cfg.StrOpt(
        "credential_keys",
        help="""
Folder with the keys by which the URLs in the cells' records are encrypted: ``cellmw-manage credential setup`` makes it.
Where it is set, records are written encrypted, and those that are not yet are read all the same. Every host on which a
service reads the cells needs the same keys. Nova can't read records that are encrypted.
""",
    ),
    cfg.ListOpt(
        "allowed_remote_exmods",
        default=[],
        help="""
Modules, separated by commas, whose exceptions come back from a remote call as what they were raised as. All others come
back as ``oslo_messaging.RemoteError``, cellmw's own among them. Name the modules with the exceptions of the service:
``nova.exception``.
""",
    ),
    cfg.ListOpt(
        _CONTEXT_ATTRIBUTES,
        default=list(CONTEXT_ATTRIBUTES),
        help="""
What of a context goes along with a message: the keys of its ``to_dict()``, separated by commas. The default is all that
oslo.context itself knows. Add the names of what a service's own context has beyond that and its workers need. A service
that brings a serializer of its own is not concerned.
""",
    ),
    cfg.FloatOpt(
        "refresh_interval",
        default=10.0,
        min=0.1,
        help="""
Seconds within which a worker follows a change of the cell records: a cell whose URLs have changed is opened anew for
the requests that come then, while those that are under way end on what they have. Each worker process reads all cell
records once in this time. Raise it where there are very many workers.
""",
    ),
    cfg.IntOpt(
        "max_open_cells",
        default=0,
        min=0,
        help="""
How many cells a worker process may have open at a time; 0 for any number. A request for one more closes the one that
nobody has used for longest; where requests are under way in all of them it waits for one to be free, and is answered
with a 503 at the end of its time. Set it where there are so many cells that the connections of every worker to each of
them are too many.
""",
    ),
    cfg.FloatOpt(
        "idle_timeout",
        default=0.0,
        min=0.0,
        help="""
Seconds after which a worker closes what it has open of a cell that nobody has used since; 0 for never. It is looked at
once in ``refresh_interval``. Set it where a worker serves many cells, each of them rarely.
""",
    ),
    cfg.IntOpt(
        "max_leases_per_cell",
        default=0,
        min=0,
        help="""
How many requests of a worker process may be in one cell at a time; 0 for any number. One more is answered with a 503 at
once. Set it below the number of the worker's threads, so that a cell that is slow leaves some of them to the others.
""",
    ),
    cfg.FloatOpt(
        "drain_timeout",
        default=5.0,
        min=0.0,
        help="""
Seconds for which a worker that ends waits for the requests that are under way, before it takes their cells away from
them. New requests for an instance are answered with a 503 from then on. Keep it below the time after which the server
kills a worker that does not end.
""",
    ),
    cfg.FloatOpt(
        "request_deadline",
        default=60.0,
        min=0.1,
        help="""
Seconds within which a request for an instance has to be done waiting. It is one deadline for all that it may wait for:
the look-up of the mapping, a cell that is being opened, connecting to a database or a broker, each statement, each
message and each reply. What is not there by then is answered with a 503, and a connection that a frozen server holds is
cut. It ends with the first chunk of the response: after that each single wait has as many seconds of its own. No
statement lasts longer at the server either. Keep it below the time after which the load balancer in front gives up, so
that the client gets an answer that says what happened.
""",
    ),
    cfg.StrOpt(
        "deadline_header",
        help="""
Name of a header by which a client or a proxy says in how many seconds it gives up, as in ``X-Request-Timeout: 2.5``.
The request's deadline is then that, where it is lower than ``request_deadline``. A header that is no number of seconds
is answered with a 400.
""",
    ),
    cfg.StrOpt(
        "down_cell",
        default="503",
        choices=[
            ("503", "answer 503, with Retry-After"),
            ("degrade", "let the request through, with a target that says what is down"),
        ],
        help="""
What becomes of a request for an instance in a cell whose database is known not to answer. Set it to ``degrade`` for a
service that has an answer of its own for that, as Nova has for lists: the target's ``down`` names what is down, and
every use of it raises CellUnavailable at once.
""",
    ),
    cfg.FloatOpt(
        "probe_interval",
        default=2.0,
        min=0.1,
        help="""
Seconds within which a database or a broker that was down is found to be back. While it is down each worker process
connects to it once in this time, outside of requests. Raise it where very many workers would be too many for a server
that is just starting.
""",
    ),
    cfg.IntOpt(
        "max_connections_per_cell",
        default=15,
        min=1,
        help="""
How many connections a worker process may have to the database of a cell, and how many for sending to its queue, on top
of the one on which replies arrive. Whoever needs one more waits for it until its deadline. ``max_pool_size`` and
``max_overflow`` in ``[cellmw_database]`` can only make it fewer. Lower it where workers times cells times this are more
than the servers take.
""",
    ),
)

_SMALLER_FOR_CELLS = {"max_pool_size": 5, "max_overflow": 10, "pool_timeout": 30}
"""A worker holds a pool for every cell that it serves, so each has to be small."""

_REPLICA_OPTS = (
    cfg.DictOpt(
        "slave_connections",
        default={},
        secret=True,
        help="""
Read replicas of the cells' databases: ``NAME:URL`` pairs, separated by commas, with the name or uuid of a cell and a
SQLAlchemy URL without commas. ``database.reader.async_`` reads from the cell's replica, and from its database where it
has none. A replica lags behind: use it for what may be a little old.
""",
    ),
    cfg.BoolOpt(
        "synchronous_reader",
        default=True,
        help="""
Whether ``database.reader`` has to see what ``database.writer`` has committed a moment ago. Set it to false to send all
readers to the replica of their cell.
""",
    ),
)

_ENGINE_OPTIONS = (
    "connection_debug",
    "connection_parameters",
    "connection_recycle_time",
    "connection_trace",
    "max_overflow",
    "max_pool_size",
    "mysql_sql_mode",
    "mysql_wsrep_sync_wait",
    "pool_timeout",
    "sqlite_synchronous",
)
"""oslo.db's options that ``engines.make_engine`` takes: none that names a database, which a cell's record does, and
none that makes a caller wait without a deadline."""


_CELL_TABLES_OPTS = (
    cfg.StrOpt("instances_table", default="instances", help="The table that has a row for each instance."),
    cfg.StrOpt(
        "instance_key",
        default="id",
        help="""
The column by which the rows of instances are read in order. No two of them may have the same value, and no new one may
get a lower one than those before it, so that a command that was interrupted can go on where it was: an integer that
counts up.
""",
    ),
    cfg.StrOpt("instance_uuid", default="uuid", help="The column with the uuid of an instance."),
    cfg.StrOpt("instance_project", default="project_id", help="The column with the project of an instance."),
    cfg.StrOpt(
        "instance_user",
        default="user_id",
        help="The column with the user who has made an instance; empty where there is none.",
    ),
    cfg.StrOpt("instance_host", default="host", help="The column with the host that an instance is on."),
    cfg.StrOpt(
        "instance_deleted",
        default="deleted",
        help="""
The column that tells whether an instance is deleted: it is where there is anything but NULL, 0, false, an empty text or
``False``. Empty where rows of deleted instances are removed.
""",
    ),
    cfg.StrOpt(
        "instance_hidden",
        default="hidden",
        help="""
The boolean column that tells whether a row is the copy of an instance that is on its way between two cells, and counts
as none; empty where there is no such thing.
""",
    ),
    cfg.StrOpt("hosts_table", default="compute_nodes", help="The table that has rows for each host."),
    cfg.StrOpt("host_name", default="host", help="The column with the name of a host, as messages are sent to it."),
    cfg.StrOpt(
        "host_mapped",
        default="mapped",
        help="""
The column that says whether a host has been discovered, as 0 or 1, which is kept up for Nova's own discovery; empty
where there is none. Here all hosts are looked at each time.
""",
    ),
    cfg.StrOpt(
        "host_deleted",
        default="deleted",
        help="The column that tells whether a host is deleted, as ``instance_deleted`` does of an instance.",
    ),
    cfg.StrOpt("services_table", default="services", help="The table that has a row for each service."),
    cfg.StrOpt("service_host", default="host", help="The column with the name of the host of a service."),
    cfg.StrOpt("service_binary", default="binary", help="The column that tells which service it is."),
    cfg.StrOpt(
        "service_deleted",
        default="deleted",
        help="The column that tells whether a service is deleted, as ``instance_deleted`` does of an instance.",
    ),
    cfg.StrOpt(
        "worker_binary",
        default="nova-compute",
        help="What stands in ``service_binary`` of the services that instances run by.",
    ),
)
"""Where the operator's commands find instances and hosts in the cells' databases."""


def _cell_database_opts() -> list[cfg.Opt]:
    opts = [copy.copy(opt) for opt in oslo_db_options.database_opts if opt.name in _ENGINE_OPTIONS]
    for opt in opts:
        opt.default = _SMALLER_FOR_CELLS.get(opt.name, opt.default)
    return [*opts, *_REPLICA_OPTS]


def names() -> set[str]:
    """Return the names of the options of ``[cellmw]``."""
    return {opt.name for opt in _CELLMW_OPTS}


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """Return every option by its group, as oslo.config's sample and documentation generators want them."""
    return [
        (GROUP, list(_CELLMW_OPTS)),
        (API_DATABASE, list(oslo_db_options.database_opts)),
        (CELL_DATABASE, _cell_database_opts()),
        (CELL_TABLES, list(_CELL_TABLES_OPTS)),
    ]


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register every option; one that the surrounding service has registered already is used as it is."""
    for group, opts in list_opts():
        for opt in opts:
            try:
                conf.register_opt(opt, group=group)
            except cfg.DuplicateOptError:
                continue


def engine_options(conf: cfg.ConfigOpts, group: str) -> dict[str, Any]:
    """Return what a database group says of its engine, as keyword arguments for ``engines.make_engine``."""
    values = conf[group]
    return {name: values[name] for name in _ENGINE_OPTIONS if name in values}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The values of ``[cellmw]``, checked. Lives as long as the filter; the fields are the options."""

    enabled: bool
    role: str
    local_cell_name: str
    local_cell_uuid: str
    context_key: str
    routes: tuple[str, ...]
    instance_header: str | None
    instance_header_secret: str | None = field(repr=False)
    trust_header: bool
    unmapped: str
    building: str
    project_check: bool
    admin_roles: frozenset[str]
    mapping_ttl: float
    stale_ttl: float
    mapping_cache_size: int
    shared_cache: bool
    shared_cache_protection: str
    shared_cache_secret: str | None = field(repr=False)
    cells_config: str | None
    credential_keys: str | None
    allowed_remote_exmods: tuple[str, ...]
    context_attributes: frozenset[str]
    refresh_interval: float
    max_open_cells: int
    idle_timeout: float
    max_leases_per_cell: int
    drain_timeout: float
    request_deadline: float
    deadline_header: str | None
    down_cell: str
    probe_interval: float
    max_connections_per_cell: int


def settings(conf: cfg.ConfigOpts, overrides: Mapping[str, str] | None = None) -> Settings:
    """Read ``[cellmw]``, with a filter's ini section on top.

    :param conf: where :func:`register_opts` has been called
    :param overrides: option name -> its value as text
    :raises ConfigError: if a key is not an option, or a value not one that the option takes
    """
    overrides = overrides or {}
    known = {opt.name: opt for opt in _CELLMW_OPTS}
    if unknown := sorted(overrides.keys() - known.keys()):
        raise ConfigError(
            f"[filter] section: unknown option {_quoted(unknown)}; the filter takes {_quoted(sorted(known))}"
        )
    if _CONTEXT_ATTRIBUTES in overrides:
        raise ConfigError(
            f"[filter] section: {_CONTEXT_ATTRIBUTES}: it is for the clients and servers of the service, not for "
            f"the filter: set it in [{GROUP}] of the configuration file"
        )
    values: dict[str, Any] = {}
    for name, opt in known.items():
        try:
            values[name] = opt.type(overrides[name]) if name in overrides else conf[GROUP][name]
            if isinstance(values[name], float) and not math.isfinite(values[name]):
                raise ValueError(f"{values[name]} is no number of seconds")
        except (ValueError, cfg.ConfigFileValueError) as wrong:
            section = "[filter] section" if name in overrides else f"[{GROUP}]"
            raise ConfigError(f"{section}: {name}: {wrong}") from wrong
    for module in values["allowed_remote_exmods"]:
        if module.partition(".")[0] == "cellmw":
            raise ConfigError(
                f"allowed_remote_exmods: {module!r} can't be among them: what cellmw raises is about the process that "
                "raises it, and comes back as oslo_messaging.RemoteError"
            )
    values["routes"] = tuple(values["routes"])
    values["allowed_remote_exmods"] = tuple(values["allowed_remote_exmods"])
    values["context_attributes"] = frozenset(values["context_attributes"])
    values["admin_roles"] = frozenset(values["admin_roles"])
    return Settings(**values)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
