# SPDX-License-Identifier: Apache-2.0
"""Whatever bytes a path and the headers have: no error, and a target only where the templates name one.

What names one is decided here a second time, without regular expressions: both are split at the slashes, and compared
segment by segment.
"""

from __future__ import annotations

import io
import string
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cellmw import CellFilter
from cellmw.conf import DEFAULT_ROUTES
from cellmw.routes import Routes
from cellmw.trip import TARGET_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from oslo_config import cfg

    from cellmw.cell import Cell
    from cellmw.store import Store

PROJECT = "project-1"

MAPPED = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
"""An instance that is in cell1."""

UNMAPPED = "ffffffff-ffff-4fff-bfff-ffffffffffff"


def repeatable(examples: int) -> settings:
    """Run a test on so many examples, which are the same in each run, wherever it is."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        # a filter is meant to serve one request after the other
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


def named(templates: Iterable[str], path: str) -> str | None:
    """Return the uuid that a path names by these templates, in lower case, or None: the oracle."""
    try:
        text = path.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return None
    first, *segments = text.split("/")
    if first:
        return None
    for template in templates:
        words = template.split("/")[1:]
        if len(segments) >= len(words) and all(map(fits, words, segments)):
            return segments[len(words) - 1].lower()
    return None


def fits(word: str, segment: str) -> bool:
    """Whether a segment of a path is what a segment of a template stands for."""
    if word == "{instance_uuid}":
        return [len(part) for part in segment.split("-")] == [8, 4, 4, 4, 12] and set(segment) <= set(
            "-" + string.hexdigits
        )
    if word == "{version}":
        numbers = segment[1:].split(".")
        return (
            segment[:1] == "v"
            and len(numbers) <= 2
            and all(number and set(number) <= set(string.digits) for number in numbers)
        )
    return segment != "" if word.startswith("{") else segment == word


def latin1(text: bytes) -> str:
    """Return bytes as WSGI hands them over."""
    return text.decode("latin-1")


any_text = st.binary(max_size=12).map(latin1)
uuids = st.sampled_from([MAPPED, MAPPED.upper(), UNMAPPED]) | st.uuids().map(str)
versions = st.sampled_from(["v2", "v2.1", "v10.12", "v", "v2.", "v2.1.3", "v2x1", "v٣".encode().decode("latin-1")])
words = st.sampled_from(["servers", "volumes", "detail", "a.b+(c)", ""]) | any_text
odd_characters = st.sampled_from("/\0\n\r%.;?- x٣\xff\u20ac\ud800")


@st.composite
def nearly(draw: st.DrawFn, paths: st.SearchStrategy[str]) -> str:
    """Draw a path, most often with a character more, less or other than it had."""
    path = draw(paths)
    at = draw(st.integers(0, len(path)))
    change = draw(st.sampled_from(["none", "more", "less", "other", "cut"]))
    if change == "none":
        return path
    if change == "cut":
        return path[:at]
    inserted = "" if change == "less" else draw(odd_characters | any_text)
    return path[:at] + inserted + path[at if change == "more" else at + 1 :]


some_paths = st.lists(words | versions | uuids, max_size=6).map("/".join)
paths = st.one_of(
    st.binary(max_size=60).map(latin1),
    st.text(max_size=60),
    nearly(some_paths),
    nearly(some_paths.map("/servers/{}".format)),
    nearly(st.tuples(versions, words, uuids, any_text).map(lambda parts: "/{}/{}/servers/{}/{}".format(*parts))),
    nearly(uuids.map("/servers/{}".format)),
)
"""Paths of all kinds, as a good server or a broken one hands them over; many are nearly one of an instance."""


literals = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/{}"), min_size=1, max_size=8)
placeholders = st.sampled_from(["{version}", "{project_id}", "{a}", "{_}"])
templates = st.lists(st.sampled_from(["servers", "a.b+(c)"]) | literals | placeholders, max_size=4).map(
    lambda segments: "/".join(["", *segments, "{instance_uuid}"])
)


@st.composite
def templates_and_path(draw: st.DrawFn) -> tuple[list[str], str]:
    """Draw templates, and a path that is nearly one of theirs."""
    drawn = draw(st.lists(templates, min_size=1, max_size=4))
    fillings = {"{version}": versions, "{instance_uuid}": uuids}
    segments = [
        draw(fillings.get(word, words)) if word.startswith("{") else latin1(word.encode())
        for word in draw(st.sampled_from(drawn)).split("/")
    ]
    return drawn, draw(nearly(st.just("/".join(segments))) | paths)


@repeatable(1000)
@given(paths)
@example(f"/servers/{MAPPED}")
@example(f"/v2.1/{UNMAPPED}/servers/{MAPPED}/action")
@example(f"/servers/{MAPPED}\0")
@example(f"/servers/{MAPPED}\n")
@example(f"/servers/{MAPPED}/\xff")
def test_default_routes(path: str) -> None:
    """A path names an instance by the default templates where a comparison of the segments says so, and else not."""
    assert Routes(DEFAULT_ROUTES).instance_uuid({"PATH_INFO": path}) == named(DEFAULT_ROUTES, path)


@repeatable(1000)
@given(templates_and_path())
def test_any_routes(drawn: tuple[list[str], str]) -> None:
    """The same holds for any templates that can be written."""
    routes, path = drawn
    assert Routes(routes).instance_uuid({"PATH_INFO": path}) == named(routes, path)


def test_word_that_is_not_ascii() -> None:
    """A word in a template is text, and names the path that has it in UTF-8."""
    path = latin1(f"/größe/{MAPPED}".encode())
    assert Routes(["/größe/{instance_uuid}"]).instance_uuid({"PATH_INFO": path}) == MAPPED


class App:
    """Says that it was called. Lives as long as the test.

    :ivar targets: for each call, the instance and the state of its target, None where it had none
    """

    def __init__(self) -> None:
        self.targets: list[tuple[str, str] | None] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        target = environ.get(TARGET_KEY)
        self.targets.append(target and (target.instance_uuid, target.state))
        start_response("200 OK", [])
        return iter([b"the app's"])


class Pipeline(NamedTuple):
    """A filter with nothing in front of it, and its app."""

    filter: CellFilter
    app: App

    def send(self, environ: dict[str, Any]) -> tuple[str, bytes]:
        """Do a whole exchange, and return the status and the body."""
        statuses: list[str] = []
        body = self.filter(environ, lambda status, headers, exc_info=None: statuses.append(status))
        content = b"".join(body)
        if hasattr(body, "close"):
            body.close()
        (status,) = statuses
        return status, content


@pytest.fixture
def pipeline(conf: cfg.ConfigOpts, store: Store, cell1: Cell) -> Iterator[Pipeline]:
    """A filter that lets requests for unmapped instances through."""
    store.create_instance(MAPPED, project_id=PROJECT, cell_id=cell1.id)
    conf.set_override("unmapped", "pass", group="cellmw")
    app = App()
    with closing(CellFilter(app, conf)) as cell_filter:
        yield Pipeline(cell_filter, app)


def a_request(path: str) -> dict[str, Any]:
    """Make a request of the instance's own project."""
    return {"REQUEST_METHOD": "GET", "PATH_INFO": path, "wsgi.input": io.BytesIO(), "HTTP_X_PROJECT_ID": PROJECT}


