# SPDX-License-Identifier: Apache-2.0
"""What came of asking one cell, where several are asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cellmw.cell import Cell


@dataclass(frozen=True, slots=True)
class CellResult:
    """The answer of one cell. Lives as long as whoever asked needs it; it can go along with a message.

    :ivar cell: who was asked
    :ivar status: ``"ok"``, ``"error"``, ``"timeout"``, or ``"skipped"`` where it was not asked, as it is known not to
        answer, or no more
    :ivar value: the answer, where the status is ok
    :ivar error: why there is none, where there is none
    """

    cell: Cell
    status: str
    value: Any = None
    error: BaseException | None = None
