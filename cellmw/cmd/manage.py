# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage``: the arguments of the process -> one command, and its exit code.

oslo.config reads what stands in front of the command, as in every OpenStack program: ``--config-file``,
``--config-dir`` and the options of oslo.log. cliff reads the command and what follows it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from cliff.app import App
from cliff.commandmanager import CommandManager
from oslo_config import cfg
from oslo_log import log

from cellmw.cmd import api_db, cell_v2, credential
from cellmw.cmd.command import ERROR, NAME, Command, note
from cellmw.log import install, masked

if TYPE_CHECKING:
    from collections.abc import Sequence

_FAMILIES: dict[str, tuple[str, dict[str, type[Command]]]] = {
    "api_db": ("the tables of the API database", api_db.COMMANDS),
    "cell_v2": ("the cells", cell_v2.COMMANDS),
    "credential": ("the keys of encrypted records", credential.COMMANDS),
}

USAGE = 2
"""The exit code of arguments that can't be read, as argparse has it."""

_QUIETER = ["alembic=WARN", "oslo_db=CRITICAL"]
"""Loggers that would tell again, with tracebacks, what the command says in one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name, and return its exit code."""
    conf = cfg.ConfigOpts()
    log.register_options(conf)
    conf.set_default("default_log_levels", [*log.get_default_log_levels(), *_QUIETER])
    conf.register_cli_opt(cfg.SubCommandOpt("command", title="commands", handler=_add_families))
    try:
        _read(conf, argv)
        # where no log is configured oslo.log would write it between the lines that a script reads
        conf.set_default("use_stderr", not (conf.log_file or conf.log_dir))
        log.setup(conf, "cellmw")
        install()
    except (cfg.Error, log.LogConfigError) as error:
        note(str(error))
        return ERROR
    return Manage(conf).run([conf.command.name, *conf.command.arguments])


def _read(conf: cfg.ConfigOpts, argv: Sequence[str] | None) -> None:
    """Read the arguments and the files; what can't be read is quoted without the passwords in it."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            conf(argv, project="cellmw", prog=NAME, version=version("cellmw"))
    finally:
        sys.stderr.write(masked(errors.getvalue()))


def _add_families(subparsers: Any) -> None:
    """Leave everything behind the first word of a command to cliff, options included."""
    helps = {name: f"{what}: {', '.join(sorted(commands))}" for name, (what, commands) in _FAMILIES.items()}
    helps |= {"help": "what a command does and takes", "complete": "a completion script for the shell"}
    for name, text in helps.items():
        # an option is told from an argument by its prefix: without one there are none
        family = subparsers.add_parser(name, help=text, add_help=False, prefix_chars="\0")
        family.add_argument("arguments", nargs="*")


class Manage(App):
    """The commands and what they share. Lives as long as the process."""

    NAME = NAME

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        commands = CommandManager("cellmw.manage", convert_underscores=False)
        super().__init__("Manage the API database of cellmw.", version("cellmw"), commands)
        for family, (_, members) in _FAMILIES.items():
            for name, command in members.items():
                commands.add_command(f"{family} {name}", command)
        self.conf = conf

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

    def run_subcommand(self, argv: list[str]) -> int:
        """Take the name of a whole family for a request for help."""
        if argv[0] in _FAMILIES and (len(argv) == 1 or argv[1] in ("-h", "--help")):
            super().run_subcommand(["help", argv[0]])
            return 0 if argv[1:] else USAGE
        try:
            self.command_manager.find_command(argv)
        except ValueError:
            note(f"there is no command {' '.join(argv[:2])!r}: `{NAME} help` shows them")
            return USAGE
        return super().run_subcommand(argv)
