# SPDX-License-Identifier: Apache-2.0
"""What becomes of a request, explained: the answer is the filter's own, and nothing is changed by asking."""

from __future__ import annotations

import json
import logging
import socket
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING, Any

import pytest
from oslo_cache import core as oslo_cache
from sqlalchemy import text

from cellmw import deploy, own_urls
from cellmw.admin import explanation
from cellmw.admin.explanation import Caller, Explanation
from cellmw.exceptions import ConfigError
from cellmw.shared_cache import PREFIX, Connection, SharedMappings, Unprotected
from tests.unit.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from oslo_config import cfg

    from cellmw.cell import Cell
    from cellmw.store import Store

UUID = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9"
NOBODY = "ffffffff-ffff-4fff-bfff-ffffffffffff"


class Asked:
    """An explanation, step by step. Lives as long as the test."""

    def __init__(self, found: Explanation) -> None:
        self.passes = found.passes
        self.steps = found.steps
        self.results = {step.step: step.result for step in found.steps}
        self.whys = {step.step: step.why for step in found.steps}


@pytest.fixture
def ask(conf: cfg.ConfigOpts, store: Store) -> Callable[..., Asked]:
    """Have a request explained, by these options of ``[cellmw]``."""

    def ask(subject: str, caller: Caller = Caller(), patience: float = 5.0, **options: Any) -> Asked:  # noqa: B008
        for name, value in options.items():
            conf.set_override(name, value, group="cellmw")
        return Asked(explanation.explain(conf, subject, caller, patience=patience))

    return ask


@pytest.fixture
def mapped(store: Store, cell1: Cell) -> str:
    """An instance in cell1."""
    store.create_instance(UUID, project_id="project", user_id="user", cell_id=cell1.id)
    return UUID


# --- the path


def test_uuid(ask: Callable[..., Asked], mapped: str) -> None:
    """A uuid is asked for by the first route, and the request is aimed at its cell."""
    asked = ask(mapped)
    assert asked.passes
    assert asked.results["path"] == f"/servers/{mapped}"
    assert asked.results["answer"] == "targeted: the app answers, aimed at cell1"


def test_route_with_more_names(ask: Callable[..., Asked], mapped: str) -> None:
    """What a route has in braces is filled in, so that it matches."""
    asked = ask(mapped, Caller("project"), routes=["/{version}/{project_id}/{what}/{instance_uuid}"])
    assert asked.results["path"] == f"/v2.1/project/any/{mapped}"
    assert asked.passes


def test_no_routes(ask: Callable[..., Asked], mapped: str) -> None:
    """A filter without a route is none, unless there is a header that counts."""
    with pytest.raises(ConfigError, match="there has to be at least one template"):
        ask(mapped, routes=[])
    asked = ask(mapped, instance_header="X-Instance-ID", trust_header=True)
    assert asked.results["answer"] == "targeted: the app answers, aimed at cell1"


def test_path(ask: Callable[..., Asked], mapped: str) -> None:
    """Of a path the route that matches is named, and those that were tried before it."""
    asked = ask(f"/v2.1/servers/{mapped}/action?x=/servers/{NOBODY}")
    assert asked.results["route"] == "/{project_id}/servers/{instance_uuid}"
    assert asked.whys["route"] == "tried before it: /servers/{instance_uuid}"
    assert asked.results["instance"] == mapped


def test_whole_url(ask: Callable[..., Asked], mapped: str) -> None:
    """A URL as a client has it is taken for its path, decoded as a server does."""
    asked = ask(f"https://api.example.org:8774/servers%2F{mapped}?a=b")
    assert (asked.results["path"], asked.results["instance"]) == (f"/servers%2F{mapped}", mapped)


def test_path_of_no_instance(ask: Callable[..., Asked]) -> None:
    """A path that no route matches passes through; all routes were tried."""
    asked = ask("/flavors/1")
    assert (asked.passes, asked.results["route"]) == (True, "none")
    assert asked.whys["route"].count("/servers/") == 4
    assert asked.results["answer"] == "passes through"


def test_path_that_is_no_text(ask: Callable[..., Asked]) -> None:
    """Bytes that are not UTF-8 pass through, as they do in a pipeline."""
    assert ask(f"/servers/{UUID}/%ff").results["answer"] == "passes through"


