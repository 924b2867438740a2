# SPDX-License-Identifier: Apache-2.0
"""A machine's request for its metadata -> Nova's own answer, with the filter in the pipeline and without.

``metadata.ini`` has the sections that the manual says to add.
"""

from __future__ import annotations

import hmac
from configparser import RawConfigParser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oslo_context.context
import pytest
from nova import context as nova_context
from nova import objects
from nova.conf import CONF
from oslo_utils import uuidutils
from sqlalchemy import text

from cellmw import database
from cellmw.exceptions import ConfigError
from tests.nova import api, instances
from tests.nova.deployment import CELLS_INI, NOVA_PASTE_INI, SHARED_SECRET, write_paste_ini

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.nova.api import Api
    from tests.nova.conftest import Nova
    from tests.nova.instances import Instance

METADATA_INI = Path(__file__).with_name("metadata.ini")
CELLS = {"cell0", "cell1", "cell2"}
META_DATA = "/openstack/latest/meta_data.json"
PATHS = [
    META_DATA,
    "/openstack/latest",
    "/openstack/latest/network_data.json",
    "/openstack/latest/password",
    "/openstack/latest/vendor_data2.json",
    "/latest/meta-data/",
    "/latest/meta-data/hostname",
    "/latest/meta-data/instance-id",
    "/",
    "/openstack",
    "/openstack/latest/nothing",
]


@dataclass
class Metadata:
    """Nova's metadata service in this process. Lives as long as the tests of this file.

    :ivar plain: as Nova has it
    :ivar filtered: with the filter
    :ivar probe: with the filter, in front of a call of the test's own
    """

    plain: Api
    filtered: Api
    probe: Api


def _write_paste_ini(file: Path, **settings: str) -> None:
    """Write Nova's own api-paste.ini with the filter in both services, and a metadata pipeline that ends in the probe.

    :param settings: further options of the filter in the metadata service
    """
    write_paste_ini(file, CELLS_INI, METADATA_INI)
    ini = RawConfigParser()
    ini.read(file)
    ini["filter:metadata_cells"].update(settings)
    pipeline = ini["pipeline:meta"]["pipeline"]
    ini["pipeline:metadata_probe"] = {"pipeline": pipeline.replace(" metaapp", " probeapp")}
    with file.open("w") as opened:
        ini.write(opened)


@pytest.fixture(scope="module")
def whole_metadata(whole_nova: Nova, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metadata]:
    """The metadata service, loaded, with the secret where the manual says to put it."""
    deployment = whole_nova.deployment
    file = tmp_path_factory.mktemp("metadata") / "api-paste.ini"
    _write_paste_ini(file)
    CONF.set_override("instance_header_secret", "${neutron.metadata_proxy_shared_secret}", "cellmw")
    metadata = Metadata(
        api.load(deployment, deployment.paste_ini, "metadata"),
        api.load(deployment, file, "metadata"),
        api.load(deployment, file, "metadata_probe"),
    )
    yield metadata
    CONF.clear_override("instance_header_secret", "cellmw")
    for each in (metadata.filtered, metadata.probe):
        if each.cells is not None:
            each.cells.close()


@pytest.fixture
def metadata(whole_metadata: Metadata) -> Iterator[Metadata]:
    """The metadata service, with no lease open when the test has ended."""
    yield whole_metadata
    for each in (whole_metadata.filtered, whole_metadata.probe):
        assert each.cells is None or each.cells.leases == 0


def _create(cell: str) -> Instance:
    """Write an instance in a cell, and one with the same uuid and another name in each other cell."""
    instance = instances.create(cell, decoys=CELLS - {cell})
    for each in CELLS:
        _name_host(each, instance.uuid)
    return instance


def _name_host(cell: str, uuid: str) -> None:
    """Give the instance a host name, without which Nova can't serve its metadata."""
    with nova_context.target_cell(nova_context.get_admin_context(), instances.cell_mapping(cell)) as context:
        row = objects.Instance.get_by_uuid(context, uuid)
        row.hostname = f"host-in-{cell}"
        row.save()


def _sign(value: str) -> str:
    return hmac.new(SHARED_SECRET.encode(), value.encode(), "sha256").hexdigest()


