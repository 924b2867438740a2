# SPDX-License-Identifier: Apache-2.0
"""A Nova with one database becomes one with two cells behind the filter, and goes back, while clients go on asking.

Two streams of requests run all the time: one to Nova's own API, one to an app with Nova's filters and ours in front
that reads and sends by its context alone. ``adoption`` is what the operator does, as in ``doc/source/adoption.rst``;
each test states one fact about what the clients got meanwhile. Where the queues are in memory nothing is sent: they do
not leave their process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import pytest
from nova import context as nova_context
from nova import objects, rpc
from nova.conf import CONF
from nova.db.api import api as api_db
from nova.db.main import api as main_db
from oslo_config import cfg
from oslo_utils import timeutils, uuidutils

from cellmw import deploy
from cellmw.mapping import SHORT_TTL
from tests.nova import instances, server, worker
from tests.nova.api import close_cells
from tests.nova.deployment import Deployment, Place
from tests.nova.stream import CONTEXT, NOVA, Question, Stream, ask_once, questions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.nova.deployment import Servers
    from tests.nova.stream import Answer
    from tests.nova.worker import Worker

INSTANCES = 5
MAX_COUNT = 2
"""How many of them nova-manage maps at a time."""

PROCESSES = 2
CLIENTS = 4
ROUNDS = 2
"""How often each client has to ask for everything before the next step is done."""

MAPPING_TTL = 2.0
"""Seconds for which the filter goes by the cell that it knows, where instances may move."""

HOSTS = {"cell1": "host-cell1", "cell2": "host-cell2"}
"""Where the instances of each cell are."""

objects.register_all()


class OneDatabase(Deployment):
    """A Nova whose instances are in the database of ``[database] connection``. Lives as long as its folder."""

    def __init__(self, folder: Path, servers: Servers, *, neighbours: str) -> None:
        """Configure it; nothing is in its databases yet."""
        super().__init__(folder, servers, neighbours=neighbours)
        self.main_database = servers.database("main")
        self.config_file = self._configure("nova", self.main_database, self.top_queue)

    def add_cell1(self) -> None:
        """Record what there is as a cell, by nova-manage."""
        *_, uuid = self.manage("cell_v2", "create_cell", "--name", "cell1", "--verbose").split()
        self.cells["cell1"] = Place("cell1", uuid, self.main_database, self.top_queue, self.config_file)

    def map_instances(self, cell: str) -> int:
        """Let nova-manage map some instances, and return its exit code, which is 1 where there are more."""
        command = [Path(sys.prefix, "bin", "nova-manage"), "--config-file", self.config_file]
        command += ["cell_v2", "map_instances", "--cell_uuid", self.cells[cell].uuid, "--max-count", str(MAX_COUNT)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return done.returncode

    @contextmanager
    def used_here(self) -> Iterator[None]:
        """Let Nova's objects in this process work on it, whatever deployment the process is configured for."""
        databases = {api_db.context_manager: self.api_database, main_db.context_manager: self.main_database}
        with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
            for manager, url in databases.items():
                own = main_db.create_context_manager(url)
                stack.callback(own.dispose_pool)
                stack.callback(manager.patch_factory(own))
            if rpc.NOTIFIER is None:
                rpc.set_defaults(control_exchange="nova")
                rpc.init(CONF)
                stack.callback(rpc.cleanup)
            patch.setattr(nova_context, "CELL_CACHE", {})
            yield
            close_cells()


@dataclass(frozen=True)
class Change:
    """Between two moments an instance was mapped to a cell. Lives as long as the tests.

    :ivar lag: seconds for which the filter may still go by what was there before
    """

    cell: str
    begun: float
    ended: float
    lag: float


