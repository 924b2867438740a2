# SPDX-License-Identifier: Apache-2.0
"""The cell that a cell-level service lives in, and all that it refuses to such a service."""

from __future__ import annotations

import logging
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from oslo_config import cfg

from cellmw import deploy
from cellmw import local as module
from cellmw.cell import Cell
from cellmw.conf import register_opts
from cellmw.context import RequestContext
from cellmw.exceptions import ConfigError, UpcallForbidden
from cellmw.local import LOCAL_ID, LocalCell, LocalMappings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cellmw.cells import Cells

UUID = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9"

QUEUE = "memory://here/"


@pytest.fixture
def database(tmp_path: Path) -> str:
    """The URL of the service's own database."""
    return f"sqlite:///{tmp_path}/here.sqlite"


@pytest.fixture
def conf(conf: cfg.ConfigOpts, database: str) -> cfg.ConfigOpts:
    """The configuration of a cell-level service: there is no API database in it."""
    conf.set_override("role", "cell", "cellmw")
    conf.set_override("local_cell_name", "cell1", "cellmw")
    conf.set_override("local_cell_uuid", "uuid-1", "cellmw")
    _own(conf, QUEUE, database)
    return conf


def _own(conf: cfg.ConfigOpts, queue: str | None, database: str | None) -> None:
    module.own_urls.transport_url(conf)
    module.own_urls.database_connection(conf)
    if queue is not None:
        conf.set_override("transport_url", queue)
    if database is not None:
        conf.set_override("connection", database, "database")


@pytest.fixture
def cells(conf: cfg.ConfigOpts, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cells]:
    """Its cells. That it makes a store is a failure."""
    monkeypatch.setattr(deploy, "Store", None)
    with closing(deploy.cells(conf)) as cells:
        yield cells
        assert cells.leases == 0


@pytest.fixture
def local(conf: cfg.ConfigOpts) -> LocalCell:
    """Its cell."""
    return LocalCell(conf, name="cell1", uuid="uuid-1")


def test_its_cell(cells: Cells, database: str) -> None:
    """It is where the service's own options lead, and is called as [cellmw] says."""
    cell = cells.local()
    assert (cell.id, cell.name, cell.uuid, cell.disabled) == (LOCAL_ID, "cell1", "uuid-1", False)
    assert (cell.reveal_transport_url(), cell.reveal_database_connection()) == (QUEUE, database)
    assert cells.all() == [cell]
    for ref in (LOCAL_ID, "cell1", "uuid-1"):
        assert cells.get(ref) == cell


@pytest.mark.parametrize("ref", [LOCAL_ID, "cell1", "uuid-1"])
def test_asked_for_first(cells: Cells, ref: int | str) -> None:
    """It is there from the first use on, by each of its names."""
    assert str(cells.get(ref)) == "cell1"


def test_names_by_default(conf: cfg.ConfigOpts) -> None:
    """Where nobody has said what the cell is called, it is the local one."""
    for name in ("local_cell_name", "local_cell_uuid"):
        conf.clear_override(name, "cellmw")
    with closing(deploy.cells(conf)) as cells:
        assert (cells.local().name, cells.local().uuid) == ("local", "local")
        assert cells.get("local") == cells.local()


def test_targeted(cells: Cells, database: str) -> None:
    """A context is aimed at it as at any cell."""
    with cells.target(RequestContext(overwrite=False), cells.local()) as targeted:
        assert targeted.cell_uuid == "uuid-1"
        with targeted.db_connection.reader.using(targeted) as session:
            assert session.get_bind().url.database == sqlalchemy.make_url(database).database
        assert targeted.mq_connection._driver._url.hosts[0].hostname == "here"


