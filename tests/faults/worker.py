# SPDX-License-Identifier: Apache-2.0
"""Messages on a cell's queue -> lines in a file: a worker in a process of its own, which outlives its broker.

``Worker`` is the side of whoever starts it, ``main`` runs in it. The first line of its input says what it is to do;
when its input ends, be it that its starter was killed, it ends.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import oslo_messaging
from oslo_config import cfg

from cellmw import rpc

if TYPE_CHECKING:
    from collections.abc import Iterator

    import cellmw

ROOT = Path(__file__).parents[2]

TOPIC = oslo_messaging.Target(topic="compute", version="1.0")

READY = "ready"

RECONNECTING = "&heartbeat_timeout_threshold=4&rabbit_retry_interval=1&rabbit_retry_backoff=1&rabbit_interval_max=1"
"""Has the worker notice a dead broker, and one that is back, in a few seconds: its own recovery is not the question."""

PATIENCE = 30
"""Seconds after which a worker that does not end is killed."""


class Worker:
    """The worker of one cell. Lives until its ``close()``."""

    def __init__(self, cell: str, transport_url: str, file: Path) -> None:
        """Start it, and do not wait.

        :param transport_url: with a query
        :param file: where it notes the numbers that it is sent; not there yet
        """
        self._file = file
        file.touch()
        self._process = subprocess.Popen(
            # what oslo.messaging's imports warn of is not about us
            [sys.executable, "-W", "ignore", "-m", "tests.faults.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C is for its starter, which then closes it
            start_new_session=True,
        )
        # the URL has a password in it, which a command line or an environment would show to others
        plan = {"cell": cell, "transport_url": transport_url + RECONNECTING, "file": str(file)}
        self._process.stdin.write(f"{json.dumps(plan)}\n")
        self._process.stdin.flush()

    def wait_until_ready(self) -> None:
        """Wait until it takes messages.

        :raises RuntimeError: if it has failed; why, stands on the standard error
        """
        if self._process.stdout.readline().strip() != READY:
            raise RuntimeError("a worker has not started")

    def received(self) -> list[int]:
        """Return every number that has arrived, as often as it has."""
        # of what is being written there may be half a line
        return [int(line) for line in self._file.read_text().split("\n")[:-1]]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Have it do nothing at all, for a ``with`` block."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Have it end, and wait for that."""
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Endpoint:
    """What the worker does. Lives as long as its process."""

    target = oslo_messaging.Target(version="1.0")

    def __init__(self, cell: str, file: Path) -> None:
        self._cell = cell
        self._file = file.open("a", buffering=1)

    def which(self, context: cellmw.RequestContext) -> str:
        """Answer which cell this is."""
        return self._cell

    def note(self, context: cellmw.RequestContext, number: int) -> None:
        """Note that this number has arrived."""
        self._file.write(f"{number}\n")


def main() -> int:
    """Serve the queue that the first line of the input names, until the input ends."""
    # a broker that is gone is what it is made for
    logging.disable()
    plan = json.loads(sys.stdin.readline())
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, plan["transport_url"])
    server = oslo_messaging.get_rpc_server(
        transport,
        oslo_messaging.Target(topic=TOPIC.topic, server=plan["cell"]),
        [Endpoint(plan["cell"], Path(plan["file"]))],
        serializer=rpc.ContextSerializer(),
    )
    server.start()
    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()
    sys.stdin.read()
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
