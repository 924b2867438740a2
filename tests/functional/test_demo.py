# SPDX-License-Identifier: Apache-2.0
"""The demo, and that it notices what it is there to notice."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cellmw import RequestContext
from examples.compute import demo, witness
from examples.compute.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture
def wrongs(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """Run the demo, which has to fail, and return what it says is wrong."""

    def run() -> list[str]:
        assert demo.main([]) == 1
        return re.findall("^WRONG: (.*)$", capsys.readouterr().err, re.MULTILINE)

    return run


@pytest.fixture
def corrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have a statement run in the API database after each instance was created, behind the back of the demo."""

    def change(statement: str) -> None:
        plant_decoys = witness.Databases.plant_decoys

        def plant_decoys_and_corrupt(databases: witness.Databases, instance_uuid: str) -> None:
            plant_decoys(databases, instance_uuid)
            databases.execute("api", statement)

        monkeypatch.setattr(witness.Databases, "plant_decoys", plant_decoys_and_corrupt)

    return change


def test_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    """Every request of the demo reaches its own cell, and nothing stays open."""
    assert demo.main([]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert re.search(r"^reboot web-1 .* 202 +cell1 +cell1 +cell1$", printed.out, re.MULTILINE)
    assert re.search(r"^reboot web-2 .* 202 +cell2 +cell2 +cell2$", printed.out, re.MULTILINE)


def test_wrong_cell(corrupt: Callable[[str], None], wrongs: Callable[[], list[str]]) -> None:
    """An answer out of another cell's database, and a message on another cell's queue, are noticed."""
    first = "WHERE id = (SELECT min(id) FROM instance_mappings)"
    corrupt(f"UPDATE instance_mappings SET cell_id = (SELECT id FROM cell_mappings WHERE name = 'cell2') {first}")
    found = wrongs()
    assert "show web-1: database: cell2, and not cell1" in found
    assert "reboot web-1: queue: cell2, and not cell1" in found
    assert not [wrong for wrong in found if "web-2" in wrong]


def test_wrong_queue(monkeypatch: pytest.MonkeyPatch, wrongs: Callable[[], list[str]]) -> None:
    """A message on another cell's queue is noticed where the database is the right one."""
    create_databases = Deployment._create_databases

    def create_databases_and_corrupt(deployment: Deployment) -> None:
        create_databases(deployment)
        deployment.databases.execute(
            "api", "UPDATE cell_mappings SET transport_url = 'memory://cell2/' WHERE name = 'cell1'"
        )

    monkeypatch.setattr(Deployment, "_create_databases", create_databases_and_corrupt)
    found = wrongs()
    assert "reboot web-1: queue: cell2, and not cell1" in found
    assert not [wrong for wrong in found if wrong.startswith("show web-1")]


def test_open_lease(monkeypatch: pytest.MonkeyPatch, wrongs: Callable[[], list[str]]) -> None:
    """A lease that is still open at the end is noticed."""
    take = demo.Tour.take
    targets = ExitStack()

    def take_and_stay(tour: demo.Tour) -> None:
        take(tour)
        cells = tour.deployment.api.filter.cells
        targets.enter_context(cells.target(RequestContext(), cells.get("cell1")))

    monkeypatch.setattr(demo.Tour, "take", take_and_stay)
    with targets:
        assert wrongs() == ["leases still open at the end: 1, and not 0"]


@pytest.fixture
def served() -> Iterator[subprocess.Popen[str]]:
    """``python -m examples.compute.demo --serve``, with leaks as errors."""
    command = [sys.executable, "-W", "error::ResourceWarning", "-m", "examples.compute.demo", "--serve"]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_serve(served: subprocess.Popen[str]) -> None:
    """With --serve the instances can be asked for until Ctrl-C, which ends it cleanly."""
    printed = ""
    while printed.count("/action") < len(demo.FLAVORS):
        line = served.stdout.readline()
        assert line, served.stderr.read()
        printed += line
    url = re.search("curl .* (http://[^ ]+)$", printed, re.MULTILINE).group(1)
    request = urllib.request.Request(url, headers={"X-Project-Id": demo.PROJECT})
    with urllib.request.urlopen(request, timeout=30) as response:
        assert json.load(response)["server"]["name"] == "web-1"
    served.send_signal(signal.SIGINT)
    _, errors = served.communicate(timeout=30)
    assert (served.returncode, errors) == (0, "")
