# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage credential`` as a shell sees it, and what stands in the API database afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from cellmw import engines
from cellmw.cell import CELL0_UUID
from cellmw.credentials import Credentials, KeyRepository, is_encrypted, key_id
from cellmw.store import Store, models
from tests.commands import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from oslo_config import cfg

    from tests.commands import Answer

    Credential = Callable[..., Answer]

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

QUEUE = "rabbit://nova:s3cret@host1:5672/"

DATABASE = "mysql+pymysql://nova:s3cret@db/cell1"


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """A configuration file with the API database and the folder for the keys in it."""
    path = tmp_path / "cellmw.conf"
    path.write_text(
        f"[api_database]\nconnection = sqlite:///{tmp_path}/api.db\n[cellmw]\ncredential_keys = {tmp_path}/keys\n"
    )
    return path


@pytest.fixture
def credential(configuration: Path, capsys: pytest.CaptureFixture[str]) -> Credential:
    """Runs a command, which never shows a password."""

    def run_it(*arguments: str) -> Answer:
        answer = run(capsys, configuration, "credential", *arguments)
        assert "s3cret" not in answer.out + answer.err
        return answer

    return run_it


@pytest.fixture
def repository(tmp_path: Path) -> KeyRepository:
    """The keys, which were set up."""
    repository = KeyRepository(str(tmp_path / "keys"))
    repository.setup()
    return repository


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """The API database: cell0, a cell in plain text, one by reference and one without URLs."""
    engine = engines.make_engine(f"sqlite:///{tmp_path}/api.db", {"sqlite_synchronous": False}, pre_ping=False)
    models.metadata.create_all(engine)
    with Store(engine) as store:
        store.create_cell(
            name="cell0", uuid=CELL0_UUID, transport_url="none:///", database_connection=DATABASE + "_cell0"
        )
        store.create_cell(name="cell1", transport_url=QUEUE, database_connection=DATABASE)
        store.create_cell(name="cell2", transport_url="env:CELL2_QUEUE", database_connection="file:/run/cell2")
        store.create_cell(name="cell3", transport_url="", database_connection="")
        yield store


def stored(store: Store) -> list[str]:
    """Return what stands in the table, row by row."""
    columns = models.cell_mappings.c
    with store.engine.connect() as connection:
        rows = connection.execute(sa.select(columns.transport_url, columns.database_connection).order_by(columns.id))
        return [text for row in rows for text in row]


PLAIN = ["none:///", DATABASE + "_cell0", QUEUE, DATABASE, "env:CELL2_QUEUE", "file:/run/cell2", "", ""]


def test_setup(credential: Credential, tmp_path: Path) -> None:
    """Setup makes the keys and names the primary one; done again it leaves them, and succeeds."""
    done = credential("setup")
    primary = KeyRepository(f"{tmp_path}/keys").load().primary.id
    assert done == (0, f"the primary key is {primary}\n", "")
    left = f"there are keys in {tmp_path}/keys already, and they were left as they are\n"
    assert credential("setup") == (0, f"{left}the primary key is {primary}\n", "")


def test_without_the_option(credential: Credential, configuration: Path) -> None:
    """Every command says in one line which option has to be set."""
    configuration.write_text("")
    said = "cellmw-manage: [cellmw] credential_keys is not set: set it to the folder for the keys\n"
    for command in ("setup", "rotate", "reencrypt"):
        assert credential(command) == (255, "", said)


def test_rotate(credential: Credential, repository: KeyRepository, store: Store) -> None:
    """Rotate names the primary key, and those that it has removed."""
    old = repository.load().primary.id
    assert credential("rotate", "--max-active-keys", "2") == (
        0,
        f"the primary key is {(new := repository.load().primary).id}\nkey {old} was removed\n",
        "",
    )
    assert new.id != old


