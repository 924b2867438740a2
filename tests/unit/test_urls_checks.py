# SPDX-License-Identifier: Apache-2.0
"""Which URLs a cell can have."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import kombu
import oslo_messaging
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oslo_config import cfg
from oslo_messaging._drivers import impl_rabbit

from cellmw.exceptions import UrlRefused
from cellmw.urls import check_database_connection, check_transport_url

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "s3cret"


@pytest.fixture
def conf() -> cfg.ConfigOpts:
    """A configuration with nothing in it."""
    conf = cfg.ConfigOpts()
    conf([])
    return conf


def refusal(check: Callable[[str], object], url: str) -> str:
    """Return why a URL is refused."""
    with pytest.raises(UrlRefused) as refused:
        check(url)
    return str(refused.value)


PASS = [
    "rabbit://user:s3cret@host:5672/",
    "rabbit://u:p@h1:1,u:q@[::1]:65535//v h?heartbeat_rate=3&rabbit_login_method=PLAIN",
    "rabbit://u%40:a%3D%40%3A%25+%23%20%C3%BC%7B%22@h/%C3%BC%20%25%2F",
    "rabbit://u:s3@cret@h/",
    "rabbit://h1,h2/?ssl=true&ssl_ca_file=/etc/ca.pem",
    "fake://",
    "memory://cell1/",
    "kombu+memory:///",
]


def test_transport_url(conf: cfg.ConfigOpts) -> None:
    """A URL that oslo.messaging can use passes without a warning."""
    assert {url: check_transport_url(conf, url) for url in PASS} == {url: [] for url in PASS}


REFUSED_QUEUES = {
    "s3cret": "does not begin with",
    "none:///": "no message queue",
    "nosuch://h/": "no oslo.messaging driver 'nosuch' is installed",
    "kombu+nosuch://h/": "no oslo.messaging driver 'kombu+nosuch'",
    "kombu://h/": "no oslo.messaging driver 'kombu'",
    "s3cret:x@h/": "no oslo.messaging driver of that name",
    "rabbit:h": "no //",
    "rabbit://u:s3cret\n@h/": "control character",
    "rabbit://u:1/s3cret@h/": "an @ behind its hosts",
    "rabbit://u:1?s3cret@h/": "an @ behind its hosts",
    "rabbit://u:1#s3cret@h/": "a #",
    "rabbit://u:1,s3cret@h/": "only some of its hosts",
    "rabbit://u:s3cret@h1,h2/": "only some of its hosts",
    "rabbit://u:s3cret@h1,u@h2/": "only some of its hosts",
    "rabbit://u:s3cret": "port is not a number",
    "rabbit://u:p@h:65536/": "port is not a number",
    "rabbit://u:p@h:0/": "port is not a number",
    "rabbit://u:p@[h/": "a host that can't be one",
    "rabbit://u:p@{host}/": "a brace",
    "rabbit://u:p%2Fs3cret@h/": "a / in a password",
    "rabbit://u%2Fx:s3cret@h/": "a / in a user",
    "rabbit://u:%E9s3cret@h/": "UTF-8",
    "rabbit://u:p@h/a%23b": "virtual host has a # or a ?",
    "rabbit://u:p@h/a%3Fb": "virtual host has a # or a ?",
    "rabbit://u:p@h/a%3Bb": "virtual host has a ;",
    "rabbit://u:p@h/a%2541b": "virtual host has a % and two",
    "rabbit://u:p@h/a%09b": "virtual host has a control character",
    "rabbit://h/?nosuch=s3cret": "option 'nosuch' is none of those",
    "rabbit://h/?heartbeat_rate=s3cret": "option 'heartbeat_rate' takes another integer",
    "rabbit://h/?ssl=true&ssl=false": "option 'ssl' takes another boolean",
    "rabbit://h/?rabbit_login_method=s3cret": "takes one of PLAIN",
    "rabbit://h/?ssl": "option 'ssl' has no value",
    "rabbit://h/?ssl=true&ssl_version=s3cret": "no such TLS version",
    "rabbit://h/?rpc_conn_pool_size=1": "lower than 'conn_pool_min_size'",
    "rabbit://h/?rabbit_stream_fanout=true": "'rabbit_qos_prefetch_count'",
}


def test_transport_url_is_refused(conf: cfg.ConfigOpts) -> None:
    """What oslo.messaging, or its driver, would fail on or silently misread is refused, and no value is quoted."""
    said = {url: refusal(lambda url: check_transport_url(conf, url), url) for url in REFUSED_QUEUES}
    assert {
        url: message for url, message in said.items() if REFUSED_QUEUES[url] not in message or SECRET in message
    } == {}


@pytest.mark.parametrize(
    ("url", "warning"),
    [
        ("rabbit://u:p@h/?ssl=true", "TLS without an ssl_ca_file"),
        ("kombu+amqps://u:p@h/", "TLS without an ssl_ca_file"),
        ("rabbit://u:p@h/?ssl=true&ssl_version=TLSv1_2", "nothing is verified"),
        ("rabbit://u:p@h/?ssl_ca_file=/ca.pem", "'ssl_ca_file' has no effect"),
        ("rabbit:///", "names no host"),
    ],
)
def test_transport_url_is_doubtful(conf: cfg.ConfigOpts, url: str, warning: str) -> None:
    """What works and is hardly meant is warned of."""
    (doubt,) = check_transport_url(conf, url)
    assert warning in doubt


def test_options_of_the_configuration_count(conf: cfg.ConfigOpts) -> None:
    """What the query does not say the configuration does."""
    check_transport_url(conf, "rabbit://h/")
    conf.set_override("ssl", True, "oslo_messaging_rabbit")
    assert len(check_transport_url(conf, "rabbit://h/")) == 1
    assert check_transport_url(conf, "rabbit://h/?ssl_ca_file=/ca.pem") == []


def test_no_queue(conf: cfg.ConfigOpts) -> None:
    """A cell that may be without a queue can have none:///."""
    assert check_transport_url(conf, "none:///", may_have_no_queue=True) == []


