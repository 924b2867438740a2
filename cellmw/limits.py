# SPDX-License-Identifier: Apache-2.0
"""Limits: how long and how much the use of a database or a queue may take, and the threads that see to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from cellmw import forks
from cellmw.crew import Crew
from cellmw.watch import Watch


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What all databases and queues behind one filter have in common. Lives as long as that.

    :ivar patience: seconds that each single wait may take where there is no deadline
    :ivar probe_interval: the longest pause between two probes of something that is down, in seconds
    :ivar max_connections: how many connections there may be to one database, and to one queue
    """

    patience: float = 60.0
    probe_interval: float = 2.0
    max_connections: int = 15
    watch: Watch = field(default_factory=Watch)
    crew: Crew = field(default_factory=Crew)

    def __post_init__(self) -> None:
        forks.follow(self)

    def begin_anew(self) -> None:
        """Begin without threads, in a child process, which has inherited none."""
        self.watch.begin_anew()
        self.crew.begin_anew()
