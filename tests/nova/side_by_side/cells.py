# SPDX-License-Identifier: Apache-2.0
"""The cases of ``create_cell``, ``list_cells``, ``update_cell``, ``delete_cell`` and ``map_cell0``."""

from __future__ import annotations

from tests.nova.side_by_side.case import Case, First, Meanwhile, Ours

FREE = "--transport-url QUEUE3 --database_connection DATABASE3"
NEW = "+ cell NEW cell3 QUEUE3 DATABASE3 enabled"
MAPPED = ("host host-1 CELL1", "mapping INSTANCE1 CELL1 kept")
CELL0 = "cell CELL0 cell0 none:/// DATABASE0 enabled"
CELL1 = "cell CELL1 cell1 QUEUE1 DATABASE1 enabled"
CELL2 = "cell CELL2 cell2 QUEUE2 DATABASE2 enabled"

REMOTE_CELL = "cell CELL1 cell1 QUEUE1 DATABASE3 enabled"
REMOTE = (*(f"- {each}" for each in (CELL0, CELL1, CELL2, *MAPPED)), f"+ {REMOTE_CELL}")

UNUSABLE = "a URL that nobody could use is refused"
MASKED = "each password is ``***``, that of each host and among the parameters, with ``--verbose``, too"

CREATE = (
    Case(when="it is new", command=f"create_cell --name cell3 {FREE}", writes=(NEW,)),
    Case(
        when="its uuid is asked for",
        command=f"create_cell --name cell3 {FREE} --verbose",
        writes=(NEW,),
        prints=("NEW",),
    ),
    Case(
        when="it is not to get instances yet",
        command=f"create_cell --name cell3 {FREE} --disabled",
        writes=("+ cell NEW cell3 QUEUE3 DATABASE3 disabled",),
    ),
    Case(when="it has no name", command=f"create_cell {FREE}", writes=("+ cell NEW - QUEUE3 DATABASE3 enabled",)),
    Case(
        when="another has its name",
        command=f"create_cell --name cell3 {FREE}",
        writes=(NEW,),
        given=("+ cell UNKNOWN cell3 QUEUE4 DATABASE4 enabled",),
    ),
    Case(
        when="its URLs are configured",
        command="create_cell --name cell3",
        configuration="another.conf",
        writes=(NEW,),
    ),
    Case(
        when="its URLs are templates",
        command="create_cell --name cell3 --transport-url TEMPLATE_OF_QUEUE --database_connection TEMPLATE_OF_DATABASE",
        configuration="another.conf",
        writes=("+ cell NEW cell3 TEMPLATE_OF_QUEUE TEMPLATE_OF_DATABASE enabled",),
    ),
    Case(
        when="the other program has deleted it",
        command="create_cell --name cell2 --transport-url QUEUE2 --database_connection DATABASE2",
        first=First("delete_cell --cell_uuid CELL2"),
        writes=("+ cell NEW cell2 QUEUE2 DATABASE2 enabled",),
    ),
    Case(
        when="it has no transport URL, and the one that is configured is empty",
        command="create_cell --name cell3 --database_connection DATABASE3",
        configuration="empty.conf",
        exit_code=1,
    ),
    Case(
        when="it has no database URL, typed or configured",
        command="create_cell --name cell3 --transport-url QUEUE3",
        configuration="silent.conf",
        exit_code=1,
    ),
    Case(
        when="it has no transport URL, typed or configured",
        command="create_cell --name cell3 --database_connection DATABASE3",
        configuration="silent.conf",
        writes=("+ cell NEW cell3 rabbit:// DATABASE3 enabled",),
        ours=Ours("oslo.messaging's default is not taken for a cell's URL", exit_code=1, writes=()),
    ),
    Case(
        when="its transport URL can't be read",
        command="create_cell --name cell3 --transport-url rabbit://broker3:port/ --database_connection DATABASE3",
        exit_code=1,
    ),
    Case(
        when="no driver has the scheme of its transport URL",
        command="create_cell --name cell3 --transport-url rabid://broker3/ --database_connection DATABASE3",
        writes=("+ cell NEW cell3 rabid://broker3/ DATABASE3 enabled",),
        ours=Ours(UNUSABLE, exit_code=1, writes=()),
    ),
    Case(
        when="its database URL can't be read",
        command="create_cell --name cell3 --transport-url QUEUE3 --database_connection NO_URL",
        writes=("+ cell NEW cell3 QUEUE3 NO_URL enabled",),
        ours=Ours(UNUSABLE, exit_code=1, writes=()),
    ),
    Case(
        when="another has its database",
        command="create_cell --name cell3 --transport-url QUEUE3 --database_connection DATABASE2",
        exit_code=2,
    ),
    Case(
        when="another has its message queue",
        command="create_cell --name cell3 --transport-url QUEUE2 --database_connection DATABASE3",
        exit_code=2,
    ),
    Case(
        when="another has its message queue, by another user",
        command="create_cell --name cell3 --transport-url OTHER_WAY_TO_QUEUE2 --database_connection DATABASE3",
        writes=("+ cell NEW cell3 OTHER_WAY_TO_QUEUE2 DATABASE3 enabled",),
        ours=Ours("compared is where URLs lead, not how they are written", exit_code=2, writes=()),
    ),
    Case(
        when="it has no message queue, as cell0",
        command="create_cell --name cell3 --transport-url none:/// --database_connection DATABASE3",
        exit_code=2,
        ours=Ours(
            "to have no message queue is not to share one",
            exit_code=0,
            writes=("+ cell NEW cell3 none:/// DATABASE3 enabled",),
        ),
    ),
    Case(when="it is asked for what there is not", command=f"create_cell {FREE} --colour blue", exit_code=2),
)

