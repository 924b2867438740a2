# SPDX-License-Identifier: Apache-2.0
"""The fields by which a log line names its cell, and the net that keeps passwords out of it."""

from __future__ import annotations

import copy
import io
import json
import logging
import sys
from typing import TYPE_CHECKING, Any

import oslo_context.context
import oslo_messaging
import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st
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
    """A handler gets one filter of each kind, however often they are installed."""
    logger = logging.getLogger("cellmw-test-twice")
    logger.addHandler(logging.NullHandler())
    log.install(logger)
    log.install(logger)
    assert [type(each) for each in logger.handlers[0].filters] == [log.TargetFilter, log.SecretFilter]


# The net


PASSWORD = "K7-marked-pw"
URL = f"rabbit://user:{PASSWORD}@host:5672/vhost"
MASKED = "rabbit://user:***@host:5672/vhost"


def record_of(msg: Any, *args: Any, level: int = logging.INFO, **more: Any) -> logging.LogRecord:
    """Make a record, and let it through the net."""
    record = logging.LogRecord("name", level, __file__, 1, msg, args, more.pop("exc_info", None), "function")
    for name, value in more.items():
        setattr(record, name, value)
    assert log.SecretFilter().filter(record)
    return record


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"at {URL}.", f"at {MASKED}."),
        (f"(at {URL}), and", f"(at {MASKED}), and"),
        (f"rabbit://a:{PASSWORD}@h1:1,b:{PASSWORD}@h2:2/v", "rabbit://a:***@h1:1,b:***@h2:2/v"),
        (f"from {URL} to mysql+pymysql://nova:{PASSWORD}@db/x", f"from {MASKED} to mysql+pymysql://nova:***@db/x"),
        (f"rabbit://h/?ssl=1&ssl_key_password={PASSWORD}&heartbeat_rate=2", "rabbit://h/?ssl=1&ssl_key_password=***&heartbeat_rate=2"),
        (f"{{'url': '{URL}', 'ssl': True}}", f"{{'url': '{MASKED}', 'ssl': True}}"),
        (f'{{"url":"{URL}","ssl":true}}', f'{{"url":"{MASKED}","ssl":true}}'),
        (f"Row (1, '{URL}', None)", f"Row (1, '{MASKED}', None)"),
        (f"mysql://user:two words {PASSWORD}@host/db is", "mysql://***@host/db is"),
        (f'mysql://user:a"{PASSWORD}@host/db is', "mysql://***@host/db is"),
        (f"GET https://user:{PASSWORD}@h/?a=b&token={PASSWORD}", "GET https://user:***@h/?a=b&token=***"),
        (f"mysql://user:{PASSWORD}", "mysql://***"),
        (f"Row ('//user:{PASSWORD}@host/db',)", "Row ('//user:***@host/db',)"),
        ("/var//log:x: 7 // 2 @ home", "/var//log:x: 7 // 2 @ home"),
        (f"<TransportHost username='u', password='{PASSWORD}'>", "<TransportHost username='u', password='***'>"),
        (f"{{'password': '{PASSWORD}', 'port': 1}}", "{'password': '***', 'port': 1}"),
        (f"{{'ssl_key_password': b'it\\'s {PASSWORD}'}}", "{'ssl_key_password': '***'}"),
        (f"host=h password={PASSWORD} user=u", "host=h password=*** user=u"),
        (f"shared_cache_secret = {PASSWORD}", "shared_cache_secret = ***"),
        (f"password_of_nova={PASSWORD}", "password_of_nova=***"),
        (f"at http://host/: PWD={PASSWORD};UID=u", "at http://host/: PWD=***;UID=u"),
        ("denied for 'u'@'h' (using password: YES)", "denied for 'u'@'h' (using password: YES)"),
        ("password=None, see http://host:80/path?a=b#c.", "password=None, see http://host:80/path?a=b#c."),
        ("sqlite:////var/lib/x.db and none:/// are harmless", "sqlite:////var/lib/x.db and none:/// are harmless"),
    ],
)  # fmt: skip
def test_masked_text(text: str, shown: str) -> None:
    """What looks like a password is masked wherever it stands in a message, and all else stays."""
    assert record_of(text).getMessage() == shown


@given(before=st.text(max_size=9), after=st.text("@:/ '\"\\x,;?&=)", max_size=9))
def test_whatever_is_around(before: str, after: str) -> None:
    """No text around a URL brings its password to light, and none makes the filter fail."""
    assert PASSWORD not in record_of("%s", f"{before}{URL}{after}").getMessage()


