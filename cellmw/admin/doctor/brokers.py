# SPDX-License-Identifier: Apache-2.0
"""A cell's transport URL -> what is wrong with each single host of it, and with all of them together.

A service needs one of them. An operator wants to know of the others before that one is gone.
"""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
from functools import partial
from typing import TYPE_CHECKING

from cellmw.admin.doctor import certificates
from cellmw.admin.doctor.finding import Finding, Severity
from cellmw.admin.doctor.probe import Probe, Unanswered
from cellmw.queues import causes
from cellmw.queues.brokers import Brokers, NotAllowed
from cellmw.queues.handshake import NoAnswer
from cellmw.queues.message_queue import open_transport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from oslo_config import cfg

    from cellmw.limits import Limits
    from cellmw.queues.handshake import Address

CHECK = "brokers"
CLUSTERS = "clusters"

_UNREACHABLE = "start it, open the way to it, or take it out of the transport URL"
_WRONG_TLS = "see to its TLS, or to the options in the transport URL: `cellmw-manage cell_v2 update_cell`"
_LET_IN = (
    "see to the user on the broker (`rabbitmqctl authenticate_user`, `list_permissions`), or record another URL: "
    "`cellmw-manage cell_v2 update_cell`"
)
_JOIN = "make them one cluster, or let the transport URL name the hosts of one alone: replies get lost between them"


_NOBODY = {
    NoAnswer: ("what answers there is no broker", _UNREACHABLE),
    ConnectionRefusedError: ("nobody listens there", _UNREACHABLE),
    socket.gaierror: ("nobody knows its name here", "see to the name, or take it out of the transport URL"),
}
"""What is raised where there is no broker -> what to say of it, and what to do."""


def probes(cell: str, url: str, conf: cfg.ConfigOpts, limits: Limits) -> Iterator[Probe]:
    """Give what there is to ask of the brokers that a transport URL names; of a driver without brokers there is none.

    :raises UrlRefused: if nobody can use the URL
    """
    transport = open_transport(conf, url, limits, ())
    try:
        brokers = Brokers.of(transport._driver)
    finally:
        transport.cleanup()
    if brokers is None:
        return
    for address in brokers.addresses:
        subject = f"the broker {address}"
        yield Probe([CHECK], cell, subject, partial(_try_out, brokers, address, limits.patience))
        look = partial(_look_at_certificate, cell, subject, brokers, address, limits.patience)
        yield Probe([certificates.CHECK], cell, subject, look)
    if len(brokers.addresses) > 1:
        yield Probe(
            [CLUSTERS], cell, "the brokers of its transport URL", partial(_compare, cell, brokers, limits.patience)
        )


def _try_out(brokers: Brokers, address: Address, patience: float) -> Iterator[Finding]:
    try:
        brokers.answer_at(address, patience)
        brokers.try_out(address)
    except NotAllowed as refused:
        raise Unanswered(str(refused), _LET_IN) from None
    except Exception as error:  # noqa: BLE001 - whatever the library raises, the broker is of no use
        raise _reason(brokers, causes.root_of(error), patience) from None
    return iter(())


def _reason(brokers: Brokers, error: BaseException, patience: float) -> Unanswered:
    # one that speaks another protocol than we do just ends the connection
    misfit = brokers.misfit(ConnectionResetError() if isinstance(error, NoAnswer) else error)
    if misfit:
        return Unanswered(misfit, _WRONG_TLS)
    if isinstance(error, TimeoutError):
        return Unanswered(f"no answer within {patience:g} s", _UNREACHABLE)
    for kind, said in _NOBODY.items():
        if isinstance(error, kind):
            return Unanswered(*said)
    is_tls = isinstance(error, (ssl.SSLError, FileNotFoundError, PermissionError, IsADirectoryError))
    return Unanswered(causes.cause_of(error), _WRONG_TLS if is_tls else _UNREACHABLE)


def _look_at_certificate(
    cell: str, subject: str, brokers: Brokers, address: Address, patience: float
) -> Iterator[Finding]:
    # that it does not answer the other probe says
    with contextlib.suppress(OSError):
        certificate = brokers.certificate_at(address, patience)
        if certificate is not None:
            yield from certificates.judge(cell, subject, certificate, datetime.datetime.now(datetime.UTC))


def _compare(cell: str, brokers: Brokers, patience: float) -> Iterator[Finding]:
    try:
        strangers = brokers.strangers(patience / 2)  # those that talk have to be compared, too
    except Exception as error:  # noqa: BLE001 - whatever it is, nothing is known then
        what = f"whether its brokers are one cluster is not known: {causes.cause_of(error)}"
        yield Finding(Severity.INFO, cell, CLUSTERS, what, "see what is said of the brokers")
        return
    if strangers:
        names = ", ".join(f"{address} is {name}" for address, name in strangers.items())
        yield Finding(Severity.ERROR, cell, CLUSTERS, f"its brokers are not one cluster: {names}", _JOIN)
