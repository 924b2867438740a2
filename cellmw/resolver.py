# SPDX-License-Identifier: Apache-2.0
"""A cell as it is recorded -> the cell with the URLs that lead to it.

What is recorded can be encrypted, can say where the URL is, and can be a template that is filled in from the service's
own URLs. What of that goes wrong for one cell is an error for whoever wants to open that cell, and for nobody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellmw import own_urls, urls
from cellmw.cell import Cell, Unresolved
from cellmw.exceptions import CellMisconfigured, CredentialError, UrlRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from oslo_config import cfg

    from cellmw.credentials import Credentials


class Resolver:
    """Makes recorded cells ones that can be opened. Lives as long as the process."""

    def __init__(self, conf: cfg.ConfigOpts, credentials: Credentials) -> None:
        """Resolve with these keys, and from ``[DEFAULT] transport_url`` and ``[database] connection``."""
        self._conf = conf
        self._credentials = credentials

    def resolve(self, cell: Cell) -> Cell:
        """Return the cell with its URLs; one that can't be made out raises CellMisconfigured when it is asked for."""
        return Cell(
            cell.id,
            cell.uuid,
            cell.name,
            cell.disabled,
            self._resolve(
                cell.reveal_transport_url, "transport URL", "[DEFAULT] transport_url", own_urls.transport_url
            ),
            self._resolve(
                cell.reveal_database_connection,
                "database connection",
                "[database] connection",
                own_urls.database_connection,
            ),
        )

    def _resolve(
        self,
        reveal: Callable[[], str],
        what: str,
        option: str,
        default: Callable[[cfg.ConfigOpts], str | None],
    ) -> str | Unresolved | None:
        try:
            stored = reveal()
        except CellMisconfigured:
            return None  # there is none
        try:
            url = self._credentials.reveal(stored)
            if "{" not in url and "}" not in url:
                return url
            return urls.fill_in(url, default(self._conf))
        except CredentialError as error:
            return Unresolved(f"its {what} can't be read: {error}")
        except UrlRefused as error:
            return Unresolved(f"its {what} can't be filled in from {option}: {error}")
