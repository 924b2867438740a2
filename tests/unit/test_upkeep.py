# SPDX-License-Identifier: Apache-2.0
"""What has to be done again and again: it is, whatever happens, until it is closed or nobody wants it any more."""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING

import pytest

from cellmw.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 20
OFTEN = 0.001


class Job:
    """Counts its rounds."""

    def __init__(self) -> None:
        self.rounds = threading.Semaphore(0)
        self.error: Exception | None = None

    def round(self) -> None:
        self.rounds.release()
        if self.error is not None:
            raise self.error


@pytest.fixture
def job() -> Job:
    """A job."""
    return Job()


@pytest.fixture
def upkeep(job: Job) -> Iterator[Upkeep]:
    """The upkeep of the job, which has not begun."""
    upkeep = Upkeep(job.round, OFTEN)
    yield upkeep
    upkeep.close()


def _end(upkeep: Upkeep) -> threading.Thread:
    assert upkeep._thread is not None
    upkeep._thread.join(PATIENCE)
    return upkeep._thread


def test_again_and_again(upkeep: Upkeep, job: Job) -> None:
    """It goes on for as long as it is let."""
    upkeep.start()
    for _ in range(3):
        assert job.rounds.acquire(timeout=PATIENCE)


def test_nothing_before_the_start(upkeep: Upkeep, job: Job) -> None:
    """It has no thread before it is started, and then one, however often it is started."""
    assert upkeep._thread is None
    upkeep.start()
    thread = upkeep._thread
    upkeep.start()
    assert upkeep._thread is thread


def test_a_round_that_fails(upkeep: Upkeep, job: Job, caplog: pytest.LogCaptureFixture) -> None:
    """A round that fails is logged, and the next one comes."""
    job.error = RuntimeError("broken")
    upkeep.start()
    for _ in range(2):
        assert job.rounds.acquire(timeout=PATIENCE)
    assert "RuntimeError: broken" in caplog.text


def test_close(upkeep: Upkeep) -> None:
    """Its thread ends when it is closed, and does not come back."""
    upkeep.start()
    upkeep.close()
    assert not _end(upkeep).is_alive()
    upkeep.start()
    assert not upkeep._thread.is_alive()


def test_close_before_the_start(upkeep: Upkeep) -> None:
    """What was closed never begins."""
    upkeep.close()
    upkeep.start()
    assert upkeep._thread is None


def test_nobody_wants_it() -> None:
    """Its thread ends with the object whose method it calls."""
    job = Job()
    upkeep = Upkeep(job.round, OFTEN)
    upkeep.start()
    assert job.rounds.acquire(timeout=PATIENCE)
    del job
    gc.collect()
    assert not _end(upkeep).is_alive()


def test_keeps_no_process_alive(upkeep: Upkeep) -> None:
    """Its thread is a daemon."""
    upkeep.start()
    assert upkeep._thread.daemon
