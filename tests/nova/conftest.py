# SPDX-License-Identifier: Apache-2.0
"""Fixtures: one Nova deployment for the process, and Nova's API on it with the filter and without.

Files that run side by side are in processes of their own, and so have deployments of their own.

``--deployment sqlite`` has SQLite files and queues in this process; ``--deployment servers`` has the API database and
cell2 on MariaDB, cell0 and cell1 on PostgreSQL, and a vhost of RabbitMQ for each queue.
"""

from __future__ import annotations

import os

# Nova looks at it when it is imported
os.environ["OS_NOVA_DISABLE_EVENTLET_PATCHING"] = "true"

import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests import servers
from tests.nova import neighbours
from tests.nova.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.nova.api import Api
    from tests.nova.deployment import Servers
    from tests.nova.worker import Worker

CELLS = ("cell1", "cell2")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the command line say what the deployment is made of."""
    parser.addoption("--deployment", choices=["sqlite", "servers"], default="sqlite", help="what Nova is deployed on")


def pytest_configure(config: pytest.Config) -> None:
    """Make errors of our warnings alone: those of Nova and of what it brings are not ours to mend."""
    for line in ("ignore", r"error:::cellmw\..*", "error::pytest.PytestUnraisableExceptionWarning"):
        config.addinivalue_line("filterwarnings", line)


class Files:
    """SQLite files, and queues in this process. Lives as long as the folder."""

    name = "sqlite"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def database(self, name: str) -> str:
        return f"sqlite:///{self._folder}/{name}.sqlite"

    def queue(self, name: str) -> str:
        return f"memory://{name}-{uuid.uuid4().hex}/"


class RealServers:
    """Databases on MariaDB and PostgreSQL, vhosts on RabbitMQ. Lives as long as the stack."""

    name = "servers"

    def __init__(self, request: pytest.FixtureRequest, stack: ExitStack) -> None:
        self._mariadb = request.getfixturevalue("mariadb_server")
        self._postgresql = request.getfixturevalue("postgresql_server")
        self._rabbitmq = request.getfixturevalue("rabbitmq_server")
        self._stack = stack

    def database(self, name: str) -> str:
        if name in ("api", "cell2"):
            return self._stack.enter_context(servers.mariadb_database(self._mariadb))
        return self._stack.enter_context(servers.postgresql_database(self._postgresql))

    def queue(self, name: str) -> str:
        return self._stack.enter_context(self._rabbitmq.vhost())


@pytest.fixture(scope="session")
def neighbours_url() -> Iterator[str]:
    """Where the services answer that Nova asks."""
    with neighbours.serve() as url:
        yield url


@pytest.fixture(scope="session")
def new_servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """What a deployment is made of."""
    with ExitStack() as stack:
        if request.config.getoption("deployment") == "servers":
            yield RealServers(request, stack)
        else:
            yield Files(tmp_path_factory.mktemp("databases"))


@pytest.fixture(scope="session")
def deployment(new_servers: Servers, neighbours_url: str, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A deployment with cell0, cell1 and cell2."""
    deployment = Deployment(tmp_path_factory.mktemp("nova"), new_servers, neighbours=neighbours_url)
    deployment.sync()
    for cell in CELLS:
        deployment.add_cell(cell)
    return deployment


@dataclass
class Nova:
    """Nova's API in this process. Lives as long as the test run.

    :ivar plain: as Nova has it
    :ivar filtered: with the filter
    :ivar probe: with the filter, in front of a call of the test's own
    :ivar hosts: the compute host of each cell, which is up
    """

    deployment: Deployment
    plain: Api
    filtered: Api
    probe: Api
    hosts: dict[str, str]


@pytest.fixture(scope="session")
def whole_nova(deployment: Deployment) -> Iterator[Nova]:
    """Nova's API, loaded."""
    from tests.nova import api, instances

    plain = api.load(deployment, deployment.paste_ini)
    filtered = api.load(deployment, deployment.filtered_paste_ini)
    probe = api.load(deployment, deployment.filtered_paste_ini, "probe")
    yield Nova(deployment, plain, filtered, probe, {cell: instances.add_host(cell) for cell in CELLS})
    for each in (filtered, probe):
        if each.cells is not None:
            each.cells.close()
    api.close()


@pytest.fixture
def nova(whole_nova: Nova) -> Iterator[Nova]:
    """Nova's API, with no lease open when the test has ended."""
    yield whole_nova
    for api in (whole_nova.filtered, whole_nova.probe):
        assert api.cells is None or api.cells.leases == 0


@pytest.fixture(scope="session")
def all_workers(whole_nova: Nova) -> Iterator[dict[str, Worker]]:
    """What takes messages off the queue of each cell."""
    from tests.nova import worker

    with ExitStack() as stack:
        places = whole_nova.deployment.cells
        yield {
            cell: stack.enter_context(worker.serve(cell, places[cell].transport_url, host))
            for cell, host in whole_nova.hosts.items()
        }


@pytest.fixture
def workers(all_workers: dict[str, Worker]) -> dict[str, Worker]:
    """What takes messages off the queue of each cell, none taken yet."""
    for worker in all_workers.values():
        worker.messages.clear()
    return all_workers
