# SPDX-License-Identifier: Apache-2.0
"""Log record -> a record that names the cell and the instance which its request is aimed at.

For oslo.log, after ``log.setup()``::

    cellmw.log.install()

With it ``%(cell_uuid)s`` and ``%(instance_uuid)s`` can stand in any format string, and oslo.log's own ``%(instance)s``
shows the instance. For other set-ups of logging: ``handler.addFilter(TargetFilter())``.
"""

from __future__ import annotations

import logging

import oslo_context.context

from cellmw.lease import lease_of


class TargetFilter(logging.Filter):
    """Sets ``cell_uuid`` and ``instance_uuid`` on each record. Lives as long as the handler that it is added to.

    They are those of the context that was passed with the record, or of the thread's current one; a context that is
    aimed at no cell gives ``-`` and the empty string. It never drops a record.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Set the two, unless whoever logs has set them."""
        context = getattr(record, "context", None) or oslo_context.context.get_current()
        lease = lease_of(getattr(context, "db_connection", None))
        if not hasattr(record, "cell_uuid"):
            record.cell_uuid = "-" if lease is None else lease.cell.uuid
        if not getattr(record, "instance_uuid", None):
            # empty, not "-": oslo.log shows what is there as an instance
            record.instance_uuid = "" if lease is None else lease.instance_uuid
        return True


def install(logger: logging.Logger | None = None) -> None:
    """Add a :class:`TargetFilter` to each handler of this logger, by default of the root logger."""
    for handler in (logger or logging.getLogger()).handlers:
        if not any(isinstance(known, TargetFilter) for known in handler.filters):
            handler.addFilter(TargetFilter())
