# SPDX-License-Identifier: Apache-2.0
"""Transport URL -> the message queue that all its users share, every use of which ends by its deadline.

oslo.messaging bounds little by itself: a broker that does not answer keeps a message's thread for as long as it likes.
So a message is taken there by a thread that its sender can leave, and the sender is told what became of it: sent, not
sent and never will be, or that nobody knows. A cast for which a connection is free goes without that: its sender writes
it (direct.py).
"""

from __future__ import annotations

import contextlib
import enum
import logging
import threading
from functools import partial
from importlib import metadata
from time import monotonic
from typing import TYPE_CHECKING, Any

import kombu.exceptions
import oslo_messaging
from oslo_config import cfg
from oslo_messaging._drivers import amqpdriver, common, impl_rabbit

from cellmw.breaker import ProbedBreaker
from cellmw.crew import MAX_STUCK
from cellmw.deadline import after, left
from cellmw.exceptions import BusUnavailable, CellUnavailable, DeadlineExceeded, UrlRefused
from cellmw.queues.brokers import Brokers
from cellmw.queues.causes import cause_of, root_of
from cellmw.queues.direct import DirectConnection, NotDirect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from cellmw.deadline import Deadline
    from cellmw.limits import Limits

    Unavailable = CellUnavailable | BusUnavailable

LOG = logging.getLogger(__name__)

_REFUSAL = 5
"""Probe intervals for which a broker that has refused us is not asked whether it is there: it is, which is no help."""

_PURPOSES = (common.PURPOSE_SEND, common.PURPOSE_LISTEN)
"""What there are connections for: messages, and the replies to calls."""

_GRACE = 0.1
"""Seconds that the library gets to end by itself what ends at the deadline, before its thread is left."""

_DOUBT_INTERVAL = 10.0
"""Seconds between two looks at the broker whose only reason is that a reply takes long."""

_SHORTEST = 0.001
"""A timeout of nothing would be "don't wait" to a socket."""

GLOBAL_GROUPS = ("oslo_messaging_metrics", "oslo_messaging_tracing")

_RABBIT = "oslo_messaging_rabbit"

_RABBIT_DEFAULTS = {
    # a reconnecting thread sees within a second that the broker is back, however long it was away
    "rabbit_retry_interval": "1",
    "rabbit_retry_backoff": "1",
    "rabbit_interval_max": "1",
    # what a message waits, after its broker was restarted
    "kombu_reconnect_delay": "0.1",
    # how long a thread is stuck in a broker that is frozen
    "heartbeat_timeout_threshold": "10",
    "heartbeat_rate": "2",
}

_OUTAGES = (
    kombu.exceptions.KombuError,
    kombu.exceptions.ConnectionError,
    kombu.exceptions.ChannelError,
    OSError,
)


class ReplyTimeout(DeadlineExceeded, oslo_messaging.MessagingTimeout):
    """No reply came by the deadline. To services that know oslo.messaging alone it is a MessagingTimeout."""


