# SPDX-License-Identifier: Apache-2.0
"""What becomes of the hosts that the cells' databases have, on SQLite; tests/services has it on servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cellmw.admin import access, discovery
from cellmw.admin.discovery import ALREADY, ELSEWHERE, MAPPED, REFUSED
from cellmw.exceptions import CellNotFound, CellUnavailable, HostElsewhere, HostInUse, HostNotMapped, StoreUnavailable
from tests.nova_cell import NovaCell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from oslo_config import cfg

    from cellmw.admin.discovery import Discovery
    from cellmw.cell import Cell
    from cellmw.cells import Cells
    from cellmw.store import Store

INSTANCE = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01"


@pytest.fixture
def cells(conf: cfg.ConfigOpts, store: Store) -> Iterator[Cells]:
    """The cells, as an operator's command has them."""
    with access.open_cells(conf) as cells:
        yield cells


@pytest.fixture
def database_of(tmp_path: Path) -> Callable[[Cell], NovaCell]:
    """Make Nova's tables in the database of a cell."""
    return lambda cell: NovaCell(f"sqlite:///{tmp_path}/{cell.name}.sqlite")


@pytest.fixture
def discover(conf: cfg.ConfigOpts, cells: Cells) -> Callable[..., Discovery]:
    """Discover the hosts of all cells."""
    return lambda **how: discovery.discover(conf, cells, cells.all(), **how)


def states(found: Discovery) -> list[tuple[str, str, str]]:
    """Return what became of each host in each cell."""
    assert found.troubles == []
    return [(host.host, str(host.cell), host.state) for host in found.hosts]


# --- discovery


def test_new_hosts_are_mapped(
    discover: Callable[..., Discovery], nova1: NovaCell, nova2: NovaCell, store: Store, cell1: Cell, cell2: Cell
) -> None:
    """Each host of each cell gets a mapping to the cell that it was found in, and is returned, by name."""
    nova1.add_hosts(["b", "c"])
    nova2.add_hosts(["a"])
    assert states(discover()) == [("a", "cell2", MAPPED), ("b", "cell1", MAPPED), ("c", "cell1", MAPPED)]
    assert store.list_hosts() == [("a", cell2.id), ("b", cell1.id), ("c", cell1.id)]


def test_mapped_hosts_are_marked(discover: Callable[..., Discovery], nova1: NovaCell, nova2: NovaCell) -> None:
    """Each cell is told which of its own hosts have been discovered."""
    nova1.add_hosts(["b", "c"])
    nova2.add_hosts(["a"], mapped=None)
    discover()
    assert (nova1.marks(), nova2.marks()) == ({"b": 1, "c": 1}, {"a": 1})


def test_again(discover: Callable[..., Discovery], nova1: NovaCell, store: Store) -> None:
    """What is mapped stays mapped."""
    nova1.add_hosts(["a"])
    discover()
    before = store.list_hosts()
    assert states(discover()) == [("a", "cell1", ALREADY)]
    assert store.list_hosts() == before


def test_mapping_without_mark(discover: Callable[..., Discovery], nova1: NovaCell, store: Store, cell1: Cell) -> None:
    """A run that was cut off before it had told the cell is made good by the next nova1."""
    nova1.add_hosts(["a"])
    store.create_host("a", cell_id=cell1.id)
    assert states(discover()) == [("a", "cell1", ALREADY)]
    assert nova1.marks() == {"a": 1}


def test_mark_without_mapping(discover: Callable[..., Discovery], nova1: NovaCell, store: Store, cell1: Cell) -> None:
    """A host whose mapping was lost is found, though its cell takes it for discovered."""
    nova1.add_hosts(["a"], mapped=1)
    assert states(discover()) == [("a", "cell1", MAPPED)]
    assert store.get_host("a").cell_id == cell1.id


def test_host_of_another_cell(
    discover: Callable[..., Discovery], nova1: NovaCell, nova2: NovaCell, store: Store, cell2: Cell
) -> None:
    """A host that is mapped to another cell stays there, is not marked, and what is remarked names that cell."""
    nova1.add_hosts(["a"])
    store.create_host("a", cell_id=cell2.id)
    found = discover()
    assert states(found) == [("a", "cell1", ELSEWHERE)]
    assert found.hosts[0].remark == "mapped to cell cell2"
    assert store.get_host("a").cell_id == cell2.id
    assert nova1.marks() == {"a": 0}


