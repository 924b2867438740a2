# SPDX-License-Identifier: Apache-2.0
"""What Nova and cellmw write into Nova's API database -> what each reads of the other's: cells, mappings, tables."""

from __future__ import annotations

import re
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import sqlalchemy
from nova import context as nova_context
from nova import exception, objects
from nova.db import migration
from oslo_utils import uuidutils
from sqlalchemy.schema import CreateIndex, CreateTable

from cellmw import database
from cellmw.exceptions import InstanceNotMapped
from cellmw.store import models
from tests.nova import api, instances
from tests.nova.deployment import CELLS_INI, write_paste_ini

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cellmw.cells import Cells
    from tests.nova.api import Api
    from tests.nova.conftest import Nova
    from tests.nova.deployment import Deployment, Servers

EXPIRY = 30.0
"""Seconds within which an answer that is kept for a second has to be gone; any other is kept for 60."""


class Record(NamedTuple):
    """What either command shows of a cell."""

    name: str
    uuid: str
    disabled: bool


@pytest.fixture
def manages(nova: Nova) -> Iterator[dict[str, Callable[..., str]]]:
    """Both commands, by whose they are; the cells that a test has made by them are deleted when it has ended."""
    manages = {"nova": nova.deployment.manage, "cellmw": nova.deployment.cellmw_manage}
    before = _uuids()
    yield manages
    for uuid in _uuids() - before:
        manages["cellmw"]("cell_v2", "delete_cell", "--cell_uuid", uuid, "--force")


def _uuids() -> set[str]:
    """Return the uuids of all cells, as Nova's objects have them."""
    return {mapping.uuid for mapping in objects.CellMappingList.get_all(nova_context.get_admin_context())}


def _list(manage: Callable[..., str]) -> set[Record]:
    """Return the cells that this command lists."""
    rows = [line.split("|")[1:-1] for line in manage("cell_v2", "list_cells").splitlines() if "|" in line]
    header, *cells = ([field.strip() for field in row] for row in rows)
    assert header == ["Name", "UUID", "Transport URL", "Database Connection", "Disabled"]
    return {Record(name, uuid, disabled == "True") for name, uuid, *_, disabled in cells}


def _urls(name: str) -> tuple[str, ...]:
    """Return the options by which a cell leads nowhere."""
    return "--database_connection", f"sqlite:////nowhere/{name}", "--transport-url", f"memory://{name}/"


def _create_cell(manage: Callable[..., str], *options: str) -> Record:
    name = f"cell-{uuidutils.generate_uuid()}"
    uuid = manage("cell_v2", "create_cell", "--verbose", "--name", name, *_urls(name), *options).strip()
    return Record(name, uuid, "--disabled" in options)


@pytest.mark.parametrize(("maker", "other"), [("nova", "cellmw"), ("cellmw", "nova")])
def test_cell_is_listed_by_both(manages: dict[str, Callable[..., str]], maker: str, other: str) -> None:
    """The cells that one command lists are those that the other does, one that it has just created among them."""
    cell = _create_cell(manages[maker], "--disabled")
    listed = _list(manages[other])
    assert cell in listed
    assert _list(manages[maker]) == listed


@pytest.mark.parametrize(("maker", "other"), [("nova", "cellmw"), ("cellmw", "nova")])
def test_cell_is_deleted_for_both(manages: dict[str, Callable[..., str]], maker: str, other: str) -> None:
    """A cell that one command has created can be deleted by the other, and is gone from both."""
    before = _list(manages[maker])
    cell = _create_cell(manages[maker])
    manages[other]("cell_v2", "delete_cell", "--cell_uuid", cell.uuid)
    assert (_list(manages[maker]), _list(manages[other])) == (before, before)


def test_disabled_by_nova(manages: dict[str, Callable[..., str]]) -> None:
    """A cell of ours that nova-manage disables is a disabled one for cellmw-manage."""
    cell = _create_cell(manages["cellmw"])
    # without its URLs nova-manage would give it those of the configuration
    manages["nova"]("cell_v2", "update_cell", "--cell_uuid", cell.uuid, "--disable", *_urls(cell.name))
    assert cell._replace(disabled=True) in _list(manages["cellmw"])


def test_host_of_novas_keeps_cell(manages: dict[str, Callable[..., str]]) -> None:
    """cellmw-manage refuses to delete a cell that Nova has mapped a host to, with nova-manage's exit code."""
    cell = _create_cell(manages["nova"])
    context = nova_context.get_admin_context()
    mapping = objects.CellMapping.get_by_uuid(context, cell.uuid)
    objects.HostMapping(context, host=cell.name, cell_mapping=mapping).create()
    for manage in manages.values():
        with pytest.raises(RuntimeError, match="exit code 2"):
            manage("cell_v2", "delete_cell", "--cell_uuid", cell.uuid)


