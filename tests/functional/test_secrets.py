# SPDX-License-Identifier: Apache-2.0
"""No password of a URL is in anything that a service puts out: every place where one can be, every kind of output.

All passwords here have one word in them, which is then looked for. The net under the whole suite (``tests/leaks.py``)
sees what tests log, print and send; here is what it does not see: pickles, copies, the variables of frames.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
import logging
import pickle
import shutil
import traceback
import uuid
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oslo_messaging
import pytest
from oslo_serialization import jsonutils
from sqlalchemy import text

import cellmw
from cellmw import CellFilter, RequestContext, database, deploy, rpc
from cellmw.cell import CELL0_UUID
from cellmw.context import target
from tests.commands import exit_code_of
from tests.functional.conftest import PROJECT, Deployment, Exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _typeshed.wsgi import StartResponse

    from cellmw.cell import Cell

MARK = "zQ7mark"

TRANSPORT_URL = f"memory://own:{MARK}-default@own/?ssl_key_password={MARK}-default-query"

CONFIGURATION = """\
[DEFAULT]
transport_url = {transport_url}
[database]
connection = mysql+pymysql://own:{mark}-own-db@127.0.0.1:1/own?ssl_key_password={mark}-own-query
[api_database]
connection = {api_database}
[cellmw_database]
slave_connections = dead:postgresql+psycopg://r:{mark}-replica@127.0.0.1:1/db?sslpassword={mark}-replica-query
[cellmw]
shared_cache_secret = {mark}-shared-cache-secret-of-32-characters
instance_header_secret = {mark}-header-secret
request_deadline = 2
"""

DEAD = "127.0.0.1:1"

UNUSABLE = {
    "dead": {
        "transport_url": f"rabbit://a:{MARK}-1@{DEAD},b:{MARK}-2@{DEAD}/v?heartbeat_rate=2",
        "database_connection": f"postgresql+psycopg://u:{MARK}-4@{DEAD}/db?sslpassword={MARK}-5",
    },
    "dead too": {
        "transport_url": f"rabbit://a:{MARK}-1%40%3A%2B@{DEAD}/v2",
        "database_connection": f"mysql+pymysql://u:{MARK}%40%2Fb@{DEAD}/db",
    },
    "slash": {"transport_url": f"rabbit://a:{MARK}/x@h/"},
    "port": {"transport_url": f"rabbit://a:{MARK}@h:port/", "database_connection": f"mysql://a:{MARK}@h:port/x"},
    "option": {"transport_url": f"rabbit://a:{MARK}@h/?ssl_key_password={MARK}"},
    "type": {"transport_url": f"rabbit://a:{MARK}@h/?heartbeat_rate=often"},
    "driver": {"transport_url": f"no_such_driver://a:{MARK}@h/"},
    "dialect": {"database_connection": f"no_such_dialect://a:{MARK}@h/"},
    "not installed": {"database_connection": f"oracle+oracledb://a:{MARK}@h/"},
    "argument": {"database_connection": f"mysql+pymysql://a:{MARK}@{DEAD}/?no_such_argument={MARK}"},
    "no scheme": {"transport_url": f"//a:{MARK}@h", "database_connection": f"//a:{MARK}@h"},
    "bracket": {"transport_url": f"rabbit://a:{MARK}@[h/", "database_connection": f"mysql://a:{MARK}@[h/"},
    "unfilled": {"transport_url": f"{{scheme}}://{{username}}:{MARK}@{{hostname9}}/"},
    "own database": {"database_connection": "{scheme}://{username}:{password}@{hostname}:{port}/{path}"},
    "envelope": {"transport_url": "cellmw:v1:0000:nonsense"},
    "environment": {"transport_url": "env:CELLMW_TEST_URL", "database_connection": "env:CELLMW_TEST_URL"},
}
"""Cells that can't be opened, or that nobody answers in: all that an error could quote."""


def marked(*outputs: object) -> list[str]:
    """Return those of the outputs that show a password."""
    return [str(output) for output in outputs if MARK.lower() in str(output).lower()]


