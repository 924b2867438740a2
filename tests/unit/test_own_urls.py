# SPDX-License-Identifier: Apache-2.0
"""Where a service itself lives: what of its configuration says so, and what only seems to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import oslo_messaging
import pytest
from oslo_config import cfg
from oslo_db import options as oslo_db_options

from cellmw import own_urls

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "[DEFAULT]\ntransport_url = rabbit://own/\n[database]\nconnection = sqlite:///own\n"


@pytest.fixture
def bare() -> cfg.ConfigOpts:
    """A configuration on which nothing is registered, and that says nothing."""
    conf = cfg.ConfigOpts()
    conf([], project="service", default_config_files=[], default_config_dirs=[])
    return conf


def test_not_set(bare: cfg.ConfigOpts) -> None:
    """Where nobody has set one there is none, whatever oslo.messaging's own default is."""
    assert own_urls.transport_url(bare) is None
    assert own_urls.database_connection(bare) is None


def test_from_a_file(bare: cfg.ConfigOpts, tmp_path: Path) -> None:
    """What a file says counts, and what it says later."""
    file = tmp_path / "service.conf"
    file.write_text(TEXT)
    bare([], project="service", default_config_files=[str(file)], default_config_dirs=[])
    assert own_urls.transport_url(bare) == "rabbit://own/"
    assert own_urls.database_connection(bare) == "sqlite:///own"
    file.write_text(TEXT.replace("own", "moved"))
    bare.reload_config_files()
    assert own_urls.transport_url(bare) == "rabbit://moved/"
    assert own_urls.database_connection(bare) == "sqlite:///moved"


def test_from_the_environment(bare: cfg.ConfigOpts, monkeypatch: pytest.MonkeyPatch) -> None:
    """What oslo.config takes from the environment counts, too."""
    monkeypatch.setenv("OS_DEFAULT__TRANSPORT_URL", "rabbit://own/")
    monkeypatch.setenv("OS_DATABASE__CONNECTION", "sqlite:///own")
    assert own_urls.transport_url(bare) == "rabbit://own/"
    assert own_urls.database_connection(bare) == "sqlite:///own"


@pytest.mark.parametrize("way", ["set_override", "set_default"])
def test_from_the_service(bare: cfg.ConfigOpts, way: str) -> None:
    """What the service sets itself counts: it is not oslo.messaging's default."""
    oslo_messaging.TransportURL(bare)
    own_urls.database_connection(bare)
    getattr(bare, way)("transport_url", "rabbit://own/")
    getattr(bare, way)("connection", "sqlite:///own", "database")
    assert own_urls.transport_url(bare) == "rabbit://own/"
    assert own_urls.database_connection(bare) == "sqlite:///own"


def test_options_of_the_service(bare: cfg.ConfigOpts) -> None:
    """The service may register oslo.db's options before and after, and one of that name that is its own."""
    bare.register_opts(oslo_db_options.database_opts, "database")
    assert own_urls.database_connection(bare) is None
    bare.register_opts(oslo_db_options.database_opts, "database")
    other = cfg.ConfigOpts()
    other.register_opt(cfg.StrOpt("connection", default="sqlite:///own", help="the service's own"), "database")
    assert own_urls.database_connection(other) == "sqlite:///own"
