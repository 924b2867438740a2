# SPDX-License-Identifier: Apache-2.0
"""What is found out about the hosts of a URL, and what is made of it. Real clusters are in tests/services/brokers."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from contextlib import ExitStack, closing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import amqp.transport
import oslo_messaging
import pytest
from oslo_messaging._drivers import impl_rabbit

from cellmw.queues import brokers as module
from cellmw.queues import causes
from cellmw.queues.brokers import Brokers, Connection
from cellmw.queues.handshake import PATIENCE, Address
from cellmw.queues.message_queue import register_messaging_groups
from tests.servers.certificates import Authority
from tests.unit.somebody import Somebody

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from oslo_config import cfg

SECRET = "sesame"

START = b"\x01\x00\x00\x00\x00\x01\xf6"

ONE, TWO, THREE = (Address(host, 5672) for host in ("one", "two", "three"))

THREE_HOSTS = f"rabbit://me:{SECRET}@one,me:{SECRET}@two,me:{SECRET}@three/"


@pytest.fixture
def brokers_of(conf: cfg.ConfigOpts) -> Callable[[str], Brokers | None]:
    """Return the brokers of a URL."""
    register_messaging_groups(conf)
    return lambda url: Brokers.of(oslo_messaging.get_rpc_transport(conf, url)._driver)


@pytest.fixture
def somebody() -> Iterator[Callable[..., Somebody]]:
    """Have somebody listen, who gives this answer, or none."""
    with ExitStack() as ends:
        yield lambda *arguments: ends.enter_context(closing(Somebody(*arguments)))


@pytest.mark.parametrize(
    ("url", "hosts"), [("rabbit:///", []), ("rabbit://a:1,b:2/", ["a"])], ids=["this machine", "one of two"]
)
def test_one_alone(
    brokers_of: Callable[[str], Brokers], monkeypatch: pytest.MonkeyPatch, url: str, hosts: list[str]
) -> None:
    """To log in at one host is to connect as the library does, also where the URL leaves the host to the library."""
    connected: list[Any] = []

    def connect(_: object, url: Any, *__: object, **___: object) -> Any:
        connected.extend(host.hostname for host in url.hosts)
        raise ConnectionRefusedError

    monkeypatch.setattr(impl_rabbit, "Connection", connect)
    brokers = brokers_of(url)
    with pytest.raises(ConnectionRefusedError):
        brokers.try_out(brokers.addresses[0])
    assert connected == hosts


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        (THREE_HOSTS, [ONE, TWO, THREE]),
        ("rabbit://me:it@one:1/", [("one", 1)]),
        ("rabbit:///", [("localhost", 5672)]),
        ("memory://cell1/", None),
        ("kombu+memory://", None),
    ],
    ids=["three", "one", "none", "in memory", "kombu's"],
)
def test_of(brokers_of: Callable[[str], Brokers | None], url: str, addresses: list[Address] | None) -> None:
    """The hosts of a RabbitMQ are those in its URL; other drivers have none."""
    brokers = brokers_of(url)
    assert (brokers and brokers.addresses) == addresses


# -- TLS --------------------------------------------------------------------------------------------------------------


def the_librarys(conf: Any, hostname: str | None = "one") -> ssl.SSLContext:
    """Return what the library makes of the options of a URL."""
    names = ("ssl", "ssl_version", "ssl_key_file", "ssl_cert_file", "ssl_ca_file")
    options = {name: getattr(conf.oslo_messaging_rabbit, name) for name in names}
    connection = SimpleNamespace(**options, ssl_server_hostname=hostname)
    connection.validate_ssl_version = impl_rabbit.Connection.validate_ssl_version
    transport = amqp.transport.SSLTransport("one", ssl=impl_rabbit.Connection._fetch_ssl_params(connection))
    with socket.socket() as plain, transport._wrap_socket(plain, **transport.sslopts) as wrapped:
        context: ssl.SSLContext = wrapped.context
        return context


@pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLSv1_2:DeprecationWarning")
@pytest.mark.parametrize(
    ("query", "verified", "host"),
    [
        ("ssl_ca_file={ca}", True, True),
        ("ssl_ca_file={ca}&ssl_version=TLSv1_2", True, True),
        ("ssl_ca_file={ca}&ssl_enforce_hostname_verification=false", True, True),
        ("", True, False),
        ("ssl_version=TLSv1_2", False, False),
    ],
)
def test_tls(
    brokers_of: Callable[[str], Brokers | None], tmp_path: Path, query: str, verified: bool, host: bool
) -> None:
    """A probe verifies what the library does, no more and no less."""
    (tmp_path / "ca.pem").write_text(Authority("ours").certificate)
    brokers = brokers_of(f"rabbit://me:{SECRET}@one/?ssl=true&{query.format(ca=tmp_path / 'ca.pem')}")
    assert brokers is not None
    ours, librarys = brokers._tls(), the_librarys(brokers._conf)
    assert ours is not None
    expected = (ssl.CERT_REQUIRED if verified else ssl.CERT_NONE, host)
    assert (librarys.verify_mode, librarys.check_hostname) == expected
    assert (ours.verify_mode, ours.check_hostname) == expected
    assert ours.cert_store_stats() == librarys.cert_store_stats()


def test_tls_files(brokers_of: Callable[[str], Brokers | None], tmp_path: Path) -> None:
    """The files are read anew each time, and one that is missing is an error of the probe."""
    path = tmp_path / "ca.pem"
    brokers = brokers_of(f"rabbit://me:{SECRET}@one/?ssl=true&ssl_ca_file={path}")
    assert brokers is not None
    with pytest.raises(FileNotFoundError):
        brokers.answer()
    assert brokers.misfit(ConnectionResetError()) == causes.cause_of(FileNotFoundError())
    path.write_text(Authority("ours").certificate)
    tls = brokers._tls()
    assert tls is not None
    assert len(tls.get_ca_certs()) == 1


def server_side(folder: Path) -> ssl.SSLContext:
    """Return a server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*Authority("theirs").for_server("127.0.0.1").write(folder, "server"))
    return context


