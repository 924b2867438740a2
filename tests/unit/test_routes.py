# SPDX-License-Identifier: Apache-2.0
"""Which paths name an instance, and which do not."""

from __future__ import annotations

import pytest

from cellmw.conf import DEFAULT_ROUTES
from cellmw.exceptions import ConfigError
from cellmw.routes import Routes

UUID = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
OTHER = "ffffffff-ffff-4fff-bfff-ffffffffffff"
UNDASHED = UUID.replace("-", "")

DEFAULT = Routes(DEFAULT_ROUTES)


def match(routes: Routes, path: str) -> str | None:
    """Return the uuid that a request for this PATH_INFO names."""
    return routes.instance_uuid({"PATH_INFO": path})


@pytest.mark.parametrize(
    "path",
    [
        f"/servers/{UUID}",
        f"/servers/{UUID}/",
        f"/servers/{UUID}/action",
        f"/servers/{UUID}/os-interface/{OTHER}",
        f"/servers/{UUID}/ips/private",
        f"/servers/{UUID}//action",
        f"/servers/{UUID}/metadata/café".encode().decode("latin-1"),
        f"/servers/{UUID}/%ff",
        f"/servers/{UUID}/a b\nc",
        f"/project/servers/{UUID}",
        f"/{OTHER}/servers/{UUID}/action",
        f"/{OTHER.replace('-', '')}/servers/{UUID}",
        f"/v2/servers/{UUID}",
        f"/v2.1/servers/{UUID}",
        f"/v2.1/project/servers/{UUID}/os-volume_attachments",
        f"/v2.1/{OTHER}/servers/{UUID}",
        f"/servers/servers/{UUID}",
    ],
)
def test_paths_of_an_instance(path: str) -> None:
    """The uuid behind ``servers`` names the instance, whatever follows it, behind any project and version."""
    assert match(DEFAULT, path) == UUID


@pytest.mark.parametrize("path", [f"/servers/{UUID.upper()}", f"/servers/{UUID[:9].upper()}{UUID[9:]}"])
def test_upper_case(path: str) -> None:
    """A uuid counts in any case, and is looked for in lower case."""
    assert match(DEFAULT, path) == UUID


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/servers",
        "/servers/",
        "/servers/detail",
        f"/{UUID}/servers",
        f"/{UUID}/servers/detail",
        f"/{UUID}/servers/",
        f"/v2.1/{UUID}/servers/detail",
        f"/v2.1/{UUID}/flavors/{OTHER}",
        f"/flavors/{UUID}",
        f"/os-server-groups/{UUID}",
        f"/{OTHER}/os-server-groups/{UUID}",
        f"/{UUID}",
        f"/os-simple-tenant-usage/{UUID}",
        f"/images/{UUID}/metadata",
        f"/servers/detail/{UUID}",
        f"/servers/{UNDASHED}",
        f"/servers/{UUID}.json",
        f"/servers/{UUID}.xml",
        f"/servers/{UUID}x",
        f"/servers/x{UUID}",
        f"/servers/{UUID[:-1]}",
        f"/servers/{UUID}0",
        f"/servers/{UUID[:-1]}g",
        f"/servers/{{{UUID}}}",
        f"/servers/urn:uuid:{UUID}",
        f"/servers/{UUID} ",
        f"/servers/{UUID}\n",
        f"/servers/{UUID}?a=b",
        f"/servers/{UUID};a=b",
        f"/servers/{UUID[:-1]}٣".encode().decode("latin-1"),
        f"//servers/{UUID}",
        f"/servers//{UUID}",
        f"/project//servers/{UUID}",
        f"/v2.1//servers/{UUID}",
        f"servers/{UUID}",
        f"/Servers/{UUID}",
        f"/servers%2F{UUID}",
        f"/a/b/servers/{UUID}",
        f"/v2.1/a/b/servers/{UUID}",
        f"/v2.1.3/project/servers/{UUID}",
        f"/xservers/{UUID}",
    ],
)
def test_paths_of_something_else(path: str) -> None:
    """A uuid in any other place, in any other form, or none at all, is no match."""
    assert match(DEFAULT, path) is None


