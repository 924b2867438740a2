# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage complete`` in the shell that it is for, without the package bash-completion."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from oslo_config import cfg

from cellmw.cmd.manage import Manage

if TYPE_CHECKING:
    from collections.abc import Callable

MANAGE = [str(Path(sys.executable).with_name("cellmw-manage"))]

BASH = ["bash", "--norc", "--noprofile", "-c"]

FRONT = "--config-file /etc/cellmw.conf --debug --log-dir"


@pytest.fixture(scope="module")
def script() -> str:
    """What the command prints."""
    return subprocess.run([*MANAGE, "complete"], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def offered(script: str) -> Callable[[str], list[str]]:
    """Returns what is offered behind a line, the last word of which is only begun."""

    def offer(line: str) -> list[str]:
        words = shlex.join(["cellmw-manage", *line.split(" ")])
        ask = f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _cellmw_manage"
        return in_bash(f'{script}\n{ask}; printf "%s\\n" "${{COMPREPLY[@]}}"').split()

    return offer


def in_bash(program: str) -> str:
    """Run this in a bash that has read no file, and return what it prints."""
    done = subprocess.run([*BASH, program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def test_script_is_read_as_it_is(script: str) -> None:
    """bash takes the whole script, and completes the program by it."""
    assert in_bash(f"{script}\ncomplete -p cellmw-manage") == "complete -o default -F _cellmw_manage cellmw-manage\n"


def test_script_of_another_name() -> None:
    """The program can have another name, and zsh is told to take the script as bash does."""
    command = [*MANAGE, "complete", "--shell", "zsh", "--name", "cells-here"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.startswith("autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n")
    assert printed.endswith("complete -o default -F _cells_here cells-here\n")


@pytest.mark.parametrize("front", ["", "--debug ", f"{FRONT} /var/log ", "--config-file = /etc/cellmw.conf "])
def test_commands(offered: Callable[[str], list[str]], front: str) -> None:
    """Families, their commands and those of no family are offered, whatever options stand in front of them."""
    assert {"api_db", "cell_v2", "credential", "doctor", "help"} <= set(offered(front))
    assert offered(f"{front}api") == ["api_db"]
    assert offered(f"{front}cell_v2 list_c") == ["list_cells"]
    assert set(offered(f"{front}api_db ")) == {"sync", "version"}
    assert offered(f"{front}help credential ro") == ["rotate"]


def test_options(offered: Callable[[str], list[str]]) -> None:
    """The options of a command are offered, in the spelling of the manual; and of one that is of no family."""
    assert offered("cell_v2 create_cell --tr") == ["--transport-url"]
    assert offered("cell_v2 create_cell --transport-url rabbit : // h --name cell_v2 --d") == [
        "--database_connection",
        "--disabled",
        "--dry-run",
    ]
    assert "--format" in offered("doctor --")
    assert "--config-file" in offered("--debug --c")


def test_values(offered: Callable[[str], list[str]]) -> None:
    """Where an option has only some values these are offered; where it has any, and for arguments, names of files."""
    formats = ["csv", "json", "table", "value", "yaml"]
    assert offered("cell_v2 list_cells -f ") == formats
    assert offered("doctor --format =") == formats
    assert offered("doctor --format = js") == ["json"]
    assert offered("cell_v2 export --file-format y") == ["yaml"]
    for line in (FRONT, "cell_v2 create_cell --name", "cell_v2 export"):
        assert offered(f"{line} ") == []
    assert "--force" in offered("cell_v2 export -")


def test_every_command(offered: Callable[[str], list[str]]) -> None:
    """Each command that there is is offered, and each has its help."""
    for name, _ in Manage(cfg.ConfigOpts()).command_manager:
        family, _, rest = name.partition(" ")
        assert (rest or family) in offered(f"{family} " if rest else "")
        if name != "help":
            assert "--help" in offered(f"{name} --h")