NO_NETLOC = "a URL that names no host is shown as it is; nova-manage leaves slashes out"
TEMPLATES = "a template is shown, not what it comes to by the configuration of this host"

LIST = (
    Case(
        when="there are none",
        command="list_cells",
        given=(*(f"- {each}" for each in (CELL0, CELL1, CELL2)), *(f"- {each}" for each in MAPPED)),
        prints=(),
    ),
    Case(
        when="a cell has passwords",
        command="list_cells",
        given=REMOTE,
        prints=("cell1 CELL1 rabbit://nova:****@broker1:5672/cell1 mysql+pymysql://nova:****@db3/nova_cell3 False",),
        ours=Ours(
            MASKED,
            prints=("cell1 CELL1 rabbit://nova:***@broker1:5672/cell1 mysql+pymysql://nova:***@db3/nova_cell3 False",),
        ),
    ),
    Case(
        when="a cell has passwords, and they are asked for",
        command="list_cells --verbose",
        given=REMOTE,
        prints=("cell1 CELL1 QUEUE1 DATABASE3 False",),
        ours=Ours(
            MASKED,
            prints=("cell1 CELL1 rabbit://nova:***@broker1:5672/cell1 mysql+pymysql://nova:***@db3/nova_cell3 False",),
        ),
    ),
    Case(
        when="a cell has several brokers and a secret among the parameters, and is disabled",
        command="list_cells",
        given=(*REMOTE, f"- {REMOTE_CELL}", "+ cell CELL1 cell1 QUEUES DATABASE3 disabled"),
        prints=(
            "cell1 CELL1 rabbit://nova:****@broker4:5672/cell3?ssl_key_password=no-secret-5 "
            "mysql+pymysql://nova:****@db3/nova_cell3 True",
        ),
        ours=Ours(
            MASKED,
            prints=(
                "cell1 CELL1 rabbit://nova:***@broker3:5672,nova:***@broker4:5672/cell3?ssl_key_password=*** "
                "mysql+pymysql://nova:***@db3/nova_cell3 True",
            ),
        ),
    ),
    Case(
        when="a cell has no name, and its URLs are templates",
        command="list_cells",
        configuration="another.conf",
        given=(*REMOTE, f"- {REMOTE_CELL}", "+ cell CELL1 - TEMPLATE_OF_QUEUE TEMPLATE_OF_DATABASE enabled"),
        prints=("CELL1 rabbit://nova:****@broker3:5672/cell3 mysql+pymysql://nova:****@db3/nova_cell3 False",),
        ours=Ours(TEMPLATES, prints=("CELL1 TEMPLATE_OF_QUEUE TEMPLATE_OF_DATABASE False",)),
    ),
    Case(
        when="a URL names no host",
        command="list_cells",
        given=(*(f"- {each}" for each in (CELL1, CELL2)), *(f"- {each}" for each in MAPPED)),
        only="sqlite",
        prints=("cell0 CELL0 none:/ MANGLED_DATABASE0 False",),
        ours=Ours(NO_NETLOC, prints=("cell0 CELL0 none:/// DATABASE0 False",)),
    ),
)

