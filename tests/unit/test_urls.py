# SPDX-License-Identifier: Apache-2.0
"""What of a URL may be shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oslo_messaging._drivers import amqp, impl_rabbit

from cellmw.urls import mask, masking

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rabbit://user:s3cret@host:5672/vhost", "rabbit://user:***@host:5672/vhost"),
        ("mysql+pymysql://nova:s3cret@db/nova?charset=utf8", "mysql+pymysql://nova:***@db/nova?charset=utf8"),
        ("rabbit://u:s3cret@h1:5672,u2:s3cret@h2:5673//", "rabbit://u:***@h1:5672,u2:***@h2:5673//"),
        ("rabbit://u:s3cret@h1:5672,h2:5673/", "rabbit://u:***@h1:5672,h2:5673/"),
        ("rabbit://u:s3cret@[::1]:5672,u:s3cret@[fe80::1]/", "rabbit://u:***@[::1]:5672,u:***@[fe80::1]/"),
        ("rabbit://user@host/", "rabbit://user@host/"),
        ("rabbit://:s3cret@host/", "rabbit://:***@host/"),
        ("rabbit://u:%73s3cret%40@host/", "rabbit://u:***@host/"),
        ("none:///", "none:///"),
        ("none:", "none:"),
        ("sqlite:////var/lib/api.db", "sqlite:////var/lib/api.db"),
        ("sqlite://", "sqlite://"),
        ("{scheme}://{username}:{password}@{hostname}:{port}/x?{query}", "{scheme}://{username}:{password}@{hostname}:{port}/x?{query}"),
        ("rabbit://{username1}:s3cret@{hostname1}:{port1}/", "rabbit://{username1}:***@{hostname1}:{port1}/"),
        ("rabbit://{username1}:{password1}@h,u:{s3cret}@h/", "rabbit://{username1}:{password1}@h,u:***@h/"),
        ("rabbit://u:{password}s3cret@h/?x={query}", "rabbit://u:***@h/?x={query}"),
        ("", ""),
    ],
)  # fmt: skip
def test_masks_each_password(url: str, shown: str) -> None:
    """A mask stands for each host's password, and everything else is shown as it is."""
    assert mask(url) == shown


@pytest.mark.parametrize(
    ("parameter", "shown"),
    [
        ("ssl_key_password=s3cret", "ssl_key_password=***"),
        ("anything=s3cret", "anything=***"),
        ("%70assword=s3cret", "%70assword=***"),
        ("odbc_connect=UID%3Dx%3BPWD%3Ds3cret", "odbc_connect=***"),
        ("charset=http%3A%2F%2Fu%3As3cret%40h", "charset=***"),
        ("application_name=x%20password%3Ds3cret", "application_name=***"),
        ("password=a&s3cret", "password=***&***"),
        ("password=a&{s3cret=", "password=***&***=***"),
        ("ssl_ca=/run/secrets/ca.pem", "ssl_ca=/run/secrets/ca.pem"),
        ("heartbeat_rate=2", "heartbeat_rate=2"),
        ("ssl", "ssl"),
    ],
)
def test_masks_parameters(parameter: str, shown: str) -> None:
    """A mask stands for the value of each query key that is not known to be harmless, or has a secret inside."""
    assert mask(f"rabbit://u:p@h/?sslmode=b&{parameter}&ssl=d") == f"rabbit://u:***@h/?sslmode=b&{shown}&ssl=d"


def test_every_option_of_the_driver_is_known() -> None:
    """Of each option that a transport URL can have it was decided whether its value may be shown."""
    secret: set[str] = set()
    options = {option.dest for option in (*impl_rabbit.rabbit_opts, *amqp.amqp_opts)}
    assert masking.RABBIT_OPTIONS | secret == options


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user:s3cret@host@host/db",
        "mysql://user:@s3cret@host/db",
        "mysql://user:/s3cret@host/db",
        "mysql://user:?s3cret@host/db",
        "mysql://user:#s3cret@host/db",
        "mysql://user:1?a=s3cret@host/db",
        "rabbit://user:,s3cret@host/",
        "rabbit://user:[s3cret@host/",
        "mysql://user:s3cret",
        "mysql://user:s3cret/db",
        "user:s3cret@host/db",
        "mysql:user:s3cret@host",
        "s3cret",
        "mysql://user:x@s3cret@host/db?password=s3cret",
        "mysql://user:x@host/db?charset=@&password=s3cret",
    ],
)
def test_never_shows_a_password_that_is_not_encoded(url: str) -> None:
    """Of a URL that nobody can read for certain too little is shown."""
    assert SECRET not in mask(url)


@given(user=st.text(max_size=5), before=st.text(max_size=5), after=st.text(max_size=5))
def test_no_password_is_shown_whatever_surrounds_it(user: str, before: str, after: str) -> None:
    """Whatever characters a password has, encoded or not, none of it is shown."""
    assert SECRET not in mask(f"mysql://{user}:{before}{SECRET}{after}@host/db")
    assert SECRET not in mask(f"rabbit://u:p@h,{user}:{before}{SECRET}{after}@host/vhost")


@given(st.text())
def test_never_fails(url: str) -> None:
    """Any text has something that may be shown of it."""
    mask(url)
