# SPDX-License-Identifier: Apache-2.0
"""From what is recorded of a cell to its URLs: decrypted, looked up, filled in, and for each cell alone."""

from __future__ import annotations

import contextlib
import logging
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from cellmw import conf as options
from cellmw import deploy, own_urls
from cellmw.cell import Cell
from cellmw.credentials import Credentials, KeyRepository
from cellmw.exceptions import CellMisconfigured
from cellmw.resolver import Resolver

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from oslo_config import cfg

    from cellmw.cells import Cells
    from cellmw.store import Store

SECRET = "hunter2"

QUEUE = "rabbit://api:hunter2@here:5673/vhost"
DATABASE = "mysql+pymysql://api:hunter2@here/nova"


@pytest.fixture
def conf(conf: cfg.ConfigOpts) -> cfg.ConfigOpts:
    """The configuration of a service with a bus and a database of its own."""
    own_urls.transport_url(conf)
    own_urls.database_connection(conf)
    conf.set_override("transport_url", QUEUE)
    conf.set_override("connection", DATABASE, "database")
    return conf


@pytest.fixture
def keys(tmp_path: Path) -> str:
    """A folder with a key."""
    folder = tmp_path / "keys"
    KeyRepository(str(folder)).setup()
    return str(folder)


@pytest.fixture
def credentials(conf: cfg.ConfigOpts, keys: str) -> Credentials:
    """What encrypts by that key."""
    return Credentials(keys, conf)


@pytest.fixture
def resolve(conf: cfg.ConfigOpts, credentials: Credentials) -> Callable[..., Cell]:
    """Resolve a cell of which this is recorded."""

    def resolve(queue: str | None, database: str | None = "sqlite://") -> Cell:
        return Resolver(conf, credentials).resolve(Cell(1, "uuid-1", "cell1", True, queue, database))

    return resolve


def test_nothing_to_resolve(resolve: Callable[..., Cell]) -> None:
    """What is recorded as it is stays that, with all that the record says else."""
    cell = resolve("rabbit://user:hunter2@host/", "sqlite:///file")
    assert (cell.id, cell.uuid, cell.name, cell.disabled) == (1, "uuid-1", "cell1", True)
    assert cell.reveal_transport_url() == "rabbit://user:hunter2@host/"
    assert cell.reveal_database_connection() == "sqlite:///file"


@pytest.mark.parametrize("missing", [None, ""])
def test_nothing_recorded(resolve: Callable[..., Cell], missing: str | None) -> None:
    """Where nothing is recorded that is what the error says."""
    cell = resolve(missing, missing)
    for reveal, what in (
        (cell.reveal_transport_url, "transport URL"),
        (cell.reveal_database_connection, "database connection"),
    ):
        with pytest.raises(CellMisconfigured, match=f"its {what} is missing"):
            reveal()


def test_no_queue(resolve: Callable[..., Cell]) -> None:
    """A cell that is to have no queue has none."""
    assert not resolve("none:///").has_transport


def test_filled_in(resolve: Callable[..., Cell]) -> None:
    """A template is filled in, each of the two from its own option."""
    cell = resolve("rabbit://{username}:{password}@there:{port}/{path}", "mysql+pymysql://{username}@there/{path}")
    assert cell.reveal_transport_url() == "rabbit://api:hunter2@there:5673/vhost"
    assert cell.reveal_database_connection() == "mysql+pymysql://api@there/nova"


def test_all_three(
    resolve: Callable[..., Cell], credentials: Credentials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is decrypted may be a reference, and what is looked up a template; so they are done in that order."""
    (tmp_path / "url").write_text("mysql+pymysql://{username}:{password}@there/{path}\n")
    monkeypatch.setenv("CELL1_QUEUE", "rabbit://{username}:{password}@there/")
    envelope = credentials.protect("rabbit://{username}:{password}@there:{port}/")
    assert resolve(envelope, f"file:{tmp_path}/url").reveal_transport_url() == "rabbit://api:hunter2@there:5673/"
    assert resolve(envelope, f"file:{tmp_path}/url").reveal_database_connection() == (
        "mysql+pymysql://api:hunter2@there/nova"
    )
    assert resolve("env:CELL1_QUEUE").reveal_transport_url() == "rabbit://api:hunter2@there/"


@pytest.mark.parametrize("password", ["{", "}", "{}", "{nosuch}", "{password", "a{b}c"])
def test_braces(resolve: Callable[..., Cell], password: str) -> None:
    """A brace in a password survives, whether there is anything to fill in or not."""
    assert resolve(f"rabbit://user:{password}@there/").reveal_transport_url() == f"rabbit://user:{password}@there/"
    filled = resolve(f"rabbit://{{username}}:{password}@there/").reveal_transport_url()
    assert filled == f"rabbit://api:{password}@there/"


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        ("rabbit://{username2}@there/", ["transport URL", "[DEFAULT] transport_url", "{username2}"]),
        ("env:CELLMW_NO_SUCH", ["transport URL", "CELLMW_NO_SUCH"]),
        ("file:/no/such/file", ["transport URL", "/no/such/file"]),
    ],
)
def test_cannot_be_resolved(resolve: Callable[..., Cell], stored: str, named: list[str]) -> None:
    """What can't be made out is an error when somebody wants to open it, which names what is missing and no secret."""
    cell = resolve(stored, f"sqlite:///{SECRET}")
    with pytest.raises(CellMisconfigured) as raised:
        cell.reveal_transport_url()
    for word in ("cell1", *named):
        assert word in str(raised.value)
    assert SECRET not in f"{raised.value} {raised.value!r} {cell!r} {raised.value.__context__!r}"
    assert cell.reveal_database_connection().startswith("sqlite:")


def test_key_that_is_not_there(
    conf: cfg.ConfigOpts, credentials: Credentials, resolve: Callable[..., Cell], tmp_path: Path
) -> None:
    """A record that was encrypted with a key which is not there is an error, which shows nothing of it."""
    envelope = credentials.protect(f"rabbit://user:{SECRET}@host/")
    KeyRepository(str(tmp_path / "others")).setup()
    for others in (Credentials(str(tmp_path / "others"), conf), Credentials(None, conf)):
        cell = Resolver(conf, others).resolve(Cell(1, "uuid-1", "cell1", False, envelope, "sqlite://"))
        with pytest.raises(CellMisconfigured, match="its transport URL can't be read") as raised:
            cell.reveal_transport_url()
        assert envelope not in str(raised.value)


@pytest.mark.parametrize(
    "default", ["rabbit", "rabbit://u:hunter2@host:port/", "://", "rabbit://[::1/", "rabbit://\x00/"]
)
def test_default_that_is_no_url(conf: cfg.ConfigOpts, resolve: Callable[..., Cell], default: str) -> None:
    """Whatever stands in the service's own option, it is an error of the cell's, or none."""
    conf.set_override("transport_url", default)
    cell = resolve("rabbit://{username}:{password}@{hostname}:{port}/{path}?{query}")
    with contextlib.suppress(CellMisconfigured):
        assert cell.reveal_transport_url()
    with pytest.raises(CellMisconfigured, match=r"\[DEFAULT\] transport_url") as raised:
        resolve("rabbit://{username7}@there/").reveal_transport_url()
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["", "encrypted", "env:", "file:", "file:relative", "castellan:", "{", "\x00", "{\x00}", "://"]
)
def test_whatever_is_recorded(resolve: Callable[..., Cell], text: str) -> None:
    """Whatever is recorded, to resolve it is no error."""
    resolve(text, text)


