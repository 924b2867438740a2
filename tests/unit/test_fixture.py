# SPDX-License-Identifier: Apache-2.0
"""The fake cells that a service is tested with: what they record, how they fail, and that they tell of leaks.

What the manual says of them is run from its own lines.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oslo_context.context
import oslo_messaging
import pytest
import webob
from fixtures import MultipleExceptions
from oslo_config import cfg
from sqlalchemy import text

from cellmw import CellFilter, ClientRouter, RequestContext, database, deploy
from cellmw.exceptions import CellHasNoTransport, CellUnavailable, LeaseClosed, StoreUnavailable
from cellmw.fixture import FakeCells, Hold, Leak, Message, NoReply
from cellmw.fixture.fixtures import CellsFixture
from cellmw.rpc import ContextSerializer
from cellmw.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from sqlalchemy import Engine

pytest_plugins = ["cellmw.fixture.pytest"]

PATIENCE = 20
"""Seconds after which a test gives up on what has to come; a test that passes never waits for them."""

COMPUTE = oslo_messaging.Target(topic="compute", version="1.0")

MANUAL = Path(__file__).parents[2] / "doc" / "source" / "testing.rst"

LEAKY = """\
def test_leak(fake_cells):
    fake_cells.cells.lease(fake_cells["cell1"].record.id)
"""


def create_tables(engine: Engine) -> None:
    """Create what these tests have in a cell."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE visits (visitor VARCHAR(255))"))


@pytest.fixture
def fake_cells_options() -> dict[str, Any]:
    """The table of these tests."""
    return {"create_tables": create_tables}


@pytest.fixture
def router() -> ClientRouter:
    """A service's way to its cells' queues."""
    return ClientRouter(None, target=COMPUTE, timeout=PATIENCE)


def visit(context: Any) -> None:
    """Write to the database that the context is aimed at."""
    with database.writer(context) as session:
        visit_with(session)


def visit_with(session: Any) -> None:
    """Write by this session."""
    session.execute(text("INSERT INTO visits VALUES ('me')"))


def visits(context: Any) -> int:
    """Read from the database that the context is aimed at."""
    with database.reader(context) as session:
        return int(session.execute(text("SELECT count(*) FROM visits")).scalar_one())


def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """Answer how many visits the instance's cell has seen."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(visits(environ["cellmw.context"])).encode()]


def ask(application: CellFilter, instance_uuid: str, project_id: str = "project") -> webob.Response:
    """Ask for an instance."""
    request = webob.Request.blank(f"/servers/{instance_uuid}", headers={"X-Project-Id": project_id})
    return request.get_response(application)


# the record


def test_nothing_is_opened_before_it_is_used(fake_cells: FakeCells) -> None:
    """Making the cells opens none of them."""
    assert fake_cells.recorder.opened == []


def test_a_life(fake_cells: FakeCells, targeted: Callable[..., Any]) -> None:
    """Opening, leasing, releasing and closing are noted by the cell's name, in order."""
    for cell in ("cell2", "cell1", "cell2"):
        targeted(cell)
    recorder = fake_cells.recorder
    assert (recorder.opened, recorder.leased) == (["cell2", "cell1"], ["cell2", "cell1", "cell2"])
    fake_cells.release()
    assert sorted(recorder.released) == ["cell1", "cell2", "cell2"]
    assert recorder.closed == []
    fake_cells.close()
    assert sorted(recorder.closed) == ["cell1", "cell2"]


def test_a_request(fake_cells: FakeCells) -> None:
    """A request through the filter leases its cell once and gives it back."""
    assert ask(fake_cells.filter(app), fake_cells.map("cell2")).body == b"0"
    assert fake_cells.recorder.leased == fake_cells.recorder.released == ["cell2"]


