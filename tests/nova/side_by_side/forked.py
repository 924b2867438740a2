# SPDX-License-Identifier: Apache-2.0
"""A program that takes seconds to start -> many runs of it, each in a child of a process that has imported it once.

``nova-manage`` is imported for two seconds and runs for a tenth of one. Here a process of its own imports the program's
``main`` and forks for each run, so that each run begins with what the program has when it starts: nothing configured,
nothing open. ``test_side_by_side_programs.py`` sees to it that this is the same as the program itself.

A run can be stopped where it is about to execute a certain statement: what is to happen meanwhile happens then, as
often as the test is run.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_GO_ON = {"go on": 0, "kill": signal.SIGKILL, "interrupt": signal.SIGINT}
"""What a run can be told where it is stopped, and the signal that it then gets."""


PATIENCE = 120
"""Seconds after which a run is ended by a signal."""


class Answer(NamedTuple):
    """What one run did. A signal shows in its exit code as in a shell."""

    exit_code: int
    out: str
    err: str


class Stop(NamedTuple):
    """Where a run is stopped: before the ``time``-th statement that begins in one of these ways."""

    statements: tuple[str, ...]
    time: int = 1


class Program:
    """Runs one program again and again. Lives as long as its process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, *arguments: str, stop: Stop | None = None, meanwhile: Callable[[], str] | None = None) -> Answer:
        """Run it with these arguments.

        :param meanwhile: what is done when it has stopped; it returns ``go on``, ``kill`` or ``interrupt``
        :raises AssertionError: if it did not get to where it was to be stopped
        """
        answer = self._say({"arguments": arguments, "stop": stop})
        if stop is not None and meanwhile is not None:
            assert answer == "stopped", f"{arguments} did not execute {stop}: {answer}"
            try:
                then = meanwhile()
            except BaseException:
                self._say("kill")
                raise
            answer = self._say(then)
        exit_code, out, err = answer
        return Answer(128 - exit_code if exit_code < 0 else exit_code, out, err)

    def _say(self, request: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


@contextlib.contextmanager
def program(path: Path, main: str) -> Iterator[Program]:
    """Start a process that runs a program.

    :param main: the module of the program's ``main``
    """
    command = [sys.executable, "-m", "tests.nova.side_by_side.forked", str(path), main]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Program(process)
        assert process.stdin is not None
        process.stdin.close()  # which it takes for the end


def _serve(path: str, module: str) -> None:
    """Run the program as often as stdin says."""
    main = importlib.import_module(module).main
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if child == 0:
                _run(main, [path, *request["arguments"]], request["stop"], out.fileno(), err.fileno())
            exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            texts = [each.seek(0) or each.read() for each in (out, err)]
        sys.stdout.write(json.dumps([exit_code, *texts]) + "\n")
        sys.stdout.flush()


def _run(main: Callable[[], Any], argv: list[str], stop: list[Any] | None, out: int, err: int) -> None:
    """Be the program, and end with it."""
    if stop is not None:
        _stop_at(Stop(*stop), os.dup(0), os.dup(1))
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, taken in enumerate((nothing, out, err)):
        os.dup2(taken, descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(PATIENCE)
    sys.argv = argv
    exit_code = 1
    try:
        try:
            sys.exit(main())
        except SystemExit as ended:
            exit_code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - Python would show it, and end
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def _stop_at(stop: Stop, requests: int, answers: int) -> None:
    """Stop before that statement, say so, and do what is said then."""
    import sqlalchemy

    left = [stop.time]

    def before(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if not " ".join(statement.split()).startswith(tuple(stop.statements)):
            return
        left[0] -= 1
        if left[0] == 0:
            os.write(answers, b'"stopped"\n')
            os.kill(os.getpid(), _GO_ON[json.loads(os.read(requests, 100) or '"kill"')])

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", before)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
