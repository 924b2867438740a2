# SPDX-License-Identifier: Apache-2.0
"""All tables behind one object."""

from __future__ import annotations

from cellmw.store.cells import CellRecords
from cellmw.store.holds import HoldRecords
from cellmw.store.hosts import HostMappings
from cellmw.store.instances import InstanceMappings
from cellmw.store.progress import ProgressRecords


class Store(CellRecords, InstanceMappings, HostMappings, HoldRecords, ProgressRecords):
    """The API database. Lives as long as the process; shared by its threads; close() ends it.

    Each method is one transaction. Besides the errors that it names, each raises
    :exc:`~cellmw.exceptions.StoreUnavailable` when the database gives no answer.
    """
