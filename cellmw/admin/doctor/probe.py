# SPDX-License-Identifier: Apache-2.0
"""Probes -> what they find: all at the same time, each by a thread that is left when its time is up."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cellmw.admin.doctor.finding import Finding, Severity
from cellmw.deadline import after, left
from cellmw.exceptions import CellmwError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cellmw.crew import Crew, Job

LOG = logging.getLogger(__name__)

_AT_ONCE = 200
"""How many probes there are at a time. Each has a thread, and with thousands of them none would be in time."""

_GRACE = 0.5
"""Seconds that a probe gets to say by itself that its time is up, before its thread is left."""


class Unanswered(Exception):
    """Nobody answers, or not so that anything can be found out.

    :ivar what: why, in a few words
    :ivar todo: what to do about it
    """

    def __init__(self, what: str, todo: str) -> None:
        super().__init__(what)
        self.what = what
        self.todo = todo


@dataclass(frozen=True)
class Probe:
    """Something that is asked, and may never answer.

    :ivar checks: what it finds something out for; that there is no answer is found by the first one
    :ivar cell: whose it is
    :ivar subject: what is asked, as in ``the broker host1:5672``
    :ivar ask: does it; what it raises Unanswered with is about the subject
    """

    checks: Sequence[str]
    cell: str
    subject: str
    ask: Callable[[], Iterable[Finding]]


def run(probes: Sequence[Probe], checks: Iterable[str], crew: Crew, timeout: float) -> Iterator[Finding]:
    """Run all probes, and give what they find out for these checks; that one gets no answer is always told.

    :param timeout: seconds that each of them has
    """
    wanted = set(checks)
    stuck: set[object] = set()
    for first in range(0, len(probes), _AT_ONCE):
        some = probes[first : first + _AT_ONCE]
        jobs = [(probe, crew.start(partial(_asked, probe), stuck)) for probe in some]
        deadline = after(timeout + _GRACE)
        for probe, job in jobs:
            if not job.wait(left(deadline)) and job.leave():
                yield _unanswered(probe, f"no answer within {timeout:g} s", "see whether it is alive, and the network")
            else:
                yield from _found(probe, job, wanted)


def _asked(probe: Probe) -> list[Finding]:
    return list(probe.ask())


def _found(probe: Probe, job: Job[list[Finding]], wanted: set[str]) -> Iterator[Finding]:
    try:
        yield from (finding for finding in job.result() if finding.check in wanted)
    except Unanswered as unanswered:
        yield _unanswered(probe, unanswered.what, unanswered.todo)
    except StoreUnavailable as error:
        # most of these say themselves what to do
        todo = "see what it says" if ": " in str(error) else "start it, or correct [api_database] connection"
        yield _unanswered(probe, str(error), todo)
    except CellmwError as error:
        yield _unanswered(probe, str(error), "see what it says")
    except Exception as error:
        LOG.debug("%s of cell %s", probe.subject, probe.cell, exc_info=True)
        yield _unanswered(
            probe, f"{type(error).__name__}, which should not happen", "`cellmw-manage --debug doctor` shows where"
        )


def _unanswered(probe: Probe, what: str, todo: str) -> Finding:
    return Finding(Severity.ERROR, probe.cell, probe.checks[0], f"{probe.subject}: {what}", todo)
