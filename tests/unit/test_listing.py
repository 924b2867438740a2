# SPDX-License-Identifier: Apache-2.0
"""A list over several cells: what may be asked for, what comes of cells that fail or hang, and what is counted."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from decimal import Decimal
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event, orm
from sqlalchemy.dialects import sqlite

from cellmw import listing, selection
from cellmw.context import RequestContext
from cellmw.deadline import after
from cellmw.exceptions import BadCursor, BadMarker, CellsMissing, ListingError, StoreUnavailable
from cellmw.keyset import Keyset
from cellmw.listing import PartialRow, count, find, list_sorted, total
from tests.unit.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cellmw.cell import Cell
    from cellmw.cells import Cells
    from cellmw.listing import Page
    from cellmw.store import InstanceMapping, Store

SECRET = "a secret of the test's"

SHORT = 0.3
"""Seconds within two thirds of which a cell that answers has answered."""

Base: Any = orm.declarative_base()


class Item(Base):
    """What is listed."""

    __tablename__ = "items"
    uuid = sa.Column(sa.String(36), primary_key=True)
    name = sa.Column("display_name", sa.String(255))
    size = sa.Column(sa.Integer)
    ratio = sa.Column(sa.Double)
    namesakes = orm.relationship(
        "Item", primaryjoin="foreign(Item.name) == remote(Item.name)", viewonly=True, uselist=True
    )


CREATE = str(sa.schema.CreateTable(Item.__table__).compile(dialect=sqlite.dialect()))

COLUMNS = sa.select(Item.uuid, Item.name, Item.size, Item.ratio)

ROWS = [
    ("u1", "f", 1, 0.5),
    ("u2", "e", 2, None),
    ("u3", "d", None, 1.5),
    ("u4", "c", 4, None),
    ("u5", "b", 5, 2.5),
    ("u6", "a", 6, None),
]
"""Spread over cell1, cell2 and cell3 in turn."""

UUIDS = [row[0] for row in ROWS]


class World:
    """Three cells with two rows each, all of which are mapped. Lives as long as the test."""

    def __init__(self, cells: Cells, records: list[Cell], store: Store) -> None:
        self.cells = cells
        self.cell1, self.cell2, self.cell3 = self.records = records
        for number, cell in enumerate(records):
            self.execute(cell, CREATE)
            self.insert(cell, *ROWS[number::3])
            for row in ROWS[number::3]:
                store.create_instance(row[0], project_id="project-1", cell_id=cell.id)

    def execute(self, cell: Cell, statement: str, *rows: tuple[Any, ...]) -> None:
        """Do something to the database of a cell."""
        with closing(sqlite3.connect(cell.reveal_database_connection()[10:])) as file, file:
            file.execute("PRAGMA synchronous = OFF")
            file.executemany(statement, rows) if rows else file.execute(statement)

    def insert(self, cell: Cell, *rows: tuple[Any, ...]) -> None:
        """Put rows into a cell."""
        self.execute(cell, "INSERT INTO items VALUES (?, ?, ?, ?)", *rows)

    def fail(self, *cells: Cell) -> None:
        """Have each statement that a list is made of fail in these cells, from now on."""
        for cell in cells:
            self.execute(cell, "ALTER TABLE items RENAME TO lost")

    def heal(self, *cells: Cell) -> None:
        """Have the cells work again."""
        for cell in cells:
            self.execute(cell, "ALTER TABLE lost RENAME TO items")

    def page(self, statement: Any = COLUMNS, **options: Any) -> Page:
        """Return one page."""
        defaults = {"sort": [], "secret": SECRET, "deadline": after(PATIENCE)}
        return list_sorted(RequestContext(), self.cells, statement, **defaults | options)

    def pages(self, **options: Any) -> list[Page]:
        """Return each page, gone on by cursor."""
        pages = [self.page(**options)]
        while pages[-1].cursor is not None:
            pages.append(self.page(cursor=pages[-1].cursor, **options))
        return pages


@pytest.fixture
def world(cells: Cells, store: Store, new_cell: Callable[..., Cell]) -> World:
    """Cells to list."""
    return World(cells, [new_cell(f"cell{number}") for number in (1, 2, 3)], store)


def uuids(*pages: Page) -> list[str]:
    """Return the uuids of all rows."""
    return [row.uuid for page in pages for row in page.rows]


def missing(page: Any) -> list[tuple[str | None, str]]:
    """Return the names of the cells that are missing, and what came of each."""
    return [(result.cell.name, result.status) for result in page.missing]


def test_columns(world: World) -> None:
    """A select of columns gives its rows, and the cell of each."""
    page = world.page(sort=[("name", "asc")])
    assert [tuple(row) for row in page.rows] == ROWS[::-1]
    assert page.cells == [world.cell3, world.cell2, world.cell1] * 2
    assert (page.cursor, page.missing, page.more) == (None, [], False)


def test_entities(world: World) -> None:
    """A select of entities gives those, sorted by an attribute, whatever the column is called."""
    page = world.page(sa.select(Item), sort=[("name", "asc")], limit=4)
    assert [item.name for (item,) in page.rows] == ["a", "b", "c", "d"]
    page = world.page(sa.select(Item), sort=[("name", "asc")], limit=4, cursor=page.cursor)
    assert [item.uuid for (item,) in page.rows] == ["u2", "u1"]


def test_entities_with_a_collection(world: World) -> None:
    """An entity that a join has in several rows is one row of the page, with what was loaded of it."""
    world.insert(world.cell2, ("u7", "e", 7, None))
    statement = sa.select(Item).options(orm.joinedload(Item.namesakes))
    pages = world.pages(statement=statement, limit=3)
    loaded = [(item.uuid, len(item.namesakes)) for page in pages for (item,) in page.rows]
    assert loaded == [("u1", 1), ("u2", 2), ("u3", 1), ("u4", 1), ("u5", 1), ("u6", 1), ("u7", 2)]


def test_unsorted(world: World) -> None:
    """Without a sort key, rows are in the order of the unique column, and as the first key goes where there is one."""
    assert uuids(world.page()) == UUIDS
    constant = sa.select(Item.uuid, sa.literal(1).label("one"))
    assert uuids(world.page(constant, sort=[("one", "desc")])) == UUIDS[::-1]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"limit": 0}, "the limit has to be at least 1, and is 0"),
    ({"limit": -1}, "the limit has to be at least 1, and is -1"),
    ({"marker": "u1", "cursor": "1"}, "by a marker or by a cursor, not by both"),
    ({"sort": [("nothing", "asc")]}, "can't be sorted by nothing$"),
    ({"sort": [("display_name", "asc")], "statement": sa.select(Item)}, "can't be sorted by display_name$"),
    ({"unique": "id"}, "can't be sorted by id$"),
    ({"sort": [("name", "up")]}, "sort direction 'up' is neither asc nor desc"),
    ({"sort": [("name", "ASC")]}, "sort direction 'ASC' is neither"),
]


def test_what_the_client_has_wrong(world: World) -> None:
    """What can't be listed so is a ListingError, whose message says why, and no cell is asked."""
    world.fail(*world.records)
    for options, message in WRONG:
        with pytest.raises(ListingError, match=message) as raised:
            world.page(**options)
        assert type(raised.value) is ListingError


