# SPDX-License-Identifier: Apache-2.0
"""All cases, by the command that they are about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.nova.side_by_side import cells, first_cell, hosts, instances

if TYPE_CHECKING:
    from tests.nova.side_by_side.case import Case

CASES: dict[str, list[Case]] = {}
"""The cases of each command, by its name."""

for _case in (*first_cell.CASES, *cells.CASES, *instances.CASES, *hosts.CASES):
    CASES.setdefault(_case.name, []).append(_case)
