# SPDX-License-Identifier: Apache-2.0
"""Retired handles: closed when nobody uses them any more, and not before."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import oslo_messaging
import pytest

from cellmw import reaper as module
from cellmw.deadline import after
from cellmw.exceptions import CellsClosed
from cellmw.lease import Lease
from cellmw.reaper import Reaper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cellmw.context import RequestContext
    from cellmw.handles import Handles

PATIENCE = 20


@pytest.fixture
def reaper() -> Iterator[Reaper]:
    """A reaper."""
    reaper = Reaper()
    yield reaper
    reaper.drain(after(PATIENCE))


@pytest.fixture
def closed(handles1: Handles) -> threading.Event:
    """Is set when the handles of cell1 have been closed."""
    event = threading.Event()
    handles1._closing.insert(0, event.set)
    return event


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Handles], threading.Semaphore]:
    """Count how many times the reaper has asked whether handles are in use."""

    def count(handles: Handles) -> threading.Semaphore:
        asked = threading.Semaphore(0)
        in_use = type(handles).in_use

        def ask(self: Handles) -> bool:
            answer: bool = in_use.fget(self)  # type: ignore[attr-defined]
            asked.release()
            return answer

        monkeypatch.setattr(type(handles), "in_use", property(ask))
        return asked

    return count


def test_no_thread_at_first() -> None:
    """A reaper that nothing was given to has no thread, and closing it is harmless."""
    before = set(threading.enumerate())
    reaper = Reaper()
    assert set(threading.enumerate()) <= before
    for _ in range(2):
        reaper.drain(after(0))


def test_unused_handles(reaper: Reaper, handles1: Handles, closed: threading.Event) -> None:
    """Handles that nobody uses are closed at once."""
    reaper.retire(handles1)
    assert closed.wait(PATIENCE)


def test_leased_handles(
    reaper: Reaper, handles1: Handles, closed: threading.Event, asked: Callable[[Handles], threading.Semaphore]
) -> None:
    """Handles that are leased stay open until the last lease has ended."""
    times = asked(handles1)
    with Lease(handles1):
        with Lease(handles1):
            reaper.retire(handles1)
            assert times.acquire(timeout=PATIENCE)
        assert times.acquire(timeout=PATIENCE)
        assert not handles1.closed
        assert reaper.retired == {handles1}
    assert closed.wait(PATIENCE)


def test_message_on_its_way(
    reaper: Reaper,
    handles1: Handles,
    context: RequestContext,
    lease: Lease,
    closed: threading.Event,
    asked: Callable[[Handles], threading.Semaphore],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A call that goes on after its lease has ended keeps the transport open."""
    times = asked(handles1)
    sending, go_on = threading.Event(), threading.Event()

    def send(*args: Any, **kwargs: Any) -> None:
        sending.set()
        assert go_on.wait(PATIENCE)
        assert not handles1.closed

    monkeypatch.setattr(handles1.transport._driver, "send", send)  # type: ignore[union-attr]
    client = oslo_messaging.get_rpc_client(context.mq_connection, oslo_messaging.Target(topic="compute"))
    errors: list[BaseException] = []

    def cast() -> None:
        try:
            client.cast({}, "reboot")
        except BaseException as error:  # noqa: BLE001 - the test's to see
            errors.append(error)

    thread = threading.Thread(target=cast)
    thread.start()
    assert sending.wait(PATIENCE)
    reaper.retire(handles1)
    lease.release()
    assert times.acquire(timeout=PATIENCE)
    assert times.acquire(timeout=PATIENCE)
    assert not handles1.closed
    go_on.set()
    thread.join()
    assert errors == []
    assert closed.wait(PATIENCE)


def test_slow_close(reaper: Reaper, handles1: Handles, handles2: Handles, closed: threading.Event) -> None:
    """A transport that takes long to close does not keep others from being closed."""
    begun, go_on = threading.Event(), threading.Event()

    def close() -> None:
        begun.set()
        assert go_on.wait(PATIENCE)

    handles2._closing.append(close)
    reaper.retire(handles2)
    assert begun.wait(PATIENCE)
    reaper.retire(handles1)
    assert closed.wait(PATIENCE)
    go_on.set()


def test_many_leases_end_at_once(
    reaper: Reaper, handles1: Handles, closed: threading.Event, together: Callable[..., list[Any]]
) -> None:
    """Whichever thread's lease is the last, the handles are closed, and once."""
    leases = [Lease(handles1) for _ in range(8)]
    calls: list[None] = []
    handles1._closing.append(lambda: calls.append(None))
    reaper.retire(handles1)
    together(8, lambda number: leases[number].release())
    assert closed.wait(PATIENCE)
    assert calls == [None]


def test_drain_waits(
    reaper: Reaper, handles1: Handles, closed: threading.Event, asked: Callable[[Handles], threading.Semaphore]
) -> None:
    """Draining waits for whoever is not done yet."""
    times = asked(handles1)
    lease = Lease(handles1)
    reaper.retire(handles1)
    assert times.acquire(timeout=PATIENCE)
    drained = threading.Event()

    def drain() -> None:
        reaper.drain(after(PATIENCE))
        drained.set()

    thread = threading.Thread(target=drain)
    thread.start()
    lease.release()
    assert drained.wait(PATIENCE)
    assert closed.is_set()
    thread.join()


def test_drain_has_an_end(reaper: Reaper, handles1: Handles, caplog: pytest.LogCaptureFixture) -> None:
    """At the deadline what is still leased is closed all the same, and the log says whose it was."""
    with Lease(handles1) as lease:
        reaper.retire(handles1)
        reaper.drain(after(0))
        assert "cell cell1: 1 leases are still open while it is closed" in caplog.text
        with pytest.raises(CellsClosed):
            _ = lease.handles
    assert reaper.retired == set()


def test_drain_closes_side_by_side(
    reaper: Reaper, handles1: Handles, handles2: Handles, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """A cell that takes long to close keeps neither the others nor the process: the log names it."""
    monkeypatch.setattr(module, "_GRACE", 0.05)
    go_on, quick = threading.Event(), threading.Event()
    handles1._closing.append(lambda: go_on.wait(PATIENCE))
    handles2._closing.insert(0, quick.set)
    for handles in (handles1, handles2):
        reaper.retire(handles)
    reaper.drain(after(0))
    assert quick.wait(PATIENCE)
    assert "these cells can't be closed, their broker or database may be down: cell1" in caplog.text
    go_on.set()


def test_drain_ends_the_thread(reaper: Reaper, handles1: Handles, closed: threading.Event) -> None:
    """After that the reaper has no thread."""
    reaper.retire(handles1)
    assert closed.wait(PATIENCE)
    thread = reaper._thread
    reaper.drain(after(PATIENCE))
    assert not thread.is_alive()


def test_no_more_threads(reaper: Reaper, handles1: Handles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the interpreter starts no threads any more, draining closes everything all the same."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    reaper.retire(handles1)
    reaper.drain(after(0))
    assert handles1.closed
    assert reaper.retired == set()