def test_host_of_a_cell_without_record(discover: Callable[..., Discovery], nova1: NovaCell, store: Store) -> None:
    """A mapping to a cell that has no record is as good as any other."""
    nova1.add_hosts(["a"])
    store.create_host("a", cell_id=99)
    assert discover().hosts[0].remark == "mapped to cell id 99, which has no record"


def test_host_in_two_cells(discover: Callable[..., Discovery], nova1: NovaCell, nova2: NovaCell, store: Store) -> None:
    """A new host that two cells have is mapped to neither: nobody knows which of them is meant."""
    nova1.add_hosts(["a", "b"])
    nova2.add_hosts(["a"])
    found = discover()
    assert states(found) == [("a", "cell1", REFUSED), ("a", "cell2", REFUSED), ("b", "cell1", MAPPED)]
    assert found.hosts[0].remark == found.hosts[1].remark
    assert found.hosts[0].remark == "cells cell1 and cell2 have a host of that name each: rename or delete all but one"
    assert [mapping.host for mapping in store.list_hosts()] == ["b"]
    assert (nova1.marks(), nova2.marks()) == ({"a": 0, "b": 1}, {"a": 0})


def test_host_in_two_cells_that_is_mapped(
    discover: Callable[..., Discovery], nova1: NovaCell, nova2: NovaCell, store: Store, cell2: Cell
) -> None:
    """One that two cells have, and that is mapped to one of them, is at home there."""
    nova1.add_hosts(["a"])
    nova2.add_hosts(["a"])
    store.create_host("a", cell_id=cell2.id)
    assert states(discover()) == [("a", "cell1", ELSEWHERE), ("a", "cell2", ALREADY)]
    assert (nova1.marks(), nova2.marks()) == ({"a": 0}, {"a": 1})


def test_one_cell_only(
    conf: cfg.ConfigOpts, cells: Cells, nova1: NovaCell, nova2: NovaCell, cell1: Cell, store: Store
) -> None:
    """Cells that are not asked are left alone."""
    nova1.add_hosts(["a"])
    nova2.add_hosts(["b"])
    assert states(discovery.discover(conf, cells, [cell1])) == [("a", "cell1", MAPPED)]
    assert (len(store.list_hosts()), nova2.marks()) == (1, {"b": 0})


def test_cell0_is_not_asked(
    discover: Callable[..., Discovery], cell0: Cell, database_of: Callable[[Cell], NovaCell]
) -> None:
    """Hosts in the database of cell0, which a copy of another one may have, are none."""
    database_of(cell0).add_hosts(["a"])
    assert states(discover()) == []


def test_disabled_cell_is_asked(
    discover: Callable[..., Discovery], new_cell: Callable[..., Cell], database_of: Callable[[Cell], NovaCell]
) -> None:
    """A cell that gets no new instances can have new hosts."""
    database_of(new_cell("cell1", disabled=True)).add_hosts(["a"])
    assert states(discover()) == [("a", "cell1", MAPPED)]


def test_deleted_nodes(discover: Callable[..., Discovery], nova1: NovaCell) -> None:
    """A deleted compute node is none, and is not marked: if it comes back it has to be discovered."""
    nova1.add_hosts(["a"], deleted=1).add_hosts(["b"], node="old", deleted=2).add_hosts(["b"])
    assert states(discover()) == [("b", "cell1", MAPPED)]
    nova1.run("DELETE FROM compute_nodes WHERE deleted = 0")
    assert nova1.marks() == {"a": 0, "b": 0}


def test_host_with_several_nodes(discover: Callable[..., Discovery], nova1: NovaCell) -> None:
    """A host is mapped once, however many nodes it has, and all of them are marked."""
    nova1.add_hosts(["a"], node="1").add_hosts(["a"], node="2", mapped=1).add_hosts([None], node="3")
    assert states(discover()) == [("a", "cell1", MAPPED)]
    nova1.run("DELETE FROM compute_nodes WHERE hypervisor_hostname <> '1'")
    assert nova1.marks() == {"a": 1}


def test_many_hosts(discover: Callable[..., Discovery], nova1: NovaCell, store: Store) -> None:
    """More hosts than one statement takes are all mapped and marked."""
    names = [f"compute{number:04}" for number in range(1201)]
    nova1.add_hosts(names)
    assert len(discover().having(MAPPED)) == 1201
    assert [mapping.host for mapping in store.list_hosts(limit=2000)] == names
    assert set(nova1.marks().values()) == {1}


