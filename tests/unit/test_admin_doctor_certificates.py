# SPDX-License-Identifier: Apache-2.0
"""A certificate -> whether it ends soon; and how that of a database is got to see, by servers of the test's own."""

from __future__ import annotations

import datetime
import socket
import ssl
import struct
import threading
from contextlib import ExitStack, closing, suppress
from time import monotonic
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cellmw.admin.doctor.certificates import judge, of_database, servers
from tests.servers.certificates import Authority
from tests.unit.somebody import Somebody

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECRET = "open-sesame"

GREETING = b"\x0a5.5.5-10.11.6-MariaDB\0" + b"\1\0\0\0" + b"scramble" + b"\0" + b"{}" + b"\x21" * 20


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Who has signed all certificates."""
    return Authority("ours")


def in_der(pem: str) -> bytes:
    """Return a certificate as servers show it."""
    return x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("days", "passed", "told"),
    [
        (31, 0, None),
        (29, 0, ("warning", "its certificate ends in 28 days, on ")),
        (2, 0, ("warning", "its certificate ends in 1 day, on ")),
        (1, 0, ("warning", "its certificate ends in 0 days, on ")),
        (1, 2, ("error", "its certificate has expired on ")),
        (99, -11, ("error", "its certificate is not valid before ")),
    ],
    ids=["a month", "less", "in two days", "tomorrow", "yesterday", "not yet"],
)
def test_judge(authority: Authority, days: int, passed: int, told: tuple[str, str] | None) -> None:
    """A certificate that is valid for a month and more is as it should be; any other is told of."""
    certificate = in_der(authority.for_server("one", days=days).certificate)
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=passed)
    found = [
        (str(each.severity), each.cell, each.check, each.what)
        for each in judge("cell1", "the broker", certificate, now)
    ]
    assert len(found) == (told is not None)
    for severity, cell, check, what in found:
        assert told is not None
        assert (severity, cell, check) == (told[0], "cell1", "certificates")
        assert what.startswith(f"the broker: {told[1]}")


class Database:
    """Listens as a database does, and goes on in TLS where that is asked for. Lives as long as its test.

    :ivar heard: what was said to it in plain text
    """

    def __init__(self, greeting: bytes, wanted: int, answer: bytes, tls: ssl.SSLContext) -> None:
        self.heard = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._listen, args=(greeting, wanted, answer, tls))
        self._thread.start()

    def _listen(self, greeting: bytes, wanted: int, answer: bytes, tls: ssl.SSLContext) -> None:
        with self._listener.accept()[0] as plain, suppress(OSError):
            plain.sendall(greeting)
            while len(self.heard) < wanted and (heard := plain.recv(wanted - len(self.heard))):
                self.heard += heard
            plain.sendall(answer)
            with tls.wrap_socket(plain, server_side=True):
                """Which shows the certificate."""

    def close(self) -> None:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join()
        self._listener.close()


def greeting_of(capabilities: int) -> bytes:
    """Return how a MySQL begins."""
    payload = GREETING.replace(b"{}", struct.pack("<H", capabilities))
    return struct.pack("<I", len(payload))[:3] + b"\0" + payload


@pytest.fixture
def database(authority: Authority, tmp_path: Path) -> Iterator[Callable[..., Database]]:
    """Have a database listen."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*authority.for_server("127.0.0.1").write(tmp_path, "server"))
    with ExitStack() as ends:

        def database(greeting: bytes = b"", wanted: int = 0, answer: bytes = b"") -> Database:
            return ends.enter_context(closing(Database(greeting, wanted, answer, tls)))

        yield database


def shown(tmp_path: Path) -> bytes:
    """Return the certificate that the databases show."""
    return in_der((tmp_path / "server.pem").read_text())


def shown_by(url: str, patience: float) -> list[bytes | None]:
    """Return what the servers of a database show."""
    return [of_database(url, server, patience) for server in servers(url)]


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
def test_postgresql(database: Callable[..., Database], tmp_path: Path, mode: str) -> None:
    """PostgreSQL is asked for TLS in its own way, and shows its certificate, whoever has signed it."""
    one = database(wanted=8, answer=b"S")
    url = f"postgresql+psycopg://me:{SECRET}@127.0.0.1:{one.port}/nova?sslmode={mode}"
    assert shown_by(url, 20) == [shown(tmp_path)]
    assert one.heard == b"\0\0\0\x08\x04\xd2\x16\x2f"


