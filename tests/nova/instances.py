# SPDX-License-Identifier: Apache-2.0
"""Names -> instances and hosts in the databases of a deployment, written by Nova's own objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nova import context as nova_context
from nova import objects
from nova.compute import power_state, vm_states
from nova.network.model import NetworkInfo
from oslo_utils import timeutils, uuidutils

if TYPE_CHECKING:
    from collections.abc import Iterable

ALL_CELLS = ("cell0", "cell1", "cell2")
PROJECT = "6f70656e737461636b20697320666f72"
OTHER_PROJECT = "61206f746865722070726f6a65637421"
USER = "alice"


@dataclass(frozen=True)
class Instance:
    """What there is to know of an instance that was made. Lives as long as the test wants."""

    uuid: str
    cell: str
    host: str | None

    @property
    def name(self) -> str:
        """Its display name, which no other row with its uuid has."""
        return f"in-{self.cell}"


def cell_mapping(cell: str) -> Any:
    """Return Nova's record of the cell with this name.

    :raises LookupError: if there is none
    """
    for mapping in objects.CellMappingList.get_all(nova_context.get_admin_context()):
        if mapping.name == cell:
            return mapping
    raise LookupError(cell)


def add_host(cell: str) -> str:
    """Write the rows of a compute host that is up, and return its name."""
    host = f"host-{cell}"
    with nova_context.target_cell(nova_context.get_admin_context(), cell_mapping(cell)) as context:
        objects.Service(
            context,
            host=host,
            binary="nova-compute",
            topic="compute",
            report_count=1,
            last_seen_up=timeutils.utcnow(),
        ).create()
    objects.HostMapping(nova_context.get_admin_context(), host=host, cell_mapping=cell_mapping(cell)).create()
    return host


def create(cell: str, *, project: str = PROJECT, decoys: Iterable[str] = (), mapped: bool = True) -> Instance:
    """Write an instance that is active in a cell (in cell0: one that failed), and map it.

    :param decoys: cells that get a row with the same uuid and another name, to be found by who looks there
    """
    uuid = uuidutils.generate_uuid()
    for decoy in decoys:
        _write(uuid, decoy, project)
    instance = _write(uuid, cell, project)
    if mapped:
        map_to(cell, uuid, project=project)
    return instance


def create_with_decoys(cell: str, *, project: str = PROJECT) -> Instance:
    """Write an instance of a cell, and a row of the same uuid in each of the others."""
    return create(cell, project=project, decoys=[other for other in ALL_CELLS if other != cell])


def create_unmapped(cell: str, *, project: str = PROJECT) -> Instance:
    """Write an instance into the database of ``[database] connection``, which is to become that of a cell."""
    return _write_row(nova_context.get_admin_context(), uuidutils.generate_uuid(), cell, project)


def add_decoy(cell: str, uuid: str, *, project: str = PROJECT) -> None:
    """Write a row with the uuid of an instance that is in another cell."""
    _write(uuid, cell, project)


def build(*, project: str = PROJECT) -> str:
    """Write what there is of an instance that is still being scheduled, and return its uuid."""
    context = nova_context.get_admin_context()
    uuid = uuidutils.generate_uuid()
    instance = objects.Instance(context, **_fields(uuid, "cell0", project), created_at=timeutils.utcnow())
    instance.obj_set_defaults()
    instance.tags = objects.TagList(objects=[])
    instance.keypairs = objects.KeyPairList(objects=[])
    # it has no row from which what is missing could be loaded
    for name, field in instance.fields.items():
        if field.nullable and not instance.obj_attr_is_set(name):
            setattr(instance, name, None)
    objects.BuildRequest(
        context,
        instance_uuid=uuid,
        project_id=project,
        instance=instance,
        block_device_mappings=objects.BlockDeviceMappingList(),
        tags=objects.TagList(objects=[]),
    ).create()
    map_to(None, uuid, project=project)
    return uuid


def map_to(cell: str | None, uuid: str, *, project: str = PROJECT) -> None:
    """Write the mapping of an instance."""
    objects.InstanceMapping(
        nova_context.get_admin_context(),
        instance_uuid=uuid,
        cell_mapping=None if cell is None else cell_mapping(cell),
        project_id=project,
        user_id=USER,
        queued_for_delete=False,
    ).create()


def delete(instance: Instance) -> None:
    """Do to an instance what its compute host does in the end."""
    context = nova_context.get_admin_context()
    with nova_context.target_cell(context, cell_mapping(instance.cell)) as targeted:
        objects.Instance.get_by_uuid(targeted, instance.uuid).destroy()
    mapping = objects.InstanceMapping.get_by_instance_uuid(context, instance.uuid)
    mapping.queued_for_delete = True
    mapping.save()


def read(cell: str, uuid: str) -> Any:
    """Return the row of an instance in this cell."""
    with nova_context.target_cell(nova_context.get_admin_context(), cell_mapping(cell)) as context:
        return objects.Instance.get_by_uuid(context, uuid)


def _write(uuid: str, cell: str, project: str) -> Instance:
    with nova_context.target_cell(nova_context.get_admin_context(), cell_mapping(cell)) as context:
        return _write_row(context, uuid, cell, project)


def _write_row(context: Any, uuid: str, cell: str, project: str) -> Instance:
    row = objects.Instance(context, **_fields(uuid, cell, project))
    row.create()
    return Instance(uuid, cell, row.host)


def _fields(uuid: str, cell: str, project: str) -> dict[str, Any]:
    failed = cell == "cell0"
    return {
        "uuid": uuid,
        "user_id": USER,
        "project_id": project,
        "display_name": f"in-{cell}",
        "display_description": "",
        "host": None if failed else f"host-{cell}",
        "vm_state": vm_states.ERROR if failed else vm_states.ACTIVE,
        "power_state": power_state.NOSTATE if failed else power_state.RUNNING,
        "task_state": None,
        "launched_at": None if failed else timeutils.utcnow(),
        "locked": False,
        "disable_terminate": False,
        "image_ref": uuidutils.generate_uuid(),
        "memory_mb": 512,
        "vcpus": 1,
        "root_gb": 1,
        "ephemeral_gb": 0,
        "instance_type_id": 1,
        "flavor": _flavor(),
        "old_flavor": None,
        "new_flavor": None,
        "metadata": {},
        "system_metadata": {},
        "info_cache": objects.InstanceInfoCache(instance_uuid=uuid, network_info=NetworkInfo()),
        "security_groups": objects.SecurityGroupList(objects=[]),
    }


def _flavor() -> Any:
    return objects.Flavor(
        id=1,
        flavorid="1",
        name="m1.tiny",
        memory_mb=512,
        vcpus=1,
        root_gb=1,
        ephemeral_gb=0,
        swap=0,
        rxtx_factor=1.0,
        vcpu_weight=None,
        disabled=False,
        is_public=True,
        extra_specs={},
        description=None,
    )
