# SPDX-License-Identifier: Apache-2.0
"""The schema tests of tests/unit, on MariaDB and PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cellmw import engines
from tests.unit.test_store_schema import *  # noqa: F403 - every test there, with the engine from here

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine


@pytest.fixture(params=["mariadb_url", "postgresql_url"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine on an empty database of a server."""
    engine = engines.make_engine(request.getfixturevalue(request.param), {}, pre_ping=False)
    yield engine
    engine.dispose()
