# SPDX-License-Identifier: Apache-2.0
"""Cells -> whether their databases and their queues answer now, and how fast.

A database is logged in to; of a broker's hosts one has to answer, and nobody logs in. Nothing is read or written there.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from cellmw import deploy, urls
from cellmw.admin.asking import ask
from cellmw.admin.refusals import refusal_of
from cellmw.bounds import PROBE_TIMEOUT, cause
from cellmw.exceptions import CellMisconfigured
from cellmw.queues.brokers import Brokers
from cellmw.queues.causes import cause_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from oslo_config import cfg

    from cellmw.cell import Cell
    from cellmw.handles import Handles
    from cellmw.limits import Limits

_LATE = 0.95
"""The part of a probe's time after which its failure is taken for the end of that time."""

_MEMORY = ":memory:"

UNUSABLE = "can't be used: "
"""What is said begins with where a record is wrong: nothing could be asked."""


class Health(NamedTuple):
    """What came of asking one thing.

    :ivar answers: whether it does; None where there was nothing to ask
    :ivar says: ``answers in 3 ms``, or else what is wrong, in a few words without a URL
    """

    answers: bool | None
    says: str


class CellHealth(NamedTuple):
    """What came of asking one cell."""

    database: Health
    queue: Health


def probe(conf: cfg.ConfigOpts, cells: Iterable[Cell], limits: Limits, patience: float) -> dict[Cell, CellHealth]:
    """Ask the database and the queue of each of these cells, all at the same time.

    :param cells: with the URLs that lead to them
    :param patience: seconds that each of them has
    """
    asked = list(cells)
    with ExitStack() as opened:
        questions: dict[tuple[Cell, str], Callable[[], Health]] = {}
        for cell in asked:
            try:
                handles = deploy.open_handles(cell, conf, limits)
            except CellMisconfigured as error:
                unusable = partial(Health, False, UNUSABLE + str(error).removeprefix(f"cell {cell}: "))
                questions[cell, "database"] = questions[cell, "queue"] = unusable
                continue
            opened.callback(handles.close)
            questions[cell, "database"] = partial(_ask_database, handles)
            questions[cell, "queue"] = partial(_ask_queue, handles)
        answers = {
            key: _late() if isinstance(answer, Exception) else answer
            for key, answer in ask(questions, patience, limits.crew).items()
        }
        return {cell: CellHealth(answers[cell, "database"], answers[cell, "queue"]) for cell in asked}


def _ask_database(handles: Handles) -> Health:
    backend, file, *_ = urls.database_place(handles.cell.reveal_database_connection())
    if backend == "sqlite" and file != _MEMORY and not Path(str(file)).exists():
        return Health(False, "there is no such file")  # to connect would make it
    began = monotonic()
    try:
        handles.database.reader.bounds.probe()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
        if monotonic() - began >= PROBE_TIMEOUT * _LATE:
            return _late(PROBE_TIMEOUT)
        return Health(False, database_words(error))
    return in_time(began)


def _ask_queue(handles: Handles) -> Health:
    return Health(None, "it has none") if handles.queue is None else ask_broker(handles.queue.transport)


def ask_broker(transport: Any) -> Health:
    """Ask whether one of a transport's hosts answers."""
    brokers = Brokers.of(transport._driver)
    if brokers is None:
        return Health(None, "not asked: it is no RabbitMQ")
    began = monotonic()
    try:
        brokers.answer()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
        return Health(False, f"does not answer: {brokers.misfit(error) or cause_of(error)}")
    return in_time(began)


def in_time(began: float) -> Health:
    """Return the health of what was asked at that moment, and has answered now."""
    return Health(True, f"answers in {max(1, round((monotonic() - began) * 1000))} ms")


def _late(seconds: float | None = None) -> Health:
    return Health(False, "does not answer in time" if seconds is None else f"does not answer within {seconds:g} s")


def database_words(error: Exception) -> str:
    """Say in a few words what is wrong with a database, by the error of its driver."""
    refusal = refusal_of(error)
    return f"does not answer: {cause(error)}" if refusal is None else refusal.short
