# SPDX-License-Identifier: Apache-2.0
"""The servers that the tests start for themselves where nothing answers at the usual addresses."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

import amqp
import pytest
import sqlalchemy

from tests import servers
from tests.servers import private, private_postgresql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]

PATIENCE = 20
"""Seconds after which a process that has to end is given up."""

KINDS = ("postgresql", "mariadb", "rabbitmq")


@pytest.fixture(autouse=True)
def nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every server is looked for at a port at which nothing listens."""
    postgresql, mariadb, rabbitmq = private.free_ports(3)
    monkeypatch.setenv("CELLMW_TEST_POSTGRESQL", f"postgresql+psycopg://postgres@127.0.0.1:{postgresql}/postgres")
    monkeypatch.setenv("CELLMW_TEST_MARIADB", f"mysql+pymysql://root@127.0.0.1:{mariadb}/")
    monkeypatch.setenv("CELLMW_TEST_RABBITMQ", f"rabbit://guest:guest@127.0.0.1:{rabbitmq}/")


def use_database(url: str) -> None:
    """Keep something in a database."""
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE things (name VARCHAR(10))")
        connection.exec_driver_sql("INSERT INTO things VALUES ('one')")
        assert connection.exec_driver_sql("SELECT name FROM things").scalar() == "one"


def use_postgresql(server: sqlalchemy.URL) -> None:
    """Make a database there, and use it."""
    with servers.postgresql_database(server) as url:
        use_database(url)


def use_mariadb(server: sqlalchemy.URL) -> None:
    """Make a database there, and use it."""
    with servers.mariadb_database(server) as url:
        use_database(url)


def use_rabbitmq(server: servers.Broker) -> None:
    """Make a vhost there, and send a message through it."""
    with server.vhost() as url:
        address = urlsplit(url)
        with amqp.Connection(f"{address.hostname}:{address.port}", virtual_host=address.path[1:]) as connection:
            channel = connection.channel()
            channel.queue_declare("things")
            channel.basic_publish(amqp.Message("one"), routing_key="things")
            assert channel.basic_get("things").body == "one"


USES: dict[str, Callable[..., None]] = {
    "postgresql": use_postgresql,
    "mariadb": use_mariadb,
    "rabbitmq": use_rabbitmq,
}


def inhabitants(folder: Path) -> set[int]:
    """Return the processes that work in this folder."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(folder):
                found.add(int(process.name))
    return found


def has_ended(process: int) -> bool:
    """Wait until the process has ended.

    :returns: whether it did in time
    """
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], PATIENCE)[0])
    finally:
        os.close(descriptor)


def skip_where_not_installed(missing: servers.ServerMissing) -> NoReturn:
    """Skip the test, but not where the server is installed and did not start."""
    if "bindep.txt" not in str(missing):
        raise missing
    pytest.skip(str(missing))


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that is open to any user, as the folders above ``tmp_path`` are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_comes_and_goes(kind: str, public_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer is started, can be used, and is gone at the end with its folder and processes."""
    monkeypatch.setattr(tempfile, "tempdir", str(public_folder))
    try:
        with getattr(servers, kind)() as server:
            USES[kind](server)
            processes = inhabitants(public_folder)
    except servers.ServerMissing as missing:
        skip_where_not_installed(missing)
    assert processes
    assert list(public_folder.iterdir()) == []
    assert [process for process in processes if not has_ended(process)] == []


STARTER = """
from tests import servers

with servers.postgresql():
    print("up", flush=True)
    input()
"""


def test_killed(public_folder: Path) -> None:
    """When whoever started it is killed, a server ends, too."""
    try:
        private.program("postgres", "postgresql", *private_postgresql.FOLDERS)
    except servers.ServerMissing as missing:
        skip_where_not_installed(missing)
    command = [sys.executable, "-c", STARTER]
    environment = os.environ | {"TMPDIR": str(public_folder)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as starter:
        assert starter.stdout.readline() == b"up\n"
        processes = inhabitants(public_folder)
        starter.kill()
    assert processes
    assert [process for process in processes if not has_ended(process)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_not_installed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not installed either, the line of bindep.txt is named that would bring it."""
    monkeypatch.setattr(private, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(servers.ServerMissing, match=rf"bindep\.txt: {kind}.* \[test") as missing:
        getattr(servers, kind)().__enter__()
    assert f"CELLMW_TEST_{kind.upper()}" in str(missing.value)