def test_services(discover: Callable[..., Discovery], nova1: NovaCell) -> None:
    """By service, hosts of compute services are found, disabled ones included; compute nodes are left alone."""
    nova1.add_service("a").add_service("b", disabled=True).add_service("a")
    nova1.add_service("c", binary="nova-conductor").add_service("d", deleted=1).add_hosts(["a", "e"])
    assert states(discover(by_service=True)) == [("a", "cell1", MAPPED), ("b", "cell1", MAPPED)]
    assert nova1.marks() == {"a": 0, "e": 0}


def test_dry_run(discover: Callable[..., Discovery], nova1: NovaCell, store: Store, cell1: Cell) -> None:
    """A dry run says the same, and changes nothing."""
    nova1.add_hosts(["a", "b"])
    store.create_host("b", cell_id=cell1.id)
    assert states(discover(dry_run=True)) == [("a", "cell1", MAPPED), ("b", "cell1", ALREADY)]
    assert [mapping.host for mapping in store.list_hosts()] == ["b"]
    assert nova1.marks() == {"a": 0, "b": 0}


def test_cell_that_is_down(
    discover: Callable[..., Discovery], new_cell: Callable[..., Cell], nova1: NovaCell, store: Store, tmp_path: Path
) -> None:
    """A cell that does not answer is named, and keeps no other from being done."""
    new_cell("cell9", database_connection=f"sqlite:///{tmp_path}/none/there.sqlite")
    nova1.add_hosts(["a"])
    found = discover()
    assert [host.state for host in found.hosts] == [MAPPED]
    assert found.troubles == [
        "cell cell9: its database does not answer (OperationalError): its hosts were not looked at"
    ]


def test_cell_without_tables(discover: Callable[..., Discovery], cell2: Cell, nova1: NovaCell) -> None:
    """So is one whose database has no hosts in the tables that are configured."""
    nova1.add_hosts(["a"])
    found = discover()
    assert [host.state for host in found.hosts] == [MAPPED]
    assert found.troubles == [
        "cell cell2: the cell's database has no table 'compute_nodes': make it, or set [cellmw_tables] hosts_table: "
        "its hosts were not looked at"
    ]


def test_cell_that_can_not_be_told(discover: Callable[..., Discovery], nova1: NovaCell, store: Store) -> None:
    """A host stays mapped where its cell could not be told, and the next run tells it."""
    nova1.add_hosts(["a"]).run("CREATE TRIGGER no BEFORE UPDATE ON compute_nodes BEGIN SELECT RAISE(ABORT, 'no'); END")
    found = discover()
    assert found.troubles == [
        "cell cell1: its database failed (DBError): its hosts are mapped, and not marked as discovered in its database"
    ]
    assert [mapping.host for mapping in store.list_hosts()] == ["a"]
    nova1.run("DROP TRIGGER no")
    discover()
    assert nova1.marks() == {"a": 1}


@pytest.mark.parametrize(("of", "state", "mark"), [("cell1", ALREADY, 1), ("cell2", ELSEWHERE, 0)])
def test_mapped_meanwhile(
    discover: Callable[..., Discovery],
    nova1: NovaCell,
    cells: Cells,
    cell2: Cell,
    monkeypatch: pytest.MonkeyPatch,
    of: str,
    state: str,
    mark: int,
) -> None:
    """What somebody else maps at the same moment is what counts."""
    NovaCell(cell2.reveal_database_connection())
    nova1.add_hosts(["a", "b"])
    create_hosts = cells.store.create_hosts

    def after_another(hosts: list[str], *, cell_id: int) -> list[str]:
        cells.store.create_host("a", cell_id=cells.get(of).id)
        return create_hosts(hosts, cell_id=cell_id)

    monkeypatch.setattr(cells.store, "create_hosts", after_another)
    assert states(discover()) == [("a", "cell1", state), ("b", "cell1", MAPPED)]
    assert nova1.marks() == {"a": mark, "b": 1}


def test_tables_of_another_service(
    conf: cfg.ConfigOpts, cells: Cells, cell1: Cell, nova1: NovaCell, store: Store
) -> None:
    """Tables of other names, without flags for what is deleted or discovered, do as well."""
    for option, value in {
        "hosts_table": "workers",
        "host_name": "name",
        "host_mapped": "",
        "host_deleted": "",
    }.items():
        conf.set_override(option, value, group="cellmw_tables")
    nova1.run("CREATE TABLE workers (name VARCHAR(64))").run("INSERT INTO workers VALUES ('a')")
    assert states(discovery.discover(conf, cells, [cell1])) == [("a", "cell1", MAPPED)]
    assert states(discovery.discover(conf, cells, [cell1])) == [("a", "cell1", ALREADY)]


# --- reading


