# SPDX-License-Identifier: Apache-2.0
"""What a case is: rows, a command, and what comes of it. Nothing here runs anything, so that the manual can read it.

A fact is a row, in words, or that there are tables. ``facts()`` of ``bench.py`` makes them of the databases, and
``lay()`` databases of them:

``tables DATABASE0``
    that the database of cell0 has its tables; all others have theirs
``cell CELL1 cell1 QUEUE1 DATABASE1 enabled``
    a cell: its uuid, its name, its URLs
``host host-1 CELL1``
    the mapping of a host
``mapping INSTANCE1 CELL1 kept``
    the mapping of an instance, ``queued`` where it is to be deleted
``marker INSTANCE1``
    how far ``map_instances`` has come, as nova-manage notes it
``progress CELL1``
    that ``map_instances`` has not come to the end, as cellmw-manage notes it
``instance DATABASE1 INSTANCE1 host-1 alive``
    an instance in the database of a cell; ``deleted`` there; or ``nobodys``, without a project
``service DATABASE1 host-1 nova-compute``
    a service there
``node DATABASE1 host-1 mapped``
    a compute node there, ``unmapped`` where its host is to be discovered

Words in capitals stand for the uuids and URLs that ``bench.py`` has for them. ``NEW`` is a uuid made by the command.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Kind(StrEnum):
    """What a fact is about, in the order in which the rows can be written."""

    TABLES = "tables"
    CELL = "cell"
    HOST = "host"
    MAPPING = "mapping"
    MARKER = "marker"
    PROGRESS = "progress"
    INSTANCE = "instance"
    SERVICE = "service"
    NODE = "node"


CELLS = ("CELL0", "CELL1", "CELL2")

DEPLOYMENT = (
    "tables DATABASE0",
    "cell CELL0 cell0 none:/// DATABASE0 enabled",
    "cell CELL1 cell1 QUEUE1 DATABASE1 enabled",
    "cell CELL2 cell2 QUEUE2 DATABASE2 enabled",
    "host host-1 CELL1",
    "service DATABASE1 host-1 nova-compute",
    "node DATABASE1 host-1 mapped",
    "instance DATABASE1 INSTANCE1 host-1 alive",
    "mapping INSTANCE1 CELL1 kept",
)
"""What is there first: a cell with a host and an instance, and one without either. ``nova.conf`` has the first one's
URLs."""


class Ours(NamedTuple):
    """What is different with cellmw-manage. What is None is not.

    :ivar why: the reason, for the manual
    """

    why: str
    exit_code: int | None = None
    writes: Iterable[str] | None = None
    prints: Iterable[str] | None = None


class Meanwhile(NamedTuple):
    """What happens when a command is about to execute a statement that begins in one of these ways.

    :ivar change: a fact that somebody else has changed by then
    :ivar then: ``go on``, ``kill`` or ``interrupt``
    :ivar time: at which of these statements of nova-manage
    :ivar our_time: and of cellmw-manage, which needs fewer
    """

    statements: tuple[str, ...]
    change: str = ""
    then: str = "go on"
    time: int = 1
    our_time: int = 1


class First(NamedTuple):
    """What the other program has run before."""

    command: str
    exit_code: int = 0
    meanwhile: Meanwhile | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One command in one situation.

    :ivar when: the situation, for the manual
    :ivar exit_code: that of nova-manage, as the following are nova-manage's
    :ivar given: how the rows are not those of the deployment: ``+ fact``, ``- fact``
    :ivar writes: what the command does to the rows, likewise
    :ivar prints: what is on stdout: the rows of a table, or the cells that are named; None where it is prose only
    :ivar configuration: ``nova.conf``; ``another.conf``, with URLs that no cell has; or ``empty.conf``, without URLs
    :ivar synced: whether ``cellmw-manage api_db sync`` was run
    :ivar only: ``sqlite`` or ``mysql`` where it can be seen there only
    :ivar ours: how cellmw-manage differs, if it does
    """

    when: str
    command: str
    exit_code: int = 0
    given: tuple[str, ...] = ()
    first: First | None = None
    meanwhile: Meanwhile | None = None
    writes: tuple[str, ...] = ()
    prints: tuple[str, ...] | None = None
    configuration: str = "nova.conf"
    synced: bool = True
    only: str = ""
    ours: Ours | None = None

    def __str__(self) -> str:
        """Say which it is."""
        return f"{self.name}: {self.when}{self.only and f' ({self.only})'}"

    @property
    def name(self) -> str:
        """The name of the command."""
        return self.command.split()[0]

    @property
    def facts(self) -> set[str]:
        """The rows that are there before."""
        facts = set(DEPLOYMENT)
        for change in self.given:
            facts = changed(facts, change)
        return facts

    @property
    def our_exit_code(self) -> int:
        """That of cellmw-manage."""
        return self.exit_code if self.ours is None or self.ours.exit_code is None else self.ours.exit_code


def changed(facts: set[str], change: str) -> set[str]:
    """Do to facts what a change says.

    :raises ValueError: if that changes nothing, so that a case means what it says
    """
    sign, _, fact = change.partition(" ")
    after = {"+": facts | {fact}, "-": facts - {fact}}[sign]
    if after == facts:
        raise ValueError(f"{change}: changes nothing")
    return after
