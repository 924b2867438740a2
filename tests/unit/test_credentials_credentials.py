# SPDX-License-Identifier: Apache-2.0
"""From what is stored to the URL and back, and what a running service does when that can't be read any more."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cellmw.credentials import Credentials, KeyRepository, is_encrypted, key_id
from cellmw.exceptions import CredentialError

if TYPE_CHECKING:
    from collections.abc import Callable

    from oslo_config import cfg

URL = "rabbit://nova:s3cret@host:5672/"

OTHER_URL = "rabbit://nova:an0ther@host:5672/"


@pytest.fixture
def repository(tmp_path: Path) -> KeyRepository:
    """A folder with a primary and a staged key."""
    repository = KeyRepository(str(tmp_path / "keys"))
    repository.setup()
    return repository


@pytest.fixture
def credentials(repository: KeyRepository, conf: cfg.ConfigOpts) -> Credentials:
    """Credentials with these keys."""
    return Credentials(str(repository.folder), conf)


BEFORE = "what was read before is used: "


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return the levels and messages of what was logged, in which no password is."""
    assert "s3cret" not in caplog.text
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_protect_and_reveal(credentials: Credentials, repository: KeyRepository) -> None:
    """A URL is encrypted with the primary key, and revealed."""
    stored = credentials.protect(URL)
    assert (key_id(stored), credentials.reveal(stored)) == (repository.load().primary.id, URL)


def test_plain_text_is_read(credentials: Credentials) -> None:
    """A record that is not encrypted yet is read all the same, and a template is left to others."""
    for stored in (URL, "{scheme}://{username}:{password}@h/", "none:///"):
        assert credentials.reveal(stored) == stored


def test_what_has_no_secret_in_it_is_not_encrypted(credentials: Credentials) -> None:
    """An envelope, references and the URL that says that there is no queue stay as they are."""
    for stored in (credentials.protect(URL), "env:X", "file:/x", "castellan:x", "none:///"):
        assert credentials.protect(stored) == stored


def test_without_keys(credentials: Credentials, repository: KeyRepository, conf: cfg.ConfigOpts) -> None:
    """Without a folder nothing is encrypted, and what is encrypted says which key and which option it needs."""
    without = Credentials(None, conf)
    assert without.protect(URL) == URL
    with pytest.raises(CredentialError, match=rf"key {repository.load().primary.id}: set \[cellmw\] credential_keys"):
        without.reveal(credentials.protect(URL))


def test_encrypted_reference(credentials: Credentials, repository: KeyRepository, monkeypatch: Any) -> None:
    """What was encrypted may be a reference, which is looked up."""
    stored = credentials.protect(URL).rpartition(":")[0] + ":" + repository.load().primary.encrypt("env:CELL1_URL")
    monkeypatch.setenv("CELL1_URL", URL)
    assert (credentials.reveal(stored), credentials.decrypt(stored)) == (URL, "env:CELL1_URL")


def test_rotated_keys_are_picked_up(credentials: Credentials, repository: KeyRepository) -> None:
    """A running service decrypts with a key that came into the folder after it had read it."""
    credentials.reveal(credentials.protect(URL))
    for _ in range(2):
        repository.rotate()
    assert credentials.reveal(credentials.protect(OTHER_URL)) == OTHER_URL


def test_folder_is_not_read_again_without_a_reason(
    credentials: Credentials, repository: KeyRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys are remembered as long as their folder has the time of change that it had, and no other key is needed."""
    stored = credentials.protect(URL)
    credentials.reveal(stored)
    times = repository.folder.stat()
    repository.rotate()
    repository.rotate()
    newer = credentials.protect(OTHER_URL)
    os.utime(repository.folder, ns=(times.st_atime_ns, times.st_mtime_ns))
    with monkeypatch.context() as patch:
        patch.delattr(KeyRepository, "load")
        assert credentials.reveal(stored) == URL
    assert credentials.reveal(newer) == OTHER_URL


def test_removed_key_is_forgotten(credentials: Credentials, repository: KeyRepository) -> None:
    """What is no longer in the folder is not decrypted any more."""
    stored = credentials.protect(URL)
    credentials.reveal(stored)
    repository.rotate(2)
    repository.rotate(2)
    with pytest.raises(CredentialError, match="copy the keys"):
        credentials.reveal(stored)


def test_keys_that_can_not_be_read_any_more(
    credentials: Credentials, repository: KeyRepository, caplog: pytest.LogCaptureFixture
) -> None:
    """What was read before is used; the log says so once, and once when it is over."""
    caplog.set_level(logging.INFO)
    stored = credentials.protect(URL)
    credentials.reveal(stored)
    away = repository.folder.rename(repository.folder.with_name("away"))
    assert [credentials.reveal(stored) for _ in range(3)] == [URL] * 3
    with pytest.raises(CredentialError, match="there is no"):
        credentials.reveal(stored.replace(key_id(stored), "0123456789ab"))
    away.rename(repository.folder)
    repository.rotate()
    assert [credentials.reveal(stored) for _ in range(2)] == [URL] * 2
    begun = (
        f"{BEFORE}there is no {repository.folder}: run `cellmw-manage credential setup`, or copy it from another host"
    )
    over = f"the keys in {repository.folder} can be read again"
    assert said(caplog) == [("WARNING", begun), ("INFO", over)]


def test_reference_that_can_not_be_read_any_more(
    credentials: Credentials, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The last value that could be read is used; the log says so once, and once when it is over."""
    caplog.set_level(logging.INFO)
    file = tmp_path / "url"
    reference = f"file:{file}"
    revealed = []
    for content in (URL, None, "", OTHER_URL, None):
        file.unlink(missing_ok=True) if content is None else file.write_text(content)
        revealed.append(credentials.reveal(reference))
    assert revealed == [URL, URL, URL, OTHER_URL, OTHER_URL]
    begun = ("WARNING", f"{BEFORE}{reference} can't be read: No such file or directory")
    over = ("INFO", f"{reference} can be read again")
    assert said(caplog) == [begun, over, begun]


def test_reference_that_could_never_be_read(credentials: Credentials, caplog: pytest.LogCaptureFixture) -> None:
    """Without a value to go on with it is an error, and nothing is logged."""
    for _ in range(2):
        with pytest.raises(CredentialError, match="env:CELL1_URL is not set"):
            credentials.reveal("env:CELL1_URL")
    assert not caplog.records


def test_of_many_threads_one_logs(
    credentials: Credentials, tmp_path: Path, together: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Threads that meet a failure together all get the last value, and it is said once."""
    (tmp_path / "url").write_text(URL)
    reference = f"file:{tmp_path}/url"
    credentials.reveal(reference)
    (tmp_path / "url").unlink()
    assert together(8, lambda _: credentials.reveal(reference)) == [URL] * 8
    assert said(caplog) == [("WARNING", f"{BEFORE}{reference} can't be read: No such file or directory")]


def test_repr_shows_no_secret(credentials: Credentials, tmp_path: Path, repository: KeyRepository) -> None:
    """What is printed of credentials is where the keys are."""
    credentials.reveal(credentials.protect(URL))
    assert repr(credentials) == f"<Credentials keys='{repository.folder}'>"
    assert not is_encrypted(repr(vars(credentials)))
