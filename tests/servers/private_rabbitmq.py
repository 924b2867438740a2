# SPDX-License-Identifier: Apache-2.0
"""Private RabbitMQ nodes, alone or in a cluster, with an epmd, by which Erlang's nodes find each other, of their own.

A node has a name that no other one has.
"""

from __future__ import annotations

import os
import secrets
import socket
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import amqp

from tests.servers.addresses import CONNECT_TIMEOUT, Broker
from tests.servers.private import Home, Process, free_ports, program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers.certificates import Authority, Certificate

SCRIPTS = "usr/lib/rabbitmq/bin"
"""Where RabbitMQ's own scripts are. What a distribution has put into PATH in their place drops the environment."""


@contextmanager
def started() -> Iterator[Broker]:
    """A node that is gone when the block ends."""
    with started_with_process() as (broker, _):
        yield broker


@contextmanager
def started_with_process() -> Iterator[tuple[Broker, Process]]:
    """Such a node, and its process."""
    with started_node() as node:
        yield node.broker, node.process


@contextmanager
def started_node() -> Iterator[Node]:
    """Such a node, with all that can be done to it."""
    with _Family() as family:
        yield family.start()


@contextmanager
def started_nodes(count: int) -> Iterator[list[Node]]:
    """As many nodes, started side by side, which know nothing of each other."""
    with _Family() as family:
        yield family.start_side_by_side(count)


@contextmanager
def started_cluster(size: int = 3) -> Iterator[list[Node]]:
    """As many nodes, started side by side, which are one cluster."""
    with started_nodes(size) as nodes:
        for node in nodes[1:]:
            node.join(nodes[0])
        yield nodes


class Node:
    """A private node. Lives as long as the block in which it was started.

    :ivar name: as Erlang knows it
    :ivar broker: what it serves
    :ivar process: what can be killed, frozen and restarted
    """

    def __init__(self, home: Home, rabbitmqctl: str, name: str, environment: dict[str, str], process: Process) -> None:
        self.name = name
        self.process = process
        self._home = home
        address = urlsplit(f"rabbit://guest:guest@127.0.0.1:{environment['RABBITMQ_NODE_PORT']}/")
        self.broker = Broker(address, home.command(rabbitmqctl), environment)

    @property
    def port(self) -> int:
        """Where it listens, without TLS."""
        return self.broker.port

    def join(self, other: Node) -> None:
        """Become one cluster with another node, and forget what was here."""
        self.evaluate(f"rabbit:stop(), ok = rabbit_mnesia:join_cluster('{other.name}', disc), ok = rabbit:start().")

    def listen(self, certificate: Certificate, *, clients: Authority | None = None) -> TlsPort:
        """Listen at one more port, by TLS, until the node ends.

        :param clients: whose certificate a client has to have; None if it needs none
        """
        port = TlsPort(self._home, free_ports(1)[0])
        port.show(certificate)
        options = [f'{{certfile, "{port.certificate}"}}', f'{{keyfile, "{port.key}"}}']
        if clients is not None:
            trusted = self._home.write(f"clients-{port.number}.pem", clients.certificate)
            options += [f'{{cacertfile, "{trusted}"}}', "{verify, verify_peer}", "{fail_if_no_peer_cert, true}"]
        listener = f'{{"127.0.0.1", {port.number}}}, [{", ".join(options)}], 2'
        self.evaluate(f"rabbit_networking:start_ssl_listener({listener}).")
        return port

    def show(self, port: TlsPort, certificate: Certificate) -> None:
        """Show whoever comes to this port from now on another certificate."""
        port.show(certificate)
        self.evaluate("ssl:clear_pem_cache().")

    def evaluate(self, expression: str) -> str:
        """Return what an expression of Erlang's is on the node."""
        return self.broker.administer("eval", expression)