class World:
    """A service with a filter, whose every URL and secret has the mark in it. Lives as long as the module.

    :ivar conf: its configuration
    :ivar cell_filter: the filter, in front of an app that reads, sends and fails
    """

    def __init__(self, folder: Path) -> None:
        """Create the API database, and cells of which some can't be used."""
        self.deployment = deployment = Deployment(folder)
        self.configuration = folder / "cellmw.conf"
        self.configure(deployment.database_url("api"))
        self._add("cell0", transport_url="none:///", uuid=CELL0_UUID)
        self._add("cell1", transport_url=f"memory://user:{MARK}-cell1@cell1/?ssl_key_password={MARK}-query")
        self._add("template", transport_url="{scheme}://{username}:{password}@template/?{query}")
        for name, record in UNUSABLE.items():
            self._add(name, **record)
        self.cell_filter = CellFilter.factory(deployment.global_conf)(self._app)
        self.cells = self.cell_filter.cells
        self.conf = self.cell_filter.oslo_conf

    def configure(self, api_database: str) -> None:
        """Write the configuration file."""
        values = {"mark": MARK, "transport_url": TRANSPORT_URL, "api_database": api_database}
        self.configuration.write_text(CONFIGURATION.format(**values))

    def _add(self, name: str, **record: Any) -> None:
        urls = {
            "transport_url": f"memory://user:{MARK}-{name}@{name.replace(' ', '-')}/",
            "database_connection": self.deployment.database_url(name),
        }
        self.deployment.add_cell(name, **urls | record)

    def _app(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        context = environ["cellmw.context"]
        if environ["REQUEST_METHOD"] == "POST":
            rpc.ClientRouter(None, target=oslo_messaging.Target(topic="t")).client(context).cast(context, "x")
        with database.reader(context) as session:
            name = session.scalar(text("SELECT name FROM this_cell"))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(name).encode()]

    def cell(self, name: str) -> Cell:
        """Return a cell as the service has it."""
        return self.cells.get(name)

    def close(self) -> None:
        """Close everything."""
        self.cell_filter.close()
        self.deployment.store.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The service."""
    with closing(World(tmp_path_factory.mktemp("secrets"))) as world:
        yield world


@pytest.fixture(scope="module")
def contexts(world: World) -> Iterator[dict[str, RequestContext]]:
    """A context that is aimed at cell1, and was used, and one that is aimed at a cell of which nothing answers."""
    with ExitStack() as leases:
        made = {}
        for name in ("cell1", "dead", "cell0"):
            made[name] = RequestContext(project_id=PROJECT, overwrite=False)
            target(made[name], leases.enter_context(world.cells.lease(world.cell(name).id)))
        with database.reader(made["cell1"]) as session:
            session.execute(text("SELECT name FROM this_cell"))
        yield made


TARGET = oslo_messaging.Target(topic="t")

OF_THE_SERVICE: dict[str, Callable[[World], Any]] = {
    "Cell": lambda world: world.cell("cell1"),
    "Cell, recorded": lambda world: world.deployment.store.list_cells(),
    "Cell, filled in": lambda world: world.cell("template"),
    "Cell, not resolved": lambda world: world.cell("environment"),
    "Cells": lambda world: world.cells,
    "CellFilter": lambda world: world.cell_filter,
    "Pool": lambda world: world.cells._pool,
    "Records": lambda world: world.cells._records,
    "Mappings": lambda world: world.cells.mappings,
    "Mapping": lambda world: world.cells.locate(world.deployment.map("cell1")),
    "Store": lambda world: world.cells._store,
    "the store's engine": lambda world: world.deployment.store.engine,
}

OF_A_CELL: dict[str, Callable[[RequestContext], Any]] = {
    "context": lambda context: context,
    "to_dict": lambda context: context.to_dict(),
    "a message's context": lambda context: rpc.ContextSerializer().serialize_context(context),
    "Lease": lambda context: context.db_connection._lease,
    "Handles": lambda context: context.db_connection._lease.handles,
    "CellQueue": lambda context: context.db_connection._lease.handles.queue,
    "CellDatabase": lambda context: context.db_connection._lease.handles.database,
    "transport": lambda context: context.db_connection._lease.handles.transport,
    "DatabaseView": lambda context: context.db_connection,
    "reader": lambda context: context.db_connection.reader,
    "factory": lambda context: context.db_connection._factory,
    "engine": lambda context: context.db_connection._factory.get_writer_engine(),
    "the replica's engine": lambda context: context.db_connection._factory.get_reader_engine(),
    "the pool's engine": lambda context: context.db_connection._lease.handles.engine,
    "pool": lambda context: context.db_connection._lease.handles.engine.pool,
    "the engine's URL": lambda context: str(context.db_connection._lease.handles.engine.url),
    "sessionmaker": lambda context: context.db_connection._factory.get_writer_maker(),
    "session": lambda context: context.db_connection._factory.get_writer_maker()(),
    "TransportView": lambda context: context.mq_connection,
    "RPC client": lambda context: rpc.ClientRouter(None, target=TARGET).client(context),
}


def attributes(it: Any) -> dict[str, Any]:
    """Return what ``vars()``, ``asdict()`` and a look into the slots show of an object of ours."""
    if not type(it).__module__.startswith("cellmw"):
        return {}
    if dataclasses.is_dataclass(it):
        return dataclasses.asdict(it)
    slots = [name for kind in type(it).__mro__ for name in getattr(kind, "__slots__", ()) if hasattr(it, name)]
    return {name: getattr(it, name) for name in slots} | getattr(it, "__dict__", {})


def shown(it: Any) -> list[str]:
    """Return all texts of an object, and what becomes of it in a pickle, in a copy and in JSON."""
    shown = [repr(it), str(it), f"{it}", f"{it!s:>9}", repr(attributes(it))]
    shown += [str(value) for value in attributes(it).values()]
    with contextlib.suppress(Exception):  # many can't be pickled or copied, on purpose or not
        shown.append(pickle.dumps(it).decode("latin-1"))
    with contextlib.suppress(Exception):
        shown.append(repr(copy.deepcopy(it)))
    with contextlib.suppress(Exception):
        shown.append(json.dumps(jsonutils.to_primitive(it, fallback=repr)))
    with contextlib.suppress(Exception):
        shown.append(jsonutils.dumps(it, default=repr))
    return shown


@pytest.mark.parametrize("it", OF_THE_SERVICE)
def test_objects_of_the_service(world: World, it: str) -> None:
    """Nothing that shows an object of the service shows a password."""
    assert not marked(*shown(OF_THE_SERVICE[it](world)))


@pytest.mark.parametrize("cell", ["cell1", "dead"])
@pytest.mark.parametrize("it", OF_A_CELL)
def test_objects_of_a_cell(contexts: dict[str, RequestContext], it: str, cell: str) -> None:
    """Nor does what shows an object that a request gets, or that is reachable from there."""
    assert not marked(*shown(OF_A_CELL[it](contexts[cell])))


def test_settings(world: World) -> None:
    """The options as cellmw has read them show no secret."""
    settings = deploy.settings(world.conf)
    assert not marked(repr(settings), str(settings))


def test_options_in_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What oslo.config logs of all options at the start of a service shows no secret."""
    with caplog.at_level(logging.DEBUG):
        world.conf.log_opt_values(logging.getLogger(__name__), logging.DEBUG)
    for option in ("slave_connections", "shared_cache_secret", "instance_header_secret", "api_database.connection"):
        assert option in caplog.text
    assert not marked(caplog.text)


