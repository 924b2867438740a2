# SPDX-License-Identifier: Apache-2.0
"""The folder of keys: what is made in it, what is taken from it, and what a rotation leaves at any moment."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cellmw.credentials.keys import KeyRepository
from cellmw.exceptions import CredentialError

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the keys are to be."""
    return tmp_path / "etc" / "keys"


@pytest.fixture
def repository(folder: Path) -> KeyRepository:
    """A folder with a primary and a staged key."""
    repository = KeyRepository(str(folder))
    assert repository.setup()
    return repository


def texts(folder: Path) -> dict[str, str]:
    """Return what is in each file."""
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_setup_makes_what_only_its_user_can_read(repository: KeyRepository, folder: Path) -> None:
    """The folder and both keys are closed to everybody else."""
    modes = {path.name: oct(path.stat().st_mode)[-3:] for path in [folder, *folder.iterdir()]}
    assert modes == {"keys": "700", "0": "600", "1": "600"}


def test_setup_leaves_keys_alone(repository: KeyRepository, folder: Path) -> None:
    """Where there are keys already nothing is done."""
    before = texts(folder)
    assert (repository.setup(), texts(folder)) == (False, before)


def test_setup_goes_on_where_it_was_interrupted(repository: KeyRepository, folder: Path) -> None:
    """With a staged key only, setup makes the primary one and leaves the staged one."""
    (folder / "1").unlink()
    staged = texts(folder)["0"]
    assert (repository.setup(), texts(folder)["0"], len(repository.load().by_id)) == (True, staged, 2)


def test_highest_number_is_the_primary_key(repository: KeyRepository, folder: Path) -> None:
    """Numbers are compared as numbers, and any of them may be missing."""
    primary = repository.load().primary.id
    (folder / "0").rename(folder / "9")
    (folder / "1").rename(folder / "10")
    assert repository.load().primary.id == primary


def test_other_files_are_ignored(repository: KeyRepository, folder: Path) -> None:
    """What is not named by a number is no key, nor is a folder."""
    for name in ("README", "01", "2~", ".3", "-4", "\N{SUPERSCRIPT TWO}"):
        (folder / name).write_text("nothing")
    (folder / "5").mkdir()
    assert len(repository.load().by_id) == 2


def test_malformed_key(repository: KeyRepository, folder: Path) -> None:
    """What is no key is named by its file, and not shown."""
    for content in (b"", b"s3cret", b"\xff" * 44):
        (folder / "7").write_bytes(content)
        (folder / "7").chmod(0o600)
        with pytest.raises(CredentialError) as caught:
            repository.load()
        assert str(caught.value) == f"{folder}/7 is not a key"


def test_what_everybody_can_read_is_refused(repository: KeyRepository, folder: Path) -> None:
    """A folder or a key that is open to others is not used, and the error says how to close it."""
    for path, mode in itertools.product((folder / "0", folder), (0o701, 0o702, 0o704)):
        path.chmod(mode)
        with pytest.raises(CredentialError) as caught:
            repository.load()
        assert str(caught.value).endswith(f"chmod o-rwx {path}")
        path.chmod(0o700)


def test_key_that_somebody_else_has_written(repository: KeyRepository, folder: Path) -> None:
    """A key may be open to a group, as configuration files are, and have the end of a line; its id is what it was."""
    folder.chmod(0o750)
    (folder / "2").write_text("A" * 43 + "=\n")
    (folder / "2").chmod(0o640)
    assert repository.load().primary.id == "e5e103548cf8"


def test_no_keys(repository: KeyRepository, folder: Path) -> None:
    """Where there is nothing to encrypt with, the error says how to make it."""
    (folder / "1").unlink()
    with pytest.raises(CredentialError, match=f"{folder} has no primary key: run `cellmw-manage credential setup`"):
        repository.load()
    folder.rename(folder.with_name("away"))
    with pytest.raises(CredentialError, match=f"there is no {folder}: run `cellmw-manage credential setup`"):
        repository.load()


def test_rotation_promotes_the_staged_key(repository: KeyRepository, folder: Path) -> None:
    """The staged key becomes the primary one, under the id that it had; what was primary still decrypts."""
    before = repository.load()
    token = before.primary.encrypt("text")
    staged = next(key_id for key_id in before.by_id if key_id != before.primary.id)
    rotated = repository.rotate()
    after = repository.load()
    assert (rotated.primary, after.primary.id, rotated.removed) == (staged, staged, ())
    assert (after.by_id[before.primary.id].decrypt(token), len(after.by_id)) == ("text", 3)


@pytest.mark.parametrize("max_active_keys", [1, 2, 4])
def test_rotation_removes_the_oldest(repository: KeyRepository, max_active_keys: int) -> None:
    """As many keys are left as may be, the newest ones, and never less than two."""
    primaries = [repository.load().primary.id]
    for _ in range(4):
        rotated = repository.rotate(max_active_keys)
        primaries.append(rotated.primary)
    keys = repository.load()
    left = max(2, max_active_keys)
    assert (len(keys.by_id), keys.primary.id) == (left, primaries[-1])
    assert set(primaries[1 - left :]) < keys.by_id.keys()
    assert rotated.removed == (primaries[-left],)


def test_rotation_keeps_what_is_in_use(repository: KeyRepository) -> None:
    """A key that something is encrypted with stays, and is named."""
    old = repository.load().primary.id
    newer = repository.rotate(2, {old}).primary
    rotated = repository.rotate(2, {old})
    assert (rotated.kept, rotated.removed) == ((old,), (newer,))
    assert old in repository.load().by_id


@pytest.mark.parametrize("write", [1, 2])
def test_interrupted_rotation(
    repository: KeyRepository, folder: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    """Whichever write fails, the folder has whole keys and lacks none; the next rotation promotes the same key."""
    before = repository.load()
    (staged,) = before.by_id.keys() - {before.primary.id}
    writes: list[Any] = []
    rename: Callable[..., None] = os.rename

    def fail(*paths: Any) -> None:
        writes.append(paths)
        if len(writes) == write:
            raise OSError(28, "No space left on device")
        rename(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        with pytest.raises(CredentialError, match="No space left on device"):
            repository.rotate()
    assert repository.load().by_id.keys() == before.by_id.keys()
    assert all(name.isdecimal() for name in texts(folder))
    assert (repository.rotate().primary, len(repository.load().by_id)) == (staged, 3)


def test_rotation_without_a_staged_key(repository: KeyRepository, folder: Path) -> None:
    """A key that no other host can have yet becomes the staged, not the primary one."""
    (folder / "0").unlink()
    primary = repository.load().primary.id
    assert (repository.rotate().primary, len(repository.load().by_id)) == (primary, 2)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write for others")
def test_keys_belong_to_whom_the_folder_belongs_to(repository: KeyRepository, folder: Path) -> None:
    """A rotation by root leaves keys that the services' user can read."""
    os.chown(folder, 12345, 12346)
    repository.rotate()
    owner = (folder / "0").stat()
    assert (owner.st_uid, owner.st_gid) == (12345, 12346)


def test_keys_do_not_show_themselves(repository: KeyRepository, folder: Path) -> None:
    """What is printed of keys is their ids."""
    keys = repository.load()
    assert keys.primary.id in repr(keys)
    assert not any(text in repr((repository, keys, vars(keys))) for text in texts(folder).values())
