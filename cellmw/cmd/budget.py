# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage budget``: how many connections the servers may get to see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellmw.admin import budget
from cellmw.cmd.arguments import at_least, configuration, take_ini, take_patience
from cellmw.cmd.command import Command, Report, note

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

_UNLIMITED = "unlimited, as far as is known"


class Budget(Command):
    """Add up how many connections each database server and each broker may get to see, beside how many it takes.

    The first number is what all workers together may have while all is well; the second what can come on top for
    moments, or while the server does not answer: probes, and connections that nobody waits for any more. What a service
    has besides, as its own database and bus, is not in it.
    """

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the workers."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--processes", metavar="<count>", type=at_least(1), required=True, help="worker processes on each host"
        )
        parser.add_argument(
            "--threads", metavar="<count>", type=at_least(1), required=True, help="threads in each process"
        )
        parser.add_argument(
            "--hosts", metavar="<count>", type=at_least(1), default=1, help="hosts with so many processes (default: 1)"
        )
        take_ini(parser)
        take_patience(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Add it up."""
        conf = configuration(self.app.conf, parsed_args)
        workers = budget.Workers(parsed_args.hosts, parsed_args.processes, parsed_args.threads)
        servers, uncounted = budget.add_up(conf, workers, parsed_args.patience)
        for reason in uncounted:
            note(f"{reason}: it is not in the sum")
        too_many = uncounted or any(server.findings for server in servers)
        columns = ("Server", "Of", "At most", "More", "Limit", "In use", "Findings")
        rows = [_row(server) for server in servers]
        lines = [line for server in servers for line in _lines(server)]
        return Report(columns, rows, lines, exit_code=1 if too_many else 0)


def _row(server: budget.Server) -> tuple[object, ...]:
    findings = "; ".join([*server.findings, *server.doubts, *filter(None, [server.silence])])
    return (_name(server), _owners(server), server.busy, server.more, server.limit, server.in_use, findings)


def _lines(server: budget.Server) -> Iterator[str]:
    yield f"{_name(server)}: {_owners(server)}"
    yield f"    at most {server.busy} = {server.workers} x {server.per_worker}, and {server.more} more for moments"
    if server.silence:
        yield f"    limit: not known, {server.silence}"
    elif server.limit is None:
        yield f"    limit: {_UNLIMITED}"
    else:
        yield f"    limit: {server.limit}, of which {server.in_use} are in use"
    yield from (f"    TOO MANY: {finding}" for finding in server.findings)
    yield from (f"    no room: {doubt}" for doubt in server.doubts)


def _name(server: budget.Server) -> str:
    return f"{server.kind} {server.place}"


def _owners(server: budget.Server) -> str:
    return ", ".join(pool.of for pool in server.pools)


COMMANDS: dict[str, type[Command]] = {"budget": Budget}
"""What is here, by the names of its commands."""
