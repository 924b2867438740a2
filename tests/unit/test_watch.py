# SPDX-License-Identifier: Apache-2.0
"""The watch: which waits it cuts and when, that it misses none, and when it has a thread.

The connections of these tests are one end of a pair of sockets: whoever reads from it waits until it is cut.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from cellmw import watch as module
from cellmw.deadline import after
from cellmw.watch import Wait, Watch, cut
from tests.unit.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cellmw.deadline import Deadline

NEVER = float("inf")

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
"""A statement that SQLite works on until it is interrupted."""


class Connection:
    """A driver's connection that is waited on. Records how often it was cut, which begins by asking for its descriptor.

    Lives as long as the test.
    """

    def __init__(self) -> None:
        self.socket, self._server = socket.socketpair()
        self.cuts = 0
        self.was_cut = threading.Event()

    def fileno(self) -> int:
        """Return the descriptor."""
        self.cuts += 1
        self.was_cut.set()
        return self.socket.fileno()

    def read(self) -> bytes:
        """Wait for what the server sends, which is nothing."""
        self.socket.settimeout(PATIENCE)
        return self.socket.recv(1)

    def close(self) -> None:
        """Close both ends."""
        self.socket.close()
        self._server.close()


@pytest.fixture
def new_connection() -> Iterator[Callable[[], Connection]]:
    """Make a connection; all are closed after the test."""
    with ExitStack() as closing:

        def new() -> Connection:
            connection = Connection()
            closing.callback(connection.close)
            return connection

        yield new


@pytest.fixture
def connection(new_connection: Callable[[], Connection]) -> Connection:
    """A connection."""
    return new_connection()


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """A watch that looks often, and whose thread ends soon."""
    monkeypatch.setattr(module, "TICK", 0.001)
    monkeypatch.setattr(module, "_IDLE_TIMEOUT", 0.001)
    return Watch()


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the time."""
    return lambda now: monkeypatch.setattr(module, "monotonic", lambda: now)


def nothing() -> None:
    """What becomes of a slow wait where the test does not care."""


def until(condition: Callable[[], object]) -> None:
    """Return when this holds."""
    deadline = after(PATIENCE)
    while not condition():
        assert deadline > after(0), "it never came to hold"
        threading.Event().wait(0.0005)


def wait_out(watch: Watch, connection: Connection, deadline: Deadline) -> None:
    """Wait on a connection, and return when the watch has cut it."""
    wait = Wait(deadline, nothing, connection)
    watch.begin(wait)
    try:
        assert connection.was_cut.wait(PATIENCE), "the watch has not seen it"
    finally:
        watch.end(wait)


# one wait


def test_cut_once(connection: Connection) -> None:
    """A wait is cut at its deadline, not before, and once."""
    wait = Wait(100.0, nothing, connection)
    cuts = []
    for now in (99.9, 100.0, 100.1, 200.0):
        wait.look(now)
        cuts.append((connection.cuts, wait.was_cut))
    assert cuts == [(0, False), (1, True), (1, True), (1, True)]


def test_slow_once(at: Callable[[float], None]) -> None:
    """A wait says once that it is slow, after a second."""
    at(100.0)
    calls: list[float] = []
    wait = Wait(160.0, lambda: calls.append(now))
    for now in (100.0, 100.9, 101.0, 102.0, 159.0, 161.0):
        wait.look(now)
    assert calls == [101.0]


def test_slow_at_the_deadline(at: Callable[[float], None], connection: Connection) -> None:
    """A wait whose deadline is earlier than that says so at the deadline, before it is cut."""
    at(100.0)
    calls: list[int] = []
    wait = Wait(100.5, lambda: calls.append(connection.cuts), connection)
    for now in (100.4, 100.5, 101.0):
        wait.look(now)
    assert (calls, connection.cuts) == ([0], 1)


def test_connection_that_comes_late(connection: Connection) -> None:
    """A wait that has no connection yet is cut as soon as it has one."""
    wait = Wait(100.0, nothing)
    wait.look(101.0)
    assert not wait.was_cut
    wait.connection = connection
    wait.look(101.1)
    assert (wait.was_cut, connection.cuts) == (True, 1)


# the thread


def test_reader_is_freed(watch: Watch, connection: Connection) -> None:
    """Whoever reads from a server that does not answer is freed at the deadline, on a descriptor that is still its."""
    wait = Wait(after(0.01), nothing, connection)
    watch.begin(wait)
    read = connection.read()
    watch.end(wait)
    assert (read, wait.was_cut) == (b"", True)
    os.fstat(connection.socket.fileno())  # the driver's own has not been closed


def test_other_waits_go_on(watch: Watch, new_connection: Callable[[], Connection]) -> None:
    """Where one wait is cut, those that have time go on, and those that have ended are let be."""
    overdue, ended, patient = (new_connection() for _ in range(3))
    waits = [Wait(after(0.01), nothing, ended), Wait(after(60), nothing, patient)]
    for wait in waits:
        watch.begin(wait)
    watch.end(waits[0])
    wait_out(watch, overdue, after(0.02))
    watch.end(waits[1])
    assert (overdue.cuts, ended.cuts, patient.cuts) == (1, 0, 0)


