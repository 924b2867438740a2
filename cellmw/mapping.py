# SPDX-License-Identifier: Apache-2.0
"""Instance uuid -> mapping, cached, with a cache that all workers share and the API database behind it.

A mapping holds its cell's id and never its URLs, so that a cell can move without one of its instances being looked up
again.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import OrderedDict
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from cellmw.deadline import Deadline
from cellmw.exceptions import DeadlineExceeded, StoreUnavailable
from cellmw.flights import Flights
from cellmw.holds import Holds
from cellmw.shared_cache import CLOCK_SKEW, Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cellmw.cell import Cell
    from cellmw.shared_cache import SharedMappings
    from cellmw.store import InstanceMapping, Store

LOG = logging.getLogger(__name__)

_DO_NOT_WAIT: Deadline = 0.0

_RENEWAL_TIMEOUT = 1.0
"""Seconds for which a request waits for the API database where it could go by what is known."""

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
        self, instance_uuid: str, row: InstanceMapping | Entry | None, ttl: float = 0.0, asked_at: float | None = None
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

    def __init__(
        self,
        store: Store,
        *,
        ttl: float,
        size: int,
        stale_ttl: float = 0.0,
        shared: SharedMappings | None = None,
        holds: Holds | None = None,
    ) -> None:
        """Begin with an empty cache.

        :param ttl: seconds for which a mapping with a cell is kept
        :param size: how many mappings are kept
        :param stale_ttl: seconds for which a mapping with a cell is used while the API database does not answer
        :param shared: what other workers know; close() closes it
        :param holds: which instances are being moved; nobody finds those
        """
        self._store = store
        self._holds = holds or Holds(None)
        self._shared = shared
        self._ttl = ttl
        self._stale_ttl = stale_ttl
        self._size = size
        self._log_again_at = 0.0
        self._cache: OrderedDict[str, Mapping] = OrderedDict()
        self._flights: Flights[str, Mapping] = Flights()
        # when this worker has last had a reason to distrust what the others know of an instance
        self._distrusted_at: OrderedDict[str, float] = OrderedDict()

    def begin_anew(self) -> None:
        """Go on, in a child process, with what is known."""
        self._flights.begin_anew()

    def find(self, instance_uuid: str, deadline: Deadline | None = None, now: float | None = None) -> Mapping:
        """Return what the API database says of this instance, or has said a short while ago.

        :param instance_uuid: in lower case
        :param now: the time on the clock of ``time.monotonic()``, for a caller who has just looked
        :returns: a mapping in any case; its ``exists`` is false where there is none. While the API database does not
            answer it is the last that is known, for a while; its ``age`` tells
        :raises InstanceHeld: if it is being moved to another cell
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
            self._forget(mapping.instance_uuid, cached.expire)

    def forget(self, instance_uuid: str) -> None:
        """Drop what is cached for this instance; what is being looked up at the moment will not be kept either."""
        instance_uuid = instance_uuid.lower()
        self._forget(instance_uuid, lambda: self._cache.pop(instance_uuid, None))
        if self._shared is not None:
            self._shared.delete(instance_uuid)

    def forget_all(self, instance_uuids: Iterable[str]) -> None:
        """Drop what is cached for these instances: somebody has begun to move them, or is done with that."""
        for instance_uuid in instance_uuids:
            self.forget(instance_uuid)

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

    def close(self) -> None:
        """Close the connections to the shared cache; the API database is asked from now on."""
        if self._shared is not None:
            self._shared.close()

    def _forget(self, instance_uuid: str, drop: Callable[[], Any]) -> None:
        """Drop what is known, or say that it is not to be relied on; what the others know counts no more either."""

        def drop_both() -> None:
            drop()
            if self._shared is not None:
                self._distrusted_at[instance_uuid] = time()
                self._distrusted_at.move_to_end(instance_uuid)
                if len(self._distrusted_at) > self._size:
                    self._distrusted_at.popitem(last=False)

        self._flights.forget(instance_uuid, drop_both)

    def _renew(self, instance_uuid: str, known: Mapping | None, deadline: Deadline | None) -> Mapping:
        # that there was no mapping, or none with a cell, is no news to go by
        if known is None or known.cell_id is None or known.age > self._ttl + self._stale_ttl:
            return self._load(instance_uuid, lambda: self._ask(instance_uuid, deadline, None), deadline)
        try:
            return self._load(instance_uuid, lambda: self._ask(instance_uuid, deadline, known), _DO_NOT_WAIT)
        except (DeadlineExceeded, StoreUnavailable):
            return known  # another thread is asking, or there is nobody to ask

    def _log_stale(self, known: Mapping) -> None:
        now = monotonic()
        if now >= self._log_again_at:
            self._log_again_at = now + _LOG_INTERVAL
            LOG.warning(
                "the API database does not answer: instance %s, and others, go by what was known %.0f seconds ago",
                known.instance_uuid,
                known.age,
            )

    def _load(self, instance_uuid: str, ask: Callable[[], Mapping], deadline: Deadline | None) -> Mapping:
        return self._flights.run(
            instance_uuid,
            fetch=ask,
            keep=self._keep,
            deadline=deadline,
            waited_for=f"the mapping of instance {instance_uuid}",
        )

    def _ask(self, instance_uuid: str, deadline: Deadline | None, known: Mapping | None) -> Mapping:
        """Ask the other workers, then the API database.

        :param known: what the caller goes by if neither answers
        """
        self._holds.check_instance(instance_uuid, deadline)
        distrusted_at = self._distrusted_at.get(instance_uuid)
        shared = self._ask_workers(instance_uuid, deadline, distrusted_at)
        if shared is not None and shared.expires_at > monotonic():
            return shared
        until = deadline
        if known is not None or shared is not None:
            soon = monotonic() + _RENEWAL_TIMEOUT
            until = soon if deadline is None else min(soon, deadline)
        try:
            self._store.check()
            asked_at, asked_at_by_the_wall = monotonic(), time()  # a slow answer is an old one
            row = self._store.find_instance(instance_uuid, until)
        except (StoreUnavailable, DeadlineExceeded):
            if shared is not None and (known is None or known.loaded_at < shared.loaded_at):
                self._log_stale(shared)
                return shared
            if known is not None:
                self._log_stale(known)
            raise
        if self._shared is not None:
            if row is not None and row.cell_id is not None:
                entry = Entry(row.cell_id, row.project_id, row.queued_for_delete, asked_at_by_the_wall)
                self._shared.put(instance_uuid, entry, deadline)
                outdated = self._distrusted_at.get(instance_uuid) != distrusted_at  # changed while it was asked for
            else:
                outdated = shared is not None or distrusted_at is not None
            if outdated:
                self._shared.delete(instance_uuid, deadline)
        return Mapping(instance_uuid, row, self._ttl, asked_at)

    def _ask_workers(
        self, instance_uuid: str, deadline: Deadline | None, distrusted_at: float | None
    ) -> Mapping | None:
        """Return what another worker was told by the API database, if that is to be relied on.

        It may be older than the TTL, and is then for when the API database does not answer.
        """
        believed_since = -math.inf if distrusted_at is None else distrusted_at + CLOCK_SKEW
        if self._shared is None or time() <= believed_since:
            return None
        entry = self._shared.get(instance_uuid, deadline)
        if entry is None or entry.asked_at <= believed_since:
            return None
        age = max(0.0, time() - entry.asked_at)
        if age > self._ttl + self._stale_ttl:
            return None
        return Mapping(instance_uuid, entry, self._ttl, monotonic() - age)

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
