# SPDX-License-Identifier: Apache-2.0
"""Configuration files of services -> which cell each belongs to, and what it says that does not go with several cells.

They are read as files: no code of the service is imported, and what else stands in them is not looked at.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from oslo_config import cfg

from cellmw import conf as options
from cellmw import own_urls, urls
from cellmw.admin.doctor.finding import NO_CELL, Finding, Severity
from cellmw.cell import CELL0_UUID
from cellmw.exceptions import CellMisconfigured, UrlRefused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cellmw.cell import Cell

CHECK = "services"
OPTIONS = "options"

UNREADABLE = (cfg.Error, OSError, RecursionError, ValueError)
"""What is raised where a file can't be read, is no text, or has a value that names, with ``$``, what is not there."""

_TRANSPORT = "[DEFAULT] transport_url"
_DATABASE = "[database] connection"

_RECORD = (
    "set it to what a record has (`cellmw-manage cell_v2 list_cells`), or record the cell: "
    "`cellmw-manage cell_v2 create_cell`"
)


class _Wanted(NamedTuple):
    """An option that has to have another value, or had to, where there are several cells.

    :ivar option: as the service has it
    :ivar value: what it has to be
    :ivar in_cells: whether that is so in the cells alone
    """

    group: str
    option: cfg.Opt
    value: object
    in_cells: bool
    severity: Severity
    why: str


_WANTED = (
    _Wanted(
        "filter_scheduler",
        cfg.BoolOpt("track_instance_changes", default=True),
        False,
        in_cells=False,
        severity=Severity.WARNING,
        why="compute services tell the scheduler on their own bus, where nobody listens",
    ),
    _Wanted(
        "workarounds",
        cfg.BoolOpt("disable_group_policy_check_upcall", default=False),
        True,
        in_cells=True,
        severity=Severity.WARNING,
        why="a compute service looks for the server group in the API database, which a cell can't reach",
    ),
    _Wanted(
        "cinder",
        cfg.BoolOpt("cross_az_attach", default=True),
        True,
        in_cells=False,
        severity=Severity.WARNING,
        why="a compute service looks for the zone of its host in the API database, which a cell can't reach",
    ),
    _Wanted(
        "scheduler",
        cfg.IntOpt("max_attempts", default=3),
        1,
        in_cells=False,
        severity=Severity.INFO,
        why="before Queens a build can't be tried on another host of a cell; since then nothing has to be done",
    ),
)


