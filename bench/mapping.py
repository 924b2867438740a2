# SPDX-License-Identifier: Apache-2.0
"""What it takes to map the instances of a cell, and to verify them: a table. Fails where a limit is exceeded.

For each pair of servers a million instances are made in a cell's database, on the server itself, and mapped in an API
database on the other one, by the code of ``cellmw-manage cell_v2 map_instances``. Beside the instances a second stands
the most memory that the process had at the tenth part of them and at the end. It is verified that each of them is
mapped once, and then the same by ``cellmw-manage verify``, with what that takes.

Where there is an environment with Nova, ``nova-manage cell_v2 map_instances`` maps a few thousand in a cell with Nova's
own tables, and cellmw-manage the same after it. From nova-manage's time that of a run with one instance is taken off;
cellmw-manage says by itself how fast it was.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy
from oslo_config import cfg

from bench.listing import resident
from cellmw import conf as options
from cellmw import engines
from cellmw.admin import access
from cellmw.admin.cell_tables import CellTables
from cellmw.admin.instance_mapping import InstanceMapper
from cellmw.admin.verification import Verification
from cellmw.cells import Cells
from cellmw.store import Store, migrations
from tests import servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

ROWS = 1_000_000
NOVA_ROWS = 5000
PAIRS = ("postgresql:mariadb", "mariadb:postgresql", "mariadb:mariadb", "postgresql:postgresql")
"""The servers of the cell's database and of the API database."""

GROWTH_LIMIT = 1.1
"""How many times as much memory there may be at the end as at the tenth part."""

NOVA_BIN = Path(os.environ.get("NOVA_VENV", ".venv-nova"), "bin")

TABLE = """CREATE TABLE instances (
    id INTEGER PRIMARY KEY, uuid VARCHAR(36) NOT NULL UNIQUE, project_id VARCHAR(255), user_id VARCHAR(255),
    host VARCHAR(255), deleted INTEGER, hidden BOOLEAN)"""

UUID = {
    "postgresql": "CAST(md5(CAST(n AS TEXT)) AS UUID)",
    "mariadb": "concat_ws('-', substr(md5(n), 1, 8), substr(md5(n), 9, 4), substr(md5(n), 13, 4), "
    "substr(md5(n), 17, 4), substr(md5(n), 21))",
}
"""A uuid of the number n."""

NUMBERS = {"postgresql": "generate_series(1, {}) AS n", "mariadb": "(SELECT seq AS n FROM seq_1_to_{}) AS numbers"}

ANALYSE = {"postgresql": "ANALYZE instances", "mariadb": "ANALYZE TABLE instances"}
"""As a server does by itself, a while after so many rows have come."""

FILL = """INSERT INTO instances (id, uuid, project_id, user_id, deleted, hidden)
    SELECT n, {uuid}, concat('project', n % 100), concat('user', n % 1000),
    CASE WHEN n % 10 = 0 THEN n ELSE 0 END, FALSE FROM {numbers}"""

FILL_NOVAS = """INSERT INTO instances (id, uuid, project_id, user_id, created_at, deleted, hidden)
    SELECT n, {uuid}, 'project', 'user', '2026-01-01 00:00:00', 0, FALSE FROM {numbers}"""

RIGHT = """SELECT count(*), count(DISTINCT instance_uuid), count(DISTINCT cell_id), min(cell_id)
    FROM instance_mappings WHERE project_id LIKE 'project%' AND user_id LIKE 'user%'"""


class Server(NamedTuple):
    """What databases are made on. Lives as long as the process."""

    find: Callable[[], sqlalchemy.URL]
    fresh: Callable[[sqlalchemy.URL], AbstractContextManager[str]]


SERVERS = {
    "postgresql": Server(servers.postgresql_server, servers.postgresql_database),
    "mariadb": Server(servers.mariadb_server, servers.mariadb_database),
}


def heading() -> None:
    """Print what stands in the columns."""
    print(f"{'figure':<44}{'rows':>10}{'rows/s':>10}{'MB, 10 %':>10}{'MB, end':>10}  limit", flush=True)


def row(figure: str, rows: int, rate: float, memory: list[int] | None = None, verdict: str = "") -> None:
    """Print a figure."""
    early, late = (f"{each / 2**20:.0f}" for each in peaks(memory)) if memory else ("", "")
    print(f"{figure:<44}{rows:>10,}{rate:>10,.0f}{early:>10}{late:>10}  {verdict}".rstrip(), flush=True)


