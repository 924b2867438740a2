# SPDX-License-Identifier: Apache-2.0
"""A transport URL -> what its brokers are asked, and what is told of those that are none, or don't answer."""

from __future__ import annotations

import datetime
import ssl
from contextlib import ExitStack, closing
from time import monotonic
from typing import TYPE_CHECKING, Any

import amqp
import pytest

from cellmw.admin.doctor.brokers import probes
from cellmw.admin.doctor.probe import run
from cellmw.crew import Crew
from cellmw.exceptions import UrlRefused
from cellmw.limits import Limits
from cellmw.queues import causes
from cellmw.queues.brokers import Brokers, NotAllowed
from cellmw.queues.handshake import Address
from tests.servers.certificates import Authority
from tests.servers.private import free_ports
from tests.unit.somebody import Somebody

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from oslo_config import cfg

SECRET = "open-sesame"

START = b"\x01\x00\x00\x00\x00\x01\xf6"

ALERT = b"\x15\x03\x03\x00\x02\x02\x28"
"""What says, in TLS, that it fails."""

SHORT = 0.3

CHECKS = ("brokers", "certificates", "clusters")


@pytest.fixture
def somebody() -> Iterator[Callable[..., Somebody]]:
    """Have somebody listen, who gives this answer, or none."""
    with ExitStack() as ends:
        yield lambda *arguments: ends.enter_context(closing(Somebody(*arguments)))


@pytest.fixture
def told(conf: cfg.ConfigOpts) -> Callable[..., list[tuple[str, str, str]]]:
    """Return what is said of the brokers of a URL, without what to do."""

    def told(*addresses: object, query: str = "", patience: float = 20.0) -> list[tuple[str, str, str]]:
        url = f"rabbit://{','.join(f'me:{SECRET}@{address}' for address in addresses)}/v?{query}".rstrip("?")
        found = run(list(probes("cell1", url, conf, Limits(patience=patience))), CHECKS, Crew(), patience)
        findings = [(str(each.severity), each.check, each.what) for each in found if each.cell == "cell1" and each.todo]
        assert SECRET not in repr(findings)
        return findings

    return told


@pytest.fixture
def let_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Have every broker let us in, or raise this, in place of what it would do after its first frame."""

    def let_in(error: Exception | None = None) -> None:
        def try_out(brokers: Brokers, address: Address) -> None:
            if error is not None:
                raise error

        monkeypatch.setattr(Brokers, "try_out", try_out)

    return let_in


def test_what_there_is_to_ask(conf: cfg.ConfigOpts) -> None:
    """Each host is asked by itself, and several are compared."""
    limits = Limits()
    one = [(probe.checks[0], probe.subject) for probe in probes("cell1", "rabbit://a:1/", conf, limits)]
    assert one == [("brokers", "the broker a:1"), ("certificates", "the broker a:1")]
    two = [
        probe.subject for probe in probes("cell1", "rabbit://a:1,b:2/", conf, limits) if probe.checks[0] == "brokers"
    ]
    assert two == ["the broker a:1", "the broker b:2"]
    (last,) = [probe for probe in probes("cell1", "rabbit://a:1,b:2/", conf, limits) if probe.checks[0] == "clusters"]
    assert (last.cell, last.subject) == ("cell1", "the brokers of its transport URL")


@pytest.mark.parametrize("url", ["memory://cell1/", "kombu+memory://"])
def test_no_brokers(conf: cfg.ConfigOpts, url: str) -> None:
    """A driver without brokers has nothing to be asked."""
    assert list(probes("cell1", url, conf, Limits())) == []


def test_useless_url(conf: cfg.ConfigOpts) -> None:
    """A URL that nobody can use is refused at once."""
    with pytest.raises(UrlRefused):
        list(probes("cell1", "kafkaesque://bus/", conf, Limits()))


def test_all_is_well(told: Callable[..., Any], somebody: Callable[..., Somebody], let_in: Callable[..., None]) -> None:
    """A broker that answers, and lets us in, is as it should be."""
    let_in()
    assert told(somebody(START).address) == []


def test_who_is_not_there(
    told: Callable[..., Any], somebody: Callable[..., Somebody], let_in: Callable[..., None]
) -> None:
    """Of several hosts each is told of that does not answer, though one that does is enough for a service."""
    let_in()
    (closed,) = free_ports(1)
    here, other = somebody(START), somebody(b"HTTP/1.1 400 Bad Request")
    addresses = (here.address, f"127.0.0.1:{closed}", other.address, "no-such-host.invalid:5672")
    assert [each for each in told(*addresses) if each[1] == "brokers"] == [
        ("error", "brokers", f"the broker 127.0.0.1:{closed}: nobody listens there"),
        ("error", "brokers", f"the broker {other.address}: what answers there is no broker"),
        ("error", "brokers", "the broker no-such-host.invalid:5672: nobody knows its name here"),
    ]


@pytest.mark.parametrize("query", ["", "ssl=true"])
def test_what_is_no_name(told: Callable[..., Any], query: str) -> None:
    """What can't be the name of a host is told of once, as one that nobody knows."""
    assert told("a..b:5672", query=query) == [("error", "brokers", "the broker a..b:5672: nobody knows its name here")]


