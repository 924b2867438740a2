# SPDX-License-Identifier: Apache-2.0
"""The context of a request behind the filter -> Nova's own functions read, write and send in the instance's cell.

What they did is looked up at the databases by connections of the test's own, and at the queues by servers. Each
instance has a row in every cell, and each row has another name, so a look into the wrong cell shows. That of cell0 is
in ``[database] connection``, where Nova goes with a context that is aimed at no cell.
"""

from __future__ import annotations

import json
import queue
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import oslo_messaging
import pytest
import sqlalchemy as sa
from nova import conf as nova_conf
from nova import context as nova_context
from nova import objects, quota, rpc
from nova import thread_pool_factory as threads
from nova.compute import rpcapi
from nova.compute import utils as compute_utils
from nova.db.api import api as api_db
from nova.db.main import api as db
from nova.db.main import models
from oslo_utils import uuidutils

import cellmw
from cellmw.exceptions import CellHasNoTransport, LeaseClosed
from tests.nova import instances
from tests.nova.conftest import CELLS
from tests.nova.instances import ALL_CELLS
from tests.nova.instances import create_with_decoys as create
from tests.nova.worker import ARRIVAL, end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from tests.nova.conftest import Nova
    from tests.nova.deployment import Deployment
    from tests.nova.instances import Instance
    from tests.nova.worker import Worker

    Call = Callable[[Any, str], Any]
    """What is called with the context of a request and the uuid of its instance."""


TOPIC = "cellmw-tests"

ROWS = {
    "instances": "uuid",
    "instance_actions": "instance_uuid",
    "instance_faults": "instance_uuid",
    "instance_metadata": "instance_uuid",
    "block_device_mapping": "instance_uuid",
    "tags": "resource_id",
}
"""The tables of a cell that the tests write to, and the column in which they name the instance."""


class Failure(Exception):
    """What a test raises itself."""


@pytest.fixture(scope="module")
def databases(deployment: Deployment) -> Iterator[dict[str, Engine]]:
    """An engine of the tests' own for each database."""
    urls = {name: place.database_connection for name, place in deployment.cells.items()}
    urls["api"] = deployment.api_database
    engines = {name: sa.create_engine(url) for name, url in urls.items()}
    yield engines
    for engine in engines.values():
        engine.dispose()


@pytest.fixture(params=ALL_CELLS)
def cell(request: pytest.FixtureRequest) -> str:
    """Each cell in turn, cell0 included."""
    return request.param


@pytest.fixture(params=CELLS)
def sending_cell(request: pytest.FixtureRequest) -> str:
    """Each cell in turn that has a message queue."""
    return request.param


@pytest.fixture
def behind(nova: Nova) -> Callable[..., Any]:
    """What makes a call behind the filter, in a request for an instance, and returns or raises what the call does."""

    def behind(instance: Instance, call: Call) -> Any:
        outcome: list[Any] = []

        def note(environ: dict[str, Any]) -> None:
            try:
                outcome.append(call(environ["nova.context"], instance.uuid))
            except Exception as error:
                outcome.append(error)
                raise

        nova.probe.request("GET", f"/v2.1/servers/{instance.uuid}", call=note)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

    return behind


def rows(engine: Engine, table: str, **values: Any) -> list[dict[str, Any]]:
    """Return the rows of a table that have these values, read by a connection of the test's own."""
    conditions = [sa.column(name) == value for name, value in values.items()]
    with engine.connect() as connection:
        found = connection.execute(sa.select(sa.text("*")).select_from(sa.table(table)).where(*conditions))
        return [dict(row) for row in found.mappings()]


def holdings(databases: dict[str, Engine], uuid: str) -> dict[str, Any]:
    """Return what each cell's database holds of an instance."""
    return {
        cell: {table: rows(databases[cell], table, **{column: uuid}) for table, column in ROWS.items()}
        for cell in ALL_CELLS
    }


def changed(databases: dict[str, Engine], uuid: str, before: dict[str, Any]) -> list[str]:
    """Return the cells whose databases don't hold what they did before."""
    now = holdings(databases, uuid)
    return [cell for cell in ALL_CELLS if now[cell] != before[cell]]


# Reading


@pytest.fixture(scope="module")
def furnished(whole_nova: Nova) -> dict[str, Instance]:
    """An instance of each cell. All that the databases hold of it is named after the database's own cell."""
    found = {cell: create(cell) for cell in ALL_CELLS}
    for instance in found.values():
        for cell in ALL_CELLS:
            with nova_context.target_cell(nova_context.get_admin_context(), instances.cell_mapping(cell)) as context:
                _furnish(context, instance.uuid, f"in-{cell}")
    return found


