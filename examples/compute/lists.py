# SPDX-License-Identifier: Apache-2.0
"""A query string -> one page of the caller's servers, out of all cells, sorted.

No cell is named here either: which ones there are the cells know, and what is missing of one that does not answer the
mappings tell.
"""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING, Any

import sqlalchemy
from webob import exc

from cellmw.deadline import after
from cellmw.exceptions import CellsMissing, ListingError, StoreUnavailable
from cellmw.listing import list_sorted
from examples.compute.models import Instance

if TYPE_CHECKING:
    import webob

    import cellmw
    from cellmw.cell import Cell
    from cellmw.listing import Page

MAX_LIMIT = 1000
"""How many servers a page has at most, and where the caller does not say."""

TIMEOUT = 5.0
"""Seconds that a page may take; a cell that has not answered by then counts as down."""

SORT_KEYS = {
    "created_at": "created_at",
    "display_name": "name",
    "flavor": "flavor",
    "name": "name",
    "status": "state",
    "uuid": "uuid",
}
"""What a list can be sorted by, and the column that has it."""

_DEFAULT_SORT = [("created_at", "desc")]

_REPEATABLE = {"sort_key", "sort_dir"}
_PARAMETERS = {"limit", "marker", "cursor", "all_tenants", *_REPEATABLE}

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def page_of(
    request: webob.Request, context: cellmw.RequestContext, cells: cellmw.Cells, *, down_cells: str, secret: str
) -> Page:
    """Return the page that the request asks for.

    :param down_cells: what becomes of the servers of a cell that does not answer, as ``list_sorted`` takes it
    :param secret: what the links to the next page are signed with
    :raises HTTPError: if the request can't be understood, or no page can be made
    """
    parameters = request.GET
    _check(parameters)
    is_admin = context.is_admin or "admin" in context.roles
    statement = sqlalchemy.select(*Instance.__table__.c)
    project_id = None
    if not _all_tenants(parameters, is_admin=is_admin):
        project_id = context.project_id
        statement = statement.where(Instance.project_id == project_id)
    try:
        return list_sorted(
            context,
            cells,
            statement,
            sort=_sort(parameters),
            unique="uuid",
            limit=_limit(parameters),
            max_limit=MAX_LIMIT,
            marker=parameters.get("marker"),
            cursor=parameters.get("cursor"),
            secret=secret,
            deadline=after(TIMEOUT),
            down_cells=down_cells,
            partial=_minimal_view,
            project_id=project_id,
        )
    except ListingError as error:
        raise exc.HTTPBadRequest(str(error)) from error
    except CellsMissing as error:
        raise exc.HTTPServiceUnavailable(
            str(error) if is_admin else "The servers can't be listed at the moment."
        ) from error
    except StoreUnavailable as error:
        raise exc.HTTPServiceUnavailable("The servers can't be listed at the moment.") from error


def next_link(request: webob.Request, page: Page) -> list[dict[str, str]]:
    """Return the link to the page behind this one, in a list that is empty where there is none."""
    if page.cursor is None:
        return []
    parameters = [(name, value) for name, value in request.GET.items() if name not in ("marker", "cursor")]
    query = urllib.parse.urlencode([*parameters, ("cursor", page.cursor)])
    return [{"rel": "next", "href": f"{request.path_url}?{query}"}]


def _minimal_view(cell: Cell, mapping: Any) -> dict[str, Any]:
    """Return what is known of a server whose cell does not answer."""
    return {"id": mapping.instance_uuid, "tenant_id": mapping.project_id, "status": "UNKNOWN"}


def _check(parameters: webob.multidict.MultiDict) -> None:
    for name in parameters:
        if name not in _PARAMETERS:
            raise exc.HTTPBadRequest(f"there is no parameter {name}; there are {', '.join(sorted(_PARAMETERS))}")
        if name not in _REPEATABLE and len(parameters.getall(name)) > 1:
            raise exc.HTTPBadRequest(f"{name} is there twice")


def _sort(parameters: webob.multidict.MultiDict) -> list[tuple[str, str]]:
    """Pair the keys with their directions; where there are fewer of these, the first one is for the rest."""
    keys, directions = parameters.getall("sort_key"), parameters.getall("sort_dir")
    if not keys:
        keys = [key for key, _ in _DEFAULT_SORT]
    for key in keys:
        if key not in SORT_KEYS:
            raise exc.HTTPBadRequest(f"there is no sort_key {key}; there are {', '.join(SORT_KEYS)}")
    for direction in directions:
        if direction not in ("asc", "desc"):
            raise exc.HTTPBadRequest(f"sort_dir is asc or desc, and not {direction}")
    if len(directions) > len(keys):
        raise exc.HTTPBadRequest("there are more sort_dir than sort_key")
    rest = directions[0] if directions else "desc"
    directions += [rest] * (len(keys) - len(directions))
    return [(SORT_KEYS[key], direction) for key, direction in zip(keys, directions, strict=True)]


def _limit(parameters: webob.multidict.MultiDict) -> int:
    limit = parameters.get("limit", str(MAX_LIMIT))
    if not (limit.isascii() and limit.isdecimal()):
        raise exc.HTTPBadRequest("limit has to be a number, and at least 1")
    return int(limit) if len(limit) <= len(str(MAX_LIMIT)) else MAX_LIMIT


def _all_tenants(parameters: webob.multidict.MultiDict, *, is_admin: bool) -> bool:
    wanted = parameters.get("all_tenants", "0").lower()
    if wanted not in _TRUE + _FALSE:
        raise exc.HTTPBadRequest("all_tenants is 1 or 0")
    if wanted in _TRUE and not is_admin:
        raise exc.HTTPForbidden("all_tenants is for admins")
    return wanted in _TRUE
