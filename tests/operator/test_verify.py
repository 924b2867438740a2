# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage verify`` with its databases on servers: the tests of tests/unit."""

from __future__ import annotations

from tests.unit.test_cmd_verify import *  # noqa: F403 - every test there

# the databases are those of the conftest
del api_url, new_cell_url  # noqa: F821
