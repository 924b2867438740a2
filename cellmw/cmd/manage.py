# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage``: the arguments of the process -> one command, and its exit code.

oslo.config reads what stands in front of the command, as in every OpenStack program: ``--config-file``,
``--config-dir`` and the options of oslo.log. cliff reads the command and what follows it.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from cliff.app import App
from cliff.commandmanager import CommandManager
from oslo_config import cfg

from cellmw.cmd import (
    api_db,
    budget,
    cell_files,
    cell_v2,
    completion,
    credential,
    doctor,
    ensure_cell,
    explain,
    graph,
    hosts,
    instances,
    moves,
    setup,
    verify,
)
from cellmw.cmd.command import ERROR, NAME, USAGE, Command, NotShown, note
from cellmw.cmd.interrupts import NOTHING_DONE, Interrupts, exit_code
from cellmw.cmd.program import drop_output, prepare_streams, set_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cliff.command import Command as CliffCommand

_FAMILIES: dict[str, tuple[str, dict[str, type[Command]]]] = {
    "api_db": ("the tables of the API database", api_db.COMMANDS),
    "cell_v2": (
        "the cells",
        {
            **cell_v2.COMMANDS,
            **cell_files.COMMANDS,
            **ensure_cell.COMMANDS,
            **hosts.COMMANDS,
            **instances.COMMANDS,
            **moves.COMMANDS,
            **setup.COMMANDS,
        },
    ),
    "credential": ("the keys of encrypted records", credential.COMMANDS),
}

_COMMANDS: dict[str, type[Command]] = {
    **budget.COMMANDS,
    **doctor.COMMANDS,
    **explain.COMMANDS,
    **graph.COMMANDS,
    **verify.COMMANDS,
}
"""Those that are of no family."""

PIPE_CLOSED = 141
"""The exit code where whoever reads the output has stopped, as a shell has it."""

_QUIETER = [
    "alembic=WARN",
    "cellmw.breaker=ERROR",
    "cellmw.local=ERROR",
    "cellmw.pool=WARN",
    "cellmw.reaper=WARN",
    "oslo_db=CRITICAL",
    "stevedore=ERROR",
]
"""Loggers that would tell again, with tracebacks, what the command says in one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name, and return its exit code."""
    prepare_streams()
    with Interrupts(NAME) as interrupts:
        try:
            code = _run(argv, interrupts)
            _flush()
        except KeyboardInterrupt as interrupt:
            note(f"interrupted: {NOTHING_DONE}")
            return exit_code(interrupt)
        except BrokenPipeError:
            drop_output()
            return PIPE_CLOSED
        except NotShown as error:
            note(str(error))
            return ERROR
        return code


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_output()
        raise NotShown(error) from None


def _run(argv: Sequence[str] | None, interrupts: Interrupts) -> int:
    def register(conf: cfg.ConfigOpts) -> None:
        conf.register_cli_opt(cfg.SubCommandOpt("command", title="commands", handler=_add_families))

    try:
        conf = set_up(NAME, argv, _QUIETER, register)
    except cfg.Error as error:
        note(str(error))
        return ERROR
    return Manage(conf, interrupts).run([conf.command.name, *conf.command.arguments])


def _add_families(subparsers: Any) -> None:
    """Leave everything behind the first word of a command to cliff, options included."""
    helps = {name: f"{what}: {', '.join(sorted(commands))}" for name, (what, commands) in _FAMILIES.items()}
    helps |= {name: command.__doc__.partition("\n")[0] for name, command in _COMMANDS.items() if command.__doc__}
    helps |= {"help": "what a command does and takes", "complete": "a completion script for the shell"}
    for name, text in helps.items():
        # an option is told from an argument by its prefix: without one there are none
        family = subparsers.add_parser(name, help=text, add_help=False, prefix_chars="\0")
        family.add_argument("arguments", nargs="*")


class Manage(App):
    """The commands and what they share. Lives as long as the process."""

    NAME = NAME

    def __init__(self, conf: cfg.ConfigOpts, interrupts: Interrupts | None = None) -> None:
        commands = CommandManager("cellmw.manage", convert_underscores=False)
        super().__init__("The operator's commands of cellmw.", version("cellmw"), commands)
        for family, (_, members) in _FAMILIES.items():
            for name, command in members.items():
                commands.add_command(f"{family} {name}", command)
        for name, command in _COMMANDS.items():
            commands.add_command(name, command)
        commands.add_command("complete", completion.Complete)
        self.conf = conf
        self._interrupts = interrupts

    def build_option_parser(
        self, description: str | None, version: str | None, argparse_kwargs: dict[str, Any] | None = None
    ) -> argparse.ArgumentParser:
        """Take no options: oslo.config has taken them all."""
        parser = argparse.ArgumentParser(
            prog=NAME,
            description=description,
            add_help=False,
            usage=f"{NAME} [options] command; `{NAME} --help` shows the options",
        )
        parser.set_defaults(debug=False)
        return parser

    def configure_logging(self) -> None:
        """Leave it as oslo.log has set it up."""

    @property
    def front_parser(self) -> argparse.ArgumentParser:
        """What has read the options in front of the command."""
        assert self.conf._oparser is not None
        return self.conf._oparser

    def run(self, argv: list[str]) -> int:
        """Run the command. Interruptions and closed pipes are left to main()."""
        self.options = self.parser.parse_args([])
        return self.run_subcommand(argv)

    def prepare_to_run_command(self, cmd: CliffCommand) -> None:
        """Let a second Ctrl-C say where to go on, too."""
        if self._interrupts is not None and isinstance(cmd, Command):
            self._interrupts.where = lambda: cmd.interrupted

    def run_subcommand(self, argv: list[str]) -> int:
        """Take the name of a whole family for a request for help."""
        if argv[0] in _FAMILIES and (len(argv) == 1 or argv[1] in ("-h", "--help")):
            super().run_subcommand(["help", argv[0]])
            return 0 if argv[1:] else USAGE
        # to whoever asks for help with what there is not, cliff says so in the log, and shows the family, with 0
        named = argv[1:] if argv[0] == "help" else argv
        of_family = len(named) == 1 and named[0] in _FAMILIES
        try:
            if named and not of_family and not named[0].startswith("-"):
                self.command_manager.find_command(named)
        except ValueError:
            note(f"there is no command {' '.join(named[:2])!r}: `{NAME} help` shows them")
            return USAGE
        return super().run_subcommand(argv)
