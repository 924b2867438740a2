# SPDX-License-Identifier: Apache-2.0
"""Fixture: the deployment on which both programs run. ``--deployment servers`` has it on MariaDB."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.nova.side_by_side.bench import Bench

pytest.register_assert_rewrite("tests.nova.side_by_side.bench")


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A deployment, with Nova's tables and no rows that a test could rely on."""
    on_servers = request.config.getoption("deployment") == "servers"
    mariadb = request.getfixturevalue("mariadb_server") if on_servers else None
    from tests.nova.side_by_side import bench as benches  # whose assertions are explained

    with benches.bench(tmp_path_factory.mktemp("side-by-side"), mariadb) as made:
        yield made
