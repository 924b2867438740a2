# SPDX-License-Identifier: Apache-2.0
"""A URL -> an envelope that can stand in its place in a record, and back.

::

    cellmw:fernet:<id of the key>:<token>

The token is Fernet's: AES-128-CBC and HMAC-SHA256 over all of it. To a program that does not know envelopes it is a URL
of no driver, and so an error.

An envelope says nothing of the record that it stands in. Copied into another it is that one's URL, as it would be
without encryption: whoever can write to the records needs no copy to lead a cell elsewhere, since a URL in plain text
is taken, too. Encryption is against those who read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cryptography.fernet import InvalidToken

from cellmw.exceptions import CredentialError

if TYPE_CHECKING:
    from cellmw.credentials.keys import Key, Keys

_PREFIX = "cellmw:fernet:"

_ENVELOPE = re.compile(rf"{_PREFIX}(?P<key_id>[0-9a-f]{{12}}):(?P<token>[\w-]+=*)", re.ASCII)


def is_encrypted(stored: str) -> bool:
    """Whether this is an envelope, be it a sound one or not."""
    return stored.startswith(_PREFIX)


def key_id(stored: str) -> str:
    """Return the id of the key that this envelope was made with: that may be shown.

    :raises CredentialError: if it is not whole
    """
    return _parts(stored)["key_id"]


def encrypt(url: str, key: Key) -> str:
    """Put a URL into an envelope."""
    return f"{_PREFIX}{key.id}:{key.encrypt(url)}"


def decrypt(stored: str, keys: Keys) -> str:
    """Take the URL out of an envelope.

    :raises CredentialError: if its key is not there, or if it is not as it was made
    """
    parts = _parts(stored)
    key = keys.by_id.get(parts["key_id"])
    if key is None:
        raise CredentialError(
            f"it is encrypted with key {parts['key_id']}, which is not in the folder of [cellmw] credential_keys: "
            "copy the keys from a host that has it"
        )
    try:
        return key.decrypt(parts["token"])
    except InvalidToken:
        raise CredentialError(f"it was changed after it had been encrypted with key {key.id}") from None


def _parts(stored: str) -> re.Match[str]:
    parts = _ENVELOPE.fullmatch(stored)
    if parts is None:
        raise CredentialError("it is encrypted, and was cut off or changed")
    return parts