UPDATE1, UPDATE2 = "update_cell --cell_uuid CELL1", "update_cell --cell_uuid CELL2"
ONLY_TYPED = "what is not typed stays as it is; nova-manage takes the URLs that are configured"
DISABLED1 = "cell CELL1 cell1 QUEUE1 DATABASE1 disabled"

UPDATE = (
    Case(
        when="a name is typed, and the URLs of the cell are those that are configured",
        command=f"{UPDATE1} --name new-name",
        writes=(f"- {CELL1}", "+ cell CELL1 new-name QUEUE1 DATABASE1 enabled"),
    ),
    Case(
        when="a name is typed, and no cell has the URLs that are configured",
        command=f"{UPDATE2} --name new-name",
        configuration="another.conf",
        writes=(f"- {CELL2}", "+ cell CELL2 new-name QUEUE3 DATABASE3 enabled"),
        ours=Ours(ONLY_TYPED, writes=(f"- {CELL2}", "+ cell CELL2 new-name QUEUE2 DATABASE2 enabled")),
    ),
    Case(
        when="a name is typed, and another cell has the URLs that are configured",
        command=f"{UPDATE2} --name new-name",
        exit_code=3,
        ours=Ours(ONLY_TYPED, exit_code=0, writes=(f"- {CELL2}", "+ cell CELL2 new-name QUEUE2 DATABASE2 enabled")),
    ),
    Case(
        when="a name is typed, and no URLs are configured",
        command=f"{UPDATE2} --name new-name",
        configuration="silent.conf",
        writes=(f"- {CELL2}", "+ cell CELL2 new-name rabbit:// DATABASE2 enabled"),
        ours=Ours(ONLY_TYPED, writes=(f"- {CELL2}", "+ cell CELL2 new-name QUEUE2 DATABASE2 enabled")),
    ),
    Case(
        when="nothing is typed, and no cell has the URLs that are configured",
        command=UPDATE2,
        configuration="another.conf",
        writes=(f"- {CELL2}", "+ cell CELL2 cell2 QUEUE3 DATABASE3 enabled"),
        ours=Ours(ONLY_TYPED, writes=()),
    ),
    Case(
        when="nothing is typed, and another cell has the URLs that are configured",
        command=UPDATE2,
        exit_code=3,
        ours=Ours(ONLY_TYPED, exit_code=0),
    ),
    Case(when="nothing is typed, and the URLs of the cell are those that are configured", command=UPDATE1),
    Case(
        when="both URLs are typed",
        command=f"{UPDATE2} {FREE}",
        writes=(f"- {CELL2}", "+ cell CELL2 cell2 QUEUE3 DATABASE3 enabled"),
    ),
    Case(
        when="a transport URL is typed",
        command=f"{UPDATE1} --transport-url QUEUE3",
        writes=(f"- {CELL1}", "+ cell CELL1 cell1 QUEUE3 DATABASE1 enabled"),
    ),
    Case(
        when="a database URL is typed",
        command=f"{UPDATE1} --database_connection DATABASE3",
        writes=(f"- {CELL1}", "+ cell CELL1 cell1 QUEUE1 DATABASE3 enabled"),
    ),
    Case(
        when="its own URLs are typed",
        command=f"{UPDATE2} --transport-url QUEUE2 --database_connection DATABASE2",
    ),
    Case(
        when="the other program has created it",
        command="update_cell --cell_uuid NEW --name new-name",
        configuration="another.conf",
        first=First(f"create_cell --name cell3 {FREE}"),
        writes=("- cell NEW cell3 QUEUE3 DATABASE3 enabled", "+ cell NEW new-name QUEUE3 DATABASE3 enabled"),
    ),
    Case(when="it is disabled", command=f"{UPDATE1} --disable", writes=(f"- {CELL1}", f"+ {DISABLED1}")),
    Case(
        when="it is enabled",
        command=f"{UPDATE1} --enable",
        given=(f"- {CELL1}", f"+ {DISABLED1}"),
        writes=(f"- {DISABLED1}", f"+ {CELL1}"),
    ),
    Case(
        when="the other program has disabled it",
        command=f"{UPDATE1} --enable",
        first=First(f"{UPDATE1} --disable"),
        writes=(f"- {DISABLED1}", f"+ {CELL1}"),
    ),
    Case(when="it is disabled, and was before", command=f"{UPDATE1} --disable", given=(f"- {CELL1}", f"+ {DISABLED1}")),
    Case(when="it is enabled, and was before", command=f"{UPDATE1} --enable"),
    Case(when="there is none with that uuid", command="update_cell --cell_uuid UNKNOWN --name new-name", exit_code=1),
    Case(
        when="somebody deletes it at that moment",
        command=f"{UPDATE2} --name new-name {FREE}",
        meanwhile=Meanwhile(("SELECT cell_mappings", "BEGIN IMMEDIATE"), f"- {CELL2}", time=3, our_time=2),
        exit_code=2,
        writes=(f"- {CELL2}",),
        ours=Ours("it is as if it had been deleted before", exit_code=1),
    ),
    Case(when="the name is longer than the column", command=f"{UPDATE1} --name LONG_NAME", only="mysql", exit_code=2),
    Case(
        when="the name is longer than the column",
        command=f"{UPDATE1} --name LONG_NAME",
        only="sqlite",
        writes=(f"- {CELL1}", "+ cell CELL1 LONG_NAME QUEUE1 DATABASE1 enabled"),
        ours=Ours("as on MariaDB", exit_code=2, writes=()),
    ),
    Case(
        when="the transport URL can't be read",
        command=f"{UPDATE1} --transport-url rabbit://broker3:port/",
        ours=Ours(
            "a URL that can't be used is an error; nova-manage goes on with the one that is configured", exit_code=2
        ),
    ),
    Case(when="another has the database", command=f"{UPDATE1} --database_connection DATABASE2", exit_code=3),
    Case(when="another has the message queue", command=f"{UPDATE1} --transport-url QUEUE2", exit_code=3),
    Case(when="it is disabled and enabled", command=f"{UPDATE1} --disable --enable", exit_code=4),
    Case(
        when="cell0 is disabled",
        command="update_cell --cell_uuid CELL0 --disable",
        configuration="another.conf",
        exit_code=5,
    ),
    Case(
        when="cell0 is enabled",
        command="update_cell --cell_uuid CELL0 --enable",
        configuration="another.conf",
        exit_code=5,
    ),
    Case(when="none is named", command="update_cell --name new-name", exit_code=2),
)