def _furnish(context: Any, uuid: str, name: str) -> None:
    row = objects.Instance.get_by_uuid(context, uuid)
    row.host = uuid  # the same in each cell
    row.metadata = {"name": name}
    row.system_metadata = {"name": name}
    row.save()
    objects.TagList.create(context, uuid, [name])
    objects.InstanceAction.action_start(context, uuid, name)
    _fault(context, uuid, name)
    _block_device(context, uuid, name)


def _fault(context: Any, uuid: str, message: str = "a fault") -> None:
    objects.InstanceFault(context, instance_uuid=uuid, code=500, message=message, details="", host="").create()


def _block_device(context: Any, uuid: str, name: str = "/dev/vda") -> None:
    objects.BlockDeviceMapping(
        context, instance_uuid=uuid, device_name=name, source_type="blank", destination_type="local"
    ).create()


def _instance(context: Any, uuid: str) -> Any:
    return objects.Instance.get_by_uuid(context, uuid)


def _query(context: Any, uuid: str) -> str:
    return db.model_query(context, models.Instance).filter_by(uuid=uuid).one().display_name


def _read_through_engine(context: Any, uuid: str, **options: Any) -> str:
    query = sa.select(models.Instance.display_name).filter_by(uuid=uuid)
    with db.get_engine(context=context, **options).connect() as connection:
        return connection.scalar(query)


def _read_in(block: Any, context: Any, uuid: str) -> str:
    with block.using(context):
        return _query(context, uuid)


@db.select_db_reader_mode
def _read_by_mode(context: Any, uuid: str, use_slave: bool) -> str:
    return _query(context, uuid)


# decorated once, and called in requests for every cell
_decorated_reader = db.pick_context_manager_reader(_query)
_decorated_async_reader = db.pick_context_manager_reader_allow_async(_query)
_decorated_writer = db.pick_context_manager_writer(_query)

READS: dict[str, Call] = {
    "Instance.get_by_uuid": lambda context, uuid: _instance(context, uuid).display_name,
    "InstanceList.get_by_filters": lambda context, uuid: (
        objects.InstanceList.get_by_filters(context, {"uuid": uuid})[0].display_name
    ),
    "InstanceList.get_by_host": lambda context, uuid: objects.InstanceList.get_by_host(context, uuid)[0].display_name,
    "lazy metadata": lambda context, uuid: _instance(context, uuid).metadata["name"],
    "lazy system_metadata": lambda context, uuid: _instance(context, uuid).system_metadata["name"],
    "lazy tags": lambda context, uuid: _instance(context, uuid).tags[0].tag,
    "lazy fault": lambda context, uuid: _instance(context, uuid).fault.message,
    "joined tags": lambda context, uuid: (
        objects.Instance.get_by_uuid(context, uuid, expected_attrs=["tags"]).tags[0].tag
    ),
    "InstanceActionList": lambda context, uuid: (
        objects.InstanceActionList.get_by_instance_uuid(context, uuid)[0].action
    ),
    "BlockDeviceMappingList": lambda context, uuid: (
        objects.BlockDeviceMappingList.get_by_instance_uuid(context, uuid)[0].device_name
    ),
    "elevated": lambda context, uuid: _instance(context.elevated(), uuid).display_name,
    "instance_get_by_uuid": lambda context, uuid: db.instance_get_by_uuid(context, uuid).display_name,
    "instance_metadata_get": lambda context, uuid: db.instance_metadata_get(context, uuid)["name"],
    "instance_tag_get_by_instance_uuid": lambda context, uuid: (
        db.instance_tag_get_by_instance_uuid(context, uuid)[0].tag
    ),
    "get_engine": _read_through_engine,
    "get_engine of the replica": lambda context, uuid: _read_through_engine(context, uuid, use_slave=True),
    "decorated reader": _decorated_reader,
    "decorated reader.allow_async": _decorated_async_reader,
    "decorated writer": _decorated_writer,
    "reader mode": lambda context, uuid: _read_by_mode(context, uuid, use_slave=False),
    "reader mode async_": lambda context, uuid: _read_by_mode(context, uuid, use_slave=True),
    "reader": lambda context, uuid: _read_in(db.get_context_manager(context).reader, context, uuid),
    "reader.independent": lambda context, uuid: _read_in(
        db.get_context_manager(context).reader.independent, context, uuid
    ),
    "writer": lambda context, uuid: _read_in(db.get_context_manager(context).writer, context, uuid),
}
"""Each returns the name that it has found."""


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_read(behind: Callable[..., Any], furnished: dict[str, Instance], cell: str, read: Call) -> None:
    """What Nova reads for an instance comes from the instance's own cell."""
    assert behind(furnished[cell], read) == f"in-{cell}"


