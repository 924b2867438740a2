# SPDX-License-Identifier: Apache-2.0
"""``cellmw-manage verify``, on SQLite; tests/operator runs the same on servers."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from oslo_utils import timeutils
from sqlalchemy import event, insert, update

from cellmw import engines
from cellmw.admin import verification
from cellmw.store import InstanceMapping, Store, migrations
from cellmw.store.instances import NOVA_MARKER
from cellmw.store.models import instance_mappings
from tests.commands import run
from tests.nova_cell import NovaCell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cellmw.cell import Cell
    from tests.commands import Answer, Manage

pytestmark = pytest.mark.usefixtures("logging_as_it_was")


def uuids(number: int) -> list[str]:
    """Return new uuids."""
    return [str(uuid.uuid4()) for _ in range(number)]


@pytest.fixture
def api_url(tmp_path: Path) -> str:
    """Where the API database is."""
    return f"sqlite:///{tmp_path}/api.sqlite"


@pytest.fixture
def new_cell_url(tmp_path: Path) -> Callable[[], str]:
    """Makes an empty database for a cell."""
    return lambda: f"sqlite:///{tmp_path}/{uuid.uuid4()}.sqlite"


@pytest.fixture
def store(api_url: str) -> Iterator[Store]:
    """The API database behind the command."""
    with Store(engines.make_engine(api_url, {}, pre_ping=False)) as store:
        migrations.sync(store.engine)
        yield store


@pytest.fixture
def verify(store: Store, api_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Manage:
    """Runs the command."""
    path = tmp_path / "cellmw.conf"
    path.write_text(f"[api_database]\nconnection = {api_url.replace('%', '%%')}\n")
    return partial(run, capsys, path, "verify")


class World:
    """Two cells, and what is mapped to them. Lives as long as the test."""

    def __init__(self, store: Store, new_cell_url: Callable[[], str]) -> None:
        self.store = store
        urls = [new_cell_url(), new_cell_url()]
        self.one, self.two = (NovaCell(url) for url in urls)
        self.cell1, self.cell2 = (
            store.create_cell(name=f"cell{number}", transport_url="none:///", database_connection=url)
            for number, url in enumerate(urls, 1)
        )

    def map(self, uuid: str, cell_id: int | None, *, age: float = 60.0, **values: Any) -> str:
        """Map an instance, as was done some minutes ago."""
        written_at = timeutils.utcnow() - timedelta(minutes=age)
        row = {"instance_uuid": uuid, "project_id": "p", "user_id": "u", "cell_id": cell_id, "created_at": written_at}
        with self.store.engine.begin() as connection:
            connection.execute(insert(instance_mappings), row | values)
        return uuid

    def mapped(self) -> dict[str, int | None]:
        """Return where each instance is mapped to."""
        return {mapping.instance_uuid: mapping.cell_id for mapping in self.store.list_instances(limit=10_000)}


@pytest.fixture
def world(store: Store, new_cell_url: Callable[[], str]) -> World:
    """Two cells."""
    return World(store, new_cell_url)


def found(answer: Answer) -> dict[str, list[str]]:
    """Return what was found, by its kind."""
    kinds: dict[str, list[str]] = {}
    for row in json.loads(answer.out):
        kinds.setdefault(row["Kind"], []).append(row["Instance UUID"])
    return kinds


def outcomes(answer: Answer) -> set[str]:
    """Return what became of what was found."""
    return {row["Outcome"] for row in json.loads(answer.out)}


JSON = ("-f", "json")


# --- nothing to find


def test_all_is_right(verify: Manage, world: World) -> None:
    """Instances that are mapped to their cell, deleted, hidden and built ones, are no finding."""
    living, deleted, unmapped, hidden, building = uuids(5)
    world.one.add_instances([living])
    world.one.add_instances([deleted, unmapped], deleted=1)
    world.one.add_instances([hidden])
    world.two.add_instances([hidden], hidden=True)
    world.map(living, world.cell1.id)
    world.map(deleted, world.cell1.id, queued_for_delete=True)
    world.map(hidden, world.cell1.id)
    world.map(building, None)
    answer = verify()
    assert (answer.exit_code, answer.out) == (0, "all mappings are right\n")
    assert "1 instances are mapped to no cell yet" in answer.err
    assert found(verify(*JSON)) == {}


def test_soft_deleted(verify: Manage, world: World) -> None:
    """A mapping may say that an instance is to be deleted long before it is."""
    (soft_deleted,) = uuids(1)
    world.one.add_instances([soft_deleted])
    world.map(soft_deleted, world.cell1.id, queued_for_delete=True)
    assert verify().exit_code == 0


def test_deleted_and_not_queued(verify: Manage, world: World) -> None:
    """What map_instances and Nova itself leave of deleted instances is counted, no fault, and put right by a repair."""
    deleted = uuids(3)
    world.one.add_instances(deleted, deleted=1)
    for each in deleted:
        world.map(each, world.cell1.id)
    answer = verify(*JSON)
    assert (answer.exit_code, found(answer)) == (0, {})
    assert "not queued: 3 (3 found)" in answer.err
    assert verify("--repair").exit_code == 0
    assert {mapping.queued_for_delete for mapping in world.store.list_instances()} == {True}
    assert "not queued" not in verify().err


def test_novas_marker(verify: Manage, world: World) -> None:
    """Where nova-manage was interrupted is no mapping."""
    world.map(uuids(1)[0].replace("-", " "), None, project_id=NOVA_MARKER, user_id=NOVA_MARKER)
    answer = verify("--repair")
    assert (answer.exit_code, "mapped to no cell" in answer.err) == (0, False)
    with world.store.engine.connect() as connection:
        assert len(connection.execute(instance_mappings.select()).all()) == 1


# --- what there is to find, and its repair


def test_unmapped(verify: Manage, world: World) -> None:
    """An instance without a mapping is mapped to the cell that it is in."""
    (unmapped,) = uuids(1)
    world.two.add_instances([unmapped], project_id="p9", user_id="u9")
    answer = verify(*JSON)
    assert (answer.exit_code, found(answer), outcomes(answer)) == (1, {"unmapped": [unmapped]}, {"found"})
    repaired = verify("--repair", *JSON)
    assert (repaired.exit_code, outcomes(repaired)) == (0, {"repaired"})
    assert world.store.list_instances() == [InstanceMapping(unmapped, world.cell2.id, "p9", "u9", False)]
    assert verify().exit_code == 0


def test_orphaned(verify: Manage, world: World) -> None:
    """A mapping of an instance that no cell has is forgotten, whichever cell it is mapped to."""
    orphans = uuids(2)
    world.map(orphans[0], world.cell1.id)
    world.map(orphans[1], world.cell2.id, queued_for_delete=True)
    assert found(verify(*JSON)) == {"orphaned": orphans}
    assert verify("--repair").exit_code == 0
    assert world.mapped() == {}


@pytest.mark.parametrize("when", ["created_at", "updated_at"])
def test_young_mapping(verify: Manage, world: World, when: str) -> None:
    """A mapping that was written in the last minutes is not judged: its row may be on its way."""
    orphan, wrong, building = uuids(3)
    world.two.add_instances([wrong, building])
    for each, cell_id in ((orphan, world.cell1.id), (wrong, world.cell1.id), (building, None)):
        world.map(each, cell_id, **{when: timeutils.utcnow()})
    before = world.mapped()
    assert found(verify("--repair", *JSON)) == {}
    assert world.mapped() == before


def test_mapping_without_a_time(verify: Manage, world: World) -> None:
    """A mapping of which nobody knows when it was written is an old one."""
    (orphan,) = uuids(1)
    world.map(orphan, world.cell1.id, created_at=None)
    assert found(verify(*JSON)) == {"orphaned": [orphan]}


def test_hidden_rows_are_no_orphans(verify: Manage, world: World) -> None:
    """A mapping is not forgotten as long as any cell has the instance, hidden or not."""
    (hidden,) = uuids(1)
    world.two.add_instances([hidden], hidden=True)
    world.map(hidden, world.cell1.id)
    assert verify("--repair").exit_code == 0
    assert world.mapped() == {hidden: world.cell1.id}


def test_wrong_cell(verify: Manage, world: World) -> None:
    """An instance that is in another cell than it is mapped to is mapped there; a deleted one, too."""
    living, deleted, returned = uuids(3)
    world.two.add_instances([living, returned]).add_instances([deleted], deleted=1)
    world.one.add_instances([returned], deleted=1)
    for each in (living, deleted, returned):
        world.map(each, world.cell1.id)
    answer = verify(*JSON)
    assert sorted(found(answer)["wrong cell"]) == sorted([living, deleted, returned])
    assert {row["Found in"] for row in json.loads(answer.out)} >= {"cell2"}
    assert verify("--repair").exit_code == 0
    assert world.mapped() == dict.fromkeys((living, deleted, returned), world.cell2.id)
    assert not world.store.get_instance(living).queued_for_delete
    assert verify().exit_code == 0


def test_no_cell(verify: Manage, world: World) -> None:
    """An instance that is in a cell, though its mapping says that it is being built, is mapped there."""
    (built,) = uuids(1)
    world.one.add_instances([built])
    world.map(built, None)
    assert found(verify(*JSON)) == {"no cell": [built]}
    assert verify("--repair").exit_code == 0
    assert world.mapped() == {built: world.cell1.id}


@pytest.mark.parametrize("mapped_to", ["cell1", "cell2", "none"])
def test_duplicate(verify: Manage, world: World, mapped_to: str) -> None:
    """An instance that lives in two cells is told of once, whatever it is mapped to, and nothing is done to it."""
    (twice,) = uuids(1)
    world.one.add_instances([twice])
    world.two.add_instances([twice])
    if mapped_to != "none":
        world.map(twice, getattr(world, mapped_to).id)
    before = world.mapped()
    answer = verify("--repair", *JSON)
    assert (answer.exit_code, found(answer), outcomes(answer)) == (1, {"duplicate": [twice]}, {"left"})
    assert json.loads(answer.out)[0]["Found in"] == "cell1, cell2"
    assert "delete it from the databases of the other cells" in answer.err
    assert world.mapped() == before


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"project_id": "q"}, "other project"),
        ({"user_id": "v"}, "other user"),
        ({"user_id": None}, "other user"),
    ],
)
def test_other_owner(verify: Manage, world: World, values: dict[str, Any], kind: str) -> None:
    """A mapping names the project and the user that the instance has."""
    (mapped,) = uuids(1)
    world.one.add_instances([mapped])
    world.map(mapped, world.cell1.id, **values)
    assert found(verify(*JSON)) == {kind: [mapped]}
    assert verify("--repair").exit_code == 0
    assert world.store.list_instances() == [InstanceMapping(mapped, world.cell1.id, "p", "u", False)]


def test_row_without_a_user(verify: Manage, world: World) -> None:
    """Where the row names no user the mapping may name any."""
    (mapped,) = uuids(1)
    world.one.add_instances([mapped], user_id=None)
    world.map(mapped, world.cell1.id)
    assert verify().exit_code == 0


def test_no_project(verify: Manage, world: World) -> None:
    """A row without a project is for the operator, mapped or not."""
    mapped, unmapped = uuids(2)
    world.one.add_instances([mapped, unmapped], project_id=None)
    world.map(mapped, world.cell1.id)
    answer = verify("--repair", *JSON)
    assert (answer.exit_code, found(answer), outcomes(answer)) == (1, {"no project": [mapped, unmapped]}, {"left"})
    assert world.mapped() == {mapped: world.cell1.id}


def test_only_one_cell(verify: Manage, world: World) -> None:
    """With --cell_uuid only instances in that cell are looked at, and mappings to it."""
    unmapped1, unmapped2, orphan1, orphan2 = uuids(4)
    world.one.add_instances([unmapped1])
    world.two.add_instances([unmapped2])
    world.map(orphan1, world.cell1.id)
    world.map(orphan2, world.cell2.id)
    answer = verify("--cell_uuid", world.cell2.uuid, "--repair", *JSON)
    assert found(answer) == {"unmapped": [unmapped2], "orphaned": [orphan2]}
    assert world.mapped() == {orphan1: world.cell1.id, unmapped2: world.cell2.id}


@pytest.mark.parametrize("only", ["cell1", "cell2"])
@pytest.mark.parametrize("mapped_to", ["cell1", "cell2", "none"])
def test_duplicate_of_one_cell(verify: Manage, world: World, only: str, mapped_to: str) -> None:
    """With --cell_uuid an instance that lives in another cell, too, is told of, whichever of them it is mapped to."""
    twice, once, moved = uuids(3)
    world.one.add_instances([twice]).add_instances([moved], deleted=1)
    world.two.add_instances([twice, once, moved])
    if mapped_to != "none":
        world.map(twice, getattr(world, mapped_to).id)
    for each in (once, moved):
        world.map(each, world.cell2.id)
    answer = verify("--cell_uuid", getattr(world, only).uuid, *JSON)
    assert (answer.exit_code, found(answer)) == (1, {"duplicate": [twice]})


@pytest.mark.parametrize("unknown", ["5d5fdd4b-0d4a-4b7c-8a1e-0f6f3d4e1a01", ""])
def test_unknown_cell(verify: Manage, world: World, unknown: str) -> None:
    """A cell that is not recorded is one line, and 255; so is none, as where a script has nothing in its variable."""
    orphan = world.map(*uuids(1), world.cell1.id)
    answer = verify("--cell_uuid", unknown, "--repair")
    assert (answer.exit_code, answer.err.count("\n")) == (255, 1)
    assert world.mapped() == {orphan: world.cell1.id}


@pytest.mark.parametrize("options", [["--dry-run"], ["--repair", "--dry-run"]])
def test_dry_run(verify: Manage, world: World, options: list[str]) -> None:
    """A dry run says what a repair would do, and does not do it."""
    unmapped, orphan, deleted = uuids(3)
    world.one.add_instances([unmapped]).add_instances([deleted], deleted=1)
    world.map(orphan, world.cell1.id)
    world.map(deleted, world.cell1.id)
    before = world.mapped()
    answer = verify(*options, *JSON)
    assert (answer.exit_code, outcomes(answer)) == (1, {"would be repaired"})
    assert world.mapped() == before
    assert not world.store.get_instance(deleted).queued_for_delete


def test_pages(verify: Manage, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit on a page is on the next one; more than are shown are counted, and repaired."""
    monkeypatch.setattr(verification, "PAGE", 3)
    monkeypatch.setattr(verification, "SHOWN", 2)
    unmapped, orphans, right = uuids(7), uuids(8), uuids(4)
    world.one.add_instances([*unmapped[:4], *right])
    world.two.add_instances(unmapped[4:])
    for each in orphans:
        world.map(each, world.cell2.id)
    for each in right:
        world.map(each, world.cell1.id)
    answer = verify(*JSON)
    assert [len(each) for each in found(answer).values()] == [2, 2]
    assert "unmapped: 7 (7 found)" in answer.err
    assert "orphaned: 8 (8 found)" in answer.err
    assert "11 more are counted" in answer.err
    assert verify("--repair").exit_code == 0
    assert world.mapped() == dict.fromkeys(unmapped[:4] + right, world.cell1.id) | dict.fromkeys(
        unmapped[4:], world.cell2.id
    )


