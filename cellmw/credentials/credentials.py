# SPDX-License-Identifier: Apache-2.0
"""What stands in a record -> the URL or the template that it stands for, and back.

What was read once is gone on with while it can't be read again: a key manager that is down, a file that is being
replaced and a folder of keys that nobody may read any more take no cell away from a running service.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from cellmw.cell import NO_TRANSPORT_SCHEME
from cellmw.credentials import envelope
from cellmw.credentials.envelope import is_encrypted
from cellmw.credentials.keys import KeyRepository, Keys
from cellmw.credentials.references import References, is_reference
from cellmw.exceptions import CredentialError

if TYPE_CHECKING:
    from oslo_config import cfg

LOG = logging.getLogger(__name__)


class _Loaded(NamedTuple):
    """Keys, and the stamp that their folder had before they were read."""

    stamp: int | None
    keys: Keys


class Credentials:
    """The keys, and the way to what references lead to. Lives as long as the process; shared by its threads.

    There is no lock: each attribute is replaced as a whole, and what several threads do at a time is done twice. To
    look up a reference may take as long as the key manager takes.
    """

    def __init__(self, keys_folder: str | None, conf: cfg.ConfigOpts) -> None:
        """Read nothing yet.

        :param keys_folder: where the keys are; None encrypts nothing, and decrypts nothing
        :param conf: where castellan finds its options, if a reference needs it
        """
        self._references = References(conf)
        self._repository = KeyRepository(keys_folder) if keys_folder else None
        self._loaded: _Loaded | None = None
        self._known: dict[str, str] = {}
        self._failing: dict[str, object] = {}

    def __repr__(self) -> str:
        return f"<Credentials keys={self._repository and str(self._repository.folder)!r}>"

    def reveal(self, stored: str) -> str:
        """Decrypt and look up what stands in a record. A template stays one.

        :raises CredentialError: if that can't be done, and never could be before
        """
        text = self.decrypt(stored)
        return self._look_up(text) if is_reference(text) else text

    def decrypt(self, stored: str) -> str:
        """Take what is in an envelope out of it; what is in none stays as it is.

        :raises CredentialError: if its key is not there, or if it is not as it was made
        """
        if not is_encrypted(stored):
            return stored
        return envelope.decrypt(stored, self._keys_with(envelope.key_id(stored)))

    def protect(self, url: str) -> str:
        """Encrypt a URL with the primary key, where there are keys.

        What is encrypted already, a reference, and ``none:///`` stay as they are: there is no secret in them.

        :raises CredentialError: if the keys can't be read
        """
        if self._repository is None or is_encrypted(url) or is_reference(url) or url.startswith(NO_TRANSPORT_SCHEME):
            return url
        return envelope.encrypt(url, self._repository.load().primary)

    def _keys_with(self, key_id: str) -> Keys:
        """Return the keys, read anew where the folder has changed, or where this one was not among them."""
        if self._repository is None:
            raise CredentialError(
                f"it is encrypted with key {key_id}: set [cellmw] credential_keys to the folder with that key"
            )
        loaded, stamp = self._loaded, self._repository.stamp()
        if loaded is not None and loaded.stamp == stamp and key_id in loaded.keys.by_id:
            return loaded.keys
        what = f"the keys in {self._repository.folder}"
        try:
            keys = self._repository.load()
        except CredentialError as error:
            if loaded is None or key_id not in loaded.keys.by_id:
                raise
            self._note_failure(what, error)
            return loaded.keys
        self._loaded = _Loaded(stamp, keys)
        self._note_success(what)
        return keys

    def _look_up(self, reference: str) -> str:
        try:
            value = self._references.look_up(reference)
        except CredentialError as error:
            known = self._known.get(reference)
            if known is None:
                raise
            self._note_failure(reference, error)
            return known
        self._known[reference] = value
        self._note_success(reference)
        return value

    def _note_failure(self, what: str, error: CredentialError) -> None:
        # of several threads one gets its own mark back, and speaks
        mine = object()
        if self._failing.setdefault(what, mine) is mine:
            LOG.warning("what was read before is used: %s", error)

    def _note_success(self, what: str) -> None:
        if self._failing.pop(what, None) is not None:
            LOG.info("%s can be read again", what)
