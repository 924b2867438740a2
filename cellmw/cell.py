# SPDX-License-Identifier: Apache-2.0
"""Cell: the frozen value that names one cell and guards its two URLs.

It does not open, check or resolve anything: handles.py turns it into open connections.
"""

from __future__ import annotations

import hashlib
from dataclasses import InitVar, dataclass
from typing import Any, Self

from cellmw.exceptions import CellMisconfigured

CELL0_UUID = "00000000-0000-0000-0000-000000000000"
"""The uuid by which Nova knows cell0, where instances go that no cell could take."""

NO_TRANSPORT_SCHEME = "none:"
"""How the transport URL of a cell without a message queue begins. oslo.messaging has no such driver."""


@dataclass(frozen=True, slots=True)
class Unresolved:
    """Stands for a URL that could not be made out.

    :ivar reason: why, without any part of it
    """

    reason: str


class _Urls:
    """Slots that no field list, ``vars()`` or pickle of a Cell ever shows."""

    __slots__ = ("_database_connection", "_transport_url")

    _transport_url: str | Unresolved | None
    _database_connection: str | Unresolved | None


@dataclass(frozen=True, slots=True)
class Cell(_Urls):
    """One cell: a database and a message queue with the instances in them. Lives as long as its record is current.

    Two cells are equal when they name the same record; whether they also lead to the same place is a question for
    their :attr:`fingerprint`. The URLs, which hold passwords, are no fields: ``repr``, ``asdict``, json and pickle
    leave them out, and a cell that came out of a pickle has none.

    :ivar id: primary key in ``cell_mappings``
    :ivar uuid: the name for machines
    :ivar name: the name for people, where it has one
    :ivar disabled: whether new instances are kept away from it; those in it are served all the same
    """

    id: int
    uuid: str
    name: str | None
    disabled: bool
    transport_url: InitVar[str | Unresolved | None]
    database_connection: InitVar[str | Unresolved | None]

    def __post_init__(
        self, transport_url: str | Unresolved | None, database_connection: str | Unresolved | None
    ) -> None:
        object.__setattr__(self, "_transport_url", transport_url)
        object.__setattr__(self, "_database_connection", database_connection)

    @property
    def has_transport(self) -> bool:
        """Whether the cell has a message queue; cell0 has none."""
        url = self._transport_url
        return not (isinstance(url, str) and url.startswith(NO_TRANSPORT_SCHEME))

    @property
    def fingerprint(self) -> str:
        """Both URLs, passwords and queries included, as one sha256 in hex: equal where they lead to the same place."""
        return hashlib.sha256(repr((self._transport_url, self._database_connection)).encode()).hexdigest()

    def reveal_transport_url(self) -> str:
        """Return the transport URL with its passwords: for opening it, never for showing it.

        :raises CellMisconfigured: if the cell has none, or it could not be made out
        """
        return self._reveal(self._transport_url, "transport URL")

    def reveal_database_connection(self) -> str:
        """Return the database URL with its password: for opening it, never for showing it.

        :raises CellMisconfigured: if the cell has none, or it could not be made out
        """
        return self._reveal(self._database_connection, "database connection")

    def _reveal(self, url: str | Unresolved | None, what: str) -> str:
        if isinstance(url, Unresolved):
            raise CellMisconfigured(self, url.reason)
        if not url:
            raise CellMisconfigured(self, f"its {what} is missing")
        return url

    def __str__(self) -> str:
        return self.name or self.uuid

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        return type(self), (self.id, self.uuid, self.name, self.disabled, None, None)
