# SPDX-License-Identifier: Apache-2.0
"""``memory://NAME/`` -> a message queue inside this process, for the demo and for tests.

It is an oslo.messaging driver that behaves as the one for RabbitMQ does wherever a service could notice::

    transport = oslo_messaging.get_rpc_transport(conf, "memory://cell1/")

* Two URLs are the same queue when their name and their virtual host are equal. User, password and query are ignored;
  no virtual host and ``/`` are the same. Queues with different URLs share nothing, whatever exchanges and topics are
  called in them.
* The broker of a URL is made for its first transport and goes, with all that waits in it, with the ``cleanup()`` of
  the last one. Until then a ``cleanup()`` concerns nobody but its own transport.
* A topic's queue is there from the first server that listened to it and keeps messages while no server runs. A cast
  that finds no queue is dropped, a call that finds none times out, a notification creates its queue.
* What arrives has been through JSON, both ways. Errors come back by the rules of ``allowed_remote_exmods``.

It does not leave the process or survive it, it limits no queue's length, and as it can't fail it never retries:
``retry`` changes nothing.
"""

from __future__ import annotations

import logging
import threading
import uuid
import weakref
from collections import defaultdict, deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import oslo_messaging
from oslo_messaging._drivers import amqp, base, common

from cellmw.deadline import Deadline, after, left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from oslo_config import cfg

LOG = logging.getLogger(__name__)

Item = TypeVar("Item")

Envelope = dict[str, str]
"""A message as it travels: its version and its JSON text, nothing of the sender's own."""


class _Inbox(Generic[Item]):
    """What was sent to one receiver, a server or a waiting caller. Lives as long as that receiver listens.

    Any thread may use it: its condition guards all of it, and is what a receiver sleeps on.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._items: deque[Item] = deque()
        self.closed = False

    def put(self, item: Item) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify()

    def take(self, timeout: float | None = None) -> Item | None:
        """Return the oldest item, or None when none came in time or the inbox was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self.closed, timeout)
            return self._items.popleft() if self._items else None

    def drain(self) -> list[Item]:
        """Take all that is there, the oldest first."""
        with self._changed:
            items = list(self._items)
            self._items.clear()
            return items

    def close(self) -> None:
        """Wake whoever waits; from now on nobody does."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()


class _Message(NamedTuple):
    """One message in a queue."""

    envelope: Envelope
    expires: Deadline | None
    """When its caller gives up; the message is not delivered later."""


class _Delivery(NamedTuple):
    """A message on its way to one receiver, and the queue it goes back to; a fanout's copy comes from none."""

    message: _Message
    queue: _Queue | None


class _Queue:
    """Messages that wait, and the inboxes that take them in turn. Lives as long as its broker, whose lock guards it."""

    def __init__(self) -> None:
        self.waiting: deque[_Message] = deque()
        self.inboxes: deque[_Inbox[_Delivery]] = deque()

    def flush(self) -> None:
        """Hand out what waits, one message to each inbox in turn, and forget what has expired at the head."""
        while self.waiting and (self.inboxes or self._head_expired()):
            expired = self._head_expired()
            message = self.waiting.popleft()
            if not expired:
                self.inboxes[0].put(_Delivery(message, self))
                self.inboxes.rotate(-1)

    def _head_expired(self) -> bool:
        expires = self.waiting[0].expires
        return expires is not None and not left(expires)


class _Address(NamedTuple):
    """What a sender writes on a message."""

    exchange: str
    key: str