def raised(do: Callable[[], Any]) -> BaseException | None:
    """Return what this raises."""
    try:
        do()
    except Exception as error:  # noqa: BLE001 - whatever it is
        return error
    return None


def chain(error: BaseException) -> Iterator[BaseException]:
    """Go through what a debugger finds behind an error, what a traceback does not show included."""
    waiting = [error]
    for each in waiting:
        yield each
        waiting += [other for other in (each.__cause__, each.__context__) if other and other not in waiting]


def texts_of(error: BaseException) -> list[str]:
    """Return what is shown of an error of ours, and of what a traceback shows as what led to it."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    of_cause = [line for line in lines if MARK in line and not line.startswith("    ")]  # no source code
    return [str(error), repr(error), repr(error.args), repr(vars(error)), repr(pickle.dumps(error)), *of_cause]


@pytest.mark.parametrize("cell", UNUSABLE)
def test_errors(world: World, cell: str) -> None:
    """The error of a cell that can't be used, or does not answer, says so without any part of a URL."""

    def use() -> None:
        with world.cells.target(RequestContext(overwrite=False), world.cell(cell)) as context:
            error = raised(lambda: rpc.ClientRouter(None, target=TARGET).client(context).cast(context, "x"))
            assert error is None or not marked(*texts_of(error))
            with database.reader(context) as session:
                session.execute(text("SELECT 1"))

    error = raised(use)
    assert error is not None
    assert not marked(*texts_of(error))


