# SPDX-License-Identifier: Apache-2.0
"""A context that is aimed at a cell, and back; and what of that it shows."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import oslo_context.context
import pytest
from oslo_db import exception as db_exc
from oslo_db.sqlalchemy import enginefacade
from oslo_log import formatters

from cellmw.context import ContextLoan, RequestContext, copy_context, target, untarget
from cellmw.exceptions import LeaseClosed
from cellmw.lease import DatabaseView, Lease, TransportView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cellmw.cell import Cell
    from cellmw.handles import Handles


class ForeignContext:
    """A context of a service that knows nothing of cells."""


@pytest.fixture
def lease2(handles2: Handles) -> Iterator[Lease]:
    """A lease on cell2."""
    with Lease(handles2) as lease:
        yield lease


@pytest.mark.parametrize("make", [lambda: RequestContext(overwrite=False), ForeignContext])
def test_target(make: Callable[[], Any], lease: Lease, cell1: Cell) -> None:
    """A targeted context has views of the cell's handles, and the cell's uuid."""
    context = make()
    assert target(context, lease) is None
    assert isinstance(context.db_connection, DatabaseView)
    assert isinstance(context.mq_connection, TransportView)
    assert context.cell_uuid == cell1.uuid


def test_untargeted() -> None:
    """A new context is aimed at no cell."""
    context = RequestContext(overwrite=False)
    assert (context.db_connection, context.mq_connection, context.cell_uuid) == (None, None, None)


def test_first_target_stays(lease: Lease) -> None:
    """Where there was no target before there is nothing to bring back: the views stay, and raise after the release."""
    context = RequestContext(overwrite=False)
    assert target(context, lease) is None
    lease.release()
    with pytest.raises(LeaseClosed), context.db_connection.reader.using(context):
        pass


def test_previous_target_comes_back(context: RequestContext, lease2: Lease, cell1: Cell, cell2: Cell) -> None:
    """A context that was aimed somewhere before is aimed there again."""
    previous = (context.db_connection, context.mq_connection)
    before = target(context, lease2)
    assert context.cell_uuid == cell2.uuid
    untarget(before)
    assert (context.db_connection, context.mq_connection) == previous
    assert context.cell_uuid == cell1.uuid


def test_nested_targets(lease: Lease, lease2: Lease, handles1: Handles, cell1: Cell, cell2: Cell) -> None:
    """Targets inside targets come back one by one."""
    context = RequestContext(overwrite=False)
    target(context, lease)
    before2 = target(context, lease2)
    with Lease(handles1) as lease3:
        before3 = target(context, lease3)
        untarget(before3)
    assert context.cell_uuid == cell2.uuid
    untarget(before2)
    assert context.cell_uuid == cell1.uuid


def test_foreign_target_comes_back(lease: Lease) -> None:
    """What another library has aimed a context at comes back as it was."""
    context = ForeignContext()
    context.db_connection, context.mq_connection, context.cell_uuid = "database", "transport", "uuid"
    before = target(context, lease)
    untarget(before)
    assert vars(context) == {"db_connection": "database", "mq_connection": "transport", "cell_uuid": "uuid"}


def test_replaced_database_stays(context: RequestContext, lease2: Lease) -> None:
    """A database that the application has put in place of ours is the application's, and so is its cell's uuid."""
    transport = context.mq_connection
    before = target(context, lease2)
    theirs: Any = enginefacade.transaction_context()
    context.db_connection, context.cell_uuid = theirs, "theirs"
    untarget(before)
    assert (context.db_connection, context.cell_uuid) == (theirs, "theirs")
    assert context.mq_connection is transport


def test_replaced_transport_stays(context: RequestContext, lease2: Lease, handles2: Handles, cell1: Cell) -> None:
    """A transport that the application has put in place of ours is the application's."""
    before = target(context, lease2)
    context.mq_connection = handles2.transport
    untarget(before)
    assert context.mq_connection is handles2.transport
    assert context.cell_uuid == cell1.uuid


def test_target_of_another_trip_stays(context: RequestContext, lease2: Lease, handles1: Handles, cell1: Cell) -> None:
    """Views of another lease, though on the same cell, are not ours to take away."""
    before = target(context, lease2)
    with Lease(handles1) as third:
        target(context, third)
        views = (context.db_connection, context.mq_connection)
        untarget(before)
        assert (context.db_connection, context.mq_connection) == views


def test_target_with_modifiers(context: RequestContext, lease2: Lease, cell2: Cell) -> None:
    """A view that the application has put modifiers on is the application's, and raises after the release."""
    before = target(context, lease2)
    context.db_connection = context.db_connection.writer
    untarget(before)
    lease2.release()
    assert context.cell_uuid == cell2.uuid
    with pytest.raises(LeaseClosed), context.db_connection.using(context):
        pass


SHOWN: dict[str, Callable[[RequestContext], Any]] = {
    "to_dict": lambda context: context.to_dict(),
    "to_policy_values": lambda context: dict(context.to_policy_values()),
    "get_logging_values": lambda context: context.get_logging_values(),
    "redacted_copy": lambda context: context.redacted_copy().to_dict(),
    "repr": repr,
    "str": str,
    "log": lambda context: formatters._dictify_context(context),
}