def test_end_waits_for_the_cut(watch: Watch, connection: Connection) -> None:
    """A wait does not end in the middle of its cut: its descriptor is nobody else's until then."""
    let_go, ended = threading.Event(), threading.Event()
    connection.fileno = lambda: (connection.was_cut.set(), let_go.wait(PATIENCE), connection.socket.fileno())[-1]
    wait = Wait(after(0), nothing, connection)
    watch.begin(wait)
    assert connection.was_cut.wait(PATIENCE)
    end = threading.Thread(target=lambda: (watch.end(wait), ended.set()))
    end.start()
    try:
        assert not ended.wait(0.05)
    finally:
        let_go.set()
        end.join(PATIENCE)
    assert ended.is_set()


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param(lambda watch: True, id="at once"),
        pytest.param(lambda watch: watch._asleep or watch._thread is None, id="asleep"),
        pytest.param(lambda watch: watch._thread is None, id="ended"),
    ],
)
def test_no_wait_is_missed(
    watch: Watch, new_connection: Callable[[], Connection], phase: Callable[[Watch], bool]
) -> None:
    """A wait is seen whatever the thread is doing when it begins: looking, sleeping, ending, or gone."""
    for _ in range(100):
        wait_out(watch, new_connection(), after(0))
        until(lambda: phase(watch))


def test_sleeper_is_woken(
    watch: Watch, new_connection: Callable[[], Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait that begins while the thread sleeps wakes it."""
    monkeypatch.setattr(module, "_IDLE_TIMEOUT", 2 * PATIENCE)
    for _ in range(10):
        wait_out(watch, new_connection(), after(0))
        until(lambda: watch._asleep)
    monkeypatch.setattr(module, "_IDLE_TIMEOUT", 0.0)
    wait_out(watch, new_connection(), after(0))
    until(lambda: watch._thread is None)


def test_end_that_a_wait_prevents(watch: Watch, connection: Connection) -> None:
    """A thread that is about to end goes on where somebody has begun to wait just before, and taken it for one."""
    thread = watch._thread = threading.current_thread()
    watch.begin(Wait(NEVER, nothing, connection))
    assert (watch._may_end(), watch._thread) == (False, thread)
    watch._waits.clear()
    assert (watch._may_end(), watch._thread) == (True, None)


def test_no_wait_of_many_threads_is_missed(
    watch: Watch, together: Callable[..., list[Any]], new_connection: Callable[[], Connection]
) -> None:
    """That is so also where many threads come and go, and there is one thread of the watch at most."""
    others = set(threading.enumerate())

    def come_and_go(number: int) -> int:
        most = 0
        for _ in range(50):
            wait_out(watch, new_connection(), after(0))
            watching = {thread for thread in threading.enumerate() if thread.name == "cellmw-watch"}
            most = max(most, len(watching - others))
            until(lambda: watch._asleep or watch._thread is None)
        return most

    # one that ends may still be there when the next begins
    assert max(together(6, come_and_go)) <= 2


def test_no_thread_without_a_wait(watch: Watch, new_connection: Callable[[], Connection]) -> None:
    """There is a thread while something is waited for, and a while longer, and at no other time."""
    assert watch._thread is None
    wait = Wait(NEVER, nothing, new_connection())
    watch.begin(wait)
    thread = watch._thread
    assert thread is not None
    wait_out(watch, new_connection(), after(0.02))
    assert (watch._thread, thread.is_alive()) == (thread, True)
    watch.end(wait)
    thread.join(PATIENCE)
    assert (thread.is_alive(), watch._thread) == (False, None)


def test_thread_that_can_not_be_started(watch: Watch, connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started the wait fails, and the next one starts it."""
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no more threads")))
        with pytest.raises(RuntimeError):
            watch.begin(Wait(after(0), nothing))
    wait = Wait(after(0), nothing, connection)
    watch.begin(wait)
    try:
        assert connection.was_cut.wait(0.5)
    finally:
        watch.end(wait)


# what is cut


def test_sqlite(in_thread: Callable[[Callable[[], Any]], Any]) -> None:
    """A statement that SQLite works on is interrupted, and the connection can be used afterwards."""
    with ExitStack() as stack:
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        stack.callback(connection.close)
        running = threading.Event()
        connection.create_function("tell", 0, lambda: running.set() or 1)

        def run() -> str:
            with pytest.raises(sqlite3.OperationalError) as error:
                connection.execute(ENDLESS.replace("SELECT 1 ", "SELECT tell() ")).fetchall()
            return str(error.value)

        cutter = threading.Thread(target=lambda: (running.wait(PATIENCE), cut(connection)))
        cutter.start()
        assert in_thread(run) == "interrupted"
        cutter.join(PATIENCE)
        assert connection.execute("SELECT 1").fetchall() == [(1,)]


def test_socket_in_a_drawer(connection: Connection) -> None:
    """A driver that keeps its socket to itself, as PyMySQL does, is cut all the same."""

    class Driver:
        _sock = connection.socket

    cut(Driver())
    assert connection.read() == b""


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "unknown"])
def test_nothing_to_cut(connection: Connection, closed: bool) -> None:
    """What is closed already, or shows no socket, is let be, without an error."""
    connection.close()
    cut(connection if closed else object())