def test_upper_case(ask: Callable[..., Asked], mapped: str) -> None:
    """A uuid in upper case is looked up in lower case, and that is said."""
    asked = ask(f"/servers/{mapped.upper()}")
    assert (asked.results["instance"], "lower case" in asked.whys["instance"]) == (mapped, True)
    assert asked.passes


def test_switched_off(ask: Callable[..., Asked], mapped: str) -> None:
    """A filter that is switched off lets everything through."""
    asked = ask(mapped, enabled=False)
    assert (asked.passes, asked.results) == (True, {"answer": "passes through"})


# --- the outcomes


def test_unmapped(ask: Callable[..., Asked]) -> None:
    """An instance without a mapping is a 404."""
    asked = ask(NOBODY)
    assert (asked.passes, asked.results["mapping"], asked.results["answer"]) == (False, "none", "404 Not Found")
    assert asked.whys["answer"] == f"instance {NOBODY} has no mapping"


def test_unmapped_passes(ask: Callable[..., Asked]) -> None:
    """With unmapped = pass it goes through, untargeted."""
    asked = ask(NOBODY, unmapped="pass")
    assert (asked.passes, asked.results["answer"]) == (True, "unmapped: the app answers")


@pytest.mark.parametrize(("option", "answer"), [("pass", "building: the app answers"), ("409", "409 Conflict")])
def test_building(ask: Callable[..., Asked], store: Store, option: str, answer: str) -> None:
    """An instance without a cell passes, or is a 409, as the option says."""
    store.create_instance(UUID, project_id="project")
    asked = ask(UUID, building=option)
    assert (asked.passes, asked.results["answer"]) == (option == "pass", answer)
    assert asked.results["mapping"] == "no cell yet, project project, user not recorded"
    assert "worker's cache" in asked.results
    assert asked.results["worker's cache"] == "up to 1 s old"


def test_cell0(ask: Callable[..., Asked], store: Store, cell0: Cell) -> None:
    """An instance in cell0 is aimed at a cell that has no queue."""
    store.create_instance(UUID, project_id="project", cell_id=cell0.id)
    asked = ask(UUID)
    assert asked.results["answer"] == "cell0: the app answers, aimed at cell0"
    assert asked.results["queue"] == "it has none"
    assert "no cell could take" in asked.whys["cell"]


def test_dangling(ask: Callable[..., Asked], store: Store, mapped: str) -> None:
    """A mapping to a cell that has no record is a 500, and both ids are said."""
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE instance_mappings SET cell_id = 99"))
    asked = ask(mapped)
    assert (asked.passes, asked.results["cell"]) == (False, "none")
    assert asked.results["answer"] == "500 Internal Server Error"
    assert asked.whys["answer"] == f"instance {mapped} is mapped to cell id 99, which has no record"


def test_other_project(ask: Callable[..., Asked], mapped: str) -> None:
    """Of another project it is the 404 of an instance that does not exist, and the reason is said here."""
    asked = ask(mapped, Caller("stranger"))
    assert (asked.passes, asked.results["answer"]) == (False, "404 Not Found")
    assert "project_check" in asked.whys["answer"]
    assert "no mapping" not in asked.whys["answer"]


def test_admin(ask: Callable[..., Asked], mapped: str) -> None:
    """An admin of another project passes."""
    asked = ask(mapped, Caller("stranger", is_admin=True))
    assert (asked.passes, asked.results["project"]) == (True, "asked by project stranger, an admin")


def test_no_project_check(ask: Callable[..., Asked], mapped: str) -> None:
    """Without the check everybody passes."""
    assert ask(mapped, Caller("stranger"), project_check=False).passes


def test_own_project_by_default(ask: Callable[..., Asked], mapped: str) -> None:
    """Where nobody says who asks it is the project of the instance."""
    assert ask(mapped).results["project"] == "asked by project project"


# --- what does not answer


@pytest.fixture
def lost(new_cell: Callable[..., Cell], store: Store, tmp_path: Path) -> str:
    """An instance in a cell whose database is gone."""
    cell = new_cell("lost", database_connection=f"sqlite:///{tmp_path}/gone.sqlite")
    store.create_instance(UUID, project_id="project", cell_id=cell.id)
    return UUID


def test_database_down(ask: Callable[..., Asked], lost: str, tmp_path: Path) -> None:
    """A database that does not answer is a 503 with Retry-After; asking makes no file of it."""
    asked = ask(lost)
    assert (asked.passes, asked.results["database"]) == (False, "there is no such file")
    assert asked.results["answer"] == "503 Service Unavailable, Retry-After: 5"
    assert asked.whys["answer"].startswith("cell lost: its database does not answer (there is no such file)")
    assert not (tmp_path / "gone.sqlite").exists()