# --- what happens meanwhile


def test_changed_meanwhile(verify: Manage, world: World) -> None:
    """A mapping that somebody changes between the look and the repair stays as it was made, and is not right yet."""
    (wrong,) = uuids(1)
    world.two.add_instances([wrong])
    world.map(wrong, world.cell1.id)
    with _before_change(lambda connection: connection.execute(update(instance_mappings).values(cell_id=None))):
        answer = verify("--repair", *JSON)
    assert (answer.exit_code, outcomes(answer)) == (1, {"changed meanwhile"})
    assert world.mapped() == {wrong: None}


def test_mapped_meanwhile(verify: Manage, world: World) -> None:
    """An instance that gets its mapping between two looks was never unmapped."""
    (late,) = uuids(1)
    world.one.add_instances([late])
    began = []

    def come_between(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "instance_mappings" in statement and "coalesce" in statement and not began:
            began.append(statement)
            row = {"instance_uuid": late, "project_id": "p", "user_id": "u", "cell_id": world.cell1.id}
            connection.execute(insert(instance_mappings), row)
            connection.commit()

    with _listening(come_between):
        assert found(verify("--repair", *JSON)) == {}
    assert began


# --- cells that do not answer


@pytest.fixture
def silent(world: World) -> Cell:
    """A cell that does not answer."""
    return world.store.create_cell(
        name="cell3", transport_url="none:///", database_connection="mysql+pymysql://nova@127.0.0.1:1/cell3"
    )


def test_cell_that_does_not_answer(verify: Manage, world: World, silent: Cell) -> None:
    """Mappings to a cell that does not answer are not judged, and it exits with 3, whatever was found elsewhere."""
    (there,) = uuids(1)
    world.map(there, silent.id)
    answer = verify("--repair")
    assert (answer.exit_code, answer.out) == (3, "nothing was found in the cells that have answered\n")
    assert "cell cell3 could not be looked into" in answer.err
    assert "1 mappings can't be judged" in answer.err
    assert world.mapped() == {there: silent.id}


def test_nothing_is_repaired_that_may_be_there(verify: Manage, world: World, silent: Cell) -> None:
    """While a cell does not answer nothing is forgotten, moved or mapped: the instance may be there."""
    unmapped, orphan, wrong, building, maybe, deleted = uuids(6)
    world.one.add_instances([unmapped, building]).add_instances([deleted], deleted=1)
    world.two.add_instances([wrong, maybe])
    world.map(orphan, world.cell1.id)
    world.map(wrong, world.cell1.id)
    world.map(building, None)
    world.map(maybe, silent.id)
    world.map(deleted, world.cell1.id)
    before = world.mapped()
    answer = verify("--repair", *JSON)
    assert (answer.exit_code, outcomes(answer)) == (3, {"left"})
    assert found(answer) == {"unmapped": [unmapped], "no cell": [building], "wrong cell": [wrong]}
    assert world.mapped() == before
    assert not world.store.get_instance(deleted).queued_for_delete


def test_what_does_not_depend_on_it_is_repaired(verify: Manage, world: World, silent: Cell) -> None:
    """What a cell says of an instance that is in it holds, whoever else does not answer."""
    (mapped,) = uuids(1)
    world.one.add_instances([mapped])
    world.map(mapped, world.cell1.id, user_id=None)
    answer = verify("--repair", *JSON)
    assert (answer.exit_code, outcomes(answer)) == (3, {"repaired"})
    assert world.store.get_instance(mapped).user_id == "u"


def test_cell_without_tables(verify: Manage, world: World, new_cell_url: Callable[[], str]) -> None:
    """A cell without the tables is one that does not answer, with the reason."""
    world.store.create_cell(name="cell3", transport_url="none:///", database_connection=new_cell_url())
    answer = verify()
    assert answer.exit_code == 3
    assert "[cellmw_tables] instances_table" in answer.err


def _before_change(change: Callable[[Any], object]) -> Any:
    """Have somebody change the mappings before the first that is changed."""
    done = []

    def come_between(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("UPDATE instance_mappings") and not done:
            done.append(statement)
            change(connection)

    return _listening(come_between)


class _listening:  # noqa: N801 - a block
    """Has a function see each statement of every engine that is made, for a with block."""

    def __init__(self, listener: Callable[..., None]) -> None:
        self._listener = listener
        self._patches = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        make_engine = engines.make_engine

        def listened(*arguments: Any, **options: Any) -> Any:
            engine = make_engine(*arguments, **options)
            event.listen(engine, "before_cursor_execute", self._listener)
            return engine

        self._patches.setattr(engines, "make_engine", listened)

    def __exit__(self, *_: object) -> None:
        self._patches.undo()
