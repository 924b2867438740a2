# SPDX-License-Identifier: Apache-2.0
"""What goes over the wire of a context and of arguments, and what becomes of it on the other side."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import oslo_context.context
import oslo_messaging
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cellmw.cell import Cell
from cellmw.cell_result import CellResult
from cellmw.conf import CONTEXT_ATTRIBUTES
from cellmw.context import RequestContext
from cellmw.exceptions import CellMisconfigured, CellUnavailable
from cellmw.rpc import ContextSerializer

if TYPE_CHECKING:
    from oslo_config import cfg

    from cellmw.lease import Lease

SECRET = "hunter2"

CELL = Cell(3, "uuid-3", "cell3", True, f"rabbit://user:{SECRET}@host/", f"mysql://user:{SECRET}@host/db")

SENDER = RequestContext(user_id="sender", overwrite=False)


@pytest.fixture
def serializer() -> ContextSerializer:
    """The default one."""
    return ContextSerializer()


def travel(entity: Any) -> Any:
    """Send this, by JSON, and return what arrives."""
    wire = json.dumps(ContextSerializer().serialize_entity(SENDER, entity))
    assert SECRET not in wire
    return ContextSerializer().deserialize_entity(SENDER, json.loads(wire))


# -- the context of a message -----------------------------------------------------------------------------------------


def test_context_round_trip(serializer: ContextSerializer, context: RequestContext) -> None:
    """Who receives a context gets one that says whose request it is, and that is aimed at no cell."""
    arrived = serializer.deserialize_context(json.loads(json.dumps(serializer.serialize_context(context))))
    assert type(arrived) is RequestContext
    assert (arrived.user_id, arrived.project_id, arrived.roles) == ("user", "project", ["member"])
    assert (arrived.db_connection, arrived.mq_connection, arrived.cell_uuid) == (None, None, None)


def test_request_ids(serializer: ContextSerializer) -> None:
    """The id of the request and that of the one which has led to it arrive as they are."""
    sent = RequestContext(request_id="req-1", global_request_id=f"req-{CELL.uuid}", overwrite=False)
    arrived = serializer.deserialize_context(serializer.serialize_context(sent))
    assert (arrived.request_id, arrived.global_request_id) == (sent.request_id, sent.global_request_id)


def test_context_class_of_the_service(context: RequestContext) -> None:
    """A service may receive contexts of its own class."""

    class Context(RequestContext):
        pass

    serializer = ContextSerializer(Context)
    assert type(serializer.deserialize_context(serializer.serialize_context(context))) is Context


def test_all_that_oslo_context_knows(serializer: ContextSerializer) -> None:
    """By default all is sent that oslo.context's own to_dict() has."""
    context = oslo_context.context.RequestContext(overwrite=False)
    assert set(context.to_dict()) >= set(CONTEXT_ATTRIBUTES)
    assert serializer.serialize_context(context) == {name: context.to_dict()[name] for name in CONTEXT_ATTRIBUTES}


class Volume(RequestContext):
    """A service's own context, which knows something more."""

    def __init__(self, quota_class: str | None = None, **values: Any) -> None:
        super().__init__(**values)
        self.quota_class = quota_class

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"quota_class": self.quota_class, "timestamp": "now"}

    @classmethod
    def from_dict(cls, values: dict[str, Any], **more: Any) -> Volume:
        return super().from_dict(values, quota_class=values.get("quota_class"), **more)


def test_context_attributes(conf: cfg.ConfigOpts) -> None:
    """An attribute that is added to the option is sent, and one that is taken out of it is not."""
    sent = Volume("gold", user_id="user", auth_token=SECRET, overwrite=False)
    assert "quota_class" not in ContextSerializer.configured(conf).serialize_context(sent)
    names = [name for name in CONTEXT_ATTRIBUTES if name != "auth_token"]
    conf.set_override("context_attributes", [*names, "quota_class"], "cellmw")
    wire = ContextSerializer.configured(conf).serialize_context(sent)
    arrived = ContextSerializer(Volume).deserialize_context(wire)
    assert (arrived.quota_class, arrived.user_id, arrived.auth_token) == ("gold", "user", None)  # type: ignore[attr-defined]
    assert not {"timestamp", "auth_token"} & wire.keys()