class MessageQueue:
    """A message queue: the transport that all its users share, every use of which ends by its deadline.

    Shared by all threads. Whose it is, and what error says that it does not answer, is a subclass's to say.

    :ivar name: what it is called in a sentence
    :ivar transport: oslo.messaging's
    :ivar breaker: open while the queue is known not to answer
    :ivar stuck: an entry for each thread that was left in the library by its sender, and is still there
    :ivar operation: makes a context manager that is around whatever goes on in the library, in the thread in which
        it does
    """

    def __init__(
        self,
        name: str,
        title: str,
        transport: oslo_messaging.Transport,
        probe: Callable[[], object],
        limits: Limits,
    ) -> None:
        """Take a transport that nobody has used yet.

        :param title: what the log calls it
        :param probe: returns if the broker answers, and raises an exception if not
        """
        self.name = name
        self.transport = transport
        self.breaker = ProbedBreaker(title, self._probe, limits.probe_interval)
        self.stuck: set[object] = set()
        self.operation: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
        self._crew = limits.crew
        self._ask = probe
        self._probe_interval = limits.probe_interval
        self._no_probe_before = 0.0
        self._no_doubt_before = 0.0
        self._closed = False
        driver = transport._driver
        self._door: _Door | None = None
        if isinstance(driver, amqpdriver.AMQPDriverBase):
            self._door = _Door(driver, self, limits)
        self._never_waits: bool = getattr(driver, "never_waits", False)
        self._lock = threading.Lock()  # guards who makes the first contact
        self._contacts: dict[str, _Contact] = {}
        self._contacted: set[str] = set()

    def send(
        self,
        deadline: Deadline,
        target: oslo_messaging.Target,
        ctxt: Any,
        message: dict[str, Any],
        wait_for_reply: bool | None = None,
        timeout: float | None = None,
        call_monitor_timeout: int | None = None,
        retry: int | None = None,
        transport_options: Any = None,
    ) -> Any:
        """Send a message, and return its reply where one is waited for.

        :param retry: as oslo.messaging's; without end, its default, is one more attempt for each host here
        :raises CellUnavailable, BusUnavailable: if it does not answer; ``sent`` tells what became of the message
        :raises DeadlineExceeded: if the deadline passes first; the message was not sent, and never will be
        :raises ReplyTimeout: if the deadline passes before the reply comes
        """
        passage = _Passage(deadline, self._door is not None, bool(wait_for_reply))

        def send() -> Any:
            return self.transport._send(
                target,
                ctxt,
                message,
                wait_for_reply=wait_for_reply,
                timeout=passage.timeout(timeout) if wait_for_reply else timeout,
                call_monitor_timeout=call_monitor_timeout,
                retry=self._attempts(retry),
                transport_options=transport_options,
            )

        return self._take(passage, send)

    def send_notification(
        self,
        deadline: Deadline,
        target: oslo_messaging.Target,
        ctxt: Any,
        message: dict[str, Any],
        version: float,
        retry: int | None = None,
    ) -> None:
        """Send a notification.

        :raises CellUnavailable, BusUnavailable: if it does not answer; ``sent`` tells what became of the message
        :raises DeadlineExceeded: if the deadline passes first; the message was not sent, and never will be
        """
        passage = _Passage(deadline, self._door is not None, False)

        def send() -> None:
            self.transport._send_notification(target, ctxt, message, version, retry=self._attempts(retry))

        self._take(passage, send)

    def close(self) -> None:
        """Close all connections. With a broker that is frozen it takes long."""
        self._closed = True
        self.breaker.close()
        self.transport.cleanup()

    def _attempts(self, retry: int | None) -> int:
        """Whoever has a deadline does not want one more attempt for ever."""
        if retry is not None and retry >= 0:
            return retry
        return 1 if self._door is None else self._door.hosts

    def _take(self, passage: _Passage, send: Callable[[], Any]) -> Any:
        self._admit(passage.deadline)
        if self._door is not None:
            for purpose in _PURPOSES if passage.is_call else _PURPOSES[:1]:
                if purpose not in self._contacted:
                    self._wait_for_contact(self._door, purpose, passage.deadline)
        try:
            if self._never_waits or (passage.is_direct and self._door is not None and self._door.is_direct):
                with contextlib.suppress(NotDirect):
                    return self._deliver(passage, send)
                passage.begin_anew()
            return self._crew.run(
                partial(self._deliver, passage, send),
                passage.deadline + _GRACE,
                self.stuck,
                "the queue",
                slow=None if self._door is None else partial(self._doubt, passage),
            )
        except DeadlineExceeded:
            self._log_stuck()
            raise self._left_at(passage.leave(), passage) from None
        except oslo_messaging.MessagingTimeout:
            if passage.cut and left(passage.deadline) < _GRACE:
                raise self._no_reply() from None
            raise
        except oslo_messaging.MessageDeliveryFailure as failure:
            if type(failure) is not oslo_messaging.MessageDeliveryFailure:
                raise  # the server's own
            self.breaker.suspect()
            raise self._unavailable(cause_of(failure), passage.sent) from failure
        except _OUTAGES as outage:
            if passage.stage >= _Stage.IN_HAND:
                raise  # the server's own
            raise self._failed(outage, sent=passage.sent) from outage
        except AttributeError:
            if self._closed and passage.stage < _Stage.IN_HAND:
                raise self._unavailable("it was closed", passage.sent) from None
            raise

    def _doubt(self, passage: _Passage) -> None:
        """Have somebody look: something takes long."""
        if passage.stage is _Stage.GIVEN_BACK:
            # with a server that takes its time nothing is wrong, and each look is a line in the broker's log
            now = monotonic()
            if now < self._no_doubt_before:
                return
            self._no_doubt_before = now + _DOUBT_INTERVAL
        self.breaker.suspect()

    def _admit(self, deadline: Deadline) -> None:
        if self._closed:
            raise self._unavailable("it was closed")
        if self.breaker.refuses():
            raise self._unavailable(self.breaker.cause)
        if len(self.stuck) >= MAX_STUCK:
            raise self._unavailable(f"{len(self.stuck)} threads are stuck in it")
        if not left(deadline):
            raise self._no_place()

    def _deliver(self, passage: _Passage, send: Callable[[], Any]) -> Any:
        if self._door is None:
            with self.operation():
                return send()
        self._door.here.passage = passage
        try:
            with self.operation():
                return send()
        finally:
            del self._door.here.passage

    def _left_at(self, stage: _Stage, passage: _Passage) -> Exception:
        if stage is _Stage.OUTSIDE and passage.written is None:
            return self._no_place()
        if stage is _Stage.GIVEN_BACK and passage.is_call:
            return self._no_reply()
        return self._unavailable("no answer in time", passage.sent)

    def _log_stuck(self) -> None:
        if self.stuck:
            LOG.warning("threads stuck in %s: %d", self.name, len(self.stuck))

    def _wait_for_contact(self, door: _Door, purpose: str, deadline: Deadline) -> None:
        """Wait until sending, or the replies, have a connection, which somebody makes without a user's message."""
        with self._lock:
            contact, begins = self._contacts.get(purpose), False
            if contact is None and purpose not in self._contacted:
                contact, begins = _Contact(), True
                self._contacts[purpose] = contact
        if contact is None:
            return
        if begins:
            try:
                self._crew.run(
                    partial(self._make_contact, contact, door, purpose),
                    deadline,
                    self.stuck,
                    "the queue",
                    slow=self.breaker.suspect,
                )
            except DeadlineExceeded:
                self._log_stuck()
            except RuntimeError:  # there are no more threads
                self._end_contact(contact, purpose, "no thread")
                raise
        if not contact.ended.wait(left(deadline)):
            raise self._unavailable("no answer in time")
        if contact.cause:
            raise self._unavailable(contact.cause)

    def _make_contact(self, contact: _Contact, door: _Door, purpose: str) -> None:
        cause = "ended"
        try:
            with self.operation():
                door.contact(purpose)
            cause = ""
            self._contacted.add(purpose)
        except (CellUnavailable, BusUnavailable) as unavailable:  # the breaker has opened meanwhile
            cause = unavailable.cause
        except Exception as error:  # noqa: BLE001 - whatever it is, there is no connection
            # not chained to what the requesters get: what a wrong URL makes the library say can quote it
            cause = self._failed(error, door.misfit(error)).cause
        finally:
            self._end_contact(contact, purpose, cause)

    def _end_contact(self, contact: _Contact, purpose: str, cause: str) -> None:
        with self._lock:
            del self._contacts[purpose]
        contact.cause = cause
        contact.ended.set()

    def _failed(self, error: Exception, cause: str = "", sent: str = "no") -> Unavailable:
        cause = cause or cause_of(error)
        if not isinstance(root_of(error), OSError):
            # the broker is there and won't have us: an answer to a probe says nothing of that for a while
            self._no_probe_before = monotonic() + _REFUSAL * self._probe_interval
        self.breaker.failed(cause)
        return self._unavailable(cause, sent)

    def _probe(self) -> None:
        if monotonic() < self._no_probe_before:
            raise ConnectionRefusedError
        try:
            self._ask()
        except Exception as error:
            # in more words than the breaker has for it
            self.breaker.failed(f"{cause_of(error)} in a probe")
            raise

    def _unavailable(self, cause: str, sent: str = "no") -> Unavailable:
        """Return the error that says that it does not answer."""
        raise NotImplementedError

    def _no_place(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"a connection to {self.name}")

    def _no_reply(self) -> ReplyTimeout:
        return ReplyTimeout(f"a reply from {self.name}")

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<{type(self).__name__} {self.name}: stuck={len(self.stuck)} {state}>"