def peaks(memory: list[int]) -> tuple[int, int]:
    """Return the most memory that there was in the first tenth, and in all."""
    return max(memory[: max(1, len(memory) // 10)]), max(memory)


def measure(figure: str, batches: Iterable[int]) -> bool:
    """Go through the batches, and print how fast that was, and how much memory it took."""
    memory: list[int] = []
    done = 0
    began_at = monotonic()
    for count in batches:
        done += count
        memory.append(resident())
    early, late = peaks(memory)
    kept = late <= GROWTH_LIMIT * early
    verdict = f"{GROWTH_LIMIT:g} x the memory, {'reached' if kept else 'EXCEEDED'}"
    row(figure, done, done / (monotonic() - began_at), memory, verdict)
    return kept


def execute(url: str, *statements: str) -> None:
    """Execute them."""
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def fill(server: str, template: str, rows: int) -> str:
    """Return the statement that makes so many instances."""
    return template.format(uuid=UUID[server], numbers=NUMBERS[server].format(rows)).replace("%", "%%")


def measure_pair(cell_server: str, api_server: str, rows: int) -> bool:
    """Map a cell on one server in an API database on another, and verify it."""
    with contextlib.ExitStack() as stack:
        cell_url, api_url = (
            stack.enter_context(SERVERS[name].fresh(SERVERS[name].find())) for name in (cell_server, api_server)
        )
        execute(cell_url, TABLE, fill(cell_server, FILL, rows), ANALYSE[cell_server])
        store = stack.enter_context(Store(engines.make_engine(api_url, {}, pre_ping=False)))
        migrations.sync(store.engine)
        record = store.create_cell(name="cell1", transport_url="none:///", database_connection=cell_url)
        conf = cfg.ConfigOpts()
        conf([], project="cellmw", default_config_files=[], default_config_dirs=[])
        options.register_opts(conf)
        conf.set_override("connection", api_url, group=options.API_DATABASE)
        cells = stack.enter_context(access.open_cells(conf))
        assert isinstance(cells, Cells)
        tables = CellTables(conf)
        mapper = InstanceMapper(cells, tables, cells.get(record.id))
        mapper.begin()
        kept = measure(f"map_instances, {cell_server} to {api_server}", mapper.batches())
        with store.engine.connect() as connection:
            found = tuple(connection.exec_driver_sql(RIGHT.replace("%", "%%")).one())
        if found != (rows, rows, 1, record.id):
            print(f"WRONG: {found}")
            kept = False
        verification = Verification(cells, tables)
        verification.begin()
        kept &= measure(f"verify, {cell_server} beside {api_server}", verification.pages())
        if verification.remaining:
            print(f"WRONG: {verification.counts}")
            kept = False
    return kept


class Novas(NamedTuple):
    """A deployment with Nova's own tables. Lives as long as its databases."""

    config_file: Path
    api_url: str
    cell_uuid: str

    def map_instances(self, program: Path, *arguments: str, last: int = 0) -> tuple[float, str]:
        """Return how long it takes to map them anew, and what it prints."""
        execute(self.api_url, "DELETE FROM instance_mappings")
        began_at = monotonic()
        command = [str(program), "--config-file", str(self.config_file), "cell_v2", "map_instances"]
        command += ["--cell_uuid", self.cell_uuid, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == last, done
        return monotonic() - began_at, done.stdout


def manage(config_file: Path, *arguments: str) -> str:
    """Run nova-manage, and return what it prints."""
    command = [str(NOVA_BIN / "nova-manage"), "--config-file", str(config_file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def measure_nova(server: str, rows: int) -> None:
    """Map a cell with Nova's own tables by either program."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        api_url, cell_url = (
            stack.enter_context(SERVERS[server].fresh(SERVERS[server].find())) for _ in ("api", "cell1")
        )
        config_file = folder / "nova.conf"
        config_file.write_text(f"[database]\nconnection = {cell_url}\n[api_database]\nconnection = {api_url}\n")
        manage(config_file, "api_db", "sync")
        manage(config_file, "db", "sync", "--local_cell")
        created = ("create_cell", "--verbose", "--name", "cell1", "--transport-url", "none:///")
        uuid = manage(config_file, "cell_v2", *created, "--database_connection", cell_url).strip()
        ours = Path(sys.executable).with_name("cellmw-manage")
        subprocess.run([ours, "--config-file", config_file, "api_db", "sync"], check=True, capture_output=True)
        execute(cell_url, fill(server, FILL_NOVAS, rows))
        novas = Novas(config_file, api_url, uuid)
        one, _ = novas.map_instances(NOVA_BIN / "nova-manage", "--max-count", "1", last=1)
        all_of_them, _ = novas.map_instances(NOVA_BIN / "nova-manage", "--reset")
        theirs = rows / (all_of_them - one)
        _, printed = novas.map_instances(ours, "-f", "value", "-c", "Rate")
        row(f"nova-manage, {server}", rows, theirs)
        row(f"cellmw-manage, {server}", rows, float(printed))
        print(f"{'  times as fast':<44}{float(printed) / theirs:>20.0f}", flush=True)


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.mapping", description="what it takes to map instances")
    parser.add_argument("pairs", nargs="*", metavar="CELL:API", help=f"the servers: {', '.join(PAIRS)} (all of them)")
    parser.add_argument("--rows", type=int, default=ROWS, help="how many instances are mapped (%(default)s)")
    parser.add_argument("--nova-rows", type=int, default=NOVA_ROWS, help="by nova-manage (%(default)s; 0 for none)")
    chosen = parser.parse_args()
    logging.disable()
    heading()
    kept = [measure_pair(*pair.split(":"), chosen.rows) for pair in chosen.pairs or PAIRS]
    if chosen.nova_rows and (NOVA_BIN / "nova-manage").exists():
        for server in SERVERS:
            measure_nova(server, chosen.nova_rows)
    elif chosen.nova_rows:
        print("nova-manage is not there to be compared with: `make test-nova` makes an environment with it")
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
