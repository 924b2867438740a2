# SPDX-License-Identifier: Apache-2.0
"""Whatever rows are in whatever cells: walking the pages of a list gives each once, in order.

What the order is is decided here a second time, by comparing two rows key by key.
"""

from __future__ import annotations

import functools
import sqlite3
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import sqlite

from cellmw import listing
from cellmw.cell_result import CellResult
from cellmw.context import RequestContext
from cellmw.deadline import after
from cellmw.exceptions import CellsMissing
from cellmw.listing import PartialRow, list_sorted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cellmw.cell import Cell
    from cellmw.cells import Cells
    from cellmw.store import Store

PROJECT = "project-1"
SECRET = "a secret of the test's"
PATIENCE = 20

ITEMS = sa.Table(
    "items",
    sa.MetaData(),
    sa.Column("uuid", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(255)),
    sa.Column("size", sa.BigInteger),
    sa.Column("ratio", sa.Double),
    sa.Column("since", sa.DateTime),
    sa.Column("locked", sa.Boolean),
    sa.Column("mark", sa.LargeBinary),
    sa.Column("rank", sa.Integer, nullable=False),
)

COLUMNS = ("uuid", "name", "size", "ratio", "since", "locked", "mark", "rank")

Sort = list[tuple[str, str]]
Rows = list[tuple[Any, ...]]


