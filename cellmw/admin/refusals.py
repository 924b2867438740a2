# SPDX-License-Identifier: Apache-2.0
"""The error of a database's driver -> in a few words, what is wrong, and what to do about it.

The error itself is never shown: it can quote the URL.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from cellmw.bounds import cause, drivers_error
from cellmw.exceptions import DeadlineExceeded

if TYPE_CHECKING:
    from cellmw.exceptions import StoreUnavailable


class Refusal(NamedTuple):
    """Why nobody gets in.

    :ivar what: what is wrong, as in ``it refuses the user or the password``
    :ivar todo: what to do about it; it ends with the URL, so that what that is changed by can be put behind it
    :ivar short: what is wrong where it stands behind the name of the database, as in ``refuses the user``
    """

    what: str
    todo: str
    short: str


def _refusal(what: str, todo: str, short: str = "") -> Refusal:
    return Refusal(what, todo, short or what.removeprefix("it "))


_API = "[api_database] connection"

_OTHER_URL = "or record another URL"

_TLS = "see to its certificate, and to the TLS options in the URL"

_FILE = _refusal(
    "a file of its TLS options can't be used",
    "bring the file to this host, for its user to read, or see to the TLS options in the URL",
)

_NO_NAME = _refusal("nobody knows its name here", f"see to the name, {_OTHER_URL}", "its host has no address")

_USELESS = _refusal("its driver takes no such option or value as there is in its URL", "see to the options in the URL")

_REFUSALS = (
    (
        r"no encryption|SSL off|\b3159\b",
        _refusal("it wants TLS, and its URL does not ask for that", "add the TLS options to the URL"),
    ),
    (
        r"\b1(045|698)\b|password authentication|no password supplied|role \S+ does not exist",
        _refusal("it refuses the user or the password", f"let the user in, {_OTHER_URL}"),
    ),
    (
        r"\b1049\b|database \S+ does not exist",
        _refusal("there is no database of that name on it", f"create it, {_OTHER_URL}", "has no database of that name"),
    ),
    (
        # MySQL says so also where there is none, to a user who could not create it
        r"\b1044\b|permission denied for database|no pg_hba.conf entry",
        _refusal("it does not let the user in", f"see that the database is there, grant it to the user, {_OTHER_URL}"),
    ),
    (
        r"invalid response to SSL negotiation|Packet sequence number wrong",
        _refusal("it speaks another protocol", f"see what listens there, {_OTHER_URL}"),
    ),
    (r"(certificate|key) file\b|NO_CERTIFICATE_OR_CRL_FOUND|PEM lib|KEY_VALUES_MISMATCH", _FILE),
    (r"does not match host name|certificate is not valid for", _refusal("its certificate is for another host", _TLS)),
    (r"certificate has expired", _refusal("its certificate has expired", _TLS)),
    (
        r"self.signed certificate|local issuer certificate",
        _refusal("its certificate is not signed by a CA that is trusted here", _TLS),
    ),
    # libpq does not say why
    (r"certificate verify failed", _refusal("its certificate is refused", _TLS)),
    (
        r"does not support SSL|SSL is required but",
        _refusal(
            "it does not speak TLS, and its URL asks for that", "see to its TLS, or to the TLS options in the URL"
        ),
    ),
    (
        r"SSL|TLS|certificate",
        _refusal("TLS fails between us", _TLS, "does not take the TLS of the URL, or has one that fails"),
    ),
    (
        r"[Cc]onnection refused",
        _refusal(
            "nobody listens there",
            f"start it, open the way to it, {_OTHER_URL}",
            "does not answer: the connection is refused",
        ),
    ),
    (r"name resolution|Name or service|nodename nor servname|resolve host|translate host", _NO_NAME),
    (
        r"unable to open database file|not a database",
        _refusal("its file can't be read", f"see to the file, {_OTHER_URL}"),
    ),
    (
        r"server closed the connection unexpectedly|Lost connection to MySQL server during query(?!.*timed out)",
        _refusal("it ends the connection", f"see the server's log, and what listens there, {_OTHER_URL}"),
    ),
)
"""What drivers say, where nobody gets in: their errors have no numbers then, or the same one for everything."""

_PATTERNS = tuple((re.compile(pattern), refusal) for pattern, refusal in _REFUSALS)


def refusal_of(error: BaseException) -> Refusal | None:
    """Return what the error of a driver says; None where it is none of the errors that are known."""
    # of files that are not there PyMySQL knows nothing: the error is ssl's
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
        return _FILE
    if isinstance(error, UnicodeError):
        return _NO_NAME
    if isinstance(error, (TypeError, ValueError)) and not isinstance(error, OSError):
        return _USELESS
    text = f"{cause(error)} {error}"
    return next((refusal for pattern, refusal in _PATTERNS if pattern.search(text)), None)


def of_store(error: StoreUnavailable) -> tuple[str, str]:
    """Say why the API database is of no use, and what to do about it; the latter is empty where the error says it."""
    what, reason = str(error), error.__cause__
    if isinstance(reason, DeadlineExceeded):
        return what, f"see whether it is alive, and the network, {_OTHER_URL}: {_API}"
    if ": " in what:  # most say themselves what to do
        return what, ""
    refusal = None if reason is None else refusal_of(drivers_error(reason))
    if refusal is None:
        return what, f"start it, or correct {_API}"
    return f"{what}: {refusal.what}", f"{refusal.todo}: {_API}"
