# SPDX-License-Identifier: Apache-2.0
"""A whole deployment -> its diagnosis: which checks are done, in what order, and that nothing holds them up."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from cellmw.admin.doctor import CHECKS, Diagnosis, Examination, Finding, Severity
from cellmw.credentials import Credentials, KeyRepository
from cellmw.engines import make_engine
from cellmw.exceptions import ConfigError, UpcallForbidden
from cellmw.resolver import Resolver
from cellmw.store import Store, migrations
from tests.unit.somebody import Somebody
from tests.unit.test_admin_doctor_databases import TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from oslo_config import cfg

    from cellmw.cell import Cell

SECRET = "open-sesame"

SLACK = 2.0
"""How much longer than its timeout an examination may take on a busy machine; on a free one it is a quarter second."""

MANUAL = Path(__file__).parents[2] / "doc" / "source" / "doctor.rst"


@pytest.fixture
def store(conf: cfg.ConfigOpts, tmp_path: Path) -> Iterator[Store]:
    """An API database that was synced."""
    url = f"sqlite:///{tmp_path}/api.sqlite"
    conf.set_override("connection", url, group="api_database")
    with Store(make_engine(url, {"sqlite_synchronous": False}, pre_ping=False)) as store:
        migrations.sync(store.engine)
        yield store


@pytest.fixture
def new_cell(store: Store, tmp_path: Path) -> Callable[..., Cell]:
    """Record a cell whose database has Nova's tables."""

    def new(name: str, **record: Any) -> Cell:
        with closing(sqlite3.connect(tmp_path / name)) as connection, connection:
            for statement in TABLES:
                connection.execute(statement)
        urls = {"transport_url": f"memory://{name}/", "database_connection": f"sqlite:///{tmp_path}/{name}"}
        return store.create_cell(name=name, **urls | record)

    return new


@pytest.fixture
def healthy(new_cell: Callable[..., Cell]) -> list[Cell]:
    """A deployment of cell0 and two cells, as it should be."""
    cell0 = new_cell("cell0", uuid="00000000-0000-0000-0000-000000000000", transport_url="none:///")
    return [cell0, new_cell("cell1"), new_cell("cell2")]


@pytest.fixture
def silent() -> Iterator[Callable[[], Somebody]]:
    """Have somebody listen who never says anything."""
    with ExitStack() as ends:
        yield lambda: ends.enter_context(closing(Somebody(None)))


def told(diagnosis: Diagnosis) -> list[tuple[str, str, str]]:
    """Return what is said, without its text."""
    return [(str(found.severity), found.cell, found.check) for found in diagnosis.findings]


@pytest.mark.usefixtures("healthy")
def test_all_is_well(conf: cfg.ConfigOpts) -> None:
    """A deployment as it should be has no findings, and it is told how much was looked at."""
    diagnosis = Examination(conf).run()
    assert told(diagnosis) == []
    # of the store 4, of each cell its database and that one's certificate, and 8 that need nobody's answer
    assert (diagnosis.cells, diagnosis.checks, diagnosis.worst) == (3, 4 + 3 * 2 + 8, Severity.INFO)
    assert diagnosis.seconds < 5


def test_the_worst_is_first(conf: cfg.ConfigOpts, healthy: list[Cell], store: Store) -> None:
    """Errors come before warnings, and those before what is only to be known; in these the cells by name."""
    store.update_cell(healthy[2].uuid, transport_url=f"rabbit://me:{SECRET}@127.0.0.1:1/?ssl=true")
    store.update_cell(healthy[1].uuid, database_connection="sqlite:////no/such/file")
    diagnosis = Examination(conf).run()
    assert told(diagnosis) == [
        ("error", "cell1", "databases"),
        ("error", "cell2", "brokers"),
        ("warning", "cell2", "urls"),
        ("info", "-", "secrets"),
    ]
    assert diagnosis.worst is Severity.ERROR
    assert SECRET not in repr(diagnosis)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.usefixtures("healthy")
def test_each_check_alone(conf: cfg.ConfigOpts, check: str) -> None:
    """Each check can be done without the others."""
    diagnosis = Examination(conf, checks={check}).run()
    assert told(diagnosis) == []
    assert bool(diagnosis.checks) is (check not in {"brokers", "clusters", "services"})  # of which there are none here


def test_only_what_is_wanted(conf: cfg.ConfigOpts, new_cell: Callable[..., Cell]) -> None:
    """What another check would say is not said; that a server does not answer always is."""
    new_cell("cell1", database_connection="sqlite:////no/such/file")
    for check in ("databases", "mappings"):
        assert told(Examination(conf, checks={check}).run()) == [("error", "cell1", "databases")]
    assert told(Examination(conf, checks={"cells"}).run()) == [("error", "-", "cells")]
    assert told(Examination(conf, checks=set(CHECKS) - {"cells", "databases", "tables", "mappings"}).run()) == [
        ("error", "cell1", "databases")
    ]


