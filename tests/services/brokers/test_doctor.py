# SPDX-License-Identifier: Apache-2.0
"""What the doctor finds at brokers: clusters and others, and TLS that is sound, and that is not."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from cellmw.admin.doctor.brokers import probes
from cellmw.admin.doctor.probe import run
from cellmw.crew import Crew
from cellmw.limits import Limits
from cellmw.queues import causes
from tests.servers.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from oslo_config import cfg

    from tests.servers.private_rabbitmq import Node

HOST = "127.0.0.1"

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")


@pytest.fixture
def told(conf: cfg.ConfigOpts) -> Callable[..., list[tuple[str, str, str]]]:
    """Return what is told of the brokers at these ports."""

    def told(*ports: int, query: str = "", host: str = HOST, vhost: str = "", timeout: float = 10.0) -> Any:
        url = f"rabbit://{','.join(f'guest:guest@{host}:{port}' for port in ports)}/{vhost}?{query}".rstrip("?")
        asked = list(probes("cell1", url, conf, Limits(patience=timeout)))
        found = run(asked, ("brokers", "certificates", "clusters"), Crew(), timeout)
        return [(str(each.severity), each.check, each.what) for each in found]

    return told


def test_one_cluster(told: Callable[..., Any], cluster: list[Node], vhost: str) -> None:
    """Hosts that are one cluster are as they should be, though each says another name for it."""
    assert told(*(node.port for node in cluster), vhost=vhost) == []


def test_not_one_cluster(told: Callable[..., Any], cluster: list[Node], alone: Node, vhost: str) -> None:
    """Hosts that are not are named, with the names of their clusters."""
    ((severity, check, what),) = told(cluster[0].port, alone.port, vhost=vhost)
    assert (severity, check) == ("error", "clusters")
    assert what.startswith(f"its brokers are not one cluster: {HOST}:{cluster[0].port} is cellmw-")
    assert f"{HOST}:{alone.port} is {alone.name.partition('@')[0]}@" in what


def test_one_is_down(told: Callable[..., Any], cluster: list[Node], vhost: str, kill: Callable[[Node], None]) -> None:
    """Of a cluster the one that is down is told of, and the others are compared."""
    kill(cluster[1])
    assert told(*(node.port for node in cluster), vhost=vhost) == [
        ("error", "brokers", f"the broker {HOST}:{cluster[1].port}: nobody listens there")
    ]


def test_one_is_frozen(told: Callable[..., Any], cluster: list[Node], alone: Node, vhost: str) -> None:
    """A node that is frozen is left in time, and the others are asked meanwhile."""
    alone.process.freeze()
    try:
        begun = monotonic()
        found = told(cluster[0].port, alone.port, vhost=vhost, timeout=2.0)
        assert monotonic() - begun < 4.0
    finally:
        alone.process.thaw()
    assert found == [("error", "brokers", f"the broker {HOST}:{alone.port}: no answer within 2 s")]


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Who has signed all certificates."""
    return Authority("ours")


@pytest.fixture
def query(authority: Authority, tmp_path: Path) -> str:
    """What a URL says that verifies certificates."""
    (tmp_path / "ca.pem").write_text(authority.certificate)
    return f"ssl=true&ssl_ca_file={tmp_path}/ca.pem"


def test_tls(told: Callable[..., Any], alone: Node, authority: Authority, query: str) -> None:
    """A certificate that is sound and lasts is as it should be, and whoever comes without TLS is told to."""
    port = alone.listen(authority.for_server(HOST, days=60)).number
    assert told(port, query=query) == []
    assert told(port) == [("error", "brokers", f"the broker {HOST}:{port}: {causes.ONLY_TLS}")]
    assert told(alone.port, query=query) == [("error", "brokers", f"the broker {HOST}:{alone.port}: {causes.NO_TLS}")]


def test_tls_that_is_wrong(told: Callable[..., Any], alone: Node, authority: Authority, query: str) -> None:
    """A certificate that ends soon, that has expired, and that is for another host is told of as that."""
    port = alone.listen(authority.for_server(HOST, days=20))
    broker = f"the broker {HOST}:{port.number}"
    ((severity, check, what),) = told(port.number, query=query)
    assert (severity, check) == ("warning", "certificates")
    assert what.startswith(f"{broker}: its certificate ends in 19 days, on ")
    alone.show(port, authority.for_server(HOST, expired=True))
    first, (severity, check, what) = told(port.number, query=query)
    assert first == ("error", "brokers", f"{broker}: its certificate has expired")
    assert (severity, check) == ("error", "certificates")
    assert what.startswith(f"{broker}: its certificate has expired on ")
    alone.show(port, authority.for_server("bus.example.org", days=60))
    assert told(port.number, query=query) == [("error", "brokers", f"{broker}: its certificate is for another host")]


def test_our_certificate(
    told: Callable[..., Any], alone: Node, authority: Authority, query: str, tmp_path: Path
) -> None:
    """A broker that wants a certificate of ours is shown the one that the URL names, in each look."""
    certificate, key = authority.for_client("us").write(tmp_path, "us")
    port = alone.listen(authority.for_server(HOST, days=20), clients=authority).number
    found = told(port, query=f"{query}&ssl_cert_file={certificate}&ssl_key_file={key}")
    assert [each[:2] for each in found] == [("warning", "certificates")]
    found = told(port, query=query)
    assert ("error", "brokers") in [each[:2] for each in found]
    assert any("it wants a certificate from us" in each[2] for each in found)
