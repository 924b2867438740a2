# SPDX-License-Identifier: Apache-2.0
"""Configuration -> a session in any cell, for an operator's command; no wait is longer than ``request_deadline``."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from cellmw import database, deploy
from cellmw.bounds import cause, drivers_error
from cellmw.context import RequestContext
from cellmw.exceptions import CellNotFound, CellUnavailable
from cellmw.store.database import DATABASE_ERRORS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from oslo_config import cfg
    from sqlalchemy.orm import Session

    from cellmw.cell import Cell
    from cellmw.cells import Cells
    from cellmw.deadline import Deadline


def open_cells(conf: cfg.ConfigOpts) -> Cells:
    """Make the Cells that the configuration describes, drained ones included; nothing is connected to yet.

    :raises ConfigError: if an option is not set that has to be, or has a value that it does not take
    :raises UpcallForbidden: with ``role = cell``
    """
    return deploy.cells(conf, operators=True)


def get_cell(cells: Cells, uuid: str) -> Cell:
    """Return the cell with this uuid, as it is recorded now.

    :raises CellNotFound: if there is none
    """
    for cell in cells.all():
        if cell.uuid == uuid.lower():
            return cell
    raise CellNotFound(uuid)


@contextlib.contextmanager
def reading(cells: Cells, cell: Cell, deadline: Deadline | None = None) -> Iterator[Session]:
    """Give a session that reads from this cell's database, for a with block.

    :param deadline: when to give up; without one each single wait has ``request_deadline`` seconds
    :raises CellMisconfigured: if the cell's URLs can't be used
    :raises CellUnavailable: if its database does not answer, or fails
    :raises DeadlineExceeded: if it does not in time
    """
    targeted = cells.target(RequestContext(), cell, deadline)
    with _answering(cell), targeted as context, database.reader(context) as session:
        yield session


@contextlib.contextmanager
def writing(cells: Cells, cell: Cell, deadline: Deadline | None = None) -> Iterator[Session]:
    """Give a session that writes to this cell's database, and commits at the end of the with block.

    It raises what :func:`reading` does.
    """
    targeted = cells.target(RequestContext(), cell, deadline)
    with _answering(cell), targeted as context, database.writer(context) as session:
        yield session


@contextlib.contextmanager
def _answering(cell: Cell) -> Iterator[None]:
    """Say which cell it is whose database fails, and nothing else that could be in its error."""
    try:
        yield
    except DATABASE_ERRORS as error:
        raise CellUnavailable(cell, "database", cause(drivers_error(error))) from error