def test_numbers_and_hosts_are_compared(
    conf: cfg.ConfigOpts, healthy: list[Cell], store: Store, tmp_path: Path
) -> None:
    """What the cells know and what is mapped is compared, cell by cell."""
    with closing(sqlite3.connect(tmp_path / "cell1")) as connection, connection:
        connection.execute("INSERT INTO instances VALUES (1, 'a', 'p', 'u', 'host1', 0, 0)")
        connection.execute("INSERT INTO compute_nodes VALUES ('host1', 0, 0)")
    assert told(Examination(conf).run()) == [("warning", "cell1", "hosts"), ("warning", "cell1", "mappings")][::-1]
    store.create_instance("a", project_id="p", cell_id=healthy[1].id)
    store.create_host("host1", cell_id=healthy[2].id)
    assert told(Examination(conf, checks={"mappings", "hosts"}).run()) == [
        ("error", "cell1", "hosts"),
        ("info", "cell2", "hosts"),
    ]
    store.update_host("host1", cell_id=healthy[1].id)
    assert told(Examination(conf).run()) == []


def test_overlaps(conf: cfg.ConfigOpts, healthy: list[Cell], store: Store, tmp_path: Path) -> None:
    """Cells that share a database are told of."""
    store.update_cell(healthy[2].uuid, database_connection=f"sqlite:///{tmp_path}/../{tmp_path.name}/cell1")
    assert told(Examination(conf, checks={"overlaps"}).run()) == [("error", "cell1", "overlaps")]


def test_drains(conf: cfg.ConfigOpts, healthy: list[Cell], store: Store) -> None:
    """A cell that is drained is looked at, and told of."""
    store.drain_cell(healthy[1].uuid)
    assert told(Examination(conf).run()) == [("info", "cell1", "drains")]


def test_services(conf: cfg.ConfigOpts, healthy: list[Cell], tmp_path: Path) -> None:
    """Each service's file is looked at, and one that can't be read does not hide the others."""
    (tmp_path / "one").write_text("[DEFAULT]\ntransport_url = memory://cell1/\n")
    (tmp_path / "two").write_text("[DEFAULT]\ntransport_url = memory://elsewhere/\n")
    (tmp_path / "odd").write_bytes(b"\xff\xfe[DEFAULT]")
    configs = [f"{tmp_path}/{name}" for name in ("odd", "one", "none", "two")]
    assert told(Examination(conf, checks={"services"}, service_configs=configs).run()) == [
        ("error", "-", "services"),
        ("error", "-", "services"),
        ("error", "-", "services"),
        ("info", "cell1", "services"),
    ]
    found = told(Examination(conf, checks={"options"}, service_configs=configs[1:2]).run())
    assert [each[2] for each in found] == ["options"] * 3


def test_secrets(conf: cfg.ConfigOpts, healthy: list[Cell], store: Store, tmp_path: Path) -> None:
    """Plain text among the records, keys that are open, and files of services are all looked at."""
    store.update_cell(healthy[1].uuid, transport_url=f"memory://me:{SECRET}@cell1/")
    KeyRepository(f"{tmp_path}/keys").setup()
    conf.set_override("credential_keys", f"{tmp_path}/keys", group="cellmw")
    assert told(Examination(conf).run()) == [("warning", "cell1", "secrets")]
    (tmp_path / "keys").chmod(0o755)
    (tmp_path / "nova.conf").write_text(f"[DEFAULT]\nadmin_password = {SECRET}\n")
    (tmp_path / "nova.conf").chmod(0o644)
    diagnosis = Examination(conf, checks={"secrets"}, service_configs=[f"{tmp_path}/nova.conf"]).run()
    assert sorted(told(diagnosis)) == [
        ("error", "-", "secrets"),
        ("warning", "-", "secrets"),
        ("warning", "cell1", "secrets"),
    ]


def test_missing_key(conf: cfg.ConfigOpts, healthy: list[Cell], store: Store, tmp_path: Path) -> None:
    """A cell whose record can't be decrypted, or looked up, is told of; it alone is not connected to."""
    KeyRepository(f"{tmp_path}/keys").setup()
    stored = Credentials(f"{tmp_path}/keys", conf).protect(f"sqlite:///{tmp_path}/cell1")
    store.update_cell(healthy[1].uuid, database_connection=stored)
    store.update_cell(healthy[2].uuid, transport_url="env:CELLMW_TEST_NO_SUCH_VARIABLE")
    assert told(Examination(conf).run()) == [("error", "cell1", "urls"), ("error", "cell2", "urls")]
    conf.set_override("credential_keys", f"{tmp_path}/keys", group="cellmw")
    assert told(Examination(conf).run()) == [("error", "cell2", "urls")]


def test_useless_urls(conf: cfg.ConfigOpts, healthy: list[Cell], store: Store) -> None:
    """A cell whose URLs nobody can use is told of once for each, and is not connected to."""
    store.update_cell(healthy[1].uuid, database_connection="access://db/x", transport_url="kafkaesque://bus/")
    assert told(Examination(conf).run()) == [("error", "cell1", "urls")] * 2