@pytest.mark.parametrize(
    ("upcall", "wanted"),
    [
        (lambda cells: cells.get("cell2"), "cell cell2"),
        (lambda cells: cells.get(1), "cell 1"),
        (lambda cells: cells.lease(2), "cell 2"),
        (lambda cells: cells.target(None, Cell(7, "uuid-7", "cell7", False, None, None)).__enter__(), "cell 7"),
        (lambda cells: cells.locate(UUID), f"the mapping of instance {UUID}"),
        (lambda cells: cells.mappings.create(UUID, project_id="project"), f"the mapping of instance {UUID}"),
        (lambda cells: cells.mappings.schedule(UUID, cells.local()), f"the mapping of instance {UUID}"),
        (lambda cells: cells.mappings.queue_for_delete(UUID), f"the mapping of instance {UUID}"),
        (lambda cells: cells.mappings.delete(UUID), f"the mapping of instance {UUID}"),
    ],
    ids=["get", "get by id", "lease", "target", "locate", "create", "schedule", "queue_for_delete", "delete"],
)
def test_up_calls(cells: Cells, caplog: pytest.LogCaptureFixture, upcall: Callable[[Cells], Any], wanted: str) -> None:
    """Whatever wants more than its cell is refused, and the log says once what to configure."""
    for _ in range(2):
        with pytest.raises(UpcallForbidden, match=f"^{wanted} is out of reach") as raised:
            upcall(cells)
        assert raised.value.wanted == wanted
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for word in (wanted, "role = api", "[api_database]", "said once"):
        assert word in record.getMessage()


def test_api_database(conf: cfg.ConfigOpts) -> None:
    """Nor does it get the API database, even where one is configured."""
    conf.set_override("connection", "sqlite://", "api_database")
    with pytest.raises(UpcallForbidden, match=r"^the API database is out of reach"):
        deploy.store(conf)


def test_api_level(conf: cfg.ConfigOpts) -> None:
    """A service of the API level lives in no cell."""
    conf.set_override("role", "api", "cellmw")
    conf.set_override("connection", "sqlite://", "api_database")
    with closing(deploy.cells(conf)) as cells, pytest.raises(ConfigError, match="role = cell"):
        cells.local()


@pytest.mark.parametrize(
    ("queue", "database", "option"),
    [
        (None, "sqlite://", "[DEFAULT] transport_url"),
        (QUEUE, None, "[database] connection"),
        (QUEUE, "", "[database] connection"),
        (None, None, "[DEFAULT] transport_url"),
    ],
)
def test_not_set(queue: str | None, database: str | None, option: str) -> None:
    """Where one of the two options is not set, that is an error that names it."""
    conf = cfg.ConfigOpts()
    conf([], project="cellmw", default_config_files=[], default_config_dirs=[])
    register_opts(conf)
    conf.set_override("role", "cell", "cellmw")
    _own(conf, queue, database)
    with pytest.raises(ConfigError) as raised:
        deploy.cells(conf)
    assert str(raised.value).startswith(f"{option} is not set: with role = cell")


@pytest.mark.parametrize("braces", ["{password}", "{{}}", "{", "env:"])
def test_urls_are_taken_as_they_are(conf: cfg.ConfigOpts, tmp_path: Path, braces: str) -> None:
    """What the service's own options say is a URL, and nothing that would have to be filled in or looked up."""
    url = f"sqlite:///{tmp_path}/{braces}.sqlite"
    conf.set_override("connection", url, "database")
    with closing(deploy.cells(conf)) as cells:
        assert cells.local().reveal_database_connection() == url


def test_change(cells: Cells, conf: cfg.ConfigOpts, tmp_path: Path) -> None:
    """When the service's own options have changed the cell is opened anew."""
    with cells.lease(LOCAL_ID) as before:
        handles = before.handles
        conf.set_override("connection", f"sqlite:///{tmp_path}/moved.sqlite", "database")
        cells.refresh()
        with cells.lease(LOCAL_ID) as after:
            assert after.handles is not handles
            assert after.cell.reveal_database_connection().endswith("moved.sqlite")
        assert before.handles is handles


def test_upkeep(cells: Cells) -> None:
    """What keeps the records up to date asks nobody."""
    cells.local()
    known = cells._records.known
    cells._records.keep_up()
    assert cells._records.known == known


def test_mappings(local: LocalCell) -> None:
    """Every instance is in the cell, and nothing is known of it."""
    mappings = LocalMappings(local)
    mapping = mappings.find(UUID)
    assert (mapping.cell_id, mapping.exists, mapping.project_id) == (LOCAL_ID, False, None)
    mappings.distrust(mapping)
    mappings.forget(UUID)
    assert mappings.find(UUID).cell_id == LOCAL_ID


def test_refusals_side_by_side(
    local: LocalCell, caplog: pytest.LogCaptureFixture, together: Callable[..., list[Any]]
) -> None:
    """However many threads are refused at once, the log says it once."""
    refused = together(8, lambda number: local.check(f"cell{number + 2}"))
    assert {type(each) for each in refused} == {UpcallForbidden}
    assert len(caplog.records) == 1
