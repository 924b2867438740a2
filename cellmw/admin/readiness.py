# SPDX-License-Identifier: Apache-2.0
"""A deployment as it is configured and recorded -> what keeps this release from going on with it, and what to do.

Only the API database is connected to: whether the cells themselves answer is another question.
"""

from __future__ import annotations

import difflib
import functools
from contextlib import ExitStack
from importlib import metadata
from typing import TYPE_CHECKING, NamedTuple, Self

from oslo_config import cfg
from packaging.requirements import Requirement

from cellmw import conf as options
from cellmw import deploy
from cellmw.admin import doctor
from cellmw.admin.doctor import NO_CELL
from cellmw.admin.doctor import files as doctor_files
from cellmw.admin.doctor import mappings as doctor_mappings
from cellmw.admin.doctor import records as doctor_records
from cellmw.admin.doctor import urls as doctor_urls
from cellmw.cell import CELL0_UUID
from cellmw.cells_file import CellsFile
from cellmw.deadline import after
from cellmw.exceptions import ConfigError, DeadlineExceeded, StoreUnavailable
from cellmw.store import migrations

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cellmw.cell import Cell
    from cellmw.limits import Limits
    from cellmw.store import Store

_EXTRAS = ("cache", "castellan", "graph", "mysql", "nova", "postgresql")
"""What a deployment may have installed along with cellmw."""

_PATIENCE = 10.0
"""Seconds within which the API database has to answer."""

_SYNC = "run `cellmw-manage api_db sync`"


class Finding(NamedTuple):
    """One thing that is not as it should be.

    :ivar text: what it is and what to do, without a full stop
    :ivar stops: whether this release can't go on with it; if not, somebody should have a look
    """

    text: str
    stops: bool = True


class Readiness:
    """The checks of one deployment. Lives as long as the command; close() ends it.

    Each returns what it has found, and nothing where all is well. Those that need the API database raise CellmwError
    where they can't be made.
    """

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        """Connect to nothing yet."""
        options.register_opts(conf)
        self._conf = conf
        self._opened = ExitStack()
        self._silence: StoreUnavailable | None = None

    def close(self) -> None:
        """Hang up."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def configuration(self) -> list[Finding]:
        """Look for options that don't exist any more, and for values that they don't take."""
        found = [*_wrong_values(self._conf), *_unknown_options(self._conf)]
        if any(finding.stops for finding in found):
            return found
        try:
            shared = deploy.shared_mappings(self._conf, deploy.settings(self._conf))
        except ConfigError as error:
            return [*found, Finding(str(error))]
        if shared is not None:
            shared.close()
        return found

    def api_database(self) -> list[Finding]:
        """Look whether it answers, is at the newest revision, and has the tables and columns that this release uses."""
        deadline = after(_PATIENCE)
        try:
            self._answer()
        except StoreUnavailable as error:
            # of anything else the migrations know more
            if isinstance(error.__cause__, DeadlineExceeded):
                raise
        try:
            # a driver that has given up connecting for us would go on for minutes for them: nothing bounds their waits
            return self._limits.crew.run(self._tables, deadline, set(), "its tables")
        except DeadlineExceeded as overdue:
            raise StoreUnavailable(f"the API database does not answer: {overdue}") from overdue

    def _tables(self) -> list[Finding]:
        version, newest = migrations.version(self._store.engine), migrations.newest()
        if version is None:
            return [Finding(f"the API database was never synced: {_SYNC}")]
        if not migrations.is_known(version):
            return [Finding(f"the API database is at {version}, which is of a later release than this: install that")]
        if version != newest:
            return [Finding(f"the API database is at {version}, and this release is for {newest}: {_SYNC}")]
        if missing := migrations.missing(self._store.engine):
            way_out = "restore it from a back-up, or where it is Nova's run `nova-manage api_db sync`"
            return [Finding(f"the API database lacks {', '.join(missing)}: {way_out}")]
        return []

    def cells(self) -> list[Finding]:
        """Look whether there are cells at all."""
        recorded = {cell.uuid for cell in self._cells}
        found = []
        if CELL0_UUID not in recorded:
            found.append(Finding("cell0 is not recorded: run `cellmw-manage cell_v2 map_cell0`"))
        if not recorded - {CELL0_UUID}:
            found.append(Finding("no cell but cell0 is recorded: run `cellmw-manage cell_v2 create_cell`"))
        return found

    def records(self) -> list[Finding]:
        """Look whether the URLs of each cell can be made out, and are ones that the libraries can use."""
        path = deploy.settings(self._conf).cells_config
        way_out = path and f"correct it in {path}"
        return [_ours(found, way_out) for cell in self._resolved for found in doctor_urls.examine(cell, self._conf)]

    def places(self) -> list[Finding]:
        """Look whether two cells lead to the same place; those that can't be made out lead nowhere."""
        return [_ours(found) for found in doctor_records.compare(self._resolved, {})]

    def mappings(self) -> list[Finding]:
        """Look whether all instances and hosts are mapped to cells that are recorded."""
        cells = self._cells
        return [_ours(found) for found in doctor_mappings.examine(cells, doctor_mappings.read(self._store))]

    def libraries(self) -> list[Finding]:
        """Look whether the libraries are installed in versions that this release was tested with."""
        found = []
        for requirement in map(Requirement, metadata.requires("cellmw") or ()):
            extras = [extra for extra in ("", *_EXTRAS) if _is_for(requirement, extra)]
            if not extras:
                continue
            try:
                version = metadata.version(requirement.name)
            except metadata.PackageNotFoundError:
                if "" in extras:
                    found.append(Finding(f"{requirement.name} is not installed: install {requirement}", stops=False))
                continue
            if not requirement.specifier.contains(version, prereleases=True):
                text = f"{requirement.name} {version} was not tested with this release: install {requirement.name}"
                found.append(Finding(f"{text}{requirement.specifier}", stops=False))
        return found

    @functools.cached_property
    def _limits(self) -> Limits:
        return deploy.limits(deploy.settings(self._conf))

    @functools.cached_property
    def _store(self) -> Store:
        return self._opened.enter_context(deploy.store(self._conf, self._limits))

    def _answer(self) -> list[Cell]:
        """Return the records of the API database; where it gave no answer once it is not asked again."""
        if self._silence is not None:
            raise self._silence
        try:
            return self._store.list_cells(after(_PATIENCE))
        except StoreUnavailable as error:
            self._silence = error
            raise

    @functools.cached_property
    def _cells(self) -> list[Cell]:
        """The cells, as a service would read them."""
        path = deploy.settings(self._conf).cells_config
        recorded = self._answer()
        return CellsFile(path).list_cells() if path else recorded

    @functools.cached_property
    def _resolved(self) -> list[Cell]:
        resolver = deploy.resolver(self._conf, deploy.settings(self._conf))
        return [resolver.resolve(cell) for cell in self._cells]


