# SPDX-License-Identifier: Apache-2.0
"""The one command by which nova-manage makes a cell of a deployment without any, under requests that go on."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from nova import context as nova_context
from nova import objects
from oslo_config import cfg

from cellmw.filter import CellFilter
from cellmw.trip import TARGET_KEY
from tests.nova import instances
from tests.nova.conftest import Files
from tests.nova.test_adoption import OneDatabase, add_compute_host

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

PATIENCE = 60

CELLMW_CONF = """
[cellmw]
context_key = nova.context
project_check = false
unmapped = pass
"""


@pytest.fixture
def one_database(request: pytest.FixtureRequest, tmp_path: Path, neighbours_url: str) -> Iterator[OneDatabase]:
    """A Nova whose API database has nothing in it, and a compute host."""
    if request.config.getoption("deployment") != "sqlite":
        pytest.skip("the command puts cell0 into a database that it does not make")
    deployment = OneDatabase(tmp_path, Files(tmp_path), neighbours=neighbours_url)
    with deployment.config_file.open("a") as config_file:
        config_file.write(CELLMW_CONF)
    with deployment.used_here():
        deployment.manage("api_db", "sync")
        deployment.manage("db", "sync", "--local_cell")
        add_compute_host(nova_context.get_admin_context(), "host-cell1")
        yield deployment


def _show(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Read an instance by the context, and answer its name and the state of the target."""
    trip = environ[TARGET_KEY]
    name = objects.Instance.get_by_uuid(environ["nova.context"], trip.instance_uuid).display_name
    start_response("200 OK", [])
    return [f"{name} {trip.state}".encode()]


class Client(threading.Thread):
    """Asks for the instances again and again, until it is told to end. Lives as long as the test.

    :ivar answers: what it was answered, for each instance in order
    :ivar errors: what went wrong
    """

    def __init__(self, app: CellFilter, uuids: list[str]) -> None:
        super().__init__()
        self.answers: dict[str, list[str]] = {uuid: [] for uuid in uuids}
        self.errors: list[Exception] = []
        self._app = app
        self._ending = False
        self._round = threading.Condition()

    def run(self) -> None:
        while not self._ending and not self.errors:
            for uuid, answers in self.answers.items():
                try:
                    answers.append(self._ask(uuid))
                except Exception as error:  # noqa: BLE001 - the test is told
                    self.errors.append(error)
            with self._round:
                self._round.notify_all()

    def wait_for(self, state: str) -> None:
        """Wait until the last answer for each instance says this."""

        def seen() -> bool:
            newest = [answers[-1] for answers in self.answers.values() if answers]
            return bool(self.errors) or (len(newest) == len(self.answers) and all(state in each for each in newest))

        with self._round:
            assert self._round.wait_for(seen, PATIENCE)

    def end(self) -> None:
        """Let it end, and wait for that."""
        self._ending = True
        self.join()

    def _ask(self, uuid: str) -> str:
        context = nova_context.get_admin_context()
        environ: dict[str, Any] = {"PATH_INFO": f"/servers/{uuid}", "nova.context": context}
        (chunk,) = self._app(environ, lambda status, headers, exc_info=None: print)
        return chunk.decode()


def test_simple_cell_setup(one_database: OneDatabase) -> None:
    """While the command makes the cell and maps the instances, each is found, before its mapping and after it."""
    uuids = [instances.create_unmapped("cell1").uuid for _ in range(3)]
    conf = cfg.ConfigOpts()
    conf([], project="nova", default_config_files=[str(one_database.config_file)])
    with closing(CellFilter(_show, conf)) as cell_filter:
        client = Client(cell_filter, uuids)
        client.start()
        client.wait_for("unmapped")
        one_database.manage("cell_v2", "simple_cell_setup", "--transport-url", one_database.top_queue)
        client.wait_for("targeted")
        client.end()
        assert cell_filter.cells.leases == 0
    assert client.errors == []
    for answers in client.answers.values():
        before, after = "in-cell1 unmapped", "in-cell1 targeted"
        assert set(answers) == {before, after}
        assert answers == sorted(answers, key=[before, after].index)