DATABASES = {
    "mysql+pymysql://u:a%40b@h:3306/d?charset=utf8": 0,
    "postgresql+psycopg://u@[::1]/d": 0,
    "sqlite:////var/lib/x.db": 0,
    "sqlite:///x.db": 1,
    "sqlite://": 1,
    "mysql+pymysql://u:p@h/": 1,
    "mysql+pymysql://%C3%BC:%C3%BC@h/d": 1,
}
"""URLs that pass -> how much is doubtful about them."""


def test_database_connection() -> None:
    """A URL that SQLAlchemy can use passes; what is hardly meant is warned of."""
    assert {url: len(check_database_connection(url)) for url in DATABASES} == DATABASES


REFUSED_DATABASES = {
    "s3cret": "does not begin with",
    "nosuch://u:s3cret@h/d": "no database by the name of 'nosuch'",
    "mysql+nosuch://u:s3cret@h/d": "no database by the name of 'mysql+nosuch'",
    "oracle+cx_oracle://u:s3cret@h/d": "install cx_Oracle",
    "mysql+pymysql://u:s3cret": "can't read it",
    "mysql+pymysql://u:x@s3cret@h/d": "two @",
    "mysql+pymysql://u:p@h:65536/d": "port is not a number",
    "mysql+pymysql://u:p@{host}/d": "a brace",
    "mysql+pymysql://u:%E9s3cret@h/d": "UTF-8",
    "mysql+pymysql://u:p@h/d?connect_timeout=s3cret": "no such host, database or query",
    "mysql+pymysql://u:%E6%BC%A2s3cret@h/d": "PyMySQL can't send",
    "sqlite://s3cret": "no such host, database or query",
    "mysql+pymysql://u:s3cret\t@h/d": "control character",
}


def test_database_connection_is_refused() -> None:
    """What SQLAlchemy, or its driver, would fail on or misread is refused, and no value is quoted."""
    said = {url: refusal(lambda url: check_database_connection(url), url) for url in REFUSED_DATABASES}
    assert {
        url: message for url, message in said.items() if REFUSED_DATABASES[url] not in message or SECRET in message
    } == {}


TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(list("%41/#?;@:")), min_size=1, max_size=5)


def what_the_driver_makes_of(url: str) -> tuple[str, str, str]:
    """Return the user, the password and the virtual host that kombu gets to see."""
    parsed = oslo_messaging.TransportURL.parse(cfg.ConfigOpts(), url)
    connection = kombu.Connection(impl_rabbit.Connection._transform_transport_url(None, parsed, parsed.hosts[0]))
    return connection.userid, connection.password, connection.virtual_host


@given(user=TEXT, password=TEXT, vhost=TEXT)
def test_what_passes_arrives(user: str, password: str, vhost: str) -> None:
    """The driver for RabbitMQ makes of a URL that passes what stands there; whatever it would change is refused."""
    conf = cfg.ConfigOpts()
    conf([])
    url = f"rabbit://{quote(user, safe='')}:{quote(password, safe='')}@h/{quote(vhost, safe='')}"
    try:
        check_transport_url(conf, url)
    except UrlRefused:
        return
    assert what_the_driver_makes_of(url) == (user, password, vhost)


@pytest.mark.parametrize(
    "url", ["u%2Fx:p@h/v", "u:p%2Fx@h/v", "u:p@h/a%23b", "u:p@h/a%3Fb", "u:p@h/a%3Bb", "u:p@h/a%2541", "u:p@h/a%09b"]
)
def test_what_is_refused_would_not_arrive(url: str) -> None:
    """What is refused for the driver's sake it can't do: where a new version can, it need not be refused any more."""
    parsed = oslo_messaging.TransportURL.parse(cfg.ConfigOpts(), f"rabbit://{url}")
    wanted = (parsed.hosts[0].username, parsed.hosts[0].password, parsed.virtual_host)
    try:
        made = what_the_driver_makes_of(f"rabbit://{url}")
    except ValueError:
        return
    assert made != wanted


def test_database_driver_for_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver for asyncio is refused."""
    monkeypatch.setattr("sqlalchemy.dialects.sqlite.aiosqlite.dialect.import_dbapi", lambda: None)
    with pytest.raises(UrlRefused, match="asyncio"):
        check_database_connection("sqlite+aiosqlite:////x.db")


@given(text=st.text(max_size=7), scheme=st.sampled_from(["rabbit", "mysql+pymysql", "sqlite", "postgresql+psycopg"]))
def test_never_fails_otherwise(text: str, scheme: str) -> None:
    """Whatever stands in a URL, it passes or is refused."""
    conf = cfg.ConfigOpts()
    conf([])
    for check in (lambda url: check_transport_url(conf, url), check_database_connection):
        try:
            check(f"{scheme}://{text}")
        except UrlRefused:
            continue