def test_database_down_and_degraded(ask: Callable[..., Asked], lost: str) -> None:
    """With down_cell = degrade the app gets the request, and is told."""
    asked = ask(lost, down_cell="degrade")
    assert (asked.passes, asked.results["answer"]) == (True, "down: the app answers, aimed at lost")


def test_queue_down(ask: Callable[..., Asked], new_cell: Callable[..., Cell], store: Store) -> None:
    """A queue that does not answer refuses no request, and the app is told."""
    cell = new_cell("mute", transport_url="rabbit://user:cell-Qx93-pw@127.0.0.1:1/")
    store.create_instance(UUID, project_id="project", cell_id=cell.id)
    asked = ask(UUID)
    assert (asked.passes, asked.results["queue"]) == (True, "does not answer: ConnectionRefusedError")
    assert "its queue is down" in asked.whys["answer"]


def test_unusable_url(ask: Callable[..., Asked], new_cell: Callable[..., Cell], store: Store) -> None:
    """A record that nobody can use is a 500, and what is wrong with it is said."""
    cell = new_cell("odd", database_connection="nosuch://user:cell-Qx93-pw@host/db")
    store.create_instance(UUID, project_id="project", cell_id=cell.id)
    asked = ask(UUID)
    assert asked.results["answer"] == "500 Internal Server Error"
    assert asked.results["database"] == "can't be used: no SQLAlchemy dialect is installed for 'nosuch' databases"
    assert (asked.whys["database"], asked.whys["queue"]) == ("", "")  # neither down_cell nor CellUnavailable


def test_api_database_down(ask: Callable[..., Asked], conf: cfg.ConfigOpts) -> None:
    """Without the API database nothing is known, and the request is a 503."""
    url = "mysql+pymysql://user:cell-Qx93-pw@127.0.0.1:1/api"
    conf.set_override("connection", url, group="api_database")
    asked = ask(UUID)
    assert (asked.passes, asked.results["mapping"], asked.results["held back"]) == (False, "not known", "not known")
    assert asked.results["answer"] == "503 Service Unavailable, Retry-After: 5"


def test_api_database_silent(ask: Callable[..., Asked], conf: cfg.ConfigOpts) -> None:
    """With one that takes connections and says nothing it is over soon, however long a request may wait."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        url = f"mysql+pymysql://user:cell-Qx93-pw@127.0.0.1:{server.getsockname()[1]}/api"
        conf.set_override("connection", url, group="api_database")
        began = monotonic()
        asked = ask(UUID, patience=0.2, request_deadline=60.0)
    assert (asked.passes, asked.results["mapping"]) == (False, "not known")
    assert monotonic() - began < PATIENCE / 2


# --- what is held back


def test_drained_cell(ask: Callable[..., Asked], store: Store, cell1: Cell, mapped: str) -> None:
    """A drained cell is a 503, and the operator's reason is said; that its database answers is said, too."""
    store.drain_cell(cell1.uuid, "new disks")
    asked = ask(mapped)
    assert (asked.passes, asked.results["held back"]) == (False, "cell1 is drained")
    assert asked.whys["held back"].startswith("new disks; since ")
    assert asked.results["database"].startswith("answers in ")
    assert asked.results["answer"] == "503 Service Unavailable, Retry-After: 5"


def test_other_cell_drained(ask: Callable[..., Asked], store: Store, cell2: Cell, mapped: str) -> None:
    """That another cell is drained is nothing to this instance."""
    store.drain_cell(cell2.uuid)
    asked = ask(mapped)
    assert (asked.passes, "held back" in asked.results) == (True, False)


@pytest.mark.parametrize(("until", "passes"), [(60, False), (-60, True)])
def test_held_instance(ask: Callable[..., Asked], store: Store, mapped: str, until: int, passes: bool) -> None:
    """An instance that is being moved is a 503 until its time is up."""
    store.hold_instances([mapped], datetime.now(UTC).replace(tzinfo=None, microsecond=0) + timedelta(seconds=until))
    asked = ask(mapped)
    assert (asked.passes, "held back" in asked.results) == (passes, not passes)


# --- the caches


