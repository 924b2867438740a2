# SPDX-License-Identifier: Apache-2.0
"""A request explained, and a deployment drawn, on PostgreSQL, MariaDB, RabbitMQ and Redis."""

from __future__ import annotations

import secrets
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from oslo_cache import core as oslo_cache
from oslo_config import cfg

from cellmw import CellFilter, deploy
from cellmw.admin import explanation, layout_graph
from cellmw.admin.explanation import Caller
from cellmw.deadline import after
from cellmw.store import Store, migrations
from tests.faults.test_shared_cache import redis_started
from tests.functional.conftest import PATIENCE, PROJECT, Exchange

if TYPE_CHECKING:
    from collections.abc import Iterator

INSTANCE = "5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01"


@pytest.fixture(params=["postgresql", "mariadb"])
def url(request: pytest.FixtureRequest) -> str:
    """The database of the cell, beside which the API database is."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def conf(url: str) -> cfg.ConfigOpts:
    """A configuration with its API database in the cell's."""
    conf = cfg.ConfigOpts()
    conf([], project="cellmw", default_config_files=[], default_config_dirs=[])
    deploy.settings(conf)
    conf.set_override("connection", url, group="api_database")
    return conf


@pytest.fixture
def store(conf: cfg.ConfigOpts) -> Iterator[Store]:
    """The API database."""
    with deploy.store(conf) as store:
        migrations.sync(store.engine)
        yield store


def add(store: Store, database_connection: str, transport_url: str) -> None:
    """Record a cell, with an instance in it."""
    cell = store.create_cell(name="cell1", database_connection=database_connection, transport_url=transport_url)
    store.create_instance(INSTANCE, project_id=PROJECT, cell_id=cell.id)


def explain(conf: cfg.ConfigOpts) -> dict[str, str]:
    """Return the results of the steps."""
    found = explanation.explain(conf, INSTANCE, Caller(), patience=PATIENCE)
    return {step.step: step.result for step in found.steps}


def test_answers(conf: cfg.ConfigOpts, store: Store, url: str, rabbit_url: str) -> None:
    """Servers that answer say so, and the request is aimed at the cell."""
    add(store, url, rabbit_url)
    results = explain(conf)
    assert results["answer"] == "targeted: the app answers, aimed at cell1"
    assert results["database"].startswith("answers in ")
    assert results["queue"].startswith("answers in ")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"database": "cellmw_nosuch"}, "has no database of that name"),
        ({"host": "127.0.0.1", "port": 1}, "does not answer: the connection is refused"),
        ({"host": "nosuch.invalid"}, "its host has no address"),
    ],
)
def test_what_is_wrong_with_a_database(
    conf: cfg.ConfigOpts, store: Store, url: str, wrong: dict[str, Any], says: str
) -> None:
    """What is wrong is said in the same words for each server, and is why the request is refused."""
    add(store, sqlalchemy.make_url(url).set(**wrong).render_as_string(hide_password=False), "none:///")
    results = explain(conf)
    assert (results["database"], results["answer"]) == (says, "503 Service Unavailable, Retry-After: 5")


@pytest.mark.parametrize("url", ["mariadb"], indirect=True)
def test_wrong_password(conf: cfg.ConfigOpts, store: Store, url: str) -> None:
    """A user that the server does not take is told from a server that is not there."""
    theirs = sqlalchemy.make_url(url).set(username="cellmw_nobody", password=secrets.token_hex(8))
    add(store, theirs.render_as_string(hide_password=False), "none:///")
    assert explain(conf)["database"] == "refuses the user or the password"


def test_graph(conf: cfg.ConfigOpts, store: Store, url: str, rabbit_url: str) -> None:
    """The API database and the cell's are at one server; what is mapped is counted there."""
    add(store, url, rabbit_url)
    store.create_host("host", cell_id=1)
    graph = layout_graph.look(conf, PATIENCE)
    (databases, buses) = graph.servers.values()
    assert [node.id for node in databases] == ["api_database", "database_1"]
    assert [node.health.answers for node in (*databases, *buses) if node.health is not None] == [True] * 3
    (cell,) = (node for node in graph.nodes if node.kind == "cell")
    assert cell.details == ("1 instance", "1 host")


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")
def test_shared_cache(conf: cfg.ConfigOpts, store: Store, url: str) -> None:
    """What a worker has put into the shared cache is shown, and goes on being there when the mapping has changed."""
    add(store, url, "none:///")
    with redis_started() as server:
        conf.set_override("shared_cache", True, group="cellmw")
        conf.set_override("shared_cache_secret", secrets.token_hex(8), group="cellmw")
        oslo_cache.configure(conf)  # registers the options
        for name, value in (
            ("enabled", True),
            ("backend", "dogpile.cache.redis"),
            ("redis_server", f"127.0.0.1:{server.port}"),
        ):
            conf.set_override(name, value, group="cache")

        def app(environ: Any, start_response: Any) -> list[bytes]:
            start_response("200 OK", [])
            return [b""]

        with closing(CellFilter(app, conf)) as cell_filter:
            assert Exchange(f"/servers/{INSTANCE}").fetch(cell_filter).code == 200
        chosen = deploy.settings(conf)
        shared = deploy.shared_mappings(conf, chosen)
        assert shared is not None
        with closing(shared):
            before = shared.get(INSTANCE, after(PATIENCE))
            store.update_instance(INSTANCE, project_id="another")
            found = explanation.explain(conf, INSTANCE, Caller(), patience=PATIENCE)
            assert (before is not None, shared.get(INSTANCE, after(PATIENCE))) == (True, before)
    whys = {step.step: step.why for step in found.steps}
    assert whys["shared cache"].startswith("NOT as the row has it")
