# SPDX-License-Identifier: Apache-2.0
"""Sort keys -> the order and the predicates by which a database gives a page, and by which Python merges several.

The order is the same on every database, and in Python: NULL is lower than every value, text goes by code point. What a
database sorts otherwise on its own it is told: PostgreSQL takes NULL for the highest and text as its locale has it;
MariaDB and MySQL take upper and lower case, accents and spaces at the end for the same.
"""

from __future__ import annotations

import copy
import datetime
import uuid
from decimal import Decimal
from operator import eq, is_, itemgetter, ne
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import and_, cast, collate, false, func, literal, literal_column, or_, types

from cellmw.exceptions import ListingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sqlalchemy import ColumnElement, Select

    from cellmw.cursor import Order

Entry = tuple[Any, Any, Any]
"""A rank, and what it is the rank of."""

ASCENDING, DESCENDING = "asc", "desc"

_UUID_LENGTH = 36
"""Length of the text columns that uuids are in."""

_MYSQL = ("mysql", "mariadb")

_PLAIN = frozenset({str, int, float, Decimal, bool, bytes, uuid.UUID, datetime.date, datetime.datetime})
"""Types that Python sorts as the databases do."""

_MAY_BE_NAN = frozenset({float, Decimal})


class Key:
    """One column that a list is sorted by. Lives as long as the call; immutable.

    :ivar name: of the column, in the statement
    :ivar descending: whether the highest comes first
    """

    def __init__(
        self,
        name: str,
        column: ColumnElement[Any],
        value: Callable[[Any], Any],
        *,
        descending: bool,
        is_uuid: bool,
        nullable: bool,
    ) -> None:
        """Take a column.

        :param value: takes a row of the statement, and returns what this column has in it
        :param is_uuid: whether it has uuids in lower case, which each database sorts alike, if it has text
        :param nullable: whether there may be a NULL in it
        """
        self.name = name
        self.descending = descending
        self._column = column
        self._value = value
        self._nullable = nullable
        self._kind = getattr(column.type, "impl_instance", column.type)
        self._is_collated = isinstance(self._kind, types.String) and not is_uuid

    @property
    def has_nulls_last(self) -> bool:
        """Whether NULLs are the last, if there may be any."""
        return self.descending and self._nullable

    def without_nulls(self) -> Key:
        """Return the key for rows that have something in the column."""
        key = copy.copy(self)
        key._nullable = False
        return key

    def values(self, rows: Iterable[Any]) -> list[Any]:
        """Return what the rows have in this column, each as Python sorts it.

        A time without a zone counts as one in UTC.

        :raises TypeError: if there is a value of a type that is not known to be sorted alike everywhere
        """
        values = [self._value(row) for row in rows]
        kinds = set(map(type, values))
        strange = kinds - _PLAIN - {type(None)}
        if strange:
            raise TypeError(f"column {self.name} can't be sorted by: it has a {strange.pop().__name__} in it")
        if datetime.datetime in kinds:
            return [value if value is None else _in_utc(value) for value in values]
        return values

    def order(self, dialect: str) -> ColumnElement[Any]:
        """Return what a database of this dialect sorts by."""
        column = self._comparable(self._column, dialect)
        ordered = column.desc() if self.descending else column.asc()
        if dialect == "postgresql" and self._nullable:
            return ordered.nulls_last() if self.descending else ordered.nulls_first()
        return ordered

    def is_same(self, value: Any, dialect: str) -> ColumnElement[bool]:
        """Return what is true of rows that have this value."""
        if value is None:
            return self._column.is_(None)
        return self._comparable(self._column, dialect) == self._bound(value, dialect)

    def is_exactly(self, value: Any, dialect: str) -> ColumnElement[bool]:
        """Return what is true of rows that have this value, as an index on the column finds them."""
        same = self._column == literal(value, self._column.type)
        if dialect in _MYSQL and isinstance(value, str):
            return and_(same, _bytes(self._column) == _bytes_of(value))
        return same

    def is_after(self, value: Any, dialect: str) -> ColumnElement[bool]:
        """Return what is true of rows that come after those with this value."""
        if value is None:
            return false() if self.descending else self._column.is_not(None)
        column, bound = self._comparable(self._column, dialect), self._bound(value, dialect)
        if not self.descending:
            return column > bound
        return or_(column < bound, self._column.is_(None)) if self._nullable else column < bound

    def is_not_before(self, value: Any, dialect: str) -> ColumnElement[bool] | None:
        """Return a range that an index can be searched by, of the rows with this value or after it, if there is one."""
        if value is None:
            return None
        column, bound = self._comparable(self._column, dialect), self._bound(value, dialect)
        if not self.descending:
            return column >= bound
        return or_(column <= bound, self._column.is_(None)) if self._nullable else column <= bound

    def parse(self, text: str) -> Any:
        """Return the value that this text is in the column.

        :raises ValueError: if it can be none
        """
        if isinstance(self._kind, types.Uuid) and self._kind.as_uuid:
            return uuid.UUID(text)
        if isinstance(self._kind, types.Integer):
            number = int(text)
            if number.bit_length() > (63 if isinstance(self._kind, types.BigInteger) else 31):
                raise ValueError(text)
            return number
        text.encode()  # raises, where no database could have it
        if "\0" in text:
            raise ValueError(text)
        return text

    def _bound(self, value: Any, dialect: str) -> ColumnElement[Any]:
        if isinstance(value, datetime.datetime) and not (dialect == "postgresql" and self._has_zone):
            value = value.replace(tzinfo=None)
        if dialect in _MYSQL and self._is_collated:
            # its bytes, as the connection may have a charset that lacks a character of another cell's
            return _bytes_of(value)
        return self._comparable(literal(value, self._column.type), dialect)

    @property
    def _has_zone(self) -> bool:
        return bool(getattr(self._kind, "timezone", False))

    def _comparable(self, element: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
        """Return the element as a database of this dialect has to compare it."""
        is_uuid_type = isinstance(self._kind, types.Uuid)
        if dialect in _MYSQL and (self._is_collated or is_uuid_type):
            # as bytes: they are in the order of the code points, and no collation that both servers know, and every
            # charset can have, keeps "a" and "a " apart. Its own UUIDs MariaDB sorts by their last part
            return _bytes(element if not is_uuid_type else cast(element, types.CHAR(_UUID_LENGTH)))
        if not self._is_collated:
            return element
        if isinstance(self._kind, types.Enum):
            element = cast(element, types.Text)
        return collate(element, "C" if dialect == "postgresql" else "BINARY")


class Keyset:
    """What a statement is sorted by. Lives as long as the call; immutable.

    :ivar order: the names and directions, the unique column's last
    """

    def __init__(self, statement: Select[Any], sort: Sequence[tuple[str, str]], unique: str) -> None:
        """Find the columns of a statement.

        :raises ListingError: if the statement has no such column, or a direction is neither ``asc`` nor ``desc``
        :raises TypeError: if the statement is none to which an order and a condition can be added
        """
        _check(statement)
        self.order = _order(sort, unique)
        columns = _columns(statement)
        missing = [name for name, _ in self.order if name not in columns]
        if missing:
            raise ListingError(f"the list can't be sorted by {', '.join(missing)}")
        joined = len(froms := statement.get_final_froms()) != 1 or isinstance(froms[0], sa.Join)
        self.keys = []
        for name, direction in self.order:
            column, value = columns[name]
            is_uuid = name == unique and getattr(column.type, "length", None) == _UUID_LENGTH
            nullable = joined or getattr(column, "nullable", True)
            key = Key(name, column, value, descending=direction == DESCENDING, is_uuid=is_uuid, nullable=nullable)
            self.keys.append(key)
        self._statement = statement.order_by(None)
        self._runs = list(_runs(self.keys))
        self.has_entities = any(_is_entity(each["expr"]) for each in statement.column_descriptions)

    def selects(self, dialect: str, after: Sequence[Any]) -> list[Select[Any]]:
        """Return the statements that give the rows, sorted, after the one that has these sort values: one or two.

        Two where NULLs are the last of what counts most, and a database can't find the others by an index if it is
        asked for both at once.

        :param after: none for the first rows
        """
        first, *rest = self.keys
        order = [key.order(dialect) for key in rest]
        if not after:
            return [self._statement.order_by(first.order(dialect), *order)]
        if after[0] is None or not first.has_nulls_last or dialect in _MYSQL:
            return [self._statement.where(self._is_after(dialect, after, first)).order_by(first.order(dialect), *order)]
        filled = first.without_nulls()
        # in the order of the first page, or PostgreSQL would need another index for it
        return [
            self._statement.where(self._is_after(dialect, after, filled)).order_by(first.order(dialect), *order),
            self._statement.where(first.is_same(None, dialect)).order_by(*order),
        ]

    def select_one(self, dialect: str, value: Any) -> Select[Any]:
        """Return the statement for the rows that have this in the unique column."""
        return self._statement.where(self.keys[-1].is_exactly(value, dialect))

    def _is_after(self, dialect: str, after: Sequence[Any], first: Key) -> ColumnElement[bool]:
        same: list[ColumnElement[bool]] = []
        cases = []
        for key, value in zip([first, *self.keys[1:]], after, strict=True):
            cases.append(and_(*same, key.is_after(value, dialect)))
            same.append(key.is_same(value, dialect))
        limit = first.is_not_before(after[0], dialect) if len(self.keys) > 1 else None
        return or_(*cases) if limit is None else and_(limit, or_(*cases))

    def __str__(self) -> str:
        return ", ".join(f"{name} {direction}" for name, direction in self.order)

    def columns(self, rows: Sequence[Any]) -> list[list[Any]]:
        """Return the sort values of the rows, by column."""
        return [key.values(rows) for key in self.keys]

    def ranks(self, columns: Sequence[Sequence[Any]]) -> list[Any]:
        """Return what each row is sorted by in Python: see :meth:`sort`."""
        ranked = [part for column in columns for part in _ranked(column)]
        runs = [list(zip(*ranked[2 * start : 2 * end], strict=True)) for start, end, _ in self._runs]
        return runs[0] if len(runs) == 1 else list(zip(*runs, strict=True))

    def sort(self, entries: list[Entry]) -> None:
        """Sort entries by the rank in front of each, in place; it costs little where there are long sorted runs."""
        if len(self._runs) == 1:
            entries.sort(key=itemgetter(0), reverse=self._runs[0][2])
            return
        # the sort is stable: what counts least goes first
        for number, (_, _, descending) in reversed(list(enumerate(self._runs))):
            entries.sort(key=_part(number), reverse=descending)

    def is_sorted(self, entries: list[Entry]) -> bool:
        """Return whether each entry comes after the one before it, and none with it."""
        ordered = entries.copy()
        self.sort(ordered)
        ranks = [entry[0] for entry in entries]
        return all(map(is_, ordered, entries)) and not any(map(eq, ranks, ranks[1:]))


def _bytes(text: Any) -> ColumnElement[Any]:
    """Return the UTF-8 of a text that is in a MariaDB or MySQL."""
    return cast(func.convert(text.op("USING")(literal_column("utf8mb4"))), types.LargeBinary)


def _bytes_of(text: str) -> ColumnElement[Any]:
    return func.unhex(text.encode("utf-8", "surrogatepass").hex())


def _check(statement: Any) -> None:
    if not isinstance(statement, sa.Select):
        raise TypeError(f"a list is made of a select(), not of a {type(statement).__name__}")
    if statement._group_by_clauses or statement._limit_clause is not None or statement._offset_clause is not None:
        raise TypeError(
            "a list can't be cut out of a select with GROUP BY, LIMIT or OFFSET: select from its subquery()"
        )


def _order(sort: Sequence[tuple[str, str]], unique: str) -> Order:
    """Return the sort keys up to the unique one, each once."""
    directions: dict[str, str] = {}
    for name, direction in sort:
        if direction not in (ASCENDING, DESCENDING):
            raise ListingError(f"sort direction {direction!r} is neither {ASCENDING} nor {DESCENDING}")
        directions.setdefault(name, direction)
    directions.setdefault(unique, next(iter(directions.values()), ASCENDING))
    names = list(directions)
    return tuple((name, directions[name]) for name in names[: names.index(unique) + 1])


def _columns(statement: Select[Any]) -> dict[str, tuple[ColumnElement[Any], Callable[[Any], Any]]]:
    """Return each column by its name, and what takes its value out of a row; of two of one name the first."""
    columns: dict[str, tuple[ColumnElement[Any], Callable[[Any], Any]]] = {}
    for place, each in enumerate(statement.column_descriptions):
        expression = each["expr"]
        if _is_entity(expression):
            for name in sa.inspect(expression).mapper.column_attrs.keys():  # noqa: SIM118 - it is no dict
                column = getattr(expression, name).expression
                columns.setdefault(name, (_bare(column), _attribute(place, name)))
        elif each["name"] is not None:
            column = getattr(expression, "expression", expression)
            columns.setdefault(each["name"], (_bare(column), itemgetter(place)))
    return columns


def _is_entity(expression: Any) -> bool:
    found = sa.inspect(expression, raiseerr=False)
    return bool(getattr(found, "is_mapper", False) or getattr(found, "is_aliased_class", False))


def _bare(column: Any) -> ColumnElement[Any]:
    element: ColumnElement[Any] = column.element if isinstance(column, sa.Label) else column
    return element


def _attribute(place: int, name: str) -> Callable[[Any], Any]:
    return lambda row: getattr(row[place], name)


def _part(number: int) -> Callable[[Entry], Any]:
    return lambda entry: entry[0][number]


def _runs(keys: Sequence[Key]) -> Iterator[tuple[int, int, bool]]:
    """Yield where runs of keys of one direction begin and end."""
    start = 0
    for end in range(1, len(keys) + 1):
        if end == len(keys) or keys[end].descending != keys[start].descending:
            yield start, end, keys[start].descending
            start = end


def _ranked(column: Sequence[Any]) -> tuple[Sequence[int], Sequence[Any]]:
    """Return what the values are sorted by first, and what then: NULL is lower, NaN is higher than all others."""
    kinds = set(map(type, column))
    if not kinds.isdisjoint(_MAY_BE_NAN) and any(map(ne, column, column)):
        # a value that is no number is not equal to itself
        firsts = [0 if value is None else 1 if value == value else 2 for value in column]
        return firsts, [value if first == 1 else None for first, value in zip(firsts, column, strict=True)]
    if type(None) in kinds:
        return [0 if value is None else 1 for value in column], column
    return [1] * len(column), column


def _in_utc(value: datetime.datetime) -> datetime.datetime:
    return value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value.astimezone(datetime.UTC)
