# SPDX-License-Identifier: Apache-2.0
"""Envelopes: what comes out of them, and what they are for programs that do not know them."""

from __future__ import annotations

import oslo_messaging
import pytest
import sqlalchemy
from cryptography.fernet import Fernet
from oslo_config import cfg

from cellmw.credentials import envelope
from cellmw.credentials.keys import Key, Keys
from cellmw.exceptions import CredentialError

URL = "rabbit://nova:p%40ss-w\N{LATIN SMALL LETTER O WITH DIAERESIS}rd@host:5672/"


@pytest.fixture(scope="module")
def keys() -> Keys:
    """Two keys."""
    primary, other = Key(Fernet.generate_key().decode()), Key(Fernet.generate_key().decode())
    return Keys(primary, {primary.id: primary, other.id: other})


@pytest.fixture(scope="module")
def sealed(keys: Keys) -> str:
    """An envelope with the URL in it."""
    return envelope.encrypt(URL, keys.primary)


def test_round_trip(keys: Keys, sealed: str) -> None:
    """What went in comes out, by any of the keys; from outside it can be seen which one, and nothing else."""
    for key in keys.by_id.values():
        stored = envelope.encrypt(URL, key)
        assert envelope.is_encrypted(stored)
        assert (envelope.decrypt(stored, keys), envelope.key_id(stored)) == (URL, key.id)
        assert stored != sealed


def test_what_is_in_no_envelope() -> None:
    """A URL, a template, a reference and ``none:///`` are no envelopes."""
    for stored in ("rabbit://u:p@h/", "{scheme}://{hostname}/", "env:cellmw:fernet:", "none:///", "cellmw://h/", ""):
        assert not envelope.is_encrypted(stored)


def test_envelope_is_a_url_of_nothing(conf: cfg.ConfigOpts, sealed: str) -> None:
    """A program that doesn't know envelopes fails with them, and goes to no wrong place: it has no such driver."""
    with pytest.raises(oslo_messaging.DriverLoadFailure):
        oslo_messaging.get_rpc_transport(conf, sealed)
    with pytest.raises(sqlalchemy.exc.ArgumentError):
        sqlalchemy.make_url(sealed)


def test_changed_envelope(keys: Keys, sealed: str) -> None:
    """An envelope that was cut off or changed is an error, which shows nothing of it."""
    (other,) = keys.by_id.keys() - {keys.primary.id}
    head, _, token = sealed.rpartition(":")
    changed = [
        sealed[:-5],
        head,
        f"{head}:",
        f"{sealed}\n",
        f"{head}:{token.replace('gAAAAA', 'gAAAAB')}",
        f"{head.replace(keys.primary.id, other)}:{token}",
    ]
    for stored in changed:
        with pytest.raises(CredentialError, match="changed") as caught:
            envelope.decrypt(stored, keys)
        assert "gAAA" not in str(caught.value)


def test_unknown_key(keys: Keys) -> None:
    """Where the key is not there, the error names it and says what to do."""
    key = Key(Fernet.generate_key().decode())
    with pytest.raises(CredentialError, match=rf"{key.id}.*\[cellmw\] credential_keys: copy the keys"):
        envelope.decrypt(envelope.encrypt(URL, key), keys)