class Adoption:
    """A deployment on its way, under the streams. Lives as long as the tests.

    :ivar old: the instances that were there first
    :ivar new: those that were made in the second cell
    :ivar changes: the mappings of each instance, in their order
    :ivar phases: when each began and ended
    :ivar generations: the processes that served, by the name of each restart
    :ivar endings: the exit codes of the processes that were ended
    :ivar batches: those of nova-manage, for each time that it mapped some instances
    :ivar hosts: those that answer, by their cell; none where the queues are in memory
    :ivar printed: what nova-manage has said
    :ivar reboots: the answers to requests to reboot
    :ivar listed: what Nova has listed when there were instances in the second cell
    """

    def __init__(self, deployment: OneDatabase, stack: ExitStack, ini: Path, old: list[str]) -> None:
        """Start the first processes, and the streams."""
        self.deployment = deployment
        self.old = old
        self.new: list[str] = []
        self.changes: dict[str, list[Change]] = {uuid: [] for uuid in old}
        self.phases: dict[str, tuple[float, float]] = {}
        self.generations: dict[str, set[int]] = {}
        self.endings: list[int] = []
        self.batches: list[int] = []
        self.printed: dict[str, str] = {}
        self.reboots: list[Answer] = []
        self.listed: set[str] = set()
        self.hosts: dict[str, Worker] = {}
        self._stack = stack
        self.serve_host("cell1", deployment.top_queue)
        self.stream = stack.enter_context(Stream(self._start("first", ini), self._questions(old), clients=CLIENTS))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Take a step, and wait until every client has seen what it has led to."""
        begun = monotonic()
        yield
        self.stream.go_round(ROUNDS)
        self.phases[name] = (begun, monotonic())

    def manage(self, *arguments: str) -> None:
        """Run nova-manage."""
        self.printed[arguments[1]] = self.printed.get(arguments[1], "") + self.deployment.manage(*arguments)

    def serve_host(self, cell: str, transport_url: str) -> None:
        """Let the host of a cell answer, where messages leave their process."""
        if self.deployment.kind == "servers":
            self.hosts[cell] = self._stack.enter_context(worker.serve(cell, transport_url, HOSTS[cell]))

    def restart(self, name: str, ini: Path) -> None:
        """Start processes with this ini beside the old ones; then one by one move the clients, and end the old."""
        for old, new in zip(self.stream.servers, self._start(name, ini), strict=True):
            self.stream.replace(old, new)
            self.endings.append(old.end())
            self.stream.go_round(1)

    def _start(self, name: str, ini: Path) -> list[server.Server]:
        config_file = self.deployment.config_file
        started = [self._stack.enter_context(server.Server(ini, config_file)) for _ in range(PROCESSES)]
        for each in started:
            each.wait()
        self.generations[name] = {each.pid for each in started}
        return started

    def map_by_cellmw(self, uuid: str, cell: str) -> None:
        """Map an instance as a service does it that is not Nova."""
        conf = cfg.ConfigOpts()
        conf([], project="nova", default_config_files=[str(self.deployment.config_file)])
        begun = monotonic()
        with deploy.cells(conf) as cells:
            cells.mappings.create(uuid, project_id=instances.PROJECT, user_id=instances.USER, cell=cells.get(cell))
        self._note_mappings(cell, begun)

    def map_by_nova(self, cell: str) -> None:
        """Map the next instances."""
        begun = monotonic()
        self.batches.append(self.deployment.map_instances(cell))
        self._note_mappings(cell, begun)

    def _note_mappings(self, cell: str, begun: float) -> None:
        context = nova_context.get_admin_context()
        mapped = {
            row.instance_uuid for row in objects.InstanceMappingList.get_by_project_id(context, instances.PROJECT)
        }
        for uuid, changes in self.changes.items():
            if uuid in mapped and not changes:
                changes.append(Change(cell, begun, monotonic(), SHORT_TTL))

    def create(self, cell: str, *, decoys: list[str]) -> None:
        """Make an instance, and have the clients ask for it from then on."""
        begun = monotonic()
        instance = instances.create(cell, decoys=decoys)
        self.changes[instance.uuid] = [Change(cell, begun, monotonic(), lag=0)]
        self.new.append(instance.uuid)
        self.stream.questions += self._questions([instance.uuid])

    def reboot(self, uuid: str) -> None:
        """Ask for a reboot, which Nova casts to the host."""
        question = Question(NOVA, uuid, "POST", f"/v2.1/servers/{uuid}/action", {"reboot": {"type": "SOFT"}})
        self.reboots.append(ask_once(question, self.stream.servers[0]))

    def move(self, uuid: str, cell: str) -> None:
        """Map an instance to another cell, where it has a row; wait until every filter has to know."""
        begun = monotonic()
        mapping = objects.InstanceMapping.get_by_instance_uuid(nova_context.get_admin_context(), uuid)
        mapping.cell_mapping = instances.cell_mapping(cell)
        mapping.save()
        change = Change(cell, begun, monotonic(), MAPPING_TTL)
        self.changes[uuid].append(change)
        while monotonic() < change.ended + change.lag:
            self.stream.go_round(1)

    def _questions(self, uuids: list[str]) -> tuple[Question, ...]:
        return tuple(question for uuid in uuids for question in questions(uuid, hosts=bool(self.hosts)))

    def only_nova_asks_for(self, uuids: list[str]) -> None:
        """Have the clients ask for these no more by the context."""
        left = [each for each in self.stream.questions if each.stream == NOVA or each.instance not in uuids]
        self.stream.questions = tuple(left)
        self.stream.go_round(0)

    def answers(self, stream: str, phase: str | None = None) -> list[Answer]:
        """Return what a stream was answered to requests that were made as a whole in this phase, or in any."""
        begun, ended = self.phases[phase] if phase else (0, monotonic())
        answers = [answer for answer in self.stream.answers if begun <= answer.begun and answer.ended <= ended]
        return [answer for answer in answers if answer.question.stream == stream]

    def is_right(self, answer: Answer) -> bool:
        """Tell if it is what the client has to get, from the cell from which it has to come."""
        got = (answer.status, answer.found_in, answer.aimed_at)
        return got in [self._right_answer(answer, cell) for cell in self._cells(answer)]

    def _cells(self, answer: Answer) -> set[str | None]:
        """Return where the instance may be mapped to; that is more than one cell only while it changes."""
        cells: set[str | None] = {None}
        for change in self.changes[answer.question.instance]:
            # Nova looks for the mapping each time
            followed = change.ended + (change.lag if answer.question.stream == CONTEXT else 0)
            if followed <= answer.begun:
                cells = {change.cell}
            elif change.begun <= answer.ended:
                cells.add(change.cell)
        return cells

    def _right_answer(self, answer: Answer, cell: str | None) -> tuple[int, str | None, str | None]:
        if answer.question.stream == NOVA:
            return (404, None, None) if cell is None else (200, cell, None)
        if answer.server in self.generations["without"] or (
            cell is None and answer.server in self.generations["first"]
        ):
            return (200, "cell1", None)
        return (404, None, None) if cell is None else (200, cell, self.deployment.cells[cell].uuid)


def add_compute_host(context: nova_context.RequestContext, host: str) -> None:
    """Write what a compute host that is up writes into the database of its cell."""
    objects.Service(
        context, host=host, binary="nova-compute", topic="compute", report_count=1, last_seen_up=timeutils.utcnow()
    ).create()
    amounts = ("vcpus", "vcpus_used", "memory_mb", "memory_mb_used", "local_gb", "local_gb_used")
    objects.ComputeNode(
        context,
        uuid=uuidutils.generate_uuid(),
        host=host,
        hypervisor_hostname=host,
        hypervisor_type="none",
        hypervisor_version=1,
        cpu_info="",
        **dict.fromkeys(amounts, 1),
    ).create()


def in_cell(cell: str) -> AbstractContextManager[nova_context.RequestContext]:
    """Give a context that is aimed at a cell, as Nova does it."""
    return nova_context.target_cell(nova_context.get_admin_context(), instances.cell_mapping(cell))


def list_instances(asked: server.Server) -> set[str]:
    """Return the names in Nova's own list of instances."""
    host, port = asked.address
    token = {"X-Auth-Token": f"{instances.USER}:{instances.PROJECT}:member,reader"}
    request = urllib.request.Request(f"http://{host}:{port}/v2.1/servers", headers=token)
    with urllib.request.urlopen(request, timeout=server.PATIENCE) as response:
        return {listed["name"] for listed in json.load(response)["servers"]}