def test_refresh(behind: Callable[..., Any], databases: dict[str, Engine], cell: str) -> None:
    """An instance that is refreshed is read from its own cell once more."""

    def refresh(context: Any, uuid: str) -> str:
        row = _instance(context, uuid)
        for name in ALL_CELLS:
            with databases[name].begin() as connection:
                change = sa.update(models.Instance).values(display_name=f"changed-{name}")
                connection.execute(change.filter_by(uuid=uuid))
        row.refresh()
        return row.display_name

    assert behind(create(cell), refresh) == f"changed-{cell}"


def test_services(nova: Nova, behind: Callable[..., Any], cell: str) -> None:
    """The services are those of the cell."""
    services = behind(create(cell), lambda context, uuid: objects.ServiceList.get_all(context))
    hosts = {service.host for service in services}
    assert {name for name, host in nova.hosts.items() if host in hosts} == {cell} - {"cell0"}


def test_service_of_host(nova: Nova, behind: Callable[..., Any], sending_cell: str) -> None:
    """The service of a compute host is found in a request for its cell."""
    host = nova.hosts[sending_cell]
    service = behind(create(sending_cell), lambda context, uuid: objects.Service.get_by_compute_host(context, host))
    assert service.host == host


def test_engine(deployment: Deployment, behind: Callable[..., Any], cell: str) -> None:
    """The engine that Nova gets is connected to the cell's database."""
    url = behind(create(cell), lambda context, uuid: db.get_engine(context=context).url)
    there = sa.make_url(deployment.cells[cell].database_connection)
    assert (url.get_backend_name(), url.database) == (there.get_backend_name(), there.database)


# Writing


def _save(context: Any, uuid: str) -> None:
    row = _instance(context, uuid)
    row.display_name = "changed"
    row.save()


def _save_metadata(context: Any, uuid: str) -> None:
    row = _instance(context, uuid)
    row.metadata["name"] = "changed"
    row.save()


def _add(context: Any, uuid: str, key: str = "name") -> None:
    context.session.add(models.InstanceMetadata(instance_uuid=uuid, key=key, value="written"))


def _write_in(block: Any, context: Any, uuid: str) -> None:
    with block.using(context):
        _add(context, uuid)


def _write_through_engine(context: Any, uuid: str) -> None:
    with db.get_engine(context=context).begin() as connection:
        connection.execute(sa.update(models.Instance).values(display_name="changed").filter_by(uuid=uuid))


WRITES: dict[str, Call] = {
    "save": _save,
    "save of metadata": _save_metadata,
    "destroy": lambda context, uuid: _instance(context, uuid).destroy(),
    "elevated": lambda context, uuid: _save(context.elevated(), uuid),
    "TagList": lambda context, uuid: objects.TagList.create(context, uuid, ["tag"]),
    "BlockDeviceMapping": _block_device,
    "InstanceFault": _fault,
    "InstanceAction": lambda context, uuid: objects.InstanceAction.action_start(context, uuid, "reboot"),
    "instance_update": lambda context, uuid: db.instance_update(context, uuid, {"display_name": "changed"}),
    "instance_metadata_update": lambda context, uuid: db.instance_metadata_update(context, uuid, {"name": ""}, False),
    "instance_tag_add": lambda context, uuid: db.instance_tag_add(context, uuid, "tag"),
    "instance_destroy": lambda context, uuid: db.instance_destroy(context, uuid),
    "get_engine": _write_through_engine,
    "decorated writer": db.pick_context_manager_writer(_add),
    "writer": lambda context, uuid: _write_in(db.get_context_manager(context).writer, context, uuid),
    "writer.independent": lambda context, uuid: _write_in(
        db.get_context_manager(context).writer.independent, context, uuid
    ),
}
"""Each changes what one of the ``ROWS`` says of the instance, or adds one."""


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_write(behind: Callable[..., Any], databases: dict[str, Engine], cell: str, write: Call) -> None:
    """What Nova writes for an instance changes the instance's own cell and no other."""
    instance = create(cell)
    before = holdings(databases, instance.uuid)
    behind(instance, write)
    assert changed(databases, instance.uuid, before) == [cell]


def test_save(behind: Callable[..., Any], databases: dict[str, Engine], cell: str) -> None:
    """What is in the cell's database after a save is what was saved."""
    instance = create(cell)
    behind(instance, _save)
    names = {name: rows(databases[name], "instances", uuid=instance.uuid)[0]["display_name"] for name in ALL_CELLS}
    assert names == {name: f"in-{name}" for name in ALL_CELLS} | {cell: "changed"}


