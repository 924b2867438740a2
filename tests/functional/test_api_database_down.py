# SPDX-License-Identifier: Apache-2.0
"""The API database is down: requests for instances that are known go on, others are answered at once.

It is the filter's own way to the API database that is cut; the test has another one. Time passes when the test says so,
but for the pauses between the probes.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest

from cellmw.fixture import Resource
from cellmw.fixture.recorder import guard
from tests.functional.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed.wsgi import StartResponse, WSGIApplication

    from cellmw import CellFilter
    from tests.functional.conftest import Answer, Deployment, Show

    Ask = Callable[[str], tuple[int, str]]

MAPPING_TTL = 60.0
STALE_TTL = 600.0

NEVER = "86400"
"""Seconds between two readings of the cells, or two probes, where a test wants none."""

OFTEN = pytest.mark.parametrize("probe_interval", ["0.1"])
"""Has the API database probed while it is down."""


class Clock:
    """The time, which passes when a test says so. Lives as long as the test."""

    def __init__(self) -> None:
        self._now = 1000.0

    def __call__(self) -> float:
        """Tell it."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let it pass."""
        self._now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of everything that a request meets."""
    clock = Clock()
    for module in ("deadline", "filter", "mapping", "watch"):
        monkeypatch.setattr(f"cellmw.{module}.monotonic", clock)
    return clock


class Link(Resource):
    """The filter's way to the API database, which the test can cut. Lives as long as the test.

    :ivar attempts: how many times it was tried in vain
    """

    def __init__(self) -> None:
        # what SQLite's driver raises that counts as a lost connection
        super().__init__("API database", lambda _: sqlite3.ProgrammingError("Cannot operate on a closed database."))
        self.attempts = 0
        self._uses: SimpleQueue[None] = SimpleQueue()

    def enter(self) -> None:
        """Count."""
        self._uses.put(None)
        try:
            super().enter()
        except sqlite3.ProgrammingError:
            self.attempts += 1
            raise

    def wait_for_uses(self, count: int) -> None:
        """Return when it has been used that many times more, in vain or not."""
        while not self._uses.empty():
            self._uses.get()
        for _ in range(count):
            self._uses.get(timeout=PATIENCE)


@pytest.fixture
def link() -> Link:
    """The way to the API database."""
    return Link()


@pytest.fixture
def probe_interval() -> str:
    """Seconds between two probes of what is down: so many that a test sees none, where it does not say otherwise."""
    return NEVER


@pytest.fixture
def make_cut_off(make_filter: Callable[..., CellFilter], link: Link, probe_interval: str) -> Callable[..., CellFilter]:
    """Put a filter with these options, which has that way to the API database, in front of an app."""

    def make(app: WSGIApplication, **options: str) -> CellFilter:
        lifetimes = {"mapping_ttl": str(MAPPING_TTL), "stale_ttl": str(STALE_TTL)}
        cell_filter = make_filter(
            app, **lifetimes | {"refresh_interval": NEVER, "probe_interval": probe_interval} | options
        )
        guard(cell_filter.cells._store.engine, link)
        return cell_filter

    return make


@pytest.fixture
def cell_filter(clock: Clock, make_cut_off: Callable[..., CellFilter], show: Show) -> CellFilter:
    """The filter."""
    return make_cut_off(show)


@pytest.fixture
def ask(cell_filter: CellFilter, get: Callable[..., Answer]) -> Ask:
    """Ask for an instance; return the status and which database has answered."""

    def ask(instance_uuid: str) -> tuple[int, str]:
        answer = get(cell_filter, instance_uuid)
        return answer.code, answer.content.decode() if answer.code == 200 else ""

    return ask


@pytest.fixture
def known(deployment: Deployment, ask: Ask, clock: Clock) -> str:
    """An instance in cell1 that was asked for before, so long ago that it would be looked up again."""
    instance_uuid = deployment.map("cell1")
    assert ask(instance_uuid) == (200, "cell1")
    clock.advance(MAPPING_TTL)
    return instance_uuid


@pytest.fixture
def unknown(deployment: Deployment, known: str) -> str:
    """An instance in cell2 that nobody has asked for yet."""
    return deployment.map("cell2")


def test_known_instance(known: str, link: Link, ask: Ask) -> None:
    """An instance that is known is served."""
    link.down()
    assert [ask(known) for _ in range(3)] == [(200, "cell1")] * 3


def test_age(known: str, link: Link, ask: Ask, show: Show, clock: Clock) -> None:
    """Its app is told how old the mapping is, which is older each time."""
    link.down()
    ages = []
    for _ in range(3):
        ask(known)
        ages.append(show.trip.age)
        clock.advance(10)
    assert ages == [60, 70, 80]


def test_cell_that_is_not_open_yet(known: str, unknown: str, cell_filter: CellFilter, link: Link, ask: Ask) -> None:
    """A cell that is known and that nobody has used yet is opened."""
    cell_filter.cells.locate(unknown)
    link.down()
    assert ask(unknown) == (200, "cell2")


def test_cell_that_nobody_has_read(deployment: Deployment, cell_filter: CellFilter, link: Link, ask: Ask) -> None:
    """A cell that is not known is a 503, at once, also where the instance is known."""
    instance_uuid = deployment.map("cell1")
    cell_filter.cells.locate(instance_uuid)
    link.down()
    assert [ask(instance_uuid) for _ in range(3)] == [(503, "")] * 3
    assert link.attempts == 1


def test_unknown_instance(cell_filter: CellFilter, unknown: str, link: Link, get: Callable[..., Answer]) -> None:
    """An instance that is not known is a 503, which says when to come again, and never a 404."""
    link.down()
    answers = [get(cell_filter, unknown) for _ in range(3)]
    assert [(answer.code, answer.headers["Retry-After"]) for answer in answers] == [(503, "5")] * 3


def test_instance_without_a_cell(deployment: Deployment, known: str, link: Link, ask: Ask, clock: Clock) -> None:
    """So is one that had no cell a while ago: it may have got one since."""
    building = deployment.map(None)
    assert ask(building) == (200, "")
    clock.advance(MAPPING_TTL)
    link.down()
    assert ask(building) == (503, "")


def test_asked_once(known: str, unknown: str, link: Link, ask: Ask, clock: Clock) -> None:
    """However many requests come, and for how long, one of them finds out: everybody else is answered at once."""
    link.down()
    for _ in range(3):
        for _ in range(10):
            assert [ask(known), ask(unknown)] == [(200, "cell1"), (503, "")]
        clock.advance(10)
    assert link.attempts == 1


@OFTEN
def test_probed(known: str, unknown: str, link: Link, ask: Ask) -> None:
    """While it is down it is asked again and again, whether requests come or not, and none of them waits for that."""
    link.down()
    ask(known)
    link.wait_for_uses(3)
    with link.slow() as hold:
        hold.wait_until_reached()
        assert [ask(known), ask(unknown)] == [(200, "cell1"), (503, "")]


def test_asked_once_by_many(known: str, unknown: str, link: Link, ask: Ask) -> None:
    """That is so also where they come at the same time, once it has been found out."""
    link.down()
    ask(known)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, [known, unknown] * 20))
    assert answers == [(200, "cell1"), (503, "")] * 20
    assert link.attempts == 1


def test_known_instances_do_not_wait(known: str, link: Link, ask: Ask) -> None:
    """While one request waits for the API database, others for the same instance are served."""
    with ThreadPoolExecutor(1) as threads, link.slow() as hold:
        waiting = threads.submit(ask, known)
        hold.wait_until_reached()
        assert ask(known) == (200, "cell1")
        hold.release()
        assert waiting.result(PATIENCE) == (200, "cell1")


@pytest.fixture
def wait_until_back(cell_filter: CellFilter) -> Callable[[], None]:
    """Return when it is known that the API database is back, without a request that has to find out."""
    breaker = cell_filter.cells._store.breaker
    assert breaker is not None
    closed = threading.Event()
    breaker.changed = lambda: closed.clear() if breaker.is_open else closed.set()

    def wait() -> None:
        assert closed.wait(PATIENCE)

    return wait


@OFTEN
def test_back_for_known_instances(
    deployment: Deployment, known: str, link: Link, ask: Ask, wait_until_back: Callable[[], None]
) -> None:
    """When it is back, the next request finds what is true."""
    link.down()
    ask(known)
    deployment.store.update_instance(known, cell_id=deployment.cells["cell2"].id)
    link.up()
    wait_until_back()
    assert ask(known) == (200, "cell2")


@OFTEN
def test_back_for_unknown_instances(unknown: str, link: Link, ask: Ask, wait_until_back: Callable[[], None]) -> None:
    """That goes for instances that were not known, too."""
    link.down()
    assert ask(unknown) == (503, "")
    link.up()
    wait_until_back()
    assert ask(unknown) == (200, "cell2")


@OFTEN
def test_down_and_back_are_logged(
    known: str,
    link: Link,
    ask: Ask,
    wait_until_back: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log says once that it is down, and once that it is back, however many requests and probes there were."""
    caplog.set_level(logging.INFO, "cellmw.breaker")
    link.down()
    for _ in range(3):
        ask(known)
    link.wait_for_uses(3)
    link.up()
    wait_until_back()
    for thread in threading.enumerate():
        if thread.name == "cellmw-probe":  # which says so as the last thing that it does
            thread.join(PATIENCE)
    messages = [record.getMessage() for record in caplog.records if record.name == "cellmw.breaker"]
    assert [message.partition(",")[0] for message in messages] == [
        "the API database does not answer",
        "the API database answers again",
    ]