DELETE = (
    Case(when="nothing is mapped to it", command="delete_cell --cell_uuid CELL2", writes=(f"- {CELL2}",)),
    Case(
        when="nothing is mapped to it, and it is forced",
        command="delete_cell --cell_uuid CELL2 --force",
        writes=(f"- {CELL2}",),
    ),
    Case(
        when="the other program has created it",
        command="delete_cell --cell_uuid NEW",
        first=First(f"create_cell --name cell3 {FREE}"),
        writes=("- cell NEW cell3 QUEUE3 DATABASE3 enabled",),
    ),
    Case(when="there is none with that uuid", command="delete_cell --cell_uuid UNKNOWN", exit_code=1),
    Case(
        when="a host is mapped to it",
        command="delete_cell --cell_uuid CELL1",
        given=("- mapping INSTANCE1 CELL1 kept",),
        exit_code=2,
    ),
    Case(when="a host and an instance are mapped to it", command="delete_cell --cell_uuid CELL1", exit_code=2),
    Case(
        when="an instance is mapped to it",
        command="delete_cell --cell_uuid CELL1",
        given=("- host host-1 CELL1",),
        exit_code=3,
    ),
    Case(
        when="a host and an instance are mapped to it, and it is forced",
        command="delete_cell --cell_uuid CELL1 --force",
        exit_code=3,
    ),
    Case(
        when="a host is mapped to it, and it is forced",
        command="delete_cell --cell_uuid CELL1 --force",
        given=("- mapping INSTANCE1 CELL1 kept",),
        writes=(
            f"- {CELL1}",
            "- host host-1 CELL1",
            "- node DATABASE1 host-1 mapped",
            "+ node DATABASE1 host-1 unmapped",
        ),
        ours=Ours(
            "the cell's database is not asked, as it may be gone: ``mapped`` stays as it is there",
            writes=(f"- {CELL1}", "- host host-1 CELL1"),
        ),
    ),
    Case(
        when="an instance is mapped to it that is deleted",
        command="delete_cell --cell_uuid CELL1",
        given=(
            "- host host-1 CELL1",
            "- mapping INSTANCE1 CELL1 kept",
            "+ mapping INSTANCE1 CELL1 queued",
            "- instance DATABASE1 INSTANCE1 host-1 alive",
            "+ instance DATABASE1 INSTANCE1 host-1 deleted",
        ),
        exit_code=4,
    ),
    Case(
        when="an instance is mapped to it that is deleted, and it is forced",
        command="delete_cell --cell_uuid CELL1 --force",
        given=(
            "- host host-1 CELL1",
            "- mapping INSTANCE1 CELL1 kept",
            "+ mapping INSTANCE1 CELL1 queued",
            "- instance DATABASE1 INSTANCE1 host-1 alive",
            "+ instance DATABASE1 INSTANCE1 host-1 deleted",
        ),
        writes=(f"- {CELL1}", "- mapping INSTANCE1 CELL1 queued"),
    ),
    Case(
        when="an instance is mapped to it whose row is archived, and whose mapping is not queued for deletion",
        command="delete_cell --cell_uuid CELL1",
        given=("- host host-1 CELL1", "- instance DATABASE1 INSTANCE1 host-1 alive"),
        exit_code=4,
        ours=Ours("an instance is deleted where its mapping says so", exit_code=3),
    ),
    Case(
        when="an instance is mapped to it that is queued for deletion and still there, and it is forced",
        command="delete_cell --cell_uuid CELL1 --force",
        given=(
            "- host host-1 CELL1",
            "- mapping INSTANCE1 CELL1 kept",
            "+ mapping INSTANCE1 CELL1 queued",
        ),
        exit_code=3,
        ours=Ours(
            "an instance is deleted where its mapping says so",
            exit_code=0,
            writes=(f"- {CELL1}", "- mapping INSTANCE1 CELL1 queued"),
        ),
    ),
    Case(
        when="its database is gone, and it is forced",
        command="delete_cell --cell_uuid CELL2 --force",
        given=(
            f"- {CELL2}",
            "+ cell CELL2 cell2 QUEUE2 DATABASE_GONE enabled",
            "+ host host-2 CELL2",
        ),
        exit_code=255,
        ours=Ours(
            "the cell's database is not asked, as it may be gone",
            exit_code=0,
            writes=("- cell CELL2 cell2 QUEUE2 DATABASE_GONE enabled", "- host host-2 CELL2"),
        ),
    ),
    Case(when="none is named", command="delete_cell", exit_code=2),
)