@pytest.mark.parametrize("kind", ["cast", "fanout"])
def test_cast(fake_cells: FakeCells, targeted: Callable[..., Any], router: ClientRouter, kind: str) -> None:
    """A message is noted with its kind, method and arguments."""
    context = targeted("cell1")
    router.client(context).prepare(fanout=kind == "fanout").cast(context, "reboot", instance_uuid="x")
    assert fake_cells.recorder.sent == [Message("cell1", kind, "reboot", {"instance_uuid": "x"})]


def test_where_and_by_whom(fake_cells: FakeCells, targeted: Callable[..., Any], router: ClientRouter) -> None:
    """The context, topic, server, namespace and version are noted, but make no difference to equality."""
    context = targeted("cell1", user_id="me")
    router.client(context).prepare(server="host", version="1.7", namespace="n").cast(context, "reboot")
    router.client(context).cast(context, "reboot")
    first, second = fake_cells["cell1"].sent
    assert (first.topic, first.server, first.version, first.namespace) == ("compute", "host", "1.7", "n")
    assert first.context["user"] == "me"
    assert first == second


def test_notification(fake_cells: FakeCells, targeted: Callable[..., Any]) -> None:
    """A notification is noted with its event type and payload."""
    transport = targeted("cell1").mq_connection
    notifier = oslo_messaging.Notifier(transport, "api.host", driver="messaging", topics=["notifications"])
    notifier.info({}, "instance.reboot", {"uuid": "x"})
    assert fake_cells.recorder.sent == [Message("cell1", "notification", "instance.reboot", {"uuid": "x"})]


def test_each_cell_has_its_messages(fake_cells: FakeCells, targeted: Callable[..., Any], router: ClientRouter) -> None:
    """What was sent to one cell can be told from what was sent to all of them."""
    for cell in ("cell1", "cell2"):
        router.client(context := targeted(cell)).cast(context, "reboot")
    assert fake_cells["cell2"].sent == [Message("cell2", "cast", "reboot", {})]
    assert len(fake_cells.recorder.sent) == 2


def test_what_arrives(fake_cells: FakeCells, targeted: Callable[..., Any], router: ClientRouter) -> None:
    """Arguments are noted as they arrive, after JSON."""
    router.client(context := targeted("cell1")).cast(context, "reboot", hosts=("a", "b"))
    assert fake_cells.recorder.sent[0].arguments == {"hosts": ["a", "b"]}


def test_what_can_not_travel(fake_cells: FakeCells, targeted: Callable[..., Any], router: ClientRouter) -> None:
    """What JSON can't carry is an error of the sender, and was not sent."""
    context = targeted("cell1")
    with pytest.raises(ValueError, match="object"):
        router.client(context).cast(context, "reboot", how=object())
    assert fake_cells.recorder.sent == []


# calls


@pytest.mark.parametrize(
    ("reply", "answer"), [(42, 42), ((1, 2), [1, 2]), (lambda uuid: f"on {uuid}", "on x"), (None, None)]
)
def test_reply(
    fake_cells: FakeCells, targeted: Callable[..., Any], router: ClientRouter, reply: Any, answer: Any
) -> None:
    """A call is answered by the cell's reply, a value or a function, as it arrives after JSON."""
    fake_cells["cell1"].replies["which"] = reply
    context = targeted("cell1")
    assert router.client(context).call(context, "which", uuid="x") == answer
    assert fake_cells.recorder.sent == [Message("cell1", "call", "which", {"uuid": "x"})]


def test_reply_with_an_error(fake_cells: FakeCells, targeted: Callable[..., Any], router: ClientRouter) -> None:
    """A reply that is an exception is raised."""
    fake_cells["cell1"].replies["which"] = oslo_messaging.MessagingTimeout("late")
    context = targeted("cell1")
    with pytest.raises(oslo_messaging.MessagingTimeout, match="late"):
        router.client(context).call(context, "which")


def test_no_reply(fake_cells: FakeCells, targeted: Callable[..., Any], router: ClientRouter) -> None:
    """A call for which there is no reply fails at once, and says what to set."""
    fake_cells["cell2"].replies["which"] = 42
    context = targeted("cell1")
    with pytest.raises(NoReply, match=re.escape("fake_cells['cell1'].replies['which']")):
        router.client(context).call(context, "which")


