# SPDX-License-Identifier: Apache-2.0
"""A deployment as it is recorded -> a graph of it: what there is, what leads where, and whether it answers.

Of a URL only the place is in it: no user, no password. How the graph is drawn is said in ``drawing.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from oslo_messaging.notify import notifier

from cellmw import deploy, own_urls, urls
from cellmw.admin.access import open_cells
from cellmw.admin.asking import ask
from cellmw.admin.health import Health, ask_broker, in_time, probe
from cellmw.exceptions import CellMisconfigured, UrlRefused
from cellmw.queues.message_queue import open_transport

if TYPE_CHECKING:
    from oslo_config import cfg

    from cellmw.cell import Cell
    from cellmw.cells import Cells

API_LEVEL = "api"
"""The id of the node from which everything is reached."""

API_DATABASE = "api_database"

_NOTIFICATIONS = "oslo_messaging_notifications"


@dataclass(frozen=True)
class Node:
    """One thing of the deployment.

    :ivar kind: ``level``, ``cell``, ``database`` or ``bus``
    :ivar name: what it is called; of a database and a bus, what it is called at its server
    :ivar server: where it is; empty for what is at no server
    :ivar details: counts and the like, each in a few words
    :ivar marks: ``disabled``, ``drained``
    :ivar health: None where nobody has asked
    """

    id: str
    kind: str
    name: str
    server: str = ""
    details: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    health: Health | None = None

    @property
    def is_sick(self) -> bool:
        """Whether it is known not to answer."""
        return self.health is not None and self.health.answers is False


@dataclass(frozen=True)
class Edge:
    """What leads from one node to another.

    :ivar source: the id of the one
    :ivar target: the id of the other
    :ivar what: what the one has of the other
    """

    source: str
    target: str
    what: str


@dataclass
class Graph:
    """A deployment. Lives as long as the command. A node stands behind whatever leads to it.

    :ivar nodes: in the order in which they are drawn, the API level first
    :ivar edges: likewise; to each node but the first leads one
    """

    nodes: list[Node] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    _behind: dict[str, list[tuple[Edge, Node]]] = field(default_factory=dict, repr=False)

    def add(self, node: Node, leads_from: str = "", what: str = "") -> None:
        """Add a node, and what leads to it."""
        self.nodes.append(node)
        if leads_from:
            edge = Edge(leads_from, node.id, what)
            self.edges.append(edge)
            self._behind.setdefault(leads_from, []).append((edge, node))

    def behind(self, source: Node) -> list[tuple[Edge, Node]]:
        """Return what leads from this node, and where."""
        return self._behind.get(source.id, [])

    @property
    def servers(self) -> dict[tuple[str, str], list[Node]]:
        """Kind and place of each server -> the nodes that are there."""
        found: dict[tuple[str, str], list[Node]] = {}
        for node in self.nodes:
            if node.server:
                found.setdefault((node.kind, node.server), []).append(node)
        return found


def look(conf: cfg.ConfigOpts, patience: float, *, ask_them: bool = True) -> Graph:
    """Return the deployment as it is recorded now.

    :param patience: seconds after which what does not answer is given up
    :param ask_them: whether to ask everything whether it answers
    :raises StoreUnavailable: if the API database does not answer
    """
    with open_cells(conf) as cells:
        return _Look(conf, cells, patience, ask_them).graph


class _Look:
    """One look at a deployment."""

    def __init__(self, conf: cfg.ConfigOpts, cells: Cells, patience: float, ask_them: bool) -> None:
        self._conf = conf
        self._limits = deploy.limits(deploy.settings(conf))
        began = monotonic()
        every = cells.all()
        store_health = in_time(began)
        self._instances = cells.store.count_instances()
        self._hosts = cells.store.count_hosts()
        self._drained = {drained.cell_uuid for drained in cells.store.list_held().cells}
        buses = self._buses()
        self._health = probe(conf, every, self._limits, patience) if ask_them else {}
        of_buses = self._ask_buses(buses, patience) if ask_them else {}
        self.graph = Graph()
        self.graph.add(Node(API_LEVEL, "level", "API level"))
        server, name = _database(conf.api_database.connection)
        self.graph.add(
            Node(
                API_DATABASE,
                "database",
                name,
                server,
                details=tuple(self._without_cell({cell.id for cell in every})),
                health=store_health if ask_them else None,
            ),
            API_LEVEL,
            "API database",
        )
        for number, (what, url) in enumerate(buses.items()):
            server, name = _bus(url)
            self.graph.add(Node(f"bus_{number}", "bus", name, server, health=of_buses.get(what)), API_LEVEL, what)
        for cell in every:
            self._add(cell)

    def _buses(self) -> dict[str, str]:
        """Return the URLs of the API level's own buses, as far as they are configured."""
        own = own_urls.transport_url(self._conf)
        found = {"API bus": own} if own else {}
        self._conf.register_opts(notifier._notifier_opts, group=_NOTIFICATIONS)
        url = self._conf[_NOTIFICATIONS].transport_url
        return found | ({"bus for notifications": url} if url else {})

    def _ask_buses(self, buses: dict[str, str], patience: float) -> dict[str, Health]:
        questions: dict[str, Callable[[], Health]] = {what: partial(self._ask_bus, url) for what, url in buses.items()}
        answers = ask(questions, patience, self._limits.crew)
        return {
            what: Health(False, "does not answer in time") if isinstance(answer, Exception) else answer
            for what, answer in answers.items()
        }

    def _ask_bus(self, url: str) -> Health:
        try:
            transport = open_transport(self._conf, url, self._limits, [])
        except UrlRefused as refused:
            return Health(False, f"can't be used: {refused}")
        try:
            return ask_broker(transport)
        finally:
            transport.cleanup()

    def _without_cell(self, known: set[int]) -> list[str]:
        details = []
        if building := self._instances.get(None):
            details.append(f"{_many(building, 'instance')} without a cell yet")
        dangling = sum(count for key, count in self._instances.items() if key is not None and key not in known)
        if dangling:
            details.append(f"{_many(dangling, 'instance')} in cells that are not recorded")
        return details

    def _add(self, cell: Cell) -> None:
        marks = [
            mark for mark, is_so in (("disabled", cell.disabled), ("drained", cell.uuid in self._drained)) if is_so
        ]
        counts = (_many(self._instances.get(cell.id, 0), "instance"), _many(self._hosts.get(cell.id, 0), "host"))
        of_cell = f"cell_{cell.id}"
        self.graph.add(Node(of_cell, "cell", str(cell), details=counts, marks=tuple(marks)), API_LEVEL, "cell")
        health = self._health.get(cell)
        server, name = _place(cell.reveal_database_connection, _database)
        database = Node(f"database_{cell.id}", "database", name, server, health=health and health.database)
        self.graph.add(database, of_cell, "database")
        if cell.has_transport:
            server, name = _place(cell.reveal_transport_url, _bus)
            bus = Node(f"queue_{cell.id}", "bus", name, server, health=health and health.queue)
            self.graph.add(bus, of_cell, "bus")


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _place(reveal: Callable[[], str], of: Callable[[str], tuple[str, str]]) -> tuple[str, str]:
    try:
        return of(reveal())
    except CellMisconfigured:
        return "", "not known"


def _database(url: str) -> tuple[str, str]:
    """Return where a database is, and what it is called there."""
    try:
        backend, *place = urls.database_place(url)
    except UrlRefused:
        return "", "not known"
    if backend == "sqlite":
        return "", f"{urls.server_kind(backend)} {place[0]}"
    return f"{urls.server_kind(backend)} {urls.harmless(place[0])}:{place[1]}", urls.harmless(place[2] or "")


def _bus(url: str) -> tuple[str, str]:
    """Return where a message queue is, and what its virtual host is called."""
    try:
        places = sorted(urls.transport_place(url))
    except UrlRefused:
        return "", "not known"
    hosts = ", ".join(f"{urls.harmless(host)}:{port}" if port else urls.harmless(host) for host, port, _ in places)
    return hosts, places[0][2] if places else ""
