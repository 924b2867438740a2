# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage`` on a terminal, in a pipe and under signals, in processes of its own.

No test waits for a time: it reads until there is what it waits for.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PATIENCE = 60
"""Seconds after which a test gives up on what has to come."""

COUNT = [sys.executable, "-m", "tests.functional.long_command"]

MANAGE = [str(Path(sys.executable).with_name("cellmw-manage"))]

BUFFERED = os.environ | {"PYTHONUNBUFFERED": ""}
"""An environment in which Python writes to a pipe when there is much, or at the end."""

CTRL_C = b"\x03"

INTERRUPTED = "cellmw-manage: interrupted: 500 of 1000 are done: run it again for the rest\n"


class Terminal:
    """A terminal, and one process that it belongs to. Lives as long as a with block.

    :ivar shown: all that has come so far
    """

    def __init__(self, command: list[str], columns: int = 80, **redirected: Any) -> None:
        """Start the process.

        :param redirected: what is not the terminal
        """
        self.shown = ""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        streams = {"stdin": slave, "stdout": slave, "stderr": slave} | redirected
        # Ctrl-C gets to those whose controlling terminal it is
        self.process = subprocess.Popen(["setsid", "--ctty", *command], **streams)
        os.close(slave)

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def read_until(self, pattern: str) -> None:
        """Read until it shows this."""
        deadline = monotonic() + PATIENCE
        while not re.search(pattern, self.shown):
            assert self._read(deadline), f"the process has ended without showing {pattern!r}: {self.shown!r}"

    def read_to_end(self) -> str:
        """Read until nobody can write there any more, and return all that it has shown."""
        deadline = monotonic() + PATIENCE
        while self._read(deadline):
            pass
        return self.shown

    @property
    def exit_code(self) -> int:
        """The exit code, once the process has ended."""
        return self.process.wait(PATIENCE)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0, deadline - monotonic()))
        assert ready, f"nothing more has come: {self.shown!r}"
        with contextlib.suppress(OSError):  # how the end of a terminal shows
            if text := os.read(self._master, 65536):
                self.shown += text.decode().replace("\r\n", "\n")
                return True
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        if self.process.stdout is not None:
            self.process.stdout.close()
        os.close(self._master)


@pytest.fixture
def configuration(tmp_path: Path) -> list[str]:
    """Options that keep it from looking for files elsewhere."""
    path = tmp_path / "cellmw.conf"
    path.write_text(f"[api_database]\nconnection = sqlite:///{tmp_path}/api.db\n")
    return ["--config-file", str(path)]


