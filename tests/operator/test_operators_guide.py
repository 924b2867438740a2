# SPDX-License-Identifier: Apache-2.0
"""The operator's guide, walked through: each chapter's commands, as they are printed, in a deployment of its own.

The cells are in MariaDB and PostgreSQL, with a RabbitMQ vhost each, and have the tables that Nova has, with some rows.
A service behind the filter is asked where the page says what becomes of requests. :data:`SUBSTITUTES` are for commands
of programs and hosts that are not here; everything else is what a reader would run.
"""

from __future__ import annotations

import datetime
import json
import re
import secrets
import shlex
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import oslo_messaging
import pytest
import sqlalchemy as sa
from oslo_config import cfg
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from cellmw import CellFilter, database, rpc
from cellmw.cell import CELL0_UUID
from cellmw.cmd.manage import Manage
from cellmw.credentials import Credentials, KeyRepository
from cellmw.engines import make_engine
from cellmw.store import Store, migrations, models
from tests.conftest import found
from tests.nova_cell import compute_nodes, instances, metadata, services
from tests.operator.walkthrough import Chapter, PageBroken, Shell, read
from tests.servers import ServerMissing, mariadb_database, postgresql_database, private_mariadb, private_postgresql
from tests.servers.addresses import administration
from tests.servers.private import program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers import Broker

PAGE = Path(__file__).parents[2] / "doc/source/operators-guide.rst"

INTRODUCTION, *CHAPTERS = read(PAGE.read_text())

PROGRAMS = {"curl": "curl", "mariadb": "mariadb", "mariadb-dump": "mariadb", "psql": "postgresql"}
"""What the page uses that has to be installed -> what brings it."""

SUBSTITUTES = {
    "nova-manage": '[ "$*" = "--config-file nova-cell2.conf db sync --local_cell" ] && psql -q -f tables.sql "$CELL2"',
    # there is one host: what is copied has to be there
    "rsync": '[ "$1" = "-a" ] && [ -d "$2" ]',
    # the servers of other hosts are the test's own
    "ssh": '[ "$*" = "db2.example.org systemctl restart postgresql" ] && curl -sf "$API/restart"',
}
"""Programs that are not here -> what is done in their place, as a shell script."""

BEGINS_WITH = {
    "The first cell": 0,
    "Adding a cell": 1,
    "Moving a database": 2,
    "Rotating credentials": 2,
    "When a cell fails": 2,
    "Repairing mappings": 2,
}
"""How many cells there are, besides cell0, at the beginning of a chapter."""

PROJECT = "0f6c1a52e2f44d2b9f4c0e0b7a2d9c11"

TOKEN = "token-of-an-admin"

UUIDS = {
    "cell0": CELL0_UUID,
    "cell1": "5a1d0c52-7c0e-4a53-9f6e-0f6d3c1b2a11",
    "cell2": "b2f4c3de-6a1b-4d0f-8e57-9c2d4e6f8a22",
}

INSTANCES = {
    "cell1": [f"0c8a4e6b-2f15-4d7e-9a3c-6b1f0e2d4c5{digit}" for digit in "abc"],
    "cell2": [f"7e5d3b1a-9c24-4f68-8d0e-1a2b3c4d5e6{digit}" for digit in "abc"],
}

NOWHERE = "dddddddd-2f15-4d7e-9a3c-6b1f0e2d4c5d"
"""What is mapped, and in no cell."""

URLS = {
    "cell0": ("none:///", "mysql+pymysql://nova_db:DB-PASSWORD@db1.example.org/nova_cell0"),
    "cell1": (
        "rabbit://nova_mq:MQ-PASSWORD@mq1.example.org/nova-cell1",
        "mysql+pymysql://nova_db:DB-PASSWORD@db1.example.org/nova_cell1",
    ),
    "cell2": (
        "rabbit://nova_mq:MQ-PASSWORD@mq2.example.org/nova-cell2",
        "postgresql+psycopg://nova_db:DB-PASSWORD@db2.example.org/nova_cell2",
    ),
}
"""As they are recorded, in the words of the page."""

LONG_AGO = datetime.datetime(2026, 1, 1)


