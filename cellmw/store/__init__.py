# SPDX-License-Identifier: Apache-2.0
"""The API database: where the cells are recorded, and which cell every instance and host is in.

It reads and writes records. It opens no cell, and caches nothing.
"""

from __future__ import annotations

from cellmw.store.holds import DrainedCell, Held, HeldInstance, Hold
from cellmw.store.hosts import HostMapping
from cellmw.store.instances import InstanceMapping
from cellmw.store.store import Store

__all__ = ["DrainedCell", "Held", "HeldInstance", "Hold", "HostMapping", "InstanceMapping", "Store"]
