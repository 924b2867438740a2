# SPDX-License-Identifier: Apache-2.0
"""What a URL template stands for."""

from __future__ import annotations

from urllib.parse import quote

import oslo_messaging
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from oslo_config import cfg

from cellmw.exceptions import UrlRefused
from cellmw.urls import fields, fill_in, literal

WHOLE = "{scheme}://{username}:{password}@{hostname}:{port}/{path}?{query}"

ONE = "rabbit://nova:a%40b@db:5672/v%2Fh?ssl=true&a=b%20c#f"

TWO = "rabbit://u1:p1@h1:1,u2:p2@[::2]/v"


@pytest.mark.parametrize(
    ("template", "default", "url"),
    [
        (WHOLE, ONE, "rabbit://nova:a%40b@db:5672/v/h?ssl=true&a=b%20c"),
        ("{scheme}://{hostname1}:{port1}/{path}_x#{fragment}", ONE, "rabbit://db:5672/v/h_x#f"),
        ("x://h/{password}?p={password}&{query}&q={query}", ONE, "x://h/a%40b?p=a%40b&ssl=true&a=b%20c&q=ssl%3Dtrue%26a%3Db%2520c"),
        ("x://{username2}:{password2}@{hostname2}:{port2},{hostname1}:{port1}/", TWO, "x://u2:p2@[::2],h1:1/"),
        ("x://u:p@[{hostname2}]:5/", TWO, "x://u:p@[::2]:5/"),
        (WHOLE, TWO, "rabbit://u1:p1@h1:1,u2:p2@[::2]/v"),
        ("x://{username}:{password}@h:{port}/", "x://u:p@h1:5,u:p@h2:5", "x://u:p@h:5/"),
        (WHOLE, "mysql://nova@db/x", "mysql://nova@db/x"),
        (WHOLE, "mysql://nova:a,b@db/x", "mysql://nova:a%2Cb@db/x"),
        (WHOLE + "#{fragment}", "sqlite:////var/x.db", "sqlite:////var/x.db"),
        ("{scheme}+pymysql://{hostname}.example/", "mysql://db", "mysql+pymysql://db.example/"),
        ("x://u:{username}@h/", "x://{hostname}:p@h", "x://u:%7Bhostname%7D@h/"),
        ("x://u:{password}@h/", "x://u:%E9@h", "x://u:%E9@h/"),
    ],
)  # fmt: skip
def test_fill_in(template: str, default: str, url: str) -> None:
    """A field stands for its part of the default URL, encoded for its place; what is not there is left out."""
    assert fill_in(template, default) == url


@pytest.mark.parametrize(
    ("stored", "url"),
    [
        ("x://u:{host}{0}{}{hostname0}@h/", "x://u:{host}{0}{}{hostname0}@h/"),
        ("x://u:{username!r}@{hostname}/", "x://u:{username!r}@db/"),
        ("x://u:{username:9}@{hostname}/", "x://u:{username:9}@db/"),
        ("x://u:a{b@{hostname}/", "x://u:a{b@db/"),
        ("x://u:a{{b{x@{hostname}/", "x://u:a{{b{x@db/"),
        ("x://u:a{{b}}@{hostname}/", "x://u:a{b}@db/"),
        ("x://u:a{{username}}@h/", "x://u:a{username}@h/"),
        ("x://u:a{username.real}@h/", "x://u:a{username.real}@h/"),
    ],
)
def test_other_braces(stored: str, url: str) -> None:
    """Only what is in the list is a field; two braces are one where Nova can format the whole text."""
    assert fill_in(stored, ONE) == url


def test_fields() -> None:
    """A template is known by its fields, and a URL that is complete has none and needs no default."""
    assert fields("x://{username1}:{{password}}@{hostname}/") == {"username1", "hostname"}
    assert (fields(ONE), fill_in(ONE, None)) == (set(), ONE)


