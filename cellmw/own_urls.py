# SPDX-License-Identifier: Apache-2.0
"""Configuration -> the two URLs that say in which cell a service itself lives."""

from __future__ import annotations

import contextlib

import oslo_messaging
from oslo_config import cfg
from oslo_db import options as oslo_db_options


def transport_url(conf: cfg.ConfigOpts) -> str | None:
    """Return ``[DEFAULT] transport_url`` where somebody has set it.

    oslo.messaging's own default would lead to whatever runs on this machine.
    """
    oslo_messaging.TransportURL(conf)  # registers the option
    location = conf.get_location("transport_url")
    is_set = location is not None and location.location is not cfg.Locations.opt_default
    return conf.transport_url if is_set else None


def database_connection(conf: cfg.ConfigOpts) -> str | None:
    """Return ``[database] connection`` where it is set."""
    (option,) = (opt for opt in oslo_db_options.database_opts if opt.name == "connection")
    with contextlib.suppress(cfg.DuplicateOptError):  # the service has one of its own
        conf.register_opt(option, group="database")
    url: str | None = conf.database.connection
    return url
