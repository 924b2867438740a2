# SPDX-License-Identifier: Apache-2.0
"""Fixtures: an API database on one kind of server, and cells on the other kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(params=["mariadb", "postgresql"])
def api_server(request: pytest.FixtureRequest) -> str:
    """Which server has the API database; the cells are on the other one."""
    name: str = request.param
    return name


@pytest.fixture
def api_url(request: pytest.FixtureRequest, api_server: str) -> str:
    """Where the API database is."""
    url: str = request.getfixturevalue(f"{api_server}_url")
    return url


@pytest.fixture
def new_cell_url(request: pytest.FixtureRequest, api_server: str) -> Callable[[], str]:
    """Makes an empty database for a cell."""
    other = {"mariadb": "postgresql", "postgresql": "mariadb"}[api_server]
    new: Callable[[], str] = request.getfixturevalue(f"new_{other}_url")
    return new
