# SPDX-License-Identifier: Apache-2.0
"""References: environment variables, files, and secrets of a key manager that castellan loads."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from castellan.common.exception import ManagedObjectNotFoundError
from castellan.common.objects.opaque_data import OpaqueData
from castellan.common.objects.passphrase import Passphrase

from cellmw.credentials.references import References, is_reference
from cellmw.exceptions import CredentialError

if TYPE_CHECKING:
    from pathlib import Path

    from oslo_config import cfg

URL = "rabbit://nova:s3cret@host:5672/"


class Vault:
    """A key manager for castellan, in this process.

    :cvar secrets: what it has
    :cvar opened: the ones that were made
    :cvar asked: the contexts that it was asked with
    """

    secrets: ClassVar[dict[str, Any]] = {
        "of-bytes": OpaqueData(URL.encode()),
        "of-text": Passphrase(URL),
        "without": OpaqueData(None),
    }
    opened: ClassVar[list[Vault]] = []
    asked: ClassVar[list[Any]] = []

    def __init__(self, configuration: cfg.ConfigOpts) -> None:
        """Note that it was made."""
        self.opened.append(self)

    def get(self, context: Any, managed_object_id: str, metadata_only: bool = False) -> Any:
        """Return a secret, or fail as castellan's own key managers do."""
        self.asked.append(context)
        if managed_object_id not in self.secrets:
            raise ManagedObjectNotFoundError(uuid=f"s3cret {managed_object_id}")
        return self.secrets[managed_object_id]


@pytest.fixture(autouse=True)
def _empty_vault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what was noted."""
    monkeypatch.setattr(Vault, "opened", [])
    monkeypatch.setattr(Vault, "asked", [])


@pytest.fixture
def references(conf: cfg.ConfigOpts) -> References:
    """The way to what references lead to, with an empty configuration."""
    return References(conf)


@pytest.fixture
def with_vault(conf: cfg.ConfigOpts, tmp_path: Path) -> References:
    """The same with a key manager, that a configuration file names."""
    (tmp_path / "vault.conf").write_text(f"[key_manager]\nbackend = {__name__}.{Vault.__name__}\n")
    conf(["--config-file", str(tmp_path / "vault.conf")])
    return References(conf)


def refusal(references: References, reference: str) -> str:
    """Return the error that it is to look this up."""
    with pytest.raises(CredentialError) as caught:
        references.look_up(reference)
    assert "s3cret" not in str(caught.value)
    return str(caught.value)


def test_what_is_a_reference() -> None:
    """A URL, a template and an envelope are none."""
    assert all(is_reference(stored) for stored in ("env:X", "file:/x", "castellan:x"))
    assert not any(is_reference(stored) for stored in (URL, "{scheme}://h/", "none:///", "cellmw:fernet:x", "", "env"))


def test_environment(references: References, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable's value is the URL; one that is not set is named."""
    monkeypatch.setenv("CELL1_URL", URL)
    assert references.look_up("env:CELL1_URL") == URL
    monkeypatch.delenv("CELL1_URL")
    assert refusal(references, "env:CELL1_URL") == "env:CELL1_URL is not set in the environment"


def test_file(references: References, tmp_path: Path) -> None:
    """The whole file is the URL, but for the end of its line; that others may read it is its owner's business."""
    for ending in ("", "\n", "\r\n"):
        (tmp_path / "url").write_bytes((URL + ending).encode())
        (tmp_path / "url").chmod(0o644)
        assert references.look_up(f"file:{tmp_path}/url") == URL


def test_file_that_is_not_there(references: References, tmp_path: Path) -> None:
    """The error names the file and says what is wrong with it."""
    for path, reason in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        assert refusal(references, f"file:{path}") == f"file:{path} can't be read: {reason}"


def test_relative_path(references: References) -> None:
    """A path is absolute, as nobody knows where a service was started."""
    for path in ("url", "", "~/url", "./url"):
        assert refusal(references, f"file:{path}") == f"file:{path} has to have an absolute path"


