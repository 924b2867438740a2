# SPDX-License-Identifier: Apache-2.0
"""The cases of ``simple_cell_setup`` and ``map_cell_and_hosts``."""

from __future__ import annotations

from tests.nova.side_by_side.case import Case, First, Ours

CELL0 = "cell CELL0 cell0 none:/// DATABASE0 enabled"
CELL1 = "cell CELL1 cell1 QUEUE1 DATABASE1 enabled"
CELL2 = "cell CELL2 cell2 QUEUE2 DATABASE2 enabled"
MAPPED = ("- host host-1 CELL1", "- mapping INSTANCE1 CELL1 kept")
UNMAPPED = (
    f"- {CELL0}",
    f"- {CELL1}",
    f"- {CELL2}",
    *MAPPED,
    "- node DATABASE1 host-1 mapped",
    "+ node DATABASE1 host-1 unmapped",
)
"""A Nova without cells, with a host and an instance."""

NEW = "+ cell NEW - QUEUE1 DATABASE1 enabled"
WHOLE = (f"+ {CELL0}", NEW, "+ host host-1 NEW", "+ mapping INSTANCE1 NEW kept")
HOST9 = ("+ node DATABASE1 host-9 unmapped", "+ service DATABASE1 host-9 nova-compute")
NO_HOSTS = (
    "- node DATABASE1 host-1 unmapped",
    "- service DATABASE1 host-1 nova-compute",
    "- instance DATABASE1 INSTANCE1 host-1 alive",
)

MARKED = "the cell's database is told which hosts are mapped"
MARK = ("- node DATABASE1 host-1 unmapped", "+ node DATABASE1 host-1 mapped")
MARK9 = ("- node DATABASE1 host-9 unmapped", "+ node DATABASE1 host-9 mapped")

SAME_DATABASE = "the cell is the one that is recorded with the database"

SETUP = (
    Case(
        when="there are no cells",
        command="simple_cell_setup",
        given=UNMAPPED,
        writes=WHOLE,
        ours=Ours(MARKED, writes=(*WHOLE, *MARK)),
    ),
    Case(
        when="there are no cells, and a transport URL is typed",
        command="simple_cell_setup --transport-url QUEUE3",
        given=UNMAPPED,
        writes=(f"+ {CELL0}", "+ cell NEW - QUEUE3 DATABASE1 enabled", *WHOLE[2:]),
        ours=Ours(MARKED, writes=(f"+ {CELL0}", "+ cell NEW - QUEUE3 DATABASE1 enabled", *WHOLE[2:], *MARK)),
    ),
    Case(
        when="the other program has done it",
        command="simple_cell_setup",
        given=UNMAPPED,
        first=First("simple_cell_setup"),
        ours=Ours(MARKED, writes=MARK),
    ),
    Case(
        when="the other program has done a part of it",
        command="simple_cell_setup",
        given=UNMAPPED,
        first=First("map_cell0"),
        writes=WHOLE[1:],
        ours=Ours(MARKED, writes=(*WHOLE[1:], *MARK)),
    ),
    Case(
        when="there is a cell, and a new host",
        command="simple_cell_setup",
        given=HOST9,
        writes=("+ host host-9 CELL1",),
        ours=Ours(MARKED, writes=("+ host host-9 CELL1", *MARK9)),
    ),
    Case(
        when="there is a cell, and an instance that is not mapped",
        command="simple_cell_setup",
        given=("- mapping INSTANCE1 CELL1 kept",),
        writes=("+ mapping INSTANCE1 CELL1 kept",),
    ),
    Case(
        when="there are no hosts",
        command="simple_cell_setup",
        given=(*UNMAPPED, *NO_HOSTS),
        exit_code=1,
        writes=(f"+ {CELL0}",),
    ),
    Case(
        when="the transport URL can't be read",
        command="simple_cell_setup --transport-url rabbit://broker3:port/",
        given=UNMAPPED,
        exit_code=1,
    ),
    Case(
        when="there is a cell without hosts that has the database",
        command="simple_cell_setup",
        given=(*MAPPED, "- node DATABASE1 host-1 mapped", "+ node DATABASE1 host-1 unmapped"),
        writes=WHOLE[1:],
        ours=Ours(SAME_DATABASE, writes=("+ host host-1 CELL1", "+ mapping INSTANCE1 CELL1 kept", *MARK)),
    ),
    Case(
        when="there are no cells, and cell0 has no tables",
        command="simple_cell_setup",
        given=(*UNMAPPED, "- tables DATABASE0"),
        writes=(*WHOLE, "+ tables DATABASE0"),
        ours=Ours("tables are the service's to make; that they are missing is said", writes=(*WHOLE, *MARK)),
    ),
    Case(
        when="``cellmw-manage api_db sync`` was not run",
        command="simple_cell_setup",
        given=UNMAPPED,
        synced=False,
        writes=WHOLE,
        ours=Ours(MARKED, writes=(*WHOLE, *MARK)),
    ),
    Case(
        when="no database is configured",
        command="simple_cell_setup",
        given=UNMAPPED,
        configuration="silent.conf",
        exit_code=255,
        ours=Ours("one line, not a traceback", exit_code=1),
    ),
)

MAP = (
    Case(
        when="there is no cell",
        command="map_cell_and_hosts --name cell1 --verbose",
        given=UNMAPPED,
        writes=("+ cell NEW cell1 QUEUE1 DATABASE1 enabled", "+ host host-1 NEW"),
        prints=("NEW",),
        ours=Ours(MARKED, writes=("+ cell NEW cell1 QUEUE1 DATABASE1 enabled", "+ host host-1 NEW", *MARK)),
    ),
    Case(
        when="a transport URL is typed",
        command="map_cell_and_hosts --transport-url QUEUE3",
        given=UNMAPPED,
        writes=("+ cell NEW - QUEUE3 DATABASE1 enabled", "+ host host-1 NEW"),
        ours=Ours(MARKED, writes=("+ cell NEW - QUEUE3 DATABASE1 enabled", "+ host host-1 NEW", *MARK)),
    ),
    Case(when="all hosts are mapped", command="map_cell_and_hosts"),
    Case(
        when="there is a cell, and a new host",
        command="map_cell_and_hosts --verbose",
        given=HOST9,
        writes=("+ host host-9 CELL1",),
        prints=("CELL1",),
        ours=Ours(MARKED, writes=("+ host host-9 CELL1", *MARK9)),
    ),
    Case(
        when="the other program has done it",
        command="map_cell_and_hosts",
        given=UNMAPPED,
        first=First("map_cell_and_hosts"),
        ours=Ours(MARKED, writes=MARK),
    ),
    Case(when="there are no hosts", command="map_cell_and_hosts", given=(*UNMAPPED, *NO_HOSTS)),
    Case(
        when="the transport URL can't be read",
        command="map_cell_and_hosts --transport-url rabbit://broker3:port/",
        given=UNMAPPED,
        exit_code=1,
    ),
    Case(
        when="the hosts are mapped to a cell with another database",
        command="map_cell_and_hosts",
        given=(*HOST9, "- host host-1 CELL1", "+ host host-1 CELL2"),
        writes=("+ host host-9 CELL2",),
        ours=Ours(SAME_DATABASE, writes=("+ host host-9 CELL1", *MARK9)),
    ),
    Case(
        when="a cell without hosts has the database",
        command="map_cell_and_hosts",
        given=(*MAPPED,),
        writes=(NEW, "+ host host-1 NEW"),
        ours=Ours(SAME_DATABASE, writes=("+ host host-1 CELL1",)),
    ),
)

CASES = (*SETUP, *MAP)
