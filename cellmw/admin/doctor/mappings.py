# SPDX-License-Identifier: Apache-2.0
"""What the API database has mapped, and what the cells have -> where the two differ, in numbers.

Which instances these are is for ``cellmw-manage verify`` to say: it reads every one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cellmw.admin.doctor.finding import NO_CELL, Finding, Severity, counted, listed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from cellmw.cell import Cell
    from cellmw.store import Store

CHECK = "mappings"
HOSTS = "hosts"


@dataclass(frozen=True)
class Mapped:
    """What the API database has mapped.

    :ivar instances: id of a cell -> how many instances, those that are queued for deletion included
    :ivar living: the same without those
    :ivar hosts: host -> the id of its cell
    """

    instances: Mapping[int | None, int]
    living: Mapping[int | None, int]
    hosts: Mapping[str, int]


def read(store: Store) -> Mapped:
    """Read what is mapped.

    :raises StoreUnavailable: if the API database does not answer
    """
    hosts = {mapping.host: mapping.cell_id for mapping in store.all_hosts()}
    return Mapped(store.count_instances(), store.count_living(), hosts)


def examine(cells: Sequence[Cell], mapped: Mapped) -> Iterator[Finding]:
    """Tell what is mapped to a cell that has no record."""
    hosts: dict[int, int] = {}
    for cell_id in mapped.hosts.values():
        hosts[cell_id] = hosts.get(cell_id, 0) + 1
    known = {cell.id for cell in cells}
    counts: list[tuple[str, Mapping[int, int]]] = [
        ("instance", {ref: count for ref, count in mapped.instances.items() if ref is not None}),
        ("host", hosts),
    ]
    for what, by_cell in counts:
        for cell_id, count in sorted(by_cell.items()):
            if cell_id not in known:
                text = f"{counted(count, what)} mapped to cell id {cell_id}, which has no record"
                todo = (
                    "record the cell again, with that id: `cellmw-manage cell_v2 import`; or see `cellmw-manage verify`"
                )
                yield Finding(Severity.ERROR, NO_CELL, CHECK, text, todo)


def compare_instances(cells: Iterable[Cell], mapped: Mapped, living: Mapping[int, int]) -> Iterator[Finding]:
    """Tell which cells have more living instances than are mapped to them, or fewer.

    A mapping is queued for deletion at once, and its instance lives on until its host has deleted it.

    :param living: id of a cell -> how many instances live there, where that is known
    """
    for cell in cells:
        if cell.id not in living:
            continue
        here, there = living[cell.id], mapped.living.get(cell.id, 0)
        queued = mapped.instances.get(cell.id, 0) - there
        if there <= here <= there + queued:
            continue
        text = f"{counted(here, 'instance')} in it that live, and {there} mapped to it"
        todo = f"`cellmw-manage verify --cell_uuid {cell.uuid}` shows which, and --repair corrects what is safe to"
        yield Finding(Severity.WARNING, str(cell), CHECK, text, todo)


def compare_hosts(cells: Sequence[Cell], mapped: Mapped, hosts: Mapping[int, Sequence[str]]) -> Iterator[Finding]:
    """Tell which hosts of the cells are not mapped, or to another cell, and which are mapped and not there.

    :param hosts: id of a cell -> its hosts, where they are known
    """
    names = {cell.id: str(cell) for cell in cells}
    for cell in cells:
        if cell.id not in hosts:
            continue
        there = hosts[cell.id]
        if unmapped := [host for host in there if host not in mapped.hosts]:
            text = f"{counted(len(unmapped), 'host')} in it that no instance is sent to, not being mapped: "
            todo = f"`cellmw-manage cell_v2 discover_hosts --cell_uuid {cell.uuid}`"
            yield Finding(Severity.WARNING, str(cell), HOSTS, text + listed(unmapped), todo)
        for host in there:
            other = mapped.hosts.get(host, cell.id)
            if other != cell.id:
                text = f"its host {host} is mapped to cell {names.get(other, f'id {other}')}"
                todo = "if it is here: `cellmw-manage cell_v2 delete_host`, then discover_hosts; if there: rename one"
                yield Finding(Severity.ERROR, str(cell), HOSTS, text, todo)
        gone = sorted(host for host, cell_id in mapped.hosts.items() if cell_id == cell.id and host not in there)
        if gone:
            text = f"{counted(len(gone), 'host')} mapped to it and not there: {listed(gone)}"
            todo = f"if it is gone for good: `cellmw-manage cell_v2 delete_host --cell_uuid {cell.uuid} --host HOST`"
            yield Finding(Severity.INFO, str(cell), HOSTS, text, todo)
