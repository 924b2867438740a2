# SPDX-License-Identifier: Apache-2.0
"""What stands in a cell's record -> the URL: decrypted, or looked up where the record only says where it is."""

from __future__ import annotations

from cellmw.credentials.credentials import Credentials
from cellmw.credentials.envelope import is_encrypted, key_id
from cellmw.credentials.keys import KeyRepository
from cellmw.credentials.references import is_reference

__all__ = ["Credentials", "KeyRepository", "is_encrypted", "is_reference", "key_id"]
