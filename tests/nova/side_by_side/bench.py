# SPDX-License-Identifier: Apache-2.0
"""A case -> what nova-manage does in it and what cellmw-manage does, on the same rows; and what both then list of it.

The rows are said in the facts of ``case.py``. Nova's own commands make the tables, once; then only the rows that a case
is about are laid anew for each run.
"""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import sys
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy

from tests import servers
from tests.nova.side_by_side.case import CELLS, Case, Kind, Meanwhile, changed
from tests.nova.side_by_side.forked import Answer, Program, Stop, program
from tests.servers.addresses import administration

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

PROJECT, USER = "6f70656e737461636b20697320666f72", "alice"

MARKER = "INSTANCE_MIGRATION_MARKER"
"""The project of the row in which nova-manage notes how far ``map_instances`` has come."""

UUIDS = {
    **{cell: f"{number:08d}-0000-0000-0000-000000000000" for number, cell in enumerate(CELLS)},
    "UNKNOWN": "99999999-0000-0000-0000-000000000000",
    **{f"INSTANCE{number}": f"00000000-0000-4000-8000-{number:012d}" for number in range(1, 10)},
}
"""The uuids that cases name; that of cell0 is Nova's."""

URLS = {
    **{
        f"QUEUE{number}": f"rabbit://nova:no-secret-{number}@broker{number}:5672/cell{number}"
        for number in (1, 2, 3, 4)
    },
    "QUEUES": "rabbit://nova:no-secret-3@broker3:5672,nova:no-secret-4@broker4:5672/cell3?ssl_key_password=no-secret-5",
    "OTHER_WAY_TO_QUEUE2": "rabbit://another:no-secret-6@broker2:5672/cell2",
    "TEMPLATE_OF_QUEUE": "rabbit://{username}:{password}@broker3:5672/cell3",
    **{f"DATABASE{number}": f"mysql+pymysql://nova:no-secret-7@db{number}/nova_cell{number}" for number in (3, 4)},
    "TEMPLATE_OF_DATABASE": "mysql+pymysql://{username}:{password}@{hostname}/nova_cell3",
    "NO_URL": "cell3.sqlite",
    "LONG_NAME": "n" * 256,
    "DATABASE_GONE": "sqlite:////nowhere/gone.sqlite",
    "ENCODED_DATABASE": "mysql+pymysql://nova:no%40secret-8@db3/nova",
    "ENCODED_DATABASE_cell0": "mysql+pymysql://nova:no%40secret-8@db3/nova_cell0",
    "DECODED_DATABASE_cell0": "mysql+pymysql://nova:no@secret-8@db3/nova_cell0",
}
"""The URLs that cases name, besides those of the databases that there are. Nobody answers there: nothing is sent."""

FILLED_IN = {"TEMPLATE_OF_QUEUE": "QUEUE3", "TEMPLATE_OF_DATABASE": "DATABASE3"}
"""What templates come to by ``another.conf``."""

UNREADABLE = {"NO_URL": "***", "DECODED_DATABASE_cell0": "mysql+pymysql://***@db3/nova_cell0"}
"""What is shown of what is no URL, or one of which nobody knows where its password ends."""

API_DATABASE = """
[api_database]
connection = {api}
"""

TRANSPORT_URL = """
[DEFAULT]
transport_url = {queue}
"""

DATABASE = """
[database]
connection = {database}
"""

CONFIGURATIONS = {
    "nova.conf": ("QUEUE1", "DATABASE1"),
    "another.conf": ("QUEUE3", "DATABASE3"),
    "special.conf": ("QUEUE3", "ENCODED_DATABASE"),
    "empty.conf": ("", None),
    "silent.conf": (None, None),
}
"""The transport URL and the database URL in each configuration; None where it says nothing of it."""

OWN_TABLE = "cellmw_progress"
"""The only table of our own that these commands use."""

API_TABLES = (OWN_TABLE, "instance_mappings", "host_mappings", "cell_mappings")
CELL_TABLES = ("instances", "services", "compute_nodes")
TABLES_OF_CELL0 = "tables DATABASE0"

SWITCH_OFF_KEYS = {"mysql": "SET foreign_key_checks = 0", "sqlite": "PRAGMA foreign_keys = OFF"}
"""What lets tables be made and dropped in any order."""