@pytest.mark.parametrize("where", ["API database", "file"])
def test_rotate_keeps_a_key_that_is_in_use(
    credential: Credential, repository: KeyRepository, store: Store, configuration: Path, tmp_path: Path, where: str
) -> None:
    """A key that a record is encrypted with is kept, until the record is encrypted with another."""
    store.update_cell(CELL0_UUID, transport_url="cellmw:fernet:cut off")
    credential("reencrypt")
    old = repository.load().primary.id
    if where == "file":
        _, _, queue, database, *_ = stored(store)
        record = {"id": 1, "uuid": CELL0_UUID, "transport_url": queue, "database_connection": database}
        credential("reencrypt", "--decrypt")
        (tmp_path / "cells.json").write_text(json.dumps({"cells": [record]}))
        (tmp_path / "cells.json").chmod(0o600)
        with configuration.open("a") as file:
            file.write(f"cells_config = {tmp_path}/cells.json\n")
    answer = credential("rotate", "--max-active-keys", "2")
    assert (answer.exit_code, answer.err.count("\n"), f"key {old} was kept" in answer.err) == (0, 1, True)
    assert old in repository.load().by_id


def test_rotate_to_one_key(credential: Credential, repository: KeyRepository) -> None:
    """There is always a staged and a primary key."""
    assert credential("rotate", "--max-active-keys", "1").exit_code == 2


def test_reencrypt(credential: Credential, repository: KeyRepository, store: Store, conf: cfg.ConfigOpts) -> None:
    """Plain text is encrypted, an older key replaced by the primary one, and the rest is left."""
    first = repository.load().primary.id
    assert credential("reencrypt") == (
        0,
        f"cell cell0: database connection encrypted with key {first}\n"
        f"cell cell1: transport URL and database connection encrypted with key {first}\n"
        "cell cell2: nothing to do\n"
        "cell cell3: nothing to do\n",
        "",
    )
    second = repository.rotate().primary
    for primary in (first, second):
        texts = stored(store)
        assert [key_id(text) if is_encrypted(text) else text for text in texts] == [
            *("none:///", primary, primary, primary),
            *PLAIN[4:],
        ]
        credential("reencrypt")
    credentials = Credentials(str(repository.folder), conf)
    assert [credentials.decrypt(text) for text in texts] == PLAIN
    assert credential("reencrypt").out == "".join(f"cell cell{number}: nothing to do\n" for number in range(4))
    assert stored(store) == texts


def test_reencrypt_decrypt(credential: Credential, repository: KeyRepository, store: Store) -> None:
    """The way back leaves plain text, and the references."""
    credential("reencrypt")
    answer = credential("reencrypt", "--decrypt")
    assert "cell cell1: transport URL and database connection decrypted\n" in answer.out
    assert (answer.exit_code, stored(store)) == (0, PLAIN)


def test_reencrypt_dry_run(credential: Credential, repository: KeyRepository, store: Store) -> None:
    """A dry run says what would be done, and does nothing."""
    answer = credential("reencrypt", "--dry-run")
    assert (answer.exit_code, stored(store)) == (0, PLAIN)
    assert "cell cell0: database connection would be encrypted with key" in answer.out


def test_reencrypt_where_nova_reads(credential: Credential, repository: KeyRepository, store: Store) -> None:
    """What Nova would have to read is not encrypted unless forced; the way back is always open."""
    with store.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('b30f573d3377')")
    answer = credential("reencrypt")
    assert (answer.exit_code, "--force" in answer.err, stored(store)) == (1, True, PLAIN)
    assert (credential("reencrypt", "--force").exit_code, is_encrypted(stored(store)[1])) == (0, True)
    assert (credential("reencrypt", "--decrypt").exit_code, stored(store)) == (0, PLAIN)


def test_reencrypt_what_can_not_be_read(credential: Credential, repository: KeyRepository, store: Store) -> None:
    """A record that can't be decrypted is named, and left as it is; the others are done."""
    unknown = "cellmw:fernet:0123456789ab:gAAAAAB"
    store.update_cell(CELL0_UUID, database_connection=unknown)
    answer = credential("reencrypt")
    assert answer.exit_code == 3
    assert answer.err.startswith("cellmw-manage: cell cell0 was left as it is: it is encrypted with key 0123456789ab")
    assert [is_encrypted(text) and text != unknown for text in stored(store)[:4]] == [False, False, True, True]