def _ours(found: doctor.Finding, way_out: str | None = None) -> Finding:
    """Say in one line what the doctor says, too."""
    whose = "" if found.cell == NO_CELL else f"cell {found.cell}: "
    return Finding(f"{whose}{found.what}: {way_out or found.todo}", stops=found.severity is doctor.Severity.ERROR)


def _is_for(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _wrong_values(conf: cfg.ConfigOpts) -> Iterator[Finding]:
    """Read each option once."""
    wrong = False
    for group, opts in options.list_opts():
        for opt in opts:
            try:
                conf[group][opt.dest]
            except (ValueError, cfg.ConfigFileValueError) as error:
                wrong = True
                yield Finding(f"[{group}] {opt.name}: {error}")
    if not wrong:
        try:
            options.settings(conf)
        except ConfigError as error:
            yield Finding(str(error))


def _unknown_options(conf: cfg.ConfigOpts) -> Iterator[Finding]:
    """Look through the files for what nobody reads: oslo.config passes over it without a word."""
    known = {group: {opt.dest for opt in opts} for group, opts in options.list_opts()}
    renamed = {
        (old.group or group, old.name): f"[{group}] {opt.name}"
        for group, opts in options.list_opts()
        for opt in opts
        for old in opt.deprecated_opts
    }
    for group, name in dict.fromkeys(_written(conf)):
        if (group, name) in renamed:
            yield Finding(f"[{group}] {name} is called {renamed[group, name]} now: rename it", stops=False)
        elif group in known and group != options.API_DATABASE and name not in known[group]:
            similar = difflib.get_close_matches(name, known[group], n=1)
            way_out = f"rename it to {similar[0]}, or remove it" if similar else "remove it"
            yield Finding(f"[{group}] {name} is no option of this release, and has no effect: {way_out}", stops=False)


def _written(conf: cfg.ConfigOpts) -> Iterable[tuple[str, str]]:
    """Give the group and the name of each line in the files that the configuration was read from."""
    for path in doctor_files.paths_of(conf):
        sections: dict[str, dict[str, object]] = {}
        cfg.ConfigParser(path, sections).parse()
        for section, lines in sections.items():
            yield from ((section.lower(), name) for name in lines)