class _Broker:
    """The queues behind one URL. Lives until the last transport with that URL is cleaned up, and knows none of them.

    Shared by all of these transports' threads; its lock guards everything, the queues too. An inbox's own lock is
    only ever taken inside it, never the other way round.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: defaultdict[str, _Queue] = defaultdict(_Queue)
        # Bound, like everywhere in AMQP, by name: queues of one name are one queue, even behind two exchanges.
        self._bindings: defaultdict[_Address, set[str]] = defaultdict(set)
        self._fanouts: defaultdict[str, list[_Inbox[_Delivery]]] = defaultdict(list)
        self._callers: dict[str, _Inbox[Envelope]] = {}

    def bind(self, name: str, address: _Address) -> None:
        """Let the queue of this name, made now if there is none, take what is sent to this address."""
        with self._lock:
            self._bind(name, address)

    def _bind(self, name: str, address: _Address) -> _Queue:
        self._bindings[address].add(name)
        return self._queues[name]

    def subscribe(self, inbox: _Inbox[_Delivery], bindings: Iterable[tuple[str, _Address]]) -> None:
        """Let the inbox take its turn at each of these queues, which are made and bound as needed."""
        with self._lock:
            for name, address in bindings:
                queue = self._bind(name, address)
                queue.inboxes.append(inbox)
                queue.flush()

    def subscribe_fanout(self, inbox: _Inbox[_Delivery], topic: str) -> None:
        """Send the inbox a copy of each fanout to the topic."""
        with self._lock:
            self._fanouts[topic].append(inbox)

    def unsubscribe(self, inbox: _Inbox[_Delivery]) -> None:
        """Send the inbox nothing more; what it holds goes back to the head of the queues it came from."""
        with self._lock:
            for receivers in [*self._fanouts.values(), *(queue.inboxes for queue in self._queues.values())]:
                with suppress(ValueError):
                    receivers.remove(inbox)
            self._put_back(inbox.drain())

    def put_back(self, delivery: _Delivery) -> None:
        """Let the queue that the message came from deliver it once more, before all others."""
        with self._lock:
            self._put_back([delivery])

    def _put_back(self, deliveries: list[_Delivery]) -> None:
        for message, queue in reversed(deliveries):
            if queue is not None:
                queue.waiting.appendleft(message)
        for queue in self._queues.values():
            queue.flush()

    def publish(self, address: _Address, message: _Message) -> bool:
        """Put the message into each queue that is bound to the address.

        :returns: whether there was one
        """
        with self._lock:
            names = self._bindings.get(address, ())
            for name in names:
                queue = self._queues[name]
                queue.waiting.append(message)
                queue.flush()
            return bool(names)

    def publish_fanout(self, topic: str, message: _Message) -> None:
        """Give every server of the topic a copy of the message."""
        with self._lock:
            for inbox in self._fanouts.get(topic, ()):
                inbox.put(_Delivery(message, None))

    def expect_answers(self, call_id: str, inbox: _Inbox[Envelope]) -> None:
        with self._lock:
            self._callers[call_id] = inbox

    def forget_answers(self, call_id: str) -> None:
        with self._lock:
            self._callers.pop(call_id, None)

    def answer(self, call_id: str, envelope: Envelope) -> bool:
        """Send an answer to the caller who waits for it.

        :returns: whether one still waits
        """
        with self._lock:
            caller = self._callers.get(call_id)
        if caller is not None:
            caller.put(envelope)
        return caller is not None


_BROKERS: weakref.WeakValueDictionary[tuple[str, str], _Broker] = weakref.WeakValueDictionary()
"""Name and virtual host -> the broker that the transports with this URL share.

oslo.messaging makes a driver from a configuration and a URL and nothing else, so this is the only place where two of
them can meet. It owns nothing: the transports do, and with the last of them the entry is gone.
"""

_BROKERS_LOCK = threading.Lock()
"""Guards :data:`_BROKERS`: two transports that are made at once get one broker."""


def _connect(name: str, virtual_host: str) -> _Broker:
    with _BROKERS_LOCK:
        broker = _BROKERS.get((name, virtual_host))
        if broker is None:
            broker = _BROKERS[name, virtual_host] = _Broker()
        return broker


def _parse(url: oslo_messaging.TransportURL) -> tuple[str, str]:
    """Return the name and the virtual host of a URL.

    :raises oslo_messaging.InvalidTransportURL: if it does not name one queue
    """
    if len(url.hosts) != 1 or not url.hosts[0].hostname:
        # What the exception carries must not be the URL itself: there may be a password in it.
        raise oslo_messaging.InvalidTransportURL("memory:", "an in-memory queue needs one name: memory://NAME/")
    if url.hosts[0].port is not None:
        raise oslo_messaging.InvalidTransportURL("memory:", "an in-memory queue has no port: memory://NAME/")
    return url.hosts[0].hostname, url.virtual_host or "/"


def _left(deadline: Deadline | None) -> float | None:
    return None if deadline is None else left(deadline)


def _pack(message: dict[str, Any], context: Any, **headers: Any) -> Envelope:
    """Turn a message and its context into what travels.

    :raises ValueError: if JSON can't carry it, which has to happen here, in the sender's thread
    :raises TypeError: likewise, for a dict's key
    """
    packed = {**message, **headers}
    amqp.pack_context(packed, context)
    envelope: Envelope = common.serialize_msg(packed)
    return envelope


class _Request(base.RpcIncomingMessage):
    """A call or cast as its server gets it. Lives until it is answered."""

    def __init__(self, driver: MemoryDriver, delivery: _Delivery) -> None:
        message = common.deserialize_msg(delivery.message.envelope)
        context = amqp.unpack_context(message)
        super().__init__(context.values, message, context.msg_id)
        self.client_timeout = context.client_timeout
        self._driver = driver
        self._delivery = delivery
        self._call_id: str | None = context.msg_id

    def reply(self, reply: Any = None, failure: Any = None) -> None:
        """Answer a call; a cast has nobody to answer to.

        :param reply: what the method returned
        :param failure: instead of it the ``sys.exc_info()`` of what it raised
        """
        if self._call_id is not None:
            remote_error = common.serialize_remote_exception(failure) if failure else None
            self._answer(self._call_id, reply, remote_error, ending=True)

    def heartbeat(self) -> None:
        """Tell a caller who monitors its call that it is still being worked on."""
        if self._call_id is not None:
            self._answer(self._call_id, None, None, ending=False)

    def _answer(self, call_id: str, result: Any, failure: str | None, *, ending: bool) -> None:
        answer = {"result": result, "failure": failure, "ending": ending}
        self._driver.answer(call_id, common.serialize_msg(answer))

    def requeue(self) -> None:
        """Do nothing: RabbitMQ's driver, too, takes a request for good in the moment that it arrives."""