@pytest.fixture(scope="module")
def one_database(
    new_servers: Servers, neighbours_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OneDatabase]:
    """A Nova that has an API database with nothing in it, and a compute host."""
    # an SQLite file is empty for the first deployment only that asks for it by its name
    own = new_servers if new_servers.name == "servers" else type(new_servers)(tmp_path_factory.mktemp("one-database"))
    deployment = OneDatabase(tmp_path_factory.mktemp("adoption"), own, neighbours=neighbours_url)
    with deployment.used_here():
        deployment.manage("api_db", "sync")
        deployment.manage("db", "sync", "--local_cell")
        add_compute_host(nova_context.get_admin_context(), HOSTS["cell1"])
        yield deployment


@pytest.fixture(scope="module")
def adoption(one_database: OneDatabase) -> Iterator[Adoption]:
    """The operator's steps; the last processes go on serving."""
    first_ini, second_ini = one_database.folder / "first.ini", one_database.folder / "second.ini"
    server.write_ini(first_ini, filtered=False, by_context={"unmapped": "pass"})
    server.write_ini(second_ini, filtered=True, by_context={"unmapped": "404", "mapping_ttl": str(MAPPING_TTL)})
    old = [instances.create_unmapped("cell1").uuid for _ in range(INSTANCES)]
    with ExitStack() as stack:
        adoption = Adoption(one_database, stack, first_ini, old)
        with adoption.phase("one database"):
            pass

        with adoption.phase("cells recorded"):
            adoption.manage("cell_v2", "map_cell0", "--database_connection", one_database.cell0_database)
            adoption.manage("db", "sync")
            one_database.add_cell1()
            adoption.manage("cell_v2", "discover_hosts", "--verbose")
            for uuid in old:
                instances.add_decoy("cell0", uuid)
        with adoption.phase("an instance mapped by cellmw"):
            adoption.map_by_cellmw(old[0], "cell1")
        while 0 not in adoption.batches:
            with adoption.phase(f"batch {len(adoption.batches) + 1}"):
                adoption.map_by_nova("cell1")
        with adoption.phase("verified"):
            adoption.manage("cell_v2", "verify_instance", "--uuid", old[0])
        with adoption.phase("Nova behind the filter"):
            adoption.restart("second", second_ini)

        with adoption.phase("second cell"):
            place = one_database.add_cell("cell2")
            adoption.serve_host("cell2", place.transport_url)
            with in_cell("cell2") as context:
                add_compute_host(context, HOSTS["cell2"])
            adoption.manage("cell_v2", "discover_hosts", "--verbose")
            for uuid in old:
                instances.add_decoy("cell2", uuid)
        with adoption.phase("instances in it"):
            for _ in range(2):
                adoption.create("cell2", decoys=["cell0", "cell1"])
            adoption.listed = list_instances(adoption.stream.servers[0])
            if adoption.hosts:
                adoption.reboot(old[1])
                adoption.reboot(adoption.new[0])
        with adoption.phase("instance moved"):
            adoption.move(old[0], "cell2")
        with adoption.phase("its old row deleted"), in_cell("cell1") as context:
            objects.Instance.get_by_uuid(context, old[0]).destroy()

        adoption.only_nova_asks_for([old[0], *adoption.new])
        with adoption.phase("without the filter"):
            with one_database.config_file.open("a") as config_file:
                config_file.write("[cellmw]\nenabled = false\n")
            adoption.restart("without", second_ini)
        yield adoption


