# SPDX-License-Identifier: Apache-2.0
"""The cases that ``make test-nova`` runs by nova-manage and by cellmw-manage -> tables: the directive ``side-by-side``.

They are read from ``tests/nova/side_by_side``, so that the manual has exactly what is run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sphinx.util.docutils import SphinxDirective

_ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(_ROOT))

from tests.nova.side_by_side.table import CASES  # noqa: E402 - that is where it is

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docutils import nodes
    from sphinx.application import Sphinx

    from tests.nova.side_by_side.case import Case

_DATABASES = {"": "", "sqlite": " (SQLite)", "mysql": " (MariaDB)"}


class SideBySide(SphinxDirective):
    """Show the cases of one command: ``.. side-by-side:: create_cell``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Write the table as reStructuredText, and have that parsed."""
        (command,) = self.arguments
        if command not in CASES:
            raise self.error(f"there are no cases of {command}")
        for file in (_ROOT / "tests/nova/side_by_side").glob("*.py"):
            self.env.note_dependency(str(file))
        return self.parse_text_to_nodes("\n".join(_table(CASES[command])))


def _table(cases: list[Case]) -> Iterator[str]:
    yield ".. list-table::"
    yield "   :header-rows: 1"
    yield "   :widths: 30 32 6 6 26"
    yield ""
    yield from _row("When", "What is typed", "nova-manage", "cellmw-manage", "Where they differ")
    for case in cases:
        typed = f"``{case.command}``"
        if case.first is not None:
            typed += f" after ``{case.first.command}``"
        if case.configuration != "nova.conf":
            typed += f" by ``{case.configuration}``"
        why = "" if case.ours is None else case.ours.why
        yield from _row(f"{case.when}{_DATABASES[case.only]}", typed, case.exit_code, case.our_exit_code, why)


def _row(first: object, *others: object) -> Iterator[str]:
    yield f"   * - {first}".rstrip()
    yield from (f"     - {cell}".rstrip() for cell in others)


def setup(app: Sphinx) -> dict[str, bool]:
    """Let Sphinx know of the directive."""
    app.add_directive("side-by-side", SideBySide)
    return {"parallel_read_safe": True}