class _Notification(_Request):
    """A notification as its listener gets it. Lives until it is acknowledged or requeued."""

    def requeue(self) -> None:
        """Have it delivered again, to this listener or another one of the same queue."""
        self._driver.put_back(self._delivery)


class _Listener(base.PollStyleListener):
    """Hands an inbox's deliveries to a server. Lives as long as the server listens."""

    def __init__(
        self, inbox: _Inbox[_Delivery], receive: Callable[[_Delivery], _Request], leave: Callable[[], None]
    ) -> None:
        """Take what the driver has subscribed.

        :param receive: makes what the server wants to see of a delivery
        :param leave: unsubscribes the inbox
        """
        super().__init__()
        self._inbox = inbox
        self._receive = receive
        self._leave = leave

    def poll(
        self, timeout: float | None = None, batch_size: int = 1, batch_timeout: float | None = None
    ) -> list[_Request]:
        """Wait for a first message, then at most ``batch_timeout`` for the rest of a batch.

        :returns: none when the time is up or the listener is stopped
        """
        first = self._inbox.take(timeout)
        return [self._receive(delivery) for delivery in self._fill(first, batch_size, batch_timeout)]

    def _fill(self, first: _Delivery | None, size: int, timeout: float | None) -> Iterator[_Delivery]:
        deadline = None if timeout is None else after(timeout)
        delivery = first
        while delivery is not None:
            yield delivery
            size -= 1
            delivery = self._inbox.take(_left(deadline)) if size > 0 else None

    def stop(self) -> None:
        """Take nothing more and wake the thread that polls; what it has not seen stays in the queues."""
        self._leave()
        self._inbox.close()

    def cleanup(self) -> None:
        """Leave the queues also where nobody ever polled."""
        self.stop()