def test_create(behind: Callable[..., Any], databases: dict[str, Engine], cell: str) -> None:
    """An instance that is made with the context of a request is in the cell of the request's instance."""
    uuid = uuidutils.generate_uuid()
    behind(create(cell), lambda context, _: db.instance_create(context, {"uuid": uuid}))
    assert [name for name in ALL_CELLS if rows(databases[name], "instances", uuid=uuid)] == [cell]


def test_failed_write(behind: Callable[..., Any], databases: dict[str, Engine], cell: str) -> None:
    """A block that fails has changed nothing."""

    @db.pick_context_manager_writer
    def fail(context: Any, uuid: str) -> None:
        _add(context, uuid)
        context.session.flush()
        raise Failure

    instance = create(cell)
    before = holdings(databases, instance.uuid)
    with pytest.raises(Failure):
        behind(instance, fail)
    assert changed(databases, instance.uuid, before) == []


def test_savepoint(behind: Callable[..., Any], databases: dict[str, Engine], cell: str) -> None:
    """A savepoint that fails undoes what was written in it, and not what was written around it."""

    def nest(context: Any, uuid: str) -> None:
        writer = db.get_context_manager(context).writer
        with writer.using(context):
            _add(context, uuid, "around")
            with suppress(Failure), writer.savepoint.using(context):
                _add(context, uuid, "inside")
                raise Failure

    instance = create(cell)
    behind(instance, nest)
    assert _metadata(databases, instance.uuid) == {cell: ["around"]}


def test_independent(behind: Callable[..., Any], databases: dict[str, Engine], cell: str) -> None:
    """What an independent block has written stays where the block around it fails."""

    def nest(context: Any, uuid: str) -> None:
        writer = db.get_context_manager(context).writer
        with suppress(Failure), writer.using(context):
            with writer.independent.using(context):
                _add(context, uuid, "inside")
            _add(context, uuid, "around")
            raise Failure

    instance = create(cell)
    behind(instance, nest)
    assert _metadata(databases, instance.uuid) == {cell: ["inside"]}


def test_nested_blocks(behind: Callable[..., Any], databases: dict[str, Engine], cell: str) -> None:
    """What a decorated function has written is undone where the block fails that it was called in."""

    def nest(context: Any, uuid: str) -> None:
        with suppress(Failure), db.get_context_manager(context).writer.using(context):
            db.instance_metadata_update(context, uuid, {"name": ""}, False)
            assert db.instance_metadata_get(context, uuid) == {"name": ""}
            raise Failure

    instance = create(cell)
    behind(instance, nest)
    assert _metadata(databases, instance.uuid) == {}


def _metadata(databases: dict[str, Engine], uuid: str) -> dict[str, list[str]]:
    """Return the keys of the instance's metadata, for each cell that has any."""
    found = {cell: rows(databases[cell], "instance_metadata", instance_uuid=uuid) for cell in ALL_CELLS}
    return {cell: [row["key"] for row in there] for cell, there in found.items() if there}


# The API database


def _flavor(context: Any, name: str) -> str:
    objects.Flavor(
        context, name=name, flavorid=name, memory_mb=1, vcpus=1, root_gb=1, ephemeral_gb=0, swap=0, rxtx_factor=1.0
    ).create()
    assert name in [flavor.name for flavor in objects.FlavorList.get_all(context)]
    return objects.Flavor.get_by_flavor_id(context, name).name


def _quota(context: Any, project: str) -> str:
    objects.Quotas.create_limit(context, project, "cores", 7)
    return objects.Quotas.get_all_by_project(context.elevated(), project)["project_id"]


def _keypair(context: Any, name: str) -> str:
    objects.KeyPair(context, user_id=context.user_id, name=name, type="ssh", fingerprint="", public_key="").create()
    return objects.KeyPair.get_by_name(context, context.user_id, name).name


def _aggregate(context: Any, name: str) -> str:
    aggregate = objects.Aggregate(context, name=name, metadata={})
    aggregate.create()
    return objects.Aggregate.get_by_id(context, aggregate.id).name


def _server_group(context: Any, name: str) -> str:
    group = objects.InstanceGroup(
        context, uuid=name, name=name, policy="affinity", project_id=context.project_id, user_id=context.user_id
    )
    group.create()
    return objects.InstanceGroup.get_by_uuid(context, name).name


def _request_spec(context: Any, uuid: str) -> str:
    objects.RequestSpec(
        context,
        instance_uuid=uuid,
        image=objects.ImageMeta(),
        flavor=objects.Flavor(id=1, flavorid="1", name="tiny"),
        num_instances=1,
    ).create()
    return objects.RequestSpec.get_by_instance_uuid(context, uuid).instance_uuid


