# SPDX-License-Identifier: Apache-2.0
"""Every error that cellmw raises on purpose, in one tree.

::

    CellmwError
    ├── ConfigError              an option, a key or the order of a pipeline is wrong
    ├── UrlRefused               a URL that no cell can have
    ├── CredentialError          a record that is encrypted, or says where its URL is, can't be read
    ├── UpcallForbidden          a cell-level service wants something of the API level
    ├── BusUnavailable           the service's own message bus gave no answer
    ├── StoreError
    │   ├── StoreUnavailable     the API database gave no answer
    │   ├── CellNotFound         no such cell record
    │   ├── CellExists           a cell with that uuid or with one of those URLs is there already
    │   ├── CellChanged          somebody else has changed the cell's URLs meanwhile
    │   ├── CellInUse            instances or hosts are still mapped to the cell
    │   ├── InstanceNotMapped    no mapping for that instance
    │   ├── InstanceMapped       the instance is mapped already
    │   ├── InstanceBuilding     the instance has no cell yet, and the filter was told to refuse it
    │   ├── InstanceHeld         the instance is being moved to another cell, and is held back meanwhile
    │   ├── MappingDangling      the instance is mapped to a cell that has no record
    │   ├── HostNotMapped        no mapping for that host
    │   ├── HostMapped           the host is mapped already
    │   ├── HostElsewhere        the host is mapped to another cell
    │   ├── HostInUse            there are instances on the host
    │   └── HostsScattered       the hosts of one database are mapped to several cells
    ├── HeaderMalformed          the header that names the instance or its project is there twice, or can't be read
    ├── HeaderNotSigned          the header that names the instance has no signature, or a wrong one
    ├── CellError                everything that concerns one known cell; carries it as ``.cell``
    │   ├── CellMisconfigured    its URLs are missing or nobody can use them
    │   ├── CellUnavailable      its database or queue gave no answer
    │   ├── CellBusy             as many requests use it as may at a time
    │   ├── CellDrained          an operator has drained it: nobody is let in
    │   ├── CellHasNoTransport   it has no message queue (cell0), but one was used
    │   └── LeaseClosed          the request that leased its handles has ended
    ├── CellsMissing             cells that a list, a count or a look-up can't do without gave no answer
    ├── ListingError             a list can't be sorted or cut as it was asked to be
    │   ├── BadMarker            the marker names no row of the list
    │   └── BadCursor            the cursor is not one of ours, or one for another list
    ├── CellsClosed              the cells were closed, and somebody still wants one
    ├── NotTargeted              no cell is attached and no default is configured
    └── DeadlineExceeded         the request's time is up

No message ever contains a URL: what a URL has to say that an operator needs is its cell's name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cellmw.cell import Cell
    from cellmw.cell_result import CellResult


class CellmwError(Exception):
    """The root of the tree: catch it to catch everything that cellmw raises on purpose."""

    def __reduce__(self) -> tuple[Callable[..., CellmwError], tuple[Any, ...]]:
        # an exception is copied and pickled by its constructor's arguments, and those are not what ours print
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(kind: type[CellmwError], args: tuple[Any, ...], state: dict[str, Any]) -> CellmwError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(CellmwError):
    """An option, a key or the order of a pipeline is wrong; the message says what to change."""


class UrlRefused(CellmwError):
    """A URL that no cell can have; the message says why, and shows nothing of it that could be secret."""


class CredentialError(CellmwError):
    """What stands in a cell's record is encrypted or says where the URL is, and can't be made out.

    The message names the key, variable, file or secret that is missing, and shows nothing of what is in it.
    """


class UpcallForbidden(CellmwError):
    """A cell-level service (``role = cell``) wants another cell, or the API database: it has neither on purpose."""

    def __init__(self, wanted: str) -> None:
        super().__init__(f"{wanted} is out of reach of a cell-level service: do it in one with role = api in [cellmw]")
        self.wanted = wanted


class BusUnavailable(CellmwError):
    """A message bus of the service itself, which is no cell's, gave no answer.

    :ivar bus: which one, as in ``"the bus for notifications"``
    :ivar cause: why, in a few words; empty where nothing is known
    :ivar sent: of a message, ``"no"`` or ``"unknown"``, as :class:`CellUnavailable` has it
    """

    def __init__(self, bus: str, cause: str = "", sent: str = "no") -> None:
        super().__init__(f"{bus} does not answer{cause and f' ({cause})'}")
        self.bus = bus
        self.cause = cause
        self.sent = sent


class StoreError(CellmwError):
    """The API database could not do what was asked of it."""


class StoreUnavailable(StoreError):
    """The API database gave no answer: down, unreachable or not configured."""


class CellNotFound(StoreError):
    """No cell record has this id, uuid or name."""

    def __init__(self, cell: int | str) -> None:
        super().__init__(f"no cell {cell!r} is recorded")
        self.cell = cell


class CellExists(StoreError):
    """A cell with that uuid, or with one of those URLs, is there already."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class CellChanged(StoreError):
    """The cell's URLs are not those any more that they were when it was read."""

    def __init__(self, cell: str) -> None:
        super().__init__(f"somebody has changed cell {cell} meanwhile")
        self.cell = cell