class _Stage(enum.IntEnum):
    """How far a message has got."""

    OUTSIDE = 0
    """It waits for one of the places."""
    CONNECTING = 1
    """It has a place, and nothing to be written to yet."""
    IN_HAND = 2
    """It has a connection: from now on it may have been written."""
    GIVEN_BACK = 3
    """The connection has been given back."""


class _Passage:
    """One message on its way. Lives until it is done, or its sender has left and its thread has seen that."""

    __slots__ = ("_left", "_lock", "cut", "deadline", "is_call", "is_direct", "stage", "written")

    def __init__(self, deadline: Deadline, has_stages: bool, is_call: bool) -> None:
        self.deadline = deadline
        self.is_call = is_call
        self.cut = False
        # its sender does it where it can; a reply is waited for where no cut connection ends that
        self.is_direct = not is_call
        self.written: Any = None
        # of a driver without a door it is not known when it has written
        self.stage = _Stage.OUTSIDE if has_stages else _Stage.GIVEN_BACK
        self._left = False
        self._lock = threading.Lock()  # guards getting a connection against leaving

    @property
    def sent(self) -> str:
        return "no" if self.stage < _Stage.IN_HAND and self.written is None else "unknown"

    def timeout(self, timeout: float | None) -> float:
        """How long the library waits for a reply.

        :param timeout: how long the client wants to wait
        """
        remaining = left(self.deadline)
        if timeout is not None and timeout <= remaining:
            return timeout
        self.cut = True
        return max(_SHORTEST, remaining)

    def reach(self, stage: _Stage) -> bool:
        """Go on to this stage; false if the sender has left before."""
        with self._lock:
            if not self._left:
                self.stage = stage
            return not self._left

    def begin_anew(self) -> None:
        """Begin anew, in another thread.

        :raises DeadlineExceeded: if the deadline has passed meanwhile
        """
        self.is_direct = False
        self.stage = _Stage.OUTSIDE
        if not left(self.deadline):
            raise DeadlineExceeded("the queue")

    def leave(self) -> _Stage:
        """Leave it where it is: it gets no further."""
        with self._lock:
            self._left = True
            return self.stage


