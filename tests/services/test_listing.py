# SPDX-License-Identifier: Apache-2.0
"""Lists across cells on PostgreSQL, MariaDB and SQLite together: each database sorts as we say, not as it would.

The model's order is Python's own, of the values that were put in.
"""

from __future__ import annotations

import functools
import itertools
import uuid
from contextlib import ExitStack, closing
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from oslo_config import cfg
from sqlalchemy import orm, pool
from sqlalchemy.dialects import mysql

from cellmw import deploy
from cellmw.conf import register_opts
from cellmw.context import RequestContext
from cellmw.deadline import after
from cellmw.engines import make_engine
from cellmw.exceptions import BadMarker
from cellmw.listing import count, find, list_sorted, total
from cellmw.store import Store, models
from tests import servers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cellmw.cells import Cells

PATIENCE = 30

METADATA = sa.MetaData()
Base: Any = orm.declarative_base(metadata=METADATA)


class Item(Base):
    """What is listed, with a column of each type. NULL is in each but the last two."""

    __tablename__ = "items"
    __table_args__ = {"mysql_charset": "utf8mb4"}  # noqa: RUF012 - SQLAlchemy reads it once
    uuid = sa.Column(sa.String(36), primary_key=True)
    name = sa.Column("display_name", sa.String(255))
    notes = sa.Column(sa.Text)
    state = sa.Column(sa.Enum("b", "a", "C", name="states"))
    size = sa.Column(sa.BigInteger)
    price = sa.Column(sa.Numeric(12, 2))
    ratio = sa.Column(sa.Double)
    created_at = sa.Column(sa.DateTime)
    precise = sa.Column(sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb"))
    zoned = sa.Column(sa.DateTime(timezone=True))
    day = sa.Column(sa.Date)
    locked = sa.Column(sa.Boolean)
    mark = sa.Column(sa.LargeBinary(20))
    owner = sa.Column(sa.Uuid)
    rank = sa.Column(sa.Integer, nullable=False)


SECOND = timedelta(seconds=1)
NEW_YEAR = datetime(2026, 1, 1)

VALUES: dict[str, list[Any]] = {
    "name": ["", " ", "a", "A", "a ", "a  b", "ab", "aB", "b", "B ", "ä", "a\u0308", "Ä", "z", "é", "e", "ß", "ss",
             "\u20ac", "\uffee", "\U0001f600", "\U0001f601", "-a", "_a", "10", "9", "a\t", "\u0130", "\u0131", "I"],
    "notes": ["", "a", "A", "a ", "é", "e", "x" * 300, "x" * 300 + " "],
    "state": ["a", "b", "C"],
    "size": [0, 1, -1, 2**63 - 1, -(2**63), 2**53, 2**53 + 1],
    "price": [Decimal("0.00"), Decimal("0.10"), Decimal("-0.10"), Decimal("9999999.99"), Decimal("2.50")],
    "ratio": [0.0, 0.1, -0.1, 1 / 3, 2 / 3, 1e300, 1e-300, 123456789.123456789],
    "created_at": [NEW_YEAR + number * SECOND / 2 for number in range(-2, 3)],
    "precise": [NEW_YEAR + timedelta(microseconds=number) for number in (-1, 0, 1, 500_000, 999_999, 1_000_000)],
    "zoned": [NEW_YEAR.replace(tzinfo=UTC) + number * timedelta(hours=7) for number in range(-2, 3)],
    "day": [date(2026, 1, 1), date(2025, 12, 31), date(1970, 1, 1)],
    "locked": [True, False],
    "mark": [b"", b"\0", b"a", b"A", b"a ", b"\xff", b"a\0"],
    "owner": [uuid.UUID(int=number) for number in (0, 1, 2**127, 2**64, 2**80 + 7, 2**126 + 2**60)],
}  # fmt: skip


def rows(count: int) -> list[dict[str, Any]]:
    """Return so many rows, with each value of each column in several, and NULL."""
    makers = {name: itertools.cycle([*values, None]) for name, values in VALUES.items()}
    return [
        {
            "uuid": str(uuid.uuid5(uuid.NAMESPACE_OID, str(number))),
            "rank": number % 3,
            **{name: next(values) for name, values in makers.items()},
        }
        for number in range(count)
    ]


ROWS = rows(120)

for row in ROWS[1::3]:  # those in MariaDB, whose DATETIME has no fractions of seconds
    row["created_at"] = row["created_at"] and row["created_at"].replace(microsecond=0)


@pytest.fixture(scope="module")
def cells(
    tmp_path_factory: pytest.TempPathFactory, postgresql_server: sa.URL, mariadb_server: sa.URL
) -> Iterator[Cells]:
    """A cell on each kind of database, and the rows spread over them."""
    folder = tmp_path_factory.mktemp("listing")
    conf = cfg.ConfigOpts()
    conf([], project="cellmw", default_config_files=[], default_config_dirs=[])
    register_opts(conf)
    with ExitStack() as made:
        urls = {
            "postgresql": made.enter_context(servers.postgresql_database(postgresql_server)),
            # by default oslo.db's connections to MariaDB have no characters of four bytes
            "mariadb": made.enter_context(servers.mariadb_database(mariadb_server)) + "?charset=utf8mb4",
            "sqlite": f"sqlite:///{folder}/cell.sqlite",
        }
        api = f"sqlite:///{folder}/api.sqlite"
        conf.set_override("connection", api, group="api_database")
        engine = make_engine(api, {}, pre_ping=False)
        models.metadata.create_all(engine)
        with Store(engine) as store:
            for number, (name, url) in enumerate(urls.items()):
                cell = store.create_cell(name=name, transport_url="none:///", database_connection=url)
                fill(url, ROWS[number::3])
                for row in ROWS[number::3]:
                    store.create_instance(row["uuid"], project_id="project-1", cell_id=cell.id)
        yield made.enter_context(closing(deploy.cells(conf)))


def fill(url: str, values: list[dict[str, Any]]) -> None:
    """Create the table and put rows into it; SQLite has no time zones."""
    engine = sa.create_engine(url, poolclass=pool.NullPool)
    if engine.dialect.name != "postgresql":
        values = [row | {"zoned": row["zoned"] and row["zoned"].replace(tzinfo=None)} for row in values]
    METADATA.create_all(engine)
    with orm.Session(engine) as session, session.begin():
        session.add_all(Item(**row) for row in values)


def compare(one: dict[str, Any], other: dict[str, Any], order: Iterable[tuple[str, str]]) -> int:
    """Say by the sign which of two rows comes first: the oracle."""
    for name, direction in order:
        mine, its = one[name], other[name]
        if mine == its:
            continue
        lower = mine is None or (its is not None and mine < its)
        return -1 if lower == (direction == "asc") else 1
    return 0


def walk(cells: Cells, sort: list[tuple[str, str]], limit: int, statement: Any = None, **options: Any) -> list[Any]:
    """Return the rows of all pages, gone on by cursor."""
    walked: list[Any] = []
    cursor = None
    while True:
        page = list_sorted(
            RequestContext(),
            cells,
            sa.select(Item) if statement is None else statement,
            sort=sort,
            limit=limit,
            cursor=cursor,
            secret="a secret",
            deadline=after(PATIENCE),
            down_cells="fail",
            **options,
        )
        walked += page.rows
        cursor = page.cursor
        if cursor is None:
            return walked


def expected(sort: list[tuple[str, str]]) -> list[str]:
    """Return the uuids as they have to be sorted."""
    order = [*sort, ("uuid", sort[0][1])]
    ordered = sorted(ROWS, key=functools.cmp_to_key(lambda one, other: compare(one, other, order)))
    return [row["uuid"] for row in ordered]


def test_order(cells: Cells) -> None:
    """By any column, up and down, with pages that end in the middle of equal values, the order is the model's."""
    for name, direction in itertools.product(VALUES, ("asc", "desc")):
        for sort in ([(name, direction)], [("rank", "asc"), (name, direction), ("uuid", "desc")]):
            walked = [item.uuid for (item,) in walk(cells, sort, 17)]
            assert walked == expected(sort), sort


def test_joined(cells: Cells) -> None:
    """A column that is never NULL in its table is in order where an outer join has NULLs in it."""
    other = orm.aliased(Item)
    statement = sa.select(Item.uuid, other.rank.label("other_rank")).outerjoin(
        other, sa.and_(other.uuid == Item.uuid, other.rank > 0)
    )
    for direction in ("asc", "desc"):
        walked = walk(cells, [("other_rank", direction)], 13, statement)
        # what is 0 was not joined, and NULL is lower than the rest, too
        assert [row.uuid for row in walked] == expected([("rank", direction)])


def test_marker(cells: Cells) -> None:
    """Walking by marker gives the same; a marker in capitals is none, on MariaDB as on the others."""
    sort = [("name", "desc"), ("size", "asc")]
    marker, walked, more = None, [], True
    while more:
        page = list_sorted(
            RequestContext(), cells, sa.select(Item), sort=sort, limit=23, marker=marker, deadline=after(PATIENCE)
        )
        walked += [item.uuid for (item,) in page.rows]
        marker, more = walked[-1], page.more
    assert walked == expected(sort)
    for (item,) in page.rows[:6]:
        with pytest.raises(BadMarker):
            list_sorted(
                RequestContext(),
                cells,
                sa.select(Item),
                sort=sort,
                marker=item.uuid.upper(),
                deadline=after(PATIENCE),
            )


def test_totals(cells: Cells) -> None:
    """Rows are counted, and columns added up, in all cells, to integers where they are integers."""
    statement = sa.select(Item).where(Item.rank > 0)
    chosen = [row for row in ROWS if row["rank"] > 0]
    assert count(RequestContext(), cells, statement, deadline=after(PATIENCE)).value == len(chosen)
    sums = total(RequestContext(), cells, statement, ["rank", "price"], deadline=after(PATIENCE)).value
    assert sums == {
        "rank": sum(row["rank"] for row in chosen),
        "price": sum(row["price"] or Decimal(0) for row in chosen),
    }
    assert type(sums["rank"]) is int


def test_find(cells: Cells) -> None:
    """A row is found in its cell, whatever kind of database that is."""
    for number, name in enumerate(("postgresql", "mariadb", "sqlite")):
        found = find(RequestContext(), cells, sa.select(Item), ROWS[number]["uuid"], deadline=after(PATIENCE))
        ((cell, (item,)),) = found.rows.items()
        assert (cell.name, item.uuid) == (name, ROWS[number]["uuid"])
        assert not found.missing
