# SPDX-License-Identifier: Apache-2.0
"""The cases of ``first_cell.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.nova.side_by_side.bench import check
from tests.nova.side_by_side.first_cell import CASES

if TYPE_CHECKING:
    from tests.nova.side_by_side.bench import Bench
    from tests.nova.side_by_side.case import Case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(bench: Bench, case: Case) -> None:
    """Each program does what the case says, and both list what it has written."""
    if case.only and case.only != bench.kind:
        pytest.skip(f"it is to be seen on {case.only} only")
    check(bench, case)
