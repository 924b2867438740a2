# SPDX-License-Identifier: Apache-2.0
"""The commands that ``cellmw-manage`` has -> a script by which a shell completes them: ``cellmw-manage complete``.

The script needs nothing but bash, or zsh with what comes with it. It takes options in front of the command, as
``--config-file``, for what they are, and offers commands, options, and values where an option has only some.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from cliff import command

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cellmw.cmd.manage import Manage

_ZSH = """\
autoload -U +X compinit && compinit
autoload -U +X bashcompinit && bashcompinit
"""

_SCRIPT = """\
{function}()
{{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="" command="" choices="" word
    COMPREPLY=()
    # bash makes three words of --option=value
    [ "$current" = "=" ] && current=""
    for word in "${{COMP_WORDS[@]:1:$((COMP_CWORD - 1))}}"; do
        [ "$word" = "=" ] && continue
        case "$command:$previous" in
            {values_in_front}) previous=""; continue ;;
        esac
        previous="$word"
        case "${{command:+$command }}$word" in
            {known}) command="${{command:+$command }}$word" ;;
        esac
    done
    case "$command" in
{blocks}
    esac
    COMPREPLY=($(compgen -W "$choices" -- "$current"))
}}
complete -o default -F {function} {program}
"""

_BLOCK = """\
        {command})
            case "$previous" in
{values}
                *) {offer}choices="{choices}" ;;
            esac ;;"""

_ONLY_OPTIONS = '[ "${current#-}" = "$current" ] || '
"""What keeps options from being offered where the name of a file may stand."""


class Complete(command.Command):
    """Print a script by which the shell completes commands, options, and the values of some of them.

    For bash: source <(cellmw-manage complete). For zsh: source <(cellmw-manage complete --shell zsh).
    """

    app: Manage

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Take the shell."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--name", metavar="<name>", help="the name of the program (default: cellmw-manage)")
        parser.add_argument("--shell", choices=("bash", "zsh"), default="bash", help="which one (default: bash)")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Print the script."""
        name = parsed_args.name or self.app.NAME
        if parsed_args.shell == "zsh":
            self.app.stdout.write(_ZSH)
        self.app.stdout.write(script(name, self.app.front_parser, dict(self._parsers())))
        return 0

    def _parsers(self) -> Iterator[tuple[str, argparse.ArgumentParser]]:
        for name, _ in sorted(self.app.command_manager):
            command_class, _, _ = self.app.command_manager.find_command(name.split())
            yield name, command_class(self.app, None).get_parser(name)


def script(program: str, front: argparse.ArgumentParser, commands: dict[str, argparse.ArgumentParser]) -> str:
    """Write the script for a program.

    :param front: what takes the options in front of the command
    :param commands: what takes those behind it, by its name
    """
    families: dict[str, list[str]] = {}
    for family, _, rest in (name.partition(" ") for name in commands):
        families.setdefault(family, []).append(rest)
    members = {family: names for family, names in families.items() if names != [""]}
    blocks = [_block("", front, families)]
    blocks += [f"        {family}) choices='{' '.join(names)}' ;;" for family, names in members.items()]
    blocks += [_block(name, parser) for name, parser in commands.items() if name != "help"]
    blocks.append(f"        help) choices='{' '.join(families)}' ;;")
    blocks += [f"        'help {family}') choices='{' '.join(names)}' ;;" for family, names in members.items()]
    known = [*members, *commands, *(f"help {family}" for family in members)]
    return _SCRIPT.format(
        function="_" + program.replace("-", "_"),
        program=program,
        values_in_front="|".join(f":{option}" for action in _with_value(front) for option in action.option_strings),
        known="|".join(f"'{name}'" for name in known),
        blocks="\n".join(blocks),
    )


def _block(name: str, parser: argparse.ArgumentParser, others: Iterable[str] = ()) -> str:
    """Write what can follow a command, or the program.

    :param others: what can, besides the options
    """
    choices: dict[str, list[str]] = {}
    for action in _with_value(parser):
        offered = f"choices='{' '.join(map(str, action.choices))}' ;;" if action.choices else ";;"
        choices.setdefault(offered, []).extend(action.option_strings)
    takes_others = any(not action.option_strings and action.nargs != argparse.PARSER for action in parser._actions)
    return _BLOCK.format(
        command=f"'{name}'",
        values="\n".join(f"                {'|'.join(options)}) {offered}" for offered, options in choices.items()),
        offer=_ONLY_OPTIONS if takes_others else "",
        choices=" ".join([*others, *_options(parser)]),
    )


def _with_value(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings and action.nargs != 0]


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Return the options, each spelled as in the manual."""
    for action in parser._actions:
        spelled: dict[str, str] = {}
        for option in action.option_strings:
            spelled.setdefault(option.replace("_", "-"), option)
        yield from spelled.values()
