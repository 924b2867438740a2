# SPDX-License-Identifier: Apache-2.0
"""Instances whose rows are in another cell's database by now -> mappings to that cell, and no request in both of them.

A worker goes by what it knows: which instances are held back it learns within ``refresh_interval``, and a mapping that
it has looked up it uses for ``mapping_ttl``. So an instance is held back, then waited for until every worker knows,
then mapped to the other cell, then waited for until no worker can know the old mapping or have a request under way by
it, and then let go. Whatever becomes of the process that does it, the hold ends by itself.

Of two moves of one instance the later one goes on: its hold takes the place of the other one's, which finds that before
it changes anything. Where the other one has changed the mapping already, and waits, it has its hold back afterwards.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from oslo_utils import timeutils

from cellmw import deploy
from cellmw.exceptions import CellmwError, InstanceNotMapped, StoreUnavailable
from cellmw.store import Hold

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from oslo_config import cfg

    from cellmw.cell import Cell
    from cellmw.cells import Cells
    from cellmw.store import InstanceMapping

CHANGED = "changed meanwhile"
"""What became of an instance whose mapping somebody else has changed."""

_SLACK = 2.0
"""Seconds that a worker may take to read what it reads anew once in ``refresh_interval``."""

_SKEW = 60.0
"""Seconds by which the clocks of hosts may differ."""


class HoldLost(CellmwError):
    """The move has taken so long that requests may have been let through again; the mappings are as they were."""

    def __init__(self) -> None:
        super().__init__(
            "it took too long, and requests may have been let through again: nothing was moved, start anew"
        )


class HoldTaken(CellmwError):
    """Somebody else has begun to move one of the instances; the mappings are as they were."""

    def __init__(self, instance_uuid: str) -> None:
        super().__init__(
            f"somebody else has begun to move instance {instance_uuid}, or has let it go: nothing was moved; see where "
            "it is when they are done, and start anew if it is to go elsewhere"
        )
        self.instance_uuid = instance_uuid


@dataclass(frozen=True)
class Pace:
    """How long it takes until all workers know something.

    :ivar told: seconds until every worker knows what is held back
    :ivar ended: seconds until none has a request under way that has begun before that
    :ivar over: seconds until, besides, none goes by a mapping that was changed
    """

    told: float
    ended: float
    over: float

    @classmethod
    def of(cls, conf: cfg.ConfigOpts) -> Pace:
        """Return that of services with this configuration.

        :raises ConfigError: if an option has a value that it does not take
        """
        chosen = deploy.settings(conf)
        ended = chosen.request_deadline
        return cls(chosen.refresh_interval + _SLACK, ended, max(ended, chosen.mapping_ttl))


class Moved(NamedTuple):
    """What became of one instance.

    :ivar before: the id of the cell that it was mapped to, None where it was being built
    :ivar outcome: ``moved``; ``unchanged`` where it was mapped to the cell already; :data:`CHANGED` where somebody else
        has changed the mapping, and it was left at that
    """

    instance_uuid: str
    before: int | None
    outcome: str


class Move:
    """Instances on their way to a cell, for a with block. Lives as long as the command.

    When the block ends before the mappings were changed, be it by Ctrl-C, the instances are let go; after that only
    :meth:`let_go` or the end of the hold does.

    :ivar mappings: of the instances, as they were read
    :ivar is_needed: whether one of them leads elsewhere
    :ivar is_done: whether the mappings were changed
    """

    def __init__(self, cells: Cells, uuids: Sequence[str], cell: Cell, pace: Pace) -> None:
        """Read the mappings.

        :raises InstanceNotMapped: if one of them has none
        """
        self._cells = cells
        self._cell = cell
        self._pace = pace
        self.is_done = False
        found = {mapping.instance_uuid: mapping for mapping in cells.store.find_instances(uuids)}
        for uuid in uuids:
            if uuid not in found:
                raise InstanceNotMapped(uuid)
        self.mappings: list[InstanceMapping] = [found[uuid] for uuid in dict.fromkeys(uuids)]
        self.is_needed = any(mapping.cell_id != cell.id for mapping in self.mappings)
        self._held: list[str] = []
        self._hold = Hold(timeutils.utcnow(), {})

    @property
    def until(self) -> datetime:
        """When the hold ends by itself, in UTC."""
        return self._hold.until

    @property
    def held_by_others(self) -> datetime | None:
        """Until when another move holds some of them as well, which may have been killed; None where none does."""
        return max((until for until in self._hold.before.values() if until > timeutils.utcnow()), default=None)

    def __enter__(self) -> Move:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._held and not self.is_done:
            # what ends the block says more than that the hold has to end by itself
            with contextlib.suppress(StoreUnavailable) if kind else contextlib.nullcontext():
                self.let_go()

    def hold(self) -> None:
        """Have the instances held back; every worker knows when ``pace.told`` has passed."""
        whole = self._pace.told + self._pace.over + _SKEW
        until = (timeutils.utcnow() + timedelta(seconds=whole)).replace(microsecond=0) + timedelta(seconds=1)
        self._hold = Hold(until, {})
        self._held = [mapping.instance_uuid for mapping in self.mappings]
        self._hold = self._cells.store.hold_instances(self._held, until)

    def change(self) -> list[Moved]:
        """Map each to the cell, unless somebody else has changed its mapping meanwhile.

        :raises HoldLost: if it is too late for that
        :raises HoldTaken: if somebody else moves one of them by now
        """
        held = {held.instance_uuid: held.until for held in self._cells.store.list_held().instances}
        for uuid in self._held:
            if held.get(uuid) != self.until:
                raise HoldTaken(uuid)
        if timeutils.utcnow() + timedelta(seconds=self._pace.over) > self.until:
            raise HoldLost
        there = self._cell.id
        moving = [mapping for mapping in self.mappings if mapping.cell_id != there]
        # from here on, should it be interrupted, nobody knows whether they were moved: they are not let go at once
        self.is_done = True
        changes = [(mapping, mapping._replace(cell_id=there)) for mapping in moving]
        was_so = dict(zip(moving, self._cells.store.change_instances(changes), strict=True))
        self._cells.mappings.forget_all(self._held)
        outcomes = {None: "unchanged", True: "moved", False: CHANGED}
        return [
            Moved(mapping.instance_uuid, mapping.cell_id, outcomes[was_so.get(mapping)]) for mapping in self.mappings
        ]

    def let_go(self) -> None:
        """Have requests for them let through again."""
        self._cells.store.let_go_instances(self._held, self._hold)
        self._held = []
