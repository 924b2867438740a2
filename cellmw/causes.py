# SPDX-License-Identifier: Apache-2.0
"""An error of the messaging library -> in a few words, what was wrong. It never quotes a URL."""

from __future__ import annotations

import errno

import kombu.exceptions
import oslo_messaging


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
    code = getattr(root, "reply_code", None)
    if isinstance(root, OSError) and type(root) is OSError:
        code = errno.errorcode.get(root.errno or 0)
    return f"{type(root).__name__} {code}" if code else type(root).__name__
