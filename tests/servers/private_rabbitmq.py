# SPDX-License-Identifier: Apache-2.0
"""A private RabbitMQ node with an epmd, by which Erlang's nodes find each other, of its own."""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import amqp

from tests.servers.addresses import CONNECT_TIMEOUT, Broker
from tests.servers.private import Home, Process, free_ports, program

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    server, rabbitmqctl = (program(name, "rabbitmq", SCRIPTS) for name in ("rabbitmq-server", "rabbitmqctl"))
    epmd = program("epmd", "rabbitmq", "usr/lib*/erlang/erts-*/bin")
    port, node_port, epmd_port = free_ports(3)
    with Home("RabbitMQ") as home:
        home.write(".erlang.cookie", secrets.token_hex(16))
        environment = _environment(home, port, node_port, epmd_port)
        # started here and not by the node, as it goes on when its nodes end
        home.start(
            *(epmd, "-address", "127.0.0.1", "-port", str(epmd_port)),
            answers=lambda: socket.create_connection(("127.0.0.1", epmd_port)).close(),
            unless=(OSError,),
        )
        process = home.start(
            server, environment=environment, answers=lambda: _answer(port), unless=(OSError, amqp.AMQPError)
        )
        address = urlsplit(f"rabbit://guest:guest@127.0.0.1:{port}/")
        yield Broker(address, home.command(rabbitmqctl), environment), process


def _answer(port: int) -> None:
    with amqp.Connection(f"127.0.0.1:{port}", connect_timeout=CONNECT_TIMEOUT):
        """A connection that was opened, by guest, and is closed."""


def _environment(home: Home, port: int, node_port: int, epmd_port: int) -> dict[str, str]:
    """What the node and rabbitmqctl have to know; whatever this machine's own node is told is left out."""
    settings = {
        "NODENAME": "cellmw@localhost",
        "NODE_IP_ADDRESS": "127.0.0.1",
        "NODE_PORT": str(port),
        "DIST_PORT": str(node_port),
        "CONF_ENV_FILE": str(home.path / "rabbitmq-env.conf"),
        "CONFIG_FILE": str(home.write("rabbitmq.conf", "")),
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
