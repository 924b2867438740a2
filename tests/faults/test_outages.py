# SPDX-License-Identifier: Apache-2.0
"""A server is killed, frozen or replaced by a black hole under load: each in turn, on real servers.

Each outage happens once, and all tests look at it. What it came to is printed.
"""

from __future__ import annotations

import functools
import itertools
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.conftest import found
from tests.faults.figures import show
from tests.faults.rig import REQUEST_DEADLINE, SICK, Rig
from tests.faults.scenario import FAULTS, Outage, lost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.faults.load import Request

# amqp's, which kombu drops unclosed when their broker is gone
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")

SLACK = 1.0
"""Seconds by which an answer may be late: until a thread that may go on does go on, on a machine with other work."""

AT_ONCE = REQUEST_DEADLINE / 2
"""Seconds within which is answered who waits for nothing that is down."""

OUTAGES = list(itertools.product(SICK, FAULTS))

EACH = pytest.mark.parametrize(("victim", "fault"), OUTAGES)


@pytest.fixture(scope="module")
def outage_of() -> Iterator[Callable[[str, str], Outage | Exception]]:
    """Return the outage of this victim by this fault, which happens when it is asked for first."""

    def happen(victim: str, fault: str) -> Outage | Exception:
        try:
            return Outage(rig, victim, fault)
        except Exception as error:  # noqa: BLE001 - it is raised in every test that looks at the outage
            return error

    with ExitStack() as stack:
        rig = found(lambda: stack.enter_context(Rig()))
        yield functools.cache(happen)


@pytest.fixture
def outage(outage_of: Callable[[str, str], Outage | Exception], victim: str, fault: str) -> Outage:
    """The outage that the test is about."""
    happened = outage_of(victim, fault)
    if isinstance(happened, Exception):
        raise happened
    return happened


def slower(requests: Iterable[Request], seconds: float) -> list[str]:
    """Return those that took longer than this, and how long."""
    return [f"{one.kind} in {one.cell}: {one.status} after {one.took:.2f} s" for one in requests if one.took > seconds]


@EACH
def test_recovery(outage: Outage, capsys: pytest.CaptureFixture[str]) -> None:
    """When the server is back all is well again, by itself."""
    show(capsys, outage.figures())
    assert outage.recovered


@EACH
def test_other_cells(outage: Outage) -> None:
    """No other cell loses a request; where the API database is the victim, no cell at all does."""
    assert lost(outage.of(*outage.healthy)) == {}


@EACH
def test_answers(outage: Outage) -> None:
    """The sick cell's requests are answered with what was asked for, or with a 503 that says when to come again."""
    assert lost(request for request in outage.of(outage.sick) if request.wrong) == {}


@EACH
def test_no_fault_no_503(outage: Outage) -> None:
    """Before anything has happened all requests get what they want."""
    assert lost(request for request in outage.requests if request.end < outage.struck) == {}


@EACH
def test_deadline(outage: Outage) -> None:
    """Every request is answered within its deadline, in whatever cell."""
    assert outage.stuck == []
    assert slower(outage.requests, REQUEST_DEADLINE + SLACK) == []


@EACH
def test_at_once(outage: Outage) -> None:
    """A moment after the first 503 it is known what is down, and nobody waits for it any more."""
    in_vain = [request.end for request in outage.of(outage.sick) if request.status == 503]
    known = min(in_vain, default=outage.back) + SLACK
    later = [request for request in outage.of(outage.sick) if known <= request.start < outage.back]
    assert later
    assert slower(later, AT_ONCE) == []


@pytest.mark.parametrize(("victim", "fault"), [pair for pair in OUTAGES if pair[0] == "broker"])
def test_reads_without_a_queue(outage: Outage) -> None:
    """A cell whose queue is down goes on reading from its database."""
    assert lost(request for request in outage.of(outage.sick) if request.kind == "read") == {}


@EACH
def test_fault_is_felt(outage: Outage) -> None:
    """Each fault makes itself felt: where it did not, the other tests would say nothing."""
    assert any(request.status == 503 for request in outage.of(outage.sick))


@EACH
def test_acknowledged_casts(outage: Outage) -> None:
    """A cast that was acknowledged arrives at the worker of its cell, also where it waited in a broker that died."""
    assert outage.waiting or outage.victim != "broker"
    assert outage.missing() == set()


@EACH
def test_casts_astray(outage: Outage) -> None:
    """None ever arrives anywhere else."""
    assert outage.astray() == set()


@EACH
def test_casts_not_sent(outage: Outage) -> None:
    """None that was not sent, as its error said, arrives later."""
    assert outage.risen() == set()


@EACH
def test_leases(outage: Outage) -> None:
    """In the end no lease is open."""
    assert outage.leases == 0
