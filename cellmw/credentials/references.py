# SPDX-License-Identifier: Apache-2.0
"""A reference, which says where a URL is -> the URL.

::

    env:NAME            an environment variable of the process
    file:PATH           all that is in a file, but for a newline at its end
    castellan:ID        a secret of a key manager, by castellan

A reference is no secret, and may be shown. What it leads to is a URL or a template, and neither an envelope nor another
reference.
"""

from __future__ import annotations

import importlib
import os
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from cellmw import forks
from cellmw.credentials.envelope import is_encrypted
from cellmw.crew import MAX_STUCK, Crew
from cellmw.deadline import SLOW, after
from cellmw.exceptions import CredentialError

if TYPE_CHECKING:
    from oslo_config import cfg

_KINDS = ("env:", "file:", "castellan:")

_PATIENCE = 5.0
"""Seconds that the key manager has for an answer: its library waits for as long as it likes."""

_PAUSE = 5.0
"""Seconds for which a silent key manager is left alone."""


def is_reference(stored: str) -> bool:
    """Whether this says where a URL is, instead of being one."""
    return stored.startswith(_KINDS)


class References:
    """The way to what references lead to. Lives as long as the process; shared by its threads, with no lock."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        """Look nothing up yet.

        :param conf: where castellan registers its options, if there is anything for it to look up
        """
        self._conf = conf
        self._key_manager: _KeyManager | None = None
        self._left_alone_until = 0.0
        self._stuck: set[object] = set()
        self.begin_anew()
        forks.follow(self)

    def begin_anew(self) -> None:
        """Begin, in a child process, with threads of its own."""
        self._crew = Crew()

    def look_up(self, reference: str) -> str:
        """Return what this reference leads to.

        :raises CredentialError: if there is nothing there, or nothing that can be a URL
        """
        if not reference.isprintable():
            raise CredentialError(f"{reference!r} is no reference: it has characters in it that can't be shown")
        value = self._read(reference).rstrip("\r\n")
        if not value:
            raise CredentialError(f"{reference} is empty")
        if len(value.splitlines()) > 1:
            raise CredentialError(f"{reference} has more than one line: it has to be a URL and nothing else")
        if is_reference(value) or is_encrypted(value):
            raise CredentialError(f"{reference} leads to what is itself encrypted or a reference: it has to be a URL")
        return value

    def _read(self, reference: str) -> str:
        kind, _, where = reference.partition(":")
        if kind == "env":
            return _in_environment(where)
        value = _in_file(where) if kind == "file" else self._in_key_manager(where)
        return value if isinstance(value, str) else _decoded(value, reference)

    def _in_key_manager(self, secret_id: str) -> bytes | str:
        try:
            importlib.import_module("castellan")
        except ImportError:
            raise CredentialError(f"castellan:{secret_id} needs castellan: install cellmw[castellan]") from None
        # whoever reads many records waits once for a key manager that is down, and not for each of them
        began = monotonic()
        if began < self._left_alone_until or len(self._stuck) >= MAX_STUCK:
            raise CredentialError(f"castellan:{secret_id} was not looked up: the key manager did not answer just now")
        try:
            key_manager = self._key_manager
            if key_manager is None or key_manager.process != os.getpid():
                self._key_manager = key_manager = _KeyManager(self._conf)
            return self._crew.run(partial(key_manager.get, secret_id), after(_PATIENCE), self._stuck, "the key manager")
        except Exception as error:  # noqa: BLE001 - each backend of castellan raises its own, and may quote anything
            if (now := monotonic()) - began >= SLOW:
                self._left_alone_until = now + _PAUSE
            raise CredentialError(
                f"castellan:{secret_id} can't be looked up: {type(error).__name__} in the key manager"
            ) from None


class _KeyManager:
    """The key manager that ``[key_manager]`` describes. Lives as long as the process.

    :ivar process: whose connections it has: a child process makes one of its own
    """

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self.process = os.getpid()
        utils = importlib.import_module("castellan.common.utils")
        self._api = importlib.import_module("castellan.key_manager").API(conf)
        conf.register_opts(utils.credential_opts, group=utils.OPT_GROUP)
        if conf.key_manager.auth_type:
            self._context: Any = utils.credential_factory(conf)
        else:
            # Vault takes its token from its own options, and asks only that there is a context
            self._context = importlib.import_module("oslo_context.context").RequestContext()

    def get(self, secret_id: str) -> bytes | str:
        """Return what the secret with this id contains."""
        value: bytes | str = self._api.get(self._context, secret_id).get_encoded() or ""
        return value


def _in_environment(name: str) -> str:
    if name not in os.environ:
        raise CredentialError(f"env:{name} is not set in the environment")
    return os.environ[name]


def _in_file(path: str) -> bytes:
    if not path.startswith("/"):
        raise CredentialError(f"file:{path} has to have an absolute path")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CredentialError(f"file:{path} can't be read: {error.strerror}") from None


def _decoded(value: bytes, reference: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise CredentialError(f"{reference} is not text in UTF-8") from None