@pytest.mark.parametrize("show", SHOWN.values(), ids=SHOWN.keys())
def test_handles_are_not_shown(context: RequestContext, show: Callable[[RequestContext], Any]) -> None:
    """Nothing that shows or serializes a context has its handles in it, or says which cell it is aimed at."""
    shown = show(context)
    if isinstance(shown, dict):
        assert not {"db_connection", "mq_connection", "cell_uuid"} & shown.keys()
        json.dumps(shown)
    for word in ("View", "Lease", "cell1", "sqlite", "memory:"):
        assert word not in str(shown)


def test_handles_show_no_url(context: RequestContext) -> None:
    """Who dumps a context's attributes sees that there are views, and no URL."""
    dumped = repr(vars(context))
    assert "<Lease cell=cell1 open>" in dumped
    assert "memory:" not in dumped
    assert "sqlite" not in dumped


def test_from_dict_is_not_targeted(context: RequestContext) -> None:
    """A context that has been through a dict, as through a message, is aimed at no cell."""
    arrived = RequestContext.from_dict(context.to_dict())
    assert (arrived.project_id, arrived.user_id) == (context.project_id, context.user_id)
    assert (arrived.db_connection, arrived.mq_connection, arrived.cell_uuid) == (None, None, None)


def test_redacted_copy_is_not_targeted(context: RequestContext) -> None:
    """The copy that oslo.context makes for others is aimed at no cell."""
    assert context.redacted_copy().db_connection is None


def test_takes_part_in_enginefacade(context: RequestContext) -> None:
    """Inside a block the context has the session; outside it says that there is none."""
    with context.db_connection.reader.using(context) as session:
        assert context.session is session
    with pytest.raises(db_exc.NoEngineContextEstablished):
        _ = context.session


def test_copy_is_aimed_at_the_same_cell(context: RequestContext) -> None:
    """A shallow copy, as elevated() makes one, has the same views."""
    assert copy.copy(context).db_connection is context.db_connection


def test_copy_context(context: RequestContext, lease2: Lease, cell1: Cell, cell2: Cell) -> None:
    """A copy that is aimed elsewhere leaves the context itself as it is."""
    copied = copy_context(context)
    target(copied, lease2)
    assert (context.cell_uuid, copied.cell_uuid) == (cell1.uuid, cell2.uuid)
    assert copied.project_id == context.project_id


def test_copy_context_is_aimed_nowhere(context: RequestContext) -> None:
    """A copy that is not aimed elsewhere yet is aimed at no cell."""
    copied = copy_context(context)
    assert (copied.db_connection, copied.mq_connection, copied.cell_uuid) == (None, None, None)


def test_copy_context_takes_no_transaction_along(context: RequestContext) -> None:
    """A transaction that is open on the original is none of the copy's."""
    with context.db_connection.reader.using(context):
        copied = copy_context(context)
        with pytest.raises(db_exc.NoEngineContextEstablished):
            _ = copied.session


@pytest.fixture
def remembered() -> Iterator[RequestContext]:
    """The context that oslo.context remembers for this thread, for its log."""
    before = oslo_context.context.get_current()
    yield RequestContext()
    if before is not None:
        before.update_store()


def test_loan(remembered: RequestContext) -> None:
    """A context that is made for a request is in its environ, and in oslo.context's memory, until it is taken back."""
    environ: dict[str, Any] = {"HTTP_X_USER_ID": "user"}
    loan = ContextLoan(environ, "key", RequestContext.from_environ)
    assert environ["key"].user_id == "user"
    assert oslo_context.context.get_current() is environ["key"]
    loan.end()
    assert "key" not in environ
    assert oslo_context.context.get_current() is remembered
    loan.end()


def test_loan_where_nothing_was_remembered(in_thread: Callable[[Callable[[], Any]], Any]) -> None:
    """In a thread that had no context before, there is none after it."""

    def lend() -> Any:
        ContextLoan({}, "key", RequestContext.from_environ).end()
        return oslo_context.context.get_current()

    assert in_thread(lend) is None


def test_loan_that_ends_in_another_thread(
    remembered: RequestContext, in_thread: Callable[[Callable[[], Any]], Any]
) -> None:
    """A loan that ends in another thread leaves that thread's own context alone."""
    environ: dict[str, Any] = {}
    loan = ContextLoan(environ, "key", RequestContext.from_environ)

    def end() -> bool:
        own = RequestContext()
        loan.end()
        return oslo_context.context.get_current() is own

    assert in_thread(end)
    assert environ == {}


def test_loan_answers_nothing() -> None:
    """Errors are none of a loan's business."""
    assert ContextLoan({}, "key", RequestContext.from_environ).rescue(ZeroDivisionError()) is None


def test_oslo_context_keeps_the_current_one_here(remembered: RequestContext) -> None:
    """oslo.context remembers the current context of a thread by this name."""
    assert oslo_context.context._request_store.context is remembered