class _Contact:
    """The first contact with a broker, while it is under way.

    :ivar ended: set when it is not any more
    :ivar cause: why there is none, empty where there is one
    """

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.cause = ""


class _SenderLeft(Exception):
    """The sender has left before its message had a connection. Nobody ever sees it."""


class _Door:
    """Stands before a driver's pool of connections, and lets in as many as it has connections. Lives as long as it.

    The pool itself waits without a bound, and opens the connection for replies without one.

    :ivar here: ``.passage`` is what the thread is sending
    :ivar hosts: how many the URL has
    :ivar is_direct: whether a sender can write to a connection by itself
    """

    def __init__(self, driver: Any, queue: MessageQueue, limits: Limits) -> None:
        pool = driver._connection_pool
        self.here = threading.local()
        self.hosts = max(1, len(driver._url.hosts))
        self._driver = driver
        self._queue = queue
        self._pool = pool
        self._patience = limits.patience
        self._brokers = Brokers.of(driver)
        self.is_direct = self._brokers is not None and pool.connection_cls is impl_rabbit.Connection
        if self.is_direct:
            pool.connection_cls = partial(DirectConnection, lambda: self.passage, limits.watch, queue._doubt)
            pool._on_expire = self._expire
        self._places = threading.Semaphore(pool._max_size)
        self._get, self._put, self._create = pool.get, pool.put, pool.create
        pool.get, pool.put, pool.create = self.get, self.put, self.create

    def contact(self, purpose: str) -> None:
        """Open a connection for sending, or the one for replies."""
        if purpose == common.PURPOSE_SEND:
            self._driver._get_connection(common.PURPOSE_SEND, retry=self.hosts - 1).close()
            if self._brokers is not None:
                self._brokers.compare(self._queue.name)
            return
        self.here.contacts = True
        try:
            self._driver._get_reply_q()
        finally:
            del self.here.contacts

    def misfit(self, error: Exception) -> str:
        """Say what is wrong with how the broker is spoken to, where that is what the error comes from."""
        return "" if self._brokers is None else self._brokers.misfit(error)

    @property
    def passage(self) -> _Passage | None:
        """What this thread is sending."""
        return getattr(self.here, "passage", None)

    def get(self, retry: int | None = None) -> Any:
        # a server's reply is nobody's passage
        passage = self.passage or _Passage(after(self._patience), True, True)
        is_direct = passage.is_direct and self.is_direct
        if not self._places.acquire(timeout=0 if is_direct else left(passage.deadline)):
            raise NotDirect if is_direct else self._queue._no_place()
        try:
            if not passage.reach(_Stage.CONNECTING):
                raise _SenderLeft
            # since it waits; a server says what it has done when its broker is back, however long that takes
            if self._queue.breaker.is_open and (self.passage is not None or retry is not None):
                raise self._queue._unavailable(self._queue.breaker.cause, passage.sent)
            connection = self._get_free() if is_direct else self._get(retry=retry)
        except BaseException:
            self._places.release()
            raise
        if not passage.reach(_Stage.IN_HAND):
            self.put(connection)
            raise _SenderLeft
        return connection

    def put(self, connection: Any) -> None:
        try:
            self._put(connection)
        finally:
            self._places.release()
            passage = self.passage
            if passage is not None:
                passage.reach(_Stage.GIVEN_BACK)

    def create(self, purpose: str = common.PURPOSE_SEND, retry: int | None = None) -> Any:
        # a server waits for its broker for as long as that takes
        is_bounded = self.passage is not None or hasattr(self.here, "contacts")
        return self._create(purpose, retry=self.hosts - 1 if is_bounded and retry is None else retry)

    def _get_free(self) -> Any:
        with self._pool._cond:
            self._pool.expire()
            if not self._pool._items:
                raise NotDirect
            return self._pool._items.pop()[1]

    def _expire(self, connection: Any) -> None:
        # the pool would wait for its end under the lock for which everybody waits
        threading.Thread(target=self._close, args=(connection,), name="cellmw-expired", daemon=True).start()

    def _close(self, connection: Any) -> None:
        try:
            connection.close()
        except Exception as error:  # noqa: BLE001 - nobody wants it any more
            LOG.debug("%s: closing an idle connection failed: %s", self._queue.name, cause_of(error))


