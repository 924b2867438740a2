# SPDX-License-Identifier: Apache-2.0
"""What was typed, or else what is configured -> a URL that a cell can have, and that leads where no other cell's does.

What is recorded is what was typed: a URL, a template, as Nova has them, or a reference that says where the URL is. What
is checked is the URL that the services will use. Nothing is connected to.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy

from cellmw import deploy, own_urls, urls
from cellmw.cell import NO_TRANSPORT_SCHEME
from cellmw.cmd.command import Refused, note
from cellmw.credentials import Credentials
from cellmw.exceptions import CellExists, CellMisconfigured, CredentialError, UrlRefused
from cellmw.resolver import Resolver
from cellmw.store import migrations

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from oslo_config import cfg

    from cellmw.cell import Cell
    from cellmw.store import Store

T = TypeVar("T")

_TRANSPORT = "the transport URL"
_DATABASE = "the database URL"

_DATABASE_OF = "database"
_QUEUE_OF = "message queue"
_KINDS = (_DATABASE_OF, _QUEUE_OF)
"""What no two cells may have in common."""


@dataclass(frozen=True)
class Url:
    """A URL that a cell is to have.

    :ivar stored: what goes into its record
    :ivar complete: where that leads
    """

    stored: str = field(repr=False)
    complete: str = field(repr=False)


NO_QUEUE = Url("none:///", "none:///")
"""The transport URL of cell0."""


class CellUrls:
    """Makes the URLs of one cell. Lives as long as the command."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf
        self._credentials = Credentials(deploy.settings(conf).credential_keys, conf)
        self._resolver = Resolver(conf, self._credentials)

    def transport(self, typed: str | None) -> Url:
        """Return the transport URL that was typed, or else the service's own.

        :raises Refused: if there is neither, or if oslo.messaging can't use it
        """
        own = own_urls.transport_url(self._conf)
        if not (typed or own):
            raise Refused("no transport URL: give --transport-url, or set [DEFAULT] transport_url")
        # that a cell has no queue has to be said here: from a configuration it would be an accident
        typed_none = (typed or "").startswith(NO_TRANSPORT_SCHEME)
        url = self._url(_TRANSPORT, typed, own, "[DEFAULT] transport_url")
        _check(
            _TRANSPORT,
            lambda: urls.check_transport_url(self._conf, url.complete, may_have_no_queue=typed_none),
        )
        if typed_none:
            note("the cell has no message queue: nothing can be sent to what lives there")
        return url

    def database(self, typed: str | None) -> Url:
        """Return the database URL that was typed, or else the service's own.

        :raises Refused: if there is neither, or if SQLAlchemy can't use it
        """
        own = own_urls.database_connection(self._conf)
        if not (typed or own):
            raise Refused("no database URL: give --database_connection, or set [database] connection")
        url = self._url(_DATABASE, typed, own, "[database] connection")
        _check(_DATABASE, lambda: urls.check_database_connection(url.complete))
        return url

    def database_of_cell0(self, typed: str | None) -> Url:
        """Return the database URL that was typed, or else the service's own with ``_cell0`` behind the database's name.

        :raises Refused: if there is neither, or if SQLAlchemy can't use it
        """
        url = self.database(typed)
        if typed:
            return url
        parsed = sqlalchemy.make_url(url.complete)
        if not parsed.database:
            raise Refused("[database] connection names no database to call cell0's after: give --database_connection")
        of_cell0 = parsed.set(database=f"{parsed.database}_cell0").render_as_string(hide_password=False)
        return Url(of_cell0, of_cell0)

    def protect(self, stored: str, store: Store) -> str:
        """Return what is to be recorded, encrypted where there are keys.

        :raises CredentialError: if the keys can't be read
        :raises Refused: if Nova could not read it
        """
        protected = self._credentials.protect(stored)
        if protected != stored and migrations.is_novas(store.engine):
            raise Refused(
                "Nova uses this API database, and can't read what is encrypted: unset [cellmw] credential_keys"
            )
        return protected

    def decrypt(self, stored: str) -> str:
        """Take what is encrypted out of its envelope.

        :raises CredentialError: if that can't be done
        """
        return self._credentials.decrypt(stored)

    def as_recorded(self, text: str, reveal: Callable[[], str], store: Store) -> str:
        """Return what stands in a record already, where that says the same, and else what is to be recorded.

        :raises CredentialError: if the keys can't be read
        :raises Refused: if Nova could not read it
        """
        with contextlib.suppress(CellMisconfigured, CredentialError):
            if text in ((recorded := reveal()), self.decrypt(recorded)):
                return recorded
        return self.protect(text, store)

    def refuse_shared(
        self, cells: Iterable[Cell], database: Url | None = None, transport: Url | None = None
    ) -> Recheck:
        """Refuse what leads to the database or to the queue of one of these cells, however it is written.

        :returns: refuses the same of cells that are recorded meanwhile
        :raises CellExists: if it does
        """
        wanted: list[tuple[str, object]] = []
        if database is not None:
            wanted.append((_DATABASE_OF, urls.database_place(database.complete)))
        if transport is not None:
            wanted += [(_QUEUE_OF, queue) for queue in urls.transport_place(transport.complete)]

        def refuse(cells: Iterable[Cell]) -> None:
            taken = self._taken(cells, {what for what, _ in wanted})
            for what, place in wanted:
                if (what, place) in taken:
                    raise CellExists(f"cell {taken[what, place]} has that {what} already")

        refuse(checked := list(cells))
        return Recheck(checked, refuse)

    def check(self, cells: Iterable[Cell], others: Iterable[Cell]) -> Recheck:
        """Check cells that are to be recorded together.

        What can't be made out on this host is noted, and not checked: a file or a variable may be there on others.

        :param others: those that are recorded, and stay as they are
        :returns: compares these cells with others that are recorded meanwhile
        :raises Refused: if nobody could use one of their URLs
        :raises CellExists: if two of all these cells have a database or a queue in common
        """
        taken = self._taken(checked := list(others))
        new: dict[tuple[str, object], Cell] = {}
        for cell in map(self._resolver.resolve, cells):
            with contextlib.suppress(CellMisconfigured):  # which is noted with its place
                url = cell.reveal_database_connection()
                _check(f"cell {cell}: {_DATABASE}", partial(urls.check_database_connection, url))
            with contextlib.suppress(CellMisconfigured):
                url = cell.reveal_transport_url()
                check = partial(urls.check_transport_url, self._conf, url, may_have_no_queue=True)
                _check(f"cell {cell}: {_TRANSPORT}", check)
            places = dict.fromkeys(_places(cell), cell)
            _refuse_both(places, taken | new)
            new |= places
        return Recheck(checked, lambda others: _refuse_both(new, self._taken(others)))

    def _taken(self, cells: Iterable[Cell], kinds: Collection[str] = _KINDS) -> dict[tuple[str, object], Cell]:
        """Return which place is which cell's, of these kinds."""
        return {place: cell for cell in map(self._resolver.resolve, cells) for place in _places(cell, kinds)}

    def _url(self, what: str, typed: str | None, own: str | None, option: str) -> Url:
        stored = typed or urls.literal(own or "")
        if any("\ud800" <= character <= "\udfff" for character in stored):
            raise Refused(f"{what} is not UTF-8: give it with its special characters percent-encoded")
        try:
            revealed = self._credentials.reveal(stored)
            if not own and urls.fields(revealed):
                raise Refused(f"{what} is a template: set {option} to what the services have there")
            complete = urls.fill_in(revealed, own)
        except CredentialError as error:
            raise Refused(f"{what}: {error}") from None
        except UrlRefused as error:
            raise Refused(f"{what} can't be filled in from {option}: {error}") from None
        if complete != revealed and not urls.fields(revealed):
            note(f"{what}: two braces in it stand for one, as in Nova; %7B and %7D stand for braces in any case")
        return Url(stored, complete)


