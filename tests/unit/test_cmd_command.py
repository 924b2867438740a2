# SPDX-License-Identifier: Apache-2.0
"""What a command returns or raises -> what is printed, where, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cellmw.cmd import manage
from cellmw.cmd.command import Command, Refused, Report, note
from cellmw.cmd.interrupts import Terminated
from cellmw.exceptions import CellExists, CellNotFound
from tests.commands import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.commands import Answer

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

ROWS = Report(("Name", "Disabled Cell"), [("b", True), ("a", None)])

URL = "rabbit://user:Qz77hidden@host/"


@pytest.fixture
def after(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """Runs a command that returns or raises this."""
    configuration = tmp_path / "cellmw.conf"
    configuration.touch()

    def run_it(result: Report | BaseException, *arguments: str) -> Answer:
        class Made(Command):
            """Do as the test says."""

            exit_codes = ((Refused, 1), (CellExists, 2))
            interrupted = "go on there"

            def take_action(self, parsed_args: object) -> Report:
                if isinstance(result, BaseException):
                    raise result
                return result

        monkeypatch.setitem(manage._COMMANDS, "made", Made)
        return run(capsys, configuration, "made", *arguments)

    return run_it


def test_table_where_there_are_no_lines(after: Callable[..., Answer]) -> None:
    """Without a format and without lines the rows are a table."""
    lines = after(ROWS).out.splitlines()
    assert [cell.strip() for cell in lines[1].strip("|").split("|")] == ["Name", "Disabled Cell"]
    assert len(lines) == 6


def test_lines_where_there_is_no_format(after: Callable[..., Answer]) -> None:
    """Lines are for people: a format, the table included, shows the rows."""
    report = Report(ROWS.columns, ROWS.rows, ["one", "two"], 3)
    assert after(report) == (3, "one\ntwo\n", "")
    assert after(report, "-f", "table").out == after(ROWS).out
    assert after(report, "-c", "Name").out == after(ROWS, "-c", "Name").out
    assert after(report, "-f", "value") == (3, "b True\na None\n", "")


def test_values_keep_their_types(after: Callable[..., Answer]) -> None:
    """What is true, false or nothing is that in JSON, and a report without rows is an empty list."""
    assert json.loads(after(ROWS, "-f", "json").out) == [
        {"Name": "b", "Disabled Cell": True},
        {"Name": "a", "Disabled Cell": None},
    ]
    assert json.loads(after(Report(("Name",), []), "-f", "json").out) == []


def test_columns(after: Callable[..., Answer]) -> None:
    """Columns are chosen and sorted by name, however it is spelled; one that there is not is refused with a line."""
    assert after(ROWS, "-f", "value", "-c", "name", "--sort-column", "name").out == "a\nb\n"
    assert after(ROWS, "-f", "value", "-c", "disabled_cell").out == "True\nNone\n"
    for option in ("-c", "--sort-column"):
        answer = after(ROWS, option, "nope", "-f", "json")
        assert (answer.exit_code, answer.out, "Disabled Cell" in answer.err) == (2, "", True)
        assert "it is done" in answer.err


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (Refused("no"), 1),
        (Refused("no", 7), 7),
        (CellExists("there"), 2),
        (CellNotFound(1), 255),
        (ValueError("no"), 255),
        (KeyboardInterrupt(), 130),
        (Terminated(), 143),
    ],
)
def test_exit_codes(after: Callable[..., Answer], error: BaseException, exit_code: int) -> None:
    """Each error is one line on stderr, and has the exit code of its reason, of its class, or that of all others."""
    answer = after(error, "-f", "json")
    assert (answer.exit_code, answer.out, answer.err.count("\n")) == (exit_code, "", 1)


def test_interrupted(after: Callable[..., Answer]) -> None:
    """After Ctrl-C it is said where to go on."""
    assert after(KeyboardInterrupt()).err == "cellmw-manage: interrupted: go on there\n"


def test_no_password_is_shown(after: Callable[..., Answer]) -> None:
    """A password in an error is masked, and so is one in what can't be read as an argument."""
    assert "user:***@" in after(Refused(f"no {URL}")).err
    assert "Qz77hidden" not in after(ValueError(URL)).err
    answer = after(ROWS, URL)
    assert (answer.exit_code, "user:***@" in answer.err, "Qz77hidden" in answer.err) == (2, True, False)


def test_note(capsys: pytest.CaptureFixture[str]) -> None:
    """A note is a masked line on stderr, with the name of the program in front."""
    note(f"see {URL}")
    assert tuple(capsys.readouterr()) == ("", "cellmw-manage: see rabbit://user:***@host/\n")