def test_dicts_are_contexts_too(serializer: ContextSerializer, context: RequestContext) -> None:
    """A context that is a dict travels as it is, without handles that somebody has put into it."""
    values = {"user_id": "user", "db_connection": context.db_connection, "mq_connection": context.mq_connection}
    assert serializer.serialize_context(values) == {"user_id": "user"}
    assert "db_connection" in values


def test_handles_that_a_service_puts_into_its_dict(serializer: ContextSerializer, context: RequestContext) -> None:
    """A service whose to_dict() has everything in it does not send handles either."""

    class Context(RequestContext):
        def to_dict(self) -> dict[str, Any]:
            return vars(self).copy()

    mine = Context(overwrite=False)
    mine.db_connection, mine.mq_connection = context.db_connection, context.mq_connection
    assert not {"db_connection", "mq_connection"} & serializer.serialize_context(mine).keys()


# -- arguments and replies --------------------------------------------------------------------------------------------


def test_cell() -> None:
    """A cell arrives as one that is equal and has no URLs."""
    arrived = travel({"cells": [CELL]})["cells"][0]
    assert arrived == CELL
    assert (arrived.id, arrived.uuid, arrived.name, arrived.disabled) == (3, "uuid-3", "cell3", True)
    for reveal in (arrived.reveal_transport_url, arrived.reveal_database_connection):
        with pytest.raises(CellMisconfigured):
            reveal()


def test_cell_without_a_name() -> None:
    """A cell need not have a name."""
    assert travel(Cell(3, "uuid-3", None, False, None, None)).name is None


def test_targeted_context(context: RequestContext) -> None:
    """A context that is aimed at a cell arrives as one that is aimed at none."""
    arrived = travel([{"context": context}])[0]["context"]
    assert type(arrived) is RequestContext
    assert (arrived.user_id, arrived.request_id) == ("user", context.request_id)
    assert (arrived.db_connection, arrived.mq_connection, arrived.cell_uuid) == (None, None, None)


@pytest.mark.parametrize("current", ["of the message", None])
def test_contexts_of_arguments_are_not_current(context: RequestContext, current: str | None, in_thread: Any) -> None:
    """A context that arrives as an argument, or in a reply, does not become the one that the thread's log shows."""

    def receive() -> Any:
        if current is not None:
            RequestContext(user_id=current)
        assert travel(context).user_id == "user"
        now = oslo_context.context.get_current()
        return now and now.user_id

    assert in_thread(receive) == current


@pytest.mark.parametrize(
    "value", [None, 0, "", [], {}, {"a": [1, {"b": None}]}, CELL, {"cell": CELL, "nested": [[CELL]]}]
)
def test_result(value: Any) -> None:
    """What a cell has answered arrives as it was, whatever it is."""
    arrived = travel(CellResult(CELL, "ok", value))
    assert type(arrived) is CellResult
    assert (arrived.cell, arrived.status, arrived.value, arrived.error) == (CELL, "ok", value, None)


@pytest.mark.parametrize("status", ["error", "timeout", "skipped"])
def test_result_with_an_error(status: str) -> None:
    """Why a cell has not answered arrives as a remote error that says of what class it was, and what it says."""
    arrived = travel([CellResult(CELL, status, error=CellUnavailable(CELL, "queue", "no answer in time"))])[0]
    assert (arrived.status, arrived.value) == (status, None)
    assert type(arrived.error) is oslo_messaging.RemoteError
    assert arrived.error.exc_type == "CellUnavailable"
    assert arrived.error.value == str(CellUnavailable(CELL, "queue", "no answer in time"))


class ErrorOfNothing(Exception):
    """An error that is false."""

    def __len__(self) -> int:
        return 0


def test_error_that_is_false() -> None:
    """An error is one however it is compared."""
    assert travel(CellResult(CELL, "error", error=ErrorOfNothing())).error.exc_type == "ErrorOfNothing"


def test_error_on_its_second_journey() -> None:
    """However often a result is sent on, its error says what it said in the beginning."""
    arrived = travel(travel(CellResult(CELL, "error", error=ValueError("no such host"))))
    assert (arrived.error.exc_type, arrived.error.value) == ("ValueError", "no such host")


