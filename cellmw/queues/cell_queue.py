# SPDX-License-Identifier: Apache-2.0
"""Cell -> its message queue, which all requests for the cell share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellmw.exceptions import CellMisconfigured, CellUnavailable, UrlRefused
from cellmw.queues.message_queue import MessageQueue, open_transport, probe_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import oslo_messaging
    from oslo_config import cfg

    from cellmw.cell import Cell
    from cellmw.limits import Limits


class CellQueue(MessageQueue):
    """A cell's message queue. Lives as long as the cell's handles.

    :ivar cell: whose it is
    """

    def __init__(
        self, cell: Cell, transport: oslo_messaging.Transport, probe: Callable[[], object], limits: Limits
    ) -> None:
        """Take a transport that nobody has used yet.

        :param probe: returns if the broker answers, and raises an exception if not
        """
        super().__init__(f"the queue of cell {cell}", f"cell {cell}: its queue", transport, probe, limits)
        self.cell = cell

    @classmethod
    def open(
        cls, cell: Cell, conf: cfg.ConfigOpts, limits: Limits, allowed_remote_exmods: Sequence[str] = ()
    ) -> CellQueue:
        """Open the queue of a cell that has one, which connects to nothing yet.

        :param conf: the options that the transport goes by; what they or the URL say comes before our defaults
        :param allowed_remote_exmods: modules whose exceptions come back from remote calls as themselves
        :raises CellMisconfigured: if its URL is missing, malformed or names a driver that isn't installed
        """
        try:
            transport = open_transport(conf, cell.reveal_transport_url(), limits, allowed_remote_exmods)
        except UrlRefused as refused:
            raise CellMisconfigured(cell, str(refused)) from None
        return cls(cell, transport, probe_of(transport), limits)

    def _unavailable(self, cause: str, sent: str = "no") -> CellUnavailable:
        return CellUnavailable(self.cell, "queue", cause, sent)
