# SPDX-License-Identifier: Apache-2.0
"""Cells from a file beside mappings in a real API database: rows, ids and the foreign key between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cellmw import cells_file, engines
from cellmw.cell import CELL0_UUID, Cell
from cellmw.cells_file import CellsFile
from cellmw.exceptions import CellNotFound
from cellmw.store import Store, migrations

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INSTANCE = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01"


@pytest.fixture(params=["mariadb_url", "postgresql_url"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty store."""
    engine = engines.make_engine(request.getfixturevalue(request.param), {}, pre_ping=False)
    migrations.sync(engine)
    with Store(engine) as store:
        yield store


def test_rows_and_ids(store: Store, tmp_path: Path) -> None:
    """A mapping needs the row of its cell, with or without URLs; and no id is ever given twice."""
    for number in range(4):
        store.create_cell(name=None, transport_url="none:///", database_connection=f"sqlite:///{number}.db")
    for cell in store.list_cells()[2:]:
        store.delete_cell(cell.uuid)
    cells = [
        Cell(3, CELL0_UUID, "cell0", False, "none:///", "mysql://nova:s3cret@db/cell0"),
        Cell(
            9,
            INSTANCE,
            "cell\N{LATIN SMALL LETTER U WITH DIAERESIS}",
            True,
            "rabbit://x:%40@h/",
            "mysql://nova:s3cret@db/cell1",
        ),
    ]
    path = tmp_path / "cells.yaml"
    path.write_text(cells_file.as_text(cells, "yaml"))
    path.chmod(0o600)
    file = CellsFile(str(path))

    store.import_cells(file.list_cells()[:1])
    # 3 is lower than what was given last: the ids go on where they were
    assert store.create_cell(name=None, transport_url="none:///", database_connection="sqlite:///5.db").id == 5
    with pytest.raises(CellNotFound):
        store.create_instance(INSTANCE, project_id="project1", cell_id=9)

    store.import_cells(file.list_cells(), with_urls=False)
    store.create_instance(INSTANCE, project_id="project1", cell_id=9)
    assert store.create_cell(name=None, transport_url="none:///", database_connection="sqlite:///10.db").id == 10

    store.import_cells(file.list_cells())
    recorded = [cell for cell in store.list_cells() if cell.id in (3, 9)]
    assert [(cell, cell.fingerprint) for cell in recorded] == [(cell, cell.fingerprint) for cell in cells]