def test_unknown_policy(world: World) -> None:
    """A policy that is not known is the program's mistake."""
    with pytest.raises(ValueError, match="not 'ignore'"):
        world.page(down_cells="ignore")


def test_refused_statement(world: World) -> None:
    """A statement to which no order and no condition can be added is the program's mistake."""
    grouped, limited, offset = COLUMNS.group_by(Item.uuid), COLUMNS.limit(1), COLUMNS.offset(1)
    for statement in (grouped, limited, offset, sa.union(COLUMNS, COLUMNS), sa.text("SELECT uuid FROM items")):
        with pytest.raises(TypeError, match=r"^a list "):
            world.page(statement)


def test_max_limit(world: World) -> None:
    """A limit above the highest one is cut."""
    page = world.page(limit=5, max_limit=2)
    assert (uuids(page), page.more) == (["u1", "u2"], True)


def test_no_secret(world: World) -> None:
    """Without a secret there is no cursor, though there is more, and none is taken."""
    cursor = world.page(limit=2).cursor
    for secret in (None, ""):
        page = world.page(limit=2, secret=secret)
        assert (page.cursor, page.more) == (None, True)
        with pytest.raises(BadCursor, match="no cursors here"):
            world.page(limit=2, secret=secret, cursor=cursor)


def test_cursor_of_another_list(world: World) -> None:
    """A cursor goes with its sort keys."""
    cursor = world.page(limit=2).cursor
    with pytest.raises(BadCursor, match="sorted by uuid asc, not by name asc, uuid asc"):
        world.page(sort=[("name", "asc")], cursor=cursor)