def _build_request(context: Any, uuid: str) -> str:
    objects.BuildRequest(
        context, instance_uuid=uuid, project_id=context.project_id, instance=objects.Instance(context, uuid=uuid)
    ).create()
    return objects.BuildRequest.get_by_instance_uuid(context, uuid).instance_uuid


API_WRITES: dict[str, tuple[Call, str, str]] = {
    "Flavor": (_flavor, "flavors", "flavorid"),
    "Quotas": (_quota, "quotas", "project_id"),
    "KeyPair": (_keypair, "key_pairs", "name"),
    "Aggregate": (_aggregate, "aggregates", "name"),
    "InstanceGroup": (_server_group, "instance_groups", "uuid"),
    "RequestSpec": (_request_spec, "request_specs", "instance_uuid"),
    "BuildRequest": (_build_request, "build_requests", "instance_uuid"),
}
"""What writes something of a given name, reads it back and returns its name; the table and the column of that name."""


@pytest.mark.parametrize(("write", "table", "column"), API_WRITES.values(), ids=API_WRITES)
def test_api_database(
    behind: Callable[..., Any], databases: dict[str, Engine], cell: str, write: Call, table: str, column: str
) -> None:
    """What belongs in the API database is written there, and read from there, in a request for an instance."""
    name = uuidutils.generate_uuid()
    assert behind(create(cell), lambda context, uuid: write(context, name)) == name
    holders = [
        place
        for place, engine in databases.items()
        if sa.inspect(engine).has_table(table) and rows(engine, table, **{column: name})
    ]
    assert holders == ["api"]


def test_mapping(behind: Callable[..., Any], databases: dict[str, Engine], cell: str) -> None:
    """The mapping of the instance is read from the API database, and saved there."""

    def save(context: Any, uuid: str) -> str:
        mapping = objects.InstanceMapping.get_by_instance_uuid(context, uuid)
        mapping.user_id = "bob"
        mapping.save()
        return mapping.cell_mapping.name

    instance = create(cell)
    assert behind(instance, save) == cell
    saved = rows(databases["api"], "instance_mappings", instance_uuid=instance.uuid)
    assert [row["user_id"] for row in saved] == ["bob"]


def test_quota_count(behind: Callable[..., Any], cell: str) -> None:
    """What counts towards a quota is counted in every cell."""
    project = uuidutils.generate_uuid(dashed=False)
    for counted in ("cell0", "cell1", "cell1", "cell2"):
        instances.create(counted, project=project)
    usages = behind(create(cell), lambda context, uuid: quota.QUOTAS.get_project_quotas(context, project))
    assert usages["instances"]["in_use"] == 4


@pytest.mark.parametrize(("project", "allowed"), [(instances.PROJECT, True), (instances.OTHER_PROJECT, False)])
def test_policy(behind: Callable[..., Any], cell: str, project: str, allowed: bool) -> None:
    """A policy that asks for the project decides by the instance's."""
    answer = behind(
        create(cell),
        lambda context, uuid: context.can("os_compute_api:servers:show", {"project_id": project}, fatal=False),
    )
    assert bool(answer) is allowed


def test_block_in_block(behind: Callable[..., Any], furnished: dict[str, Instance], cell: str) -> None:
    """A block of the cell inside one of the API database, and one of that inside it, each have their own database."""

    def nest(context: Any, uuid: str) -> tuple[str, str, str]:
        mapping = objects.InstanceMapping.get_by_instance_uuid
        with api_db.context_manager.reader.using(context):
            outer = mapping(context, uuid).cell_mapping.name
            with db.get_context_manager(context).reader.using(context):
                inner = mapping(context, uuid).cell_mapping.name
                return outer, _query(context, uuid), inner

    assert behind(furnished[cell], nest) == (cell, f"in-{cell}", cell)


# Sending


class Recorder:
    """Answers calls with the name of the queue that they came from, and keeps what came with them.

    It has no serializer, so a context is the dictionary that has travelled.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.calls: list[Any] = []

    def where(self, context: dict[str, Any], **arguments: Any) -> str:
        """Return the name of the queue."""
        self.calls.append((context, arguments))
        return self._name


@pytest.fixture(scope="module")
def all_recorders(deployment: Deployment) -> Iterator[dict[str, Recorder]]:
    """What answers on a topic of the tests' own: on the queue of each cell, and on the one at the top."""
    urls = {"top": deployment.top_queue} | {cell: deployment.cells[cell].transport_url for cell in CELLS}
    found = {name: Recorder(name) for name in urls}
    servers = [
        oslo_messaging.get_rpc_server(
            rpc.create_transport(url),
            oslo_messaging.Target(topic=TOPIC, server=name),
            [found[name]],
            executor="threading",
        )
        for name, url in urls.items()
    ]
    for server in servers:
        server.start()
    yield found
    end(servers)


