# SPDX-License-Identifier: Apache-2.0
"""A deployment as a graph: what is there, what leads where, what answers, and nothing of who logs in."""

from __future__ import annotations

import socket
from contextlib import closing
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from cellmw import own_urls
from cellmw.admin import layout_graph
from cellmw.admin.health import Health
from cellmw.admin.layout_graph import Graph, Node
from tests.unit.conftest import PASSWORD, PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from oslo_config import cfg

    from cellmw.cell import Cell
    from cellmw.store import Store


@pytest.fixture
def look(conf: cfg.ConfigOpts, store: Store) -> Callable[..., Graph]:
    """Look at the deployment."""
    return lambda seconds=PATIENCE, **options: layout_graph.look(conf, seconds, **options)


def nodes(graph: Graph) -> dict[str, Node]:
    """Return the nodes by their ids."""
    return {node.id: node for node in graph.nodes}


def test_nothing_but_the_api_database(look: Callable[..., Graph], tmp_path: Path) -> None:
    """Without a cell there is the API database."""
    found = nodes(look())
    assert list(found) == ["api", "api_database"]
    assert found["api_database"].name == f"SQLite {tmp_path}/api.sqlite"
    assert found["api_database"].health is not None
    assert found["api_database"].health.answers


def test_cells(look: Callable[..., Graph], cell0: Cell, cell1: Cell, store: Store) -> None:
    """Each cell has its database, its bus where it has one, and what is mapped to it."""
    for number in range(3):
        store.create_instance(f"uuid-{number}", project_id="project", cell_id=cell1.id)
    store.create_host("host", cell_id=cell1.id)
    graph = look()
    found = nodes(graph)
    assert list(found)[2:] == ["cell_1", "database_1", "cell_2", "database_2", "queue_2"]
    assert found["cell_1"].details == ("0 instances", "0 hosts")
    assert found["cell_2"].details == ("3 instances", "1 host")
    assert [(edge.source, edge.target, edge.what) for edge in graph.edges] == [
        ("api", "api_database", "API database"),
        ("api", "cell_1", "cell"),
        ("cell_1", "database_1", "database"),
        ("api", "cell_2", "cell"),
        ("cell_2", "database_2", "database"),
        ("cell_2", "queue_2", "bus"),
    ]
    assert [node.id for _, node in graph.behind(found["cell_2"])] == ["database_2", "queue_2"]


def test_instances_without_a_cell(look: Callable[..., Graph], cell1: Cell, store: Store) -> None:
    """Those that are being built, and those whose cell is not recorded, are with the API database."""
    for number, cell_id in enumerate((None, None, cell1.id)):
        store.create_instance(f"uuid-{number}", project_id="project", cell_id=cell_id)
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE instance_mappings SET cell_id = 99 WHERE cell_id IS NOT NULL"))
    assert nodes(look())["api_database"].details == (
        "2 instances without a cell yet",
        "1 instance in cells that are not recorded",
    )


def test_marks(look: Callable[..., Graph], new_cell: Callable[..., Cell], store: Store) -> None:
    """A cell that is disabled, or drained, or both, is marked."""
    new_cell("a", disabled=True)
    for cell in (new_cell("b"), new_cell("c", disabled=True)):
        store.drain_cell(cell.uuid)
    found = nodes(look())
    assert [found[f"cell_{number}"].marks for number in (1, 2, 3)] == [
        ("disabled",),
        ("drained",),
        ("disabled", "drained"),
    ]


def test_places(look: Callable[..., Graph], new_cell: Callable[..., Cell]) -> None:
    """Cells at one server are together, and of their URLs there is the place alone."""
    for name in ("a", "b"):
        new_cell(
            name,
            transport_url=f"rabbit://who:{PASSWORD}@r1:1,who:{PASSWORD}@r2:2/{name}",
            database_connection=f"postgresql+psycopg://who:{PASSWORD}@Db/{name}",
        )
    graph = look(ask_them=False)
    assert {server: [node.name for node in at] for server, at in graph.servers.items()} == {
        ("database", "PostgreSQL db:5432"): ["a", "b"],
        ("bus", "r1:1, r2:2"): ["a", "b"],
    }
    assert "who" not in repr(graph)
    assert PASSWORD not in repr(graph)