class Endpoint:
    """A worker of the test's own."""

    def which(self, context: RequestContext) -> str:
        """Answer who asks."""
        return f"worker for {context.user_id}"


@pytest.fixture
def worker(fake_cells: FakeCells) -> Iterator[None]:
    """An RPC server on the queue of cell1."""
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, fake_cells["cell1"].transport_url)
    target = oslo_messaging.Target(topic="compute", server="host")
    server = oslo_messaging.get_rpc_server(transport, target, [Endpoint()], serializer=ContextSerializer())
    server.start()
    yield
    server.stop()
    server.wait()
    transport.cleanup()


@pytest.mark.usefixtures("worker")
def test_server_of_the_test(fake_cells: FakeCells, targeted: Callable[..., Any], router: ClientRouter) -> None:
    """A call that has no reply is answered by a server that the test runs itself."""
    context = targeted("cell1", user_id="me")
    assert router.client(context).call(context, "which") == "worker for me"
    assert fake_cells.recorder.sent == [Message("cell1", "call", "which", {})]


# cells and instances


def test_names() -> None:
    """The cells are those that are named, and cell0."""
    with FakeCells("east") as fake_cells:
        assert [str(cell.record) for cell in fake_cells] == ["cell0", "east"]
        assert [cell.name for cell in fake_cells.cells.all()] == ["cell0", "east"]


def test_cell0(targeted: Callable[..., Any], router: ClientRouter) -> None:
    """cell0 has a database and no queue."""
    context = targeted("cell0")
    assert visits(context) == 0
    with pytest.raises(CellHasNoTransport):
        router.client(context).cast(context, "reboot")


def test_databases_are_apart(fake_cells: FakeCells, targeted: Callable[..., Any]) -> None:
    """Each cell has a database of its own, with the service's tables."""
    visit(targeted("cell1"))
    assert [visits(targeted(name)) for name in ("cell0", "cell1", "cell2")] == [0, 1, 0]


def test_session(fake_cells: FakeCells, targeted: Callable[..., Any]) -> None:
    """The test's own session writes what the service reads, and is no lease."""
    with fake_cells["cell1"].session() as session:
        session.execute(text("INSERT INTO visits VALUES ('test')"))
    assert fake_cells.recorder.opened == []
    assert visits(targeted("cell1")) == 1


def test_building(fake_cells: FakeCells) -> None:
    """An instance that is mapped to no cell is being built."""
    mapping = fake_cells.cells.locate(fake_cells.map(None))
    assert mapping.cell_id is None


def test_map(fake_cells: FakeCells) -> None:
    """An instance has the uuid and the project that the test gives it."""
    instance_uuid = "11111111-1111-4111-8111-111111111111"
    assert fake_cells.map("cell1", instance_uuid, project_id="theirs") == instance_uuid
    assert ask(fake_cells.filter(app), instance_uuid).status_code == 404
    assert ask(fake_cells.filter(app), instance_uuid, "theirs").status_code == 200


# contexts


def test_targeted(fake_cells: FakeCells, targeted: Callable[..., Any]) -> None:
    """A context is aimed at its cell, and has what the test gives it and the rest of a member of the project."""
    context = targeted("cell1", roles=["reader"])
    assert (context.project_id, context.roles) == ("project", ["reader"])
    assert context.cell_uuid == fake_cells["cell1"].record.uuid


def test_own_context(targeted: Callable[..., Any]) -> None:
    """A context of the service's own is copied, and left as it is."""
    context = oslo_context.context.RequestContext(user_id="me", overwrite=False)
    aimed = targeted("cell1", context)
    assert visits(aimed) == 0
    assert (aimed.user_id, hasattr(context, "db_connection")) == ("me", False)


