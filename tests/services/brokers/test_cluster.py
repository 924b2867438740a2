# SPDX-License-Identifier: Apache-2.0
"""A cell whose URL names several hosts: a real cluster that loses the node in use, and hosts that are no cluster."""

from __future__ import annotations

import logging
import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING

import oslo_messaging
import pytest

from cellmw.exceptions import CellUnavailable, DeadlineExceeded
from tests.services.brokers.conftest import PATIENCE, Recorder, Service, Stopwatch, tell, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers.private_rabbitmq import Node
    from tests.services.brokers.conftest import Worker

QUORUM = "?rabbit_quorum_queue=true"

CASTERS = 4
"""How many threads cast at a time."""

PAUSE = 0.01
"""Seconds between two casts, or calls, of a thread: the worker has to keep up with them."""

SOME = 200
"""How many casts are acknowledged before the node is killed, and how many at least after that."""

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


def url_of(nodes: list[Node], vhost: str) -> str:
    """Return the transport URL that names these hosts."""
    return f"rabbit://{','.join(f'guest:guest@127.0.0.1:{node.port}' for node in nodes)}/{vhost}"


class Load:
    """Casts and calls that go on until they are told to end. Lives as long as its test.

    :ivar acknowledged: the numbers of the casts that have returned without an error
    :ivar failed: what the other ones and the calls have failed with, and how often
    :ivar casts: how long there was no cast that got through
    :ivar calls: when each call was answered that was
    """

    def __init__(self, service: Service) -> None:
        self.acknowledged: list[int] = []
        self.failed: Counter[str] = Counter()
        self.casts = Stopwatch()
        self.calls: list[float] = []
        self._service = service
        self._over = threading.Event()

    def cast(self, first: int) -> None:
        """Cast number after number, beginning with this one."""
        number = first
        while not self._over.is_set():
            try:
                self._service.cast("cell1", number)
            except (CellUnavailable, DeadlineExceeded) as error:
                self.failed[f"cast: {error}, sent: {getattr(error, 'sent', 'no')}"] += 1
            else:
                self.acknowledged.append(number)
                self.casts.succeeded()
            number += 1
            self._over.wait(PAUSE)

    def call(self) -> None:
        """Call again and again."""
        while not self._over.is_set():
            try:
                assert self._service.call("cell1") == "cell1"
            except (CellUnavailable, oslo_messaging.MessagingTimeout) as error:
                self.failed[f"call: {error}"] += 1
            else:
                self.calls.append(monotonic())
            self._over.wait(PAUSE)

    def end(self) -> None:
        """Let them end."""
        self._over.set()


def node_in_use(service: Service, nodes: list[Node], what: str) -> Node:
    """Return the node to which the cell's connection leads by which it sends, or by which its replies come."""
    driver = service.queue("cell1").transport._driver
    if what == "replies":
        connection = driver._reply_q_conn.connection
    else:
        (_, connection), *_ = driver._connection_pool._items
    (found,) = [node for node in nodes if node.port == connection.connection.port]
    return found


@pytest.mark.parametrize("what", ["messages", "replies"])
def test_the_node_in_use_is_killed(
    what: str,
    cluster: list[Node],
    vhost: str,
    serve_cells: Callable[..., Service],
    start_worker: Callable[[str, str], Worker],
    kill: Callable[[Node], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Casts and calls go on at another node, and no cast that was acknowledged is lost."""
    url = url_of(cluster, vhost) + QUORUM
    worker = start_worker("cell1", url)
    service = serve_cells(cell1=url)
    service.cast("cell1", 0)
    assert service.call("cell1") == "cell1"
    victim = node_in_use(service, cluster, what)
    survivor = next(node for node in cluster if node is not victim)
    recorder = Recorder(survivor.port, vhost)
    load = Load(service)
    with ThreadPoolExecutor(CASTERS + 1) as threads:
        running = [threads.submit(load.cast, 1 + caster * 1_000_000) for caster in range(CASTERS)]
        running.append(threads.submit(load.call))
        try:
            until(lambda: len(load.acknowledged) >= SOME and load.calls)
            kill(victim)
            killed, before, calls = monotonic(), len(load.acknowledged), len(load.calls)
            until(lambda: len(load.acknowledged) >= before + SOME)
            until(lambda: len(load.calls) >= calls + 10)
            recovered = monotonic() - killed
        finally:
            load.end()
        for each in running:
            each.result(PATIENCE)
    ids = defaultdict(list)
    for number, unique_id in recorder.messages():
        ids[number].append(unique_id)
    lost = [number for number in load.acknowledged if number not in ids]
    copies = [unique_ids for unique_ids in ids.values() if len(unique_ids) > 1]
    awaited = set(load.acknowledged)
    while awaited:
        awaited.discard(worker.noted.get(timeout=PATIENCE))
    tell(
        capsys,
        f"the node of the {what} killed: {len(load.acknowledged)} casts acknowledged, {len(lost)} lost, {len(copies)} "
        f"duplicates; no cast got through for {load.casts.longest:.2f} s at most; {len(load.calls)} calls answered; "
        f"both went on after {recovered:.2f} s; failed: {dict(load.failed)}",
    )
    assert not lost
    assert all(len(set(unique_ids)) == 1 for unique_ids in copies)
    assert not service.queue("cell1").stuck
    assert not service.queue("cell1").breaker.is_open


def log_of(service: Service, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what is logged of a cell's hosts, once they were compared."""
    with caplog.at_level(logging.DEBUG):
        service.cast("cell1", 1)
        until(lambda: not [thread for thread in threading.enumerate() if thread.name == "cellmw-clusters"])
    return [record.getMessage() for record in caplog.records if record.name == "cellmw.queues.brokers"]


def test_not_one_cluster(
    cluster: list[Node],
    alone: Node,
    vhost: str,
    serve_cells: Callable[..., Service],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Hosts of one URL that are not one cluster are told of, once, with what to do, and the password is not."""
    service = serve_cells(cell1=url_of([cluster[0], alone], vhost))
    (line,) = log_of(service, caplog)
    for node in (cluster[0], alone):
        assert f"127.0.0.1:{node.port} is {node.name.partition('@')[0]}@" in line
    assert "the queue of cell cell1: its hosts are not one cluster" in line
    assert "make them one cluster" in line
    assert "guest" not in line
    (record,) = [record for record in caplog.records if record.name == "cellmw.queues.brokers"]
    assert record.levelno == logging.ERROR
    assert log_of(service, caplog) == [line]


def test_one_cluster(
    cluster: list[Node],
    vhost: str,
    serve_cells: Callable[..., Service],
    kill: Callable[[Node], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Hosts that are one cluster are not told of, also where each says another name for it, and one is down."""
    kill(cluster[2])
    assert log_of(serve_cells(cell1=url_of(cluster, vhost)), caplog) == []
