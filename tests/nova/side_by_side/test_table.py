# SPDX-License-Identifier: Apache-2.0
"""That there is a case for everything, and that the processes that run the cases are as good as the programs."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nova
import pytest
from oslo_config import cfg

from cellmw.cmd.manage import Manage
from tests.nova.side_by_side.bench import check, expected
from tests.nova.side_by_side.case import Ours
from tests.nova.side_by_side.table import CASES

if TYPE_CHECKING:
    from tests.nova.side_by_side.bench import Bench


def _commands() -> dict[str, ast.FunctionDef]:
    """Read the code of nova-manage, which is not to be imported where eventlet is."""
    code = ast.parse(Path(nova.__file__).with_name("cmd").joinpath("manage.py").read_text())
    (family,) = (node for node in code.body if isinstance(node, ast.ClassDef) and node.name == "CellV2Commands")
    methods = (node for node in family.body if isinstance(node, ast.FunctionDef))
    return {method.name: method for method in methods if not method.name.startswith("_")}


COMMANDS = _commands()


def _exit_codes(command: str) -> set[int]:
    """Return the numbers that a command of nova-manage returns."""
    values = (node.value for node in ast.walk(COMMANDS[command]) if isinstance(node, ast.Return))
    return {value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, int)}


def _options(command: str) -> dict[str, dict[str, Any]]:
    """Return the options that a command of nova-manage takes, with what is fixed of how each is declared."""
    options = {}
    for decorator in COMMANDS[command].decorator_list:
        assert isinstance(decorator, ast.Call)
        assert isinstance(decorator.func, ast.Name)
        if decorator.func.id == "args":
            (name,) = (each.value for each in decorator.args if isinstance(each, ast.Constant))
            settings = {
                each.arg: each.value.value for each in decorator.keywords if isinstance(each.value, ast.Constant)
            }
            options[str(name)] = settings
    return options


def test_every_command_has_cases() -> None:
    """There are cases for each command of the family that nova-manage has, and for no other."""
    assert sorted(CASES) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_exit_code_has_a_case(command: str) -> None:
    """There is a case for each exit code in the code of the command."""
    codes = _exit_codes(command)
    assert codes <= {case.exit_code for case in CASES[command]}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_case(command: str) -> None:
    """There is a case for each option, in which it is typed."""
    typed = {word for case in CASES[command] for word in case.command.split()}
    assert _options(command).keys() <= typed


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_ours(command: str) -> None:
    """cellmw-manage takes each option that nova-manage takes, whether it needs a value, and the same are required."""
    app = Manage(cfg.ConfigOpts())
    command_class, _, _ = app.command_manager.find_command(["cell_v2", command])
    actions = command_class(app, None).get_parser("")._actions
    ours = {name: action for action in actions for name in action.option_strings}
    for name, settings in _options(command).items():
        assert name in ours
        assert ours[name].required == settings.get("required", False), name
        assert (ours[name].nargs == 0) == (settings.get("action") == "store_true"), name


def test_no_case_is_told_twice() -> None:
    """No two cases of a command are of the same situation: the manual would not tell them apart."""
    names = [str(case) for cases in CASES.values() for case in cases]
    assert len(names) == len(set(names))


def test_every_reason_has_a_difference() -> None:
    """Where a case has a reason to differ, something is to come of it that is not the same."""
    reasons = [case for cases in CASES.values() for case in cases if case.ours is not None]
    assert [str(case) for case in reasons if len(set(map(repr, expected(case)))) == 1] == []


REAL = (
    "list_cells: a cell has passwords, and they are asked for",
    "create_cell: its uuid is asked for",
    "delete_cell: its database is gone, and it is forced",
    "map_instances: no count is typed",
    "discover_hosts: there are new hosts in two cells",
    "verify_instance: none is named",
)
"""A table, a row that is written, a traceback, an exit code like no other, several databases, and no arguments."""


@pytest.mark.parametrize("name", REAL)
def test_forked_program_is_the_real_one(bench: Bench, name: str) -> None:
    """Each program, started as an operator starts it, ends like the one that was forked, and prints the same."""
    (case,) = (case for cases in CASES.values() for case in cases if str(case) == name)
    for program, forked in (("nova-manage", bench.nova), ("cellmw-manage", bench.cellmw)):
        command = bench.arguments(case.command, case)
        outcomes = []
        for run in (_real, None):
            bench.lay(case.facts)
            answer = forked.run(*command) if run is None else run(program, command)
            rows = sorted(bench.facts())
            outcomes.append((answer[0], rows, bench.said(answer[1])))
        assert outcomes[0] == outcomes[1], program


def _real(program: str, arguments: list[str]) -> tuple[int, str]:
    done = subprocess.run(
        [Path(sys.prefix, "bin", program), *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, done.stdout


UNTRUE: tuple[dict[str, Any], ...] = (
    {"exit_code": 2},
    {"writes": ()},
    {"prints": ("CELL1",)},
    {"ours": Ours("it is not so", exit_code=2)},
    {"ours": Ours("it is not so", writes=())},
    {"ours": Ours("it is not so", prints=("CELL1",))},
)


@pytest.mark.parametrize("untrue", UNTRUE, ids=str)
def test_untrue_case_is_found_out(bench: Bench, untrue: dict[str, Any]) -> None:
    """A case that says anything that is not so fails: a difference that has no name, or one that is none."""
    (case,) = (case for case in CASES["create_cell"] if case.prints == ("NEW",))
    with pytest.raises(AssertionError):
        check(bench, replace(case, **untrue))