def repeatable(examples: int) -> settings:
    """Run a test on so many examples, which are the same in each run, wherever it is."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        # the cells are filled anew for each example
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


class World:
    """Five cells, on SQLite files, which are filled anew for each example. Lives as long as the test."""

    def __init__(self, cells: Cells, records: list[Cell], store: Store) -> None:
        self.cells = cells
        self.records = records
        self._store = store
        self._files = {cell.id: sqlite3.connect(cell.reveal_database_connection()[10:]) for cell in records}
        for file in self._files.values():
            file.execute("PRAGMA synchronous = OFF")
            file.execute("PRAGMA journal_mode = MEMORY")
            file.execute(str(sa.schema.CreateTable(ITEMS).compile(dialect=sqlite.dialect())))

    def fill(self, rows_of: Sequence[Rows]) -> list[Cell]:
        """Put rows into as many cells, map them, and return those cells."""
        among = self.records[: len(rows_of)]
        for cell, rows in zip(among, rows_of, strict=True):
            with self._files[cell.id] as file:
                file.execute("DELETE FROM items")
            self.insert(cell, rows)
        return among

    def map(self, rows_of: Sequence[Rows]) -> None:
        """Map what is in the cells, and nothing else."""
        while mapped := self._store.list_instances():
            for mapping in mapped:
                self._store.delete_instance(mapping.instance_uuid)
        for cell, rows in zip(self.records, rows_of, strict=False):
            for row in rows:
                self._store.create_instance(row[0], project_id=PROJECT, cell_id=cell.id)

    def insert(self, cell: Cell, rows: Iterable[tuple[Any, ...]]) -> None:
        """Put rows into a cell."""
        stored = [
            [value.strftime("%Y-%m-%d %H:%M:%S.%f") if isinstance(value, datetime) else value for value in row]
            for row in rows
        ]
        with self._files[cell.id] as file:
            file.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?)", stored)

    def delete(self, cell: Cell, uuid: str) -> None:
        """Take a row out of a cell."""
        with self._files[cell.id] as file:
            file.execute("DELETE FROM items WHERE uuid = ?", (uuid,))

    def page(self, sort: Sort, among: Sequence[Cell], limit: int, **options: Any) -> listing.Page:
        """Return one page."""
        return list_sorted(
            RequestContext(),
            self.cells,
            sa.select(ITEMS),
            sort=sort,
            among=among,
            limit=limit,
            secret=SECRET,
            deadline=after(PATIENCE),
            project_id=PROJECT,
            **options,
        )

    def pages(self, *arguments: Any, **options: Any) -> Iterator[listing.Page]:
        """Yield each page, gone on by cursor."""
        page = self.page(*arguments, **options)
        yield page
        while page.cursor is not None:
            page = self.page(*arguments, cursor=page.cursor, **options)
            yield page

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


@pytest.fixture
def world(cells: Cells, store: Store, new_cell: Callable[..., Cell]) -> Iterator[World]:
    """Cells to fill."""
    with closing(World(cells, [new_cell(f"cell{number}") for number in range(5)], store)) as world:
        yield world


class Faults:
    """Has a cell fail when cells are asked for the so-manyeth time. Lives as long as the test."""

    def __init__(self) -> None:
        self._scatter = listing.scatter
        self.heal()

    def heal(self) -> None:
        """Have none fail."""
        self.fail({}, frozenset())

    def fail(self, at: dict[int, Cell], always: Iterable[Cell]) -> None:
        """Have a cell fail at each of these times, counted from now on, and some at all times."""
        self._asked = 0
        self._at = at
        self._always = frozenset(always)
        self.failed: set[Cell] = set()

    def __call__(self, *arguments: Any, **options: Any) -> list[CellResult]:
        results = self._scatter(*arguments, **options)
        bad = self._always | {self._at.get(self._asked)}
        self._asked += 1
        self.failed |= {result.cell for result in results if result.cell in bad}
        return [CellResult(result.cell, "timeout") if result.cell in bad else result for result in results]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """What makes cells fail."""
    faults = Faults()
    monkeypatch.setattr(listing, "scatter", faults)
    return faults


def compare(one: tuple[Any, ...], other: tuple[Any, ...], order: Sort) -> int:
    """Say by the sign which of two rows comes first: the oracle."""
    for name, direction in order:
        mine, its = one[COLUMNS.index(name)], other[COLUMNS.index(name)]
        if mine is None or its is None:
            sign = (mine is not None) - (its is not None)
        elif isinstance(mine, str):
            points, its_points = [ord(each) for each in mine], [ord(each) for each in its]
            sign = (points > its_points) - (points < its_points)
        else:
            sign = (mine > its) - (mine < its)
        if sign:
            return sign if direction == "asc" else -sign
    return 0


def in_order(rows: Iterable[tuple[Any, ...]], sort: Sort) -> Rows:
    """Return rows as they have to be sorted."""
    order = [*sort, ("uuid", sort[0][1] if sort else "asc")]
    return sorted(rows, key=functools.cmp_to_key(lambda one, other: compare(one, other, order)))


texts = st.sampled_from(["", "a", "A", "a ", "ab", "b", "ä", "Z", "é", "\u20ac", "\uffee", "\U0001f600", "0"])
moments = st.sampled_from([datetime(2026, 1, 1), datetime(2026, 1, 1, 0, 0, 0, 1), datetime(2025, 12, 31, 23, 59, 59)])
numbers = st.sampled_from([0, 1, -1, 2**62, -(2**62)])
ratios = st.sampled_from([0.0, 0.1, -2.5, 1e300, 1 / 3, float("inf")])
a_row = st.tuples(
    st.none() | texts,
    st.none() | numbers,
    st.none() | ratios,
    st.none() | moments,
    st.none() | st.booleans(),
    st.none() | st.sampled_from([b"", b"\0", b"a", b"\xff"]),
    st.integers(0, 3),
)
sorts = st.lists(
    st.tuples(st.sampled_from(COLUMNS), st.sampled_from(["asc", "desc"])),
    max_size=3,
    unique_by=lambda key: key[0],
)


@st.composite
def cells_with_rows(draw: st.DrawFn, least: int = 1) -> list[Rows]:
    """Draw rows in each of several cells: evenly spread, or most of them in one."""
    rows = draw(st.lists(a_row, max_size=30))
    uuids = draw(st.permutations(range(len(rows))))
    count = draw(st.integers(least, 5))
    place = draw(st.sampled_from([lambda number: number % count, lambda number: max(0, number - 25) % count]))
    rows_of: list[Rows] = [[] for _ in range(count)]
    for number, row in enumerate(rows):
        rows_of[place(number)].append((f"00000000-0000-0000-0000-0000000000{uuids[number]:02x}", *row))
    return rows_of


def union(rows_of: Iterable[Rows]) -> Rows:
    """Return the rows of all cells."""
    return [row for rows in rows_of for row in rows]


@repeatable(120)
@given(cells_with_rows(), sorts, st.integers(1, 12))
@example([[], []], [], 1)
def test_by_cursor(world: World, rows_of: list[Rows], sort: Sort, limit: int) -> None:
    """Walking by cursor gives the sorted union, in full pages, each row with its cell, and nothing after it."""
    among = world.fill(rows_of)
    pages = list(world.pages(sort, among, limit))
    expected = in_order(union(rows_of), sort)
    assert [tuple(row) for page in pages for row in page.rows] == expected
    assert all(len(page.rows) == limit for page in pages[:-1])
    assert len(pages) == max(1, -(-len(expected) // limit))
    home = {row[0]: cell for cell, rows in zip(among, rows_of, strict=True) for row in rows}
    assert [cell for page in pages for cell in page.cells] == [home[row[0]] for row in expected]
    assert not any(page.missing for page in pages)


@repeatable(40)
@given(cells_with_rows(), sorts, st.integers(1, 12))
def test_second_question(
    world: World, monkeypatch: pytest.MonkeyPatch, rows_of: list[Rows], sort: Sort, limit: int
) -> None:
    """It is the same where a cell is asked for a single row at first, and so nearly always a second time."""
    monkeypatch.setattr(listing, "_share", lambda *_: 1)
    among = world.fill(rows_of)
    rows = [tuple(row) for page in world.pages(sort, among, limit) for row in page.rows]
    assert rows == in_order(union(rows_of), sort)


@repeatable(60)
@given(cells_with_rows(), sorts, st.integers(1, 12))
def test_by_marker(world: World, rows_of: list[Rows], sort: Sort, limit: int) -> None:
    """So does walking by marker."""
    among = world.fill(rows_of)
    page = world.page(sort, among, limit)
    walked = list(page.rows)
    while page.more:
        page = world.page(sort, among, limit, marker=page.rows[-1].uuid)
        walked += page.rows
    assert [tuple(row) for row in walked] == in_order(union(rows_of), sort)


@repeatable(60)
@given(cells_with_rows(), cells_with_rows(), sorts, st.integers(1, 6), st.randoms(use_true_random=False))
def test_changing(world: World, rows_of: list[Rows], others: list[Rows], sort: Sort, limit: int, random: Any) -> None:
    """Rows that come and go while one walks are on one page or on none; those that stay are on one, in order."""
    among = world.fill(rows_of)
    stay = union(rows_of)
    goes = [row for row in stay if random.random() < 0.3]
    comes = [("1" + row[0][1:], *row[1:]) for row in union(others)]
    home = {row[0]: cell for cell, rows in zip(among, rows_of, strict=True) for row in rows}
    walked: Rows = []
    for page in world.pages(sort, among, limit):
        walked += [tuple(row) for row in page.rows]
        for _ in range(random.randrange(4)):
            if comes:
                world.insert(random.choice(among), [comes.pop()])
            if goes:
                gone = goes.pop()
                world.delete(home[gone[0]], gone[0])
                stay.remove(gone)
    assert walked == in_order(walked, sort)
    assert len({row[0] for row in walked}) == len(walked)
    assert set(stay) <= set(walked)


failures = st.dictionaries(st.integers(0, 6), st.integers(0, 4), max_size=3)
"""When cells are asked for the so-manyeth time -> which of them fails then."""


@repeatable(60)
@given(cells_with_rows(2), sorts, st.integers(1, 12), failures)
@example([[("u1", *[None] * 6, 1)], [("u2", *[None] * 6, 1)]], [], 1, {0: 0})
def test_skip(world: World, faults: Faults, rows_of: list[Rows], sort: Sort, limit: int, when: dict[int, int]) -> None:
    """With a cell failing here and there every row of the others is given once, in order, and who failed is named."""
    among = world.fill(rows_of)
    faults.fail({time: among[number % len(among)] for time, number in when.items()}, [])
    pages = list(world.pages(sort, among, limit, down_cells="skip"))
    walked = [tuple(row) for page in pages for row in page.rows]
    assert walked == in_order(walked, sort)
    assert len({row[0] for row in walked}) == len(walked)
    assert set(walked) >= set(union(r for c, r in zip(among, rows_of, strict=True) if c not in faults.failed))
    assert {result.cell for page in pages for result in page.missing} == faults.failed


@repeatable(40)
@given(cells_with_rows(2), sorts, st.integers(1, 12), failures)
def test_fail(world: World, faults: Faults, rows_of: list[Rows], sort: Sort, limit: int, when: dict[int, int]) -> None:
    """With a cell failing the list fails, and names it; what came before is right."""
    among = world.fill(rows_of)
    faults.fail({time: among[number % len(among)] for time, number in when.items()}, [])
    walked: Rows = []
    failed: set[Cell] = set()
    try:
        for page in world.pages(sort, among, limit, down_cells="fail"):
            walked += [tuple(row) for row in page.rows]
            assert not faults.failed
    except CellsMissing as error:
        failed = {result.cell for result in error.missing}
    assert failed == faults.failed
    expected = in_order(union(rows_of), sort)
    assert walked == (expected[: len(walked)] if failed else expected)


class Listed(NamedTuple):
    """What a walk gave: rows of the cells, and uuids that stand for some."""

    rows: Rows
    partial: list[str]


def listed(pages: Iterable[listing.Page]) -> Listed:
    """Tell rows from what stands for them."""
    rows = [row for page in pages for row in page.rows]
    partial = [row.uuid for row in rows if isinstance(row, PartialRow)]
    assert not any(isinstance(row, PartialRow) for row in rows[: len(rows) - len(partial)])
    return Listed([tuple(row) for row in rows[: len(rows) - len(partial)]], partial)


@repeatable(50)
@given(cells_with_rows(2), sorts, st.integers(1, 12), failures, st.integers(0, 4))
@example([[("u1", *[None] * 6, 1)], [("u2", *[None] * 6, 1)]], [], 1, {}, 0)
def test_partial(
    world: World,
    faults: Faults,
    rows_of: list[Rows],
    sort: Sort,
    limit: int,
    when: dict[int, int],
    down: int,
) -> None:
    """No instance is given twice; one is left out only where its cell has failed after it had given others."""
    among = world.fill(rows_of)
    world.map(rows_of)
    faults.fail(
        {time: among[number % len(among)] for time, number in when.items()},
        {among[down]} & set(among) if down < len(among) else (),
    )
    try:
        pages = list(world.pages(sort, among, limit, down_cells="partial"))
    except CellsMissing:
        assert len(faults.failed) == len(among)
        return
    rows, partial = listed(pages)
    given_ = [row[0] for row in rows] + partial
    assert rows == in_order(rows, sort)
    assert partial == sorted(partial)
    assert len(set(given_)) == len(given_)
    assert all(len(page.rows) == limit for page in pages[:-1])
    for cell, own in zip(among, rows_of, strict=True):
        uuids = {row[0] for row in own}
        if uuids & set(partial):
            assert uuids <= set(partial)
        if cell not in faults.failed or (not uuids & {row[0] for row in rows}):
            assert uuids <= set(given_)
