# SPDX-License-Identifier: Apache-2.0
"""Finding: one thing that is wrong, or worth knowing, and what to do about it; and how bad it is."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

NO_CELL = "-"
"""Stands for a cell where a finding is about none, or about all of them."""


class Severity(enum.IntEnum):
    """How bad it is; the number of the worst one is the exit code."""

    INFO = 0
    """Nothing has to be done."""
    WARNING = 1
    """It works, and something about it is dangerous or will end."""
    ERROR = 2
    """Something does not work, or goes to the wrong place."""

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Finding:
    """What one check has found. It shows no password.

    :ivar cell: the name of the cell, or ``-``
    :ivar check: the name of the check
    :ivar what: what is wrong
    :ivar todo: what to do about it
    """

    severity: Severity
    cell: str
    check: str
    what: str
    todo: str


def counted(count: int, what: str) -> str:
    """Say how many there are: ``there is 1 instance``, ``there are 2 instances``."""
    return f"there is 1 {what}" if count == 1 else f"there are {count} {what}s"


def listed(names: Sequence[str], most: int = 5) -> str:
    """Name the first ones, and say how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
