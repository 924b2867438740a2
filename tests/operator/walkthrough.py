# SPDX-License-Identifier: Apache-2.0
"""A page of the manual -> its chapters, with the commands that are printed in them; and a shell that runs those.

A command is a line of a ``console`` block that begins with ``$``, and what stands below it is what it prints. Nothing
else in the page may look like one. What a page calls by a name of its own, a host or a password, is replaced by what
the test has: that is all that is different from what a reader would type.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PATIENCE = 60
"""Seconds after which a command is given up, and after which what it is to show in the end has to be shown."""

PROMPT = "$ "

BLOCK = ".. code-block:: console"

_COMMAND = re.compile(r"\s*\$ |\s+cellmw-(?:manage|status) ")
"""What looks like a command, outside of a block."""

_FUNCTION = re.compile(r"(\w+)\(\) {")

ANYTHING = "..."
"""Stands for anything in a line of output or, alone in a line, for any number of lines."""

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"

_NEW = re.compile(rf"{_UUID}|(?<=\bkey )[0-9a-f]{{12}}\b|(?<=\bkey is )[0-9a-f]{{12}}\b")
"""What a page can't know before: the uuid of a cell that is created, the id of a key."""

_VARIES = {
    re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?(?:Z| UTC)?"): "TIME",
    re.compile(r"\d+(?:\.\d+)? (s|ms|a second)\b"): r"N \1",
}
"""Times and numbers of seconds, which are others each time."""


_PROGRESS = re.compile(r"^cellmw-manage: \d+ of \d+ [a-z ]+, N a second, (?:N s left|in N s)\n", re.MULTILINE)
"""How far a long command is: how many such lines there are says how fast the machine is."""


class Step(NamedTuple):
    """One command of a page.

    :ivar line: where it stands
    :ivar output: what it prints
    """

    line: int
    command: str
    output: str


class Chapter(NamedTuple):
    """One chapter of a page."""

    title: str
    steps: list[Step]


class PageBroken(Exception):
    """There is something in the page that looks like a command and would not be run."""


def read(page: str) -> list[Chapter]:
    """Return the chapters of a page: its sections that are underlined with dashes.

    :raises PageBroken: if a command stands where none is looked for
    """
    lines = page.splitlines()
    chapters: list[Chapter] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        if number + 1 < len(lines) and line and re.fullmatch("-+", lines[number + 1]):
            chapters.append(Chapter(line, []))
        if line.strip() == BLOCK and chapters:
            end = _end_of_block(lines, number)
            chapters[-1].steps.extend(_steps(lines, number + 1, end))
            number = end
            continue
        if _COMMAND.match(line):
            raise PageBroken(f"line {number + 1} is in no console block of a chapter: {line.strip()}")
        number += 1
    return chapters


def _end_of_block(lines: list[str], start: int) -> int:
    indent = len(lines[start]) - len(lines[start].lstrip())
    end = start + 1
    while end < len(lines) and (not lines[end].strip() or len(lines[end]) - len(lines[end].lstrip()) > indent):
        end += 1
    return end


def _steps(lines: list[str], start: int, end: int) -> list[Step]:
    steps: list[Step] = []
    goes_on = False
    for number in range(start, end):
        line = lines[number].strip()
        if line.startswith(PROMPT):
            steps.append(Step(number + 1, line.removeprefix(PROMPT), ""))
        elif goes_on:
            steps[-1] = steps[-1]._replace(command=f"{steps[-1].command}\n{line}")
        elif steps:
            steps[-1] = steps[-1]._replace(output=f"{steps[-1].output}{line}\n")
        elif line:
            raise PageBroken(f"line {number + 1} is the output of no command: {line}")
        goes_on = bool(steps) and not steps[-1].output and _goes_on(steps[-1].command)
    return steps


def _goes_on(command: str) -> bool:
    """Tell whether the next line belongs to the command: a backslash, an open quote or an open function says so."""
    try:
        shlex.split(command)
    except ValueError:
        return True
    return _FUNCTION.match(command) is not None and not command.endswith("}")