class NewCell(NamedTuple):
    """A cell that is no part of the deployment. Lives as long as the tests of this file."""

    record: Record
    database_connection: str
    transport_url: str


@pytest.fixture(scope="module")
def whole_new_cell(whole_nova: Nova, new_servers: Servers) -> Iterator[NewCell]:
    """A cell made by cellmw-manage, with Nova's tables, and deleted by it in the end."""
    manage = whole_nova.deployment.cellmw_manage
    name = f"cell-{uuidutils.generate_uuid()}"
    database_connection, transport_url = new_servers.database(name), new_servers.queue(name)
    uuid = manage(
        *("cell_v2", "create_cell", "--verbose", "--name", name),
        *("--database_connection", database_connection, "--transport-url", transport_url),
    ).strip()
    context = nova_context.get_admin_context()
    try:
        with nova_context.target_cell(context, instances.cell_mapping(name)) as targeted:
            migration.db_sync(context=targeted)
        for each in (whole_nova.filtered, whole_nova.probe):
            if each.cells is not None:
                # SQLite gives it the id of the last cell that was deleted, which they may know for some seconds more
                each.cells.refresh()
        yield NewCell(Record(name, uuid, False), database_connection, transport_url)
    finally:
        mapping = instances.cell_mapping(name)
        for each in objects.InstanceMappingList.get_by_cell_id(context, mapping.id):
            each.destroy()
        manage("cell_v2", "delete_cell", "--cell_uuid", uuid)


def test_new_cell_is_listed(nova: Nova, whole_new_cell: NewCell) -> None:
    """nova-manage lists it."""
    assert whole_new_cell.record in _list(nova.deployment.manage)


def test_new_cell_is_loaded(whole_new_cell: NewCell) -> None:
    """Nova's objects have its URLs as they were given, passwords included."""
    cells = {cell.uuid: cell for cell in objects.CellMappingList.get_all(nova_context.get_admin_context())}
    loaded = cells[whole_new_cell.record.uuid]
    assert (loaded.name, loaded.disabled) == (whole_new_cell.record.name, False)
    assert loaded.database_connection == whole_new_cell.database_connection
    assert loaded.transport_url == whole_new_cell.transport_url


def test_new_cell_is_targeted(whole_new_cell: NewCell) -> None:
    """What Nova writes in the context of its own ``target_cell`` is in the new cell's database."""
    instance = instances.create(whole_new_cell.record.name)
    engine = sqlalchemy.create_engine(whole_new_cell.database_connection)
    statement = sqlalchemy.text("SELECT display_name FROM instances WHERE uuid = :uuid")
    with engine.connect() as connection:
        assert connection.scalar(statement, {"uuid": instance.uuid}) == instance.name
    engine.dispose()


def test_new_cell_is_served(nova: Nova, whole_new_cell: NewCell) -> None:
    """Nova's API behind the filter shows an instance of the new cell."""
    instance = instances.create(whole_new_cell.record.name, decoys=["cell0", "cell1", "cell2"])
    response = nova.filtered.request("GET", f"/v2.1/servers/{instance.uuid}")
    assert response.json["server"]["name"] == instance.name


def test_new_cell_is_routed_to(nova: Nova, whole_new_cell: NewCell) -> None:
    """The filter aims Nova's context at the new cell."""
    instance = instances.create(whole_new_cell.record.name, decoys=["cell0", "cell1", "cell2"])
    names = []

    def call(environ: dict[str, Any]) -> None:
        with database.reader(environ["nova.context"]) as session:
            statement = sqlalchemy.text("SELECT display_name FROM instances WHERE uuid = :uuid")
            names.append(session.scalar(statement, {"uuid": instance.uuid}))

    nova.probe.request("GET", f"/v2.1/servers/{instance.uuid}", call=call)
    assert names == [instance.name]


def _tables(engine: sqlalchemy.Engine) -> dict[str, Any]:
    """Return the definition of every table, and its rows, by its name."""
    metadata = sqlalchemy.MetaData()
    metadata.reflect(engine)
    with engine.connect() as connection:
        return {
            name: (
                sorted(str(CreateTable(table).compile(engine)).splitlines()),
                sorted(str(CreateIndex(index).compile(engine)) for index in table.indexes),
                sorted(connection.execute(table.select()), key=repr),
            )
            for name, table in metadata.tables.items()
        }


OWN_TABLES = {"alembic_version_cellmw", *(models.metadata.tables.keys() - models.NOVAS)}
"""Those that Nova doesn't have."""


def _version(deployment: Deployment) -> str:
    """Return the version of Nova's tables, as nova-manage has it."""
    return deployment.manage("api_db", "version").splitlines()[-1]  # there is a log in front of it