def test_content_that_is_no_url(references: References, tmp_path: Path) -> None:
    """What can't be a URL is an error that names the file, and shows nothing of what is in it."""
    reasons = {
        b"\n": "is empty",
        f"{URL}\n{URL}\n".encode(): "has more than one line",
        b"rabbit://nova:s3cret\xff@host/": "is not text in UTF-8",
        b"env:s3cret": "leads to what is itself",
        b"cellmw:fernet:s3cret": "leads to what is itself",
    }
    for content, reason in reasons.items():
        (tmp_path / "url").write_bytes(content)
        assert refusal(references, f"file:{tmp_path}/url").startswith(f"file:{tmp_path}/url {reason}")


def test_reference_that_can_not_be_shown(references: References) -> None:
    """A reference is shown in logs, so it has nothing in it that would make a line of its own there."""
    assert refusal(references, "file:/x\nERROR").startswith("'file:/x\\nERROR' is no reference")


def test_castellan(with_vault: References) -> None:
    """Whether a secret is bytes or text, it is the URL; the key manager is made once."""
    assert [with_vault.look_up(f"castellan:{secret}") for secret in ("of-bytes", "of-text")] == [URL, URL]
    assert len(Vault.opened) == 1


def test_castellan_without_the_secret(with_vault: References) -> None:
    """The error names the secret, and quotes nothing of what the key manager says."""
    reason = "can't be looked up: ManagedObjectNotFoundError in the key manager"
    assert refusal(with_vault, "castellan:unknown") == f"castellan:unknown {reason}"
    assert refusal(with_vault, "castellan:without") == "castellan:without is empty"


def test_castellan_whose_key_manager_is_silent(with_vault: References, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure that took long the key manager is left alone for a while, and after a quick one it is not."""
    clock = iter([0.0, 0.9, 1.0, 2.0, 6.9, 7.0])
    monkeypatch.setattr("cellmw.credentials.references.monotonic", lambda: next(clock))
    for _ in range(2):
        assert refusal(with_vault, "castellan:unknown").startswith("castellan:unknown can't be looked up")
    refused = refusal(with_vault, "castellan:of-text")
    assert refused == "castellan:of-text was not looked up: the key manager did not answer just now"
    assert (len(Vault.asked), with_vault.look_up("castellan:of-text")) == (2, URL)


def test_castellan_without_a_key_manager(references: References, conf: cfg.ConfigOpts, tmp_path: Path) -> None:
    """A backend that is not there is an error of the key manager, not of castellan's absence."""
    (tmp_path / "vault.conf").write_text("[key_manager]\nbackend = no.such.backend\n")
    conf(["--config-file", str(tmp_path / "vault.conf")])
    assert refusal(references, "castellan:x").endswith("ModuleNotFoundError in the key manager")


@pytest.mark.parametrize(("option", "context"), [("", "RequestContext"), ("auth_type=token\ntoken=x", "Token")])
def test_castellan_asks_as_it_is_configured(
    with_vault: References, conf: cfg.ConfigOpts, tmp_path: Path, option: str, context: str
) -> None:
    """The key manager is asked with the credentials of [key_manager], and else with a context that has none."""
    with (tmp_path / "vault.conf").open("a") as file:
        file.write(option)
    conf.reload_config_files()
    with_vault.look_up("castellan:of-text")
    assert [type(asked).__name__ for asked in Vault.asked] == [context]


def test_castellan_in_a_child_process(with_vault: References, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child does not use the connections of its parent."""
    with_vault.look_up("castellan:of-text")
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with_vault.look_up("castellan:of-text")
    assert len(Vault.opened) == 2


def test_castellan_is_met_only_where_it_is_needed(
    with_vault: References, conf: cfg.ConfigOpts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its options are in the configuration when a reference needs it, and not before."""
    monkeypatch.setenv("CELL1_URL", URL)
    with_vault.look_up("env:CELL1_URL")
    before = "key_manager" in conf
    with_vault.look_up("castellan:of-text")
    assert (before, "key_manager" in conf) == (False, True)


def test_castellan_is_not_installed(references: References, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which extra brings it."""
    monkeypatch.setitem(sys.modules, "castellan", None)
    assert refusal(references, "castellan:x") == "castellan:x needs castellan: install cellmw[castellan]"
