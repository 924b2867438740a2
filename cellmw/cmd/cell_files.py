# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage cell_v2 export`` and ``import``: the cells between the API database and a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cellmw.cmd.command import Command

COMMANDS: dict[str, type[Command]] = {}
"""What belongs to the family ``cell_v2``, by the names of its commands."""
