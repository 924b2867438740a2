# SPDX-License-Identifier: Apache-2.0
"""Neutron and Placement as far as Nova asks them here: no ports, no security groups, nothing allocated."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Nothing(BaseHTTPRequestHandler):
    """Answers that there is nothing of what was asked for."""

    protocol_version = "HTTP/1.1"
    # an answer leaves in two parts, of which the second would wait until the first is acknowledged
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path == "/":
            return self._answer(200, json.dumps({"versions": [self._version()]}).encode())
        collection = self.path.partition("?")[0].removesuffix(".json").rpartition("/")[2].replace("-", "_")
        return self._answer(200, json.dumps({collection: []}).encode())

    def _version(self) -> dict[str, object]:
        """Describe every API that was asked for at once."""
        here = f"http://{self.headers['Host']}/"
        return {
            "id": "v2.0",
            "status": "CURRENT",
            "min_version": "1.0",
            "max_version": "1.99",
            "links": [{"rel": "self", "href": here}],
        }

    def do_DELETE(self) -> None:
        self._answer(204)

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Keep quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # keep-alive connections are Nova's to close


@contextlib.contextmanager
def serve() -> Iterator[str]:
    """Serve on loopback; the URL."""
    with _Server(("127.0.0.1", 0), _Nothing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