class CellInUse(StoreError):
    """The cell can't be deleted while instances or hosts are mapped to it."""

    def __init__(self, cell: str, mapped: Sequence[str]) -> None:
        super().__init__(f"cell {cell} still has {' and '.join(mapped)} mapped to it")
        self.cell = cell
        self.mapped = tuple(mapped)


class InstanceNotMapped(StoreError):
    """The API database has no mapping for this instance."""

    def __init__(self, instance_uuid: str) -> None:
        super().__init__(f"instance {instance_uuid} has no mapping")
        self.instance_uuid = instance_uuid


class InstanceMapped(StoreError):
    """The API database has a mapping for this instance already."""

    def __init__(self, instance_uuid: str) -> None:
        super().__init__(f"instance {instance_uuid} is mapped already")
        self.instance_uuid = instance_uuid


class InstanceBuilding(StoreError):
    """The instance has no cell yet, and the filter was told to refuse requests for such (``building = 409``)."""

    def __init__(self, instance_uuid: str) -> None:
        super().__init__(f"instance {instance_uuid} is still being built")
        self.instance_uuid = instance_uuid


class InstanceHeld(StoreError):
    """The instance is being moved to another cell, and nobody reaches it until that is done."""

    def __init__(self, instance_uuid: str) -> None:
        super().__init__(f"instance {instance_uuid} is held back while it is moved to another cell")
        self.instance_uuid = instance_uuid


class MappingDangling(StoreError):
    """The instance is mapped to a cell that has no record."""

    def __init__(self, instance_uuid: str, cell_id: int | None) -> None:
        super().__init__(f"instance {instance_uuid} is mapped to cell id {cell_id}, which has no record")
        self.instance_uuid = instance_uuid
        self.cell_id = cell_id


class HostNotMapped(StoreError):
    """The API database has no mapping for this host."""

    def __init__(self, host: str) -> None:
        super().__init__(f"host {host!r} has no mapping")
        self.host = host


class HostMapped(StoreError):
    """The API database has a mapping for this host already."""

    def __init__(self, host: str) -> None:
        super().__init__(f"host {host!r} is mapped already")
        self.host = host


class HostElsewhere(StoreError):
    """The host is not mapped to this cell, but to another."""

    def __init__(self, host: str, cell: Cell) -> None:
        super().__init__(f"host {host!r} is not mapped to cell {cell}, but to another")
        self.host = host
        self.cell = cell


class HostInUse(StoreError):
    """The host can't be forgotten while there are instances on it."""

    def __init__(self, host: str) -> None:
        super().__init__(f"there are instances on host {host!r}")
        self.host = host


class HostsScattered(StoreError):
    """The hosts of one database are mapped to several cells, so that nobody can tell which of them it is."""

    def __init__(self, cells: Sequence[str]) -> None:
        super().__init__(
            f"hosts that are in [database] connection are mapped to several cells: {', '.join(cells)}; "
            "delete those that are wrong"
        )
        self.cells = tuple(cells)


