# SPDX-License-Identifier: Apache-2.0
"""The cases of ``map_instances`` and ``verify_instance``."""

from __future__ import annotations

from tests.nova.side_by_side.case import Case, First, Meanwhile, Ours

MAP = "map_instances --cell_uuid CELL1"
ROWS = tuple(f"+ instance DATABASE1 INSTANCE{number} host-1 alive" for number in (2, 3, 4, 5))
"""Instances that are not mapped, besides the one that is."""


def mapped(*numbers: int) -> tuple[str, ...]:
    """Say that these were mapped."""
    return tuple(f"+ mapping INSTANCE{number} CELL1 kept" for number in numbers)


OWN_PLACE = "how far it has come is noted for each cell by itself, not as an instance"
OWN_WAY = "where the other has stopped is not looked at: what is mapped stays so, and what is not gets mapped"
PROGRESS = "+ progress CELL1"
KILLED = Meanwhile(("INSERT INTO instance_mappings",), then="kill", time=3)
INTERRUPTED = KILLED._replace(then="interrupt")
A_BATCH = "a batch is one transaction, so that it is there as a whole or not at all"

MAP_INSTANCES = (
    Case(when="all are mapped", command=MAP),
    Case(when="there are none", command="map_instances --cell_uuid CELL2"),
    Case(when="some are not mapped", command=MAP, given=ROWS, writes=mapped(2, 3, 4, 5)),
    Case(
        when="one is deleted in the cell's database",
        command=MAP,
        given=("+ instance DATABASE1 INSTANCE2 host-1 deleted",),
        writes=mapped(2),
    ),
    Case(
        when="it is mapped to another cell",
        command=MAP,
        given=("- mapping INSTANCE1 CELL1 kept", "+ mapping INSTANCE1 CELL2 kept"),
    ),
    Case(
        when="it is mapped and not to be mapped yet to any cell",
        command=MAP,
        given=("- mapping INSTANCE1 CELL1 kept", "+ mapping INSTANCE1 - kept"),
    ),
    Case(
        when="there are more than are to be mapped",
        command=f"{MAP} --max-count 2",
        given=ROWS,
        exit_code=1,
        writes=(*mapped(2), "+ marker INSTANCE2"),
        ours=Ours(OWN_PLACE, writes=(*mapped(2), PROGRESS)),
    ),
    Case(
        when="there are as many as are to be mapped",
        command=f"{MAP} --max-count 5",
        given=ROWS,
        exit_code=1,
        writes=(*mapped(2, 3, 4, 5), "+ marker INSTANCE5"),
        ours=Ours(OWN_PLACE, writes=(*mapped(2, 3, 4, 5), PROGRESS)),
    ),
    Case(
        when="there are fewer than are to be mapped",
        command=f"{MAP} --max-count 6",
        given=ROWS,
        writes=mapped(2, 3, 4, 5),
    ),
    Case(
        when="this program has mapped the first",
        command=f"{MAP} --max-count 2",
        given=(*ROWS, "+ marker INSTANCE2"),
        exit_code=1,
        writes=(*mapped(3, 4), "- marker INSTANCE2", "+ marker INSTANCE4"),
        ours=Ours(OWN_WAY, writes=(*mapped(2), PROGRESS)),
    ),
    Case(
        when="the other program has mapped the first",
        command=f"{MAP} --max-count 4",
        given=ROWS,
        first=First(f"{MAP} --max-count 2", 1),
        exit_code=1,
        writes=(*mapped(3, 4), "+ marker INSTANCE4"),
        ours=Ours(OWN_WAY, writes=(*mapped(3, 4), PROGRESS)),
    ),
    Case(
        when="the other program has mapped the first, and this one is to map the rest",
        command=MAP,
        given=ROWS,
        first=First(f"{MAP} --max-count 2", 1),
        writes=mapped(3, 4, 5),
    ),
    Case(
        when="the other program has mapped all, without having seen the end",
        command=MAP,
        given=ROWS,
        first=First(f"{MAP} --max-count 5", 1),
    ),
    Case(
        when="it is to begin anew where the other program has mapped the first",
        command=f"{MAP} --max-count 3 --reset",
        given=ROWS,
        first=First(f"{MAP} --max-count 2", 1),
        exit_code=1,
        writes=(*mapped(3), "+ marker INSTANCE3"),
        ours=Ours(OWN_PLACE, writes=(*mapped(3), "- marker INSTANCE2", PROGRESS)),
    ),
    Case(
        when="nova-manage's mark is behind instances that are not mapped",
        command=MAP,
        given=(*ROWS, "+ marker INSTANCE3"),
        writes=(*mapped(4, 5), "- marker INSTANCE3"),
        ours=Ours(OWN_WAY, writes=mapped(2, 3, 4, 5)),
    ),
    Case(
        when="nova-manage's mark is behind instances that are not mapped, and it is to begin anew",
        command=f"{MAP} --reset",
        given=(*ROWS, "+ marker INSTANCE3"),
        writes=(*mapped(2, 3, 4, 5), "- marker INSTANCE3"),
    ),
    Case(
        when="it is interrupted",
        command=MAP,
        given=ROWS,
        only="sqlite",
        meanwhile=INTERRUPTED,
        exit_code=255,
        writes=mapped(2),
        ours=Ours(f"it ends with 130 at every moment; {A_BATCH}", exit_code=130, writes=()),
    ),
    Case(
        when="it is interrupted",
        command=MAP,
        given=ROWS,
        only="mysql",
        meanwhile=INTERRUPTED,
        exit_code=130,
        writes=mapped(2),
        ours=Ours(A_BATCH, writes=()),
    ),
    Case(
        when="it is killed",
        command=MAP,
        given=ROWS,
        meanwhile=KILLED,
        exit_code=137,
        writes=mapped(2),
        ours=Ours(A_BATCH, writes=()),
    ),
    Case(
        when="the other program was killed",
        command=MAP,
        given=ROWS,
        first=First(MAP, 137, KILLED),
        writes=mapped(2, 3, 4, 5),
        ours=Ours(A_BATCH, writes=mapped(3, 4, 5)),
    ),
    Case(
        when="``cellmw-manage api_db sync`` was not run",
        command=MAP,
        given=ROWS,
        synced=False,
        writes=mapped(2, 3, 4, 5),
    ),
    Case(
        when="a part is to be mapped, and ``cellmw-manage api_db sync`` was not run",
        command=f"{MAP} --max-count 2",
        given=ROWS,
        synced=False,
        exit_code=1,
        writes=(*mapped(2), "+ marker INSTANCE2"),
        ours=Ours("where to go on is kept in a table of its own, and it says what makes it", exit_code=255, writes=()),
    ),
    Case(
        when="one belongs to no project",
        command=MAP,
        given=("+ instance DATABASE1 INSTANCE2 host-1 nobodys", "+ instance DATABASE1 INSTANCE3 host-1 alive"),
        exit_code=255,
        ours=Ours("all others are mapped, and those are counted", exit_code=3, writes=mapped(3)),
    ),
    Case(when="no count is typed", command=f"{MAP} --max-count many", exit_code=127),
    Case(when="none are to be mapped", command=f"{MAP} --max-count 0", exit_code=127),
    Case(when="fewer than none are to be mapped", command=f"{MAP} --max-count -1", exit_code=127),
    Case(when="there is no cell of that uuid", command="map_instances --cell_uuid UNKNOWN", exit_code=255),
    Case(when="no cell is named", command="map_instances", exit_code=2),
    Case(
        when="the cell's database is gone",
        command="map_instances --cell_uuid CELL2",
        given=(
            "- cell CELL2 cell2 QUEUE2 DATABASE2 enabled",
            "+ cell CELL2 cell2 QUEUE2 DATABASE_GONE enabled",
        ),
        exit_code=255,
    ),
)