PACKAGE = Path(cellmw.__file__).parent

OPENING = {
    "cell_database.py:_source:url",
    "engines.py:make_engine:url",
    "handles.py:open:replica",
    "handles.py:open:transport_url",
    "queues/message_queue.py:open_transport:parsed",
    "queues/message_queue.py:open_transport:url",
}
"""Whoever opens something has its URL in hand: the files, functions and variables in which it is."""

CONNECTING = {"bounds.py:_connect:named", "bounds.py:<lambda>:named"}
"""Who hands the password to the database's driver."""


def locals_of_ours(error: BaseException) -> set[str]:
    """Return the functions of ours in whose frames a traceback with variables shows a password, and in which one."""
    return {
        f"{Path(frame.filename).relative_to(PACKAGE)}:{frame.name}:{name}"
        for each in chain(error)
        for frame in traceback.TracebackException.from_exception(each, capture_locals=True).stack
        if Path(frame.filename).is_relative_to(PACKAGE)
        for name, value in (frame.locals or {}).items()
        if MARK in value
    }


def test_variables(world: World) -> None:
    """A traceback with the variables of its frames, which nobody logs, shows a URL in those frames that open it."""
    errors = [raised(lambda: world.cells.lease(world.cell(cell).id).release()) for cell in UNUSABLE]  # noqa: B023
    assert any(errors)
    assert {each for error in errors if error is not None for each in locals_of_ours(error)} <= OPENING


def test_variables_of_a_request(world: World, contexts: dict[str, RequestContext]) -> None:
    """Once a cell is open no frame of ours but that which connects has its password, whatever goes wrong."""

    def read() -> None:
        with database.reader(contexts["dead"]) as session:
            session.execute(text("SELECT 1"))

    def write() -> None:
        with database.writer(contexts["cell1"]) as session:
            session.execute(text("no SQL"))

    client = rpc.ClientRouter(None, target=TARGET).client(contexts["dead"])
    cast = functools.partial(client.cast, contexts["dead"], "x")
    call = functools.partial(client.call, contexts["dead"], "x")
    errors = [raised(do) for do in (read, write, cast, call)]
    assert None not in errors
    for error in errors:
        assert locals_of_ours(error) <= CONNECTING
        assert not marked(*texts_of(error))


OUTCOMES = ["cell1", "cell0", "template", "unknown", *UNUSABLE]


@pytest.mark.parametrize("roles", ["member", "admin"])
@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_answers(world: World, outcome: str, roles: str, method: str) -> None:
    """No answer shows a password: status, headers and body, to anybody."""
    instance_uuid = str(uuid.uuid4())
    if outcome != "unknown":
        instance_uuid = world.deployment.map(outcome)
    request = Exchange(f"/servers/{instance_uuid}", method=method, headers={"HTTP_X_ROLES": roles})
    error = raised(lambda: request.fetch(world.cell_filter))
    content = request.body if isinstance(request.body, list) else []
    assert not marked(request.status, request.headers, *content, *(texts_of(error) if error else ()))


def test_message(world: World, contexts: dict[str, RequestContext], monkeypatch: pytest.MonkeyPatch) -> None:
    """No message shows a password, be it about cells and handles, and with a context that has them."""
    context = contexts["cell1"]
    driver = context.mq_connection._driver
    sent: list[Any] = []
    monkeypatch.setattr(driver, "send", lambda *args, **kwargs: sent.append((args[1:], kwargs)))
    client = rpc.ClientRouter(None, target=TARGET).client(context)
    things = {"cell": world.cell("dead"), "lease": context.db_connection._lease, "view": context.db_connection}
    for name, thing in things.items():
        with contextlib.suppress(Exception):  # not everything can be sent
            client.cast(context, "x", **{name: jsonutils.to_primitive(thing, fallback=repr)})
        with contextlib.suppress(Exception):
            client.cast(context, "x", **{name: thing})
    assert sent
    assert not marked(*sent)


