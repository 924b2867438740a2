# SPDX-License-Identifier: Apache-2.0
"""Arguments that several commands take."""

from __future__ import annotations

import argparse

import pytest

from cellmw.cmd import arguments


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    """A parser that has a timeout and a count."""
    parser = argparse.ArgumentParser()
    arguments.take_patience(parser)
    parser.add_argument("--keys", type=arguments.at_least(2))
    return parser


def test_numbers(parser: argparse.ArgumentParser) -> None:
    """Seconds may be parts of one; a count may be the least one."""
    assert vars(parser.parse_args(["--timeout", "0.5", "--keys", "2"])) == {"patience": 0.5, "keys": 2}


def test_patience_by_default(parser: argparse.ArgumentParser) -> None:
    """Where nothing is said it is five seconds."""
    assert parser.parse_args([]).patience == 5.0


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon", "", "0.01", "3601", "1e300"])
def test_no_seconds(parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str], text: str) -> None:
    """What is no time to wait for is refused with a reason, not by the name of a function."""
    with pytest.raises(SystemExit):
        parser.parse_args([f"--timeout={text}"])
    assert capsys.readouterr().err.endswith(f"'{text}' is no number of seconds from 0.1 to 3600\n")


@pytest.mark.parametrize("text", ["1", "-1", "2.5", "some", ""])
def test_no_count(parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str], text: str) -> None:
    """What is no number, or too small a one, likewise."""
    with pytest.raises(SystemExit):
        parser.parse_args([f"--keys={text}"])
    assert capsys.readouterr().err.endswith(f"'{text}' is no number, or less than 2\n")
