# SPDX-License-Identifier: Apache-2.0
"""The fields by which a log line names its cell."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING

import oslo_context.context
import pytest
from oslo_config import cfg
from oslo_log import formatters
from oslo_log import log as oslo_log

from cellmw import log
from cellmw.context import RequestContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cellmw.lease import Lease

UUID = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9"


@pytest.fixture
def lines() -> Iterator[Callable[[], list[str]]]:
    """A logger of the test's own, ``cellmw-test``, and the lines that it has written."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(cell_uuid)s|%(instance_uuid)s|%(message)s"))
    logger = logging.getLogger("cellmw-test")
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    log.install(logger)
    yield lambda: stream.getvalue().splitlines()
    logger.removeHandler(handler)


@pytest.fixture
def no_context() -> Iterator[None]:
    """A thread whose current context is nobody's, before and after."""
    before = oslo_context.context.get_current()
    oslo_context.context._request_store.__dict__.pop("context", None)
    yield
    oslo_context.context._request_store.__dict__.pop("context", None)
    if before is not None:
        before.update_store()


@pytest.mark.usefixtures("no_context")
def test_targeted(lines: Callable[[], list[str]], context: RequestContext, lease: Lease) -> None:
    """A line of the thread whose context is targeted names the cell and the instance."""
    lease.instance_uuid = UUID
    context.update_store()
    logging.getLogger("cellmw-test").info("rebooting")
    assert lines() == [f"{lease.cell.uuid}|{UUID}|rebooting"]


@pytest.mark.usefixtures("no_context")
def test_after_the_end(lines: Callable[[], list[str]], context: RequestContext, lease: Lease) -> None:
    """A line that comes after the end still names the cell that it is about."""
    context.update_store()
    lease.release()
    logging.getLogger("cellmw-test").info("late")
    assert lines() == [f"{lease.cell.uuid}||late"]


@pytest.mark.usefixtures("no_context")
def test_untargeted(lines: Callable[[], list[str]]) -> None:
    """Without a context, and with one that is aimed at no cell, the fields are there and say so."""
    logger = logging.getLogger("cellmw-test")
    logger.info("no context")
    RequestContext()
    logger.info("no target")
    assert lines() == ["-||no context", "-||no target"]


@pytest.mark.usefixtures("no_context")
def test_passed_along(lines: Callable[[], list[str]], context: RequestContext, lease: Lease) -> None:
    """A context that is passed with the record counts, and not the thread's."""
    RequestContext()
    logging.getLogger("cellmw-test").info("rebooting", extra={"context": context})
    assert lines() == [f"{lease.cell.uuid}||rebooting"]


@pytest.mark.usefixtures("no_context")
def test_said_already(lines: Callable[[], list[str]], context: RequestContext) -> None:
    """What whoever logs has said itself is left as it is."""
    context.update_store()
    logging.getLogger("cellmw-test").info("moving", extra={"cell_uuid": "theirs", "instance_uuid": "theirs, too"})
    assert lines() == ["theirs|theirs, too|moving"]


@pytest.mark.usefixtures("no_context")
def test_oslo_log(context: RequestContext, lease: Lease) -> None:
    """oslo.log's formatter shows the instance where it always does, and takes the cell in its format string."""
    lease.instance_uuid = UUID
    context.update_store()
    conf = cfg.ConfigOpts()
    oslo_log.register_options(conf)
    conf([], default_config_files=[], default_config_dirs=[])
    conf.set_override("logging_context_format_string", "[%(cell_uuid)s] %(instance)s%(message)s")
    record = logging.LogRecord("name", logging.INFO, __file__, 1, "rebooting", None, None)
    assert log.TargetFilter().filter(record)
    line = formatters.ContextFormatter(config=conf).format(record)
    assert line == f"[{lease.cell.uuid}] [instance: {UUID}] rebooting"


def test_install_twice() -> None:
    """A handler gets one such filter, however often it is installed."""
    logger = logging.getLogger("cellmw-test-twice")
    logger.addHandler(logging.NullHandler())
    log.install(logger)
    log.install(logger)
    assert len(logger.handlers[0].filters) == 1
