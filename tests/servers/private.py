# SPDX-License-Identifier: Apache-2.0
"""Installed programs -> a server of one's own: a temporary folder, loopback ports, processes ended by their id.

What a server is started with is in ``private_postgresql.py``, ``private_mariadb.py`` and ``private_rabbitmq.py``.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import ExitStack
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
    """Return ports of 127.0.0.1 at which nothing listens."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listening.getsockname()[1] for listening in sockets]


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
    ) -> None:
        """Start a process, and wait until it answers.

        :param end: what it is ended by
        :param answers: looks whether it does, and raises one of ``unless`` if it does not
        """
        try:
            process = subprocess.Popen(
                self.command(*command, at_death=end),
                cwd=self.path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                # Ctrl-C is for the tests, which then still have databases to drop
                start_new_session=True,
            )
        except OSError as error:
            raise self._not_started(error) from error
        self._exits.callback(_end, process, end)
        self._wait(process, answers, unless)

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


def _end(process: subprocess.Popen[bytes], by: signal.Signals) -> None:
    process.send_signal(by)
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
