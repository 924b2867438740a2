# SPDX-License-Identifier: Apache-2.0
"""A filter's section in an ini of PasteDeploy -> the configuration that this filter goes by."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any
from urllib.parse import quote

from oslo_config import cfg
from oslo_middleware.base import ConfigurableMiddleware
from paste.deploy import loadwsgi  # type: ignore[import-untyped]

from cellmw import conf as options
from cellmw import deploy
from cellmw.exceptions import ConfigError
from cellmw.filter import CellFilter

DEFAULT_SECTION = "filter:cells"


def configuration(conf: cfg.ConfigOpts, ini: str, section: str = DEFAULT_SECTION) -> cfg.ConfigOpts:
    """Return what the filter of this section goes by: its options, on top of the configuration.

    The configuration is the one that the ini names by ``oslo_config_project``, as it is for the filter itself; where it
    names none it is this one, which is changed.

    :raises ConfigError: if there is no such section, or the filter would not take what it says
    """
    kind, _, name = section.partition(":")
    if kind != "filter" or not name:
        raise ConfigError(f"{section!r} is no section of a filter: give one as in --section {DEFAULT_SECTION}")
    try:
        found = loadwsgi.loadcontext(loadwsgi.FILTER, f"config:{quote(str(Path(ini).resolve()))}", name=name)
    except (AttributeError, ImportError, LookupError, OSError) as error:
        raise ConfigError(f"[{section}] of {ini} can't be read: {error}") from None
    except (configparser.Error, ValueError) as error:
        # their messages quote the line, which can be that of a secret
        raise ConfigError(f"{ini} is not of the right form ({type(error).__name__})") from None
    if not _is_ours(found.object):
        raise ConfigError(f"[{section}] of {ini} is another filter's: name the one with egg:cellmw#cells by --section")
    CellFilter.factory(found.global_conf, **found.local_conf)  # which refuses what it would refuse in the pipeline
    both = {**found.global_conf, **found.local_conf}
    theirs = {key: both[key] for key in both if key.startswith("oslo_config_")}
    if "oslo_config_project" in theirs:
        try:
            conf = ConfigurableMiddleware(None, theirs).oslo_conf
        except (cfg.Error, OSError, ValueError) as error:
            # which can quote a line, too
            what = f"the configuration that {ini} names by oslo_config_project can't be read"
            raise ConfigError(f"{what} ({type(error).__name__})") from None
    overrides = {key: value for key, value in found.local_conf.items() if key not in theirs}
    deploy.settings(conf, overrides)
    for key, value in overrides.items():
        conf.set_override(key, value, group=options.GROUP)
    return conf


def _is_ours(factory: Any) -> bool:
    owner = getattr(factory, "__self__", None)
    return isinstance(owner, type) and issubclass(owner, CellFilter)
