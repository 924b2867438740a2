# SPDX-License-Identifier: Apache-2.0
"""Where a URL leads."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellmw.exceptions import UrlRefused
from cellmw.urls import database_place, server_kind, transport_place

QUEUES = {
    ("rabbit://u:p@Host/v%20h?ssl=true", "rabbit://x:y@host:5672/v h"): True,
    ("rabbit://u:p@h1,u:p@h2/v", "rabbit://u:p@h3,u:p@h2:5672/v"): True,
    ("rabbit://h", "kombu+amqp://h//"): True,
    ("rabbit:///v", "rabbit://localhost/v"): True,
    ("rabbit://[::1]:5672/", "rabbit://[::1]/"): True,
    ("rabbit://h/a", "rabbit://h/b"): False,
    ("rabbit://h:5671/", "rabbit://h/"): False,
    ("rabbit://h/", "memory://h/"): False,
    ("fake://h/", "memory://h/"): False,
    ("memory://Cell1/", "memory://cell1/"): False,
    ("memory://cell1/", "memory://cell1//?x=y"): True,
    ("none:///", "none:///"): False,
}
"""Two URLs -> whether they lead to the same place."""


def test_transport_place() -> None:
    """Two URLs lead to the same queue where they have a host, its port and the virtual host in common."""
    assert {(one, other): bool(transport_place(one) & transport_place(other)) for one, other in QUEUES} == QUEUES


DATABASES = {
    ("mysql+pymysql://u:p@DB/n%20a?charset=utf8", "mariadb://x@db:3306/n a"): True,
    ("postgresql://u@/d", "postgresql+psycopg://localhost:5432/d"): True,
    ("postgresql://u@/d?host=/run&port=5433", "postgresql://x@/d?host=/run&port=5433"): True,
    ("postgresql://u@/d?host=/run&port=5433", "postgresql://x@/d?host=/run"): False,
    ("postgresql://u@db/d", "mysql://u@db/d"): False,
    ("mysql://u@db/a", "mysql://u@db/b"): False,
    ("mysql://u@db/a", "mysql://u@db/a?unix_socket=/run/x"): False,
    ("sqlite:///a/../x.db", f"sqlite:///{Path.cwd()}/x.db"): True,
    ("sqlite:////a/x.db", "sqlite:////b/x.db"): False,
    ("sqlite:///file:x?uri=true", "sqlite:///file:y?uri=true"): False,
}
"""Two URLs -> whether they lead to the same place."""


def test_database_place() -> None:
    """Two URLs lead to the same database where server, host, port and name are the same, or the file."""
    assert {(one, other): database_place(one) == database_place(other) for one, other in DATABASES} == DATABASES


def test_nowhere() -> None:
    """A URL that can't be read leads nowhere."""
    for place, url in (
        (transport_place, "s3cret"),
        (transport_place, "rabbit://u:s3cret"),
        (transport_place, "u:s3cret@host/v"),
        (transport_place, "rabbit://u:1/s3cret@host/v"),
        (database_place, "s3cret"),
    ):
        with pytest.raises(UrlRefused) as refused:
            place(url)
        assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("mysql+pymysql://h/db", "MariaDB or MySQL"),
        ("mariadb+pymysql://h/db", "MariaDB or MySQL"),
        ("postgresql+psycopg://h/db", "PostgreSQL"),
        ("sqlite://", "SQLite"),
        ("oracle://h/db", "oracle"),
    ],
)
def test_server_kind(url: str, kind: str) -> None:
    """A server has a name for people; one that is not known is called as in its URL."""
    assert server_kind(database_place(url)[0]) == kind