SOME_DAY = datetime(2026, 1, 1)


class Outcome(NamedTuple):
    """What one run of a command has come to. Lives as long as the test.

    :ivar writes: the facts that are there now with a ``+``, and those that are there no more with a ``-``
    :ivar prints: what stdout says, as far as the case is about that
    """

    exit_code: int
    writes: list[str]
    prints: Any


class Place(NamedTuple):
    """A database of the deployment. Lives as long as the test run."""

    url: str
    engine: sqlalchemy.Engine


class Bench:
    """A deployment on which both programs run in turn. Lives as long as the test run.

    :ivar nova: ``nova-manage``
    :ivar cellmw: ``cellmw-manage``
    :ivar words: the words that cases have for uuids and URLs, and what they stand for
    """

    def __init__(self, folder: Path, databases: Mapping[str, str], nova: Program, cellmw: Program) -> None:
        """Configure it; ``make_tables`` makes the databases usable.

        :param databases: the URLs of ``API`` and of ``DATABASE0`` and so on, by these words
        """
        self.nova, self.cellmw = nova, cellmw
        self.kind = sqlalchemy.make_url(databases["API"]).get_backend_name()
        self._folder = folder
        self._places = {
            word: Place(url, sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool))
            for word, url in databases.items()
        }
        self._tables: dict[str, sqlalchemy.Table] = {}
        self._synced = True
        self.words = UUIDS | URLS | {word: url for word, url in databases.items() if word != "API"}
        self.words["MANGLED_DATABASE0"] = databases["DATABASE0"].replace("///", "/")
        for name, (queue, database) in CONFIGURATIONS.items():
            text = API_DATABASE.format(api=databases["API"])
            if queue is not None:
                text += TRANSPORT_URL.format(queue=self._meant(queue))
            if database is not None:
                text += DATABASE.format(database=self._meant(database))
            self.configuration(name).write_text(text)

    def configuration(self, name: str) -> Path:
        """Return where a configuration is."""
        return self._folder / name

    def make_tables(self) -> None:
        """Let Nova make its tables in the API database and in the one that is configured; the others are copies."""
        for command in ("api_db sync", "db sync --local_cell"):
            done = self.nova.run("--config-file", str(self.configuration("nova.conf")), *command.split())
            assert done.exit_code == 0, done
        done = self.cellmw.run("--config-file", str(self.configuration("nova.conf")), "api_db", "sync")
        assert done.exit_code == 0, done
        for word in ("DATABASE0", "DATABASE2"):
            self._copy("DATABASE1", word)
        for word, tables in (("API", API_TABLES), ("DATABASE1", CELL_TABLES)):
            metadata = sqlalchemy.MetaData()
            metadata.reflect(self._places[word].engine, only=tables, resolve_fks=False)
            self._tables |= {table: metadata.tables[table] for table in tables}

    def _copy(self, source: str, to: str) -> None:
        """Make the tables of one database in another."""
        if self.kind == "sqlite":
            paths = (str(self._places[word].engine.url.database) for word in (source, to))
            shutil.copyfile(*paths)
            return
        with self._places[source].engine.connect() as connection:
            names = connection.exec_driver_sql("SHOW TABLES").scalars().all()
            tables = [connection.exec_driver_sql(f"SHOW CREATE TABLE `{name}`").one()[1] for name in names]
            versions = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all()
        with self._places[to].engine.connect() as connection:
            connection.exec_driver_sql(SWITCH_OFF_KEYS[self.kind])
            for table in tables:
                connection.exec_driver_sql(table)
            for version in versions:
                connection.exec_driver_sql("INSERT INTO alembic_version VALUES (%s)", (version,))
            connection.commit()

    def lay(self, facts: Iterable[str], *, synced: bool = True) -> None:
        """Have these rows in the databases, and no others.

        :param synced: whether to have the tables that are not Nova's, too
        """
        if synced != self._synced:
            own = self._tables[OWN_TABLE]
            (own.create if synced else own.drop)(self._places["API"].engine)
            self._synced = synced
        facts = set(facts)
        self._have_tables(TABLES_OF_CELL0 in facts)
        rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
        ids = {}
        for number, fact in enumerate(sorted(facts - {TABLES_OF_CELL0}, key=_order), start=1):
            kind, *words = fact.split()
            place, table, values = _row(kind, [self._meant(word) for word in words], ids, number)
            if kind == Kind.CELL:
                ids[values["uuid"]] = number
            rows.setdefault((self._word(place), table), []).append(values)
        for word, tables in (("API", API_TABLES), *((database, CELL_TABLES) for database in self._cell_databases())):
            with self._places[word].engine.begin() as connection:
                for name in self._there(tables):
                    connection.execute(self._tables[name].delete())
                for name in reversed(tables):
                    for values in rows.get((word, name), ()):
                        connection.execute(self._tables[name].insert().values(values))

    def facts(self) -> set[str]:
        """Say which rows are there."""
        return set(itertools.chain(self._api_facts(), *map(self._cell_facts, self._cell_databases())))

    def _have_tables(self, wanted: bool) -> None:
        """Have the tables of cell0, or have none."""
        if wanted == self._cell0_has_tables():
            return
        if wanted:
            self._copy("DATABASE1", "DATABASE0")
            return
        with self._places["DATABASE0"].engine.begin() as connection:
            connection.exec_driver_sql(SWITCH_OFF_KEYS[self.kind])
            for name in sqlalchemy.inspect(connection).get_table_names():
                connection.exec_driver_sql(f"DROP TABLE {name}")

    def _cell0_has_tables(self) -> bool:
        return sqlalchemy.inspect(self._places["DATABASE0"].engine).has_table("instances")

    def _cell_databases(self) -> list[str]:
        return ["DATABASE1", "DATABASE2", *(["DATABASE0"] if self._cell0_has_tables() else [])]

    def _api_facts(self) -> Iterator[str]:
        rows = self._rows("API", API_TABLES)
        cells = {None: "-"}
        self.words.pop("NEW", None)
        for row in rows["cell_mappings"]:
            if row.uuid not in UUIDS.values():
                self.words["NEW"] = row.uuid
            cells[row.id] = cell = self._word(row.uuid)
            urls = f"{self._word(row.transport_url)} {self._word(row.database_connection)}"
            yield f"cell {cell} {self._word(row.name or '-')} {urls} {'disabled' if row.disabled else 'enabled'}"
        for row in rows["host_mappings"]:
            yield f"host {row.host} {cells[row.cell_id]}"
        for row in rows["instance_mappings"]:
            if row.project_id == MARKER:
                assert (row.user_id, row.cell_id) == (MARKER, None)
                yield f"marker {self._word(row.instance_uuid.replace(' ', '-'))}"
                continue
            assert (row.project_id, row.user_id) == (PROJECT, USER)
            state = {False: "kept", True: "queued"}[row.queued_for_delete]
            yield f"mapping {self._word(row.instance_uuid)} {cells[row.cell_id]} {state}"
        for row in rows.get(OWN_TABLE, ()):
            yield f"progress {self._word(row.task.rpartition('/')[2])}"

    def _cell_facts(self, database: str) -> Iterator[str]:
        if database == "DATABASE0":
            yield TABLES_OF_CELL0
        rows = self._rows(database, CELL_TABLES)
        for row in rows["instances"]:
            state = "deleted" if row.deleted else "nobodys" if row.project_id is None else "alive"
            yield f"instance {database} {self._word(row.uuid)} {row.host} {state}"
        for row in rows["services"]:
            yield f"service {database} {row.host} {row.binary}"
        for row in rows["compute_nodes"]:
            yield f"node {database} {row.host} {'mapped' if row.mapped else 'unmapped'}"

    def _rows(self, database: str, tables: Iterable[str]) -> dict[str, list[Any]]:
        with self._places[database].engine.connect() as connection:
            there = self._there(tables)
            return {name: list(connection.execute(self._tables[name].select())) for name in there}

    def _there(self, tables: Iterable[str]) -> list[str]:
        return [name for name in tables if self._synced or name != OWN_TABLE]

    def _meant(self, word: str) -> str:
        return self.words.get(word, word)

    def _word(self, meant: str) -> str:
        return next((word for word, each in self.words.items() if each == meant), meant)

    def outcome(self, case: Case, *, by: Program, other: Program) -> Outcome:
        """Lay the rows of a case, run its command by one of the programs, and say what has come of it."""
        self.lay(case.facts, synced=case.synced)
        if case.first is not None:
            answer = self._run(other, case.first.command, case, case.first.meanwhile)
            assert answer.exit_code == case.first.exit_code, answer
        before = self.facts()
        answer = self._run(by, case.command, case, case.meanwhile)
        after = self.facts()
        writes = [*(f"+ {fact}" for fact in after - before), *(f"- {fact}" for fact in before - after)]
        return Outcome(answer.exit_code, sorted(writes), None if case.prints is None else self.said(answer.out))

    def arguments(self, command: str, case: Case) -> list[str]:
        """Return what is typed behind the name of the program."""
        words = map(self._meant, shlex.split(command))
        return ["--config-file", str(self.configuration(case.configuration)), "cell_v2", *words]

    def _run(self, runner: Program, command: str, case: Case, meanwhile: Meanwhile | None = None) -> Answer:
        arguments = self.arguments(command, case)
        if meanwhile is None:
            return runner.run(*arguments)
        return self._run_and_stop(runner, arguments, meanwhile)

    def _run_and_stop(self, runner: Program, arguments: list[str], meanwhile: Meanwhile) -> Answer:
        def happens() -> str:
            if meanwhile.change:
                self.lay(changed(self.facts(), meanwhile.change))
            return meanwhile.then

        time = meanwhile.time if runner is self.nova else meanwhile.our_time
        return runner.run(*arguments, stop=Stop(meanwhile.statements, time), meanwhile=happens)

    def said(self, out: str) -> list[str]:
        """Return the rows of a table on stdout, or the cells that are named there, in the words of cases."""
        lines = [line for line in out.splitlines() if line.startswith("|")]
        if lines or out.startswith("+-"):
            return [" ".join(self._word(cell.strip()) for cell in line.split("|")).strip() for line in lines[1:]]
        named = [self._word(uuid) for uuid in re.findall("[0-9a-f]{8}-[-0-9a-f]{27}", out)]
        return sorted({word for word in named if word in (*CELLS, "NEW")}) or out.split()

    def lists(self, writes: Iterable[str], *, by: Program) -> dict[str, Any]:
        """Return what a program shows of what was written, with every password masked.

        nova-manage fills in templates by the configuration, and shows a URL without a host as it is only where it shows
        the passwords, too.
        """
        facts = [write.split()[1:] for write in writes]
        kinds = {kind for kind, *_ in facts}
        commands = [command for kind, command in LISTS.items() if kind in kinds]
        commands += [f"verify_instance --uuid {words[0]}" for kind, *words in facts if kind == "mapping"]
        shown = {}
        for command in dict.fromkeys(commands):
            answer = self._run(by, command, READING)
            lines = [
                " ".join(_masked(word) for word in line.split() if word != NO_NAME) for line in self.said(answer.out)
            ]
            shown[command] = (answer.exit_code, lines if answer.exit_code == 0 else [])
        return shown