class Service:
    """What one configuration says. Lives as long as the examination.

    :ivar name: what it is called in a finding
    :ivar is_api_level: whether it has the API database
    """

    def __init__(self, name: str, paths: Sequence[str], *, is_whole: bool = True) -> None:
        """Read it.

        :param is_whole: whether it is the service's, so that what is not there has its default
        :raises Exception: one of ``UNREADABLE``, if that can't be done
        """
        self.name = name
        self._is_whole = is_whole
        self._conf = cfg.ConfigOpts()
        self._conf([], default_config_files=list(paths), default_config_dirs=[])
        options.register_opts(self._conf)
        for wanted in _WANTED:
            self._conf.register_opt(wanted.option, group=wanted.group)
        is_cell_level = self._conf[options.GROUP].role == "cell"
        self.is_api_level = not is_cell_level and bool(self._conf[options.API_DATABASE].connection)

    def find_cell(self, cells: Sequence[Cell]) -> Iterator[Finding]:
        """Tell which cell it belongs to, if that is one, and one only."""
        if self.is_api_level:
            return
        found = []
        for option, read_url, of_url in (
            (_TRANSPORT, own_urls.transport_url, _by_transport),
            (_DATABASE, own_urls.database_connection, _by_database),
        ):
            try:
                url = read_url(self._conf)
            except UNREADABLE:
                what = f"{self.name}: what its {option} names with a $ is not known here, so neither is its cell"
                todo = "give a copy in which it is written out; a $ that names nothing is written $$"
                yield Finding(Severity.WARNING, NO_CELL, CHECK, what, todo)
                continue
            if url is None:
                if option == _TRANSPORT:
                    what = f"{self.name} sets no {option}, so it uses whatever runs on its own machine"
                    yield Finding(Severity.WARNING, NO_CELL, CHECK, what, _RECORD)
                continue
            try:
                cell = of_url(cells, url)
            except UrlRefused as refused:
                what = f"{self.name}: its {option} can't be read: {refused}"
                yield Finding(Severity.ERROR, NO_CELL, CHECK, what, "write it as a URL")
                continue
            if cell is None:
                what = f"{self.name}: its {option} leads to none of the recorded cells"
                yield Finding(Severity.ERROR, NO_CELL, CHECK, what, _RECORD)
            else:
                found.append(cell)
        yield from self._belongs(found)

    def _belongs(self, found: Sequence[Cell]) -> Iterator[Finding]:
        if len({cell.id for cell in found}) > 1:
            queue, database = found
            what = f"{self.name} has the message queue of cell {queue} and the database of cell {database}"
            yield Finding(Severity.ERROR, NO_CELL, CHECK, what, "set both to those of the same cell")
        elif found:
            what = f"{self.name} belongs to it"
            yield Finding(Severity.INFO, str(found[0]), CHECK, what, "nothing, if that is where it should be")

    def examine_options(self, cells: Sequence[Cell]) -> Iterator[Finding]:
        """Tell what it says, or leaves to its default, that does not go with several cells."""
        if sum(cell.uuid != CELL0_UUID for cell in cells) < 2:
            return
        for wanted in _WANTED:
            if wanted.in_cells and self.is_api_level:
                continue
            called = f"[{wanted.group}] {wanted.option.name}"
            should = f"{called} = {str(wanted.value).lower()}"
            try:
                value = self._conf[wanted.group][wanted.option.name]
            except UNREADABLE:
                what = f"{self.name}: {called} has a value that it does not take"
                yield Finding(Severity.ERROR, NO_CELL, OPTIONS, what, f"set {should}")
                continue
            if value != wanted.value and (self._is_whole or self._says(wanted)):
                what = f"{self.name}: {called} is {str(value).lower()}, and there are several cells: {wanted.why}"
                yield Finding(wanted.severity, NO_CELL, OPTIONS, what, f"set {should}")

    def _says(self, wanted: _Wanted) -> bool:
        location: Any = self._conf.get_location(wanted.option.name, wanted.group)
        return location is not None and location.location is not cfg.Locations.opt_default


def read(path: str) -> Service:
    """Read the configuration file of a service.

    :raises Exception: one of ``UNREADABLE``, if that can't be done
    """
    return Service(path, [path])


def of_configuration(conf: cfg.ConfigOpts) -> Service:
    """Return what our own configuration says: the commands' own file need not be that of a service."""
    return Service("the configuration", paths_of(conf), is_whole=False)


def paths_of(conf: cfg.ConfigOpts) -> list[str]:
    """Return the files that a configuration was read from."""
    folders = conf.config_dirs or conf.default_config_dirs
    in_folders = [path for folder in folders for path in sorted(Path(folder).expanduser().glob("*.conf"))]
    return [*(conf.config_file or ()), *map(str, in_folders)]


def unreadable(path: str, error: Exception) -> Finding:
    """Return what is to be said of a file that can't be read. What the library says can quote a line of it."""
    what = f"{path} can't be read as a configuration file: {type(error).__name__}"
    return Finding(Severity.ERROR, NO_CELL, CHECK, what, "name a file that is there, in the form of oslo.config's")


def _by_transport(cells: Sequence[Cell], url: str) -> Cell | None:
    place = urls.transport_place(url)
    return next((cell for cell in cells if place & _transport_place(cell)), None)


def _by_database(cells: Sequence[Cell], url: str) -> Cell | None:
    place = urls.database_place(url)
    return next((cell for cell in cells if _database_place(cell) == place), None)


def _transport_place(cell: Cell) -> frozenset[tuple[str, int, str]]:
    try:
        return urls.transport_place(cell.reveal_transport_url())
    except (CellMisconfigured, UrlRefused):
        return frozenset()


def _database_place(cell: Cell) -> tuple[object, ...] | None:
    try:
        return urls.database_place(cell.reveal_database_connection())
    except (CellMisconfigured, UrlRefused):
        return None