VERIFY = "verify_instance --uuid INSTANCE1"
DELETED = (
    "- instance DATABASE1 INSTANCE1 host-1 alive",
    "+ instance DATABASE1 INSTANCE1 host-1 deleted",
)

VERIFY_INSTANCE = (
    Case(when="it is in its cell", command=VERIFY, prints=("CELL1",)),
    Case(when="it is in its cell, and nothing is to be said", command=f"{VERIFY} --quiet", prints=()),
    Case(
        when="the other program has mapped it",
        command=VERIFY,
        given=("- mapping INSTANCE1 CELL1 kept",),
        first=First(MAP),
        prints=("CELL1",),
    ),
    Case(when="it has no mapping", command=VERIFY, given=("- mapping INSTANCE1 CELL1 kept",), exit_code=1),
    Case(when="nobody knows it", command="verify_instance --uuid INSTANCE9", exit_code=1),
    Case(when="that is no uuid", command="verify_instance --uuid my-instance", exit_code=1),
    Case(
        when="it has no mapping, and nothing is to be said",
        command=f"{VERIFY} --quiet",
        given=("- mapping INSTANCE1 CELL1 kept",),
        exit_code=1,
        prints=(),
    ),
    Case(
        when="it is mapped to no cell yet",
        command=VERIFY,
        given=("- mapping INSTANCE1 CELL1 kept", "+ mapping INSTANCE1 - kept"),
        exit_code=2,
    ),
    Case(when="it is deleted in its cell", command=VERIFY, given=DELETED, exit_code=3),
    Case(
        when="it is deleted in its cell, and queued for deletion",
        command=VERIFY,
        given=(*DELETED, "- mapping INSTANCE1 CELL1 kept", "+ mapping INSTANCE1 CELL1 queued"),
        exit_code=3,
    ),
    Case(
        when="it is queued for deletion, and still there",
        command=VERIFY,
        given=("- mapping INSTANCE1 CELL1 kept", "+ mapping INSTANCE1 CELL1 queued"),
        prints=("CELL1",),
    ),
    Case(
        when="it is archived in its cell",
        command=VERIFY,
        given=("- instance DATABASE1 INSTANCE1 host-1 alive",),
        exit_code=4,
    ),
    Case(
        when="it is in another cell than its mapping says",
        command=VERIFY,
        given=("- mapping INSTANCE1 CELL1 kept", "+ mapping INSTANCE1 CELL2 kept"),
        exit_code=4,
    ),
    Case(
        when="it is archived in its cell, and nothing is to be said",
        command=f"{VERIFY} --quiet",
        given=("- instance DATABASE1 INSTANCE1 host-1 alive",),
        exit_code=4,
        prints=(),
    ),
    Case(when="none is named", command="verify_instance", exit_code=2),
    Case(
        when="the database of its cell is gone",
        command=VERIFY,
        given=(
            "- cell CELL1 cell1 QUEUE1 DATABASE1 enabled",
            "+ cell CELL1 cell1 QUEUE1 DATABASE_GONE enabled",
        ),
        exit_code=255,
    ),
)

CASES = (*MAP_INSTANCES, *VERIFY_INSTANCE)
