# SPDX-License-Identifier: Apache-2.0
"""A folder -> the keys in it, one file each, as keystone keeps those of its tokens.

A file is named by a number. ``0`` is the *staged* key, the highest number is the *primary* key, and the others are
*secondary* keys. All of them decrypt, the primary key encrypts. The staged key is the next primary: it is there before
it is used, so that it can be brought to all hosts first.

An :meth:`~KeyRepository.rotate` that is interrupted loses nothing, and is finished by the next one.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.fernet import Fernet

from cellmw.exceptions import CredentialError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

STAGED = 0
"""The number of the key that becomes the primary one next."""

MAX_ACTIVE_KEYS = 3
"""How many keys a rotation leaves by default: a staged, the primary and a secondary one."""

_NUMBER = re.compile(r"0|[1-9]\d*", re.ASCII)

_OTHERS = 0o007

_SETUP = "run `cellmw-manage credential setup`"


class Key:
    """One key. It never shows itself.

    :ivar id: a short hash of it: its file gets another number when it becomes primary, and another folder may have
        other numbers
    """

    def __init__(self, text: str) -> None:
        """Take the text of its file.

        :raises ValueError: if that is no key
        """
        self._fernet = Fernet(text)
        self.id = hashlib.sha256(b"cellmw key id:" + base64.urlsafe_b64decode(text)).hexdigest()[:12]

    def encrypt(self, text: str) -> str:
        """Return a token of the text."""
        return self._fernet.encrypt(text.encode()).decode()

    def decrypt(self, token: str) -> str:
        """Return the text of a token.

        :raises cryptography.fernet.InvalidToken: if this key has not made it
        """
        return self._fernet.decrypt(token).decode()

    def __repr__(self) -> str:
        return f"<Key {self.id}>"


@dataclass(frozen=True)
class Keys:
    """The keys of a folder as they were when it was read.

    :ivar primary: the one that encrypts
    :ivar by_id: all of them
    """

    primary: Key
    by_id: Mapping[str, Key]


@dataclass(frozen=True)
class Rotated:
    """What a rotation did.

    :ivar primary: the id of the key that encrypts now
    :ivar removed: the ids of keys that are gone
    :ivar kept: the ids of keys that would be if they were not in use
    """

    primary: str
    removed: tuple[str, ...]
    kept: tuple[str, ...]


class KeyRepository:
    """A folder of keys. It remembers nothing of it, so that it may be used by several processes."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"<KeyRepository {self.folder}>"

    def setup(self, *, dry_run: bool = False) -> bool:
        """Make the folder, a staged and a primary key. Where there is a primary key already nothing is done.

        :param dry_run: only look whether there is something to do
        :returns: whether something was done
        :raises CredentialError: if the folder can't be written, or is open to others
        """
        with self._named_errors():
            if dry_run:
                return not self.folder.exists() or all(number == STAGED for number in self._read())
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            texts = self._read()
            if any(number != STAGED for number in texts):
                return False
            # the primary key comes last: what was interrupted before is begun again
            if STAGED not in texts:
                self._write(STAGED, _new())
            self._write(STAGED + 1, _new())
        return True

    def load(self) -> Keys:
        """Read the keys.

        :raises CredentialError: if there is no primary key, one is malformed, or others may read them
        """
        with self._named_errors():
            texts = self._read()
        primary = self._primary(texts)
        keys = {number: Key(text) for number, text in texts.items()}
        return Keys(keys[primary], {key.id: key for key in keys.values()})

    def rotate(
        self, max_active_keys: int = MAX_ACTIVE_KEYS, in_use: Collection[str] = (), *, dry_run: bool = False
    ) -> Rotated:
        """Make the staged key the primary one, write a new staged key, and remove the oldest that are too many.

        Where there is no staged key, because a rotation was interrupted, the primary key stays: a key that the other
        hosts have not got yet must not encrypt.

        :param max_active_keys: how many are left, the staged and the primary one included
        :param in_use: ids of keys that are left, however many there are
        :param dry_run: change nothing, and return what would be the outcome
        :raises CredentialError: if there is no primary key, one is malformed, or others may read them
        """
        with self._named_errors():
            texts = self._read()
            primary = self._primary(texts)
            if STAGED in texts:
                primary += 1
                if not dry_run:
                    os.rename(self._path(STAGED), self._path(primary))
                texts[primary] = texts.pop(STAGED)
            if not dry_run:
                self._write(STAGED, _new())
            ids = {number: Key(text).id for number, text in sorted(texts.items())}
            too_many = len(ids) + 1 - max(2, max_active_keys)
            oldest = list(ids)[: max(0, too_many)]
            for number in oldest:
                if ids[number] not in in_use and not dry_run:
                    self._path(number).unlink(missing_ok=True)
        return Rotated(
            ids[primary],
            removed=tuple(ids[number] for number in oldest if ids[number] not in in_use),
            kept=tuple(ids[number] for number in oldest if ids[number] in in_use),
        )

    def stamp(self) -> int | None:
        """Return what is different after a key was written or removed, None where the folder can't be looked at."""
        try:
            return self.folder.stat().st_mtime_ns
        except OSError:
            return None

    def _primary(self, texts: Mapping[int, str]) -> int:
        primary = max(texts, default=STAGED)
        if primary == STAGED:
            raise CredentialError(f"{self.folder} has no primary key: {_SETUP}")
        return primary

    def _path(self, number: int) -> Path:
        return self.folder / str(number)

    def _read(self) -> dict[int, str]:
        _check_private(self.folder)
        texts = {}
        for path in self.folder.iterdir():
            if _NUMBER.fullmatch(path.name) and path.is_file():
                # a rotation may remove it meanwhile
                with contextlib.suppress(FileNotFoundError):
                    _check_private(path)
                    texts[int(path.name)] = _read_key(path)
        return texts

    def _write(self, number: int, text: str) -> None:
        """Write a whole file or none, that belongs to whom the folder belongs to."""
        descriptor, temporary = tempfile.mkstemp(prefix=".", dir=self.folder)
        try:
            with open(descriptor, "w") as file:
                owner = self.folder.stat()
                if os.geteuid() == 0:
                    os.fchown(descriptor, owner.st_uid, owner.st_gid)
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            os.rename(temporary, self._path(number))
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync(self.folder)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise CredentialError(f"there is no {self.folder}: {_SETUP}, or copy it from another host") from None
        except OSError as error:
            raise CredentialError(f"the keys in {self.folder}: {error.strerror or type(error).__name__}") from error


def _new() -> str:
    return Fernet.generate_key().decode()


def _read_key(path: Path) -> str:
    try:
        text = path.read_text("ascii").strip()
        Key(text)
    except ValueError:
        raise CredentialError(f"{path} is not a key") from None
    return text


def _check_private(path: Path) -> None:
    if path.stat().st_mode & _OTHERS:
        raise CredentialError(f"{path} is open to everybody on this host: chmod o-rwx {path}")


def _sync(folder: Path) -> None:
    """See to it that a file's new name outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
