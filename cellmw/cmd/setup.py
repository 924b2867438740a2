# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage cell_v2``: a deployment's first cell, in one command."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from cellmw import own_urls
from cellmw.admin import access, discovery, first_cell
from cellmw.cmd import hosts
from cellmw.cmd.arguments import take_transport_url
from cellmw.cmd.cell_urls import CellUrls
from cellmw.cmd.cell_v2 import MapCell0, check_name
from cellmw.cmd.command import Command, Refused, Report, note
from cellmw.cmd.instances import MapInstances
from cellmw.exceptions import CellExists, HostsScattered

if TYPE_CHECKING:
    from oslo_config import cfg

    from cellmw.admin.first_cell import FirstCell
    from cellmw.cell import Cell
    from cellmw.cells import Cells
    from cellmw.cmd.cell_urls import Url

NO_HOSTS = 1
"""The exit code of a setup that finds no host, and so makes no cell."""


class _Setup(Command):
    """What both commands have in common."""

    exit_codes = ((Refused, 1), (CellExists, 2), (HostsScattered, hosts.HOST_REFUSED))

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the message queue."""
        parser = super().get_parser(prog_name)
        take_transport_url(parser, "a template or a reference (default: {})")
        self.take_dry_run(parser)
        return parser

    def set_up(self, cells: Cells, transport: Url, name: str | None, *, dry_run: bool) -> FirstCell:
        """Map the hosts of ``[database] connection``, and say what has come of it."""
        urls_of_cell = CellUrls(self.app.conf)
        database = _database(urls_of_cell, self.app.conf)

        def record() -> Cell | None:
            store = cells.store
            recheck = urls_of_cell.refuse_shared(store.list_cells(), database, transport)
            if dry_run:
                return None
            cell = store.create_cell(
                name=name,
                transport_url=urls_of_cell.protect(transport.stored, store),
                database_connection=urls_of_cell.protect(database.stored, store),
                check=recheck,
            )
            note(f"cell {cell.uuid} is recorded, with the database of [database] connection")
            return cell

        done = first_cell.set_up(
            self.app.conf,
            cells,
            name=name,
            transport_url=transport.complete,
            database_connection=database.complete,
            record=record,
            dry_run=dry_run,
        )
        hosts.remark(done.found)
        mapped = len(done.found.having(discovery.MAPPED))
        if mapped:
            note(f"hosts {'that would be ' if dry_run else ''}mapped to {_named(done.cell)}: {mapped}")
        elif done.found.hosts:
            note("no host was to be mapped")
        elif not done.found.troubles:
            note("no host is in [database] connection yet: run this again when the first one is")
        return done


class MapCellAndHosts(_Setup):
    """Map the hosts of [database] connection to its cell, which is recorded first where it is not yet."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the fields of the record."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--name", metavar="<cell_name>", help="the name of a new cell, for people")
        parser.add_argument("--verbose", action="store_true", help="print the uuid of the cell if hosts were mapped")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Record the cell, and map its hosts."""
        check_name(parsed_args.name)
        transport = CellUrls(self.app.conf).transport(parsed_args.transport_url)
        with access.open_cells(self.app.conf) as cells:
            done = self.set_up(cells, transport, parsed_args.name, dry_run=parsed_args.dry_run)
        lines = []
        if parsed_args.verbose and done.cell is not None and done.found.having(discovery.MAPPED):
            lines = [done.cell.uuid]
        return _report(done, lines, dry_run=parsed_args.dry_run)


class SimpleCellSetup(_Setup):
    """Make one cell of a deployment that has none: cell0, the cell of [database] connection, its hosts, its instances.

    Where all that is there already nothing is changed. The tables of cell0 are not made.
    """

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Record cell0 and the cell, and map what is in it."""
        conf, dry_run = self.app.conf, parsed_args.dry_run
        transport = CellUrls(conf).transport(parsed_args.transport_url)
        _database(CellUrls(conf), conf)
        self._run(MapCell0, database_connection=None, dry_run=dry_run)
        with access.open_cells(conf) as cells:
            if not dry_run:
                self._look_at_cell0(cells)
            done = self.set_up(cells, transport, None, dry_run=dry_run)
        report = _report(done, [], dry_run=dry_run)
        if not done.found.hosts:
            return replace(report, exit_code=report.exit_code or NO_HOSTS)
        if done.cell is None or report.exit_code:
            return report
        instances = self._run(MapInstances, cell_uuid=done.cell.uuid, max_count=None, reset=False, dry_run=dry_run)
        return replace(report, exit_code=instances.exit_code)

    def _run(self, command: type[Command], **arguments: object) -> Report:
        """Run another command with these arguments, and tell what a person would have been shown."""
        report = command(self.app, None).take_action(argparse.Namespace(**arguments))
        for line in report.lines or ():
            note(line)
        return report

    def _look_at_cell0(self, cells: Cells) -> None:
        problem = first_cell.look_at_cell0(self.app.conf, cells)
        if problem is not None:
            note(
                f"{problem}: no instance can be kept there yet; see that the database is there, and make its tables "
                "(Nova: `nova-manage db sync`)"
            )


def _database(urls_of_cell: CellUrls, conf: cfg.ConfigOpts) -> Url:
    """Return the service's own database, which these commands have no option for."""
    if not own_urls.database_connection(conf):
        raise Refused("no database URL: set [database] connection to the one with the hosts")
    return urls_of_cell.database(None)


def _report(done: FirstCell, lines: list[str], *, dry_run: bool) -> Report:
    rows = hosts.rows(done.found.hosts, dry_run=dry_run)
    return Report(hosts.COLUMNS, rows, lines, hosts.exit_code(done.found))


def _named(cell: Cell | None) -> str:
    return "a new cell" if cell is None else f"cell {cell.uuid}"


COMMANDS: dict[str, type[Command]] = {"map_cell_and_hosts": MapCellAndHosts, "simple_cell_setup": SimpleCellSetup}
"""What is here, by the names of its commands."""