# -- as the running service has them ----------------------------------------------------------------------------------


@pytest.fixture
def cells(conf: cfg.ConfigOpts, store: Store, keys: str) -> Any:
    """The cells, with those keys."""
    conf.set_override("credential_keys", keys, options.GROUP)
    with closing(deploy.cells(conf)) as cells:
        yield cells


def test_others_go_on(cells: Cells, store: Store, cell1: Cell, cell2: Cell) -> None:
    """What can't be made out of one cell's record concerns nobody who wants another cell."""
    store.update_cell(cell2.uuid, transport_url="env:CELLMW_NO_SUCH")
    for _ in range(2):
        with cells.lease(cell1.id) as lease:
            assert lease.cell == cell1
        with pytest.raises(CellMisconfigured, match="CELLMW_NO_SUCH"):
            cells.lease(cell2.id)
        assert [cell.name for cell in cells.all()] == ["cell1", "cell2"]


def _is_followed(cells: Cells, cell: Cell, change: Callable[[], object], url: str) -> None:
    """See that what this changes is followed by a new generation of handles, which leads to that URL."""
    with cells.lease(cell.id) as before:
        handles = before.handles
        cells.refresh()
        with cells.lease(cell.id) as same:
            assert same.handles is handles
        change()
        cells.refresh()
        with cells.lease(cell.id) as after:
            assert after.handles is not handles
            assert after.cell.reveal_transport_url() == url


def test_changed_default(cells: Cells, conf: cfg.ConfigOpts, store: Store, cell1: Cell) -> None:
    """When the URL has changed that a template is filled in from, the cell is opened anew."""
    conf.set_override("transport_url", "memory://one/")
    store.update_cell(cell1.uuid, transport_url="memory://{hostname}/")
    _is_followed(cells, cell1, lambda: conf.set_override("transport_url", "memory://other/"), "memory://other/")


def test_changed_file(cells: Cells, store: Store, cell1: Cell, tmp_path: Path) -> None:
    """When the file has changed that a record refers to, the cell is opened anew."""
    file = tmp_path / "url"
    file.write_text("memory://one/\n")
    store.update_cell(cell1.uuid, transport_url=f"file:{file}")
    _is_followed(cells, cell1, lambda: file.write_text("memory://other/\n"), "memory://other/")


def test_changed_key(
    cells: Cells, store: Store, credentials: Credentials, cell1: Cell, keys: str, conf: cfg.ConfigOpts
) -> None:
    """Encrypted anew with another key, a cell that leads where it led is not opened anew; one that does not is."""
    store.update_cell(cell1.uuid, transport_url=credentials.protect("memory://one/"))

    def change() -> None:
        KeyRepository(keys).rotate(3)
        again = Credentials(keys, conf)
        with cells.lease(cell1.id) as before:
            store.update_cell(cell1.uuid, transport_url=again.protect("memory://one/"))
            cells.refresh()
            with cells.lease(cell1.id) as same:
                assert same.handles is before.handles
        store.update_cell(cell1.uuid, transport_url=again.protect("memory://other/"))

    _is_followed(cells, cell1, change, "memory://other/")


def test_log(
    cells: Cells, store: Store, credentials: Credentials, cell1: Cell, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of what is read is logged, at whatever level."""
    caplog.set_level(logging.DEBUG)
    store.update_cell(cell1.uuid, transport_url=credentials.protect(f"memory://user:{SECRET}@one/"))
    with cells.lease(cell1.id):
        store.update_cell(cell1.uuid, transport_url=f"rabbit://{{username9}}:{SECRET}@one/")
        cells.refresh()
    with pytest.raises(CellMisconfigured):
        cells.lease(cell1.id)
    assert SECRET not in caplog.text