class Servers:
    """Users, databases and vhosts on the servers, and what the page calls them. Lives as long as the test.

    :ivar names: what the page calls something -> what it is called here
    """

    def __init__(self, opened: ExitStack) -> None:
        """Make up the names.

        :param opened: drops all that is made
        """
        self._opened = opened
        self._has_broker = False
        self._here = f"cm{secrets.token_hex(5)}"
        self.names = {name: f"{self._here}_{name}" for name in ("nova_db", "nova_db_b", "nova_mq", "nova_mq_b")}
        for name in ("DB-PASSWORD", "MQ-PASSWORD", "NEW-DB-PASSWORD", "NEW-MQ-PASSWORD"):
            self.names[name] = secrets.token_hex(12)

    def url(self, url: str) -> str:
        """Return a URL of the page as it is here."""
        return Shell(Path(), self.names, {}).here(url)

    def add_mariadb(self, server: sa.URL, host: str, *databases: str) -> None:
        """Let the server be the page's host, with these databases and a user for them."""
        self._add_user(server, host, "USER", "IDENTIFIED BY")
        for name in databases:
            real = self._add_database(host, name, self._opened.enter_context(mariadb_database(server)))
            execute(server, f"GRANT ALL ON {real}.* TO {self.names['nova_db']}")

    def add_postgresql(self, server: sa.URL, host: str, name: str) -> None:
        """Let the server be the page's host, with this database and a user who owns it."""
        self._add_user(server, host, "ROLE", "LOGIN PASSWORD")
        real = self._add_database(host, name, self._opened.enter_context(postgresql_database(server)))
        execute(server, f"ALTER DATABASE {real} OWNER TO {self.names['nova_db']}")

    def add_rabbitmq(self, broker: Broker, host: str, vhost: str) -> str:
        """Let the broker be the page's host, with a user and the name of a vhost, and return that name."""
        users = [self.names["nova_mq"], self.names["nova_mq_b"]]
        if not self._has_broker:
            self._has_broker = True
            broker.administer("add_user", users[0], self.names["MQ-PASSWORD"])
            for user in users:
                self._opened.callback(_try, broker, "delete_user", user)
        self.names[vhost] = f"{self._here}_{vhost}"
        self.names[f"{host}/{vhost}"] = f"127.0.0.1:{broker.port}/{self.names[vhost]}"
        self.names[f"{host}:5672"] = f"127.0.0.1:{broker.port}"
        self._opened.callback(_try, broker, "delete_vhost", self.names[vhost])
        return self.names[vhost]

    def _add_user(self, server: sa.URL, host: str, kind: str, identified: str) -> None:
        user, other = self.names["nova_db"], self.names["nova_db_b"]
        self.names[f"--host {host}"] = f"--host 127.0.0.1 --port {server.port}"
        execute(server, f"CREATE {kind} {user} {identified} '{self.names['DB-PASSWORD']}'")
        drops = [f"DROP {kind} IF EXISTS {each}" for each in (other, user)]
        self._opened.callback(execute, server, *drops)

    def _add_database(self, host: str, name: str, url: str) -> str:
        parsed = sa.make_url(url)
        self.names[name] = parsed.database
        self.names[f"{host}/{name}"] = f"127.0.0.1:{parsed.port}/{parsed.database}"
        self.names[f"{host}:{3306 if parsed.get_backend_name() == 'mysql' else 5432}"] = f"127.0.0.1:{parsed.port}"
        return parsed.database


def execute(server: sa.URL, *statements: str) -> None:
    """Do something as the administrator of a server, past SQLAlchemy's log: there are passwords in it."""
    with administration(server) as connection, closing(connection.connection.cursor()) as cursor:
        for statement in statements:
            cursor.execute(statement)


def _try(broker: Broker, *arguments: str) -> None:
    with suppress(ServerMissing):
        broker.administer(*arguments)