MAP_CELL0 = (
    Case(when="it is not there", command="map_cell0", given=(f"- {CELL0}",), writes=(f"+ {CELL0}",)),
    Case(
        when="its database is typed",
        command="map_cell0 --database_connection DATABASE3",
        given=(f"- {CELL0}",),
        writes=("+ cell CELL0 cell0 none:/// DATABASE3 enabled",),
    ),
    Case(when="it is there", command="map_cell0"),
    Case(when="it is there with another database", command="map_cell0 --database_connection DATABASE3"),
    Case(
        when="the other program has mapped it",
        command="map_cell0",
        given=(f"- {CELL0}",),
        first=First("map_cell0"),
    ),
    Case(
        when="no database is configured",
        command="map_cell0",
        given=(f"- {CELL0}",),
        configuration="silent.conf",
        exit_code=255,
        ours=Ours("one line, as with ``create_cell``, not a traceback", exit_code=1),
    ),
    Case(
        when="another cell has the database",
        command="map_cell0 --database_connection DATABASE2",
        given=(f"- {CELL0}",),
        writes=("+ cell CELL0 cell0 none:/// DATABASE2 enabled",),
        ours=Ours("as with ``create_cell``", exit_code=2, writes=()),
    ),
    Case(
        when="the database URL can't be read",
        command="map_cell0 --database_connection NO_URL",
        given=(f"- {CELL0}",),
        writes=("+ cell CELL0 cell0 none:/// NO_URL enabled",),
        ours=Ours(UNUSABLE, exit_code=1, writes=()),
    ),
    Case(
        when="the password has special characters",
        command="map_cell0",
        given=(f"- {CELL0}",),
        configuration="special.conf",
        writes=("+ cell CELL0 cell0 none:/// DECODED_DATABASE_cell0 enabled",),
        ours=Ours("what is encoded stays so", writes=("+ cell CELL0 cell0 none:/// ENCODED_DATABASE_cell0 enabled",)),
    ),
)

CASES = (*CREATE, *LIST, *UPDATE, *DELETE, *MAP_CELL0)
