# SPDX-License-Identifier: Apache-2.0
"""Instance uuid -> mapping, cached, with the API database behind it.

A mapping holds its cell's id and never its URLs, so that a cell can move without one of its instances being looked up
again.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from time import monotonic
from typing import TYPE_CHECKING

from cellmw.deadline import Deadline
from cellmw.exceptions import DeadlineExceeded, StoreUnavailable
from cellmw.flights import Flights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cellmw.cell import Cell
    from cellmw.store import InstanceMapping, Store

LOG = logging.getLogger(__name__)

_DO_NOT_WAIT: Deadline = 0.0

_LOG_INTERVAL = 10.0
"""Seconds within which there is one line of the log about answers that are old, however many there are."""

SHORT_TTL = 1.0
"""Seconds for which an answer is kept that is about to change: there is no mapping, or none with a cell, yet."""


class Mapping:
    """What the API database said of one instance, and when. Lives as long as the cache keeps it.

    :ivar instance_uuid: in lower case
    :ivar cell_id: the cell that it lives in, None while it is being built
    :ivar project_id: the project that it belongs to, None where there is no mapping
    :ivar queued_for_delete: whether its deletion has begun
    """

    __slots__ = ("cell_id", "expires_at", "instance_uuid", "loaded_at", "project_id", "queued_for_delete")

    def __init__(
        self, instance_uuid: str, row: InstanceMapping | None, ttl: float = 0.0, asked_at: float | None = None
    ) -> None:
        self.instance_uuid = instance_uuid
        self.cell_id = row.cell_id if row else None
        self.project_id = row.project_id if row else None
        self.queued_for_delete = bool(row and row.queued_for_delete)
        self.loaded_at = monotonic() if asked_at is None else asked_at
        self.expires_at = self.loaded_at + (ttl if self.cell_id is not None else min(ttl, SHORT_TTL))

    def expire(self) -> None:
        """Be good for as long as there is nothing newer."""
        self.expires_at = 0.0

    @property
    def exists(self) -> bool:
        """Whether the API database knows the instance at all."""
        return self.project_id is not None

    @property
    def age(self) -> float:
        """Seconds since the API database said so."""
        return monotonic() - self.loaded_at

    def __repr__(self) -> str:
        return f"<Mapping instance={self.instance_uuid} cell_id={self.cell_id} age={self.age:.1f}s>"


class Mappings:
    """The instance mappings: read through a cache, written through to the API database. Lives as long as the process.

    The cache is read without a lock; every change to it is made under that of the flights. When it is full, the mapping
    that was loaded first, which would also expire first, makes room.
    """

    def __init__(self, store: Store, *, ttl: float, size: int, stale_ttl: float = 0.0) -> None:
        """Begin with an empty cache.

        :param ttl: seconds for which a mapping with a cell is kept
        :param size: how many mappings are kept
        :param stale_ttl: seconds for which a mapping with a cell is used while the API database does not answer
        """
        self._store = store
        self._ttl = ttl
        self._stale_ttl = stale_ttl
        self._size = size
        self._log_again_at = 0.0
        self._cache: OrderedDict[str, Mapping] = OrderedDict()
        self._flights: Flights[str, Mapping] = Flights()

    def find(self, instance_uuid: str, deadline: Deadline | None = None, now: float | None = None) -> Mapping:
        """Return what the API database says of this instance, or has said a short while ago.

        :param instance_uuid: in lower case
        :param now: the time on the clock of ``time.monotonic()``, for a caller who has just looked
        :returns: a mapping in any case; its ``exists`` is false where there is none. While the API database does not
            answer it is the last that is known, for a while; its ``age`` tells
        :raises StoreUnavailable: if it is not known and the API database does not answer
        :raises DeadlineExceeded: if it is not known, and another thread is looking it up and does not come back in time
        """
        mapping = self._cache.get(instance_uuid)
        if mapping is None or mapping.expires_at <= (now or monotonic()):
            mapping = self._renew(instance_uuid, mapping, deadline)
        return mapping

    def distrust(self, mapping: Mapping) -> None:
        """Ask again next time for a mapping which the app answered 404 for, unless it is so new that that is no use.

        So a client that keeps asking for what isn't there costs one look-up a second and not one for each request.
        """
        cached = self._cache.get(mapping.instance_uuid)
        # what has expired is being asked for already, by a thread that is not to be doubled, or cannot be asked for
        if cached is not None and cached.age >= SHORT_TTL and cached.expires_at > monotonic():
            # it is not dropped: where there is nobody to ask it is still the best that is known
            self._flights.forget(mapping.instance_uuid, cached.expire)

    def forget(self, instance_uuid: str) -> None:
        """Drop what is cached for this instance; what is being looked up at the moment will not be kept either."""
        instance_uuid = instance_uuid.lower()
        self._flights.forget(instance_uuid, lambda: self._cache.pop(instance_uuid, None))

    def create(
        self, instance_uuid: str, *, project_id: str, user_id: str | None = None, cell: Cell | None = None
    ) -> None:
        """Map a new instance; without a cell it counts as being built until :meth:`schedule`.

        :raises InstanceMapped: if it is mapped already
        """
        cell_id = None if cell is None else cell.id
        with self._changing(instance_uuid) as instance_uuid:
            self._store.create_instance(instance_uuid, project_id=project_id, user_id=user_id, cell_id=cell_id)

    def schedule(self, instance_uuid: str, cell: Cell) -> None:
        """Map the instance to the cell that was chosen for it.

        :raises InstanceNotMapped: if it was never created
        """
        with self._changing(instance_uuid) as instance_uuid:
            self._store.update_instance(instance_uuid, cell_id=cell.id)

    def queue_for_delete(self, instance_uuid: str) -> None:
        """Flag that the instance's deletion has begun.

        :raises InstanceNotMapped: if it has no mapping
        """
        with self._changing(instance_uuid) as instance_uuid:
            self._store.update_instance(instance_uuid, queued_for_delete=True)

    def delete(self, instance_uuid: str) -> None:
        """Unmap an instance that is gone.

        :raises InstanceNotMapped: if it has no mapping
        """
        with self._changing(instance_uuid) as instance_uuid:
            self._store.delete_instance(instance_uuid)

    def _renew(self, instance_uuid: str, known: Mapping | None, deadline: Deadline | None) -> Mapping:
        # that there was no mapping, or none with a cell, is no news to go by
        if known is None or known.cell_id is None or known.age > self._ttl + self._stale_ttl:
            return self._load(instance_uuid, deadline)
        try:
            return self._load(instance_uuid, _DO_NOT_WAIT)
        except DeadlineExceeded:
            return known  # another thread is asking
        except StoreUnavailable:
            self._log_stale(known)
            return known

    def _log_stale(self, known: Mapping) -> None:
        now = monotonic()
        if now >= self._log_again_at:
            self._log_again_at = now + _LOG_INTERVAL
            LOG.warning(
                "the API database does not answer: instance %s, and others, go by what was known %.0f seconds ago",
                known.instance_uuid,
                known.age,
            )

    def _load(self, instance_uuid: str, deadline: Deadline | None) -> Mapping:
        return self._flights.run(
            instance_uuid,
            fetch=lambda: self._ask(instance_uuid),
            keep=self._keep,
            deadline=deadline,
            waited_for=f"the mapping of instance {instance_uuid}",
        )

    def _ask(self, instance_uuid: str) -> Mapping:
        self._store.check()
        asked_at = monotonic()  # a slow answer is an old one
        return Mapping(instance_uuid, self._store.find_instance(instance_uuid), self._ttl, asked_at)

    @contextlib.contextmanager
    def _changing(self, instance_uuid: str) -> Iterator[str]:
        """Give the uuid to write, in lower case; forget the mapping after that, also where the write has failed.

        It may have been done all the same.
        """
        instance_uuid = instance_uuid.lower()
        try:
            yield instance_uuid
        finally:
            self.forget(instance_uuid)

    def _keep(self, mapping: Mapping) -> None:
        self._cache[mapping.instance_uuid] = mapping
        self._cache.move_to_end(mapping.instance_uuid)
        if len(self._cache) > self._size:
            self._cache.popitem(last=False)
