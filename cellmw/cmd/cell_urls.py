# SPDX-License-Identifier: Apache-2.0
"""What was typed, or else what is configured -> a URL that a cell can have.

It checks that the library which is to use the URL can read it, and connects to nothing. A URL may be a template to be
filled in from ``[DEFAULT] transport_url`` or ``[database] connection``, as Nova has them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import oslo_messaging
import sqlalchemy
from oslo_db import options as oslo_db_options
from sqlalchemy import exc

from cellmw.cmd.command import Refused

if TYPE_CHECKING:
    from oslo_config import cfg

_ENCODE = "special characters in a user or a password have to be percent-encoded, as in %40 for @"

_FIELD = re.compile(r"\{(scheme|username|password|hostname|port|path|query|fragment)\d*\}")


def transport_url(conf: cfg.ConfigOpts, typed: str | None) -> str:
    """Return the transport URL that was typed, or else the service's own.

    :raises Refused: if there is neither, or if oslo.messaging can't read it
    """
    url = typed or _configured_transport_url(conf)
    if not url:
        raise Refused("no transport URL: give --transport-url, or set [DEFAULT] transport_url")
    try:
        oslo_messaging.TransportURL.parse(conf, _filled_in(url, "rabbit"))
    except oslo_messaging.InvalidTransportURL as error:
        raise Refused(f"the transport URL is not one that oslo.messaging can read: {error}") from None
    except ValueError:
        # its message quotes what was taken for a port, which can be half of a password
        raise Refused(f"the transport URL is not one that oslo.messaging can read: {_ENCODE}") from None
    return url


def database_connection(conf: cfg.ConfigOpts, typed: str | None) -> str:
    """Return the database URL that was typed, or else the service's own.

    :raises Refused: if there is neither, or if SQLAlchemy can't read it
    """
    url = typed or _configured_database_connection(conf)
    if not url:
        raise Refused("no database URL: give --database_connection, or set [database] connection")
    _parse_database_connection(url)
    return url


def cell0_database_connection(conf: cfg.ConfigOpts, typed: str | None) -> str:
    """Return the database URL that was typed, or else the service's own with ``_cell0`` behind the database's name.

    :raises Refused: if there is neither, or if SQLAlchemy can't read it
    """
    parsed = _parse_database_connection(url := database_connection(conf, typed))
    if typed:
        return url
    if not parsed.database:
        raise Refused("[database] connection names no database to call cell0's after: give --database_connection")
    return parsed.set(database=f"{parsed.database}_cell0").render_as_string(hide_password=False)


def _parse_database_connection(url: str) -> sqlalchemy.URL:
    try:
        parsed = sqlalchemy.make_url(_filled_in(url, "sqlite"))
        parsed.get_dialect()
    except exc.NoSuchModuleError:
        raise Refused(f"SQLAlchemy knows no database by the name of {parsed.drivername!r}") from None
    except (exc.ArgumentError, ValueError):
        raise Refused(f"the database URL is not one that SQLAlchemy can read: {_ENCODE}") from None
    if "@" in (parsed.host or ""):
        raise Refused(f"the database URL has two @ in front of its host: {_ENCODE}")
    return parsed


def _configured_transport_url(conf: cfg.ConfigOpts) -> str | None:
    """Return what an operator has set: oslo.messaging's own default leads to whatever runs on this machine."""
    oslo_messaging.TransportURL(conf)  # registers the option
    location = conf.get_location("transport_url")
    return conf.transport_url if location is not None and location.location.is_user_controlled else None


def _configured_database_connection(conf: cfg.ConfigOpts) -> str | None:
    conf.register_opts([opt for opt in oslo_db_options.database_opts if opt.name == "connection"], group="database")
    url: str | None = conf.database.connection
    return url


def _filled_in(url: str, scheme: str) -> str:
    """Replace the fields of a template by what could stand there."""
    samples = {"scheme": scheme, "port": "1", "query": "", "fragment": ""}
    return _FIELD.sub(lambda field: samples.get(field[1], "x"), url)