class MemoryDriver(base.BaseDriver):
    """One transport's connection to the broker of its URL. Lives until the transport's ``cleanup()``.

    Any thread may use it. Its lock guards the connection and the inboxes that were opened over it; it is taken before
    the broker's, and never held while anything is waited for.
    """

    never_waits = True
    """A cast waits for nothing, and a call no longer than its timeout: nobody has to be able to leave."""

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        url: oslo_messaging.TransportURL,
        default_exchange: str | None = None,
        allowed_remote_exmods: list[str] | None = None,
    ) -> None:
        """Connect, as oslo.messaging does it.

        :param default_exchange: for targets that name none
        :param allowed_remote_exmods: modules whose exceptions a caller gets as such, not as RemoteError
        :raises oslo_messaging.InvalidTransportURL: if the URL does not name one queue
        """
        super().__init__(conf, url, default_exchange, allowed_remote_exmods)
        self._name, virtual_host = _parse(url)
        self._lock = threading.Lock()
        self._broker: _Broker | None = _connect(self._name, virtual_host)
        self._calls: set[_Inbox[Envelope]] = set()
        self._subscriptions: set[_Inbox[_Delivery]] = set()

    def __repr__(self) -> str:
        return f"<MemoryDriver {self._name} {'closed' if self._broker is None else 'open'}>"

    def require_features(self, requeue: bool = False) -> None:
        """Accept all there are: notifications can be requeued."""

    def send(
        self,
        target: oslo_messaging.Target,
        ctxt: Any,
        message: dict[str, Any],
        wait_for_reply: bool | None = None,
        timeout: float | None = None,
        call_monitor_timeout: float | None = None,
        retry: int | None = None,
        transport_options: oslo_messaging.TransportOptions | None = None,
    ) -> Any:
        """Send a cast, or a call and wait for its answer.

        :param timeout: for the answer; None waits for ever. A call that no server took by then is never delivered
        :param call_monitor_timeout: how long the answer, or the sign that the server works on it, may take each time
        :param transport_options: with ``at_least_once`` it is an error that no queue takes the message
        :raises TransportDriverError: once the transport was cleaned up
        :raises oslo_messaging.MessagingTimeout: if no answer came in time
        :raises oslo_messaging.MessageUndeliverable: if no queue takes a message that has to be delivered
        :raises oslo_messaging.MessageDeliveryFailure: if the transport was cleaned up while the call waited
        """
        mandatory = transport_options is not None and transport_options.at_least_once
        if not wait_for_reply:
            self._publish(target, _Message(_pack(message, ctxt), None), mandatory=mandatory)
            return None
        call_id = uuid.uuid4().hex
        headers = {"_msg_id": call_id, "_timeout": call_monitor_timeout}
        deadline = None if timeout is None else after(timeout)
        request = _Message(_pack(message, ctxt, **headers), deadline)
        with self._expecting_answers(call_id) as answers:
            self._publish(target, request, mandatory=mandatory)
            return self._wait(answers, target.topic, deadline, call_monitor_timeout or None)

    def send_notification(
        self,
        target: oslo_messaging.Target,
        ctxt: Any,
        message: dict[str, Any],
        version: float,
        retry: int | None = None,
    ) -> None:
        """Send a notification; it waits in a queue of the topic's name where no listener has made one.

        :param version: of the envelope, which nobody sees here
        :raises TransportDriverError: once the transport was cleaned up
        """
        address = _Address(self._exchange(target), target.topic)
        notification = _Message(_pack(message, ctxt), None)
        broker = self._connected()
        broker.bind(target.topic, address)
        broker.publish(address, notification)

    def listen(
        self, target: oslo_messaging.Target, batch_size: int, batch_timeout: float | None
    ) -> base.PollStyleListenerAdapter:
        """Subscribe a server to its topic, to what is sent to it by name, and to the topic's fanouts.

        :raises oslo_messaging.ServerListenError: once the transport was cleaned up
        """
        exchange = self._exchange(target)
        names = [target.topic, f"{target.topic}.{target.server}"]
        bindings = [(name, _Address(exchange, name)) for name in names]
        listener = self._listener(target, _Request, bindings, target.topic)
        return base.PollStyleListenerAdapter(listener, batch_size, batch_timeout)

    def listen_for_notifications(
        self,
        targets_and_priorities: Iterable[tuple[oslo_messaging.Target, str]],
        pool: str | None,
        batch_size: int,
        batch_timeout: float | None,
    ) -> base.PollStyleListenerAdapter:
        """Subscribe a notification listener.

        :param pool: name of a queue that its listeners share and that gets a copy of everything
        :raises oslo_messaging.ServerListenError: once the transport was cleaned up
        """
        wanted = list(targets_and_priorities)
        addresses = [_Address(self._exchange(target), f"{target.topic}.{priority}") for target, priority in wanted]
        bindings = [(pool or address.key, address) for address in addresses]
        listener = self._listener(wanted, _Notification, bindings, None)
        return base.PollStyleListenerAdapter(listener, batch_size, batch_timeout)

    def cleanup(self) -> None:
        """Disconnect: callers that still wait get an error, servers hear nothing more until they are stopped."""
        with self._lock:
            broker, self._broker = self._broker, None
            calls, self._calls = self._calls, set()
            subscriptions, self._subscriptions = self._subscriptions, set()
        if broker is not None:
            for subscription in subscriptions:
                broker.unsubscribe(subscription)
        for call in calls:
            call.close()

    def answer(self, call_id: str, envelope: Envelope) -> None:
        """Send a server's answer on its way, or log why that can't be."""
        try:
            waited_for = self._connected().answer(call_id, envelope)
        except base.TransportDriverError:
            LOG.warning("memory queue %s: call %s answered after its server's transport closed", self._name, call_id)
        else:
            if not waited_for:
                LOG.info("memory queue %s: nobody waits for the answer to call %s", self._name, call_id)

    def put_back(self, delivery: _Delivery) -> None:
        """Requeue a notification.

        :raises TransportDriverError: once the transport was cleaned up
        """
        self._connected().put_back(delivery)

    def _connected(self) -> _Broker:
        broker = self._broker
        if broker is None:
            raise base.TransportDriverError(f"this transport to the in-memory queue {self._name!r} was cleaned up")
        return broker

    def _exchange(self, target: oslo_messaging.Target) -> str:
        return str(target.exchange or self._default_exchange)

    def _publish(self, target: oslo_messaging.Target, message: _Message, *, mandatory: bool) -> None:
        broker = self._connected()
        if target.fanout:
            broker.publish_fanout(target.topic, message)
            return
        key = f"{target.topic}.{target.server}" if target.server else target.topic
        address = _Address(self._exchange(target), key)
        if broker.publish(address, message):
            return
        LOG.debug("memory queue %s: no queue for %s, message dropped", self._name, address)
        if mandatory:
            no_route = LookupError(f"no queue is bound to {key!r} in exchange {address.exchange!r}")
            raise oslo_messaging.MessageUndeliverable(no_route, address.exchange, key, message.envelope)

    @contextmanager
    def _expecting_answers(self, call_id: str) -> Iterator[_Inbox[Envelope]]:
        inbox: _Inbox[Envelope] = _Inbox()
        with self._lock:
            broker = self._connected()
            self._calls.add(inbox)
        broker.expect_answers(call_id, inbox)
        try:
            yield inbox
        finally:
            broker.forget_answers(call_id)
            with self._lock:
                self._calls.discard(inbox)

    def _wait(self, answers: _Inbox[Envelope], topic: str, deadline: Deadline | None, monitor: float | None) -> Any:
        """Return the result of a call, or raise what its server raised."""
        while True:
            limits = [limit for limit in (_left(deadline), monitor) if limit is not None]
            envelope = answers.take(min(limits, default=None))
            if envelope is None:
                raise self._no_answer(answers, topic)
            answer = common.deserialize_msg(envelope)
            if answer["failure"]:
                raise common.deserialize_remote_exception(answer["failure"], self._allowed_remote_exmods)
            if answer["ending"]:
                return answer["result"]

    def _no_answer(self, answers: _Inbox[Envelope], topic: str) -> oslo_messaging.MessagingException:
        if answers.closed:
            return oslo_messaging.MessageDeliveryFailure(
                f"this transport to the in-memory queue {self._name!r} was cleaned up while a call waited"
            )
        return oslo_messaging.MessagingTimeout(f"no answer in time from topic {topic!r} of queue {self._name!r}")

    def _listener(
        self,
        wanted: object,
        incoming: type[_Request],
        bindings: list[tuple[str, _Address]],
        fanout_topic: str | None,
    ) -> _Listener:
        inbox: _Inbox[_Delivery] = _Inbox()
        try:
            self._subscribe(inbox, bindings, fanout_topic)
        except base.TransportDriverError as closed:
            # oslo.messaging's server would turn this one into an AttributeError when it starts.
            raise oslo_messaging.ServerListenError(wanted, closed) from closed
        return _Listener(inbox, lambda delivery: incoming(self, delivery), lambda: self._unsubscribe(inbox))

    def _subscribe(
        self, inbox: _Inbox[_Delivery], bindings: list[tuple[str, _Address]], fanout_topic: str | None
    ) -> None:
        with self._lock:
            broker = self._connected()
            self._subscriptions.add(inbox)
            # Inside the lock, so that a cleanup() in another thread finds it subscribed or not connected at all.
            broker.subscribe(inbox, bindings)
            if fanout_topic is not None:
                broker.subscribe_fanout(inbox, fanout_topic)

    def _unsubscribe(self, inbox: _Inbox[_Delivery]) -> None:
        with self._lock:
            broker = self._broker
            self._subscriptions.discard(inbox)
        if broker is not None:
            broker.unsubscribe(inbox)