LISTS = {"cell": "list_cells --verbose", "host": "list_hosts"}
"""The commands that show what facts are about."""

READING = Case(when="something was written", command="list_cells", configuration="another.conf")


NO_NAME = "None"
"""What nova-manage shows for the name of a host's cell that has none."""


def _masked(word: str) -> str:
    url = URLS.get(FILLED_IN.get(word, word), word)
    return UNREADABLE.get(word) or re.sub(r"no(%40|-)secret-\d", "***", url)


def expected(case: Case) -> tuple[Outcome, Outcome]:
    """Return what is to come of a case: by nova-manage, and by cellmw-manage."""
    novas = Outcome(case.exit_code, sorted(case.writes), None if case.prints is None else list(case.prints))
    if case.ours is None:
        return novas, novas
    writes, prints = case.ours.writes, case.ours.prints
    ours = Outcome(
        case.our_exit_code,
        novas.writes if writes is None else sorted(writes),
        novas.prints if prints is None else list(prints),
    )
    return novas, ours


def check(bench: Bench, case: Case) -> None:
    """Run a case by each program, and let both list what it has written.

    :raises AssertionError: if anything is not as the case says
    """
    novas, ours = expected(case)
    for by, other, outcome in ((bench.nova, bench.cellmw, novas), (bench.cellmw, bench.nova, ours)):
        name = "nova-manage" if by is bench.nova else "cellmw-manage"
        assert (name, bench.outcome(case, by=by, other=other)) == (name, outcome)
        listed = bench.lists(outcome.writes, by=bench.nova)
        assert bench.lists(outcome.writes, by=bench.cellmw) == listed


