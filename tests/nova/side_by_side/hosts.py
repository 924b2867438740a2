# SPDX-License-Identifier: Apache-2.0
"""The cases of ``discover_hosts``, ``list_hosts`` and ``delete_host``."""

from __future__ import annotations

from tests.nova.side_by_side.case import Case, First, Meanwhile, Ours

NODE = "node DATABASE1 host-9 unmapped"
MAPPED_NODE = "node DATABASE1 host-9 mapped"
SERVICE = "service DATABASE1 host-9 nova-compute"
HOST = "host host-9 CELL1"
NEW = (f"+ {NODE}", f"+ {SERVICE}")
FOUND = (f"- {NODE}", f"+ {MAPPED_NODE}", f"+ {HOST}")

BY_MAPPING = "a host is new where it has no mapping, whatever ``mapped`` says in its cell"
MARKED = "a compute node whose host has a mapping to its cell is marked"

NODE2 = "node DATABASE2 host-8 unmapped"
IN_BOTH = (*NEW, f"+ {NODE2}", "+ service DATABASE2 host-8 nova-compute")
FOUND2 = (f"- {NODE2}", "+ node DATABASE2 host-8 mapped", "+ host host-8 CELL2")

DISCOVER = (
    Case(when="there is no new host", command="discover_hosts"),
    Case(when="there is a new host", command="discover_hosts", given=NEW, writes=FOUND),
    Case(
        when="there is a new host, and more is to be said", command="discover_hosts --verbose", given=NEW, writes=FOUND
    ),
    Case(when="there are new hosts in two cells", command="discover_hosts", given=IN_BOTH, writes=(*FOUND, *FOUND2)),
    Case(
        when="there are new hosts in two cells, and one cell is named",
        command="discover_hosts --cell_uuid CELL2",
        given=IN_BOTH,
        writes=FOUND2,
    ),
    Case(
        when="a new host is expected, and there is one",
        command="discover_hosts --strict",
        given=NEW,
        writes=FOUND,
    ),
    Case(when="a new host is expected, and there is none", command="discover_hosts --strict", exit_code=1),
    Case(
        when="a new host is expected in a cell, and there is one in another",
        command="discover_hosts --strict --cell_uuid CELL2",
        given=NEW,
        exit_code=1,
    ),
    Case(
        when="a new host is expected, and the other program has found it",
        command="discover_hosts --strict",
        given=NEW,
        first=First("discover_hosts --strict"),
        exit_code=1,
    ),
    Case(
        when="a host has a service only",
        command="discover_hosts --strict",
        given=(f"+ {SERVICE}",),
        exit_code=1,
    ),
    Case(
        when="a host has a service only, and services are looked for",
        command="discover_hosts --by-service",
        given=(f"+ {SERVICE}",),
        writes=(f"+ {HOST}",),
    ),
    Case(
        when="services are looked for, and a new one is expected",
        command="discover_hosts --by-service --strict",
        exit_code=1,
    ),
    Case(
        when="services are looked for, and there is a new host with a compute node, too",
        command="discover_hosts --by-service --strict",
        given=NEW,
        writes=(f"+ {HOST}",),
    ),
    Case(
        when="services are looked for, and a new one is not nova-compute's",
        command="discover_hosts --by-service --strict",
        given=("+ service DATABASE1 host-9 nova-conductor",),
        exit_code=1,
    ),
    Case(
        when="a compute node counts as mapped, and its host is not",
        command="discover_hosts --strict",
        given=(f"+ {MAPPED_NODE}",),
        exit_code=1,
        ours=Ours(BY_MAPPING, exit_code=0, writes=(f"+ {HOST}",)),
    ),
    Case(
        when="a compute node counts as new, and its host is mapped to its cell",
        command="discover_hosts",
        given=(f"+ {NODE}", f"+ {HOST}"),
        ours=Ours(MARKED, writes=(f"- {NODE}", f"+ {MAPPED_NODE}")),
    ),
    Case(
        when="a host of that name is mapped to another cell",
        command="discover_hosts",
        given=(f"+ {NODE}", "+ host host-9 CELL2"),
    ),
    Case(
        when="two cells have new hosts of one name",
        command="discover_hosts",
        given=(f"+ {NODE}", "+ node DATABASE2 host-9 unmapped"),
        writes=FOUND,
        ours=Ours("neither is mapped until one has another name: either might be meant", exit_code=3, writes=()),
    ),
    Case(when="there is no cell of that uuid", command="discover_hosts --cell_uuid UNKNOWN", exit_code=255),
    Case(when="it is cell0 that is named", command="discover_hosts --cell_uuid CELL0"),
    Case(
        when="a cell is disabled",
        command="discover_hosts",
        given=(
            *NEW,
            "- cell CELL1 cell1 QUEUE1 DATABASE1 enabled",
            "+ cell CELL1 cell1 QUEUE1 DATABASE1 disabled",
        ),
        writes=FOUND,
    ),
    Case(
        when="another process maps the host at the same moment",
        command="discover_hosts",
        given=NEW,
        meanwhile=Meanwhile(("INSERT INTO host_mappings", "BEGIN IMMEDIATE"), f"+ {HOST}"),
        exit_code=2,
        writes=(f"+ {HOST}",),
        ours=Ours(
            "any number of these may run at a time", exit_code=0, writes=(f"- {NODE}", f"+ {MAPPED_NODE}", f"+ {HOST}")
        ),
    ),
    Case(
        when="the database of a cell is gone",
        command="discover_hosts",
        given=(
            *NEW,
            "- cell CELL2 cell2 QUEUE2 DATABASE2 enabled",
            "+ cell CELL2 cell2 QUEUE2 DATABASE_GONE enabled",
        ),
        exit_code=255,
        writes=FOUND,
    ),
)