def open_transport(
    conf: cfg.ConfigOpts,
    url: str,
    limits: Limits,
    allowed_remote_exmods: Sequence[str],
) -> oslo_messaging.Transport:
    """Make oslo.messaging's transport for this URL, which connects to nothing yet.

    :param conf: the options that the transport goes by; what they or the URL say comes before our defaults
    :param allowed_remote_exmods: modules whose exceptions come back from remote calls as themselves
    :raises UrlRefused: if the URL is malformed or names a driver that isn't installed
    """
    register_messaging_groups(conf)
    try:
        parsed = oslo_messaging.TransportURL.parse(conf, url)
        if "//" not in url and not metadata.entry_points(group="oslo.messaging.drivers", name=parsed.transport):
            # what stands before a colon can be half of a password, and would be logged as the name of a driver
            raise UrlRefused("no oslo.messaging driver of that name is installed")
        if parsed.transport.split("+")[0] in ("rabbit", "kombu"):
            _set_rabbit_defaults(conf, parsed, limits.max_connections)
        return oslo_messaging.get_rpc_transport(conf, url=parsed, allowed_remote_exmods=list(allowed_remote_exmods))
    except ImportError as missing:
        raise UrlRefused(f"its oslo.messaging driver needs {missing.name}, which is not installed") from None
    except oslo_messaging.DriverLoadFailure as failure:
        raise UrlRefused(f"no oslo.messaging driver {failure.driver!r} is installed") from None
    except (oslo_messaging.InvalidTransportURL, cfg.NoSuchOptError, ValueError):
        # their messages can quote the URL, with its password
        raise UrlRefused("its transport URL is not one that oslo.messaging can read") from None


def _set_rabbit_defaults(conf: cfg.ConfigOpts, url: oslo_messaging.TransportURL, max_connections: int) -> None:
    """Write into the URL what neither it nor the configuration says."""
    conf.register_opts(impl_rabbit.rabbit_opts, group=_RABBIT)
    defaults = _RABBIT_DEFAULTS | {"rpc_conn_pool_size": str(max_connections)}
    for name, value in defaults.items():
        location = conf.get_location(name, _RABBIT)
        if location is None or location.location is cfg.Locations.opt_default:
            url.query.setdefault(name, value)
    # which may not be more than all of them, or the driver refuses to be made
    least = url.query.get("conn_pool_min_size", conf[_RABBIT].conn_pool_min_size)
    if url.query.get("rpc_conn_pool_size") == str(max_connections) and int(least) > max_connections:
        url.query["conn_pool_min_size"] = str(max_connections)


def probe_of(transport: oslo_messaging.Transport) -> Callable[[], object]:
    """Return what returns if the broker answers, and raises an exception if not."""
    brokers = Brokers.of(transport._driver)
    return (lambda: None) if brokers is None else brokers.answer


def register_messaging_groups(conf: cfg.ConfigOpts) -> None:
    """Register the options that oslo.messaging registers on ``cfg.CONF`` alone but reads from whatever it is given."""
    if conf is cfg.CONF:
        return
    for group in GLOBAL_GROUPS:
        with contextlib.suppress(cfg.NoSuchGroupError):
            opts = cfg.CONF._get_group(group)._opts.values()
            conf.register_opts([opt["opt"] for opt in opts], group=group)
