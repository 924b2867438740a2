# SPDX-License-Identifier: Apache-2.0
"""A plan -> a process of its own that runs this part of the service.

``Process`` is the side of whoever starts it, ``main`` runs in it. It is told by lines on its standard input: the plan,
and then what it is asked for. Its answers, and the messages that its workers have worked on, are lines of JSON on its
standard output. When its input ends, be it that its starter was killed, it ends.
"""

from __future__ import annotations

import json
import logging
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.compute.part import CellPlan, Part, Plan
from examples.compute.witness import Message

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]

PATIENCE = 60
"""Seconds after which a process that does not answer is given up."""


class Process:
    """A part of the service that is run elsewhere. Lives until its ``close()``."""

    def __init__(self, plan: Plan, note: Callable[[Message], None]) -> None:
        """Start it, and do not wait.

        :param note: called, in a thread of ours, with every message that a worker has worked on
        """
        self._note = note
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "examples.compute.process"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C is for its starter, which then closes it
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, name="listener")
        self._listener.start()
        # the plan has passwords in it, which a command line or an environment would show to others
        self._tell(json.dumps(plan))

    def wait_until_ready(self) -> None:
        """Wait until it serves and takes messages."""
        self.url = self._answer()

    def leases(self) -> int:
        """Return how many leases are open there now."""
        return self._ask("leases")

    def stop_serving(self) -> None:
        """Have it take no more requests, and wait until those that are under way have ended."""
        self._ask("stop_serving")

    def stop(self) -> None:
        """Have it end, and do not wait."""
        self._process.stdin.close()

    def close(self) -> None:
        """Wait until it has ended, and everything that it said has been heard.

        :raises RuntimeError: if it has failed; why, stands on the standard error
        """
        try:
            status = self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._listener.join()
            self._process.stdout.close()
        if status != 0:
            raise RuntimeError(f"a process of the service has failed with status {status}")

    def _ask(self, question: str) -> Any:
        self._tell(question)
        return self._answer()

    def _tell(self, line: str) -> None:
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _answer(self) -> Any:
        """Return its next answer.

        :raises queue.Empty: if there is none in time
        :raises RuntimeError: if the process has ended
        """
        answers = self._answers.get(timeout=PATIENCE)
        if not answers:
            raise RuntimeError("a process of the service has ended")
        return answers[0]

    def _listen(self) -> None:
        for line in self._process.stdout:
            kind, said = json.loads(line)
            if kind == "message":
                self._note(Message(*said))
            else:
                self._answers.put([said])
        self._answers.put([])


def main() -> int:
    """Run the part that the first line of the input plans, until the input ends."""
    # it warns of what arrives while a worker hangs up
    logging.getLogger("amqp").setLevel(logging.ERROR)
    configuration, workers = json.loads(sys.stdin.readline())
    plan = Plan(configuration, [CellPlan(*worker) for worker in workers])
    with Part(plan, lambda message: _say("message", message)) as part:
        _say("answer", part.url if configuration else None)
        for line in sys.stdin:
            _say("answer", getattr(part, line.strip())())
    return 0


def _say(kind: str, said: object) -> None:
    # in one piece: a worker's threads speak, too
    sys.stdout.write(f"{json.dumps([kind, said])}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