def url_to(*listening: Somebody, query: str = "") -> str:
    """Return the URL that leads there."""
    hosts = ",".join(f"me:{SECRET}@{one.address}" for one in listening)
    return f"rabbit://{hosts}/{query and f'?{query}'}"


def test_misfit(brokers_of: Callable[[str], Brokers], somebody: Callable[..., Somebody], tmp_path: Path) -> None:
    """Where a broker has hung up without a word it is found out whether it speaks TLS, and what else it wants."""
    plain, tls, strict = somebody(START), somebody(START, server_side(tmp_path)), server_side(tmp_path)
    strict.verify_mode = ssl.CERT_REQUIRED
    end = ConnectionResetError()
    assert brokers_of(url_to(tls)).misfit(end) == causes.ONLY_TLS
    assert brokers_of(url_to(plain)).misfit(end) == ""
    assert brokers_of(url_to(plain, tls)).misfit(end) == causes.ONLY_TLS
    for other in (plain, somebody(lambda heard: START if heard.startswith(b"AMQP") else b"")):
        assert brokers_of(url_to(other, query="ssl=true")).misfit(end) == causes.NO_TLS
    wants = brokers_of(url_to(somebody(START, strict), query="ssl=true&ssl_version=TLSv1_2")).misfit(end)
    assert wants == "it wants a certificate from us: ssl_cert_file and ssl_key_file"
    assert SECRET.encode() not in plain.heard + tls.heard


def test_no_misfit(brokers_of: Callable[[str], Brokers], somebody: Callable[..., Somebody]) -> None:
    """What says by itself what is wrong is not asked again."""
    listening = somebody(START)
    assert brokers_of(url_to(listening, query="ssl=true")).misfit(ConnectionRefusedError()) == ""
    assert not listening.heard


@pytest.mark.parametrize(("hostname", "seen"), [(None, None), ("one", "one")])
def test_each_hosts_own_name(hostname: str | None, seen: str | None) -> None:
    """Of several hosts kombu puts the name of each into the parameters; of one the library's is left."""
    connection = Connection.__new__(Connection)
    connection.ssl, connection.ssl_ca_file, connection.ssl_server_hostname = True, "ca", hostname
    connection.ssl_version = connection.ssl_key_file = connection.ssl_cert_file = ""
    params = connection._fetch_ssl_params()
    for name in ("one", "two"):
        assert params["server_hostname"] == seen
        if params["server_hostname"] is None:
            params["server_hostname"] = name
            assert dict(**params)["server_hostname"] == name
    assert params["ca_certs"] == "ca"


