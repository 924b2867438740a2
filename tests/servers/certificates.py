# SPDX-License-Identifier: Apache-2.0
"""A name -> a certification authority of the test's own, and certificates that it has signed: sound ones and others."""

from __future__ import annotations

import datetime
import ipaddress
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from pathlib import Path

_DAY = datetime.timedelta(days=1)


class Certificate(NamedTuple):
    """A certificate and its key, as PEM."""

    certificate: str
    key: str

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write both into files, and return where they are."""
        paths = folder / f"{name}.pem", folder / f"{name}.key"
        for path, text in zip(paths, self, strict=True):
            path.write_text(text)
        return paths


class Authority:
    """Signs certificates. Lives as long as its tests.

    :ivar certificate: its own, as PEM: what trusts it is given this
    """

    def __init__(self, name: str) -> None:
        """Sign itself."""
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        key_usage = dict.fromkeys(
            (
                *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
                *("key_agreement", "encipher_only", "decipher_only"),
            ),
            False,
        )
        certificate = (
            _builder(self._name, self._name, self._key.public_key(), expired=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **key_usage), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = certificate.public_bytes(Encoding.PEM).decode()

    def for_server(self, *hosts: str, expired: bool = False, days: int = 1) -> Certificate:
        """Sign for a server with these host names and addresses.

        :param days: for how many it is valid from now on
        """
        return self._sign(hosts[0], ExtendedKeyUsageOID.SERVER_AUTH, hosts, expired=expired, days=days)

    def for_client(self, name: str) -> Certificate:
        """Sign for a client."""
        return self._sign(name, ExtendedKeyUsageOID.CLIENT_AUTH, (), expired=False)

    def _sign(
        self, name: str, usage: x509.ObjectIdentifier, hosts: tuple[str, ...], *, expired: bool, days: int = 1
    ) -> Certificate:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, self._name, key.public_key(), expired=expired, days=days).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False
            )
        certificate = builder.sign(self._key, hashes.SHA256())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Certificate(certificate.public_bytes(Encoding.PEM).decode(), pem.decode())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, expired: bool, days: int = 1
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 10 * _DAY)
        .not_valid_after(now - _DAY if expired else now + days * _DAY)
    )


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