def test_hosts_of_a_cell_without_record(conf: cfg.ConfigOpts, nova1: NovaCell, cell1: Cell) -> None:
    """The hosts of a database can be listed before it is a cell's."""
    nova1.add_hosts(["b", "a"])
    assert discovery.hosts_in(conf, cell1) == ["a", "b"]


# --- deletion


@pytest.fixture
def at_home(nova1: NovaCell, store: Store, cell1: Cell) -> NovaCell:
    """The database of cell1, with a host that is mapped to it."""
    store.create_host("a", cell_id=cell1.id)
    return nova1.add_hosts(["a", "b"], mapped=1)


def test_delete(conf: cfg.ConfigOpts, cells: Cells, at_home: NovaCell, cell1: Cell, store: Store) -> None:
    """A deleted host has no mapping, and Nova finds it as a new nova1."""
    discovery.delete_host(conf, cells, cell1.uuid, "a")
    assert (store.list_hosts(), at_home.marks()) == ([], {"a": 0, "b": 1})


def test_dry_delete(conf: cfg.ConfigOpts, cells: Cells, at_home: NovaCell, cell1: Cell, store: Store) -> None:
    """A dry run changes nothing."""
    discovery.delete_host(conf, cells, cell1.uuid, "a", dry_run=True)
    assert (len(store.list_hosts()), at_home.marks()) == (1, {"a": 1, "b": 1})


@pytest.mark.parametrize(
    ("cell", "host", "error"),
    [("nope", "a", CellNotFound), ("cell1", "b", HostNotMapped), ("cell2", "a", HostElsewhere)],
)
def test_delete_what_is_not_there(
    conf: cfg.ConfigOpts,
    cells: Cells,
    at_home: NovaCell,
    cell1: Cell,
    cell2: Cell,
    store: Store,
    cell: str,
    host: str,
    error: type[Exception],
) -> None:
    """The cell, the host, and the host in this cell have to be there."""
    uuids = {"cell1": cell1.uuid, "cell2": cell2.uuid}
    with pytest.raises(error):
        discovery.delete_host(conf, cells, uuids.get(cell, cell), host)
    assert (len(store.list_hosts()), at_home.marks()) == (1, {"a": 1, "b": 1})


@pytest.mark.parametrize("hidden", [False, True])
def test_delete_a_host_with_instances(
    conf: cfg.ConfigOpts, cells: Cells, at_home: NovaCell, cell1: Cell, store: Store, hidden: bool
) -> None:
    """A host is not forgotten while an instance is on it, be it one on its way to another cell."""
    at_home.add_instance(INSTANCE, "a", hidden=hidden)
    with pytest.raises(HostInUse):
        discovery.delete_host(conf, cells, cell1.uuid, "a")
    assert (len(store.list_hosts()), at_home.marks()) == (1, {"a": 1, "b": 1})


def test_deleted_instances_and_those_of_others(
    conf: cfg.ConfigOpts, cells: Cells, at_home: NovaCell, cell1: Cell, store: Store
) -> None:
    """Instances that are deleted, or on another host, are no reason to keep nova1."""
    at_home.add_instance(INSTANCE, "a", deleted=1).add_instance(INSTANCE, "b")
    discovery.delete_host(conf, cells, cell1.uuid, "a")
    assert store.list_hosts() == []


def test_delete_in_a_cell_that_is_down(
    conf: cfg.ConfigOpts, cells: Cells, new_cell: Callable[..., Cell], store: Store, tmp_path: Path
) -> None:
    """A host is kept where nobody knows whether there are instances on it."""
    cell = new_cell("cell9", database_connection=f"sqlite:///{tmp_path}/none/there.sqlite")
    store.create_host("a", cell_id=cell.id)
    with pytest.raises(CellUnavailable):
        discovery.delete_host(conf, cells, cell.uuid, "a")
    assert len(store.list_hosts()) == 1


def test_interrupted_deletion(
    conf: cfg.ConfigOpts,
    cells: Cells,
    at_home: NovaCell,
    cell1: Cell,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A deletion that ends half-way leaves the host mapped, so that it can be done again, and waiting for discovery."""

    def ends(host: str) -> Any:
        raise StoreUnavailable("the API database does not answer")

    with monkeypatch.context() as patches:
        patches.setattr(cells.store, "delete_host", ends)
        with pytest.raises(StoreUnavailable):
            discovery.delete_host(conf, cells, cell1.uuid, "a")
    assert (len(store.list_hosts()), at_home.marks()) == (1, {"a": 0, "b": 1})
    discovery.delete_host(conf, cells, cell1.uuid, "a")
    assert store.list_hosts() == []