@pytest.mark.parametrize(
    ("template", "default", "reason"),
    [
        ("x://{hostname}/", None, r"\{hostname\}: there is no default URL"),
        ("x://{hostname3}/", TWO, r"\{hostname3\}: the default URL has only 2 hosts"),
        ("x://{port2}/", ONE, r"\{port2\}: the default URL has only 1 host"),
        ("x://{port1}/", "sqlite:///x", r"\{port1\}: the default URL has no host"),
        ("x://{username}:p@h/", TWO, r"\{username\}: the default URL has 2 hosts.*\{username1\}"),
        ("x://{password}/", "x://u:s3%2Fcret@h", r"\{password\}: .* the name of a host"),
        ("{password}://h/", "x://u:s3%2Fcret@h", r"\{password\}: .* the name of a driver"),
        ("x://{hostname}/", "x://u:s3/cret@h", "the default URL can't be read"),
        ("{hostname}", ONE, "a template of no URL"),
        ("x://\0{hostname}/", ONE, "NUL"),
    ],
)
def test_what_cannot_be_filled_in(template: str, default: str | None, reason: str) -> None:
    """What can't be filled in is refused with the name of the field and the reason, and no value."""
    with pytest.raises(UrlRefused, match=reason) as refused:
        fill_in(template, default)
    assert not any(secret in str(refused.value) for secret in ("p1", "s3", "cret", "a%40b"))


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)

SPECIAL = st.one_of(TEXT, st.sampled_from(["a@b:c/%{x} é", "{username}", "{{", "%41", "a,b", "\0username\0", "#?&=+"]))

NAMES = st.sampled_from(["h", "db.example", "::1"])

HOSTS = st.lists(st.tuples(SPECIAL, SPECIAL, NAMES, st.integers(1, 65535) | st.none()), min_size=1, max_size=3)


def quoted(text: str) -> str:
    """Encode whatever can be encoded."""
    return quote(text, safe="")


def authority(hosts: list[tuple[str, str, str, int | None]]) -> str:
    """Write hosts as they stand in a URL."""
    return ",".join(
        f"{quoted(username)}:{quoted(password)}@{f'[{name}]' if ':' in name else name}{f':{port}' if port else ''}"
        for username, password, name, port in hosts
    )


@settings(max_examples=60)
@given(hosts=HOSTS, vhost=SPECIAL | st.just(""), value=SPECIAL)
def test_oslo_messaging_reads_what_was_filled_in(
    hosts: list[tuple[str, str, str, int | None]], vhost: str, value: str
) -> None:
    """Users, passwords, hosts, the virtual host and the query arrive as they were, whatever characters they have."""
    default = f"rabbit://{authority(hosts)}/{quoted(vhost)}?a={quoted(value)}"
    numbered = ",".join(
        f"{{username{n}}}:{{password{n}}}@{{hostname{n}}}:{{port{n}}}" for n in range(1, len(hosts) + 1)
    )
    for template in (WHOLE, "rabbit://" + numbered + "/{path}?{query}"):
        url = oslo_messaging.TransportURL.parse(cfg.ConfigOpts(), fill_in(template, default))
        read = [(host.username, host.password, host.hostname, host.port) for host in url.hosts]
        assert (read, url.virtual_host, url.query) == (hosts, vhost, {"a": value})


@settings(max_examples=60)
@given(username=SPECIAL, password=SPECIAL, name=NAMES, database=TEXT, value=SPECIAL)
def test_sqlalchemy_reads_what_was_filled_in(
    username: str, password: str, name: str, database: str, value: str
) -> None:
    """User, password, host, database and query arrive as they were, whatever characters they have."""
    default = f"mysql://{authority([(username, password, name, 3307)])}/{quoted(database)}?a={quoted(value)}"
    url = sa.make_url(fill_in(WHOLE, default))
    assert (url.username, url.password, url.host, url.port) == (username, password, name, 3307)
    assert (url.database, url.query) == (database, {"a": value})


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
def test_literal(text: str) -> None:
    """A URL that is stored literally is filled in to the same URL, whatever looks like a field in it."""
    url = f"mysql://u:{quote(text, safe='{}')}%7Bx%7D@h/"
    assert sa.make_url(fill_in(literal(url), ONE)) == sa.make_url(url)