def test_cells_of_a_file(conf: cfg.ConfigOpts, healthy: list[Cell], tmp_path: Path) -> None:
    """Where a file stands in the place of the records, its cells are looked at, and who may read it."""
    cells = [
        {
            "id": cell.id,
            "uuid": cell.uuid,
            "name": cell.name,
            "transport_url": cell.reveal_transport_url().replace("//cell", f"//me:{SECRET}@cell"),
            "database_connection": cell.reveal_database_connection(),
        }
        for cell in healthy[:2]
    ]
    path = tmp_path / "cells.json"
    path.write_text(json.dumps({"cells": cells}))
    path.chmod(0o600)
    conf.set_override("cells_config", str(path), group="cellmw")
    diagnosis = Examination(conf).run()
    assert (told(diagnosis), diagnosis.cells) == ([], 2)
    path.chmod(0o604)
    assert told(Examination(conf).run()) == [("warning", "-", "secrets")]


# -- what does not answer ----------------------------------------------------------------------------------------------


def test_api_database_that_refuses(conf: cfg.ConfigOpts) -> None:
    """Why the API database is of no use is said, and which option leads to it."""
    conf.set_override("connection", f"mysql+pymysql://me:{SECRET}@127.0.0.1:1/api", group="api_database")
    (found,) = Examination(conf).run().findings
    assert (str(found.severity), found.check) == ("error", "api-database")
    assert found.what.endswith("refuses the connection: nobody listens there")
    assert found.todo == "start it, open the way to it, or record another URL: [api_database] connection"


def test_frozen_among_healthy_ones(
    conf: cfg.ConfigOpts, healthy: list[Cell], new_cell: Callable[..., Cell], silent: Callable[[], Somebody]
) -> None:
    """Frozen brokers and databases are told of, and nothing else is: all of it in little more than the timeout."""
    for number, scheme in enumerate(("mysql+pymysql", "postgresql+psycopg", "mysql+pymysql", "postgresql+psycopg"), 3):
        queue = f"rabbit://me:{SECRET}@{silent().address},me:{SECRET}@{silent().address}/"
        new_cell(
            f"cell{number}", transport_url=queue, database_connection=f"{scheme}://me:{SECRET}@{silent().address}/x"
        )
    begun = monotonic()
    diagnosis = Examination(conf, timeout=2.0, checks=set(CHECKS) - {"secrets"}).run()
    assert monotonic() - begun < 2.0 + SLACK
    errors = [
        ("error", f"cell{number}", check) for number in range(3, 7) for check in ("brokers", "brokers", "databases")
    ]
    assert [each for each in told(diagnosis) if each[0] != "info"] == errors
    assert all("no answer within 2 s" in found.what for found in diagnosis.findings if found.severity is Severity.ERROR)
    assert SECRET not in repr(diagnosis)


@pytest.mark.parametrize("scheme", ["mysql+pymysql", "postgresql+psycopg"])
def test_frozen_api_database(conf: cfg.ConfigOpts, silent: Callable[[], Somebody], scheme: str) -> None:
    """Where the API database is frozen that is an error, and the end: of the cells nothing is known."""
    conf.set_override("connection", f"{scheme}://me:{SECRET}@{silent().address}/api", group="api_database")
    begun = monotonic()
    diagnosis = Examination(conf, timeout=0.5).run()
    assert monotonic() - begun < 0.5 + SLACK
    assert (told(diagnosis), diagnosis.cells) == ([("error", "-", "api-database")], 0)
    assert SECRET not in repr(diagnosis)


def test_key_manager_that_hangs(conf: cfg.ConfigOpts, healthy: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell whose URLs are looked up for ever is told of, and the others are looked at."""
    over, resolve = threading.Event(), Resolver.resolve

    def hang(self: Resolver, cell: Cell) -> Cell:
        if cell.name == "cell1":
            over.wait()
        return resolve(self, cell)

    monkeypatch.setattr(Resolver, "resolve", hang)
    try:
        diagnosis = Examination(conf, timeout=1.0).run()
    finally:
        over.set()
    assert told(diagnosis) == [("error", "cell1", "urls")] * 2
    assert "could not be looked up, or not in time" in diagnosis.findings[0].what


# -- what it can't do --------------------------------------------------------------------------------------------------


def test_not_configured(conf: cfg.ConfigOpts) -> None:
    """Without an API database, or in a cell, there is nothing to examine."""
    with pytest.raises(ConfigError):
        Examination(conf).run()
    conf.set_override("role", "cell", group="cellmw")
    with pytest.raises(UpcallForbidden):
        Examination(conf).run()


def test_worst() -> None:
    """The worst finding says how bad it is; without any nothing is."""
    warning, info = (Finding(severity, "-", "cells", "", "") for severity in (Severity.WARNING, Severity.INFO))
    assert Diagnosis([info, warning], 1, 1, 0.1).worst is Severity.WARNING
    assert Diagnosis([], 1, 1, 0.1).worst is Severity.INFO


def test_manual_has_every_check() -> None:
    """The manual describes each check, and no other."""
    assert re.findall(r"^``([a-z-]+)``$", MANUAL.read_text(), re.MULTILINE) == list(CHECKS)