@repeatable(400)
@given(paths)
def test_filter_on_any_path(pipeline: Pipeline, path: str) -> None:
    """Whatever the path is, the app is called, with a target where the path names an instance, and only there."""
    pipeline.app.targets.clear()
    assert pipeline.send(a_request(path)) == ("200 OK", b"the app's")
    instance_uuid = named(DEFAULT_ROUTES, path)
    state = "targeted" if instance_uuid == MAPPED else "unmapped"
    assert pipeline.app.targets == [instance_uuid and (instance_uuid, state)]
    assert pipeline.filter.cells.leases == 0


header_values = st.binary(max_size=20).map(latin1) | st.sampled_from(
    [PROJECT, "admin", "member, admin", " admin ", "None"]
)
header_names = st.text(string.ascii_uppercase + string.digits + "_", max_size=12).map(
    "HTTP_{}".format
) | st.sampled_from(
    [
        "HTTP_X_PROJECT_ID",
        "HTTP_X_TENANT_ID",
        "HTTP_X_TENANT",
        "HTTP_X_ROLES",
        "HTTP_X_ROLE",
        "HTTP_X_USER_ID",
        "HTTP_X_AUTH_TOKEN",
        "HTTP_X_IS_ADMIN_PROJECT",
        "HTTP_X_SERVICE_ROLES",
        "HTTP_OPENSTACK_SYSTEM_SCOPE",
        "HTTP_X_INSTANCE_ID",
        "HTTP_ACCEPT",
        "CONTENT_TYPE",
        "CONTENT_LENGTH",
        "QUERY_STRING",
        "SCRIPT_NAME",
        "REQUEST_METHOD",
        "openstack.request_id",
    ]
)


def may_pass(headers: dict[str, str]) -> bool:
    """Whether the caller is of the instance's project, or an admin, by the headers that keystonemiddleware sets."""
    projects = [
        headers[f"HTTP_X_{name}"] for name in ("PROJECT_ID", "TENANT_ID", "TENANT") if f"HTTP_X_{name}" in headers
    ]
    roles = headers.get("HTTP_X_ROLES", headers.get("HTTP_X_ROLE", ""))
    return projects[:1] == [PROJECT] or "admin" in (role.strip() for role in roles.split(","))


@repeatable(400)
@given(st.dictionaries(header_names, header_values, max_size=6))
@example({"HTTP_X_PROJECT_ID": PROJECT})
@example({"HTTP_X_ROLES": "member,admin"})
@example({"REQUEST_METHOD": "\0"})
def test_filter_on_any_headers(pipeline: Pipeline, headers: dict[str, str]) -> None:
    """Whatever the headers are, who may not see the instance gets a 404, and who may is taken to its cell."""
    pipeline.app.targets.clear()
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": f"/servers/{MAPPED}", "wsgi.input": io.BytesIO()} | headers
    status, _ = pipeline.send(environ)
    if may_pass(headers):
        assert (status, pipeline.app.targets) == ("200 OK", [(MAPPED, "targeted")])
    else:
        assert (status, pipeline.app.targets) == ("404 Not Found", [])
    assert pipeline.filter.cells.leases == 0


@repeatable(200)
@given(st.dictionaries(header_names, header_values, max_size=6))
def test_headers_name_no_instance(pipeline: Pipeline, headers: dict[str, str]) -> None:
    """Without an instance in the path no header makes a target."""
    pipeline.app.targets.clear()
    assert pipeline.send({"REQUEST_METHOD": "GET", "PATH_INFO": "/servers/detail"} | headers)[0] == "200 OK"
    assert pipeline.app.targets == [None]