def test_sync_leaves_novas_tables(deployment: Deployment) -> None:
    """``cellmw-manage api_db sync`` adds tables of its own and changes nothing in Nova's; nova-manage goes on."""
    engine = sqlalchemy.create_engine(deployment.api_database)
    version = _version(deployment)
    before = _tables(engine)
    deployment.cellmw_manage("api_db", "sync")
    after = _tables(engine)
    try:
        assert after.keys() - before.keys() == OWN_TABLES
        assert {name: after[name] for name in before} == before
        deployment.manage("api_db", "sync")
        assert _version(deployment) == version
        assert _tables(engine) == after
    finally:
        with engine.begin() as connection:
            for table in sorted(OWN_TABLES):
                connection.execute(sqlalchemy.text(f"DROP TABLE {table}"))
        engine.dispose()


class State(NamedTuple):
    """What there is to say of an instance's mapping."""

    cell: str | None
    queued_for_delete: bool = False


LIFE = {
    "create": State(None),
    "schedule": State("cell1"),
    "move": State("cell2"),
    "queue": State("cell2", queued_for_delete=True),
    "delete": None,
}
"""What is done to a mapping, in that order, and its state after each step: None where there is none."""


def _step_of_ours(cells: Cells, uuid: str, step: str) -> None:
    """Do to a mapping what a service does by our means."""
    mappings = cells.mappings
    match step:
        case "create":
            mappings.create(uuid, project_id=instances.PROJECT, user_id=instances.USER)
        case "schedule":
            mappings.schedule(uuid, cells.get("cell1"))
        case "move":
            mappings.schedule(uuid, cells.get("cell2"))
        case "queue":
            mappings.queue_for_delete(uuid)
        case "delete":
            mappings.delete(uuid)


def _step_of_novas(uuid: str, step: str) -> None:
    """Do to a mapping what Nova does by its own objects."""
    if step == "create":
        instances.map_to(None, uuid)
        return
    mapping = objects.InstanceMapping.get_by_instance_uuid(nova_context.get_admin_context(), uuid)
    match step:
        case "schedule":
            mapping.cell_mapping = instances.cell_mapping("cell1")
        case "move":
            mapping.cell_mapping = instances.cell_mapping("cell2")
        case "queue":
            mapping.queued_for_delete = True
    if step == "delete":
        mapping.destroy()
    else:
        mapping.save()


def _state_for_nova(uuid: str) -> State | None:
    """Return what Nova's objects say of the mapping."""
    try:
        mapping = objects.InstanceMapping.get_by_instance_uuid(nova_context.get_admin_context(), uuid)
    except exception.InstanceMappingNotFound:
        return None
    return State(mapping.cell_mapping and mapping.cell_mapping.name, mapping.queued_for_delete)


def _state_for_us(probe: Api, uuid: str) -> State | None:
    """Return what the target says behind the filter of this pipeline."""
    states = []

    def call(environ: dict[str, Any]) -> None:
        trip = environ["cellmw.target"]
        cell = trip.cell and trip.cell.name
        states.append(None if trip.state == "unmapped" else State(cell, trip.queued_for_delete))

    probe.request("GET", f"/v2.1/servers/{uuid}", call=call)
    return states[0]


def _eventually(look: Callable[[], object], expected: object) -> None:
    """Look until what is expected is there, which has to be long before a mapping with a cell expires."""
    deadline = monotonic() + EXPIRY
    while (seen := look()) != expected:
        assert monotonic() < deadline, seen


@pytest.fixture
def cells(nova: Nova) -> Cells:
    """The cells behind the probe's filter, as a request finds them."""
    found = []
    nova.probe.request("GET", "/v2.1/servers", call=lambda environ: found.append(environ["cellmw.cells"]))
    return found[0]