# The commands

MYSQL = f"mysql+pymysql://u:{MARK}-new@db/new?ssl_key_password={MARK}-new-query"
RABBIT = f"rabbit://a:{MARK}-new@h1,b:{MARK}-new2@h2/new"

COMMANDS = {
    "sync": "api_db sync",
    "version": "api_db version",
    "list": "cell_v2 list_cells",
    "list verbose": "cell_v2 list_cells --verbose -f json",
    "create": f"cell_v2 create_cell --name new --transport-url {RABBIT} --database_connection {MYSQL} --verbose",
    "create again": f"cell_v2 create_cell --transport-url {RABBIT} --database_connection {MYSQL}",
    "create unreadable": f"cell_v2 create_cell --transport-url rabbit://a:{MARK}/x@h/ --database_connection {MYSQL}",
    "create unreadable database": f"cell_v2 create_cell --database_connection mysql://a:{MARK}@[h/",
    "create by default": "cell_v2 create_cell",
    "create template": f"cell_v2 create_cell --transport-url rabbit://{{username}}:{MARK}@{{hostname7}}/",
    "create no driver": f"cell_v2 create_cell --transport-url no_such_driver://a:{MARK}@h/",
    "map cell0": "cell_v2 map_cell0",
    "map cell0 unreadable": f"cell_v2 map_cell0 --database_connection mysql://a:{MARK}@b@c/x",
    "delete": "cell_v2 delete_cell --cell_uuid {cell}",
    "export": "cell_v2 export {folder}/cells.json --force",
    "export yaml": "cell_v2 export {folder}/cells.yaml",
    "export nowhere": "cell_v2 export {folder}/none/cells.yaml",
    "import": "cell_v2 import {folder}/cells.json",
    "import broken": "cell_v2 import {folder}/broken.json",
    "import dry": "cell_v2 import {folder}/cells.json --dry-run",
    "setup": "credential setup",
    "rotate": "credential rotate",
    "reencrypt": "credential reencrypt",
    "reencrypt back": "credential reencrypt --decrypt",
    "unknown option": f"cell_v2 create_cell --transport_uri {RABBIT}",
    "unknown argument": f"cell_v2 list_cells {RABBIT}",
    "unknown command": f"cell_v2 {RABBIT}",
    "unknown option in front": f"--transport-url {RABBIT} cell_v2 list_cells",
    "unknown word in front": f"{RABBIT} cell_v2 list_cells",
}


@pytest.fixture(scope="module")
def manage(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., object]:
    """Run a command and return its exit code, on an API database with the same cells."""
    folder = tmp_path_factory.mktemp("commands")
    shutil.copy(world.deployment.file("api"), folder / "api.sqlite")
    deployment_file = folder / "cellmw.conf"
    configuration = world.configuration.read_text().replace(
        str(world.deployment.file("api")), str(folder / "api.sqlite")
    )
    deployment_file.write_text(f"{configuration}credential_keys = {folder}/keys\n")
    (folder / "broken.json").write_text(json.dumps({"cells": [{"name": "x", "transport_url": f"a:{MARK}@h", "x": 1}]}))
    (folder / "cells.json").write_text(json.dumps({"cells": []}))
    cell = world.cell("cell1").uuid

    def run(command: str, *options: str) -> object:
        arguments = command.replace("{folder}", str(folder)).replace("{cell}", cell).split()
        return exit_code_of([*options, "--config-file", str(deployment_file), *arguments])

    return run


@pytest.mark.usefixtures("logging_as_it_was")
@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
@pytest.mark.parametrize("command", COMMANDS)
def test_commands(
    manage: Callable[..., object], command: str, down: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """No command prints a password, with --debug neither, in success or failure."""
    options = ["--debug"]
    if down:
        (tmp_path / "down.conf").write_text(
            f"[api_database]\nconnection = mysql+pymysql://a:{MARK}-api@{DEAD}/api?ssl_key_password={MARK}-api-query\n"
        )
    code = manage(COMMANDS[command], *options, *(["--config-file", str(tmp_path / "down.conf")] if down else []))
    printed = capsys.readouterr()
    assert code == 0 or printed.err
    assert not marked(printed.out, printed.err)