def _order(fact: str) -> tuple[int, str]:
    """Put cells before what refers to them."""
    kind, _, words = fact.partition(" ")
    return list(Kind).index(Kind(kind)), words


def _row(kind: str, words: list[str], ids: Mapping[str, int], number: int) -> tuple[str, str, dict[str, Any]]:
    """Return the database, the table and the row that a fact is about."""
    moment = {"created_at": SOME_DAY + timedelta(hours=number)}
    match kind, words:
        case Kind.CELL, [uuid, name, queue, database, state]:
            urls = {"transport_url": queue, "database_connection": database}
            row = {"id": number, "uuid": uuid, "name": None if name == "-" else name, "disabled": state == "disabled"}
            return "API", "cell_mappings", row | urls
        case Kind.HOST, [host, cell]:
            return "API", "host_mappings", {"host": host, "cell_id": ids[cell]}
        case Kind.MAPPING, [uuid, cell, state]:
            row = {"instance_uuid": uuid, "cell_id": ids.get(cell), "queued_for_delete": state == "queued"}
            return "API", "instance_mappings", row | {"project_id": PROJECT, "user_id": USER}
        case Kind.MARKER, [uuid]:
            row = {"instance_uuid": uuid.replace("-", " "), "queued_for_delete": False}
            return "API", "instance_mappings", row | {"project_id": MARKER, "user_id": MARKER}
        case Kind.INSTANCE, [database, uuid, host, state]:
            deleted = {"deleted": number, "deleted_at": SOME_DAY} if state == "deleted" else {"deleted": 0}
            owner = {"project_id": None if state == "nobodys" else PROJECT, "user_id": USER}
            row = {"id": number, "uuid": uuid, "host": host, "hidden": False} | owner
            return database, "instances", row | deleted | moment
        case Kind.SERVICE, [database, host, binary]:
            row = {"host": host, "binary": binary, "topic": "compute", "report_count": 1, "disabled": False}
            return (
                database,
                "services",
                row | {"uuid": _uuid(number), "deleted": 0, "version": 70, "forced_down": False} | moment,
            )
        case Kind.NODE, [database, host, state]:
            amounts = ("vcpus", "vcpus_used", "memory_mb", "memory_mb_used", "local_gb", "local_gb_used")
            row = {"host": host, "hypervisor_hostname": host, "hypervisor_type": "none", "hypervisor_version": 1}
            row |= {"cpu_info": "", "uuid": _uuid(number), "deleted": 0, "mapped": int(state == "mapped")}
            return database, "compute_nodes", row | dict.fromkeys(amounts, 1) | moment
    raise ValueError(f"{kind} {words} is no fact")


