# SPDX-License-Identifier: Apache-2.0
"""How long a look-up in the API database takes that gets no answer: as long as its own deadline says."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from time import monotonic
from typing import TYPE_CHECKING

import pytest
import sqlalchemy
from sqlalchemy import pool

from cellmw import bounds
from cellmw.deadline import after
from cellmw.engines import make_engine
from cellmw.exceptions import DeadlineExceeded, StoreUnavailable
from cellmw.limits import Limits
from cellmw.mapping import Mappings
from cellmw.store import Store, migrations
from tests import servers
from tests.faults.scenario import BlackHole
from tests.functional.conftest import PATIENCE, PROJECT
from tests.servers.addresses import MARIADB, POSTGRESQL
from tests.servers.private import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

INSTANCE = str(uuid.uuid4())


@pytest.fixture
def black_hole() -> Iterator[int]:
    """The port of what takes connections and never says anything."""
    (port,) = free_ports(1)
    with closing(BlackHole(port)):
        yield port


@pytest.mark.parametrize(
    "url",
    [
        POSTGRESQL,
        MARIADB,
    ],
)
def test_driver_gives_up_before_the_deadline(url: str, black_hole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline that is longer than the driver's own connect timeout bounds a look-up all the same."""
    monkeypatch.setattr(bounds, "CONNECT_TIMEOUT", 2)
    address = sqlalchemy.make_url(url).set(port=black_hole).render_as_string(hide_password=False)
    ended = threading.Event()

    def find(store: Store) -> None:
        with pytest.raises(StoreUnavailable):
            store.find_instance(INSTANCE, after(4.0))
        ended.set()

    with Store(make_engine(address, {}, pre_ping=False), Limits(patience=PATIENCE)) as store:
        threading.Thread(target=find, args=(store,), daemon=True).start()
        assert ended.wait(6.0)


@pytest.fixture
def locked_mappings(postgresql_server: sqlalchemy.URL) -> Iterator[tuple[Mappings, sqlalchemy.Connection]]:
    """Mappings of an API database with an instance, and a connection that holds a lock on their table."""
    with servers.postgresql_database(postgresql_server) as url:
        with Store(make_engine(url, {}, pre_ping=False)) as store:
            migrations.sync(store.engine)
            cell = store.create_cell(name="cell1", transport_url="memory://cell1/", database_connection="sqlite://")
            store.create_instance(INSTANCE, project_id=PROJECT, cell_id=cell.id)
        with (
            sqlalchemy.create_engine(url, poolclass=pool.NullPool).connect() as connection,
            Store(make_engine(url, {}, pre_ping=False), Limits(patience=PATIENCE)) as store,
        ):
            connection.exec_driver_sql("LOCK TABLE instance_mappings IN ACCESS EXCLUSIVE MODE")
            yield Mappings(store, ttl=60.0, size=10), connection


def test_two_deadlines(locked_mappings: tuple[Mappings, sqlalchemy.Connection]) -> None:
    """Of two that look up the same mapping at once the one with time left gets it, when the other has given up."""
    mappings, connection = locked_mappings
    with ThreadPoolExecutor(2) as threads:
        hasty = threads.submit(mappings.find, INSTANCE, after(1.0))
        while not mappings._flights._under_way:
            """Until it has begun to look."""
        patient = threads.submit(mappings.find, INSTANCE, after(PATIENCE))
        began = monotonic()
        with pytest.raises((StoreUnavailable, DeadlineExceeded)):
            hasty.result(PATIENCE)
        assert monotonic() - began < PATIENCE / 2
        connection.rollback()
        assert patient.result(PATIENCE).exists