@pytest.fixture
def recorders(all_recorders: dict[str, Recorder]) -> dict[str, Recorder]:
    """What answers on a topic of the tests' own, not called yet."""
    for recorder in all_recorders.values():
        recorder.calls.clear()
    return all_recorders


def _router() -> Any:
    return rpc.ClientRouter(rpc.get_client(oslo_messaging.Target(topic=TOPIC)))


def _reboot(context: Any, uuid: str) -> None:
    rpcapi.ComputeAPI().reboot_instance(context, _instance(context, uuid), None, "SOFT")


def _console(context: Any, uuid: str) -> str:
    return rpcapi.ComputeAPI().get_console_output(context, _instance(context, uuid), 1)


def _where(context: Any, uuid: str) -> str:
    return _router().client(context).call(context, "where")


@pytest.mark.parametrize(
    "reboot", [_reboot, lambda context, uuid: _reboot(context.elevated(), uuid)], ids=["context", "elevated"]
)
def test_cast(behind: Callable[..., Any], workers: dict[str, Worker], sending_cell: str, reboot: Call) -> None:
    """A cast to the instance's host is on the queue of the instance's cell and on no other."""
    instance = create(sending_cell)
    behind(instance, reboot)
    workers[sending_cell].wait_for("reboot_instance", instance.uuid)
    assert {cell for cell, worker in workers.items() if worker.messages} == {sending_cell}


@pytest.mark.parametrize(
    "console", [_console, lambda context, uuid: _console(context.elevated(), uuid)], ids=["context", "elevated"]
)
def test_call(behind: Callable[..., Any], workers: dict[str, Worker], sending_cell: str, console: Call) -> None:
    """A call to the instance's host is answered by the worker of the instance's cell and reaches no other."""
    instance = create(sending_cell)
    assert behind(instance, console) == f"get_console_output in {sending_cell}"
    assert {cell: worker.messages for cell, worker in workers.items() if worker.messages} == {
        sending_cell: [("get_console_output", instance.uuid)]
    }


def test_router(behind: Callable[..., Any], recorders: dict[str, Recorder], sending_cell: str) -> None:
    """Nova's router of clients gives one that reaches the instance's cell."""
    assert behind(create(sending_cell), _where) == sending_cell


def test_router_of_all_cells(behind: Callable[..., Any], recorders: dict[str, Recorder]) -> None:
    """One router that is kept for good sends each request's messages to the request's own cell."""
    router = _router()
    requests = [*CELLS, *CELLS]
    answers = [
        behind(create(cell), lambda context, uuid: router.client(context).call(context, "where")) for cell in requests
    ]
    assert answers == requests


def test_our_router(behind: Callable[..., Any], recorders: dict[str, Recorder], sending_cell: str) -> None:
    """Our router, made from Nova's client, has one client for all of a request, and it reaches the instance's cell."""
    router = cellmw.ClientRouter(rpc.get_client(oslo_messaging.Target(topic=TOPIC)))

    def where(context: Any, uuid: str) -> list[str]:
        assert router.client(context) is router.client(context)
        return [router.client(context).call(context, "where") for _ in range(2)]

    assert behind(create(sending_cell), where) == [sending_cell] * 2


def test_client_of_the_top(behind: Callable[..., Any], recorders: dict[str, Recorder], cell: str) -> None:
    """A client of Nova's that is for no cell sends to the top queue, as those for conductor and scheduler do."""
    client = rpc.get_client(oslo_messaging.Target(topic=TOPIC))
    assert behind(create(cell), lambda context, uuid: client.call(context, "where")) == "top"


def _reboot_on_a_host(context: Any, uuid: str) -> None:
    row = _instance(context, uuid)
    row.host = "host-cell1"  # one that failed to build has none
    rpcapi.ComputeAPI().reboot_instance(context, row, None, "SOFT")


@pytest.mark.parametrize(
    "send",
    [_where, lambda context, uuid: _where(context.elevated(), uuid), _reboot_on_a_host],
    ids=["call", "elevated", "reboot"],
)
def test_no_transport(
    behind: Callable[..., Any], workers: dict[str, Worker], recorders: dict[str, Recorder], send: Call
) -> None:
    """A message for an instance in cell0 is refused, and sent to no other queue instead."""
    with pytest.raises(CellHasNoTransport):
        behind(create("cell0"), send)
    assert not any([*(worker.messages for worker in workers.values()), *(each.calls for each in recorders.values())])


# Leaving the process