BOTH = pytest.mark.parametrize("stream", [NOVA, CONTEXT])


@BOTH
def test_every_answer_is_right(adoption: Adoption, stream: str) -> None:
    """Whatever the operator did meanwhile, every request got the right status, and the instance of the right cell."""
    assert [str(answer) for answer in adoption.answers(stream) if not adoption.is_right(answer)] == []


@BOTH
def test_every_phase_is_under_traffic(adoption: Adoption, stream: str) -> None:
    """Between any two steps each client has asked for each instance, several times."""
    counts = {phase: len(adoption.answers(stream, phase)) for phase in adoption.phases}
    assert min(counts.values()) >= CLIENTS * ROUNDS * (INSTANCES - 1), counts


def test_nova_does_not_find_what_is_not_mapped(adoption: Adoption) -> None:
    """Nova's own API answers 404 for an instance in its database until the instance is mapped."""
    before = adoption.answers(NOVA, "one database") + adoption.answers(NOVA, "cells recorded")
    assert {answer.status for answer in before} == {404}


def test_nova_never_loses_what_it_has_found(adoption: Adoption) -> None:
    """Once Nova's own API has shown an instance, no later request for it is a 404."""
    answers = adoption.answers(NOVA)
    found: dict[str, float] = {}
    for answer in sorted(answers, key=lambda answer: answer.ended):
        if answer.status == 200:
            found.setdefault(answer.question.instance, answer.ended)
    lost = [answer for answer in answers if answer.status != 200 and found[answer.question.instance] <= answer.begun]
    assert lost == []


