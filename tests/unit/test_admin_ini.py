# SPDX-License-Identifier: Apache-2.0
"""The section of a filter in an ini, laid over the configuration as the filter itself has it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cellmw import deploy
from cellmw.admin import ini
from cellmw.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from oslo_config import cfg

FILTER = "use = egg:cellmw#cells\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """Write an ini, and return its path."""

    def write(text: str) -> str:
        path = tmp_path / "a paste #1.ini"
        path.write_text(text)
        return str(path)

    return write


def test_options_of_the_section(conf: cfg.ConfigOpts, write: Callable[[str], str]) -> None:
    """What the section says counts before what the configuration says, and the rest stays."""
    conf.set_override("unmapped", "pass", group="cellmw")
    path = write(f"[filter:cells]\n{FILTER}mapping_ttl = 5\nroutes = /a/{{instance_uuid}}, /b/{{instance_uuid}}\n")
    settings = deploy.settings(ini.configuration(conf, path))
    assert (settings.mapping_ttl, settings.unmapped) == (5.0, "pass")
    assert settings.routes == ("/a/{instance_uuid}", "/b/{instance_uuid}")


def test_other_section(conf: cfg.ConfigOpts, write: Callable[[str], str]) -> None:
    """The section can have another name, and stand beside others."""
    path = write(f"[filter:cells]\n{FILTER}mapping_ttl = 5\n[filter:more]\n{FILTER}mapping_ttl = 6\n")
    assert deploy.settings(ini.configuration(conf, path, "filter:more")).mapping_ttl == 6.0


def test_configuration_of_the_filter(conf: cfg.ConfigOpts, write: Callable[[str], str], tmp_path: Path) -> None:
    """Where the ini names a configuration file the filter goes by that, and so does whoever asks."""
    file = tmp_path / "service.conf"
    file.write_text("[cellmw]\nstale_ttl = 7\nmapping_ttl = 7\n")
    names = f"oslo_config_project = service\noslo_config_file = {file}\n"
    theirs = ini.configuration(conf, write(f"[DEFAULT]\n{names}[filter:cells]\n{FILTER}mapping_ttl = 5\n"))
    settings = deploy.settings(theirs)
    assert (theirs is conf, settings.mapping_ttl, settings.stale_ttl) == (False, 5.0, 7.0)


@pytest.mark.parametrize("text", [None, "instance_header_secret Zk41-secret\n", "\xe9"])
def test_configuration_that_cant_be_read(
    conf: cfg.ConfigOpts, write: Callable[[str], str], tmp_path: Path, text: str | None
) -> None:
    """Where the ini names a configuration that is not there, or of another form, that is said without quoting it."""
    file = tmp_path / "service.conf"
    if text is not None:
        file.write_text(text, encoding="latin-1")
    path = write(f"[DEFAULT]\noslo_config_project = service\noslo_config_file = {file}\n[filter:cells]\n{FILTER}")
    with pytest.raises(ConfigError, match="by oslo_config_project can't be read") as raised:
        ini.configuration(conf, path)
    assert "Zk41" not in str(raised.value)


def test_a_filter_made_of_ours(conf: cfg.ConfigOpts, write: Callable[[str], str]) -> None:
    """The section may lead to ours by another one, or name its factory."""
    path = write(f"[filter:cells]\nuse = more\nmapping_ttl = 5\n[filter:more]\n{FILTER}unmapped = pass\n")
    settings = deploy.settings(ini.configuration(conf, path))
    assert (settings.mapping_ttl, settings.unmapped) == (5.0, "pass")
    path = write("[filter:cells]\npaste.filter_factory = cellmw.filter:CellFilter.factory\nmapping_ttl = 6\n")
    assert deploy.settings(ini.configuration(conf, path)).mapping_ttl == 6.0


@pytest.mark.parametrize(
    ("text", "section", "says"),
    [
        (FILTER, "cells", "--section filter:cells"),
        (FILTER, "app:cells", "--section filter:cells"),
        (f"[filter:other]\n{FILTER}", "filter:cells", "can't be read"),
        ("[filter:cells]\nuse = egg:nosuch#cells\n", "filter:cells", "can't be read"),
        ("[filter:cells]\npaste.filter_factory = cellmw.filter:Nosuch.factory\n", "filter:cells", "can't be read"),
        ("[filter:cells]\nuse = egg:oslo.middleware#cors\n", "filter:cells", "is another filter's"),
        ("[filter:cells]\npaste.filter_factory = cellmw.filter\n", "filter:cells", "is another filter's"),
        (f"[filter:cells]\n{FILTER}mappings_ttl = 5\n", "filter:cells", "mappings_ttl"),
        (f"[filter:cells]\n{FILTER}mapping_ttl = soon\n", "filter:cells", "mapping_ttl"),
        (f"[DEFAULT]\nmapping_ttl = 5\n[filter:cells]\n{FILTER}", "filter:cells", "PasteDeploy then hides"),
        (f"[filter:cells]\n{FILTER}instance_header_secret Zk41-secret\n", "filter:cells", "not of the right form"),
    ],
)
def test_what_the_filter_would_not_take(
    conf: cfg.ConfigOpts, write: Callable[[str], str], text: str, section: str, says: str
) -> None:
    """What is wrong is said in a line, without the line that may have a secret in it."""
    with pytest.raises(ConfigError, match=says) as raised:
        ini.configuration(conf, write(text), section)
    assert "Zk41" not in str(raised.value)


def test_no_file(conf: cfg.ConfigOpts, tmp_path: Path) -> None:
    """A file that is not there is one line."""
    with pytest.raises(ConfigError, match="can't be read"):
        ini.configuration(conf, str(tmp_path / "none.ini"))