def test_thread_local_context(targeted: Callable[..., Any]) -> None:
    """The context that oslo.context keeps for the log stays as it is."""
    before = RequestContext()
    targeted("cell1")
    assert oslo_context.context.get_current() is before


def test_release(fake_cells: FakeCells, targeted: Callable[..., Any], router: ClientRouter) -> None:
    """After the release a use of the context's database or queue raises LeaseClosed."""
    context = targeted("cell1")
    fake_cells.release()
    with pytest.raises(LeaseClosed):
        visits(context)
    with pytest.raises(LeaseClosed):
        router.client(context)


# filters


def test_settings_of_a_filter(fake_cells: FakeCells) -> None:
    """Options that are given for a filter are that filter's alone."""
    unchecked, checked = fake_cells.filter(app, project_check=False), fake_cells.filter(app)
    instance_uuid = fake_cells.map("cell1")
    assert [ask(each, instance_uuid, "other").status_code for each in (unchecked, checked)] == [200, 404]


def test_take_over(fake_cells: FakeCells) -> None:
    """A filter that was made elsewhere serves the fake cells from then on."""
    cell_filter = fake_cells.take_over(CellFilter(app, fake_cells.conf))
    ask(cell_filter, fake_cells.map("cell1"))
    assert fake_cells.recorder.leased == ["cell1"]


def test_configuration_of_the_service() -> None:
    """The service's own configuration names the API database as long as the cells are there."""
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[], default_config_dirs=[])
    with FakeCells(conf=conf) as fake_cells, deploy.store(conf) as store:
        assert [cell.name for cell in store.list_cells()] == [str(cell.record) for cell in fake_cells]
    assert conf.api_database.connection is None


# down


def test_database_down(fake_cells: FakeCells, targeted: Callable[..., Any]) -> None:
    """A database that is down refuses those who come, whether there are pooled connections or not."""
    fresh, used = targeted("cell1"), targeted("cell2")
    visits(used)
    for name, context in (("cell1", fresh), ("cell2", used)):
        fake_cells[name].database.down()
        with pytest.raises(CellUnavailable):
            visits(context)


@pytest.mark.parametrize("use", [visit_with, lambda session: session.commit()], ids=["statement", "commit"])
def test_database_goes_down_in_a_transaction(
    fake_cells: FakeCells, targeted: Callable[..., Any], use: Callable[[Any], None]
) -> None:
    """A session that is open when the database goes down fails with its next statement, and with its commit."""
    with database.writer(context := targeted("cell1")) as session:
        visit_with(session)
        fake_cells["cell1"].database.down()
        with pytest.raises(CellUnavailable):
            use(session)
        session.rollback()
        fake_cells["cell1"].database.up()
    assert visits(context) == 0


def test_only_that_cell_is_down(fake_cells: FakeCells, targeted: Callable[..., Any], router: ClientRouter) -> None:
    """Other cells, and what else the cell has, are up."""
    fake_cells["cell1"].database.down()
    assert visits(targeted("cell2")) == 0
    router.client(context := targeted("cell1")).cast(context, "reboot")
    with fake_cells["cell1"].session() as session:
        visit_with(session)


def test_up_again(fake_cells: FakeCells, targeted: Callable[..., Any], router: ClientRouter) -> None:
    """A cell that is up again serves everybody."""
    context = targeted("cell1")
    fake_cells["cell1"].down()
    fake_cells["cell1"].up()
    assert visits(context) == 0
    router.client(context).cast(context, "reboot")


def test_known_to_be_down(fake_cells: FakeCells, targeted: Callable[..., Any], router: ClientRouter) -> None:
    """Once somebody has found a cell down, its target says so, and its use is refused at once, until it is up."""
    fake = fake_cells["cell1"]
    context = targeted("cell1")
    fake.down()
    with pytest.raises(CellUnavailable, match="its database"):
        visits(context)
    with pytest.raises(CellUnavailable, match="its queue"):
        router.client(context).cast(context, "reboot")
    (handles,) = fake_cells.cells._open_handles.values()
    assert handles.down == ("database", "queue")
    fake.up()
    assert handles.down == ()
    assert fake_cells.recorder.sent == []


