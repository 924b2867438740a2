# SPDX-License-Identifier: Apache-2.0
"""What the filter costs a Nova in connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nova import objects
from nova.compute import rpcapi

from tests.nova import instances

if TYPE_CHECKING:
    from tests.nova.api import Api
    from tests.nova.conftest import Nova
    from tests.nova.worker import Worker


def _open(api: Api, cell: str) -> tuple[int, int]:
    """Return how many connections the filter in this pipeline has to the cell's database, and to its broker."""
    assert api.cells is not None
    handles = api.cells._pool.handles[instances.cell_mapping(cell).id]
    assert handles.transport is not None
    # the queue in this process has no connections
    brokers = getattr(handles.transport._driver, "_connection_pool", None)
    pool = handles.engine.pool
    return pool.checkedin() + pool.checkedout(), 0 if brokers is None else brokers._current_size


def test_own_handlers_open_nothing_twice(nova: Nova, workers: dict[str, Worker]) -> None:
    """Nova's own handlers use Nova's own handles: the filter in front of them connects to no cell."""
    instance = instances.create("cell1")
    path = f"/v2.1/servers/{instance.uuid}"
    assert nova.filtered.request("GET", path).status_int == 200
    assert nova.filtered.request("PUT", path, {"server": {"name": "renamed"}}).status_int == 200
    assert nova.filtered.request("POST", f"{path}/action", {"reboot": {"type": "HARD"}}).status_int == 202
    workers["cell1"].wait_for("reboot_instance", instance.uuid)
    assert _open(nova.filtered, "cell1") == (0, 0)


def test_handlers_that_go_by_the_context_share(nova: Nova, workers: dict[str, Worker]) -> None:
    """Whoever goes by the context shares the filter's handles, however many requests there are."""
    instance = instances.create("cell2")

    def reboot(environ: dict[str, Any]) -> None:
        context = environ["nova.context"]
        row = objects.Instance.get_by_uuid(context, instance.uuid)
        rpcapi.ComputeAPI().reboot_instance(context, row, None, "HARD")

    def request() -> tuple[int, int]:
        nova.probe.request("GET", f"/v2.1/servers/{instance.uuid}", call=reboot)
        return _open(nova.probe, "cell2")

    databases, brokers = request()
    assert databases > 0
    assert (brokers > 0) is (nova.deployment.kind == "servers")
    for _ in range(5):
        assert request() == (databases, brokers)
    workers["cell2"].wait_for("reboot_instance", instance.uuid)
