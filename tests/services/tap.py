# SPDX-License-Identifier: Apache-2.0
"""A topic on a vhost -> what was sent to it, byte by byte, by a client that knows nothing of oslo.messaging."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote, urlsplit

import amqp


class Tap:
    """A queue that takes what is sent to a topic on a vhost. Lives as long as its test."""

    def __init__(self, url: str, topic: str) -> None:
        address = urlsplit(url)
        self._connection = amqp.Connection(
            f"{address.hostname}:{address.port}",
            userid=unquote(address.username or ""),
            password=unquote(address.password or ""),
            virtual_host=address.path[1:],
        )
        self._connection.connect()
        self._channel = self._connection.channel()
        self._channel.exchange_declare("openstack", "topic", durable=False, auto_delete=False)
        self._channel.queue_declare(topic, durable=False, auto_delete=False)
        self._channel.queue_bind(topic, "openstack", topic)
        self._topic = topic

    def next(self) -> tuple[dict[str, Any], dict[str, Any], str]:
        """Return the message that was sent first, its properties, and all of it as it went over the wire."""
        taken = self.take()
        assert taken is not None
        return taken

    def take(self) -> tuple[dict[str, Any], dict[str, Any], str] | None:
        """Return the same, None where nothing was sent: who has sent something is told when it is here."""
        message = self._channel.basic_get(self._topic, no_ack=True)
        if message is None:
            return None
        body = message.body if isinstance(message.body, str) else message.body.decode()
        whole = f"{body} {message.properties} {message.delivery_info}"
        return json.loads(json.loads(body)["oslo.message"]), message.properties, whole

    @property
    def is_empty(self) -> bool:
        """Whether nothing was sent."""
        return self.take() is None

    def close(self) -> None:
        """Hang up."""
        self._connection.close()
