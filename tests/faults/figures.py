# SPDX-License-Identifier: Apache-2.0
"""Figures of a test -> a line of JSON for whoever runs it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


def show(capsys: pytest.CaptureFixture[str], figures: dict[str, Any]) -> None:
    """Show them, whatever becomes of the test."""
    with capsys.disabled():
        # what a worker of pytest-xdist says on its standard output is seen by nobody
        print("", json.dumps(figures), sep="\n", file=sys.stderr)  # noqa: T201 - this is what it is run for
