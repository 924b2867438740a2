# SPDX-License-Identifier: Apache-2.0
"""An error of the messaging library -> in a few words, what was wrong. It never quotes a URL."""

from __future__ import annotations

import errno
import ssl

import kombu.exceptions
import oslo_messaging
from amqp.exceptions import MessageNacked

NO_TLS = "it does not speak TLS, and its URL asks for that: ssl=true"

ONLY_TLS = "it speaks TLS, and its URL does not ask for that: ssl=true"

_UNTRUSTED = "its certificate is not signed by a CA that is trusted here: ssl_ca_file"
_OTHER_HOST = "its certificate is for another host"
_NO_FILE = "a file of its TLS options can't be read: ssl_ca_file, ssl_cert_file or ssl_key_file"
_BAD_FILE = "a file of its TLS options is not what it should be: ssl_ca_file, ssl_cert_file or ssl_key_file"
_WANTS_OURS = "it wants a certificate from us: ssl_cert_file and ssl_key_file"
_REFUSES_OURS = "it does not take the certificate that it gets from us: ssl_cert_file"
_OTHER_TLS = "it speaks another version of TLS"

_VERIFICATION = {
    # numbers of OpenSSL's, which ssl has no names for
    9: "its certificate is not valid yet",
    10: "its certificate has expired",
    18: _UNTRUSTED,  # signed by itself
    19: _UNTRUSTED,  # the last one of its chain is
    20: _UNTRUSTED,  # nobody knows who has signed it
    21: _UNTRUSTED,  # likewise, and there is no chain
    23: "its certificate is revoked",
    26: "its certificate is not one for a server",
    62: _OTHER_HOST,
    64: _OTHER_HOST,  # where the URL has an address
}

_REASONS = {
    "WRONG_VERSION_NUMBER": NO_TLS,
    "RECORD_LAYER_FAILURE": NO_TLS,  # the same in newer OpenSSLs
    "NO_CERTIFICATE_OR_CRL_FOUND": _BAD_FILE,
    "KEY_VALUES_MISMATCH": _BAD_FILE,
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": _WANTS_OURS,
    # all that TLS 1.2 has for it
    "SSLV3_ALERT_HANDSHAKE_FAILURE": f"it refuses TLS with us; or {_WANTS_OURS}",
    "SSLV3_ALERT_BAD_CERTIFICATE": _REFUSES_OURS,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": _REFUSES_OURS,
    "SSLV3_ALERT_CERTIFICATE_REVOKED": _REFUSES_OURS,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _REFUSES_OURS,
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": _REFUSES_OURS,
    "TLSV1_ALERT_UNKNOWN_CA": _REFUSES_OURS,
    "TLSV1_ALERT_PROTOCOL_VERSION": _OTHER_TLS,
    "UNSUPPORTED_PROTOCOL": _OTHER_TLS,
    "UNSUPPORTED_VERSION": _OTHER_TLS,
}


def root_of(error: BaseException) -> BaseException:
    """What the library has wrapped."""
    while isinstance(error, (oslo_messaging.MessageDeliveryFailure, kombu.exceptions.OperationalError)):
        inner = error.__cause__ or error.__context__
        if inner is None:
            break
        error = inner
    return error


def cause_of(error: BaseException) -> str:
    """Say in a few words what it was. The error's own message can quote the URL."""
    root = root_of(error)
    if isinstance(root, ssl.SSLError):
        return _tls_cause(root)
    if isinstance(root, (FileNotFoundError, PermissionError, IsADirectoryError)):
        return _NO_FILE
    if isinstance(root, MessageNacked):
        return "the broker has not taken the message"
    code = getattr(root, "reply_code", None)
    if isinstance(root, OSError) and type(root) is OSError:
        code = errno.errorcode.get(root.errno or 0)
    return f"{type(root).__name__} {code}" if code else type(root).__name__


def is_hang_up(error: BaseException) -> bool:
    """Tell whether all that is known is that the other side has ended the connection, and not why."""
    root = root_of(error)
    # amqp has a plain one, without a number, where it reads the end of the connection
    is_end = type(root) is OSError and root.errno is None
    return is_end or isinstance(root, (ConnectionResetError, ConnectionAbortedError, BrokenPipeError, ssl.SSLEOFError))


def _tls_cause(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        # OpenSSL's own words for the others are about the certificate, too
        message = getattr(error, "verify_message", "")
        return _VERIFICATION.get(getattr(error, "verify_code", 0)) or f"its certificate is refused: {message}"
    reason = getattr(error, "reason", None) or ""  # which those have that come from OpenSSL
    if not reason and "PEM" in str(error):
        return _BAD_FILE
    return _REASONS.get(reason) or f"{type(error).__name__} {reason}".rstrip()