class TlsPort:
    """A port at which a node listens by TLS. Lives as long as the node.

    :ivar number: the port's
    :ivar certificate: the file with the certificate that it shows
    :ivar key: the file with its key
    """

    def __init__(self, home: Home, number: int) -> None:
        self.number = number
        self._home = home
        self.certificate: Path = home.path / f"server-{number}.pem"
        self.key: Path = home.path / f"server-{number}.key"

    def show(self, certificate: Certificate) -> None:
        """Have the files say this."""
        for path, text in zip((self.certificate, self.key), certificate, strict=True):
            path.unlink(missing_ok=True)
            self._home.write(path.name, text)


class _Family:
    """Nodes that have one home, so one cookie, and one epmd. Lives as long as its ``with`` block."""

    def __init__(self) -> None:
        """Look for the programs.

        :raises ServerMissing: if one is not installed
        """
        self._server, self._rabbitmqctl = (
            program(name, "rabbitmq", SCRIPTS) for name in ("rabbitmq-server", "rabbitmqctl")
        )
        self._epmd = program("epmd", "rabbitmq", "usr/lib*/erlang/erts-*/bin")
        self._exits = ExitStack()

    def __enter__(self) -> _Family:
        with ExitStack() as exits:
            # the kernel ends a node with the thread that started it, so these live until the nodes are gone
            self._threads = exits.enter_context(ThreadPoolExecutor())
            self._home = exits.enter_context(Home("RabbitMQ"))
            self._home.write(".erlang.cookie", secrets.token_hex(16))
            self._home.write("rabbitmq.conf", "")
            (self._epmd_port,) = free_ports(1)
            # started here and not by the node, as it goes on when its nodes end
            self._home.start(
                *(self._epmd, "-address", "127.0.0.1", "-port", str(self._epmd_port)),
                answers=lambda: socket.create_connection(("127.0.0.1", self._epmd_port)).close(),
                unless=(OSError,),
            )
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._exits.close()

    def start(self) -> Node:
        """Start one, and wait until it answers."""
        return self._start(*free_ports(2))

    def start_side_by_side(self, count: int) -> list[Node]:
        """Start as many at the same time, and wait until all of them answer."""
        ports = iter(free_ports(2 * count))
        starting = [self._threads.submit(self._start, next(ports), next(ports)) for _ in range(count)]
        # all of them, also where one fails: what starts later than that would not be ended
        futures.wait(starting)
        return [each.result() for each in starting]

    def _start(self, port: int, node_port: int) -> Node:
        name = f"cellmw-{secrets.token_hex(3)}@localhost"
        environment = _environment(self._home, name, port, node_port, self._epmd_port)
        process = self._home.start(
            self._server, environment=environment, answers=lambda: _answer(port), unless=(OSError, amqp.AMQPError)
        )
        return Node(self._home, self._rabbitmqctl, name, environment, process)


def _answer(port: int) -> None:
    with amqp.Connection(f"127.0.0.1:{port}", connect_timeout=CONNECT_TIMEOUT):
        """A connection that was opened, by guest, and is closed."""


def _environment(home: Home, name: str, port: int, node_port: int, epmd_port: int) -> dict[str, str]:
    """What the node and rabbitmqctl have to know; whatever this machine's own node is told is left out."""
    settings = {
        "NODENAME": name,
        "NODE_IP_ADDRESS": "127.0.0.1",
        "NODE_PORT": str(port),
        "DIST_PORT": str(node_port),
        "CONF_ENV_FILE": str(home.path / "rabbitmq-env.conf"),
        "CONFIG_FILE": str(home.path / "rabbitmq.conf"),
        "ADVANCED_CONFIG_FILE": str(home.path / "advanced.config"),
        "ENABLED_PLUGINS_FILE": str(home.path / "enabled_plugins"),
        "MNESIA_BASE": str(home.path),
        "LOG_BASE": str(home.path),
        "LOGS": "-",
        # with input it is a process with no shell around it, and then it has to be told not to read any
        "ALLOW_INPUT": "1",
        "SERVER_START_ARGS": "-noinput",
    }
    return {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "HOME": str(home.path),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(epmd_port),
        "ERL_FLAGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        **{f"RABBITMQ_{name}": value for name, value in settings.items()},
    }
