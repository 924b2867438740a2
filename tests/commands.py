# SPDX-License-Identifier: Apache-2.0
"""Arguments -> what ``cellmw-manage`` does with them, in the process of the test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from cellmw.cmd.manage import main
from tests.logs import logging_undone

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    Manage = Callable[..., "Answer"]
    """Runs a command with these arguments."""


class Answer(NamedTuple):
    """What one command did."""

    exit_code: int
    out: str
    err: str


def exit_code_of(arguments: list[str]) -> Any:
    """Run a command; argparse ends the process where it can't read the arguments, and for help."""
    with logging_undone():
        try:
            return main(arguments)
        except SystemExit as error:
            return error.code


def run(capsys: pytest.CaptureFixture[str], configuration: object, *arguments: object) -> Answer:
    """Run a command by this configuration file, and return what it did."""
    code = exit_code_of(["--config-file", str(configuration), *map(str, arguments)])
    return Answer(code, *capsys.readouterr())