class Shown:
    """Has these texts."""

    def __init__(self, text: str, repr: str = "") -> None:  # noqa: A002
        self._text, self._repr = text, repr

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return self._repr


@pytest.mark.parametrize(
    ("msg", "args", "left"),
    [
        pytest.param("at %s", (URL,), (MASKED,), id="a string"),
        pytest.param("%s: %d tries", ("cell1", 3), ("cell1", 3), id="nothing"),
        pytest.param("at %s, port %d, %s", (URL, 1, None), (MASKED, 1, None), id="one of several"),
        pytest.param("%s", ({"a": [URL, (URL, 1), 5]},), {"a": [MASKED, (MASKED, 1), 5]}, id="a dict"),
        pytest.param("%(a)s", ({"a": "x", "url": URL},), {"a": "x", "url": MASKED}, id="what no one formats"),
        pytest.param("%(password)s", ({"password": PASSWORD},), {"password": "***"}, id="a name in a dict"),
        pytest.param("rabbit://%s:%s@h", ("user", PASSWORD), (), id="in two pieces"),
        pytest.param("%s:%s@%s", ("rabbit://user", PASSWORD, "h"), (), id="in three pieces"),
        pytest.param("%s http://h/", (Shown("x", repr=URL),), ("x",), id="what only repr() shows"),
        pytest.param("%s", (sqlalchemy.make_url(URL),), (MASKED,), id="a SQLAlchemy URL"),
        pytest.param("%s", (ValueError(URL),), (MASKED,), id="an exception"),
    ],
)  # fmt: skip
def test_arguments(msg: str, args: tuple[Any, ...], left: Any) -> None:
    """The arguments are masked one by one where that will do, so that who shows them apart finds what it expects."""
    record = record_of(msg, *args)
    assert record.args == left
    assert PASSWORD not in record.getMessage()


def test_circle() -> None:
    """An argument that contains itself costs the arguments, and no password gets out."""
    circle: list[Any] = [URL]
    circle.append(circle)
    record = record_of("%s", circle)
    assert (record.getMessage(), record.args) == (f"['{MASKED}', [...]]", ())


def test_harmless_arguments() -> None:
    """A record without anything to mask keeps the very arguments that it has."""
    argument = object()
    record = record_of("%s at http://host/", argument)
    assert record.args == (argument,)


class Unprintable:
    """What has no text."""

    def __repr__(self) -> str:
        raise LookupError


def test_record_that_nobody_can_format(capsys: pytest.CaptureFixture[str]) -> None:
    """A record whose formatting fails stays one, and what logging prints of it shows no password."""
    record = record_of("%d", URL)
    with pytest.raises(TypeError):
        record.getMessage()
    logging.StreamHandler().handle(record)
    assert MASKED in (printed := capsys.readouterr().err)
    assert PASSWORD not in printed


def test_unprintable_argument() -> None:
    """An argument that has no text is no reason to let the others through."""
    assert record_of("%s %s", URL, unprintable := Unprintable()).args == (MASKED, unprintable)


def raised(error: BaseException, cause: BaseException | None = None) -> Any:
    """Return what sys.exc_info() says of this error, raised from another one."""
    try:
        raise error from cause
    except BaseException:  # noqa: BLE001 - a group of anything
        return sys.exc_info()


class Refused(ValueError):
    """An error that a formatter calls by its full name."""


def chained() -> Any:
    """An error about a URL, with a note, from a harmless one that was raised while a third one was handled."""
    try:
        raise KeyError(URL)
    except KeyError:
        try:
            raise LookupError("harmless")
        except LookupError as cause:
            error = Refused(f"no way to {URL}")
            error.add_note(f"tried {URL}")
            return raised(error, cause)


def grouped() -> Any:
    """A group of errors, one of which leads back to the group."""
    group = ExceptionGroup(f"at {URL}", [Refused(f"no way to {URL}"), OSError(1, "harmless")])
    group.exceptions[0].__context__ = group
    return raised(group)


def from_harmless() -> Any:
    """A harmless error that comes from one about a URL."""
    return raised(LookupError("harmless"), ValueError(URL))


def harmless_group() -> Any:
    """A harmless group with one error about a URL in it."""
    return raised(ExceptionGroup("harmless", [OSError(1, "harmless"), ValueError(URL)]))


def noted() -> Any:
    """A harmless error with a note about a URL."""
    error = LookupError("harmless")
    error.add_note(URL)
    return raised(error)


def suppressing() -> Any:
    """An error about a URL, which was raised from none while another one was handled."""
    try:
        raise KeyError("not shown")
    except KeyError:
        error = Refused(URL)
        error.__suppress_context__ = True
        return raised(error)