def test_the_context_finds_everything_always(adoption: Adoption) -> None:
    """Who goes by the context finds each instance, mapped or not, from the first request to the last."""
    assert {answer.status for answer in adoption.answers(CONTEXT)} == {200}


def test_the_context_is_aimed_at_no_cell_before(adoption: Adoption) -> None:
    """While nothing is mapped, the context leads to the database and the queue of the service."""
    assert {answer.aimed_at for answer in adoption.answers(CONTEXT, "cells recorded")} == {None}


def test_the_context_is_aimed_at_the_cell_after(adoption: Adoption) -> None:
    """As soon as all is mapped, it leads to the cell."""
    cell1 = adoption.deployment.cells["cell1"].uuid
    assert {answer.aimed_at for answer in adoption.answers(CONTEXT, "second cell")} == {cell1}


def test_instances_are_mapped_in_batches(adoption: Adoption) -> None:
    """``map_instances`` ends with 1 as long as there are more, and with 0 when all are mapped."""
    assert adoption.batches == [1] * (INSTANCES // MAX_COUNT) + [0]


@pytest.mark.parametrize("host", HOSTS.values())
def test_hosts_are_discovered(adoption: Adoption, host: str) -> None:
    """``discover_hosts`` finds the hosts in the database that has become a cell's, and in the new one."""
    assert f"Creating host mapping for compute host '{host}'" in adoption.printed["discover_hosts"]


def test_an_instance_is_verified(adoption: Adoption) -> None:
    """``verify_instance`` says where the instance is that cellmw has mapped."""
    assert f"Instance {adoption.old[0]} is in cell: cell1" in adoption.printed["verify_instance"]


def test_processes_end_when_they_are_told_to(adoption: Adoption) -> None:
    """Each process that has answered its last request ends without an error."""
    assert adoption.endings == [0] * 2 * PROCESSES


@BOTH
def test_the_second_cell_needs_no_restart(adoption: Adoption, stream: str) -> None:
    """The processes that have served before there was a second cell find the instances in it."""
    before = {answer.server for answer in adoption.answers(stream, "second cell")}
    answers = adoption.answers(stream, "instances in it")
    found = {(answer.server, answer.found_in) for answer in answers if answer.question.instance in adoption.new}
    assert found == {(server, "cell2") for server in before}


def test_nova_lists_the_second_cell_after_a_restart(adoption: Adoption) -> None:
    """Nova remembers its cells from its start: its lists have the instances of a new one only after the next."""
    restarted = list_instances(adoption.stream.servers[0])
    assert restarted - adoption.listed == {"in-cell2"}


@BOTH
def test_a_moved_instance_is_found_where_it_is(adoption: Adoption, stream: str) -> None:
    """When its row in the old cell is deleted, every request goes to the new one."""
    answers = adoption.answers(stream, "its old row deleted")
    assert {answer.found_in for answer in answers if answer.question.instance == adoption.old[0]} == {"cell2"}


def test_a_message_reaches_the_host_in_its_cell(adoption: Adoption) -> None:
    """A reboot is cast to the host that the instance is on, by the queue of its cell."""
    if not adoption.hosts:
        pytest.skip("the queues are in memory")
    assert [answer.status for answer in adoption.reboots] == [202, 202]
    for cell, answer in zip(("cell1", "cell2"), adoption.reboots, strict=True):
        adoption.hosts[cell].wait_for("reboot_instance", answer.question.instance)


@pytest.mark.parametrize("place", ["old", "new"])
def test_nova_does_without_the_filter(adoption: Adoption, place: str) -> None:
    """With ``[cellmw] enabled = false`` Nova's own API finds the instances of both cells, as it did before."""
    uuid = getattr(adoption, place)[1]
    answers = adoption.answers(NOVA, "without the filter")
    found = {answer.found_in for answer in answers if answer.question.instance == uuid}
    assert found == {"cell1" if place == "old" else "cell2"}


def test_without_the_filter_the_context_leads_to_the_one_database(adoption: Adoption) -> None:
    """Who goes by the context alone finds there what is in the old database, wherever the instance is."""
    by_context = Question(CONTEXT, adoption.new[0], "GET", f"/by-context/servers/{adoption.new[0]}")
    answer = ask_once(by_context, adoption.stream.servers[0])
    assert (answer.status, answer.found_in, answer.aimed_at) == (200, "cell1", None)
