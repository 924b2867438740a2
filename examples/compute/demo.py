# SPDX-License-Identifier: Apache-2.0
"""Sends real HTTP requests to a compute service with two cells, and prints which cell each of them reached.

python -m examples.compute.demo             # exits non-zero if one went to the wrong cell, or a lease stayed open
python -m examples.compute.demo --serve     # leaves the service running, for curl

It runs in one process, out of a temporary folder. Where API_DB, CELL0_DB, CELL1_DB or CELL2_DB name a database in the
environment, or CELL1_MQ or CELL2_MQ a queue, it uses these, and runs the API and the workers as processes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import sys
import tempfile
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from examples.compute.deployment import Deployment
from examples.compute.places import CELLS, Places, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PROJECT = "demo"
SERVERS = "/v2.1/servers"
UNKNOWN = "ffffffff-ffff-4fff-8fff-ffffffffffff"
FLAVORS = {"web-1": "small", "web-2": "small", "giant": "too-big"}
"""Name -> flavor of the instances that the demo creates first."""


class Answer(NamedTuple):
    """What came back over the socket."""

    status: int
    text: str

    @property
    def json(self) -> Any:
        """The body, or an empty dict where it is no JSON."""
        try:
            return json.loads(self.text)
        except ValueError:
            return {}

    @property
    def instance_name(self) -> str:
        """The name of the instance that it shows, which tells from which database it came; empty if it shows none."""
        if self.text.startswith("{"):
            return self.json.get("server", {}).get("name", "")
        return self.text.partition(" ")[0]


class Client:
    """An HTTP client of one project. Lives as long as the demo."""

    def __init__(self, url: str, project: str) -> None:
        self._address = urlsplit(url).netloc
        self._headers = {"X-Project-Id": project, "X-User-Id": f"user-of-{project}", "Content-Type": "application/json"}

    def send(self, method: str, path: str, body: object = None) -> Answer:
        """Send a request and read the whole answer."""
        with closing(http.client.HTTPConnection(self._address, timeout=30)) as connection:
            connection.request(method, path, None if body is None else json.dumps(body), self._headers)
            with connection.getresponse() as response:
                return Answer(response.status, response.read().decode())

    def begin(self, path: str, size: int, meanwhile: Callable[[], None]) -> Answer:
        """Send a request, read the answer's first bytes, do something, and hang up."""
        with closing(http.client.HTTPConnection(self._address, timeout=30)) as connection:
            connection.request("GET", path, headers=self._headers)
            with connection.getresponse() as response:
                answer = Answer(response.status, response.read(size).decode())
                meanwhile()
                return answer


class Line(NamedTuple):
    """A line of the table that the demo prints."""

    request: str
    status: str
    cell: str
    database: str
    queue: str


