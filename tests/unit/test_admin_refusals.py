# SPDX-License-Identifier: Apache-2.0
"""What drivers say, as they say it -> what is wrong, and what to do."""

from __future__ import annotations

import ssl

import psycopg
import pymysql
import pytest
from oslo_db import exception as db_exc
from sqlalchemy import exc

from cellmw.admin.refusals import drivers_error, of_store, refusal_of
from cellmw.exceptions import DeadlineExceeded, StoreUnavailable

MYSQL, POSTGRESQL = pymysql.err.OperationalError, psycopg.OperationalError

_UNVERIFIED = "Can't connect to MySQL server on 'h' ([SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {})"


@pytest.mark.parametrize(
    ("error", "what", "short"),
    [
        (
            MYSQL(1044, "Access denied for user 'u'@'%' to database 'd'"),
            "it does not let the user in",
            "does not let the user in",
        ),
        (
            POSTGRESQL('FATAL:  no pg_hba.conf entry for host "::1", user "u", database "d", SSL encryption'),
            "it does not let the user in",
            "does not let the user in",
        ),
        (
            POSTGRESQL('FATAL:  no pg_hba.conf entry for host "::1", user "u", database "d", no encryption'),
            "it wants TLS, and its URL does not ask for that",
            "wants TLS, and its URL does not ask for that",
        ),
        (
            MYSQL(1049, "Unknown database 'd'"),
            "there is no database of that name on it",
            "has no database of that name",
        ),
        (
            POSTGRESQL("received invalid response to SSL negotiation: H"),
            "it speaks another protocol",
            "speaks another protocol",
        ),
        (
            pymysql.err.InternalError("Packet sequence number wrong - got 32 expected 0"),
            "it speaks another protocol",
            "speaks another protocol",
        ),
        (
            POSTGRESQL('root certificate file "/ca.pem" does not exist'),
            "a file of its TLS options can't be used",
            "a file of its TLS options can't be used",
        ),
        (
            POSTGRESQL('private key file "/key.pem" has group or world access'),
            "a file of its TLS options can't be used",
            "a file of its TLS options can't be used",
        ),
        (
            FileNotFoundError(2, "No such file or directory"),
            "a file of its TLS options can't be used",
            "a file of its TLS options can't be used",
        ),
        (
            ssl.SSLError("[X509: NO_CERTIFICATE_OR_CRL_FOUND] no certificate or crl found"),
            "a file of its TLS options can't be used",
            "a file of its TLS options can't be used",
        ),
        (
            POSTGRESQL('server certificate for "a" (and 1 other name) does not match host name "b"'),
            "its certificate is for another host",
            "its certificate is for another host",
        ),
        (
            MYSQL(2003, _UNVERIFIED.format("IP address mismatch, certificate is not valid for '::1'.")),
            "its certificate is for another host",
            "its certificate is for another host",
        ),
        (
            MYSQL(2003, _UNVERIFIED.format("certificate has expired")),
            "its certificate has expired",
            "its certificate has expired",
        ),
        (
            MYSQL(2003, _UNVERIFIED.format("self-signed certificate in certificate chain")),
            "its certificate is not signed by a CA that is trusted here",
            "its certificate is not signed by a CA that is trusted here",
        ),
        (
            POSTGRESQL("SSL error: certificate verify failed"),
            "its certificate is refused",
            "its certificate is refused",
        ),
        (
            MYSQL(2026, "SSL is required but the server doesn't support it"),
            "it does not speak TLS, and its URL asks for that",
            "does not speak TLS, and its URL asks for that",
        ),
        (
            MYSQL(2003, "Can't connect to MySQL server on 'h' ([Errno 111] Connection refused)"),
            "nobody listens there",
            "does not answer: the connection is refused",
        ),
        (
            MYSQL(2003, "Can't connect to MySQL server on 'h' ([Errno -3] Temporary failure in name resolution)"),
            "nobody knows its name here",
            "its host has no address",
        ),
        (
            POSTGRESQL("server closed the connection unexpectedly"),
            "it ends the connection",
            "ends the connection",
        ),
        (
            MYSQL(2013, "Lost connection to MySQL server during query"),
            "it ends the connection",
            "ends the connection",
        ),
    ],
)
def test_what_drivers_say(error: Exception, what: str, short: str) -> None:
    """Each is known by what the driver says, and what to do about it ends with the URL."""
    refusal = refusal_of(error)
    assert refusal is not None
    assert (refusal.what, refusal.short) == (what, short)
    assert refusal.todo.endswith(" URL")


@pytest.mark.parametrize(
    "error", [MYSQL(2013, "Lost connection to MySQL server during query (timed out)"), POSTGRESQL("out of memory")]
)
def test_what_is_not_known(error: Exception) -> None:
    """Of another error nothing is said; that it took too long is for the caller to say."""
    assert refusal_of(error) is None


_NO_ANSWER = "the API database does not answer, or refuses the connection"


@pytest.mark.parametrize(
    ("text", "reason", "what", "todo"),
    [
        (
            _NO_ANSWER,
            POSTGRESQL("password authentication failed"),
            f"{_NO_ANSWER}: it refuses the user or the password",
            "let the user in, or record another URL: [api_database] connection",
        ),
        (
            _NO_ANSWER,
            DeadlineExceeded("it"),
            _NO_ANSWER,
            "see whether it is alive, and the network, or record another URL: [api_database] connection",
        ),
        (
            "the API database failed: InternalError",
            POSTGRESQL("out of memory"),
            "the API database failed: InternalError",
            "",
        ),
        (_NO_ANSWER, None, _NO_ANSWER, "start it, or correct [api_database] connection"),
        ("it has no tables: run `x`", POSTGRESQL("relation"), "it has no tables: run `x`", ""),
    ],
)
def test_the_api_database(text: str, reason: Exception | None, what: str, todo: str) -> None:
    """Of the API database it is its own option that has another URL, and an error that says what to do says enough."""
    error = StoreUnavailable(text)
    error.__cause__ = reason
    assert of_store(error) == (what, todo)


def test_what_was_wrapped() -> None:
    """The error of the driver is the innermost."""
    inner = POSTGRESQL("x")
    assert drivers_error(inner) is inner
    wrapped = exc.OperationalError("SELECT", {}, inner)
    assert drivers_error(wrapped) is inner
    assert drivers_error(db_exc.DBConnectionError(wrapped)) is inner
