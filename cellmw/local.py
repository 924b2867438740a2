# SPDX-License-Identifier: Apache-2.0
"""The one cell of a cell-level service, in place of what the API level knows of cells and instances.

Such a service has no API database, on purpose: who gets into it gets no further than its cell. What would need one is
an up-call, which is refused.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NoReturn, cast

from cellmw import own_urls
from cellmw.cell import Cell
from cellmw.exceptions import ConfigError, UpcallForbidden
from cellmw.mapping import Mapping, Mappings

if TYPE_CHECKING:
    from oslo_config import cfg

    from cellmw.deadline import Deadline
    from cellmw.store import Store

LOG = logging.getLogger(__name__)

LOCAL_ID = 0
"""The id of the local cell, which has no record; ids of records begin with 1."""


def logged(refusal: UpcallForbidden) -> UpcallForbidden:
    """Log what to configure against it, and return it."""
    LOG.warning(
        "%s. If this service belongs to the API level, set role = api in [cellmw], and [api_database] connection; if "
        "not, switch off what made it ask. This is said once",
        refusal,
    )
    return refusal


class LocalCell:
    """Where a store would be: knows one cell, and refuses the rest. Lives as long as the process.

    The first refusal is logged, with what to configure.
    """

    def __init__(self, conf: cfg.ConfigOpts, *, name: str, uuid: str) -> None:
        """Know the cell of ``[DEFAULT] transport_url`` and ``[database] connection``.

        :param name: what the cell is called
        :param uuid: what contexts that are aimed at it have as ``cell_uuid``
        :raises ConfigError: if one of the two is not set
        """
        self._conf = conf
        self._name = name
        self._uuid = uuid
        self._has_refused = False
        for option, url in zip(("[DEFAULT] transport_url", "[database] connection"), self._urls(), strict=True):
            if not url:
                raise ConfigError(f"{option} is not set: with role = cell it is where the service's own cell is")

    def _urls(self) -> tuple[str | None, str | None]:
        return own_urls.transport_url(self._conf), own_urls.database_connection(self._conf)

    def list_cells(self, deadline: Deadline | None = None) -> list[Cell]:
        """Return the cell."""
        return [Cell(LOCAL_ID, self._uuid, self._name, False, *self._urls())]

    def check(self, ref: int | str) -> None:
        """Refuse to look for any other cell.

        :raises UpcallForbidden: unless it is this one
        """
        if ref not in (LOCAL_ID, self._uuid, self._name):
            self.refuse(f"cell {ref}")

    def refuse(self, wanted: str) -> NoReturn:
        """Refuse an up-call.

        :raises UpcallForbidden: always
        """
        if self._has_refused:
            raise UpcallForbidden(wanted)
        self._has_refused = True
        raise logged(UpcallForbidden(wanted))

    def find_instance(self, instance_uuid: str, deadline: Deadline | None = None) -> NoReturn:
        """Refuse to look an instance up."""
        self.refuse(f"the mapping of instance {instance_uuid}")

    def create_instance(self, instance_uuid: str, **values: object) -> NoReturn:
        """Refuse to map an instance."""
        self.find_instance(instance_uuid)

    update_instance = create_instance

    def delete_instance(self, instance_uuid: str) -> NoReturn:
        """Refuse to unmap an instance."""
        self.find_instance(instance_uuid)

    def close(self) -> None:
        """There is nothing open."""

    def begin_anew(self) -> None:
        """There is nothing that a child process has to begin with."""


class LocalMappings(Mappings):
    """Finds every instance in the local cell without asking anybody. Lives as long as the process."""

    def __init__(self, local: LocalCell) -> None:
        super().__init__(cast("Store", local), ttl=0.0, size=1)

    def find(self, instance_uuid: str, deadline: Deadline | None = None, now: float | None = None) -> Mapping:
        """Return a mapping to the local cell. Nothing is known of the instance, its project included."""
        mapping = Mapping(instance_uuid, None)
        mapping.cell_id = LOCAL_ID
        return mapping

    def distrust(self, mapping: Mapping) -> None:
        """There is nothing else to go by."""