class Tour:
    """The requests of the demo, one after the other, each checked from outside. Lives as long as the demo.

    :ivar lines: what happened
    :ivar problems: what should not have happened
    """

    def __init__(self, deployment: Deployment) -> None:
        self.lines: list[Line] = []
        self.problems: list[str] = []
        self.deployment = deployment
        self._client = Client(deployment.api.url, PROJECT)
        self._stranger = Client(deployment.api.url, "another-project")
        self._homes: dict[str, str] = {}
        self._messages = 0

    def take(self) -> None:
        """Send all requests."""
        uuids = {name: self.create(name, flavor) for name, flavor in FLAVORS.items()}
        self._expect("instances were built in", {self._homes[uuids["web-1"]], self._homes[uuids["web-2"]]}, set(CELLS))
        self._expect("the failed build is in", self._homes[uuids["giant"]], "cell0")
        self.list_servers("list by name", f"{SERVERS}?sort_key=name&sort_dir=asc", ["giant", "web-1", "web-2"])
        behind = self.list_servers("list the first two", f"{SERVERS}?sort_key=name&limit=2", ["web-2", "web-1"])
        self.list_servers("list the next two", behind, ["giant"])
        for name in ("web-1", "web-2"):
            self.visit(f"show {name}", "GET", uuids[name])
            self.visit(f"reboot {name}", "POST", uuids[name], "/action", body={"reboot": {}}, status=202, sends=True)
            self.visit(f"stream {name}", "GET", uuids[name], "/console?lines=50")
        self.visit("show giant", "GET", uuids["giant"])
        self.visit("reboot giant", "POST", uuids["giant"], "/action", body={"reboot": {}}, status=409)
        self.hang_up("hang up on web-1", uuids["web-1"])
        self.visit("delete web-2", "DELETE", uuids["web-2"], status=204, sends=True)
        self.visit("delete giant", "DELETE", uuids["giant"], status=204)
        self.visit("show web-2 again", "GET", uuids["web-2"], status=404)
        self.visit("show an unknown one", "GET", UNKNOWN, status=404)
        self.visit("show another project's", "GET", uuids["web-1"], status=404, client=self._stranger)
        self.list_servers("list what is left", SERVERS, ["web-1"])
        self.list_servers("list another project's", SERVERS, [], client=self._stranger)

    def create(self, name: str, flavor: str) -> str:
        """Create an instance, learn from the databases where it went, and put decoys into all others."""
        before = self.deployment.databases.rows()
        answer = self._client.send("POST", SERVERS, {"server": {"name": name, "flavor": flavor}})
        if answer.status != 202:
            raise RuntimeError(f"create {name}: {answer.status} {answer.text}")
        instance_uuid = answer.json["server"]["id"]
        queues = self._carried(1 if flavor != "too-big" else 0)
        cells = self._changed(before)
        self._expect(f"create {name}: databases that it was written to", len(cells), 1)
        home = self._homes[instance_uuid] = cells[0]
        self._expect(f"create {name}: queue", queues, [home] if flavor != "too-big" else [])
        self._note(f"create {name}", "POST", SERVERS, answer, instance_uuid, cells, queues)
        self.deployment.databases.plant_decoys(instance_uuid)
        return instance_uuid

    def visit(
        self,
        what: str,
        method: str,
        instance_uuid: str,
        rest: str = "",
        *,
        body: object = None,
        status: int = 200,
        sends: bool = False,
        client: Client | None = None,
    ) -> None:
        """Send a request for one instance, and see in all databases and queues what it did."""
        before = self.deployment.databases.rows()
        path = f"{SERVERS}/{instance_uuid}{rest}"
        answer = (client or self._client).send(method, path, body)
        queues = self._carried(1 if sends else 0)
        shown = self.deployment.databases.holding(instance_uuid, answer.instance_name)
        databases = sorted({*shown, *self._changed(before)})
        home = self._homes.get(instance_uuid)
        self._expect(f"{what}: status", answer.status, status)
        self._expect(f"{what}: database", databases, [home] if status < 400 else [])
        self._expect(f"{what}: queue", queues, [home] if sends else [])
        # what a stranger asks for has no cell, for all that the stranger is told
        self._note(what, method, path, answer, None if client else instance_uuid, databases, queues)

    def list_servers(self, what: str, path: str, names: list[str], *, client: Client | None = None) -> str:
        """Ask for a list, see in all databases where the instances are that it names, and return the next page's path.

        :param names: what it has to name, in this order
        """
        answer = (client or self._client).send("GET", path)
        servers = answer.json.get("servers", [])
        homes = [self.deployment.databases.holding(server["id"], server["name"]) for server in servers]
        self._expect(f"{what}: status", answer.status, 200)
        self._expect(f"{what}: order", ", ".join(server["name"] for server in servers), ", ".join(names))
        self._expect(f"{what}: databases", homes, [[self._homes.get(server["id"])] for server in servers])
        self._note(what, "GET", path, answer, None, sorted({cell for cells in homes for cell in cells}), [])
        links = [urlsplit(link["href"]) for link in answer.json.get("servers_links", [])]
        return next((f"{link.path}?{link.query}" for link in links), SERVERS)

    def hang_up(self, what: str, instance_uuid: str) -> None:
        """Begin to read a stream that would go on for hours, leave, and see that the lease is given back."""
        path = f"{SERVERS}/{instance_uuid}/console?lines=1000000"
        meanwhile: list[int] = []
        answer = self._client.begin(path, 20_000, lambda: meanwhile.append(self.deployment.api.leases()))
        databases = self.deployment.databases.holding(instance_uuid, answer.instance_name)
        self._expect(f"{what}: status", answer.status, 200)
        self._expect(f"{what}: database", databases, [self._homes[instance_uuid]])
        self._expect(f"{what}: leases while it was read", meanwhile, [1])
        self._expect(f"{what}: lease given back", _comes_true(lambda: self.deployment.api.leases() == 0), True)
        self._note(what, "GET", path, answer, instance_uuid, databases, [])

    def check_leases(self) -> None:
        """See that nothing is leased, now that no request is under way."""
        self._expect("leases still open at the end", self.deployment.api.leases(), 0)

    def check_messages(self) -> None:
        """See that no message came that nobody had asked for, now that all workers have ended."""
        self._expect("messages that came late", [*self.deployment.queues.wait(self._messages, 0)], [])

    def _carried(self, expected: int) -> list[str]:
        messages = self.deployment.queues.wait(self._messages, expected)
        self._messages += len(messages)
        return [message.queue for message in messages]

    def _changed(self, before: dict[str, Any]) -> list[str]:
        return [cell for cell, rows in self.deployment.databases.rows().items() if rows != before[cell]]

    def _expect(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            self.problems.append(f"{what}: {_text(found)}, and not {_text(expected)}")

    def _note(
        self,
        what: str,
        method: str,
        path: str,
        answer: Answer,
        instance_uuid: str | None,
        databases: list[str],
        queues: list[str],
    ) -> None:
        cell = self.deployment.databases.mapped(instance_uuid) if instance_uuid else None
        if instance_uuid:
            self._expect(f"{what}: cell that it is mapped to", cell, self._homes.get(instance_uuid))
        request = f"{what:<23} {method:<6} {_shortened(path)}"
        self.lines.append(Line(request, str(answer.status), _text(cell), _text(databases), _text(queues)))


def _text(value: object) -> str:
    if isinstance(value, list | set):
        return " ".join(sorted(map(str, value))) or "-"
    return "-" if value is None else str(value)


def _shortened(path: str) -> str:
    path = re.sub("(cursor=)[^&]+", r"\1..", path)
    return "/".join(part if len(part) != len(UNKNOWN) else f"{part[:8]}.." for part in path.split("/"))


def _comes_true(condition: Callable[[], bool], timeout: float = 10.0) -> bool:
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def _print_table(lines: Sequence[Line]) -> None:
    table = [Line("request", "status", "cell", "database", "queue"), *lines]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    table.insert(1, Line(*("-" * width for width in widths)))
    for line in table:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def show(deployment: Deployment) -> int:
    """Take the tour, and print what happened and what should not have.

    :returns: 0 if everything was as it should be
    """
    with deployment:
        tour = Tour(deployment)
        tour.take()
        deployment.api.stop_serving()
        tour.check_leases()
    tour.check_messages()
    _print_table(tour.lines)
    for problem in tour.problems:
        print(f"WRONG: {problem}", file=sys.stderr)
    return 1 if tour.problems else 0


def serve(deployment: Deployment) -> int:
    """Create some instances and leave the service running until Ctrl-C."""
    with deployment, suppress(KeyboardInterrupt):
        _create_and_tell(deployment)
        threading.Event().wait()
    return 0


def _create_and_tell(deployment: Deployment) -> None:
    client = Client(deployment.api.url, PROJECT)
    print(f"The compute API is at {deployment.api.url}{SERVERS}. Ctrl-C ends it.\n")
    for name, flavor in FLAVORS.items():
        answer = client.send("POST", SERVERS, {"server": {"name": name, "flavor": flavor}})
        instance_uuid = answer.json["server"]["id"]
        url = f"{deployment.api.url}{SERVERS}/{instance_uuid}"
        print(f"# {name}, in {deployment.databases.mapped(instance_uuid)}")
        print(f"curl -s -H 'X-Project-Id: {PROJECT}' {url}")
        print(f"curl -s -H 'X-Project-Id: {PROJECT}' {url}/action -d '{json.dumps({'reboot': {}})}'", flush=True)
    print("# all of them, by their names")
    print(
        f"curl -s -H 'X-Project-Id: {PROJECT}' '{deployment.api.url}{SERVERS}?sort_key=name&sort_dir=asc'", flush=True
    )


def main(arguments: list[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Run the demo.

    :returns: 0 if every request reached its own cell and nothing was left open, 1 if not, 2 if it was not tried
    """
    parser = argparse.ArgumentParser(prog="python -m examples.compute.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--serve", action="store_true", help="leave the service running, for curl")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="cellmw-demo-") as folder:
        try:
            deployment = Deployment(Path(folder), Places.choose(environ, Path(folder)))
            return serve(deployment) if options.serve else show(deployment)
        except Refused as refused:
            print(refused, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
