# SPDX-License-Identifier: Apache-2.0
"""A cell -> whether its two URLs can be made out, and used; nothing is connected to."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cellmw import urls
from cellmw.admin.doctor.finding import Finding, Severity
from cellmw.exceptions import CellMisconfigured, UrlRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from oslo_config import cfg

    from cellmw.cell import Cell

CHECK = "urls"

_RECORD = "`cellmw-manage cell_v2 update_cell`"


def examine(cell: Cell, conf: cfg.ConfigOpts) -> Iterator[Finding]:
    """Look at both URLs of a cell that was resolved."""
    check_transport = partial(urls.check_transport_url, conf, may_have_no_queue=True)
    yield from _examine(cell, "transport URL", cell.reveal_transport_url, check_transport)
    yield from _examine(cell, "database URL", cell.reveal_database_connection, urls.check_database_connection)


def _examine(cell: Cell, which: str, reveal: Callable[[], str], check: Callable[[str], list[str]]) -> Iterator[Finding]:
    try:
        url = reveal()
    except CellMisconfigured as error:
        what = str(error).removeprefix(f"cell {cell}: ")
        yield Finding(Severity.ERROR, str(cell), CHECK, what, f"bring what is missing to this host, or {_RECORD}")
        return
    try:
        doubts = check(url)
    except UrlRefused as refused:
        yield Finding(Severity.ERROR, str(cell), CHECK, f"its {which}: {refused}", f"record another: {_RECORD}")
        return
    for doubt in doubts:
        yield Finding(Severity.WARNING, str(cell), CHECK, f"its {which}: {doubt}", f"record another: {_RECORD}")


def refuse_useless(cell: Cell) -> None:
    """Refuse a cell whose database nobody can open.

    :raises CellMisconfigured: if its URL can't be made out
    :raises UrlRefused: if it is one that nobody can use
    """
    urls.check_database_connection(cell.reveal_database_connection())