class Mortal:
    """A PostgreSQL server that is killed, and comes back. Lives as long as its ``with`` block.

    :ivar url: its address
    """

    def __enter__(self) -> Self:
        self._opened = ExitStack()
        # the kernel ends a server with the thread that has started it, so that has to be one that lives on
        self._thread = self._opened.enter_context(ThreadPoolExecutor(1))
        self.url, self._process = self._opened.enter_context(private_postgresql.started_with_process())
        self._is_dead = False
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()
        self._is_dead = True

    def revive(self) -> None:
        """Start it again, unless it runs."""
        if self._is_dead:
            self._thread.submit(self._process.restart).result()
        self._is_dead = False


class Api:
    """A service behind the filter, over HTTP: ``GET /v2.1/servers/UUID``, and ``POST .../action``, which casts.

    Lives as long as the test.

    :ivar address: where it listens
    """

    def __init__(self, configuration: Path, hooks: dict[str, Callable[[], object]]) -> None:
        """Serve.

        :param hooks: paths at which something of the test is called, for the substitutes
        """
        factory = CellFilter.factory({"oslo_config_project": "cellmw", "oslo_config_file": str(configuration)})
        self._filter = factory(self._answer)
        self._compute = rpc.ClientRouter(None, target=oslo_messaging.Target(topic="compute"))
        self._hooks = hooks
        self._server = make_server("127.0.0.1", 0, self._authenticate, _Server, _Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """Answer what has come, and end."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._filter.close()

    def _authenticate(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Stand where keystonemiddleware does."""
        if hook := self._hooks.get(environ["PATH_INFO"]):
            hook()
            return _respond(start_response, "204 No Content")
        if environ.get("HTTP_X_AUTH_TOKEN") != TOKEN:
            return _respond(start_response, "401 Unauthorized")
        environ |= {"HTTP_X_USER_ID": "admin", "HTTP_X_PROJECT_ID": "admins", "HTTP_X_ROLES": "admin"}
        return self._filter(environ, start_response)

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        context = environ["cellmw.context"]
        uuid = environ["PATH_INFO"].split("/")[3]
        with database.reader(context) as session:
            host = session.scalar(sa.select(instances.c.host).where(instances.c.uuid == uuid))
        if host is None:
            return _respond(start_response, "404 Not Found")
        if environ["REQUEST_METHOD"] == "POST":
            self._compute.client(context).cast(context, "reboot", instance_uuid=uuid)
            return _respond(start_response, "202 Accepted")
        return _respond(start_response, "200 OK", json.dumps({"server": {"id": uuid, "host": host}}))


def _respond(start_response: Any, status: str, body: str = "") -> list[bytes]:
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body.encode()]


class _Server(ThreadingMixIn, WSGIServer):
    """Answers each request in a thread of its own, and waits for all of them in the end."""