@pytest.mark.parametrize("query", ["ssl_ca=/ca", "ssl_verify_cert=true", "ssl_key=/key&charset=utf8"])
def test_mysql(database: Callable[..., Database], tmp_path: Path, query: str) -> None:
    """MySQL greets first, is told that TLS is wanted, and shows its certificate."""
    one = database(greeting_of(0xFFFF), wanted=36)
    assert shown_by(f"mysql+pymysql://me:{SECRET}@127.0.0.1:{one.port}/nova?{query}", 20) == [shown(tmp_path)]
    assert one.heard[:4] == b"\x20\0\0\x01"
    assert int.from_bytes(one.heard[4:8], "little") & 0x800
    assert SECRET.encode() not in one.heard


@pytest.mark.parametrize(
    "url",
    [
        "mysql+pymysql://127.0.0.1:1/nova",
        "mysql+pymysql://127.0.0.1:1/nova?ssl_disabled=true",
        "postgresql+psycopg://127.0.0.1:1/nova",
        "postgresql+psycopg://127.0.0.1:1/nova?sslmode=prefer",
        "postgresql+psycopg:///nova?host=/run&sslmode=require",
        "sqlite:////tmp/x?ssl_ca=/ca",
    ],
)
def test_no_tls(url: str) -> None:
    """A database that is not spoken to by TLS alone is not asked: nobody looks at its certificate."""
    assert servers(url) == []


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mysql+pymysql://db1/nova?ssl_ca=/ca", [("db1", 3306)]),
        ("postgresql+psycopg://[::1]:6432/nova?sslmode=require", [("::1", 6432)]),
        ("postgresql+psycopg:///nova?host=db1:1&host=db2:2&sslmode=require", [("db1", 1), ("db2", 2)]),
        ("postgresql+psycopg:///nova?host=db1,db2&port=1,2&sslmode=require", [("db1", 1), ("db2", 2)]),
        ("postgresql+psycopg:///nova?host=db1,/run,db2&sslmode=require", [("db1", 5432), ("db2", 5432)]),
        ("postgresql+psycopg:///nova?host=db1,db2&port=1,2,3&sslmode=require", []),
        ("postgresql+psycopg:///?service=nova&sslmode=require", []),
        ("mysql+pymysql:///nova?unix_socket=/run/mysqld.sock&ssl_ca=/ca", []),
    ],
)
def test_servers(url: str, expected: list[tuple[str, int]]) -> None:
    """A database can have several servers, in each way that libpq takes them; a socket of this machine is none."""
    assert servers(url) == expected


def test_refused(database: Callable[..., Database]) -> None:
    """A server that has no TLS shows no certificate."""
    one = database(wanted=8, answer=b"N")
    assert shown_by(f"postgresql+psycopg://127.0.0.1:{one.port}/x?sslmode=require", 20) == [None]
    one = database(greeting_of(0xF7FF))
    assert shown_by(f"mysql+pymysql://127.0.0.1:{one.port}/x?ssl_ca=/ca", 20) == [None]
    assert one.heard == b""


def test_something_else(database: Callable[..., Database]) -> None:
    """What is no MySQL, as one that says only that it has too many connections, shows none; a half greeting fails."""
    refusal = b"\xff\x10\x04Too many connections"
    one = database(struct.pack("<I", len(refusal)) + refusal)
    assert shown_by(f"mysql+pymysql://127.0.0.1:{one.port}/x?ssl_ca=/ca", 20) == [None]
    with closing(Somebody(b"\x20\0")) as half, pytest.raises(OSError):  # noqa: PT011 - any of them
        shown_by(f"mysql+pymysql://{half.address}/x?ssl_ca=/ca", 0.2)


@pytest.mark.parametrize("url", ["mysql+pymysql://{}/x?ssl_ca=/ca", "postgresql+psycopg://{}/x?sslmode=require"])
def test_silence(url: str) -> None:
    """A server that says nothing is not waited for any longer."""
    begun = monotonic()
    with closing(Somebody(None)) as silent, pytest.raises(TimeoutError):
        shown_by(url.format(silent.address), 0.2)
    assert 0.2 <= monotonic() - begun < 2
