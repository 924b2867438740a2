# SPDX-License-Identifier: Apache-2.0
"""A paste ini and a configuration -> Nova's API as a process of its own, on loopback.

Beside Nova's own API the process has, at ``/by-context``, an app of the kind that cellmw is made for: it reads and
sends by the context that it gets, and knows of no cells.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from configparser import RawConfigParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import waitress

from tests.nova.deployment import CELLS_INI, write_paste_ini

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LISTENING = "TESTS_NOVA_LISTENING"
"""The variable by which the process is told its listening socket."""

THREADS = 4

PATIENCE = 60.0
"""Seconds that a process may take to begin, and to end."""


class Server:
    """A process with Nova's API. Lives until its ``end()``, or its block's."""

    def __init__(self, paste_ini: Path, config_file: Path) -> None:
        """Start it; what it logs is beside the ini.

        :param config_file: in the same folder
        """
        settings = {
            "OS_NOVA_DISABLE_EVENTLET_PATCHING": "true",
            "OS_NOVA_CONFIG_DIR": str(paste_ini.parent),
            "OS_NOVA_CONFIG_FILES": f"{paste_ini.name};{config_file.name}",
        }
        self._log = paste_ini.with_suffix(".log")
        # listening from here on: who connects before it is ready waits
        with socket.create_server(("127.0.0.1", 0)) as listening, self._log.open("a") as log:
            self.address: tuple[str, int] = listening.getsockname()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.nova.server"],
                cwd=Path(__file__).parents[2],
                env=os.environ | settings | {LISTENING: str(listening.fileno())},
                pass_fds=[listening.fileno()],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.pid = self._process.pid

    def wait(self) -> None:
        """Wait until it serves.

        :raises RuntimeError: if it has ended instead, or takes too long
        """
        host, port = self.address
        try:
            urllib.request.urlopen(f"http://{host}:{port}/", timeout=PATIENCE).close()
        except OSError as error:
            raise RuntimeError(f"process {self.pid} does not serve:\n{self._log.read_text()}") from error

    def end(self) -> int:
        """Tell it to end, wait until it has, and return its exit code."""
        self._process.terminate()
        return self._process.wait(PATIENCE)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def write_ini(file: Path, *, filtered: bool, by_context: Mapping[str, str]) -> None:
    """Write an ini as ``write_paste_ini`` does, with the app that goes by its context mounted beside Nova's.

    :param filtered: whether Nova's own pipelines have the filter; that of the app always has
    :param by_context: further options of the filter in front of that app
    """
    write_paste_ini(file, *[CELLS_INI] if filtered else [])
    ini = RawConfigParser()
    ini.read([file, CELLS_INI])
    ini["filter:cells_by_context"] = {**ini["filter:cells"], **by_context}
    *filters, _ = (name for name in ini["composite:probe"]["keystone"].split() if name != "cells")
    ini["composite:by_context"] = {
        "use": "call:nova.api.auth:pipeline_factory_v21",
        "keystone": " ".join([*filters, "cells_by_context", "by_context_app"]),
    }
    ini["app:by_context_app"] = {"paste.app_factory": "tests.nova.server:app_factory"}
    ini["composite:osapi_compute"]["/by-context"] = "by_context"
    with file.open("w") as opened:
        ini.write(opened)


class ByContext:
    """Shows an instance, and on POST asks its host, both by the context alone. Lives as long as the pipeline."""

    def __init__(self) -> None:
        # not on top: nova.wsgi wants to be the first of Nova in its process
        from nova import exception, objects
        from nova.compute import rpcapi

        self._instances = objects.Instance
        self._not_found = exception.InstanceNotFound
        self._compute = rpcapi.ComputeAPI()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        context = environ["nova.context"]
        try:
            instance = self._instances.get_by_uuid(context, environ["PATH_INFO"].rpartition("/")[2])
        except self._not_found:
            start_response("404 Not Found", [("Content-Length", "0")])
            return []
        answer = {"name": instance.display_name, "host": instance.host, "cell": context.cell_uuid}
        if environ["REQUEST_METHOD"] == "POST":
            answer["output"] = self._compute.get_console_output(context, instance, None)
        body = json.dumps(answer).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


def app_factory(global_conf: dict[str, Any], **local_conf: Any) -> WSGIApplication:
    """Make the application for PasteDeploy."""
    return ByContext()


def main() -> None:
    """Serve until SIGTERM; what is being answered then is answered."""
    from nova.wsgi import osapi_compute  # loads the pipeline

    listening = socket.socket(fileno=int(os.environ[LISTENING]))
    server = waitress.create_server(osapi_compute.application, sockets=[listening], threads=THREADS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    server.run()


if __name__ == "__main__":
    main()