def test_chosen_error(fake_cells: FakeCells, targeted: Callable[..., Any]) -> None:
    """A resource that is down raises the error that the test chooses."""
    fake_cells["cell1"].database.down(TimeoutError("as the test wants it"))
    with pytest.raises(TimeoutError, match="as the test wants it"):
        visits(targeted("cell1"))


def test_api_database_down(fake_cells: FakeCells) -> None:
    """While the API database is down, what is not cached is not known."""
    known, unknown = fake_cells.map("cell1"), fake_cells.map("cell1")
    application = fake_cells.filter(app)
    ask(application, known)
    fake_cells.api_database.down()
    assert [ask(application, each).status_code for each in (known, unknown)] == [200, 503]
    with pytest.raises(StoreUnavailable):
        fake_cells.cells.mappings.queue_for_delete(known)


# slow


@pytest.mark.parametrize("resource", ["database", "queue"])
def test_slow(
    fake_cells: FakeCells,
    targeted: Callable[..., Any],
    router: ClientRouter,
    resource: str,
    in_background: Callable[[Callable[[], Any]], Any],
) -> None:
    """Who uses something slow waits until the test releases it, and then goes on."""
    context = targeted("cell1")
    use = {"database": lambda: visit(context), "queue": lambda: router.client(context).cast(context, "reboot")}
    with getattr(fake_cells["cell1"], resource).slow() as hold:
        used = in_background(use[resource])
        hold.wait_until_reached()
        assert not used.done()
    used.result(PATIENCE)
    assert visits(context) + len(fake_cells.recorder.sent) == 1


@pytest.fixture
def in_background() -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Call a function in another thread."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit


def test_down_while_slow(
    fake_cells: FakeCells, targeted: Callable[..., Any], in_background: Callable[[Callable[[], Any]], Any]
) -> None:
    """Who waits for something that goes down meanwhile fails."""
    context = targeted("cell1")
    with fake_cells["cell1"].database.slow() as hold:
        used = in_background(lambda: visits(context))
        hold.wait_until_reached()
        fake_cells["cell1"].database.down()
    with pytest.raises(CellUnavailable):
        used.result(PATIENCE)


def test_end_releases_who_waits(
    in_background: Callable[[Callable[[], Any]], Any],
) -> None:
    """The end of the cells lets everybody go on who still waits."""
    with FakeCells(create_tables=create_tables) as fake_cells:
        hold = fake_cells["cell1"].queue.slow()
        waiting = in_background(hold.wait)
        hold.wait_until_reached()
    waiting.result(PATIENCE)


def test_nobody_comes() -> None:
    """A test that waits for a use which never comes is told what it waits for."""
    with pytest.raises(TimeoutError, match="nobody has used the queue of cell1"):
        Hold("queue of cell1").wait_until_reached(timeout=0)


def test_nobody_lets_go() -> None:
    """A user that the test never lets go on is told so."""
    with pytest.raises(TimeoutError, match="holds the queue of cell1"):
        Hold("queue of cell1").wait(timeout=0)


# leaks and the end


def test_open_lease() -> None:
    """A lease that is open at the end is a leak, of the cell that it is on."""
    fake_cells = FakeCells()
    lease = fake_cells.cells.lease(fake_cells["cell2"].record.id)
    with pytest.raises(Leak, match="cell cell2: leases open: 1"):
        fake_cells.close()
    assert repr(lease) == "<Lease cell=cell2 open>"


def test_session_left_open() -> None:
    """A session that was in a transaction when its lease ended is a leak."""
    fake_cells = FakeCells()
    context = fake_cells.targeted("cell1")
    with closing(context.db_connection.reader._factory._create_session(None)) as session:
        session.execute(text("SELECT 1"))
        with pytest.raises(Leak, match="cell cell1: a session was left open"):
            fake_cells.close()


