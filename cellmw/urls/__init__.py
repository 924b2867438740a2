# SPDX-License-Identifier: Apache-2.0
"""A transport or database URL -> what may be shown of it, what it is once filled in, whether a cell can have it."""

from __future__ import annotations

from cellmw.urls.masking import MASK, mask

__all__ = ["MASK", "mask"]
