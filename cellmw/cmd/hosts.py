# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage cell_v2``: which hosts are in which cell."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from cellmw.admin import access, discovery
from cellmw.cell import CELL0_UUID
from cellmw.cmd.arguments import take_uuid
from cellmw.cmd.command import ERROR, NAME, Command, Refused, Report, note
from cellmw.exceptions import (
    CellMisconfigured,
    CellNotFound,
    CellUnavailable,
    DeadlineExceeded,
    HostElsewhere,
    HostInUse,
    HostNotMapped,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from cellmw.admin.discovery import Discovery, FoundHost

NOTHING_NEW = 1
"""The exit code where a new host was expected, and there is none."""

HOST_REFUSED = 3
"""The exit code where a host could not be mapped, as its name is that of another one."""

COLUMNS = ("Hostname", "Cell Name", "Cell UUID", "State")
"""What is shown of a host that was found."""

_NAMED = 5
"""How many hosts a note names."""


class DiscoverHosts(Command):
    """Look for new hosts in the cells, and map them. All cells are asked at the same time; cell0 has no hosts.

    Any number of these may run at a time, and one that was interrupted is to be run again.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the cell, and how to look."""
        parser = super().get_parser(prog_name)
        take_uuid(parser, "look in this cell only (default: in all)", required=False)
        parser.add_argument("--verbose", action="store_true", help="show the hosts that were mapped before, too")
        parser.add_argument("--strict", action="store_true", help="exit with 1 if there is no new host")
        parser.add_argument(
            "--by-service",
            "--by_service",
            action="store_true",
            help="look for services, disabled ones included, instead of compute nodes",
        )
        self.take_dry_run(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Discover the hosts."""
        with access.open_cells(self.app.conf) as cells:
            if parsed_args.cell_uuid is None:
                among = cells.all()
            else:
                among = [access.get_cell(cells, parsed_args.cell_uuid)]
                if among[0].uuid == CELL0_UUID:
                    note("cell0 has no hosts, and was not looked at")
            found = discovery.discover(
                self.app.conf, cells, among, by_service=parsed_args.by_service, dry_run=parsed_args.dry_run
            )
        remark(found)
        if parsed_args.verbose:
            counts = ", ".join(f"{len(found.having(state))} {state}" for state in _STATES)
            note(f"hosts in {sum(cell.uuid != CELL0_UUID for cell in among)} cells: {counts}")
        shown = [host for host in found.hosts if parsed_args.verbose or host.state != discovery.ALREADY]
        code = exit_code(found)
        if parsed_args.strict and not code and not found.having(discovery.MAPPED):
            note("there is no new host")
            code = NOTHING_NEW
        # where there is nothing to tell a person is not shown the frame of an empty table
        return Report(COLUMNS, rows(shown, dry_run=parsed_args.dry_run), None if shown else [], code)


class ListHosts(Command):
    """Show the hosts, by name, and the cells that they are mapped to."""

    exit_codes = ((CellNotFound, 1),)

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the cell."""
        parser = super().get_parser(prog_name)
        take_uuid(parser, "the hosts of this cell only (default: of all)", required=False)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Read the mappings."""
        with self.open_store() as store:
            cell_id = store.get_cell(parsed_args.cell_uuid).id if parsed_args.cell_uuid else None
            mappings = sorted(store.all_hosts(cell_id))
            # read after the mappings: a cell is recorded before its hosts are mapped
            cells = {cell.id: (cell.name or "", cell.uuid) for cell in store.list_cells()}
        lost = sorted({mapping.cell_id for mapping in mappings} - cells.keys())
        if lost:
            note(f"no cell is recorded for the ids {', '.join(map(str, lost))}, which hosts are mapped to")
        header = ("Cell Name", "Cell UUID", "Hostname")
        return Report(header, [(*cells.get(mapping.cell_id, ("", "")), mapping.host) for mapping in mappings])


class DeleteHost(Command):
    """Forget which cell a host is in. In the cell's database its compute nodes are to be discovered again from now on.

    A host that has instances on it is not forgotten.
    """

    exit_codes = ((CellNotFound, 1), (HostNotMapped, 2), (HostElsewhere, 3), (HostInUse, 4))

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the cell and the host."""
        parser = super().get_parser(prog_name)
        take_uuid(parser, "the uuid of the host's cell")
        parser.add_argument("--host", metavar="<host>", required=True, help="the name of the host")
        self.take_dry_run(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Forget the host."""
        uuid, host, dry_run = parsed_args.cell_uuid, parsed_args.host, parsed_args.dry_run
        with access.open_cells(self.app.conf) as cells:
            try:
                discovery.delete_host(self.app.conf, cells, uuid, host, dry_run=dry_run)
            except (CellMisconfigured, CellUnavailable, DeadlineExceeded) as error:
                raise Refused(
                    f"{error}: without its database nobody knows whether there are instances on {host!r}; "
                    "run this again when it answers"
                ) from None
        outcome = "would be deleted" if dry_run else "deleted"
        lines = [f"host {host!r} would be forgotten"] if dry_run else []
        return Report(("Hostname", "Cell UUID", "Outcome"), [(host, uuid, outcome)], lines)


def rows(hosts: list[FoundHost], *, dry_run: bool) -> list[tuple[str, ...]]:
    """Return what is shown of these hosts, as :data:`COLUMNS` has it."""
    states = {discovery.MAPPED: "would be mapped"} if dry_run else {}
    return [
        (found.host, found.cell.name or "", found.cell.uuid, states.get(found.state, found.state)) for found in hosts
    ]


def remark(found: Discovery) -> None:
    """Print what has gone wrong, for hosts that it has gone wrong with alike in one line."""
    for line in found.troubles:
        note(line)
    for why, hosts in _alike(found.having(discovery.ELSEWHERE)):
        note(f"{why}, and left there: {hosts}; `{NAME} cell_v2 delete_host` lets go of one that has moved")
    for why, hosts in _alike(found.having(discovery.REFUSED)):
        note(f"not mapped: {hosts}: {why}")


def exit_code(found: Discovery) -> int:
    """Return the exit code of a discovery."""
    if found.troubles:
        return ERROR
    return HOST_REFUSED if found.having(discovery.REFUSED) else 0


def _alike(hosts: list[FoundHost]) -> Iterator[tuple[str, str]]:
    """Take hosts together by what there is to remark, and name the first of them."""
    for why, group in groupby(sorted(hosts, key=lambda found: found.remark), key=lambda found: found.remark):
        names = sorted({found.host for found in group})
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield why, ", ".join(names[:_NAMED]) + more


_STATES = (discovery.MAPPED, discovery.ALREADY, discovery.ELSEWHERE, discovery.REFUSED)

COMMANDS: dict[str, type[Command]] = {
    "delete_host": DeleteHost,
    "discover_hosts": DiscoverHosts,
    "list_hosts": ListHosts,
}
"""What is here, by the names of its commands."""
