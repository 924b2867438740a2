# SPDX-License-Identifier: Apache-2.0
"""The shipped pipeline of a metadata API: the instance is named by a signed header, and nothing else is believed."""

from __future__ import annotations

import hmac
import json
import uuid
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oslo_context.context
import pytest
import sqlalchemy
from paste.deploy import loadapp
from sqlalchemy import orm

from cellmw import CellFilter
from cellmw.exceptions import ConfigError
from examples.compute import models
from examples.compute.metadata import PATH
from tests.functional.conftest import PROJECT, Exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _typeshed.wsgi import WSGIApplication

    from tests.functional.conftest import Deployment

PIPELINE = Path(__file__).parents[2] / "etc" / "metadata-paste.ini"
SECRET = "the proxy's"


@pytest.fixture
def pipeline(deployment: Deployment) -> Iterator[WSGIApplication]:
    """The pipeline as it is shipped, with the secret in the configuration file."""
    with (deployment.file("cellmw").with_suffix(".conf")).open("a") as file:
        file.write(f"[cellmw]\ninstance_header_secret = {SECRET}\n")
    app = loadapp(f"config:{PIPELINE}", name="main", global_conf=deployment.global_conf)
    station: Any = app[""]
    while not isinstance(station, CellFilter):
        station = station.application
    with closing(station):
        yield app
        assert station.cells.leases == 0


@pytest.fixture
def instances(deployment: Deployment) -> dict[str, str]:
    """An instance in each cell that has hosts, by the name of its cell, which is its own name too."""
    uuids = {}
    for cell in ("cell1", "cell2"):
        url = deployment.database_url(cell)
        models.create_all(url)
        uuids[cell] = deployment.map(cell)
        engine = sqlalchemy.create_engine(url)
        with orm.Session(engine) as session, session.begin():
            session.add(models.Instance(uuid=uuids[cell], project_id=PROJECT, name=cell, flavor="small"))
        engine.dispose()
    return uuids


@pytest.fixture
def get(pipeline: WSGIApplication) -> Callable[..., Exchange]:
    """Ask for the metadata as the proxy does, with one header or another different."""

    def get(instance_uuid: str, **headers: str | None) -> Exchange:
        sent = {
            "HTTP_X_INSTANCE_ID": instance_uuid,
            "HTTP_X_INSTANCE_ID_SIGNATURE": hmac.new(SECRET.encode(), instance_uuid.encode(), "sha256").hexdigest(),
            "HTTP_X_TENANT_ID": PROJECT,
        }
        changed = {f"HTTP_{name.upper()}": value for name, value in headers.items()}
        exchange = Exchange(PATH, headers={key: value for key, value in (sent | changed).items() if value is not None})
        if "HTTP_X_PROJECT_ID" not in changed:
            del exchange.environ["HTTP_X_PROJECT_ID"]
        exchange.content = exchange.send(pipeline).finish()
        return exchange

    return get


@pytest.mark.parametrize("cell", ["cell1", "cell2"])
def test_own_cell(get: Callable[..., Exchange], instances: dict[str, str], cell: str) -> None:
    """The metadata come out of the cell of the instance that the header names."""
    exchange = get(instances[cell])
    assert exchange.status == "200 OK"
    assert json.loads(exchange.content)["name"] == cell


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x_instance_id_signature": None}, "403 Forbidden"),
        ({"x_instance_id_signature": "0" * 64}, "403 Forbidden"),
        ({"x_instance_id": "a,b"}, "400 Bad Request"),
        ({"x_tenant_id": None}, "400 Bad Request"),
        ({"x_tenant_id": f"{PROJECT},other"}, "400 Bad Request"),
        ({"x_tenant_id": "other"}, "404 Not Found"),
    ],
)
def test_refused(
    get: Callable[..., Exchange], instances: dict[str, str], headers: dict[str, str | None], status: str
) -> None:
    """What the proxy would not have sent is refused."""
    exchange = get(instances["cell1"], **headers)
    assert exchange.status == status
    (fault,) = json.loads(exchange.content).values()
    assert fault["code"] == int(status[:3])


@pytest.mark.parametrize(
    "claim", [{"x_roles": "admin"}, {"x_project_id": PROJECT}, {"x_is_admin_project": "true", "x_role": "admin"}]
)
def test_claims_from_inside(get: Callable[..., Exchange], instances: dict[str, str], claim: dict[str, str]) -> None:
    """Who the machine inside the instance claims to be opens no other project's instance."""
    assert get(instances["cell1"], x_tenant_id="other", **claim).status == "404 Not Found"


def test_unknown(get: Callable[..., Exchange], instances: dict[str, str]) -> None:
    """An instance that has no mapping is not found, as one of another project is not."""
    assert get(str(uuid.uuid4())).status == "404 Not Found"


def test_without_header(get: Callable[..., Exchange], instances: dict[str, str]) -> None:
    """A request without the header is passed to the app, untargeted."""
    exchange = get(instances["cell1"], x_instance_id=None, x_instance_id_signature=None)
    assert exchange.status == "400 Bad Request"
    assert b"metadata proxy" in exchange.content


def test_path_does_not_count(pipeline: WSGIApplication, instances: dict[str, str]) -> None:
    """An instance in the path is nothing to this pipeline."""
    exchange = Exchange(f"/servers/{instances['cell1']}").send(pipeline)
    exchange.finish()
    assert exchange.status == "400 Bad Request"


def test_leaves_no_context(get: Callable[..., Exchange], instances: dict[str, str]) -> None:
    """The context that the filter made is gone with the request, from the environ and from oslo.context's memory."""
    before = oslo_context.context.RequestContext()
    assert "cellmw.context" not in get(instances["cell1"]).environ
    assert oslo_context.context.get_current() is before


def test_refuses_to_load(deployment: Deployment) -> None:
    """Without a secret and without trust the pipeline does not load."""
    with pytest.raises(ConfigError, match="instance_header_secret"):
        loadapp(f"config:{PIPELINE}", name="main", global_conf=deployment.global_conf)