def test_error_that_came_back_from_a_call() -> None:
    """An error that oslo.messaging has made of a remote one is called as that was."""
    again = type("ValueError_Remote", (ValueError,), {})
    assert travel(CellResult(CELL, "error", error=again("x"))).error.exc_type == "ValueError"


def test_result_without_an_error() -> None:
    """A cell that was skipped need not say why."""
    assert travel(CellResult(CELL, "skipped")) == CellResult(CELL, "skipped")


@pytest.mark.parametrize("where", [lambda it: it, lambda it: [it], lambda it: {"a": ({"b": it},)}])
@pytest.mark.parametrize("name", ["db_connection", "mq_connection"])
def test_handle(serializer: ContextSerializer, context: RequestContext, name: str, where: Any) -> None:
    """A handle can't be sent, wherever it stands."""
    with pytest.raises(TypeError, match="handles of a cell stay in their process"):
        serializer.serialize_entity(context, where(getattr(context, name)))


@pytest.mark.parametrize("door", ["reader", "writer", "independent", "async_"])
def test_what_is_made_of_a_handle(serializer: ContextSerializer, context: RequestContext, door: str) -> None:
    """Nor can what oslo.db makes of one."""
    view = context.db_connection.reader.async_ if door == "async_" else getattr(context.db_connection, door)  # type: ignore[union-attr]
    with pytest.raises(TypeError, match="handles of a cell stay in their process"):
        serializer.serialize_entity(context, view)


def test_transport_of_the_service(serializer: ContextSerializer, lease: Lease) -> None:
    """Nor can a transport that is no view."""
    with pytest.raises(TypeError, match="handles of a cell stay in their process"):
        serializer.serialize_entity(SENDER, lease.handles.transport)


def test_what_json_makes_lists_of() -> None:
    """Tuples and sets arrive as lists, as they do without this serializer."""
    assert travel({"a": (1, (2,)), "b": {3}, "c": frozenset((4,))}) == {"a": [1, [2]], "b": [3], "c": [4]}


def test_whatever_else_there_is(serializer: ContextSerializer) -> None:
    """What is none of this serializer's business passes, for the library to deal with."""
    something = object()
    assert serializer.serialize_entity(SENDER, something) is something
    assert serializer.deserialize_entity(SENDER, something) is something


TAGS = ("cellmw.cell", "cellmw.context", "cellmw.cell_result", "cellmw.dict")


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        "text",
        [],
        [1, "uuid"],
        ["1", "uuid", "name", False],
        [1, None, "name", False],
        [1, "uuid", "name", False, "more"],
        [[1, "uuid", "name", False], "ok", None, None],
        [{"cellmw.cell": []}, "ok", None, None],
        [{"cellmw.cell": [1, "uuid", "name", False]}, 5, None, None],
        [{"cellmw.cell": [1, "uuid", "name", False]}, "ok", None, "error"],
        [{"cellmw.cell": [1, "uuid", "name", False], "more": 1}, "ok", None, None],
    ],
)
def test_what_only_looks_like_ours(serializer: ContextSerializer, tag: str, value: Any) -> None:
    """What has come from a sender without this serializer, and is not of our shape, stays as it is."""
    plain = json.loads(json.dumps({tag: value}))
    arrived = serializer.deserialize_entity(SENDER, plain)
    assert list(arrived) == [tag]
    assert isinstance(arrived[tag], type(value))


@pytest.mark.parametrize("tag", TAGS)
def test_dict_with_more_keys(serializer: ContextSerializer, tag: str) -> None:
    """A dict with more keys than one is nobody's but the sender's."""
    values = {tag: [1, "uuid", "name", False], "more": 1}
    assert serializer.deserialize_entity(SENDER, values) == values


WORDS = st.text(max_size=3) | st.sampled_from(TAGS)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=8,
)


@given(JSON)
@example({"cellmw.cell": [1, "uuid", "name", False]})
@example({"cellmw.context": {"user": "x"}})
@example({"cellmw.dict": {"cellmw.dict": {}}})
@example([{"cellmw.cell_result": [{"cellmw.cell": [1, "u", None, False]}, "ok", None, None]}])
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_own_data(entity: Any) -> None:
    """A service's own data arrive as they were, even those that look exactly like what stands for one of ours."""
    assert travel(entity) == entity