def test_recent_change(ask: Callable[..., Asked], store: Store, cell1: Cell, cell2: Cell, mapped: str) -> None:
    """Of a mapping that was changed a moment ago it is said for how long workers may go by what was before."""
    store.update_instance(mapped, cell_id=cell2.id)
    asked = ask(mapped, mapping_ttl=1000.0)
    assert asked.results["changed"] in ("0 s ago", "1 s ago")
    assert "for 1000 s more" in asked.whys["changed"] or "for 999 s more" in asked.whys["changed"]
    assert "changed" not in ask(mapped, mapping_ttl=0.0).results


class Shared:
    """A shared cache in memory. Lives as long as the test."""

    def __init__(self) -> None:
        self.content: dict[str, Any] = {}
        self.opened: list[SharedMappings] = []

    def open(self, *_: object) -> SharedMappings:
        """Open it once more."""
        region = oslo_cache.create_region()
        region.configure("dogpile.cache.memory", arguments={"cache_dict": self.content})
        self.opened.append(SharedMappings(lambda: Connection(region.backend), Unprotected(), timeout=0.1))
        return self.opened[-1]

    def put(self, *entry: Any) -> None:
        """Write an entry of the instance."""
        self.content[PREFIX + UUID] = json.dumps([UUID, *entry]).encode()


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shared]:
    """The shared cache, which every worker has; whoever opens it has to close it."""
    shared = Shared()
    monkeypatch.setattr(deploy, "shared_mappings", lambda conf, chosen: shared.open() if chosen.shared_cache else None)
    yield shared
    assert all(opened._closed for opened in shared.opened)


def test_no_entry(ask: Callable[..., Asked], shared: Shared, mapped: str) -> None:
    """Where the shared cache has nothing, a request would put the row there, and asking does not."""
    asked = ask(mapped, shared_cache=True)
    assert asked.results["shared cache"] == "has no entry"
    assert (asked.passes, shared.content) == (True, {})


def test_entry_agrees(ask: Callable[..., Asked], shared: Shared, cell1: Cell, mapped: str) -> None:
    """An entry that says what the row says is what a worker goes by that does not know the instance."""
    shared.put(cell1.id, "project", False, time() - 10)
    asked = ask(mapped, shared_cache=True)
    assert asked.results["shared cache"] == f"cell id {cell1.id}, project project, 10 s old"
    assert asked.whys["shared cache"].startswith("as the row has it; a worker that does not know")


def test_entry_disagrees(ask: Callable[..., Asked], shared: Shared, cell2: Cell, mapped: str) -> None:
    """A worker goes by the entry also where the row has changed, so the answer is the entry's cell."""
    shared.put(cell2.id, "project", False, time() - 10)
    asked = ask(mapped, shared_cache=True)
    assert asked.whys["shared cache"].startswith("NOT as the row has it")
    assert asked.results["answer"] == "targeted: the app answers, aimed at cell2"


def test_entry_leads_to_a_cell_that_is_down(
    ask: Callable[..., Asked], shared: Shared, new_cell: Callable[..., Cell], mapped: str, tmp_path: Path
) -> None:
    """Where the entry leads elsewhere both cells are asked, and what that one says is what counts."""
    other = new_cell("lost", database_connection=f"sqlite:///{tmp_path}/gone.sqlite")
    shared.put(other.id, "project", False, time())
    asked = ask(mapped, shared_cache=True)
    assert [step.result.split()[0] for step in asked.steps if step.step == "cell"] == ["cell1", "lost"]
    assert [step.result[:7] for step in asked.steps if step.step == "database"] == ["answers", "there i"]
    assert asked.whys["cell"] == "by the shared cache"
    assert asked.results["answer"] == "503 Service Unavailable, Retry-After: 5"


def test_entry_alone(ask: Callable[..., Asked], shared: Shared, cell1: Cell) -> None:
    """An entry of an instance that has no mapping any more is gone by as well."""
    shared.put(cell1.id, "project", False, time())
    asked = ask(UUID, shared_cache=True)
    assert (asked.results["mapping"], asked.results["project"]) == ("none", "asked by project project")
    assert asked.results["answer"] == "targeted: the app answers, aimed at cell1"


