# SPDX-License-Identifier: Apache-2.0
"""The files around the code: what they say in two places they say alike."""

from __future__ import annotations

import re
import shlex
from configparser import ConfigParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from oslo_config import cfg

from cellmw.cmd.manage import Manage
from cellmw.conf import list_opts

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = ROOT.joinpath("Makefile").read_text().replace("\\\n", " ")
MANUAL = ROOT / "doc/source"


@pytest.fixture
def tox() -> ConfigParser:
    """The environments of tox."""
    tox = ConfigParser()
    tox.read(ROOT / "tox.ini")
    return tox


@pytest.fixture
def setup_cfg() -> ConfigParser:
    """What pbr makes the package of."""
    setup_cfg = ConfigParser()
    setup_cfg.read(ROOT / "setup.cfg")
    return setup_cfg


def _targets() -> set[str]:
    return set(re.findall(r"^\.PHONY: (\S+)$", MAKEFILE, re.MULTILINE))


def _made() -> set[str]:
    """Return the commands of the Makefile as somebody in its environment would type them."""
    recipes = re.findall(r"^\t\$\((?:NOVA_)?BIN\)/(.*)$", MAKEFILE, re.MULTILINE)
    return {" ".join(shlex.split(recipe.partition("||")[0])) for recipe in recipes}


def _commands(tox: ConfigParser) -> set[str]:
    """Return what the environments of tox run, without the tests: those tox has by folder."""
    lines = "\n".join(tox[section].get("commands", "").replace("\\\n", " ") for section in tox.sections())
    commands = {" ".join(line.replace("{posargs}", "").split()) for line in lines.splitlines()}
    return {command for command in commands if command and "pytest" not in command}


def test_tox_runs_what_make_runs(tox: ConfigParser) -> None:
    """No environment of tox has a command of its own, but for the tests."""
    assert _commands(tox) <= _made()


def test_tox_runs_every_check(tox: ConfigParser) -> None:
    """What a change has to pass by make it can pass by tox."""
    checks = re.search(r"^check: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
    recipes = [re.search(rf"^{check}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1] for check in checks]
    commands = {
        " ".join(command.split()) for recipe in recipes for command in re.findall(r"\$\(BIN\)/([^|\n]*)", recipe)
    }
    assert commands <= _commands(tox)


def test_every_folder_of_tests_has_an_environment(tox: ConfigParser) -> None:
    """tox reaches all tests."""
    folders = {str(path.relative_to(ROOT)) for path in ROOT.glob("tests/*/") if any(path.glob("test_*.py"))}
    commands = "\n".join(tox[section].get("commands", "") for section in tox.sections())
    assert folders == set(re.findall(r"{posargs:(.*?)}", commands))


def test_extras_exist(tox: ConfigParser, setup_cfg: ConfigParser) -> None:
    """Each extra that make or tox installs is one of the package's."""
    named = ",".join(tox[section].get("extras", "") for section in tox.sections())
    named += "," + ",".join(re.findall(r"'\.\[(.*)\]'", MAKEFILE))
    assert {extra.strip() for extra in named.split(",")} - {""} == set(setup_cfg["extras"])


def test_help_names_every_target() -> None:
    """What make can do, ``make help`` says."""
    assert set(re.findall(r'^\t@echo " *make (\S+)', MAKEFILE, re.MULTILINE)) == _targets() - {"help"}


def test_hooks_are_targets() -> None:
    """pre-commit runs nothing but targets of the Makefile."""
    entries = re.findall(r"entry: (.*)", ROOT.joinpath(".pre-commit-config.yaml").read_text())
    assert {entry.removeprefix("make ") for entry in entries} <= _targets()


def test_manual_has_every_option_group() -> None:
    """An option that is added to a new group shows in the manual."""
    shown = re.findall(r"^\.\. cellmw-options:: (\S+)$", (MANUAL / "configuration.rst").read_text(), re.MULTILINE)
    assert shown == [group for group, _ in list_opts()]


def test_manual_has_every_command() -> None:
    """A command that is added to cellmw-manage shows in the manual."""
    shown = re.findall(r"^\.\. cellmw-command:: (.+)$", (MANUAL / "cellmw-manage.rst").read_text(), re.MULTILINE)
    commands = {name for name, _ in Manage(cfg.ConfigOpts()).command_manager}
    assert set(shown) == commands - {"help"}


def _named_commands() -> Iterator[tuple[Path, str]]:
    """Give what is between backticks behind the name of the program, or of a family, in messages and in the manual."""
    named = re.compile(r"`(?:(?:cellmw-manage|\{NAME\}) |(?=(?:api_db|cell_v2|credential) ))([a-z][^`]+)`")
    for path in [*ROOT.glob("cellmw/**/*.py"), *MANUAL.glob("*.rst"), ROOT / "README.rst"]:
        # what goes on in the next line, in a text of Python and in a paragraph
        text = re.sub(r'"\n +f?"', "", path.read_text()) if path.suffix == ".py" else path.read_text()
        yield from ((path, match[1]) for match in named.finditer(text))


def test_commands_in_messages_exist() -> None:
    """Whoever is told to run a command can run it, with the options that stand there."""
    manage = Manage(cfg.ConfigOpts())
    commands = {name for name, _ in manage.command_manager}
    for path, words in _named_commands():
        if words in {name.partition(" ")[0] for name in commands}:
            continue  # a whole family is meant
        name = next((each for each in (" ".join(words.split()[:2]), words.split()[0]) if each in commands), None)
        assert name, f"{path}: there is no {words}"
        command, _, _ = manage.command_manager.find_command(name.split())
        known = command(manage, None).get_parser(name)._option_string_actions
        assert set(re.findall(r"(?<!\S)--[a-z][\w-]*", words)) <= known.keys(), f"{path}: {words}"


def test_release_notes_have_names_of_their_own() -> None:
    """reno tells notes by the sixteen digits at the end of their names."""
    names = [path.stem for path in ROOT.glob("releasenotes/notes/*.yaml")]
    assert all(re.fullmatch(r"[a-z0-9-]+-[0-9a-f]{16}", name) for name in names)
    assert len({name[-16:] for name in names}) == len(names)
