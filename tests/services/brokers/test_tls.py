# SPDX-License-Identifier: Apache-2.0
"""TLS for each cell by itself, on real brokers: what is let through, and in which words what is not."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cellmw.exceptions import CellUnavailable
from tests.servers.certificates import Authority
from tests.servers.private import free_ports
from tests.services.brokers.conftest import PATIENCE, tell, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.servers.private_rabbitmq import Node, TlsPort
    from tests.services.brokers.conftest import Service, Worker

HOST = "127.0.0.1"

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")


class Tls(NamedTuple):
    """A node with ports for TLS, and who has signed for it.

    :ivar authority: who has signed all its certificates
    :ivar ca: the file with the authority's certificate
    :ivar other_ca: a file with that of an authority which has signed nothing
    :ivar ours: the files with a certificate for clients, and its key
    :ivar sound: the port that is as it should be
    :ivar expired: the one with an expired certificate
    :ivar strict: the one that wants a certificate from its clients
    """

    authority: Authority
    ca: Path
    other_ca: Path
    ours: tuple[Path, Path]
    sound: TlsPort
    expired: TlsPort
    strict: TlsPort


@pytest.fixture(scope="module")
def tls(nodes: list[Node], tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """The node that is alone, with three ports for TLS."""
    folder = tmp_path_factory.mktemp("tls")
    authority, other = Authority("cell1"), Authority("other")
    for signer, name in ((authority, "ca"), (other, "other")):
        (folder / f"{name}.pem").write_text(signer.certificate)
    return Tls(
        authority=authority,
        ca=folder / "ca.pem",
        other_ca=folder / "other.pem",
        ours=authority.for_client("us").write(folder, "us"),
        sound=nodes[3].listen(authority.for_server(HOST)),
        expired=nodes[3].listen(authority.for_server(HOST, expired=True)),
        strict=nodes[3].listen(authority.for_server(HOST), clients=authority),
    )


def url_of(port: int, query: str = "", host: str = HOST, vhost: str = "") -> str:
    """Return the transport URL that leads there, to the vhost that each broker has where none is named."""
    return f"rabbit://guest:guest@{host}:{port}/{vhost}{query and f'?{query}'}"


def test_beside_plain(
    tls: Tls,
    cluster: list[Node],
    vhost: str,
    serve_cells: Callable[..., Service],
    start_worker: Callable[[str, str], Worker],
) -> None:
    """One process serves a cell by TLS, with a CA of its own, and another one without; each gets what is its own."""
    urls = {
        "cell1": url_of(tls.sound.number, f"ssl=true&ssl_ca_file={tls.ca}", vhost=vhost),
        "cell2": url_of(cluster[0].port, vhost=vhost),
    }
    workers = {cell: start_worker(cell, url) for cell, url in urls.items()}
    service = serve_cells(**urls)
    for number, cell in enumerate(urls):
        service.cast(cell, number)
        assert service.call(cell) == cell
    assert [worker.noted.get(timeout=PATIENCE) for worker in workers.values()] == [0, 1]


def test_our_certificate(tls: Tls, serve_cells: Callable[..., Service]) -> None:
    """A broker that wants a certificate from its clients gets the one that the URL names."""
    certificate, key = tls.ours
    options = f"ssl=true&ssl_ca_file={tls.ca}&ssl_cert_file={certificate}&ssl_key_file={key}"
    service = serve_cells(cell1=url_of(tls.strict.number, options))
    service.cast("cell1", 1)
    service.queue("cell1")._ask()


UNTRUSTED = "its certificate is not signed by a CA that is trusted here: ssl_ca_file"

WRONG = {
    "wrong CA": ("sound", "ssl=true&ssl_ca_file={other}", HOST, UNTRUSTED),
    "expired": ("expired", "ssl=true&ssl_ca_file={ca}", HOST, "its certificate has expired"),
    "another host": ("sound", "ssl=true&ssl_ca_file={ca}", "localhost", "its certificate is for another host"),
    "no certificate of ours": (
        "strict",
        "ssl=true&ssl_ca_file={ca}",
        HOST,
        "it wants a certificate from us: ssl_cert_file and ssl_key_file",
    ),
    "plain on TLS": ("sound", "", HOST, "it speaks TLS, and its URL does not ask for that: ssl=true"),
    "TLS on plain": (
        "plain",
        "ssl=true&ssl_ca_file={ca}",
        HOST,
        "it does not speak TLS, and its URL asks for that: ssl=true",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_refused(
    what: str,
    tls: Tls,
    alone: Node,
    serve_cells: Callable[..., Service],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is wrong with the TLS of a cell is said, at once and with its name, and goes on being said."""
    port, query, host, cause = WRONG[what]
    number = alone.port if port == "plain" else getattr(tls, port).number
    service = serve_cells(cell1=url_of(number, query.format(ca=tls.ca, other=tls.other_ca), host))
    begun = monotonic()
    for _ in range(2):
        with pytest.raises(CellUnavailable) as raised:
            service.cast("cell1", 1)
        assert str(raised.value) == f"cell cell1: its queue does not answer ({cause})"
        assert raised.value.sent == "no"
    tell(capsys, f"{what}: refused twice within {monotonic() - begun:.3f} s")
    # nor does a probe take what is there for a broker that we can use
    with pytest.raises(Exception, match=r".*"):
        service.queue("cell1")._ask()


def test_renewed(tls: Tls, alone: Node, serve_cells: Callable[..., Service]) -> None:
    """A cell whose certificate has expired is down until the certificate is renewed, and not once up between."""
    port = alone.listen(tls.authority.for_server(HOST, expired=True))
    service = serve_cells(cell1=url_of(port.number, f"ssl=true&ssl_ca_file={tls.ca}"))
    with pytest.raises(CellUnavailable):
        service.cast("cell1", 1)
    queue = service.queue("cell1")
    changes: list[bool] = []
    queue.breaker.changed = lambda: changes.append(queue.breaker.is_open)
    probes = []
    ask = queue._ask
    queue._ask = lambda: (probes.append(1), ask())
    until(lambda: len(probes) >= 3)
    assert not changes
    alone.show(port, tls.authority.for_server(HOST))
    until(lambda: changes == [False])
    service.cast("cell1", 2)
    alone.show(port, tls.authority.for_server(HOST, expired=True))
    queue.breaker.suspect()
    until(lambda: queue.breaker.is_open)
    assert queue.breaker.cause == "its certificate has expired in a probe"


def test_each_host_by_its_own_name(tls: Tls, serve_cells: Callable[..., Service]) -> None:
    """Of several hosts each is known by its own name: where one is down, another one's certificate is as good."""
    nobody = f"guest:guest@127.0.0.2:{free_ports(1)[0]}"
    url = url_of(tls.sound.number, f"ssl=true&ssl_ca_file={tls.ca}").replace("guest:", f"{nobody},guest:")
    service = serve_cells(cell1=url)
    service.cast("cell1", 1)
    connections = service.queue("cell1").transport._driver._connection_pool
    for _ in range(8):  # the library goes through the hosts in random order
        connections.create().close()