@pytest.mark.parametrize("tail", [b"/\xff", b"/caf\xe9", b"/\xc3", b"/\xed\xa0\x80", b"/\xc0\xaf"])
def test_bytes_that_are_not_utf8(tail: bytes) -> None:
    """A path whose bytes are not UTF-8 is malformed: the app decides what becomes of it."""
    assert match(DEFAULT, (f"/servers/{UUID}".encode() + tail).decode("latin-1")) is None


def test_bytes_that_are_not_utf8_in_front() -> None:
    """It does not matter where in the path they are."""
    assert match(DEFAULT, f"/\xff/servers/{UUID}") is None


def test_path_that_is_no_wsgi_string() -> None:
    """Characters that no latin-1 decoding gives, which a broken server may pass, are no match and no error."""
    assert match(DEFAULT, f"/servers/{UUID}/\u20ac") is None


def test_own_templates() -> None:
    """A service with other words has templates of its own, and nothing else matches."""
    routes = Routes(["/volumes/{instance_uuid}", "/{tenant}/backups/{kind}/{instance_uuid}"])
    assert match(routes, f"/volumes/{UUID}/action") == UUID
    assert match(routes, f"/t/backups/full/{UUID}") == UUID
    assert match(routes, f"/t/backups/{UUID}") is None
    assert match(routes, f"/servers/{UUID}") is None


def test_first_template_does_not_hide_the_second() -> None:
    """Where one template fits the beginning of a path only, the others are tried as well."""
    routes = Routes(["/{any}/{instance_uuid}", "/{any}/{other}/{instance_uuid}"])
    assert match(routes, f"/a/{OTHER}x/{UUID}") == UUID


def test_words_are_taken_literally() -> None:
    """What a regular expression would read as a pattern stands for itself in a template."""
    routes = Routes(["/a.b+(c)/{instance_uuid}"])
    assert match(routes, f"/a.b+(c)/{UUID}") == UUID
    assert match(routes, f"/aXbb(c)/{UUID}") is None


@pytest.mark.parametrize(
    ("segment", "is_version"),
    [("v2", True), ("v2.1", True), ("v10.12", True), ("v", False), ("2.1", False), ("v2.", False), ("version", False)],
)
def test_version(segment: str, is_version: bool) -> None:
    """``{version}`` stands for a v and a number, with a second one behind a dot or without."""
    assert (match(Routes(["/{version}/servers/{instance_uuid}"]), f"/{segment}/servers/{UUID}") == UUID) is is_version


@pytest.mark.parametrize(
    "template",
    [
        "",
        "servers/{instance_uuid}",
        "{instance_uuid}",
        "/servers",
        "/servers/{uuid}",
        "/servers/{instance_uuid}/",
        "/servers/{instance_uuid}/action",
        "/servers/{instance_uuid}.json",
        "/servers/x{instance_uuid}",
        "/{instance_uuid}/{instance_uuid}",
        "//servers/{instance_uuid}",
        "/servers//{instance_uuid}",
        "/{}/{instance_uuid}",
        "/{Project}/{instance_uuid}",
        "/{project/{instance_uuid}",
        "/project}/{instance_uuid}",
        "/{a}{b}/{instance_uuid}",
        "/v{number}/servers/{instance_uuid}",
    ],
)
def test_bad_template(template: str) -> None:
    """A template that can't be understood is an error which quotes it."""
    with pytest.raises(ConfigError) as caught:
        Routes(["/servers/{instance_uuid}", template])
    assert str(caught.value).startswith("routes: ")
    assert repr(template) in str(caught.value)


def test_no_templates() -> None:
    """A filter that could never match anything is a mistake."""
    with pytest.raises(ConfigError, match="at least one template"):
        Routes([])
