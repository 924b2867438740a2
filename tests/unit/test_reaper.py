# SPDX-License-Identifier: Apache-2.0
"""Retired handles: closed when nobody uses them any more, and not before."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import oslo_messaging
import pytest

from cellmw.deadline import after
from cellmw.lease import Lease
from cellmw.reaper import Reaper, close_all

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
    reaper.close()


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
    before = threading.active_count()
    reaper = Reaper()
    assert threading.active_count() == before
    reaper.close()
    reaper.close()


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


def test_close_all_has_a_deadline(handles1: Handles, handles2: Handles, caplog: pytest.LogCaptureFixture) -> None:
    """Closing everything waits no longer than it may, closes the others, and names the cell that takes longer."""
    go_on = threading.Event()
    handles1._closing.append(lambda: go_on.wait(PATIENCE))
    slow = threading.Event()
    handles1._closing.insert(0, slow.set)
    quick = threading.Event()
    handles2._closing.insert(0, quick.set)
    close_all([handles1, handles2], after(0.05))
    assert quick.wait(PATIENCE)
    assert "cell cell1: its handles are still being closed" in caplog.text
    go_on.set()
    assert slow.wait(PATIENCE)
