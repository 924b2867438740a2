# SPDX-License-Identifier: Apache-2.0
"""A socket of the test's own, which says what a broker would, or something else, or nothing."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from cellmw.queues.handshake import Address

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable


class Somebody:
    """Listens at a port and says one thing to whoever connects. Lives as long as its test.

    :ivar heard: what was said to it
    """

    def __init__(self, answer: bytes | Callable[[bytes], bytes] | None, tls: ssl.SSLContext | None = None) -> None:
        """Begin to listen.

        :param answer: what it says, to whatever or to this; None for nothing at all
        """
        self.heard = b""
        self._answer = answer
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    @property
    def address(self) -> Address:
        """Where it listens."""
        return Address("127.0.0.1", self._listener.getsockname()[1])

    def close(self) -> None:
        """Say nothing any more."""
        self._over.set()
        with suppress(OSError):
            socket.create_connection(self.address).close()
        self._thread.join()
        self._listener.close()

    def _listen(self) -> None:
        while not self._over.is_set():
            plain, _ = self._listener.accept()
            with plain, suppress(OSError), self._wrapped(plain) as connection:
                heard = connection.recv(100)
                self.heard += heard
                if self._answer is None:
                    self._over.wait()
                    continue
                answer = self._answer(heard) if callable(self._answer) else self._answer
                # in two parts, as a network may bring it
                connection.sendall(answer[:1])
                connection.sendall(answer[1:])

    def _wrapped(self, plain: socket.socket) -> socket.socket:
        return plain if self._tls is None else self._tls.wrap_socket(plain, server_side=True)