def test_connection_left_open() -> None:
    """A connection that was taken from the cell's engine and not given back is a leak."""
    fake_cells = FakeCells()
    engine = fake_cells.targeted("cell1").db_connection.reader.get_engine()
    with engine.connect(), pytest.raises(Leak, match="cell cell1: connections open: 1"):
        fake_cells.close()


def test_clean_end(fake_cells: FakeCells) -> None:
    """A context that the test was given is no leak."""
    visits(fake_cells.targeted("cell1"))
    fake_cells.close()


def test_error_of_the_test() -> None:
    """A test that has failed keeps its own message."""
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(KeyError))
        fake_cells = stack.enter_context(FakeCells())
        fake_cells.cells.lease(fake_cells["cell1"].record.id)
        raise KeyError


def test_closed_once(fake_cells: FakeCells) -> None:
    """What is closed is closed once."""
    fake_cells.targeted("cell1")
    fake_cells.close()
    fake_cells.close()
    assert fake_cells.recorder.closed == ["cell1"]


def test_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is left at the end, also where making the tables fails."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with FakeCells():
        assert list(tmp_path.iterdir()) != []
    with pytest.raises(ZeroDivisionError):
        FakeCells(create_tables=lambda engine: 1 / 0)
    assert list(tmp_path.iterdir()) == []


def test_store_is_the_real_one(fake_cells: FakeCells) -> None:
    """The API database is the store that production has, with its own rules."""
    assert type(fake_cells.store) is Store


# the libraries


def test_fixture() -> None:
    """A fixture of the fixtures library has the cells from its set-up to its clean-up."""
    with CellsFixture("east", create_tables=create_tables) as fixture:
        visit(fixture.fake_cells.targeted("east"))
    assert fixture.fake_cells.recorder.closed == ["east"]


def test_fixture_leaks() -> None:
    """A leak makes the clean-up of the fixture fail."""
    fixture = CellsFixture()
    fixture.setUp()
    fixture.fake_cells.cells.lease(fixture.fake_cells["cell1"].record.id)
    with pytest.raises((Leak, MultipleExceptions)):
        fixture.cleanUp()


def test_import() -> None:
    """The package imports neither pytest nor the fixtures library."""
    script = "import sys, cellmw.fixture; print(*{'pytest', 'fixtures'} & sys.modules.keys())"
    command = [sys.executable, "-W", "ignore", "-c", script]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == []


# the manual


def examples() -> dict[str, str]:
    """Return the files that the manual shows, by their names."""
    blocks = re.finditer(r"^\.\. code-block:: \w+\n   :caption: (\S+)\n\n((?:   .*\n|\n)+)", MANUAL.read_text(), re.M)
    return {block[1]: textwrap.dedent(block[2]) for block in blocks}


TESTS = [f"{file}::{name}" for file, code in examples().items() for name in re.findall(r"def (test_\w+)\(", code)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says of the manual's files, and of a test that leaks, in a process of their own."""
    folder = tmp_path_factory.mktemp("manual")
    for file, code in (examples() | {"test_leak.py": LEAKY}).items():
        (folder / file).write_text(code)
    command = [sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider"]
    wide = os.environ | {"COLUMNS": "200"}  # pytest cuts the lines of its summary at this
    run = subprocess.run([*command, "-c", "/dev/null", "."], cwd=folder, capture_output=True, text=True, env=wide)
    return run.stdout


@pytest.mark.parametrize("test", TESTS)
def test_manual(report: str, test: str) -> None:
    """Each test in the manual passes as it stands there."""
    file, name = test.split("::")
    assert re.search(rf"^PASSED .*{re.escape(file)}::(\w+::)?{name}$", report, re.M), report


def test_leak_fails_the_test(report: str) -> None:
    """With the pytest fixtures a test that leaks is an error."""
    assert re.search(r"^ERROR .*test_leak.py::test_leak - cellmw.fixture.fake_cells.Leak: cell cell1", report, re.M), (
        report
    )