def test_among(world: World) -> None:
    """Only the cells of the selection are asked."""
    world.fail(world.cell2)
    page = world.page(among=[world.cell3, world.cell1], down_cells="fail")
    assert uuids(page) == ["u1", "u3", "u4", "u6"]
    assert page.cells == [world.cell1, world.cell3] * 2


def test_among_of_a_project(world: World, store: Store) -> None:
    """A selection of the API database's can say whom to ask."""
    store.create_instance("u7", project_id="project-2", cell_id=world.cell2.id)
    among = selection.of_project(world.cells, "project-2")
    assert uuids(world.page(among=among)) == ["u2", "u5"]


def test_among_nobody(world: World) -> None:
    """A list of no cell is empty, and nobody is missing."""
    for down_cells in ("skip", "fail", "partial"):
        page = world.page(among=iter(()), down_cells=down_cells)
        assert (page.rows, page.missing, page.more, page.cursor) == ([], [], False, None)


def test_where(world: World) -> None:
    """The conditions of the statement hold on every page, and its own order does not."""
    statement = COLUMNS.where(Item.uuid != "u4").order_by(Item.uuid.desc())
    assert [uuids(page) for page in world.pages(statement=statement, limit=3)] == [["u1", "u2", "u3"], ["u5", "u6"]]


def test_null(world: World) -> None:
    """NULL is lower than every value, and the unique column goes the way of the first."""
    ascending = ["u2", "u4", "u6", "u1", "u3", "u5"]
    assert uuids(*world.pages(sort=[("ratio", "asc")], limit=2)) == ascending
    assert uuids(*world.pages(sort=[("ratio", "desc")], limit=2)) == ascending[::-1]


def test_sort_key_after_the_unique_one(world: World) -> None:
    """What comes after the unique column decides nothing."""
    sort = [("uuid", "desc"), ("name", "asc")]
    page = world.page(sort=sort, limit=2, marker="u5")
    assert uuids(page) == ["u4", "u3"]
    assert uuids(world.page(sort=sort[:1], cursor=page.cursor)) == ["u2", "u1"]


def test_column_of_a_strange_type(world: World) -> None:
    """What is not known to be sorted alike everywhere is refused where it shows, by its type's name."""
    statement = COLUMNS.add_columns(sa.literal([1], sa.JSON()).label("tags"))
    with pytest.raises(CellsMissing) as raised:
        world.page(statement, sort=[("tags", "asc")])
    assert str(raised.value.__cause__) == "column tags can't be sorted by: it has a list in it"


def test_row_in_two_cells(world: World) -> None:
    """A row that is in two cells is given once, also at the end of a page."""
    world.insert(world.cell2, ROWS[0], ROWS[2])
    assert [uuids(page) for page in world.pages(limit=1)] == [[uuid] for uuid in UUIDS]
    assert uuids(world.page()) == UUIDS


def test_marker(world: World) -> None:
    """A page by marker goes on after the marker's row, wherever that is."""
    assert uuids(world.page(sort=[("name", "asc")], marker="u4")) == ["u3", "u2", "u1"]