def test_old_entry(ask: Callable[..., Asked], shared: Shared, cell2: Cell, mapped: str) -> None:
    """An entry that is too old is passed over while the API database answers, and stays as it is."""
    shared.put(cell2.id, "project", False, time() - 100)
    before = dict(shared.content)
    asked = ask(mapped, shared_cache=True)
    assert "while the API database does not answer" in asked.whys["shared cache"]
    assert asked.results["answer"] == "targeted: the app answers, aimed at cell1"
    assert shared.content == before


def test_entry_of_a_dangling_mapping_stays(
    ask: Callable[..., Asked], shared: Shared, store: Store, mapped: str
) -> None:
    """What a worker would drop from the shared cache stays there."""
    shared.put(99, "project", False, time())
    before = dict(shared.content)
    assert ask(mapped, shared_cache=True).results["answer"] == "500 Internal Server Error"
    assert shared.content == before


def test_damaged_entry(ask: Callable[..., Asked], shared: Shared, mapped: str) -> None:
    """An entry that is none counts as missing, and why is said."""
    shared.content[PREFIX + UUID] = b"{"
    asked = ask(mapped, shared_cache=True)
    assert (asked.passes, asked.results["shared cache"]) == (True, "has no entry")
    assert "damaged" in asked.whys["shared cache"]


# --- other filters


def test_metadata(ask: Callable[..., Asked], mapped: str) -> None:
    """A filter that goes by a header gets that header, signed, and no route counts."""
    options = {"instance_header": "X-Instance-ID", "instance_header_secret": "proxy-Zk41-secret"}
    asked = ask(mapped, **options)
    assert (asked.passes, asked.results["route"]) == (True, "header X-Instance-ID")
    assert not ask(mapped, Caller("stranger", is_admin=True), **options).passes
    assert ask(f"/servers/{mapped}", **options).results["answer"] == "passes through"


def test_other_context_key(ask: Callable[..., Asked], mapped: str) -> None:
    """A filter behind another service's context finds one there."""
    assert ask(mapped, context_key="nova.context").passes


def test_cell_level_service(ask: Callable[..., Asked], conf: cfg.ConfigOpts, cell1: Cell) -> None:
    """A cell-level service goes to its own cell, and looks nothing up."""
    own_urls.transport_url(conf)  # each registers its option
    own_urls.database_connection(conf)
    conf.set_override("transport_url", cell1.reveal_transport_url())
    conf.set_override("connection", cell1.reveal_database_connection(), group="database")
    asked = ask(UUID, role="cell", local_cell_name="here")
    assert asked.results["answer"] == "local: the app answers, aimed at here"
    assert asked.results["mapping"] == "none is looked up"


# --- nothing is changed


def test_nothing_is_written(ask: Callable[..., Asked], lost: str, store: Store, tmp_path: Path) -> None:
    """No database has another byte afterwards, and no file is new."""

    def state() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    before = state()
    for subject in (lost, NOBODY, "/flavors"):
        ask(subject)
    assert state() == before


def test_nothing_is_logged(
    ask: Callable[..., Asked], lost: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the filter would log of the request is not logged: nobody has made it. The log is as it was afterwards."""
    with caplog.at_level(logging.INFO, logger="cellmw"):
        ask(lost)
    assert [record for record in caplog.records if record.name.startswith("cellmw")] == []
    assert capsys.readouterr().err == ""
    assert logging.getLogger("cellmw").propagate
    assert not logging.getLogger("cellmw").handlers


def test_wrong_option(ask: Callable[..., Asked]) -> None:
    """Where the filter could not be made there is nothing to explain, but for that."""
    with pytest.raises(ConfigError, match="routes"):
        ask(UUID, routes=["servers"])


def test_answer_is_the_filters(ask: Callable[..., Asked], conf: cfg.ConfigOpts, lost: str) -> None:
    """What is said to be answered is what the answer is: nothing here is a copy of the filter's rules."""

    class Refusing(explanation._Filter):
        def __call__(self, environ: Any, start_response: Any) -> Any:
            start_response("418 I'm a teapot", [])
            return [b""]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(explanation, "_Filter", Refusing)
        asked = ask(lost)
    assert (asked.passes, asked.results["answer"]) == (False, "418 I'm a teapot")


def test_cells_are_closed(ask: Callable[..., Asked], mapped: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is opened is closed."""
    opened: list[Any] = []
    make = deploy.cells

    def remember(*arguments: Any, **options: Any) -> Any:
        opened.append(make(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(deploy, "cells", remember)
    ask(mapped)
    assert opened
    for cells in opened:
        with closing(cells):
            assert cells._pool.closed