def oslo(formatter: type[logging.Formatter]) -> logging.Formatter:
    """Make a formatter of oslo.log."""
    if formatter is not formatters.ContextFormatter:
        return formatter()
    conf = cfg.ConfigOpts()
    oslo_log.register_options(conf)
    conf([], default_config_files=[], default_config_dirs=[])
    return formatters.ContextFormatter(config=conf)


FORMATTERS = pytest.mark.parametrize(
    "formatter",
    [logging.Formatter, formatters.ContextFormatter, formatters.JSONFormatter, formatters.FluentFormatter],
)


@FORMATTERS
@pytest.mark.parametrize("error", [chained, grouped, from_harmless, harmless_group, noted, suppressing])
@pytest.mark.usefixtures("no_context")
def test_exception(formatter: type[logging.Formatter], error: Callable[[], Any]) -> None:
    """Every formatter shows the whole chain by its names, its frames and its texts, and no password in it."""
    record = logging.LogRecord("name", logging.DEBUG, __file__, 1, "m", (), error())
    before = str(oslo(formatter).format(copy.copy(record)))
    assert log.SecretFilter().filter(record)
    shown = str(oslo(formatter).format(record))
    assert PASSWORD in before
    assert shown == before.replace(PASSWORD, "***")


@FORMATTERS
@pytest.mark.usefixtures("no_context")
def test_exception_that_is_being_handled(formatter: type[logging.Formatter]) -> None:
    """oslo.log tells a warning's reader of the error that is being handled: in words without a password."""
    try:
        raise Refused(f"no way to {URL}")
    except Refused:
        shown = str(oslo(formatter).format(record_of("refused", level=logging.WARNING)))
    assert PASSWORD not in shown
    assert "refused" in shown


def test_harmless_exception() -> None:
    """An exception without anything to mask is left as it is, and so is one that is being handled."""
    exc_info = raised(OSError("see http://host/"))
    assert record_of("m", exc_info=exc_info).exc_info is exc_info
    try:
        raise OSError
    except OSError:
        assert record_of("m", level=logging.ERROR).exc_info is None


def test_what_was_formatted_before() -> None:
    """The traceback that another handler's formatter has left on the record, and the stack, are masked."""
    record = record_of("m", exc_text=f"Error: {URL}", stack_info=f"f({URL!r})")
    assert (record.exc_text, record.stack_info) == (f"Error: {MASKED}", f"f({MASKED!r})")


def test_what_goes_along() -> None:
    """What is logged along with a record stays what it is, unless it is text or made of text."""
    thing = Shown(URL)
    record = record_of("m", extra_keys=["thing", "where"], thing=thing, where=[URL])
    assert (record.thing, record.where) == (thing, [MASKED])


@pytest.mark.usefixtures("no_context")
def test_json() -> None:
    """The record that oslo.log writes as JSON has message, arguments and what was logged with it, masked."""
    adapter = oslo_log.getLogger("cellmw-test-json")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatters.JSONFormatter())
    adapter.logger.addHandler(handler)
    log.install(adapter.logger)
    context = RequestContext(project_id="project")
    adapter.error("at %s, %d", URL, 3, where=URL, options={"password": PASSWORD, "port": 1}, context=context)
    adapter.logger.removeHandler(handler)
    shown = json.loads(stream.getvalue())
    assert (shown["message"], shown["args"]) == (f"at {MASKED}, 3", [MASKED, 3])
    assert shown["extra"] | {"where": MASKED, "options": {"password": "***", "port": 1}} == shown["extra"]
    assert shown["context"]["project_id"] == "project"


def test_libraries_that_show_passwords(caplog: pytest.LogCaptureFixture, conf: cfg.ConfigOpts) -> None:
    """What SQLAlchemy, oslo.db and oslo.messaging are known to show is masked."""
    handler = caplog.handler
    log.install(logger := logging.getLogger("cellmw-test-libraries"))
    handler.addFilter(mask := log.SecretFilter())
    caplog.set_level(logging.DEBUG, "sqlalchemy.engine")
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT :url"), {"url": URL}).all()
    engine.dispose()
    logger.warning("URL %r names no driver", sqlalchemy.make_url(f"mysql://u:{PASSWORD}@h/db"))
    logger.warning("%r", oslo_messaging.TransportURL.parse(conf, URL))
    shown = [formatters.JSONFormatter().format(record) for record in caplog.records]
    handler.removeFilter(mask)
    assert len(shown) >= 5
    assert not [line for line in shown if PASSWORD in line]