def test_marker_is_looked_for_where_it_is_mapped_to(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other cell is asked for it, or needed."""
    asked: list[list[Cell]] = []
    ask = listing.scatter

    def scatter(*arguments: Any, among: list[Cell], **options: Any) -> Any:
        asked.append(among)
        return ask(*arguments, among=among, **options)

    monkeypatch.setattr(listing, "scatter", scatter)
    world.fail(world.cell1, world.cell3)
    page = world.page(marker="u2")
    assert (uuids(page), missing(page)) == (["u5"], [("cell1", "error"), ("cell3", "error")])
    assert asked == [[world.cell2], world.records]


def test_marker_without_its_mapping(world: World, store: Store) -> None:
    """One that has no mapping, or one to a cell that it is not in, is looked for everywhere."""
    store.delete_instance("u4")
    store.update_instance("u5", cell_id=world.cell1.id)
    assert uuids(world.page(marker="u4")) == ["u5", "u6"]
    assert uuids(world.page(marker="u5")) == ["u6"]


def test_marker_without_the_api_database(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is the API database needed to find it."""
    world.page()

    def locate(*_: Any) -> None:
        raise StoreUnavailable("it does not answer")

    monkeypatch.setattr(world.cells, "locate", locate)
    assert uuids(world.page(marker="u5")) == ["u6"]


def test_bad_marker(world: World) -> None:
    """A marker that never was, that is deleted, or that no database could have, is refused, and named."""
    world.execute(world.cell2, "DELETE FROM items WHERE uuid = 'u2'")
    for marker in ("u9", "", "u\0", "\udc80", "u2", "U1"):
        with pytest.raises(BadMarker) as raised:
            world.page(marker=marker)
        assert raised.value.marker == marker


def test_marker_that_the_conditions_leave_out(world: World) -> None:
    """A marker is a row of the list itself."""
    with pytest.raises(BadMarker):
        world.page(COLUMNS.where(Item.size > 1), marker="u1")


def test_marker_in_a_cell_that_is_down(world: World) -> None:
    """Who may have it and does not answer is named: it is not known to be a bad one."""
    world.fail(world.cell2)
    for marker in ("u2", "u9"):
        with pytest.raises(CellsMissing) as raised:
            world.page(marker=marker)
        assert [result.cell for result in raised.value.missing] == [world.cell2]


def test_skip(world: World) -> None:
    """The rows of a cell that fails are left out, and it is named; it is asked again for the next page."""
    world.fail(world.cell2)
    page = world.page(limit=2)
    assert (uuids(page), missing(page)) == (["u1", "u3"], [("cell2", "error")])
    world.heal(world.cell2)
    page = world.page(limit=3, cursor=page.cursor)
    assert (uuids(page), missing(page)) == (["u4", "u5", "u6"], [])


def test_fail(world: World) -> None:
    """A cell that fails is the whole list's failure; why it has failed is the cause."""
    world.fail(world.cell2)
    with pytest.raises(CellsMissing) as raised:
        world.page(down_cells="fail")
    (result,) = raised.value.missing
    assert (result.cell, result.status) == (world.cell2, "error")
    assert raised.value.__cause__ is result.error
    assert "no such table" in str(result.error)


def test_all_fail(world: World) -> None:
    """If no cell answers there is no list."""
    world.fail(*world.records)
    for down_cells in ("skip", "fail", "partial"):
        with pytest.raises(CellsMissing) as raised:
            world.page(down_cells=down_cells)
        assert [result.cell for result in raised.value.missing] == world.records


def test_failure_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What is somebody's mistake is in the log, by its type only."""
    world.fail(world.cell2)
    world.page()
    assert "cell cell2: asking it has failed: " in caplog.text
    assert "sqlite" not in caplog.text


def partials(world: World, *which: str) -> list[PartialRow]:
    """Return what stands for instances that are mapped to cell2."""
    return [PartialRow(uuid, "project-1", world.cell2) for uuid in which]


@pytest.mark.parametrize("limit", [1, 2, 4, 5, 6, 7])
def test_partial(world: World, limit: int) -> None:
    """What the mappings know comes after all other rows, sorted by uuid, in full pages, though the cell works again."""
    world.fail(world.cell2)
    pages = [world.page(limit=limit, down_cells="partial")]
    world.heal(world.cell2)
    while pages[-1].cursor is not None:
        pages.append(world.page(limit=limit, down_cells="partial", cursor=pages[-1].cursor))
    rows = [row for page in pages for row in page.rows]
    assert [tuple(row) for row in rows[:4]] == [ROWS[0], ROWS[2], ROWS[3], ROWS[5]]
    assert rows[4:] == partials(world, "u2", "u5")
    assert all(len(page.rows) == limit for page in pages[:-1])
    assert len(pages) == -(-6 // limit)
    assert [cell.name for page in pages for cell in page.cells] == [
        "cell1",
        "cell3",
        "cell1",
        "cell3",
        "cell2",
        "cell2",
    ]
    statuses = ["error"] + ["skipped"] * (len(pages) - 1)
    assert [missing(page) for page in pages] == [[("cell2", status)] for status in statuses]
    assert all("cell2" in str(page.missing[0].error) for page in pages[1:])


def test_partial_asks_no_cell_at_the_end(world: World) -> None:
    """Once what stands for rows has begun, no cell is asked any more: no row of a cell's comes after it."""
    world.fail(world.cell2)
    page = world.page(limit=5, down_cells="partial")
    world.insert(world.cell3, ("u9", "x", 9, None))
    world.fail(world.cell1)
    page = world.page(limit=5, down_cells="partial", cursor=page.cursor)
    assert page.rows == partials(world, "u5")
    assert missing(page) == [("cell2", "skipped")]


def test_partial_row() -> None:
    """What stands for a row has the status that clients know for what nobody knows."""
    cell: Any = None
    assert PartialRow("u1", "project-1", cell).status == "UNKNOWN"


def test_partial_of_several_cells(world: World) -> None:
    """What stands for the rows of several cells is sorted together."""
    world.fail(world.cell1, world.cell2)
    pages = world.pages(limit=3, down_cells="partial")
    assert uuids(*pages) == ["u3", "u6", "u1", "u2", "u4", "u5"]
    assert [cell.name for page in pages for cell in page.cells][2:] == ["cell1", "cell2", "cell1", "cell2"]


def test_partial_of_whom(world: World, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the project's are given, and none whose deletion has begun, or which has no cell yet."""
    monkeypatch.setattr(listing, "_MAPPINGS_AT_ONCE", 2)
    world.fail(world.cell2)
    for number in range(3):
        store.create_instance(f"a{number}", project_id="project-1", cell_id=world.cell2.id)
        store.update_instance(f"a{number}", queued_for_delete=True)
    store.create_instance("u7", project_id="project-2", cell_id=world.cell2.id)
    store.create_instance("u8", project_id="project-1")
    for project_id, expected in (("project-1", ["u2", "u5"]), ("project-2", ["u7"]), (None, ["u2", "u5", "u7"])):
        for limit in (1, 5, 100):
            pages = world.pages(limit=limit, down_cells="partial", project_id=project_id)
            assert uuids(*pages)[4:] == expected


def test_partial_of_ones_own(world: World) -> None:
    """Who calls says what stands for a row."""

    def make(cell: Cell, mapping: InstanceMapping) -> tuple[str | None, str]:
        return cell.name, mapping.instance_uuid

    world.fail(world.cell2)
    assert world.page(down_cells="partial", partial=make).rows[4:] == [("cell2", "u2"), ("cell2", "u5")]


def test_partial_of_a_cell_that_fails_later(world: World) -> None:
    """A cell that has not given a row yet can be stood for, one that has is only left out: no row is given twice."""
    first = world.page(limit=1, down_cells="partial")
    world.fail(world.cell1, world.cell2)
    second = world.page(limit=10, down_cells="partial", cursor=first.cursor)
    assert uuids(first, second) == ["u1", "u3", "u6", "u2", "u5"]
    assert missing(second) == [("cell1", "error"), ("cell2", "error")]


@pytest.fixture
def rounds(world: World, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The deadlines by which the cells have to answer; each is asked for one row first, and cell2 fails then."""
    deadlines: list[float] = []
    ask = listing.scatter

    def scatter(*arguments: Any, deadline: float, **options: Any) -> Any:
        deadlines.append(deadline)
        if len(deadlines) == 2:
            world.fail(world.cell2)
        return ask(*arguments, deadline=deadline, **options)

    monkeypatch.setattr(listing, "_share", lambda *_: 1)
    monkeypatch.setattr(listing, "scatter", scatter)
    return deadlines


@pytest.mark.parametrize(
    ("down_cells", "expected"),
    [("skip", ["u1", "u2", "u3", "u4", "u6"]), ("partial", ["u1", "u3", "u4", "u6", "u2", "u5"])],
)
def test_failure_between_two_answers(world: World, rounds: list[float], down_cells: str, expected: list[str]) -> None:
    """What a cell has given before it fails is given, or all its rows are stood for."""
    deadline = after(PATIENCE)
    page = world.page(down_cells=down_cells, limit=6, deadline=deadline)
    assert (uuids(page), missing(page)) == (expected, [("cell2", "error")])
    assert monotonic() + PATIENCE / 2 < rounds[0] < deadline - PATIENCE / 4
    assert rounds[1:] == [deadline] * (len(rounds) - 1)


def test_fail_between_two_answers(world: World, rounds: list[float]) -> None:
    """It is the whole list's failure, too."""
    with pytest.raises(CellsMissing, match=r"cell2 \(error\)$"):
        world.page(down_cells="fail", limit=6)
    assert len(rounds) == 2


def test_two_rows_with_the_same_values(world: World) -> None:
    """A cell with two rows of the same unique value is missing: a page could not end between them."""
    world.insert(world.cell2, ("u8", "e", 8, None))
    page = world.page(unique="name")
    assert uuids(page) == ["u6", "u4", "u3", "u1"]
    (result,) = page.missing
    assert "cell2" in str(result.error)
    assert "name asc" in str(result.error)


def test_rows_from_before_the_page(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell whose database gives rows again is missing: by them the list could go round for ever."""
    cursor = world.page(limit=4).cursor
    selects = Keyset.selects
    monkeypatch.setattr(Keyset, "selects", lambda keyset, dialect, _: selects(keyset, dialect, ()))
    with pytest.raises(CellsMissing) as raised:
        world.page(cursor=cursor)
    assert "does not sort by uuid asc" in str(raised.value.__cause__)


def test_count(world: World) -> None:
    """Rows are counted in each cell and in all, whatever the statement."""
    whole = count(RequestContext(), world.cells, COLUMNS.order_by(Item.size), deadline=after(PATIENCE))
    assert (whole.value, whole.cells, whole.missing) == (6, dict.fromkeys(world.records, 2), [])
    limited = count(
        RequestContext(), world.cells, COLUMNS.limit(1), deadline=after(PATIENCE), among=[world.cell1, world.cell3]
    )
    assert (limited.value, limited.cells) == (2, {world.cell1: 1, world.cell3: 1})


def test_total(world: World) -> None:
    """Columns are added up in each cell and in all; NULL counts for nothing."""
    whole = total(RequestContext(), world.cells, COLUMNS, ["size", "ratio"], deadline=after(PATIENCE))
    assert whole.value == {"size": 18, "ratio": 4.5}
    assert whole.cells == {
        world.cell1: {"size": 5, "ratio": 0.5},
        world.cell2: {"size": 7, "ratio": 2.5},
        world.cell3: {"size": 6, "ratio": 1.5},
    }
    nothing = total(RequestContext(), world.cells, COLUMNS.where(sa.false()), ["size"], deadline=after(PATIENCE))
    assert nothing.value == {"size": 0}
    with pytest.raises(ListingError, match="no sum of nothing, none"):
        total(RequestContext(), world.cells, COLUMNS, ["size", "nothing", "none"], deadline=after(PATIENCE))


COUNTINGS: dict[str, Callable[..., Any]] = {
    "count": count,
    "total": lambda context, cells, statement, **options: total(context, cells, statement, ["size"], **options),
}


@pytest.mark.parametrize("counting", COUNTINGS.values(), ids=COUNTINGS)
def test_counting_without_a_cell(world: World, counting: Callable[..., Any]) -> None:
    """A cell that fails is not counted, and named; or it is the failure of all, as it always is without any."""
    ask = partial(counting, RequestContext(), world.cells, COLUMNS, deadline=after(PATIENCE))
    world.fail(world.cell2)
    counted = ask()
    assert (list(counted.cells), missing(counted)) == ([world.cell1, world.cell3], [("cell2", "error")])
    assert counted.value in (4, {"size": 11})
    with pytest.raises(CellsMissing, match=r"cell2 \(error\)$"):
        ask(down_cells="fail")
    with pytest.raises(ValueError, match="not 'partial'"):
        ask(down_cells="partial")
    world.fail(world.cell1, world.cell3)
    with pytest.raises(CellsMissing, match=r"cell1 .*, cell2 .*, cell3 "):
        ask()


def test_find(world: World) -> None:
    """Every cell that has the row is named with it, and every one that did not say."""
    ask = partial(find, RequestContext(), world.cells, COLUMNS, deadline=after(PATIENCE))
    assert ask("u9").rows == {}
    assert [tuple(row) for row in ask("4", unique="size").rows.values()] == [ROWS[3]]
    world.insert(world.cell3, ROWS[1])
    found = ask("u2")
    assert {cell: tuple(row) for cell, row in found.rows.items()} == {world.cell2: ROWS[1], world.cell3: ROWS[1]}
    assert list(ask("u2", among=[world.cell3]).rows) == [world.cell3]
    world.fail(world.cell2)
    found = ask("u2")
    assert (list(found.rows), missing(found)) == ([world.cell3], [("cell2", "error")])
    world.fail(world.cell1, world.cell3)
    with pytest.raises(CellsMissing):
        ask("u2")


def test_find_what_can_not_be(world: World) -> None:
    """What no database could have is refused before one is asked."""
    world.fail(*world.records)
    for unique, value in (("uuid", "u\0"), ("uuid", "\udc80"), ("size", "x"), ("size", str(2**31)), ("nothing", "u1")):
        with pytest.raises(ListingError):
            find(RequestContext(), world.cells, COLUMNS, value, unique=unique, deadline=after(PATIENCE))


@pytest.mark.parametrize("number", [float, Decimal])
@pytest.mark.parametrize("direction", ["asc", "desc"])
def test_nan(number: Callable[[str], Any], direction: str) -> None:
    """NaN is higher than every number, NULL lower, also where only one of two cells has such."""
    keyset = Keyset(COLUMNS, [("ratio", direction)], "uuid")
    one = [number("2"), None, number("NaN"), number("-1")]
    other = [number("Infinity"), number("1")]
    entries = [
        (rank, value, None)
        for column in (one, other)
        for rank, value in zip(keyset.ranks([column, ["u"] * len(column)]), column, strict=True)
    ]
    keyset.sort(entries)
    expected = ["None", "-1", "1", "2", "inf", "nan"]
    ordered = [str(value and float(value)).removesuffix(".0") for _, value, _ in entries]
    assert ordered == (expected if direction == "asc" else expected[::-1])


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    """What a statement that calls ``come_back`` of u2 waits for, on every connection that is opened from now on."""
    let_go = threading.Event()

    def come_back(uuid: str) -> bool:
        return uuid != "u2" or let_go.wait(PATIENCE)

    def connect(connection: Any, _: object) -> None:
        connection.create_function("come_back", 1, come_back)

    event.listen(sa.Engine, "connect", connect)
    yield let_go
    let_go.set()
    event.remove(sa.Engine, "connect", connect)


def all_back(world: World, hang: threading.Event) -> None:
    """Let the cell go on, and return when every thread is back and no lease is open."""
    hang.set()
    end = after(PATIENCE)
    while any(world.cells.left_behind.values()) or world.cells.leases:
        assert monotonic() < end
        threading.Event().wait(0.001)


def test_hung_cell(world: World, hang: threading.Event) -> None:
    """A cell that does not come back is left in time, and is missing; its thread comes back when it can."""
    world.page()  # opens the cells
    began = monotonic()
    page = world.page(
        COLUMNS.where(sa.func.come_back(Item.uuid)), down_cells="partial", deadline=after(SHORT), limit=100
    )
    assert monotonic() - began < SHORT + PATIENCE / 2
    assert (uuids(page), missing(page)) == (["u1", "u3", "u4", "u6", "u2", "u5"], [("cell2", "timeout")])
    assert sum(map(len, world.cells.left_behind.values())) == 1
    all_back(world, hang)
    assert uuids(world.page()) == UUIDS


def test_marker_that_is_found_before_a_cell_hangs(world: World, hang: threading.Event) -> None:
    """A cell that hangs is not waited for where another one has the marker: there is time left for the page."""
    world.page()
    statement = COLUMNS.where(sa.func.come_back(Item.uuid), Item.size > 0)
    page = world.page(statement, unique="size", marker="4", deadline=after(SHORT), limit=100)
    assert (uuids(page), missing(page)) == (["u6"], [("cell2", "timeout")])
    all_back(world, hang)