def test_no_parameters() -> None:
    """Without TLS, and without any parameter of it, there is nothing to put a name into."""
    connection = Connection.__new__(Connection)
    connection.ssl = False
    assert connection._fetch_ssl_params() is False
    connection.ssl, connection.ssl_version = True, ""
    connection.ssl_key_file = connection.ssl_cert_file = connection.ssl_ca_file = ""
    assert connection._fetch_ssl_params() is True


# -- one cluster ------------------------------------------------------------------------------------------------------


class Asked:
    """What the hosts say, instead of them. Lives as long as its test.

    :ivar names: what each says
    :ivar apart: the hosts that are not in the first one's cluster
    :ivar pairs: which were looked at more closely
    :ivar error: what comes of that, if anything does
    :ivar times: how often all were asked
    """

    def __init__(self) -> None:
        self.names: dict[Address, str] = {}
        self.apart: set[Address] = set()
        self.pairs: list[tuple[Address, Address]] = []
        self.error: Exception | None = None
        self.times = 0

    def cluster_names(self, addresses: list[Address], tls: Any, patience: float) -> dict[Address, str]:
        assert (tls, patience) == (None, PATIENCE)
        self.times += 1
        return {address: name for address, name in self.names.items() if address in addresses}

    def shares(self, first: Address, other: Address) -> bool:
        self.pairs.append((first, other))
        if self.error is not None:
            raise self.error
        return other not in self.apart


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Have nobody asked."""
    asked = Asked()
    monkeypatch.setattr(module, "cluster_names", asked.cluster_names)
    monkeypatch.setattr(Brokers, "_shares", asked.shares)
    return asked


@pytest.fixture
def compared(
    brokers_of: Callable[[str], Brokers], caplog: pytest.LogCaptureFixture
) -> Callable[..., list[logging.LogRecord]]:
    """Return what is logged above DEBUG when the hosts of a URL are compared, twice."""

    def compared(url: str = THREE_HOSTS) -> list[logging.LogRecord]:
        brokers = brokers_of(url)
        for _ in range(2):
            brokers.compare("the queue of cell cell1")
            for thread in threading.enumerate():
                if thread.name == "cellmw-clusters":
                    thread.join()
        assert SECRET not in caplog.text
        return [record for record in caplog.records if record.levelno > logging.DEBUG]

    caplog.set_level(logging.DEBUG, "cellmw")
    return compared


def test_apart(asked: Asked, compared: Callable[..., list[logging.LogRecord]]) -> None:
    """Hosts that are not one cluster are named once, with their clusters, and not those that are all right."""
    asked.names = {ONE: "here", TWO: "too", THREE: "elsewhere"}
    asked.apart = {THREE}
    (record,) = compared()
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith(
        "the queue of cell cell1: its hosts are not one cluster (one:5672 is here, three:5672 is elsewhere), "
    )
    assert len(asked.pairs) == 2
    assert asked.times == 1


def test_alike(asked: Asked, compared: Callable[..., list[logging.LogRecord]]) -> None:
    """Hosts that say the same are not looked at more closely, and a host that is down says nothing."""
    asked.names = {ONE: "here", THREE: "here"}
    assert compared() == []
    assert asked.pairs == []


def test_nobody_answers(asked: Asked, compared: Callable[..., list[logging.LogRecord]]) -> None:
    """Where nobody says anything there is nothing to say."""
    assert compared() == []


def test_together(asked: Asked, compared: Callable[..., list[logging.LogRecord]]) -> None:
    """Hosts that call their cluster differently and have the same queues are one."""
    asked.names = {ONE: "one's", TWO: "two's", THREE: "one's"}
    assert compared() == []
    assert len(asked.pairs) == 1


def test_unknown(
    asked: Asked, compared: Callable[..., list[logging.LogRecord]], caplog: pytest.LogCaptureFixture
) -> None:
    """Where it can't be found out nothing is claimed."""
    asked.names = {ONE: "one's", TWO: "two's"}
    asked.error = amqp.AccessRefused(SECRET)
    assert compared() == []
    assert "is not known: AccessRefused 403" in caplog.text


def test_one_host(asked: Asked, compared: Callable[..., list[logging.LogRecord]]) -> None:
    """One host is not compared with anything."""
    asked.names = {ONE: "one's", TWO: "two's"}
    assert compared(f"rabbit://me:{SECRET}@one/") == []
    assert asked.times == 0