@pytest.fixture
def traces(deployment: Deployment, sending_cell: str) -> list[str]:
    """What is in a text that anything of the handles has got into."""
    place = deployment.cells[sending_cell]
    return ["cellmw", "Lease", "View", "connection", "cell_uuid", place.uuid, place.database_connection]


def found_in(text: str, traces: list[str]) -> list[str]:
    """Return the traces that are in the text."""
    return [trace for trace in traces if trace in text]


TEXTS: dict[str, Call] = {
    "to_dict": lambda context, uuid: context.to_dict(),
    "str": lambda context, uuid: context,
    "to_policy_values": lambda context, uuid: dict(context.to_policy_values()),
    "get_logging_values": lambda context, uuid: context.get_logging_values(),
}


@pytest.mark.parametrize("show", TEXTS.values(), ids=TEXTS)
def test_text(behind: Callable[..., Any], sending_cell: str, traces: list[str], show: Call) -> None:
    """What Nova says of a context when it is asked says nothing of the handles."""
    assert found_in(behind(create(sending_cell), lambda context, uuid: str(show(context, uuid))), traces) == []


def test_message(
    behind: Callable[..., Any], recorders: dict[str, Recorder], sending_cell: str, traces: list[str]
) -> None:
    """What travels with a message, the context and the instance, says nothing of the handles."""
    target = oslo_messaging.Target(topic=TOPIC)
    router = rpc.ClientRouter(rpc.get_client(target, serializer=objects.base.NovaObjectSerializer()))
    instance = create(sending_cell)
    behind(
        instance,
        lambda context, uuid: router.client(context).call(context, "where", instance=_instance(context, uuid)),
    )
    arrived = json.dumps(recorders[sending_cell].calls[-1])
    assert instance.uuid in arrived
    assert found_in(arrived, traces) == []


class NotificationRecorder:
    """Keeps the text of each notification."""

    def __init__(self) -> None:
        self.texts: queue.SimpleQueue[str] = queue.SimpleQueue()

    def info(self, context: Any, publisher: str, event_type: str, payload: Any, metadata: Any) -> None:
        """Keep all of it."""
        self.texts.put(json.dumps([context, publisher, event_type, payload, metadata]))


