# SPDX-License-Identifier: Apache-2.0
"""Configuration -> all findings: the cells are read, everything is asked at the same time, what came is compared."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from oslo_config import cfg

from cellmw import deploy
from cellmw.admin.cell_tables import CellTables
from cellmw.admin.doctor import (
    api_database,
    brokers,
    certificates,
    databases,
    files,
    mappings,
    records,
    secrets,
    urls,
)
from cellmw.admin.doctor import probe as probing
from cellmw.admin.doctor.finding import NO_CELL, Finding, Severity
from cellmw.admin.doctor.probe import Probe
from cellmw.cell import Cell, Unresolved
from cellmw.cells_file import CellsFile
from cellmw.exceptions import CellMisconfigured, UrlRefused
from cellmw.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from cellmw.store import Store

CHECKS = (
    api_database.CHECK,
    api_database.CLOCK,
    api_database.DRAINS,
    records.CHECK,
    urls.CHECK,
    records.OVERLAPS,
    brokers.CHECK,
    brokers.CLUSTERS,
    databases.CHECK,
    certificates.CHECK,
    databases.TABLES,
    mappings.CHECK,
    mappings.HOSTS,
    files.CHECK,
    files.OPTIONS,
    secrets.CHECK,
)
"""The names of all checks. What each looks at is in the manual."""


@dataclass(frozen=True)
class Diagnosis:
    """What an examination has found.

    :ivar findings: the worst first
    :ivar checks: how many checks ran
    :ivar cells: how many cells there are
    :ivar seconds: how long it took
    """

    findings: Sequence[Finding]
    checks: int
    cells: int
    seconds: float

    @property
    def worst(self) -> Severity:
        """How bad the worst finding is."""
        return max((finding.severity for finding in self.findings), default=Severity.INFO)


class Examination:
    """One look at the whole deployment. Lives as long as the command."""

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        *,
        timeout: float = 5.0,
        checks: Collection[str] = CHECKS,
        service_configs: Sequence[str] = (),
    ) -> None:
        """Look at nothing yet.

        :param timeout: seconds that each server has for its answer
        :param checks: the names of those that are to be done
        :param service_configs: configuration files of services
        :raises ConfigError: if the configuration is of no use
        """
        self._conf = conf
        self._settings = deploy.settings(conf)
        self._limits = Limits(patience=timeout)
        self._wanted = frozenset(checks)
        self._service_configs = service_configs
        self._tables = CellTables(conf)
        self._notebook = databases.Notebook()
        self._mapped: list[mappings.Mapped] = []
        self._ran = 0

    def run(self) -> Diagnosis:
        """Do everything, which takes little more than ``timeout`` seconds, however many servers give no answer.

        :raises ConfigError: if the API database is not configured
        :raises UpcallForbidden: with ``role = cell``
        """
        begun = monotonic()
        with deploy.store(self._conf, self._limits) as store:
            recorded: list[Cell] = []
            unread = [*self._run([self._reading(store, recorded)])]
            found = [*unread, *self._of_secrets()]
            cells: list[Cell] = []
            if not unread:
                cells = self._resolve(recorded)
                found += self._of_records(recorded, cells)
                found += self._ask([*self._of_store(store, cells), *self._of_cells(cells)])
                found += self._of_all(cells)
                found += self._of_services(cells)
        found.sort(key=lambda finding: (-finding.severity, finding.cell, CHECKS.index(finding.check)))
        return Diagnosis(found, self._ran, len(cells), monotonic() - begun)

    def _reading(self, store: Store, recorded: list[Cell]) -> Probe:
        source = CellsFile(self._settings.cells_config) if self._settings.cells_config else store

        def read() -> Iterable[Finding]:
            recorded.extend(source.list_cells())
            return ()

        return Probe([api_database.CHECK], NO_CELL, "the records of the cells", read)

    def _resolve(self, recorded: Sequence[Cell]) -> list[Cell]:
        """Make out the URLs of all cells, at the same time: what they are looked up in may be slow."""
        resolver = deploy.resolver(self._conf, self._settings)
        resolved: dict[int, Cell] = {}

        def resolve(cell: Cell) -> Iterable[Finding]:
            resolved[cell.id] = resolver.resolve(cell)
            return ()

        probes = [Probe([urls.CHECK], str(cell), "its URLs", partial(resolve, cell)) for cell in recorded]
        for _ in self._run(probes):
            """What was not made out is said of the cell that has it."""
        return [resolved.get(cell.id) or _unresolved(cell) for cell in recorded]

    def _of_secrets(self) -> Iterator[Finding]:
        if self._does(secrets.CHECK):
            paths = [*files.paths_of(self._conf), *self._service_configs]
            if self._settings.cells_config:
                paths.append(self._settings.cells_config)
            yield from secrets.examine_keys(self._settings.credential_keys)
            yield from secrets.examine_files(paths)

    def _of_store(self, store: Store, cells: Sequence[Cell]) -> Iterator[Probe]:
        name = "the API database"
        yield Probe([api_database.CHECK], NO_CELL, name, partial(api_database.examine, store))
        yield Probe([api_database.CLOCK], NO_CELL, name, partial(api_database.compare_clocks, store))
        yield Probe([api_database.DRAINS], NO_CELL, name, lambda: api_database.examine_holds(cells, store.list_held()))

        def read_mapped() -> Iterator[Finding]:
            mapped = mappings.read(store)
            self._mapped.append(mapped)
            return mappings.examine(cells, mapped)

        yield Probe([mappings.CHECK, mappings.HOSTS], NO_CELL, name, read_mapped)

    def _of_cells(self, cells: Iterable[Cell]) -> Iterator[Probe]:
        """Give what there is to ask of the servers of each cell, as far as its URLs are of any use."""
        for cell in cells:
            with contextlib.suppress(CellMisconfigured, UrlRefused):
                if cell.has_transport:
                    yield from brokers.probes(str(cell), cell.reveal_transport_url(), self._conf, self._limits)
            with contextlib.suppress(CellMisconfigured, UrlRefused):
                urls.refuse_useless(cell)
                yield from databases.probes(cell, self._conf, self._limits, self._tables, self._notebook)

    def _of_records(self, recorded: Sequence[Cell], cells: Sequence[Cell]) -> Iterator[Finding]:
        if self._does(records.CHECK):
            yield from records.examine(cells)
        # those of a file nobody encrypts; who can read it is looked at with the other files
        if not self._settings.cells_config and self._does(secrets.CHECK):
            yield from secrets.examine_records(recorded, self._settings.credential_keys)
        if self._does(urls.CHECK):
            for cell in cells:
                yield from urls.examine(cell, self._conf)

    def _of_all(self, cells: Sequence[Cell]) -> Iterator[Finding]:
        """Compare what was found out."""
        if self._does(records.OVERLAPS):
            yield from records.compare(cells, self._notebook.servers.copy())
        for mapped in self._mapped[:1]:
            if self._does(mappings.CHECK):
                yield from mappings.compare_instances(cells, mapped, self._notebook.living.copy())
            if self._does(mappings.HOSTS):
                yield from mappings.compare_hosts(cells, mapped, self._notebook.hosts.copy())

    def _of_services(self, cells: Sequence[Cell]) -> Iterator[Finding]:
        for path in self._service_configs:
            try:
                service = files.read(path)
            except files.UNREADABLE as error:
                yield files.unreadable(path, error)
                continue
            if self._does(files.CHECK):
                yield from service.find_cell(cells)
            if self._does(files.OPTIONS):
                yield from service.examine_options(cells)
        if self._does(files.OPTIONS):
            yield from files.of_configuration(self._conf).examine_options(cells)

    def _does(self, *checks: str) -> bool:
        """Tell whether one of these is to be done, and count it if so."""
        done = not self._wanted.isdisjoint(checks)
        self._ran += done
        return done

    def _ask(self, probes: Iterable[Probe]) -> Iterator[Finding]:
        return self._run([probe for probe in probes if self._does(*probe.checks)])

    def _run(self, probes: Sequence[Probe]) -> Iterator[Finding]:
        return probing.run(probes, self._wanted, self._limits.crew, self._limits.patience)


def _unresolved(cell: Cell) -> Cell:
    unknown = Unresolved("its URLs could not be looked up, or not in time")
    return Cell(cell.id, cell.uuid, cell.name, cell.disabled, unknown, unknown)
