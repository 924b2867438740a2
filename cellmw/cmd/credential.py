# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage credential``: the keys by which the URLs in the cells' records are encrypted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cellmw.cmd.command import Command

COMMANDS: dict[str, type[Command]] = {}
"""The family, by the names of its commands."""