class Shell:
    """Runs the commands of one chapter. Lives as long as the test.

    :ivar names: what the page calls something -> what it is called here
    """

    def __init__(self, folder: Path, names: Mapping[str, str], environment: Mapping[str, str]) -> None:
        """Begin with an exit code of 0.

        :param folder: where the commands are run
        """
        self.names = dict(names)
        self._functions: dict[str, str] = {}
        self._folder = folder
        self._environment = environment
        self._exit_code = 0

    def walk(self, chapter: Chapter) -> None:
        """Run the commands of a chapter in their order, and compare what they print.

        A function of the shell is kept for all that follows. It asks the service, and is asked again until the answer
        is right: services follow the records within seconds. A command that is followed by ``echo $?`` may end with
        any exit code; all others have to succeed.
        """
        for step, following in zip(chapter.steps, [*chapter.steps[1:], None], strict=True):
            if function := _FUNCTION.match(step.command):
                self._functions[function[1]] = step.command
                continue
            may_fail = following is not None and following.command == "echo $?"
            deadline = monotonic() + PATIENCE
            printed = self._run(step)
            asks = step.command.partition(" ")[0] in self._functions
            while asks and not self._matches(step, printed) and monotonic() < deadline:
                printed = self._run(step)
            if self._exit_code and not may_fail:
                raise AssertionError(f"line {step.line}: {step.command}\n--- exit code {self._exit_code}\n{printed}")
            if not self._matches(step, printed):
                seen = f"--- the page has\n{self.here(step.output)}--- it prints\n{printed}"
                raise AssertionError(f"line {step.line}: {step.command}\n{seen}")

    def here(self, text: str) -> str:
        """Replace what the page calls by a name of its own."""
        if not self.names:
            return text
        longest_first = sorted(self.names, key=len, reverse=True)
        name = re.compile("|".join(rf"(?<![\w.-]){re.escape(each)}(?![\w-]|\.\w)" for each in longest_first))
        return name.sub(lambda found: self.names[found[0]], text)

    def _run(self, step: Step) -> str:
        # a pipe fails where any part of it does
        lines = ["set -o pipefail", *self._functions.values(), f"(exit {self._exit_code})", step.command]
        with subprocess.Popen(
            ["bash", "-c", self.here("\n".join(lines))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self._folder,
            env=self._environment,
            start_new_session=True,
        ) as command:
            try:
                printed, _ = command.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(command.pid, signal.SIGKILL)
                raise AssertionError(f"line {step.line}: {step.command}\n--- it does not end") from None
        self._exit_code = command.returncode
        return printed

    def _matches(self, step: Step, printed: str) -> bool:
        new = [each for each in dict.fromkeys(_NEW.findall(step.output)) if each not in self.names]
        expected = _even(self.here(step.output))
        found = re.fullmatch(_pattern(expected, new), _even(printed))
        if found is not None:
            self.names |= {each: found[f"new{number}"] for number, each in enumerate(new)}
        return found is not None


def _even(text: str) -> str:
    """Leave out how wide the columns of a table are, as names have another length here, and what varies."""
    even = "".join(f"{re.sub('-{3,}', '---', ' '.join(line.split()))}\n" for line in text.strip().splitlines())
    for like, instead in _VARIES.items():
        even = like.sub(instead, even)
    return _PROGRESS.sub("", even)


def _pattern(expected: str, new: list[str]) -> str:
    """Return what the output has to match."""
    lines = ["(?:.*\n)*?" if line == ANYTHING else f"{_line(line)}\n" for line in expected.splitlines()]
    pattern = "".join(lines)
    for number, each in enumerate(new):
        group = rf"(?P<new{number}>{_UUID})" if "-" in each else rf"(?P<new{number}>[0-9a-f]{{12}})"
        pattern = pattern.replace(re.escape(each), group, 1).replace(re.escape(each), f"(?P=new{number})")
    return pattern


def _line(line: str) -> str:
    return ".*".join(map(re.escape, line.split(ANYTHING)))