LIST = (
    Case(when="a host is mapped", command="list_hosts", prints=("cell1 CELL1 host-1",)),
    Case(
        when="hosts of several cells are mapped",
        command="list_hosts",
        given=("+ host a-host CELL2", "+ host z-host CELL1"),
        prints=("cell2 CELL2 a-host", "cell1 CELL1 host-1", "cell1 CELL1 z-host"),
    ),
    Case(
        when="a cell is named",
        command="list_hosts --cell_uuid CELL2",
        given=("+ host a-host CELL2", "+ host z-host CELL1"),
        prints=("cell2 CELL2 a-host",),
    ),
    Case(when="none is mapped", command="list_hosts", given=("- host host-1 CELL1",), prints=()),
    Case(when="none is mapped to the cell that is named", command="list_hosts --cell_uuid CELL2", prints=()),
    Case(
        when="the cell has no name",
        command="list_hosts",
        given=(
            "+ host host-9 CELL2",
            "- cell CELL2 cell2 QUEUE2 DATABASE2 enabled",
            "+ cell CELL2 - QUEUE2 DATABASE2 enabled",
        ),
        prints=("cell1 CELL1 host-1", "None CELL2 host-9"),
        ours=Ours(
            "a name that is not there is empty, as in ``list_cells``", prints=("cell1 CELL1 host-1", "CELL2 host-9")
        ),
    ),
    Case(when="there is no cell of that uuid", command="list_hosts --cell_uuid UNKNOWN", exit_code=1),
)

NO_INSTANCE = ("- mapping INSTANCE1 CELL1 kept", "- instance DATABASE1 INSTANCE1 host-1 alive")
GONE = (
    "- host host-1 CELL1",
    "- node DATABASE1 host-1 mapped",
    "+ node DATABASE1 host-1 unmapped",
)

DELETE = (
    Case(
        when="it has no instances",
        command="delete_host --cell_uuid CELL1 --host host-1",
        given=NO_INSTANCE,
        writes=GONE,
    ),
    Case(
        when="its instances are deleted",
        command="delete_host --cell_uuid CELL1 --host host-1",
        given=(*NO_INSTANCE, "+ instance DATABASE1 INSTANCE1 host-1 deleted"),
        writes=GONE,
    ),
    Case(
        when="the cell does not know it",
        command="delete_host --cell_uuid CELL1 --host host-9",
        given=(f"+ {HOST}",),
        writes=(f"- {HOST}",),
    ),
    Case(
        when="the other program has discovered it",
        command="delete_host --cell_uuid CELL1 --host host-9",
        given=NEW,
        first=First("discover_hosts --strict"),
        writes=(f"- {HOST}", f"- {MAPPED_NODE}", f"+ {NODE}"),
    ),
    Case(
        when="there is no cell of that uuid",
        command="delete_host --cell_uuid UNKNOWN --host host-1",
        exit_code=1,
    ),
    Case(when="it is not mapped", command="delete_host --cell_uuid CELL1 --host host-9", exit_code=2),
    Case(
        when="it is mapped to another cell",
        command="delete_host --cell_uuid CELL2 --host host-1",
        exit_code=3,
    ),
    Case(when="it has instances", command="delete_host --cell_uuid CELL1 --host host-1", exit_code=4),
    Case(when="it has no name", command="delete_host --cell_uuid CELL1", exit_code=2),
    Case(
        when="the database of the cell is gone",
        command="delete_host --cell_uuid CELL2 --host host-8",
        given=(
            "- cell CELL2 cell2 QUEUE2 DATABASE2 enabled",
            "+ cell CELL2 cell2 QUEUE2 DATABASE_GONE enabled",
            "+ host host-8 CELL2",
        ),
        exit_code=255,
    ),
)

CASES = (*DISCOVER, *LIST, *DELETE)