def _headers(instance_id: str, *, without: str = "", **others: str) -> dict[str, str]:
    """Return what the proxy sends for this instance.

    :param without: a header that it leaves out
    :param others: headers that it sends with another value, with underscores in their names
    """
    headers = {
        "X-Instance-ID": instance_id,
        "X-Instance-ID-Signature": _sign(instance_id),
        "X-Tenant-ID": instances.PROJECT,
        "X-Forwarded-For": "10.0.0.7",
    }
    headers |= {name.replace("_", "-"): value for name, value in others.items()}
    return {name: value for name, value in headers.items() if name != without}


def _answers(metadata: Metadata, path: str, headers: dict[str, str]) -> list[tuple[int, dict[str, str], Any]]:
    """Return the status, the headers and the body of the answer without the filter, and of that with it."""
    answers = []
    for each in (metadata.plain, metadata.filtered):
        response = each.request("GET", path, headers=headers)
        body = response.json if response.content_type == "application/json" else response.text
        if "random_seed" in body:
            del body["random_seed"]
        answers.append((response.status_int, dict(response.headers), body))
    return answers


def test_pipeline_is_novas() -> None:
    """The pipeline that the manual shows is Nova's own with one filter more."""
    ini = RawConfigParser()
    ini.read(NOVA_PASTE_INI)
    novas = ini["pipeline:meta"]["pipeline"]
    ini.read(METADATA_INI)
    assert ini["pipeline:meta"]["pipeline"].replace(" metadata_cells ", " ") == novas


@pytest.mark.parametrize("path", PATHS)
def test_same_answer_at_each_path(metadata: Metadata, path: str) -> None:
    """A signed request gets the same answer with the filter as without."""
    plain, filtered = _answers(metadata, path, _headers(_create("cell1").uuid))
    assert filtered == plain
    assert plain[0] == (404 if path.endswith("nothing") else 200)


@pytest.mark.parametrize("cell", sorted(CELLS))
def test_own_cell(metadata: Metadata, cell: str) -> None:
    """What the machine gets is from its instance's own cell, and the filter changes nothing in it."""
    plain, filtered = _answers(metadata, META_DATA, _headers(_create(cell).uuid))
    assert filtered == plain
    assert (filtered[2]["name"], filtered[2]["hostname"]) == (f"in-{cell}", f"host-in-{cell}.novalocal")


def test_password_goes_to_own_cell(metadata: Metadata) -> None:
    """The password that a machine posts is kept in its instance's own cell, and in no other."""
    instance = _create("cell2")
    path = "/openstack/latest/password"
    metadata.filtered.request("POST", path, "encrypted", headers=_headers(instance.uuid))
    kept = {cell for cell in CELLS if "password_0" in instances.read(cell, instance.uuid).system_metadata}
    assert kept == {"cell2"}
    assert metadata.filtered.request("GET", path, headers=_headers(instance.uuid)).text == '"encrypted"'


def _deleted() -> str:
    instance = _create("cell1")
    instances.delete(instance)
    return instance.uuid


def _unmapped() -> str:
    # cell0's database is the service's own
    uuid = instances.create("cell0", mapped=False).uuid
    _name_host("cell0", uuid)
    return uuid


@pytest.mark.parametrize(
    ("make", "status"),
    [
        pytest.param(uuidutils.generate_uuid, 404, id="unknown"),
        pytest.param(instances.build, 404, id="building"),
        pytest.param(_deleted, 404, id="deleted"),
        pytest.param(_unmapped, 200, id="unmapped"),
    ],
)
def test_same_answer_without_a_cell(metadata: Metadata, make: Callable[[], str], status: int) -> None:
    """An instance that is in no cell gets Nova's own answer: one that Nova has not mapped is in its own database."""
    plain, filtered = _answers(metadata, META_DATA, _headers(make()))
    assert filtered == plain
    assert plain[0] == status


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        pytest.param({"without": "X-Instance-ID"}, 400, id="no instance"),
        pytest.param({"without": "X-Tenant-ID"}, 400, id="no project"),
        pytest.param({"X_Tenant_ID": instances.OTHER_PROJECT}, 404, id="another project"),
        pytest.param({"X_Tenant_ID": f"{instances.PROJECT},{instances.PROJECT}"}, 404, id="project twice"),
    ],
)
def test_same_refusal(metadata: Metadata, changes: dict[str, str], status: int) -> None:
    """What the filter has no opinion of is refused by Nova, in Nova's words."""
    plain, filtered = _answers(metadata, META_DATA, _headers(_create("cell1").uuid, **changes))
    assert filtered == plain
    assert plain[0] == status