class _Handler(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Deployment:
    """What a chapter begins with. Lives as long as the test.

    :ivar shell: where its commands are run
    """

    def __init__(self, folder: Path, opened: ExitStack, chapter: Chapter) -> None:
        """Make nothing yet.

        :param folder: the home of the operator
        """
        self._folder = folder
        self._opened = opened
        self._chapter = chapter
        self._text = "\n".join(step.command for step in chapter.steps)
        self._configuration = folder / ".cellmw" / "cellmw.conf"
        self._keys = folder / "keys"
        self.servers = Servers(opened)
        self.hooks: dict[str, Callable[[], object]] = {}

    def make(self, mariadb: sa.URL, postgres: sa.URL, rabbitmq: Broker) -> Shell:
        """Make all that the chapter begins with."""
        cells = [f"cell{number}" for number in range(BEGINS_WITH[self._chapter.title] + 1)]
        self.servers.add_mariadb(mariadb, "db1.example.org", "nova_cell0", "nova_cell1")
        self.servers.add_postgresql(postgres, "db2.example.org", "nova_cell2")
        if "CREATE DATABASE nova_cell2" in self._text:
            execute(postgres, f"DROP DATABASE {self.servers.names['nova_cell2']}")
        if "db3.example.org" in self._text:
            self._add_another(self._opened.enter_context(private_mariadb.started()))
        for number in (1, 2):
            vhost = self.servers.add_rabbitmq(rabbitmq, f"mq{number}.example.org", f"nova-cell{number}")
            if f"add_vhost nova-cell{number}" not in self._text:
                rabbitmq.administer("add_vhost", vhost)
                rabbitmq.administer("set_permissions", "-p", vhost, self.servers.names["nova_mq"], *[".*"] * 3)
        self._configure(self._opened.enter_context(mariadb_database(mariadb)))
        self._record(cells)
        api = self._opened.enter_context(closing(Api(self._configuration, self.hooks)))
        names = {"api.example.org:8774": api.address, "/etc/cellmw/keys": str(self._keys)}
        known = [uuid for uuids in INSTANCES.values() for uuid in uuids] + [CELL0_UUID, NOWHERE]
        known += [UUIDS[name] for name in cells[1:]]
        names |= dict(zip(known, known, strict=True))
        return Shell(self._folder, self.servers.names | names, self._environment(mariadb, rabbitmq, api))

    def _add_another(self, server: sa.URL) -> None:
        """Have a second server, with a database by the name of the first one's that the chapter makes."""
        self.servers.names["--host db3.example.org"] = f"--host 127.0.0.1 --port {server.port}"
        real = self.servers.names["nova_cell1"]
        self.servers.names["db3.example.org/nova_cell1"] = f"127.0.0.1:{server.port}/{real}"

    def _configure(self, api_database: str) -> None:
        lines = ["[api_database]", f"connection = {api_database}", "[cellmw]"]
        lines += ["refresh_interval = 0.2", "mapping_ttl = 1", "request_deadline = 4", "probe_interval = 0.2"]
        if "credential " in self._text:
            lines.append(f"credential_keys = {self._keys}")
            KeyRepository(str(self._keys)).setup()
        self.servers.names["nova_api"] = sa.make_url(api_database).database or ""
        self._configuration.parent.mkdir()
        self._configuration.write_text("\n".join([*lines, ""]))
        self.store = self._opened.enter_context(Store(make_engine(api_database, {}, pre_ping=False)))
        if self._chapter.title != CHAPTERS[0].title:
            migrations.sync(self.store.engine)

    def _record(self, cells: list[str]) -> None:
        """Fill the databases of these cells, and record those that are there at the beginning of the chapter."""
        credentials = Credentials(str(self._keys) if self._keys.exists() else None, cfg.ConfigOpts())
        for name in cells if "nova-manage" in self._text else URLS:
            transport_url, connection = map(self.servers.url, URLS[name])
            self._fill(name, connection)
            if name in cells[1:] or cells[1:]:
                cell = self.store.create_cell(
                    uuid=UUIDS[name],
                    name=name,
                    transport_url=credentials.protect(transport_url),
                    database_connection=credentials.protect(connection),
                )
                if name in INSTANCES:
                    self.store.create_host(f"host-of-{name}", cell_id=cell.id)
                for uuid in INSTANCES.get(name, ()):
                    self.store.create_instance(uuid, project_id=PROJECT, user_id="somebody", cell_id=cell.id)

    def _fill(self, cell: str, connection: str) -> None:
        with ExitStack() as stack:
            engine = sa.create_engine(connection, poolclass=sa.NullPool)
            session = stack.enter_context(engine.begin())
            metadata.create_all(session)
            for statement in rows(cell):
                session.execute(statement)

    def _environment(self, mariadb: sa.URL, rabbitmq: Broker, api: Api) -> dict[str, str]:
        """Return what the commands are run in; passwords of administrators are where their programs look for them."""
        (self._folder / ".my.cnf").write_text(f"[client]\nuser={mariadb.username}\npassword={mariadb.password or ''}\n")
        tables = [f"{CreateTable(table).compile(dialect=postgresql.dialect())};" for table in metadata.sorted_tables]
        tables += [
            f"{statement.compile(dialect=postgresql.dialect(), compile_kwargs={'literal_binds': True})};"
            for statement in rows("cell2")[:2]
        ]
        (self._folder / "tables.sql").write_text("\n".join(tables))
        folder = self._folder / "substitutes"
        folder.mkdir()
        # by its whole path, as the substitute has the same name
        command = shlex.join([shutil.which(rabbitmq._command[0]) or "", *rabbitmq._command[1:]])
        for name, script in {**SUBSTITUTES, "rabbitmqctl": f'{command} "$@"'}.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
        url = sa.make_url(self.servers.url("postgresql://nova_db:DB-PASSWORD@db2.example.org/nova_cell2"))
        return {
            **(rabbitmq._environment or {}),
            "API": f"http://{api.address}",
            "CELL2": url.render_as_string(hide_password=False),
            "HOME": str(self._folder),
            "LANG": "C.UTF-8",
            "PATH": f"{folder}:{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "PGUSER": "postgres",
            "PYTHONUNBUFFERED": "1",
            "TOKEN": TOKEN,
        }


def rows(cell: str) -> list[sa.Insert]:
    """Return what fills the tables of a cell: a host, and instances on it."""
    host = f"host-of-{cell}"
    if cell not in INSTANCES:
        return []
    owner = {"project_id": PROJECT, "user_id": "somebody", "host": host, "hidden": False, "deleted": 0}
    return [
        compute_nodes.insert().values(id=1, host=host, mapped=0, deleted=0),
        services.insert().values(id=1, host=host, binary="nova-compute", deleted=0),
        *(instances.insert().values(id=id_, uuid=uuid, **owner) for id_, uuid in enumerate(INSTANCES[cell], 1)),
    ]


def break_mappings(deployment: Deployment) -> None:
    """Lose a mapping, make one that leads to the wrong cell and one to nothing, and have an instance in two cells."""
    store = deployment.store
    cell1 = store.get_cell(UUIDS["cell1"])
    _, lost, twice = INSTANCES["cell1"]
    store.delete_instance(lost)
    store.update_instance(INSTANCES["cell2"][1], cell_id=cell1.id)
    store.create_instance(NOWHERE, project_id=PROJECT, user_id="somebody", cell_id=cell1.id)
    store.delete_host("host-of-cell2")
    with administration(sa.make_url(deployment.servers.url(URLS["cell2"][1]))) as connection:
        connection.execute(rows("cell2")[2].values(id=77, uuid=twice))
    # what was written a moment ago nobody calls wrong
    with store.engine.begin() as connection:
        connection.execute(sa.update(models.instance_mappings).values(created_at=LONG_AGO, updated_at=LONG_AGO))


@pytest.fixture(scope="session")
def installed() -> None:
    """All programs that the page uses are there."""
    for name, package in PROGRAMS.items():
        found(lambda name=name, package=package: program(name, package))


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Closes and drops what a test has made, last first."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("chapter", CHAPTERS, ids=[chapter.title for chapter in CHAPTERS])
def test_chapter(
    chapter: Chapter,
    tmp_path: Path,
    opened: ExitStack,
    mariadb_server: sa.URL,
    postgresql_server: sa.URL,
    rabbitmq_server: Broker,
) -> None:
    """Every command of the chapter prints what the page has, and services do what the page says they do."""
    deployment = Deployment(tmp_path, opened, chapter)
    fails = chapter.title == "When a cell fails"
    if fails:
        server = opened.enter_context(Mortal())
        postgresql_server = server.url
        deployment.hooks["/restart"] = server.revive
    shell = deployment.make(mariadb_server, postgresql_server, rabbitmq_server)
    if fails:
        server.kill()
        opened.callback(server.revive)
    if chapter.title == "Repairing mappings":
        break_mappings(deployment)
    shell.walk(INTRODUCTION)
    shell.walk(chapter)


def test_every_chapter_has_commands() -> None:
    """A chapter without a command would be walked through without being tested."""
    assert {chapter.title for chapter in CHAPTERS} == BEGINS_WITH.keys()
    assert all(chapter.steps for chapter in CHAPTERS)


def test_commands_in_sentences_exist() -> None:
    """What is named in passing is a command that there is."""
    named = set(re.findall(r"``cellmw-manage ([a-z_0-9 ]+?)(?: --?\w.*?| [A-Z].*?)?``", PAGE.read_text()))
    assert named <= {name for name, _ in Manage(cfg.ConfigOpts()).command_manager}


# --- the walking itself


def walk(page: str, folder: Path, **names: str) -> Shell:
    """Walk through the first chapter of a page, in a folder."""
    (chapter,) = read(f"A chapter\n---------\n\n{page}")
    shell = Shell(folder, names, {"PATH": "/usr/bin:/bin"})
    shell.walk(chapter)
    return shell


def block(*lines: str) -> str:
    """Return a block of a page."""
    return "\n".join([".. code-block:: console", "", *(f"   {line}" for line in lines), "", "A sentence.", ""])


@pytest.mark.parametrize(
    "output",
    [
        ("key 0123456789ab is 1.5 s old", "+---+", "last"),
        ("key ... is 99 s old", "...", "last"),
        ("...", "last"),
    ],
)
def test_output_that_is_as_the_page_has_it(tmp_path: Path, output: tuple[str, ...]) -> None:
    """Dots stand for anything; widths of tables, times and new ids may be others."""
    walk(block("$ echo 'key ba9876543210 is 2 s old'; echo '+------+'; echo last", *output), tmp_path)


@pytest.mark.parametrize("output", [("one",), ("one", "two", "three"), ("two", "one"), ("one two",), ("...", "one")])
def test_output_that_is_not(tmp_path: Path, output: tuple[str, ...]) -> None:
    """A line that is missing, too many, or another fails the walk."""
    with pytest.raises(AssertionError, match="the page has"):
        walk(block("$ echo one; echo two", *output), tmp_path)


def test_exit_codes(tmp_path: Path) -> None:
    """A command that fails fails the walk, unless the page asks for its exit code, which has to be that."""
    walk(block("$ (exit 3)", "$ echo $?", "3"), tmp_path)
    with pytest.raises(AssertionError, match="exit code 3"):
        walk(block("$ (exit 3)"), tmp_path)
    with pytest.raises(AssertionError, match="the page has"):
        walk(block("$ (exit 3)", "$ echo $?", "0"), tmp_path)


def test_new_names_are_kept(tmp_path: Path) -> None:
    """What a command has made is called by the page's name for it in the commands that follow."""
    uuid, real = UUIDS["cell1"], INSTANCES["cell1"][0]
    walk(block(f"$ echo {real} > file; cat file", uuid, f"$ [ $(cat file) = {uuid} ]"), tmp_path)


def test_new_name_is_one_thing(tmp_path: Path) -> None:
    """What the page calls by the same name has to be the same."""
    with pytest.raises(AssertionError, match="the page has"):
        walk(
            block("$ echo key 0123456789ab", "key ba9876543210", "$ echo key 0123456789ac", "key ba9876543210"),
            tmp_path,
        )


def test_known_name(tmp_path: Path) -> None:
    """What is known from the beginning is nothing new."""
    uuid, other = INSTANCES["cell1"][:2]
    with pytest.raises(AssertionError, match="the page has"):
        walk(block(f"$ echo {uuid}", other), tmp_path, **{other: other})


def test_names(tmp_path: Path) -> None:
    """Names of the page are replaced as whole words, the longest first."""
    names = {"db1": "here", "db1/x": "there", "x": "why"}
    shell = Shell(tmp_path, names, {})
    assert shell.here("db1 db1/x x db1-x xx a.x") == "here there why db1-x xx a.x"


def test_functions_ask_until_the_answer_is_right(tmp_path: Path) -> None:
    """A function of the shell is asked again, as services follow within seconds."""
    walk(block("$ count() { echo >> file", "      wc -l < file | grep 3; }", "$ count", "3"), tmp_path)


def test_commands_of_several_lines(tmp_path: Path) -> None:
    """A backslash goes on in the next line."""
    walk(block("$ echo one \\", "      two", "one two"), tmp_path)


@pytest.mark.parametrize(
    "page",
    [
        "A paragraph::\n\n   $ echo one\n",
        ".. code-block:: bash\n\n   $ echo one\n",
        "A paragraph::\n\n   cellmw-manage cell_v2 list_cells\n",
        ".. code-block:: console\n\n   echo one\n",
    ],
)
def test_command_that_would_not_be_run(page: str) -> None:
    """A page with something that looks like a command and is none of them is refused."""
    with pytest.raises(PageBroken):
        read(f"A chapter\n---------\n\n{page}")


def test_command_before_the_first_chapter() -> None:
    """Nobody would run it."""
    with pytest.raises(PageBroken):
        read(block("$ echo one"))
