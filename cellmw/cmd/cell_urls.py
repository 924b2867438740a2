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
    from collections.abc import Callable, Iterable

    from oslo_config import cfg

    from cellmw.cell import Cell
    from cellmw.store import Store

T = TypeVar("T")

_TRANSPORT = "the transport URL"
_DATABASE = "the database URL"


@dataclass(frozen=True)
class Url:
    """A URL of a new cell.

    :ivar stored: what goes into its record
    :ivar complete: where that leads
    """

    stored: str = field(repr=False)
    complete: str = field(repr=False)


class CellUrls:
    """Makes the URLs of one new cell. Lives as long as the command."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf
        self._credentials = Credentials(deploy.settings(conf).credential_keys, conf)

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

    def refuse_shared(self, cells: Iterable[Cell], database: Url, transport: Url | None = None) -> None:
        """Refuse what leads to the database or to the queue of one of these cells, however it is written.

        :raises CellExists: if it does
        """
        resolver = Resolver(self._conf, self._credentials)
        for recorded in cells:
            cell = resolver.resolve(recorded)
            place = _place(cell, "database", cell.reveal_database_connection, urls.database_place)
            if place == urls.database_place(database.complete):
                raise CellExists(f"cell {cell} has that database already")
            if transport is None:
                continue
            queues = _place(cell, "queue", cell.reveal_transport_url, urls.transport_place)
            if queues and queues & urls.transport_place(transport.complete):
                raise CellExists(f"cell {cell} has that message queue already")

    def check(self, cells: Iterable[Cell], others: Iterable[Cell]) -> None:
        """Check cells that are to be recorded together.

        What can't be made out on this host is noted, and not checked: a file or a variable may be there on others.

        :param others: those that are recorded, and stay as they are
        :raises Refused: if nobody could use one of their URLs
        :raises CellExists: if two of all these cells have a database or a queue in common
        """
        resolver = Resolver(self._conf, self._credentials)
        taken: dict[object, Cell] = {}
        for cell in map(resolver.resolve, others):
            taken |= dict.fromkeys(_places(cell), cell)
        for cell in map(resolver.resolve, cells):
            with contextlib.suppress(CellMisconfigured):  # which is noted with its place
                url = cell.reveal_database_connection()
                _check(f"cell {cell}: {_DATABASE}", partial(urls.check_database_connection, url))
            with contextlib.suppress(CellMisconfigured):
                url = cell.reveal_transport_url()
                check = partial(urls.check_transport_url, self._conf, url, may_have_no_queue=True)
                _check(f"cell {cell}: {_TRANSPORT}", check)
            for what, place in (places := _places(cell)):
                if (what, place) in taken:
                    raise CellExists(f"cell {cell} would have the {what} of cell {taken[what, place]}")
            taken |= dict.fromkeys(places, cell)

    def _url(self, what: str, typed: str | None, own: str | None, option: str) -> Url:
        stored = typed or urls.literal(own or "")
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


def _check(what: str, check: Callable[[], list[str]]) -> None:
    try:
        warnings = check()
    except UrlRefused as error:
        raise Refused(f"{what} is refused: {error}") from None
    for warning in warnings:
        note(f"{what}: {warning}")


def _places(cell: Cell) -> list[tuple[str, object]]:
    """Return where a cell's URLs lead, as far as that is known."""
    places: list[tuple[str, object]] = []
    database = _place(cell, "database", cell.reveal_database_connection, urls.database_place)
    if database is not None:
        places.append(("database", database))
    if cell.has_transport:
        queues = _place(cell, "queue", cell.reveal_transport_url, urls.transport_place)
        places += [("message queue", queue) for queue in queues or ()]
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
