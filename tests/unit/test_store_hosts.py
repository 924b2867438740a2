# SPDX-License-Identifier: Apache-2.0
"""The host mappings, on SQLite; tests/services runs the same on servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cellmw import engines
from cellmw.exceptions import HostMapped, HostNotMapped
from cellmw.store import HostMapping, Store, migrations

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    engine = engines.make_engine(f"sqlite:///{tmp_path}/api.db", {}, pre_ping=False)
    migrations.sync(engine)
    with Store(engine) as store:
        yield store


@pytest.fixture
def cells(store: Store) -> list[int]:
    """The ids of two cells."""
    return [
        store.create_cell(
            name=None, transport_url=f"rabbit://host{number}/", database_connection=f"sqlite:///{number}.db"
        ).id
        for number in (1, 2)
    ]


def test_created_mapping_can_be_read(store: Store, cells: list[int]) -> None:
    """What create_host returns is what is read back."""
    assert store.create_host("compute1", cell_id=cells[0]) == store.get_host("compute1")


def test_unknown_host(store: Store) -> None:
    """To get what is not mapped is an error that carries the host."""
    with pytest.raises(HostNotMapped) as caught:
        store.get_host("compute1")
    assert caught.value.host == "compute1"


def test_mapping_twice_is_refused(store: Store, cells: list[int]) -> None:
    """A host has one mapping."""
    store.create_host("compute1", cell_id=cells[0])
    with pytest.raises(HostMapped) as caught:
        store.create_host("compute1", cell_id=cells[1])
    assert caught.value.host == "compute1"


def test_update_moves_a_host(store: Store, cells: list[int]) -> None:
    """A host can be mapped to another cell."""
    store.create_host("compute1", cell_id=cells[0])
    assert store.update_host("compute1", cell_id=cells[1]) == store.get_host("compute1") == ("compute1", cells[1])


def test_update_to_its_own_cell(store: Store, cells: list[int]) -> None:
    """A host may be given the cell that it has already."""
    store.create_host("compute1", cell_id=cells[0])
    assert store.update_host("compute1", cell_id=cells[0]).cell_id == cells[0]


def test_update_of_an_unknown_host(store: Store, cells: list[int]) -> None:
    """There is nothing to update where nothing is mapped."""
    with pytest.raises(HostNotMapped):
        store.update_host("compute1", cell_id=cells[0])


def test_deleted_mapping_is_gone(store: Store, cells: list[int]) -> None:
    """A deleted host is not listed any more."""
    store.create_host("compute1", cell_id=cells[0])
    store.delete_host("compute1")
    assert store.list_hosts() == []


def test_delete_an_unknown_host(store: Store) -> None:
    """To delete what is not mapped is an error."""
    with pytest.raises(HostNotMapped):
        store.delete_host("compute1")


def test_pages_go_by_host(store: Store, cells: list[int]) -> None:
    """A page begins behind its marker, which need not be mapped."""
    for number in (3, 1, 2):
        store.create_host(f"compute{number}", cell_id=cells[0])
    assert store.list_hosts(limit=2, marker="compute0") == [
        HostMapping("compute1", cells[0]),
        HostMapping("compute2", cells[0]),
    ]


def test_list_of_one_cell(store: Store, cells: list[int]) -> None:
    """A listing can be of one cell only."""
    store.create_host("compute1", cell_id=cells[0])
    store.create_host("compute2", cell_id=cells[1])
    assert store.list_hosts(cells[1]) == [HostMapping("compute2", cells[1])]


def test_all_mappings(store: Store, cells: list[int]) -> None:
    """All mappings are found, however many pages they are, and can be those of one cell."""
    store.create_hosts(["a", "b", "c"], cell_id=cells[0])
    store.create_host("d", cell_id=cells[1])
    assert [mapping.host for mapping in store.all_hosts(page_size=2)] == ["a", "b", "c", "d"]
    assert list(store.all_hosts(cells[1])) == [HostMapping("d", cells[1])]


def test_many_at_once(store: Store, cells: list[int]) -> None:
    """Any number of hosts are mapped at once; those that are mapped already stay where they are, and are left out."""
    hosts = [f"compute{number:04}" for number in range(2100)]
    store.create_host("compute0007", cell_id=cells[1])
    assert store.create_hosts(reversed(hosts), cell_id=cells[0]) == [host for host in hosts if host != "compute0007"]
    assert store.get_host("compute0007").cell_id == cells[1]
    assert store.count_hosts() == {cells[0]: 2099, cells[1]: 1}


def test_same_host_twice(store: Store, cells: list[int]) -> None:
    """A host that is named twice is mapped once."""
    assert store.create_hosts(["a", "a"], cell_id=cells[0]) == ["a"]


def test_none_at_once(store: Store, cells: list[int]) -> None:
    """To map no hosts, or none that is new, is no error."""
    store.create_host("a", cell_id=cells[0])
    assert store.create_hosts([], cell_id=cells[0]) == store.create_hosts(["a"], cell_id=cells[0]) == []


def test_find_many(store: Store, cells: list[int]) -> None:
    """Of any number of hosts those are found that are mapped."""
    store.create_hosts(["a", "b", "c"], cell_id=cells[0])
    wanted = ["b", *(f"compute{number}" for number in range(1500)), "c"]
    assert sorted(store.find_hosts(wanted)) == [HostMapping("b", cells[0]), HostMapping("c", cells[0])]
    assert store.find_hosts(["b"] * 1500) == [HostMapping("b", cells[0])]
    assert store.find_hosts([]) == []
