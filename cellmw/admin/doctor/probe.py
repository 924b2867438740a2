# SPDX-License-Identifier: Apache-2.0
"""Probes -> what they find: all are asked side by side, and that one does not answer is a finding, too."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cellmw.admin.asking import ask
from cellmw.admin.doctor.finding import Finding, Severity
from cellmw.admin.refusals import of_store
from cellmw.exceptions import CellmwError, DeadlineExceeded, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cellmw.crew import Crew

LOG = logging.getLogger(__name__)

_AT_ONCE = 200
"""How many probes there are at a time. Each has a thread, and with thousands of them none would be in time."""

_GRACE = 0.5
"""Seconds that a probe gets to say by itself that its time is up, before its thread is left."""


_AS_IT_SAYS = "see what it says"


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
    questions = {number: partial(_asked, probe) for number, probe in enumerate(probes)}
    answers = ask(questions, timeout + _GRACE, crew, _AT_ONCE)
    for probe, answer in zip(probes, answers.values(), strict=True):
        if isinstance(answer, Exception):
            yield _unanswered(probe, *_said(probe, answer, timeout))
        else:
            yield from (finding for finding in answer if finding.check in wanted)


def _asked(probe: Probe) -> list[Finding]:
    return list(probe.ask())


def _said(probe: Probe, error: Exception, timeout: float) -> tuple[str, str]:
    """Return why there is no answer, and what to do about it."""
    if isinstance(error, Unanswered):
        return error.what, error.todo
    if isinstance(error, DeadlineExceeded):
        return f"no answer within {timeout:g} s", "see whether it is alive, and the network"
    if isinstance(error, StoreUnavailable):
        what, todo = of_store(error)
        return what, todo or _AS_IT_SAYS
    if isinstance(error, CellmwError):
        return str(error), _AS_IT_SAYS
    LOG.debug("%s of cell %s", probe.subject, probe.cell, exc_info=error)
    return f"{type(error).__name__}, which should not happen", "`cellmw-manage --debug doctor` shows where"


def _unanswered(probe: Probe, what: str, todo: str) -> Finding:
    return Finding(Severity.ERROR, probe.cell, probe.checks[0], f"{probe.subject}: {what}", todo)