def _uuid(number: int) -> str:
    return f"11111111-0000-4000-8000-{number:012d}"


@contextmanager
def bench(folder: Path, mariadb: sqlalchemy.URL | None) -> Iterator[Bench]:
    """Make a deployment of two cells and cell0.

    :param mariadb: the server on which its databases are to be; SQLite files if there is none
    """
    with ExitStack() as stack:
        databases = {}
        for word in ("API", "DATABASE1", "DATABASE2"):
            if mariadb is None:
                databases[word] = f"sqlite:///{folder}/{word.lower()}.sqlite"
            else:
                databases[word] = stack.enter_context(servers.mariadb_database(mariadb))
        databases["DATABASE0"] = f"{databases['DATABASE1']}_cell0"
        if mariadb is not None:
            stack.enter_context(_mariadb_database(mariadb, databases["DATABASE0"]))
        programs = (
            stack.enter_context(program(Path(sys.prefix, "bin", f"{name}-manage"), f"{name}.cmd.manage"))
            for name in ("nova", "cellmw")
        )
        made = Bench(folder, databases, *programs)
        made.make_tables()
        yield made


@contextmanager
def _mariadb_database(server: sqlalchemy.URL, url: str) -> Iterator[None]:
    """A database of that name."""
    name = sqlalchemy.make_url(url).database
    with administration(server) as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    try:
        yield
    finally:
        with administration(server) as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name}")
