# SPDX-License-Identifier: Apache-2.0
"""``cellmw-status upgrade check``: whether this release can go on with the deployment as it is.

oslo.upgradecheck prints the table, or the json, and has the exit codes that every OpenStack program has for this.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from oslo_config import cfg
from oslo_log import log
from oslo_upgradecheck import upgradecheck
from oslo_upgradecheck.upgradecheck import Code, Result

from cellmw.admin.readiness import Readiness
from cellmw.admin.refusals import of_store
from cellmw.cmd.program import prepare_streams, set_up
from cellmw.exceptions import CellmwError, StoreUnavailable, UpcallForbidden
from cellmw.log import masked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cellmw.admin.readiness import Finding

LOG = log.getLogger(__name__)

NAME = "cellmw-status"

ERROR = 255
"""The exit code where nothing could be checked."""

_QUIETER = [
    "alembic=WARN",
    "cellmw.bounds=CRITICAL",
    "cellmw.breaker=CRITICAL",
    "cellmw.local=CRITICAL",
    "oslo_config=ERROR",
    "oslo_db=CRITICAL",
]
"""Loggers that would tell again what a check says in one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks, and return the highest of their exit codes."""
    prepare_streams()
    try:
        conf = set_up(NAME, argv, _QUIETER, lambda conf: upgradecheck.register_cli_options(conf, Checks(conf)))
    except cfg.Error as error:
        _note(str(error))
        return ERROR
    upgradecheck.CONF = conf  # where it looks for --json
    return upgradecheck.run(conf)


class Checks(upgradecheck.UpgradeCommands):
    """The checks, as oslo.upgradecheck wants them. Lives as long as the process."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        """Check nothing yet: the configuration has not been read."""
        self._conf = conf

    def check(self) -> Code:
        """Run all of them, whatever becomes of one, and print what they have found."""
        try:
            with Readiness(self._conf) as readiness:
                self._upgrade_checks = _checks(readiness)
                return super().check()
        except Exception as error:
            LOG.debug("the checks failed", exc_info=True)
            _note(f"{type(error).__name__}, which should not happen: `{NAME} --debug` shows where")
            return ERROR  # type: ignore[return-value]  # a code of its own only where upgradecheck prints a traceback


def _checks(readiness: Readiness) -> tuple[tuple[str, Callable[[Checks], Result]], ...]:
    checks = {
        "Configuration": readiness.configuration,
        "API database": readiness.api_database,
        "Cells": readiness.cells,
        "Records of cells": readiness.records,
        "Cells that are one": readiness.places,
        "Mappings": readiness.mappings,
        "Libraries": readiness.libraries,
    }
    return tuple((name, _checked(name, check)) for name, check in checks.items())


def _checked(name: str, check: Callable[[], list[Finding]]) -> Callable[[Checks], Result]:
    def run(_: Checks) -> Result:
        try:
            return _result(check())
        except (StoreUnavailable, UpcallForbidden) as error:
            if name == "API database":
                said = of_store(error) if isinstance(error, StoreUnavailable) else (str(error),)
                return Result(Code.FAILURE, masked(": ".join(filter(None, said))))
            return Result(Code.WARNING, "not checked, as it needs the API database")
        except CellmwError as error:
            return Result(Code.FAILURE, masked(str(error)))

    return run


def _result(found: Sequence[Finding]) -> Result:
    if not found:
        return Result(Code.SUCCESS)
    code = Code.FAILURE if any(finding.stops for finding in found) else Code.WARNING
    return Result(code, "; ".join(masked(finding.text) for finding in found))


def _note(line: str) -> None:
    print(f"{NAME}: {masked(line)}", file=sys.stderr)  # noqa: T201 - what a command is for
