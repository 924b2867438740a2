# SPDX-License-Identifier: Apache-2.0
"""The header that names an instance: what it has to look like, and who has to have signed it."""

from __future__ import annotations

import hmac
import math

import pytest

from cellmw.exceptions import ConfigError, HeaderMalformed, HeaderNotSigned
from cellmw.headers import DeadlineHeader, InstanceHeader

UUID = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9"
SECRET = "shared by the proxy and the API"


def sign(value: str, secret: str = SECRET) -> str:
    """Sign as the proxy does."""
    return hmac.new(secret.encode(), value.encode(), "sha256").hexdigest()


def environ(**headers: str) -> dict[str, str]:
    """A request with these headers, named as in ``x_instance_id``."""
    return {f"HTTP_{name.upper()}": value for name, value in headers.items()}


@pytest.fixture
def header() -> InstanceHeader:
    """A header that has to be signed."""
    return InstanceHeader("X-Instance-ID", SECRET, trusted=False)


def test_signed(header: InstanceHeader) -> None:
    """A header with its signature names the instance."""
    assert header.instance_uuid(environ(x_instance_id=UUID, x_instance_id_signature=sign(UUID))) == UUID


def test_upper_case(header: InstanceHeader) -> None:
    """The signature is that of the value as it was sent, the uuid is in lower case."""
    value = UUID.upper()
    assert header.instance_uuid(environ(x_instance_id=value, x_instance_id_signature=sign(value))) == UUID


def test_absent(header: InstanceHeader) -> None:
    """A request without the header names no instance, whatever its path is."""
    assert header.instance_uuid({"PATH_INFO": f"/servers/{UUID}"}) is None


@pytest.mark.parametrize(
    "signature",
    [None, "", "0", sign("another value"), sign(UUID, "another secret"), sign(UUID).upper(), "\xe9\u20ac", "\udcff"],
)
def test_wrong_signature(header: InstanceHeader, signature: str | None) -> None:
    """A signature that is missing, or not that of the value with the secret, is refused."""
    request = environ(x_instance_id=UUID)
    if signature is not None:
        request |= environ(x_instance_id_signature=signature)
    with pytest.raises(HeaderNotSigned):
        header.instance_uuid(request)


@pytest.mark.parametrize(
    "value", [f"{UUID},{UUID}", f"{UUID}, {UUID}", UUID.replace("-", ""), "", "1", f"{UUID}\n", "\xe9"]
)
def test_malformed(header: InstanceHeader, value: str) -> None:
    """A header that is there twice, or is no uuid, is refused, also with the signature of its value."""
    with pytest.raises(HeaderMalformed):
        header.instance_uuid(environ(x_instance_id=value, x_instance_id_signature=sign(value)))


def test_trusted() -> None:
    """A trusted header needs no signature, and none is looked at."""
    header = InstanceHeader("X-Instance-ID", None, trusted=True)
    assert header.instance_uuid(environ(x_instance_id=UUID, x_instance_id_signature="wrong")) == UUID


def test_nobody_said_to_trust_it() -> None:
    """Without a secret and without trust there is no such header: the message names both options."""
    with pytest.raises(ConfigError, match=r"instance_header_secret.*trust_header"):
        InstanceHeader("X-Instance-ID", None, trusted=False)


@pytest.mark.parametrize("name", ["", "X Instance", "X-Instance-ID:", "X_Instance_ID", "-X", "X-Instänce"])
def test_no_name(name: str) -> None:
    """A name that no header can have is refused."""
    with pytest.raises(ConfigError, match="no name of a header"):
        InstanceHeader(name, SECRET, trusted=False)


def test_project(header: InstanceHeader) -> None:
    """The project is the one that the proxy names."""
    assert header.project_id(environ(x_tenant_id="project")) == "project"


@pytest.mark.parametrize("value", [None, "", "project,other"])
def test_no_one_project(header: InstanceHeader, value: str | None) -> None:
    """A project header that is missing, or there twice, is refused."""
    with pytest.raises(HeaderMalformed):
        header.project_id({} if value is None else environ(x_tenant_id=value))


@pytest.mark.parametrize(
    ("value", "seconds"), [("5", 5.0), ("0.25", 0.25), ("0", 0.0), ("3.", 3.0), ("999999999", 999999999.0)]
)
def test_deadline(value: str, seconds: float) -> None:
    """A header with seconds says in how many the client gives up."""
    assert DeadlineHeader("X-Deadline").seconds(environ(x_deadline=value)) == seconds


def test_no_deadline() -> None:
    """A client that sends no such header never gives up."""
    assert DeadlineHeader("X-Deadline").seconds(environ(x_other="1")) == math.inf


@pytest.mark.parametrize("value", ["", "-1", "+1", "1,2", "1e3", "nan", "inf", " 1", "1 ", ".5", "٣", "1" * 10, "1\n"])
def test_malformed_deadline(value: str) -> None:
    """What is no plain number of seconds, or is there twice, is refused; the error names the header."""
    with pytest.raises(HeaderMalformed, match="header X-Deadline "):
        DeadlineHeader("X-Deadline").seconds(environ(x_deadline=value))
