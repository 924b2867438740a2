# SPDX-License-Identifier: Apache-2.0
"""The hosts of a RabbitMQ's URL -> whether one answers, how they are spoken to wrongly, and whether they are a cluster.

An operator also wants to know of each single host whether it lets its user in, and do what has to be done there.

All of it outside of requests. What needs no user of the broker's is asked by handshake.py.
"""

from __future__ import annotations

import copy
import logging
import ssl
import threading
import uuid
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

import amqp
from oslo_messaging._drivers import common, impl_rabbit

from cellmw.deadline import after, left
from cellmw.queues import causes
from cellmw.queues.handshake import (
    PATIENCE,
    Address,
    certificate_of,
    cluster_names,
    objection,
    shake_hands,
    speaks_plainly,
    speaks_tls,
    unverified,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from oslo_config import cfg

LOG = logging.getLogger(__name__)

_AMQP_PORT = 5672

_DIAGNOSIS = 1.0
"""Seconds for which is looked for the reason of an error that gives none."""

_LOOKS = 5
"""How often one host is asked for what another one has, before it counts as unknown there."""

_PAUSE = 0.2
"""Seconds between two of these looks."""


class NotAllowed(Exception):
    """A broker answers, and does not let its user do what the library does; the message says what."""


class Brokers:
    """The hosts of a RabbitMQ's URL. Lives as long as the transport; shared by all threads.

    :ivar addresses: where they listen
    """

    def __init__(self, conf: cfg.ConfigOpts, url: Any) -> None:
        """Take the hosts as they stand in the URL, before the driver begins to shuffle them.

        :param conf: what the driver goes by, with what the URL says
        """
        self._conf = conf
        self._url = url
        self._hosts = {Address(host.hostname or "localhost", host.port or _AMQP_PORT): host for host in url.hosts}
        self.addresses = list(self._hosts) or [Address("localhost", _AMQP_PORT)]
        self._compared = len(self._hosts) < 2
        self._lock = threading.Lock()  # guards who compares them

    @classmethod
    def of(cls, driver: Any) -> Self | None:
        """Return those of a driver; None if it is none for a RabbitMQ."""
        if not isinstance(driver, impl_rabbit.RabbitDriver) or "+" in driver._url.transport:
            return None
        return cls(driver.conf, driver._url)

    def answer(self) -> None:
        """Return if one of them answers, and where the URL asks for TLS has a certificate that the library takes.

        :raises Exception: if not
        """
        shake_hands(self.addresses, self._tls())

    def answer_at(self, address: Address, patience: float) -> None:
        """Return if this very host answers, and where the URL asks for TLS has a certificate that the library takes.

        :raises Exception: if not
        """
        shake_hands([address], self._tls(), patience)

    def certificate_at(self, address: Address, patience: float) -> bytes | None:
        """Return the certificate of this host, in DER, whoever has signed it; None where the URL asks for no TLS.

        :raises OSError: if it shows none in time
        """
        tls = self._asking_tls()
        return None if tls is None else certificate_of(address, tls, patience)

    def try_out(self, address: Address) -> None:
        """Log in at this host, and do there what the library does: make, send, take and remove.

        What is made is called as the library's own queues and exchanges for replies and fanouts are, and is gone in the
        end. How long it takes is not bounded.

        :raises NotAllowed: if its user may not
        :raises Exception: if it fails otherwise
        """
        try:
            connection = self._connect(address)
        except amqp.AccessRefused:
            raise NotAllowed("it refuses the user or the password") from None
        except amqp.NotAllowed:
            raise NotAllowed("there is no such virtual host, or the user may not enter it") from None
        with closing(connection):
            _use(connection.connection)

    def misfit(self, error: BaseException) -> str:
        """Say what is wrong with how they are spoken to; empty where the error says it, or nothing is found.

        What is spoken to in another protocol than its own hangs up, and seldom says why.
        """
        if not causes.is_hang_up(error):
            return ""
        deadline = after(_DIAGNOSIS)
        try:
            tls = self._tls()
        except OSError as unusable:
            return causes.cause_of(unusable)
        for number, address in enumerate(self.addresses):
            share = left(deadline) / (len(self.addresses) - number) / 2
            if tls is None:
                found = causes.ONLY_TLS if speaks_tls(address, share) else ""
            elif speaks_plainly(address, share):
                found = causes.NO_TLS
            else:
                said = objection(address, tls, share)
                found = "" if said is None else causes.cause_of(said)
            if found:
                return found
        return ""

    def compare(self, name: str) -> None:
        """Have it found out, once, whether several hosts are one cluster, and logged if not: replies would be lost.

        :param name: whose they are, for the log
        """
        with self._lock:
            if self._compared:
                return
            self._compared = True
        with suppress(RuntimeError):  # there are too many threads; no message is to suffer from that
            threading.Thread(target=self._compare, args=(name,), name="cellmw-clusters", daemon=True).start()

    def _compare(self, name: str) -> None:
        try:
            strangers = self.strangers()
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing is known then
            LOG.debug("%s: whether its hosts are one cluster is not known: %s", name, causes.cause_of(error))
            return
        if strangers:
            LOG.error(
                "%s: its hosts are not one cluster (%s), so replies to calls get lost, and messages: "
                "make them one cluster, or let the transport URL name the hosts of one alone",
                name,
                ", ".join(f"{address} is {cluster}" for address, cluster in strangers.items()),
            )

    def strangers(self, patience: float = PATIENCE) -> dict[Address, str]:
        """Return the hosts and the names of their clusters, those of more than one; empty if there is one alone.

        Nodes that nobody has told the name of their cluster say different ones. So what counts is whether what is made
        at one host is there at another. How long that takes is not bounded.

        :param patience: seconds that all of them have to say their names
        :raises Exception: if it can't be found out
        """
        names = cluster_names(self.addresses, self._asking_tls(), patience)
        one_of_each = [*{name: address for address, name in names.items()}.values()]
        different = {names[other] for other in one_of_each[1:] if not self._shares(one_of_each[0], other)}
        if different:
            different.add(names[one_of_each[0]])
        return {address: name for address, name in names.items() if name in different}

    def _shares(self, first: Address, other: Address) -> bool:
        """Tell whether a queue that is made at the first is there at the other."""
        queue = f"reply_{uuid.uuid4().hex}"  # as the library's own are called, which the user may make
        with closing(self._connect(first)) as here, closing(self._connect(other)) as there:
            here.channel.queue_declare(queue, exclusive=True, auto_delete=False)
            for _ in range(_LOOKS):
                try:
                    with there.connection.channel() as channel:
                        channel.queue_declare(queue, passive=True)
                except amqp.ResourceLocked:
                    return True  # it is there, and not for us
                except amqp.NotFound:
                    threading.Event().wait(_PAUSE)  # what one node knows the others can learn a moment later
                else:
                    return True
        return False

    def _connect(self, address: Address) -> Any:
        """Connect as the library does, to this host alone."""
        url = copy.copy(self._url)
        url.hosts = [self._hosts[address]] if self._hosts else []  # without one the library knows where to go
        return impl_rabbit.Connection(self._conf, url, common.PURPOSE_LISTEN, retry=0)

    def _tls(self) -> ssl.SSLContext | None:
        """Return what the library connects by, None for no TLS. Its files may have been replaced since the last time.

        :raises OSError: if one of its files can't be used
        """
        options = self._conf.oslo_messaging_rabbit
        if not options.ssl:
            return None
        context = unverified()
        if options.ssl_ca_file:
            context.verify_mode = ssl.CERT_REQUIRED
            context.check_hostname = True
            context.load_verify_locations(options.ssl_ca_file)
        elif not options.ssl_version:  # with which it verifies nothing
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_default_certs()
        self._load_ours(context)
        return context

    def _asking_tls(self) -> ssl.SSLContext | None:
        """Return what is enough to ask by."""
        if not self._conf.oslo_messaging_rabbit.ssl:
            return None
        context = unverified()
        self._load_ours(context)
        return context

    def _load_ours(self, context: ssl.SSLContext) -> None:
        options = self._conf.oslo_messaging_rabbit
        if options.ssl_cert_file:
            # whose key wants a password is not asked for one at a terminal
            context.load_cert_chain(options.ssl_cert_file, options.ssl_key_file or None, password=lambda: "")


def _use(connection: Any) -> None:
    """Make a queue and an exchange, send to the one and take from the other, and leave nothing of them."""
    channel = connection.channel()
    queue = f"reply_{uuid.uuid4().hex}"
    exchange = f"{queue}_fanout"
    with _allowed("configure"):
        channel.queue_declare(queue, exclusive=True, auto_delete=False)
        channel.exchange_declare(exchange, "fanout", durable=False, auto_delete=True)
    try:
        # only then are they bound: what that needs is write and read alike, and a refusal would not say which
        with _allowed("write"):
            channel.basic_publish(amqp.Message(b""), exchange=exchange)
        with _allowed("read"):
            channel.basic_get(queue, no_ack=True)
            channel.queue_bind(queue, exchange)
    finally:
        # a channel that something was refused on is closed; the queue goes with the connection
        with connection.channel() as another:
            another.exchange_delete(exchange)


@contextmanager
def _allowed(what: str) -> Iterator[None]:
    try:
        yield
    except amqp.AccessRefused:
        raise NotAllowed(f"the user has no permission to {what}") from None


class Connection(impl_rabbit.Connection):
    """The library's, with each host's certificate compared with that host's own name. Lives as long as it is pooled.

    Where a URL has several hosts the library compares all their certificates with the name of the first one that was
    tried, so that a certificate which names only its own host is refused when another host is down.
    """

    def _fetch_ssl_params(self) -> Any:
        params = super()._fetch_ssl_params()
        is_for_several = isinstance(params, dict) and params.get("server_hostname", "") is None
        return _HostsOwnName(params) if is_for_several else params


class _HostsOwnName(dict[str, Any]):
    """TLS parameters in which kombu finds no host's name, so it writes that of each host that it connects to."""

    def __getitem__(self, key: str) -> Any:
        return None if key == "server_hostname" else super().__getitem__(key)
