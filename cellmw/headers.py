# SPDX-License-Identifier: Apache-2.0
"""Request header -> instance uuid, for metadata-style APIs whose paths name no instance.

The proxy in front of such an API knows which instance asks, says so in a header, and signs what it says with a secret
that it shares with the API. Whoever asks is a machine inside the instance: nothing else that it sends is believed.
"""

from __future__ import annotations

import hmac
import math
import re
from typing import TYPE_CHECKING

from cellmw.exceptions import ConfigError, HeaderMalformed, HeaderNotSigned

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

PROJECT_HEADER = "X-Tenant-ID"
"""The header in which the proxy says whose the instance is."""

_NAME = re.compile("[A-Za-z0-9]+(-[A-Za-z0-9]+)*")
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{0,9})?")
_UUID = re.compile("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class DeadlineHeader:
    """The header that says in how many seconds the client gives up. Lives as long as the filter; immutable."""

    def __init__(self, name: str) -> None:
        """Take the seconds from this header.

        :raises ConfigError: if the name is none that a header can have
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(f"deadline_header: {name!r} is no name of a header")
        self._name = name
        self._key = _environ_key(name)

    def seconds(self, environ: WSGIEnvironment) -> float:
        """Return the seconds, infinity where there is no such header.

        :raises HeaderMalformed: if it is there more than once, or is no number of seconds
        """
        value = environ.get(self._key)
        if value is None:
            return math.inf
        if not _SECONDS.fullmatch(value):
            raise HeaderMalformed(self._name)
        return float(value)


class InstanceHeader:
    """The header that names an instance, and its signature. Lives as long as the filter; immutable."""

    def __init__(self, name: str, secret: str | None, *, trusted: bool) -> None:
        """Take the instance from this header.

        :param name: as in ``X-Instance-ID``; the signature is in the header of that name with ``-Signature`` behind it
        :param secret: what the proxy signs with: HMAC-SHA256 of the header's value, in hex
        :param trusted: whether the header is believed without a signature
        :raises ConfigError: if the name is none that a header can have, or the header would be believed unasked
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(f"instance_header: {name!r} is no name of a header")
        if not secret and not trusted:
            raise ConfigError(
                "instance_header: set instance_header_secret to the secret that the proxy signs the header with, or "
                "trust_header to true if nobody but the proxy can reach this service"
            )
        self._name = name
        self._key = _environ_key(name)
        self._signature_key = _environ_key(f"{name}-Signature")
        self._secret = None if trusted or not secret else secret.encode()
        self._project_key = _environ_key(PROJECT_HEADER)

    def instance_uuid(self, environ: WSGIEnvironment) -> str | None:
        """Return the uuid that the header names, in lower case, or None where there is no such header.

        :raises HeaderMalformed: if it is there more than once, or is no uuid
        :raises HeaderNotSigned: if its signature is missing or wrong
        """
        value = environ.get(self._key)
        if value is None:
            return None
        # a WSGI server joins what was sent twice with commas
        if not _UUID.fullmatch(value):
            raise HeaderMalformed(self._name)
        if self._secret is not None:
            expected = hmac.new(self._secret, value.encode(), "sha256").hexdigest()
            signature = environ.get(self._signature_key, "")
            if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):
                raise HeaderNotSigned(self._name)
        instance_uuid: str = value.lower()
        return instance_uuid

    def project_id(self, environ: WSGIEnvironment) -> str:
        """Return the project that the proxy says the instance belongs to.

        :raises HeaderMalformed: if it says none, or more than one
        """
        project_id: str = environ.get(self._project_key, "")
        if not project_id or "," in project_id:
            raise HeaderMalformed(PROJECT_HEADER)
        return project_id


def _environ_key(header: str) -> str:
    return f"HTTP_{header.upper().replace('-', '_')}"