@pytest.fixture
def notifications(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[queue.SimpleQueue[str]]:
    """What Nova notifies of, in both of its formats, as it arrives at the top queue."""
    conf = nova_conf.CONF
    serializer = rpc.RequestContextSerializer(rpc.JsonPayloadSerializer())
    notifier = oslo_messaging.Notifier(
        rpc.NOTIFICATION_TRANSPORT, driver="messagingv2", topics=[TOPIC], serializer=serializer
    )
    monkeypatch.setattr(rpc, "NOTIFIER", notifier)
    monkeypatch.setattr(rpc, "LEGACY_NOTIFIER", notifier)
    conf.set_override("notification_format", "both", "notifications")
    recorder = NotificationRecorder()
    transport = oslo_messaging.get_notification_transport(conf, url=deployment.top_queue)
    listener = oslo_messaging.get_notification_listener(
        transport, [oslo_messaging.Target(topic=TOPIC)], [recorder], executor="threading"
    )
    listener.start()
    yield recorder.texts
    listener.stop()
    listener.wait()
    transport.cleanup()
    conf.clear_override("notification_format", "notifications")


def _notify(context: Any, uuid: str) -> None:
    notifier = rpc.get_notifier("compute")
    compute_utils.notify_about_instance_usage(notifier, context, _instance(context, uuid), "reboot.start")


def _notify_versioned(context: Any, uuid: str) -> None:
    compute_utils.notify_about_instance_action(context, _instance(context, uuid), "api", "reboot", phase="start")


@pytest.mark.parametrize("notify", [_notify, _notify_versioned], ids=["unversioned", "versioned"])
def test_notification(
    behind: Callable[..., Any],
    notifications: queue.SimpleQueue[str],
    sending_cell: str,
    traces: list[str],
    notify: Call,
) -> None:
    """A notification of an instance tells its name in its own cell, and nothing of the handles."""
    instance = create(sending_cell)
    behind(instance, notify)
    text = notifications.get(timeout=ARRIVAL)
    assert instance.name in text
    assert found_in(text, traces) == []


# After the response


def _keep(context: Any, uuid: str) -> Any:
    return context


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_late_read(behind: Callable[..., Any], furnished: dict[str, Instance], cell: str, read: Call) -> None:
    """A context that was kept reads from no database, the default one included."""
    kept = behind(furnished[cell], _keep)
    with pytest.raises(LeaseClosed, match=cell):
        read(kept, furnished[cell].uuid)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_late_write(behind: Callable[..., Any], databases: dict[str, Engine], cell: str, write: Call) -> None:
    """A context that was kept writes to no database."""
    instance = create(cell)
    before = holdings(databases, instance.uuid)
    kept = behind(instance, _keep)
    with pytest.raises(LeaseClosed, match=cell):
        write(kept, instance.uuid)
    assert changed(databases, instance.uuid, before) == []


def _late_reboot(context: Any, row: Any) -> None:
    rpcapi.ComputeAPI().reboot_instance(context, row, None, "SOFT")


def _late_console(context: Any, row: Any) -> None:
    rpcapi.ComputeAPI().get_console_output(context, row, 1)


@pytest.mark.parametrize("elevate", [False, True], ids=["context", "elevated"])
@pytest.mark.parametrize("send", [_late_reboot, _late_console], ids=["cast", "call"])
def test_late_message(
    behind: Callable[..., Any], workers: dict[str, Worker], sending_cell: str, send: Call, elevate: bool
) -> None:
    """A context that was kept sends to no queue, and neither does its copy for an admin."""

    def keep(context: Any, uuid: str) -> tuple[Any, Any]:
        return context.elevated() if elevate else context, _instance(context, uuid)

    kept, row = behind(create(sending_cell), keep)
    with pytest.raises(LeaseClosed, match=sending_cell):
        send(kept, row)
    assert [worker.messages for worker in workers.values()] == [[], []]


def test_late_client(behind: Callable[..., Any], recorders: dict[str, Recorder], sending_cell: str) -> None:
    """A client that was made in the request, and used in it, ends with it."""

    def keep(context: Any, uuid: str) -> Any:
        client = _router().client(context)
        assert client.call(context, "where") == sending_cell
        return client

    kept = behind(create(sending_cell), keep)
    with pytest.raises(LeaseClosed, match=sending_cell):
        kept.call(nova_context.get_admin_context(), "where")


def test_late_context_manager(behind: Callable[..., Any], cell: str) -> None:
    """A context manager that was taken from the context ends with the request, for other contexts, too."""
    instance = create(cell)
    kept = behind(instance, lambda context, uuid: db.get_context_manager(context))
    with pytest.raises(LeaseClosed, match=cell):
        _read_in(kept.reader, nova_context.get_admin_context(), instance.uuid)


OBJECT_USES: dict[str, Callable[[Any], Any]] = {
    "save": lambda row: row.save(),
    "refresh": lambda row: row.refresh(),
    "destroy": lambda row: row.destroy(),
    "lazy tags": lambda row: row.tags,
    "lazy metadata": lambda row: row.metadata,
    "lazy fault": lambda row: row.fault,
}


@pytest.mark.parametrize("use", OBJECT_USES.values(), ids=OBJECT_USES)
def test_late_object(
    behind: Callable[..., Any], databases: dict[str, Engine], cell: str, use: Callable[[Any], Any]
) -> None:
    """An instance that was read in the request neither loads nor saves anything after it."""

    def keep(context: Any, uuid: str) -> Any:
        row = _instance(context, uuid)
        row.display_name = "changed"
        return row

    instance = create(cell)
    before = holdings(databases, instance.uuid)
    kept = behind(instance, keep)
    with pytest.raises(LeaseClosed, match=cell):
        use(kept)
    assert changed(databases, instance.uuid, before) == []


def test_thread(behind: Callable[..., Any], furnished: dict[str, Instance], cell: str) -> None:
    """A thread that is done before the response reads from the instance's cell."""

    def start(context: Any, uuid: str) -> str:
        return threads.spawn_on(threads.ExecutorType.DEFAULT, _decorated_reader, context, uuid).result(ARRIVAL)

    assert behind(furnished[cell], start) == f"in-{cell}"


def test_late_thread(behind: Callable[..., Any], furnished: dict[str, Instance], cell: str) -> None:
    """A thread that goes on after the response reads from no database."""
    ended = threading.Event()

    def go_on(context: Any, uuid: str) -> str:
        assert ended.wait(ARRIVAL)
        return _decorated_reader(context, uuid)

    late = behind(
        furnished[cell], lambda context, uuid: threads.spawn_on(threads.ExecutorType.DEFAULT, go_on, context, uuid)
    )
    ended.set()
    with pytest.raises(LeaseClosed, match=cell):
        late.result(ARRIVAL)


def test_copy_by_dict(behind: Callable[..., Any], furnished: dict[str, Instance], cell: str) -> None:
    """A context that is made from a kept one's ``to_dict()`` is aimed at no cell: it reads the default database."""
    kept = behind(furnished[cell], _keep)
    copied = nova_context.RequestContext.from_dict(kept.to_dict())
    assert _instance(copied, furnished[cell].uuid).display_name == "in-cell0"