@pytest.fixture(scope="module")
def whole_uncached(whole_nova: Nova, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The probe behind a filter that remembers no mapping."""
    file = tmp_path_factory.mktemp("uncached") / "api-paste.ini"
    write_paste_ini(file, CELLS_INI, settings={"mapping_ttl": "0"})
    uncached = api.load(whole_nova.deployment, file, "probe")
    yield uncached
    if uncached.cells is not None:
        uncached.cells.close()


@pytest.fixture
def unmapped() -> str:
    """An instance that is being built and has a row in either cell: what it is, its mapping says, and it has none."""
    uuid = instances.build()
    for cell in ("cell1", "cell2"):
        instances.add_decoy(cell, uuid)
    _step_of_novas(uuid, "delete")
    return uuid


def test_objects_read_ours(cells: Cells, unmapped: str) -> None:
    """Nova's objects read a mapping that we write, in each of its states."""
    for step, state in LIFE.items():
        _step_of_ours(cells, unmapped, step)
        assert (step, _state_for_nova(unmapped)) == (step, state)


def test_api_follows_ours(nova: Nova, cells: Cells, unmapped: str) -> None:
    """Nova's API, without the filter, serves an instance from where the mapping that we write says that it is."""
    # a build request is shown with the name that it was made with
    names = {"create": "in-cell0", "schedule": "in-cell1", "move": "in-cell2", "queue": "in-cell2", "delete": None}
    for step, name in names.items():
        _step_of_ours(cells, unmapped, step)
        response = nova.plain.request("GET", f"/v2.1/servers/{unmapped}")
        assert (step, response.status_int) == (step, 404 if name is None else 200)
        assert (step, response.json.get("server", {}).get("name")) == (step, name)


def test_nova_manage_verifies_ours(nova: Nova, cells: Cells, unmapped: str) -> None:
    """``nova-manage cell_v2 verify_instance`` knows each state of a mapping that we write."""
    said = {
        "create": "exit code 2:\n.*not mapped to a cell",
        "schedule": "is in cell: cell1 ",
        "move": "is in cell: cell2 ",
        "queue": "is in cell: cell2 ",
        "delete": "exit code 1:\n.*not mapped to a cell",
    }
    for step, pattern in said.items():
        _step_of_ours(cells, unmapped, step)
        try:
            output = nova.deployment.manage("cell_v2", "verify_instance", "--uuid", unmapped)
        except RuntimeError as failed:
            output = str(failed)
        assert re.search(pattern, output), step


def test_own_writes_are_followed_at_once(nova: Nova, cells: Cells, unmapped: str) -> None:
    """The filter that a mapping was written through goes by it with the next request, whatever it remembered."""
    assert _state_for_us(nova.probe, unmapped) is None
    for step, state in LIFE.items():
        _step_of_ours(cells, unmapped, step)
        assert (step, _state_for_us(nova.probe, unmapped)) == (step, state)


def test_quota_counts_ours(cells: Cells) -> None:
    """Nova counts the instances that we map against the quota of their project, until they are queued for deletion."""
    project = uuidutils.generate_uuid(dashed=False)
    first, second = uuidutils.generate_uuid(), uuidutils.generate_uuid()
    for uuid in (first, second):
        cells.mappings.create(uuid, project_id=project, user_id=instances.USER, cell=cells.get("cell1"))
    cells.mappings.queue_for_delete(first)
    counts = objects.InstanceMappingList.get_counts(nova_context.get_admin_context(), project, instances.USER)
    assert counts == {"project": {"instances": 1}, "user": {"instances": 1}}


def test_filter_reads_novas(whole_uncached: Api, unmapped: str) -> None:
    """The filter reads a mapping that Nova writes, in each of its states."""
    for step, state in LIFE.items():
        _step_of_novas(unmapped, step)
        assert (step, _state_for_us(whole_uncached, unmapped)) == (step, state)


def test_creation_by_nova_is_followed(nova: Nova, unmapped: str) -> None:
    """That an instance has no mapping is forgotten long before a mapping would be."""
    assert _state_for_us(nova.probe, unmapped) is None
    _step_of_novas(unmapped, "create")
    _step_of_novas(unmapped, "schedule")
    _eventually(lambda: _state_for_us(nova.probe, unmapped), State("cell1"))


def test_scheduling_by_nova_is_followed(nova: Nova, unmapped: str) -> None:
    """That an instance has no cell yet is forgotten long before a mapping with a cell would be."""
    _step_of_novas(unmapped, "create")
    assert _state_for_us(nova.probe, unmapped) == State(None)
    _step_of_novas(unmapped, "schedule")
    _eventually(lambda: _state_for_us(nova.probe, unmapped), State("cell1"))


def test_move_by_nova_is_followed_when_told(nova: Nova, cells: Cells, unmapped: str) -> None:
    """An instance that Nova moves is looked for in its old cell until its mapping expires, or somebody drops it."""
    _step_of_novas(unmapped, "create")
    _step_of_novas(unmapped, "schedule")
    assert _state_for_us(nova.probe, unmapped) == State("cell1")
    _step_of_novas(unmapped, "move")
    assert _state_for_us(nova.probe, unmapped) == State("cell1")
    cells.mappings.forget(unmapped)
    assert _state_for_us(nova.probe, unmapped) == State("cell2")


def test_deletion_by_nova_is_followed(nova: Nova) -> None:
    """A mapping is dropped when Nova answers 404 for its instance, and so asked for anew."""
    instance = instances.create("cell1")
    path = f"/v2.1/servers/{instance.uuid}"
    assert nova.filtered.request("GET", path).status_int == 200
    instances.delete(instance)
    _step_of_novas(instance.uuid, "delete")

    def is_mapped() -> bool:
        assert nova.filtered.request("GET", path).status_int == 404
        try:
            nova.filtered.cells.locate(instance.uuid)
        except InstanceNotMapped:
            return False
        return True

    _eventually(is_mapped, False)