def test_stale_ttl(known: str, link: Link, ask: Ask, clock: Clock) -> None:
    """An outage that lasts longer than a mapping may be used is one for known instances, too."""
    link.down()
    clock.advance(STALE_TTL)
    assert ask(known) == (200, "cell1")
    clock.advance(1)
    assert ask(known) == (503, "")


@pytest.fixture
def missing(
    deployment: Deployment, make_cut_off: Callable[..., CellFilter], clock: Clock, get: Any
) -> Callable[[], str]:
    """Ask for an instance, which is known, for something that it hasn't got; return who has answered."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        start_response("404 Not Found", [])
        return [b"the app"]

    cell_filter, instance_uuid = make_cut_off(app), deployment.map("cell1")
    get(cell_filter, instance_uuid)
    return lambda: get(cell_filter, instance_uuid).content.decode()


def test_app_finds_nothing(missing: Callable[[], str], link: Link, clock: Clock) -> None:
    """An instance for which the app answers 404 stays known."""
    link.down()
    clock.advance(MAPPING_TTL)
    assert [missing() for _ in range(3)] == ["the app"] * 3


def test_app_finds_nothing_at_the_beginning(missing: Callable[[], str], link: Link, clock: Clock) -> None:
    """That is so also before anybody has found out that the API database is down."""
    link.down()
    clock.advance(MAPPING_TTL / 2)
    assert [missing() for _ in range(3)] == ["the app"] * 3


def test_known_instances_do_not_wait_for_what_is_missing(missing: Callable[[], str], link: Link, clock: Clock) -> None:
    """That is so also where the app answers 404."""
    clock.advance(MAPPING_TTL)
    with ThreadPoolExecutor(2) as threads, link.slow() as hold:
        threads.submit(missing)
        hold.wait_until_reached()
        others = threads.submit(lambda: [missing() for _ in range(2)])
        assert others.result(PATIENCE) == ["the app"] * 2


def test_stale_is_logged(known: str, link: Link, ask: Ask, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """The log tells every ten seconds that old mappings are gone by."""
    link.down()
    for _ in range(20):
        ask(known)
        clock.advance(1)
    assert caplog.text.count("the API database does not answer: instance") == 2


def test_outage_is_logged(
    deployment: Deployment,
    make_cut_off: Callable[..., CellFilter],
    show: Show,
    get: Callable[..., Answer],
    link: Link,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However often the cells were to be read, the log says once that they can't be, and once that they can again."""
    caplog.set_level(logging.INFO, "cellmw.records")
    cell_filter = make_cut_off(show, refresh_interval="0.1")
    get(cell_filter, deployment.map("cell1"))
    link.down()
    link.wait_for_uses(3)
    link.up()
    link.wait_for_uses(12)
    assert [record.getMessage().partition(":")[0] for record in caplog.records if "read" in record.getMessage()] == [
        "the cells can't be read, those that are known are used",
        "the cells can be read again",
    ]
