# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage doctor``: what is wrong with the deployment, and what to do about it."""

from __future__ import annotations

import contextlib
import logging
from itertools import groupby
from typing import TYPE_CHECKING

from cellmw.admin.doctor import CHECKS, NO_CELL, Diagnosis, Examination, Finding, Severity
from cellmw.cmd.arguments import take_patience
from cellmw.cmd.command import Command, Refused, Report
from cellmw.log import masked

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

_COLUMNS = ("Severity", "Cell", "Check", "What", "What to do")

_TALKATIVE = ("cellmw.bounds", "cellmw.queues", "oslo.messaging", "oslo_db")
"""Loggers that would tell again what the findings say."""

_SILENT = logging.CRITICAL + 1


class Doctor(Command):
    """Look at the whole deployment, and say what is wrong with it, and what to do.

    Every broker and every database of every cell is connected to, at the same time, with the cell's own credentials
    and TLS options. Nothing is changed. The exit code is 0 where nothing has to be done, 1 where there are warnings, 2
    where there are errors, and 255 where the examination could not begin.
    """

    interrupted = "nothing was changed: run it again"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take which checks to do, and what they need."""
        parser = super().get_parser(prog_name)
        take_patience(parser)
        parser.add_argument(
            "--service-config",
            "--service_config",
            metavar="<file>",
            action="append",
            default=[],
            help="the configuration file of a service in a cell, to see which one; may be given several times",
        )
        only = f"do this check and no other, one of {', '.join(CHECKS)}"
        for option, what in (("--check", only), ("--skip", "leave this check out")):
            parser.add_argument(
                option,
                metavar="<check>",
                action="append",
                default=[],
                choices=CHECKS,
                help=f"{what}; may be given several times",
            )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Report:
        """Examine the deployment."""
        checks = set(parsed_args.check or CHECKS) - set(parsed_args.skip)
        if not checks:
            raise Refused("no check is left: leave out a --skip")
        examination = Examination(
            self.app.conf, timeout=parsed_args.patience, checks=checks, service_configs=parsed_args.service_config
        )
        with quiet(unless=self.app.conf.debug):
            diagnosis = examination.run()
        return Report(
            _COLUMNS,
            [_row(finding) for finding in diagnosis.findings],
            [masked(line) for line in _lines(diagnosis)],
            diagnosis.worst.value,
        )


@contextlib.contextmanager
def quiet(*, unless: bool) -> Iterator[None]:
    """Have the libraries say nothing of what the findings say."""
    loggers = [] if unless else [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(_SILENT)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _row(finding: Finding) -> tuple[str, ...]:
    return str(finding.severity), finding.cell, finding.check, masked(finding.what), masked(finding.todo)


def _lines(diagnosis: Diagnosis) -> Iterator[str]:
    for severity, findings in groupby(diagnosis.findings, lambda finding: finding.severity):
        of_this = list(findings)
        yield _counted(len(of_this), severity)
        for finding in of_this:
            whose = "" if finding.cell == NO_CELL else f"cell {finding.cell}: "
            yield f"  {whose}{finding.what} [{finding.check}]"
            yield f"    -> {finding.todo}"
    yield _summary(diagnosis)


def _summary(diagnosis: Diagnosis) -> str:
    counts = [
        _counted(count, severity)
        for severity in reversed(Severity)
        if (count := sum(finding.severity is severity for finding in diagnosis.findings))
    ]
    if diagnosis.worst is Severity.INFO:
        counts.insert(0, "all is well")
    checks, cells = _counted(diagnosis.checks, "check"), _counted(diagnosis.cells, "cell")
    return f"{', '.join(counts)}: {checks} of {cells} in {diagnosis.seconds:.1f} s"


def _counted(count: int, what: object) -> str:
    return f"1 {what}" if count == 1 else f"{count} {what}s"


COMMANDS: dict[str, type[Command]] = {"doctor": Doctor}
"""What is here, by the names of its commands."""