@pytest.mark.parametrize("query", ["", "ssl=true"])
def test_frozen(told: Callable[..., Any], somebody: Callable[..., Somebody], query: str) -> None:
    """A broker that is frozen is left in time."""
    frozen = somebody(None)
    begun = monotonic()
    assert told(frozen.address, query=query, patience=SHORT) == [
        ("error", "brokers", f"the broker {frozen.address}: no answer within 0.3 s")
    ]
    assert monotonic() - begun < SHORT + 2


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NotAllowed("the user has no permission to write"), "the user has no permission to write"),
        (amqp.InternalError(SECRET), "InternalError 541"),
        (FileNotFoundError(SECRET), causes.cause_of(FileNotFoundError())),
    ],
)
def test_not_let_in(
    told: Callable[..., Any],
    somebody: Callable[..., Somebody],
    let_in: Callable[..., None],
    error: Exception,
    text: str,
) -> None:
    """What a broker has against its user is told, and never in its own words, which can quote anything."""
    let_in(error)
    broker = somebody(START)
    assert told(broker.address) == [("error", "brokers", f"the broker {broker.address}: {text}")]


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Who has signed all certificates."""
    return Authority("ours")


@pytest.fixture
def tls(authority: Authority, tmp_path: Path) -> Callable[..., ssl.SSLContext]:
    """Return a server's side of TLS with such a certificate."""

    def tls(host: str = "127.0.0.1", **options: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.for_server(host, **options).write(tmp_path, "server"))
        return context

    return tls


@pytest.fixture
def query(authority: Authority, tmp_path: Path) -> str:
    """What a URL says that verifies certificates."""
    (tmp_path / "ca.pem").write_text(authority.certificate)
    return f"ssl=true&ssl_ca_file={tmp_path}/ca.pem"


def test_tls(
    told: Callable[..., Any],
    somebody: Callable[..., Somebody],
    let_in: Callable[..., None],
    tls: Callable[..., ssl.SSLContext],
    query: str,
) -> None:
    """A certificate that is sound and lasts is as it should be."""
    let_in()
    assert told(somebody(START, tls(days=40)).address, query=query) == []


def test_tls_soon(
    told: Callable[..., Any],
    somebody: Callable[..., Somebody],
    let_in: Callable[..., None],
    tls: Callable[..., ssl.SSLContext],
    query: str,
) -> None:
    """One that ends soon is told of."""
    let_in()
    broker = somebody(START, tls(days=10))
    ((severity, check, text),) = told(broker.address, query=query)
    assert (severity, check) == ("warning", "certificates")
    assert text.startswith(f"the broker {broker.address}: its certificate ends in 9 days, on ")


def test_tls_expired(
    told: Callable[..., Any], somebody: Callable[..., Somebody], tls: Callable[..., ssl.SSLContext], query: str
) -> None:
    """One that has expired is of no use, and it is told since when."""
    broker = somebody(START, tls(expired=True))
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    assert told(broker.address, query=query) == [
        ("error", "brokers", f"the broker {broker.address}: its certificate has expired"),
        (
            "error",
            "certificates",
            f"the broker {broker.address}: its certificate has expired on {yesterday:%Y-%m-%d}",
        ),
    ]


def test_tls_of_another_host(
    told: Callable[..., Any], somebody: Callable[..., Somebody], tls: Callable[..., ssl.SSLContext], query: str
) -> None:
    """One that names another host is of no use."""
    broker = somebody(START, tls("bus.example.org", days=40))
    assert told(broker.address, query=query) == [
        ("error", "brokers", f"the broker {broker.address}: its certificate is for another host")
    ]


def test_tls_of_somebody_else(
    told: Callable[..., Any], somebody: Callable[..., Somebody], tls: Callable[..., ssl.SSLContext], tmp_path: Path
) -> None:
    """One that nobody trusts is of no use, and it is told when it ends all the same."""
    (tmp_path / "other.pem").write_text(Authority("theirs").certificate)
    broker = somebody(START, tls(days=10))
    found = told(broker.address, query=f"ssl=true&ssl_ca_file={tmp_path}/other.pem")
    assert [each[:2] for each in found] == [("error", "brokers"), ("warning", "certificates")]
    assert "is not signed by a CA that is trusted here" in found[0][2]


def test_tls_and_none(
    told: Callable[..., Any], somebody: Callable[..., Somebody], tls: Callable[..., ssl.SSLContext], query: str
) -> None:
    """A broker that is spoken to in the wrong way is told of as that."""
    plain, encrypted = somebody(lambda heard: START if heard.startswith(b"AMQP") else b""), somebody(START, tls())
    assert told(plain.address, query=query) == [("error", "brokers", f"the broker {plain.address}: {causes.NO_TLS}")]
    for other in (encrypted, somebody(ALERT)):
        assert told(other.address) == [("error", "brokers", f"the broker {other.address}: {causes.ONLY_TLS}")]


# -- one cluster -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strangers", "expected"),
    [
        ({}, []),
        (
            {Address("a", 1): "here", Address("b", 2): "there"},
            [("error", "clusters", "its brokers are not one cluster: a:1 is here, b:2 is there")],
        ),
        (
            ConnectionRefusedError(SECRET),
            [
                (
                    "info",
                    "clusters",
                    "whether its brokers are one cluster is not known: ConnectionRefusedError",
                )
            ],
        ),
    ],
    ids=["one", "two", "unknown"],
)
def test_clusters(
    conf: cfg.ConfigOpts, monkeypatch: pytest.MonkeyPatch, strangers: Any, expected: list[tuple[str, str, str]]
) -> None:
    """Hosts of one URL that are not one cluster are an error; where nobody can tell, that is told."""

    def found(brokers: Brokers, patience: float) -> dict[Address, str]:
        if isinstance(strangers, Exception):
            raise strangers
        return dict(strangers)

    monkeypatch.setattr(Brokers, "strangers", found)
    all_probes = probes("cell1", "rabbit://a:1,b:2/", conf, Limits())
    some = [probe for probe in all_probes if "clusters" in probe.checks]
    findings = list(run(some, CHECKS, Crew(), 20))
    assert [(str(each.severity), each.check, each.what) for each in findings] == expected