class HeaderMalformed(CellmwError):
    """A header that names the instance or its project is missing, is there more than once, or can't be read."""

    def __init__(self, header: str) -> None:
        super().__init__(f"header {header} has to be there once, with one value of the right form")
        self.header = header


class HeaderNotSigned(CellmwError):
    """The header that names the instance has no signature, or a wrong one."""

    def __init__(self, header: str) -> None:
        super().__init__(f"header {header} has no valid signature")
        self.header = header


class CellError(CellmwError):
    """Something went wrong with one known cell.

    :ivar cell: the cell, whose ``str()`` is its name (or its uuid where it has none)
    """

    def __init__(self, cell: Cell, message: str) -> None:
        super().__init__(message)
        self.cell = cell


class CellMisconfigured(CellError):
    """The cell's record can't be used: a URL is missing, malformed or names a driver that isn't installed."""

    def __init__(self, cell: Cell, reason: str) -> None:
        super().__init__(cell, f"cell {cell}: {reason}")


class CellUnavailable(CellError):
    """The cell's database or message queue gave no answer.

    :ivar resource: ``"database"`` or ``"queue"``
    :ivar cause: why, in a few words; empty where nothing is known
    :ivar sent: of a message, ``"no"`` where it was certainly not sent, and never will be, and ``"unknown"`` where it
        may have been: once a byte of it is written nobody can take it back
    """

    def __init__(self, cell: Cell, resource: str, cause: str = "", sent: str = "no") -> None:
        super().__init__(cell, f"cell {cell}: its {resource} does not answer{cause and f' ({cause})'}")
        self.resource = resource
        self.cause = cause
        self.sent = sent


class CellBusy(CellError):
    """As many requests use the cell as may at a time, so that it leaves some of the workers to other cells."""

    def __init__(self, cell: Cell, limit: float) -> None:
        super().__init__(cell, f"cell {cell}: {limit} requests use it already, and more may not at a time")


class CellDrained(CellError):
    """The cell was drained by an operator: what is under way in it goes on to its end, and nobody else is let in."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell, f"cell {cell} is drained")


class CellHasNoTransport(CellError):
    """A message was to be sent to a cell that has no message queue, as cell0 has none."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell, f"cell {cell} has no message queue: nothing can be sent to what lives there")


class LeaseClosed(CellError):
    """A handle was used after the request that leased it had ended.

    Work that outlives its request takes a lease of its own: ``with cells.target(context, cell) as targeted``.
    """

    def __init__(self, cell: Cell) -> None:
        super().__init__(
            cell,
            f"the lease on cell {cell} has been released: work that outlives its request takes one of its own "
            "with cells.target()",
        )


class CellsMissing(CellmwError):
    """Cells that a list, a count or a look-up can't do without gave no answer.

    :ivar missing: what came of each of them
    """

    def __init__(self, missing: Sequence[CellResult]) -> None:
        answers = ", ".join(f"{result.cell} ({result.status})" for result in missing)
        super().__init__(f"no answer of these cells: {answers}")
        self.missing = tuple(missing)


class ListingError(CellmwError):
    """A list can't be sorted or cut as it was asked to be; the message, which is the client's to read, says why."""


class BadMarker(ListingError):
    """The marker names no row of the list: there never was one, or it is gone.

    :ivar marker: what was given as one
    """

    def __init__(self, marker: str) -> None:
        super().__init__(f"marker {marker!r} is not in the list")
        self.marker = marker


class BadCursor(ListingError):
    """The cursor is not one of ours, or one for another list.

    :ivar reason: what is wrong with it, in a few words
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the cursor can't be used: {reason}")
        self.reason = reason


class CellsClosed(CellmwError):
    """A cell was asked for after ``close()`` of the cells or of the filter."""

    def __init__(self) -> None:
        super().__init__("the cells have been closed: nothing can be leased any more")


class NotTargeted(CellmwError):
    """The context is aimed at no cell, and no default is configured for contexts that never were."""


class DeadlineExceeded(CellmwError):
    """The time that the request was given is up.

    :ivar waited_for: what was being waited for, as in "cell cell1 to be opened"
    """

    def __init__(self, waited_for: str) -> None:
        super().__init__(f"the deadline passed while waiting for {waited_for}")
        self.waited_for = waited_for