@pytest.mark.parametrize(
    "record",
    [
        {"database_connection": f"mysql+pymysql://who:x@{PASSWORD}@db/a"},
        {"transport_url": f"rabbit://who:x@{PASSWORD}@r1/a"},
        {"database_connection": f"mysql+pymysql//who:{PASSWORD}@db/a"},
        {"database_connection": f"mysql+pymysql://who:{PASSWORD}@db:port/a"},
        {"transport_url": f"rabbit://who:{PASSWORD}@r1:port/a"},
        {"database_connection": "{scheme}://who:{password}@{hostname}/a"},
    ],
)
def test_odd_urls(look: Callable[..., Graph], new_cell: Callable[..., Cell], record: dict[str, str]) -> None:
    """Of a URL that nobody can read nothing of a password is shown, and the graph is there."""
    new_cell("odd", **record)
    assert PASSWORD not in repr(look())


def test_no_health(look: Callable[..., Graph], cell1: Cell) -> None:
    """Nobody has to be asked."""
    assert {node.health for node in look(ask_them=False).nodes} == {None}


def test_dead_cell_delays_nothing(look: Callable[..., Graph], new_cell: Callable[..., Cell], cell1: Cell) -> None:
    """With cells that take connections and never answer the others are there, and it is over by the deadline."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        for number in range(5):
            new_cell(
                f"dead{number}",
                transport_url=f"rabbit://who:{PASSWORD}@{address}/{number}",
                database_connection=f"postgresql+psycopg://who:{PASSWORD}@{address}/{number}",
            )
        began = monotonic()
        found = nodes(look(seconds=0.5))
    assert monotonic() - began < PATIENCE / 2
    assert found["database_1"].health is not None
    assert found["database_1"].health.answers
    assert found["database_2"].health == found["queue_6"].health == Health(False, "does not answer in time")
    assert [node.id for node in found.values() if node.is_sick] == [
        f"{what}_{number}" for number in range(2, 7) for what in ("database", "queue")
    ]


def test_buses_of_the_api_level(look: Callable[..., Graph], conf: cfg.ConfigOpts) -> None:
    """The service's own bus and that for notifications are there where they are configured, and are asked, too."""
    own_urls.transport_url(conf)  # registers the option
    conf.set_override("transport_url", f"rabbit://who:{PASSWORD}@127.0.0.1:1/api")
    assert [edge.what for edge in look().edges] == ["API database", "API bus"]
    conf.set_override("transport_url", f"memory://who:{PASSWORD}@n/", group="oslo_messaging_notifications")
    graph = look()
    found = nodes(graph)
    assert [edge.what for edge in graph.edges][1:] == ["API bus", "bus for notifications"]
    assert (found["bus_0"].server, found["bus_0"].name) == ("127.0.0.1:1", "api")
    assert found["bus_0"].health == Health(False, "does not answer: ConnectionRefusedError")
    assert found["bus_1"].health == Health(None, "not asked: it is no RabbitMQ")


def test_unusable_bus(look: Callable[..., Graph], conf: cfg.ConfigOpts) -> None:
    """What is wrong with a bus that nobody can use is said."""
    own_urls.transport_url(conf)
    conf.set_override("transport_url", f"nosuch://who:{PASSWORD}@host/")
    health: Any = nodes(look())["bus_0"].health
    assert health == Health(False, "can't be used: no oslo.messaging driver 'nosuch' is installed")


@pytest.mark.parametrize("url", ["who:{}@host/v", "rabbit://who:1/{}@host/v"])
def test_bus_with_half_a_password(look: Callable[..., Graph], conf: cfg.ConfigOpts, url: str) -> None:
    """Of a URL that has lost its beginning, or that nobody has encoded, no password is taken for a virtual host."""
    own_urls.transport_url(conf)
    conf.set_override("transport_url", url.format(PASSWORD))
    assert PASSWORD not in repr(nodes(look())["bus_0"])