@pytest.fixture
def started(configuration: list[str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the long command with pipes in the place of a terminal."""
    with contextlib.ExitStack() as processes:

        def start(*arguments: str, before: Sequence[str] = (), **streams: Any) -> subprocess.Popen[str]:
            command = [*before, *COUNT, *configuration, "count", *arguments]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
            process = processes.enter_context(subprocess.Popen(command, text=True, **pipes))
            processes.callback(process.kill)
            return process

        yield start


# --- progress


def test_bar_on_a_terminal(configuration: list[str]) -> None:
    """On a terminal there is a bar with how many, the rate and the time left, and no line of progress."""
    with Terminal([*COUNT, *configuration, "count"]) as terminal:
        shown = terminal.read_to_end()
        assert terminal.exit_code == 0
    assert re.search(r"\r100%\|.*\| 1000/1000 \[\d\d:\d\d<00:00, [\d.]+ instances/s\]", shown)
    assert "a second" not in shown


def test_no_bar_elsewhere(started: Callable[..., subprocess.Popen[str]]) -> None:
    """In a pipe there is no bar, and the last line says how many there were."""
    out, err = started("-f", "value").communicate(timeout=PATIENCE)
    assert out == "0\n1\n2\n"
    assert re.fullmatch(r"cellmw-manage: 1000 of 1000 instances, \d+ a second, in \d+\.\d s\n", err)


@pytest.mark.parametrize("columns", [20, 50])
def test_narrow_terminal(configuration: list[str], columns: int) -> None:
    """The bar is never wider than the terminal."""
    with Terminal([*COUNT, *configuration, "count", "-f", "value"], columns) as terminal:
        shown = terminal.read_to_end()
        assert terminal.exit_code == 0
    bars = [line for line in re.split(r"[\r\n]", shown) if "%" in line]
    assert bars
    assert max(map(len, bars)) <= columns


def test_json_while_there_is_a_bar(configuration: list[str]) -> None:
    """What goes elsewhere than the bar is whole."""
    with Terminal([*COUNT, *configuration, "count", "-f", "json"], stdout=subprocess.PIPE) as terminal:
        terminal.read_until("1000/1000")
        assert json.load(terminal.process.stdout) == [{"Number": number} for number in range(3)]


def test_note_beside_a_bar(configuration: list[str]) -> None:
    """What is said while there is a bar has a line of its own, and the bar goes on below it."""
    with Terminal([*COUNT, *configuration, "count", "--note"]) as terminal:
        shown = terminal.read_to_end()
    assert re.search(r"\r *\rcellmw-manage: in the middle\n\r? *\d+%", shown)


# --- Ctrl-C and SIGTERM


def test_ctrl_c(configuration: list[str]) -> None:
    """Ctrl-C ends a long command with 130, and one line says where to go on."""
    with Terminal([*COUNT, *configuration, "count", "--hang"]) as terminal:
        terminal.read_until("in the middle")
        terminal.type(CTRL_C)
        shown = terminal.read_to_end()
        assert terminal.exit_code == 130
    assert "500/1000" in shown
    assert shown.endswith(f"\n{INTERRUPTED}")
    assert shown.count("cellmw-manage:") == 2


def test_second_ctrl_c(configuration: list[str]) -> None:
    """While it is unwinding a second Ctrl-C ends it at once, and says where to go on."""
    with Terminal([*COUNT, *configuration, "count", "--stuck"]) as terminal:
        terminal.read_until("in the middle")
        terminal.type(CTRL_C)
        terminal.read_until("stuck")
        terminal.type(CTRL_C)
        shown = terminal.read_to_end()
        assert terminal.exit_code == 130
    expected = "cellmw-manage: interrupted again, stopped at once: 500 of 1000 are done: run it again for the rest\n"
    assert shown.endswith(expected)
    assert "Traceback" not in shown


def test_ctrl_c_while_the_configuration_is_read(tmp_path: Path) -> None:
    """Where there is no command yet, nothing was done."""
    fifo = tmp_path / "cellmw.conf"
    os.mkfifo(fifo)
    with Terminal([*MANAGE, "--config-file", str(fifo), "cell_v2", "list_cells"]) as terminal:
        # this waits for the other side
        with fifo.open("w"):
            terminal.type(CTRL_C)
            shown = terminal.read_to_end()
        assert terminal.exit_code == 130
    assert shown.replace("^C", "") == "cellmw-manage: interrupted: nothing was done\n"


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal(started: Callable[..., subprocess.Popen[str]], number: int, exit_code: int) -> None:
    """What systemd sends ends it as Ctrl-C does, with an exit code of its own."""
    process = started("--hang")
    assert process.stderr.readline() == "cellmw-manage: in the middle\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (exit_code, "")
    assert re.fullmatch(rf"cellmw-manage: 500 of 1000 instances, .*\n{re.escape(INTERRUPTED)}", err)


def test_second_signal(started: Callable[..., subprocess.Popen[str]]) -> None:
    """A second SIGTERM ends it at once."""
    process = started("--stuck")
    process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    while process.stderr.readline() != "cellmw-manage: stuck\n":
        pass
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "stopped at once: 500 of 1000" in err) == (143, True)


def test_ignored_signal(started: Callable[..., subprocess.Popen[str]]) -> None:
    """What it was started to ignore, as nohup and a shell's & have it, it ignores."""
    process = started("--hang", before=["sh", "-c", 'trap "" INT; exec "$@"', "sh"])
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err.endswith(INTERRUPTED)) == (143, True)


# --- closed pipes


@pytest.mark.parametrize("rows", [1, 100_000])
def test_closed_pipe(started: Callable[..., subprocess.Popen[str]], rows: int) -> None:
    """Where nobody reads what it prints any more it ends quietly, however much that is."""
    reader, writer = os.pipe()
    process = started("--rows", str(rows), stdout=writer, env=BUFFERED)
    os.close(writer)
    os.close(reader)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err.count("\n")) == (141, 1)


def test_help_in_a_closed_pipe(configuration: list[str]) -> None:
    """So does help."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [*MANAGE, *configuration, "help", "cell_v2"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=BUFFERED, check=False, timeout=PATIENCE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(("closed", "shown"), [(">&-", ""), ("2>&-", "created\n"), ("<&- >&- 2>&-", "")])
def test_closed_from_the_beginning(configuration: list[str], closed: str, shown: str) -> None:
    """A stream that was closed before the start is nothing to fail for, and no file that is opened is taken for it."""
    manage = [*MANAGE, *configuration]
    subprocess.run([*manage, "api_db", "sync"], check=True, capture_output=True)
    urls = ["--transport-url", "rabbit://h/", "--database_connection", "mysql+pymysql://h/cell1"]
    command = [*manage, "cell_v2", "ensure_cell", "--name", "cell1", *urls, "-f", "value", "-c", "Outcome"]
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *command], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, shown, "")
    again = subprocess.run(command, capture_output=True, text=True)
    assert (again.returncode, again.stdout, again.stderr) == (0, "unchanged\n", "")


@pytest.mark.parametrize("rows", ["1", "100000"])
def test_full_disk(configuration: list[str], rows: str) -> None:
    """Where stdout can't be written it is said that the work is done, in one line."""
    with open("/dev/full", "w") as full:
        command = [*COUNT, *configuration, "count", "--rows", rows]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=BUFFERED, text=True)
    assert done.returncode == 255
    assert done.stderr.splitlines()[-1] == (
        "cellmw-manage: it is done, and what there is to show can't be written: No space left on device"
    )
    assert done.stderr.count("\n") == 2


def test_characters_that_stdout_does_not_have(configuration: list[str]) -> None:
    """What can't be written in the encoding of stdout is written as its number, and fails nothing."""
    manage = [*MANAGE, *configuration]
    subprocess.run([*manage, "api_db", "sync"], check=True, capture_output=True)
    urls = ["--transport-url", "rabbit://h/", "--database_connection", "mysql+pymysql://h/cell1"]
    done = subprocess.run(
        [*manage, "cell_v2", "ensure_cell", "--name", "Zoë", *urls],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "cell Zo\\xeb: created\n", "")
