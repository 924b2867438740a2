# SPDX-License-Identifier: Apache-2.0
"""API processes -> the answers that clients get from them all the time, while the deployment changes.

What is asked for says itself where it was found: a row by its instance's name, a message by the host's answer.
"""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from time import monotonic
from typing import TYPE_CHECKING, Any

from tests.nova.instances import PROJECT, USER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.nova.server import Server

PATIENCE = 120.0
"""Seconds that anything here may take."""

PAUSE = 0.1
"""Seconds between two requests of a client while nobody waits for them: the operator's commands need the machine."""

NOVA = "nova"
"""The stream of requests to Nova's own API."""

CONTEXT = "context"
"""The stream of requests to the app that goes by its context."""


@dataclass(frozen=True)
class Question:
    """A request for an instance. Lives as long as it is asked."""

    stream: str
    instance: str
    method: str
    path: str
    body: Any = None


@dataclass(frozen=True)
class Answer:
    """What came back. Lives as long as the test wants.

    :ivar server: the process that answered
    :ivar status: 0 where there was no answer
    :ivar found_in: the cell in whose database, or at whose queue, the instance was found
    :ivar aimed_at: the uuid of the cell that the context was aimed at, where the app shows that
    """

    question: Question
    server: int
    begun: float
    ended: float
    status: int
    found_in: str | None
    aimed_at: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.question}: {self.status} {self.text} found in {self.found_in}, aimed at {self.aimed_at}"


def questions(instance: str, *, hosts: bool) -> list[Question]:
    """Return what the clients ask for an instance.

    :param hosts: whether its host is asked, too
    """
    for_nova, by_context = f"/v2.1/servers/{instance}", f"/by-context/servers/{instance}"
    asked = [Question(NOVA, instance, "GET", for_nova), Question(CONTEXT, instance, "GET", by_context)]
    if hosts:
        asked.append(Question(NOVA, instance, "POST", f"{for_nova}/action", {"os-getConsoleOutput": {}}))
        asked.append(Question(CONTEXT, instance, "POST", by_context))
    return asked


def ask(question: Question, server: Server, connection: HTTPConnection) -> Answer:
    """Make one request."""
    begun = monotonic()
    body = None if question.body is None else json.dumps(question.body)
    headers = {"X-Auth-Token": f"{USER}:{PROJECT}:member,reader", "Content-Type": "application/json"}
    try:
        connection.request(question.method, question.path, body, headers)
        response = connection.getresponse()
        status, text = response.status, response.read().decode()
    except (OSError, HTTPException) as error:
        connection.close()
        status, text = 0, repr(error)
    found_in, aimed_at = _where(status, text)
    return Answer(question, server.pid, begun, monotonic(), status, found_in, aimed_at, text)


def ask_once(question: Question, server: Server) -> Answer:
    """Make one request by a connection of its own."""
    with contextlib.closing(HTTPConnection(*server.address, timeout=PATIENCE)) as connection:
        return ask(question, server, connection)


def _where(status: int, text: str) -> tuple[str | None, str | None]:
    if status != 200:
        return None, None
    body = json.loads(text)
    body = body.get("server", body)
    # "METHOD in CELL" says a host, "in-CELL" is an instance's name
    found_in = body["output"].rpartition(" ")[2] if "output" in body else body["name"].removeprefix("in-")
    return found_in, body.get("cell")


class _Client(threading.Thread):
    """Asks every question, again and again. Lives as long as the stream."""

    def __init__(self, stream: Stream, number: int) -> None:
        super().__init__(name=f"client-{number}")
        self._stream = stream
        self._number = number
        self._connection: HTTPConnection | None = None
        self.server: Server | None = None
        self.rounds = 0

    def run(self) -> None:
        while not self._stream.stopped:
            for question in self._stream.questions:
                if self._stream.stopped:
                    break
                self._stream.waited_for.wait(PAUSE)
                connection = self._connect()
                self._stream.answers.append(ask(question, self.server, connection))
            with self._stream.progress:
                self.rounds += 1
                self._stream.progress.notify_all()
        self._leave()

    def _connect(self) -> HTTPConnection:
        """Give the connection to the server that is this client's now; the one before is left for good."""
        servers = self._stream.servers
        server = servers[self._number % len(servers)]
        if server is not self.server:
            self._leave()
            self._connection = HTTPConnection(*server.address, timeout=PATIENCE)
            with self._stream.progress:
                self.server = server
                self._stream.progress.notify_all()
        return self._connection

    def _leave(self) -> None:
        if self._connection is not None:
            self._connection.close()


class Stream:
    """Clients that go on asking. Lives as long as its block.

    :ivar answers: all that they got
    :ivar servers: what they ask; the clients are spread over them
    :ivar questions: what they ask for, which may be replaced
    :ivar waited_for: set while somebody waits for what they get
    """

    def __init__(self, servers: Iterable[Server], questions: Iterable[Question], *, clients: int) -> None:
        self.servers = tuple(servers)
        self.questions = tuple(questions)
        self.answers: list[Answer] = []
        self.progress = threading.Condition()
        self.stopped = False
        self.waited_for = threading.Event()
        self._clients = [_Client(self, number) for number in range(clients)]

    def go_round(self, times: int) -> None:
        """Wait until each client has asked every question so many times from now on.

        :raises AssertionError: if that takes too long
        """
        with self.progress:
            # the round that a client is in began before
            ends = {client: client.rounds + 1 + times for client in self._clients}
            self._wait_for(lambda: all(client.rounds >= end for client, end in ends.items()))

    def replace(self, old: Server, new: Server) -> None:
        """Send the clients of one server to another one, and wait until the old one has answered its last request.

        :raises AssertionError: if that takes too long
        """
        self.servers = tuple(new if server is old else server for server in self.servers)
        with self.progress:
            self._wait_for(lambda: all(client.server is not old for client in self._clients))

    def _wait_for(self, seen: Callable[[], bool]) -> None:
        self.waited_for.set()
        assert self.progress.wait_for(seen, PATIENCE)
        self.waited_for.clear()

    def __enter__(self) -> Stream:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stopped = True
        self.waited_for.set()
        for client in self._clients:
            client.join()
