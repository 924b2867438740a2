# SPDX-License-Identifier: Apache-2.0
"""A transport or database URL -> what may be shown of it, what it is once filled in, whether a cell can have it."""

from __future__ import annotations

from cellmw.urls.checks import check_database_connection, check_transport_url
from cellmw.urls.masking import MASK, mask
from cellmw.urls.places import database_place, harmless, server_kind, transport_place
from cellmw.urls.templates import fields, fill_in, literal

__all__ = [
    "MASK",
    "check_database_connection",
    "check_transport_url",
    "database_place",
    "fields",
    "fill_in",
    "harmless",
    "literal",
    "mask",
    "server_kind",
    "transport_place",
]