class Recheck:
    """Checks cells that were recorded or changed since all were checked. Lives as long as the command.

    It is for whoever has locked the records, so that others wait for nothing but what nobody could look at before.
    """

    def __init__(self, checked: Iterable[Cell], check: Callable[[Iterable[Cell]], None]) -> None:
        """Take those that were checked, and what checks."""
        self._checked = {(cell.uuid, cell.fingerprint) for cell in checked}
        self._check = check

    def __call__(self, cells: Iterable[Cell]) -> None:
        """Check those of these cells that are new, or have another URL.

        :raises CellExists: if one of them has what is to be recorded
        """
        self._check([cell for cell in cells if (cell.uuid, cell.fingerprint) not in self._checked])


def _refuse_both(places: Mapping[tuple[str, object], Cell], taken: Mapping[tuple[str, object], Cell]) -> None:
    """Refuse places of new cells that are other cells' already."""
    for (what, place), cell in places.items():
        if (what, place) in taken:
            raise CellExists(f"cell {cell} would have the {what} of cell {taken[what, place]}")


def _check(what: str, check: Callable[[], list[str]]) -> None:
    try:
        warnings = check()
    except UrlRefused as error:
        raise Refused(f"{what} is refused: {error}") from None
    for warning in warnings:
        note(f"{what}: {warning}")


def _places(cell: Cell, kinds: Collection[str] = _KINDS) -> list[tuple[str, object]]:
    """Return where a cell's URLs of these kinds lead, as far as that is known."""
    places: list[tuple[str, object]] = []
    if _DATABASE_OF in kinds:
        database = _place(cell, _DATABASE_OF, cell.reveal_database_connection, urls.database_place)
        places += [(_DATABASE_OF, database)] if database is not None else []
    if _QUEUE_OF in kinds and cell.has_transport:
        queues = _place(cell, _QUEUE_OF, cell.reveal_transport_url, urls.transport_place)
        places += [(_QUEUE_OF, queue) for queue in queues or ()]
    return places


def _place(cell: Cell, what: str, reveal: Callable[[], str], place: Callable[[str], T]) -> T | None:
    """Return where a cell's URL leads; None, with a note, where nobody knows."""
    try:
        return place(reveal())
    except CellMisconfigured as error:
        note(f"{error}; its {what} was not compared")
    except UrlRefused as error:
        note(f"cell {cell}: {error}; its {what} was not compared")
    return None