def test_reencrypt_to_what_another_cell_has(credential: Credential, repository: KeyRepository, store: Store) -> None:
    """A URL that was hidden from the check for duplicates stays encrypted."""
    credential("reencrypt")
    store.create_cell(name="cell4", transport_url="none:///", database_connection=DATABASE)
    answer = credential("reencrypt", "--decrypt")
    assert (answer.exit_code, "cell cell1 was left as it is" in answer.err) == (3, True)
    assert [is_encrypted(text) for text in stored(store)[:4]] == [False, False, True, True]


def test_reencrypt_leaves_what_others_change(
    credential: Credential, repository: KeyRepository, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that is changed between reading and writing is left so, one that is deleted is no error."""
    cell1 = store.list_cells()[1]
    moved = f"{QUEUE}moved"

    def change(self: Credentials, url: str) -> str:
        if url == QUEUE:
            store.update_cell(cell1.uuid, transport_url=moved)
        if url == moved:
            store.delete_cell(cell1.uuid)
        return protect(self, url)

    protect = Credentials.protect
    monkeypatch.setattr(Credentials, "protect", change)
    answer = credential("reencrypt")
    said = "cellmw-manage: cell cell1 was left as it is: somebody has changed it meanwhile: run the command again\n"
    assert (answer.exit_code, answer.err, stored(store)[2]) == (3, said, moved)
    answer = credential("reencrypt")
    assert (answer.exit_code, answer.err, "cell1" in answer.out) == (0, "", False)


def test_setup_by_a_dry_run(credential: Credential, tmp_path: Path) -> None:
    """A dry run makes nothing, not even the folder; where there are keys it says what the real one says."""
    assert credential("setup", "--dry-run") == (0, f"keys would be made in {tmp_path}/keys\n", "")
    assert not (tmp_path / "keys").exists()
    (made,) = json.loads(credential("setup", "-f", "json").out)
    primary = KeyRepository(f"{tmp_path}/keys").load().primary.id
    assert made == {"Folder": f"{tmp_path}/keys", "Outcome": "created", "Primary Key": primary}
    assert credential("setup", "--dry-run") == credential("setup")
    (tmp_path / "keys").chmod(0o755)
    assert credential("setup", "--dry-run").exit_code == 255


def test_rotate_by_a_dry_run(credential: Credential, repository: KeyRepository, store: Store) -> None:
    """A dry run says what the next rotation does, and leaves the keys as they are."""
    for _ in range(2):
        before = {path.name: path.read_text() for path in repository.folder.iterdir()}
        dry = credential("rotate", "--max-active-keys", "2", "--dry-run")
        assert {path.name: path.read_text() for path in repository.folder.iterdir()} == before
        real = credential("rotate", "--max-active-keys", "2")
        assert dry == (0, real.out.replace(" is ", " would be ").replace(" was ", " would be "), "")
        assert "removed" in real.out


def test_rotate_for_scripts(credential: Credential, repository: KeyRepository, store: Store) -> None:
    """With a format there is a row for each key that something was decided about."""
    oldest = repository.load().primary.id
    rows = json.loads(credential("rotate", "--max-active-keys", "2", "-f", "json").out)
    primary = repository.load().primary.id
    assert rows == [{"Key": primary, "Outcome": "primary"}, {"Key": oldest, "Outcome": "removed"}]


def test_reencrypt_for_scripts(credential: Credential, repository: KeyRepository, store: Store) -> None:
    """With a format there is a row for each cell, with what was changed of it."""
    primary = repository.load().primary.id
    dry, real = (json.loads(credential("reencrypt", *dry, "-f", "json").out) for dry in (["--dry-run"], []))
    both = "transport_url, database_connection"
    for rows, done in (dry, f"would be encrypted with key {primary}"), (real, f"encrypted with key {primary}"):
        assert [(row["Name"], row["Outcome"], row["Columns"]) for row in rows] == [
            ("cell0", done, "database_connection"),
            ("cell1", done, both),
            ("cell2", "nothing to do", ""),
            ("cell3", "nothing to do", ""),
        ]
