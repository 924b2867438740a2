# SPDX-License-Identifier: Apache-2.0
"""Numbers of what is mapped and of what is there -> what does not go together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cellmw.admin.doctor.mappings import Mapped, compare_hosts, compare_instances, examine, read
from cellmw.cell import Cell

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cellmw.admin.doctor import Finding
    from cellmw.store import Store

CELL1, CELL2 = (Cell(number, f"uuid{number}", f"cell{number}", False, None, None) for number in (1, 2))


def mapped(instances: dict[int | None, int], living: dict[int | None, int] | None = None, **hosts: int) -> Mapped:
    """Return that so much is mapped; where nothing else is said none of it is queued for deletion."""
    return Mapped(instances, instances if living is None else living, hosts)


def told(findings: Iterable[Finding]) -> list[tuple[str, str, str, str]]:
    """Return what is said, without what to do."""
    return [(str(found.severity), found.cell, found.check, found.what) for found in findings]


def test_mapped_to_what_is_recorded() -> None:
    """What is mapped to cells with records, or to none yet, is as it should be."""
    assert told(examine([CELL1, CELL2], mapped({1: 5, None: 2}, host1=2))) == []


def test_dangling() -> None:
    """Instances and hosts that are mapped to a cell id without a record are counted."""
    assert told(examine([CELL1], mapped({1: 5, 7: 1, 8: 2}, host1=1, host2=7, host3=7))) == [
        ("error", "-", "mappings", "there is 1 instance mapped to cell id 7, which has no record"),
        ("error", "-", "mappings", "there are 2 instances mapped to cell id 8, which has no record"),
        ("error", "-", "mappings", "there are 2 hosts mapped to cell id 7, which has no record"),
    ]


@pytest.mark.parametrize(
    ("here", "there", "queued", "wrong"),
    [(5, 5, 0, False), (0, 0, 3, False), (6, 5, 1, False), (7, 5, 1, True), (4, 5, 1, True), (1, 0, 0, True)],
)
def test_numbers(here: int, there: int, queued: int, wrong: bool) -> None:
    """A cell has as many instances as are mapped to it, or some more whose deletion has begun."""
    findings = told(compare_instances([CELL1, CELL2], mapped({1: there + queued}, {1: there}), {1: here}))
    verb = "there is 1 instance" if here == 1 else f"there are {here} instances"
    text = f"{verb} in it that live, and {there} mapped to it"
    assert findings == ([("warning", "cell1", "mappings", text)] if wrong else [])


def test_what_verify_does() -> None:
    """It is not promised that a repair makes up for instances that are gone."""
    (found,) = compare_instances([CELL1], mapped({1: 5}, {1: 5}), {1: 4})
    assert found.todo == "`cellmw-manage verify --cell_uuid uuid1` shows which, and --repair corrects what is safe to"


def test_hosts() -> None:
    """Hosts that are mapped to their own cell are as they should be."""
    assert told(compare_hosts([CELL1, CELL2], mapped({}, host1=1, host2=2), {1: ["host1"], 2: ["host2"]})) == []


def test_hosts_that_are_not_mapped() -> None:
    """A host that is not mapped is named, with the command for it."""
    (found,) = compare_hosts([CELL1], mapped({}, host1=1), {1: ["host1", "host2", "host3"]})
    assert told([found]) == [
        (
            "warning",
            "cell1",
            "hosts",
            "there are 2 hosts in it that no instance is sent to, not being mapped: host2, host3",
        )
    ]
    assert "discover_hosts --cell_uuid uuid1" in found.todo


def test_hosts_of_another_cell() -> None:
    """A host that is mapped to another cell than it is in is named."""
    assert told(compare_hosts([CELL1, CELL2], mapped({}, host1=2, host2=9), {1: ["host1", "host2"], 2: ["host1"]})) == [
        ("error", "cell1", "hosts", "its host host1 is mapped to cell cell2"),
        ("error", "cell1", "hosts", "its host host2 is mapped to cell id 9"),
    ]


def test_hosts_that_are_gone() -> None:
    """A host that is mapped and not there is told of; of a cell that did not answer nobody knows."""
    assert told(compare_hosts([CELL1, CELL2], mapped({}, host1=1, host2=2), {1: []})) == [
        ("info", "cell1", "hosts", "there is 1 host mapped to it and not there: host1"),
    ]


def test_read(store: Store, new_cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All hosts are read, however many pages that are, and the instances are counted."""
    monkeypatch.setattr(type(store).all_hosts, "__defaults__", (None, 2))
    cell = new_cell("cell1")
    for number in range(5):
        store.create_host(f"host{number}", cell_id=cell.id)
        store.create_instance(f"{number}" * 36, project_id="p", cell_id=cell.id if number else None)
    store.update_instance("4" * 36, queued_for_delete=True)
    found = read(store)
    assert found.hosts == {f"host{number}": cell.id for number in range(5)}
    assert found.instances == {None: 1, cell.id: 4}
    assert found.living == {None: 1, cell.id: 3}