def test_load_balancer_passes(metadata: Metadata) -> None:
    """A request that names its network and no instance is Nova's to answer."""
    headers = {
        "X-Metadata-Provider": "network",
        "X-Metadata-Provider-Signature": _sign("network"),
        "X-Forwarded-For": "10.0.0.7",
    }
    plain, filtered = _answers(metadata, META_DATA, headers)
    assert filtered == plain
    assert "Could not find any subnets" in plain[2]["message"]


def test_versions_without_headers(metadata: Metadata) -> None:
    """Nova lists its versions to whoever asks, and the filter lets it."""
    plain, filtered = _answers(metadata, "/", {})
    assert filtered == plain
    assert plain[0] == 200


@pytest.mark.parametrize(
    ("path", "value", "changes", "novas", "ours"),
    [
        pytest.param(META_DATA, "{}", {"X_Instance_ID_Signature": _sign("")}, 403, 403, id="wrong signature"),
        pytest.param(META_DATA, "{}", {"without": "X-Instance-ID-Signature"}, 400, 403, id="no signature"),
        pytest.param(META_DATA, "{},{}", {}, 404, 400, id="instance twice"),
        pytest.param(META_DATA, "i-00000001", {}, 404, 400, id="no uuid"),
        pytest.param("/", "{}", {"X_Instance_ID_Signature": _sign("")}, 200, 403, id="versions"),
    ],
)
def test_other_refusal(
    metadata: Metadata, path: str, value: str, changes: dict[str, str], novas: int, ours: int
) -> None:
    """A header that can't be believed or read is refused by the filter, in its own words, before Nova sees it."""
    uuid = _create("cell1").uuid
    plain, filtered = _answers(metadata, path, _headers(value.format(uuid, uuid), **changes))
    assert (plain[0], filtered[0]) == (novas, ours)
    assert list(filtered[2]) == [{400: "badRequest", 403: "forbidden"}[ours]]


def test_context_is_taken_back(metadata: Metadata) -> None:
    """The context that the filter makes is not the thread's newest any more when the response has ended."""
    headers = _headers(_create("cell1").uuid)
    before = oslo_context.context.get_current()
    # where Nova makes no context of its own, which would be the newest
    metadata.filtered.request("GET", "/", headers=headers)
    assert oslo_context.context.get_current() is before


@pytest.mark.parametrize("cell", sorted(CELLS))
def test_handler_that_reads_the_context(metadata: Metadata, cell: str) -> None:
    """A handler of one's own in Nova's metadata pipeline finds a context that leads to the instance's cell."""
    instance = _create(cell)
    names = []

    def call(environ: dict[str, Any]) -> None:
        with database.reader(environ["cellmw.context"]) as session:
            statement = text("SELECT display_name FROM instances WHERE uuid = :uuid")
            names.append(session.scalar(statement, {"uuid": instance.uuid}))

    metadata.probe.request("GET", META_DATA, headers=_headers(instance.uuid), call=call)
    assert names == [f"in-{cell}"]


def test_no_context_of_novas(metadata: Metadata, nova: Nova, tmp_path: Path) -> None:
    """With the API's context_key the service answers 500: no filter of its pipeline makes such a context."""
    _write_paste_ini(tmp_path / "api-paste.ini", context_key="nova.context")
    service = api.load(nova.deployment, tmp_path / "api-paste.ini", "metadata")
    response = service.request("GET", META_DATA, headers=_headers(_create("cell1").uuid))
    assert response.status_int == 500
    service.cells.close()


def test_service_in_a_cell(metadata: Metadata) -> None:
    """A metadata service that is in a cell reads the database of its own configuration, whatever the mapping says."""
    instance = _create("cell1")
    CONF.set_override("local_metadata_per_cell", True, "api")
    try:
        response = metadata.plain.request("GET", META_DATA, headers=_headers(instance.uuid))
    finally:
        CONF.clear_override("local_metadata_per_cell", "api")
    # whose database is the one configured here
    assert response.json["name"] == "in-cell0"


def test_service_without_api_database(metadata: Metadata, nova: Nova, tmp_path: Path) -> None:
    """The filter refuses to be in a metadata service that has no API database, as one in a cell has none."""
    _write_paste_ini(tmp_path / "api-paste.ini")
    CONF.set_override("connection", None, "api_database")
    try:
        with pytest.raises(ConfigError, match=r"\[api_database\] connection is not set"):
            api.load(nova.deployment, tmp_path / "api-paste.ini", "metadata")
    finally:
        CONF.clear_override("connection", "api_database")
