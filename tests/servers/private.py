# SPDX-License-Identifier: Apache-2.0
"""Installed programs -> a server of one's own: a temporary folder, loopback ports, processes ended by their id.

What a server is started with is in ``private_postgresql.py``, ``private_mariadb.py`` and ``private_rabbitmq.py``.
"""

from __future__ import annotations

import os
import pwd
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Self

from tests.servers.addresses import ServerMissing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path("/")

BINDEP = Path(__file__).parents[2] / "bindep.txt"

UNPRIVILEGED = "nobody"
"""Whom root has run the servers: PostgreSQL and MariaDB refuse to run as root."""

START_TIMEOUT = 60
"""Seconds after which a server that does not answer is given up."""

STOP_TIMEOUT = 15
"""Seconds after which a server that was told to end is killed."""

PAUSE = 0.05
"""Seconds between two looks at a server that is starting."""


def program(name: str, package: str, *folders: str) -> str:
    """Return the path of an installed program.

    :param package: what brings it, as ``bindep.txt`` calls it
    :param folders: where it may be outside of PATH, as patterns; what is there is preferred to what is in PATH
    :raises ServerMissing: if it is not installed
    """
    places = [str(place) for folder in folders for place in sorted(ROOT.glob(f"{folder}/{name}"))]
    found = places[-1] if places else shutil.which(name)
    if found is None:
        lines = re.findall(rf"^{package}\b.*", BINDEP.read_text(), re.MULTILINE)
        raise ServerMissing(f"to have one started install what has {name}, in bindep.txt: {' or '.join(lines)}")
    return found


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 at which nothing listens.

    They are none of those that the kernel gives to whoever connects to something: one of these could be taken, be it by
    a client that looks for the server there, while the server is down. For the same reason each worker of pytest-xdist
    has ports that no other one has.
    """
    kernels = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < count:
            port = random.randrange(10_000 + worker, kernels, workers)
            with suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
    return ports


class Home:
    """The folder of a private server, and who runs it. Lives as long as its ``with`` block.

    At the end every process that was started in it is ended, the last one first, and the folder is removed. Should
    the test run be killed, the kernel ends the processes: they are bound to the thread that started them.

    :ivar path: the folder, which belongs to that user
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._exits = ExitStack()
        self._user = pwd.getpwnam(UNPRIVILEGED) if os.geteuid() == 0 else None

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            name = exits.enter_context(tempfile.TemporaryDirectory(prefix=f"cellmw-{self._what.lower()}-"))
            self.path = Path(name)
            self._log = exits.enter_context((self.path / "log").open("ab"))
            self._give(self.path)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._exits.close()

    def command(self, *command: str, at_death: signal.Signals = signal.SIGKILL) -> list[str]:
        """Return the command as the folder's user runs it.

        :param at_death: what the kernel sends to the process when whoever runs it is gone
        """
        identity = []
        if self._user:
            identity = [f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}", "--clear-groups"]
        return ["setpriv", *identity, f"--pdeathsig={at_death.name.removeprefix('SIG')}", "--", *command]

    def write(self, name: str, text: str) -> Path:
        """Write a file that nobody but the folder's user can read, and nobody can change."""
        path = self.path / name
        path.write_text(text)
        path.chmod(0o400)
        self._give(path)
        return path

    def _give(self, path: Path) -> None:
        if self._user:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def run(self, *command: str) -> None:
        """Run a command to its end."""
        try:
            subprocess.run(
                self.command(*command),
                cwd=self.path,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                check=True,
                timeout=START_TIMEOUT,
            )
        except OSError as error:
            raise self._not_started(error) from error
        except subprocess.SubprocessError as failed:
            raise self._not_started(f"{Path(command[0]).name} failed") from failed

    def start(
        self,
        *command: str,
        environment: Mapping[str, str] | None = None,
        end: signal.Signals = signal.SIGKILL,
        answers: Callable[[], object],
        unless: tuple[type[Exception], ...],
    ) -> Process:
        """Start a process, and wait until it answers.

        :param end: what it is ended by
        :param answers: looks whether it does, and raises one of ``unless`` if it does not
        """

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                self.command(*command, at_death=end),
                cwd=self.path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                # Ctrl-C is for the tests, which then still have databases to drop
                start_new_session=True,
            )

        try:
            process = Process(start, end, lambda started: self._wait(started, answers, unless))
        except OSError as error:
            raise self._not_started(error) from error
        self._exits.callback(process.end)
        process.wait_until_it_answers()
        return process

    def _wait(
        self, process: subprocess.Popen[bytes], answers: Callable[[], object], unless: tuple[type[Exception], ...]
    ) -> None:
        deadline = monotonic() + START_TIMEOUT
        while True:
            try:
                answers()
            except unless as error:
                reason = error
            else:
                return
            try:
                status = process.wait(PAUSE)
            except subprocess.TimeoutExpired:
                if monotonic() > deadline:
                    raise self._not_started(f"no answer within {START_TIMEOUT} s") from reason
            else:
                raise self._not_started(f"it ended with status {status}") from reason

    def _not_started(self, reason: object) -> ServerMissing:
        log = (self.path / "log").read_text(errors="replace").splitlines()[-15:]
        return ServerMissing("\n  ".join([f"a private {self._what} did not start: {reason}", *log]))


class Process:
    """A process of a private server, with its children, which can be taken away and given back. Lives as its home."""

    def __init__(
        self,
        start: Callable[[], subprocess.Popen[bytes]],
        end: signal.Signals,
        wait: Callable[[subprocess.Popen[bytes]], None],
    ) -> None:
        """Start it.

        :param end: what it is ended by
        :param wait: returns when it answers
        """
        self._start = start
        self._end = end
        self._wait = wait
        self._process = start()

    def wait_until_it_answers(self) -> None:
        """Return when it answers.

        :raises ServerMissing: if it does not
        """
        self._wait(self._process)

    def kill(self) -> None:
        """Kill it with its children, at one blow, and wait until nothing is left of them."""
        with ExitStack() as stack:
            family = {process: os.pidfd_open(process) for process in self._freeze()}
            for process, descriptor in family.items():
                stack.callback(os.close, descriptor)
                os.kill(process, signal.SIGKILL)
            for process, descriptor in family.items():
                if not select.select([descriptor], [], [], STOP_TIMEOUT)[0]:
                    raise TimeoutError(f"process {process} was killed and is still there")
        self._process.wait()

    def restart(self) -> None:
        """Start it again after it was killed, with what it had, and wait until it answers.

        The thread that calls this has to live on: the kernel ends the process with it.

        :raises ServerMissing: if it does not answer
        """
        self._process = self._start()
        self.wait_until_it_answers()

    def freeze(self) -> None:
        """Have the process and its children do nothing any more; the kernel goes on taking what is sent to them."""
        self._freeze()

    def thaw(self) -> None:
        """Let them go on."""
        _send(signal.SIGCONT, _family(self._process.pid))

    def _freeze(self) -> list[int]:
        family: list[int] = []
        # what is frozen has no more children, but one may have had another one just before
        while (found := _family(self._process.pid)) != family:
            family = found
            _send(signal.SIGSTOP, family)
        return family

    def end(self) -> None:
        """End it, for good."""
        if self._process.poll() is None:
            self.thaw()  # what is frozen can be killed, and nothing else
            self._process.send_signal(self._end)
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _send(what: signal.Signals, processes: list[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(process, what)


def _family(process: int) -> list[int]:
    """Return the process and all that descend from it and have not ended, the oldest generation first."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            # the name, in brackets, may have spaces and brackets in it
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    family = [process]
    for member in family:
        family += sorted(children.get(member, []))
    return family
