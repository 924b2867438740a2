# SPDX-License-Identifier: Apache-2.0
"""Log record -> a record that names the cell and the instance which its request is aimed at, and shows no password.

For oslo.log, after ``log.setup()``::

    cellmw.log.install()

With it ``%(cell_uuid)s`` and ``%(instance_uuid)s`` can stand in any format string, and oslo.log's own ``%(instance)s``
shows the instance. For other set-ups of logging: ``handler.addFilter(TargetFilter())``, and ``SecretFilter()``.

cellmw itself logs no URLs. The net is for the libraries that do, and for the service.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from typing import TYPE_CHECKING, Any

import oslo_context.context

from cellmw import urls
from cellmw.lease import lease_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECRET_NAME = r"(?:passw(?:or)?d|passphrase|pwd|secret|token)"  # noqa: S105 - no secret, but what one may be called

_URL = re.compile(r"(?:(?<=:)//|//(?=[^\s\"<>]*@))[^\s\"<>]*[^\s\"<>'`,;.!?)\]}]")
"""What may be a URL, from behind its colon and without the punctuation of the sentence that it stands in."""

_REST_OF_PASSWORD = re.compile(rf"(//{re.escape(urls.MASK)})(?!@).*@")
"""What has ended at a space or a quote, and so looked like no URL, while the password went on."""

_PAIR = re.compile(
    rf"(?P<name>{_SECRET_NAME}[\w-]{{0,40}}['\"]?\s*(?:=|:(?=\s*[bu]?['\"]))\s*)"
    r"(?!None\b)(?P<value>[bu]?'(?:[^'\\]|\\.)*'|[bu]?\"(?:[^\"\\]|\\.)*\"|[^\s&,;'\")\]}>]+)",
    re.IGNORECASE,
)
"""``ssl_key_password=...`` in a query, ``password='...'`` in a call or a repr, ``'password': '...'`` in a dict."""


class TargetFilter(logging.Filter):
    """Sets ``cell_uuid`` and ``instance_uuid`` on each record. Lives as long as the handler that it is added to.

    They are those of the context that was passed with the record, or of the thread's current one; a context that is
    aimed at no cell gives ``-`` and the empty string. It never drops a record.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Set the two, unless whoever logs has set them."""
        context = getattr(record, "context", None) or oslo_context.context.get_current()
        lease = lease_of(getattr(context, "db_connection", None))
        if not hasattr(record, "cell_uuid"):
            record.cell_uuid = "-" if lease is None else lease.cell.uuid
        if not getattr(record, "instance_uuid", None):
            # empty, not "-": oslo.log shows what is there as an instance
            record.instance_uuid = "" if lease is None else lease.instance_uuid
        return True


class SecretFilter(logging.Filter):
    """Masks the passwords of URLs in each record. Lives as long as the handler that it is added to.

    It goes by what a text looks like: it knows no password. What it masks is masked for handlers that come later, too.
    It never drops a record and never fails.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask the message with its arguments, the exception and the stack."""
        with contextlib.suppress(Exception):  # a repr() of somebody else's
            _mask_message(record)
        with contextlib.suppress(Exception):
            if record.exc_info or record.exc_text or record.levelno >= logging.WARNING:
                _mask_exception(record)
            if record.stack_info:
                record.stack_info = masked(record.stack_info)
            if hasattr(record, "extra_keys"):
                _mask_extra(record)
        return True


def install(logger: logging.Logger | None = None) -> None:
    """Add both filters to each handler of this logger, by default of the root logger."""
    for handler in (logger or logging.getLogger()).handlers:
        for kind in (TargetFilter, SecretFilter):
            if not any(isinstance(known, kind) for known in handler.filters):
                handler.addFilter(kind())


def masked(text: str) -> str:
    """Mask what looks like the password of a URL, or like a secret by the name that it is given, anywhere in a text."""
    if not _may_show(text):
        return text
    text = _URL.sub(_masked_url, text)
    return _PAIR.sub(_masked_pair, _REST_OF_PASSWORD.sub(r"\1@", text))


def _may_show(text: str) -> bool:
    """Tell whether it is worth a closer look."""
    return "//" in text or "passw" in text or "secret" in text


def _masked_url(url: re.Match[str]) -> str:
    shown, mark, query = url[0], "", ""
    if url.string.endswith(("http:", "https:"), 0, url.start()):
        # urls.mask() masks all that is not known to be harmless, and a web page's parameters have any name
        shown, mark, query = shown.partition("?")
    return urls.mask(f"s:{shown}")[2:] + mark + query


def _masked_pair(pair: re.Match[str]) -> str:
    quote = pair["value"][-1] if pair["value"][-1] in "'\"" else ""
    return f"{pair['name']}{quote}{urls.MASK}{quote}"


def _masked_value(value: Any) -> Any:
    """Mask an argument, so that a formatter which shows it apart from the message finds what it expects."""
    kind = type(value)
    if kind is str:
        return masked(value)
    if kind in (int, float, bool, type(None)):
        return value
    if kind is dict:
        return {key: _masked_item(key, item) for key, item in value.items()}
    if kind in (list, tuple):
        return kind(_masked_value(item) for item in value)
    # of a SQLAlchemy URL the str() is masked already, but it is a tuple as well, and JSON shows what is in that
    try:
        text = str(value)
        return masked(text) if _may_show(text) or _may_show(repr(value)) else value
    except Exception:  # noqa: BLE001 - nobody else can show it either
        return value


def _masked_item(key: Any, item: Any) -> Any:
    if isinstance(item, (str, bytes)) and re.search(_SECRET_NAME, str(key), re.IGNORECASE):
        return urls.MASK
    return _masked_value(item)


def _mask_message(record: logging.LogRecord) -> None:
    try:
        message = record.getMessage()
    except Exception:  # noqa: BLE001 - as the formatter will, and then logging prints the two as they are
        record.msg, record.args = _masked_value(record.msg), _masked_value(record.args)
        return
    if not _may_show(message) and not (type(record.args) is dict and _may_show(repr(record.args))):
        return
    record.msg, record.args = _masked_parts(record) or (masked(message), ())


def _masked_parts(record: logging.LogRecord) -> tuple[Any, Any] | None:
    """Mask message and arguments each for itself; None where that is not enough, or does not fit any more."""
    try:
        msg, args = _masked_value(record.msg), _masked_value(record.args)
        text = str(msg) % args if args else str(msg)
    except Exception:  # noqa: BLE001 - a password comes in pieces, or an argument is a circle
        return None
    return (msg, args) if masked(text) == text else None


def _mask_extra(record: logging.LogRecord) -> None:
    """Mask what oslo.log's adapter has put there for formatters that show it."""
    for key in record.extra_keys:  # type: ignore[attr-defined] # the caller has looked
        value = getattr(record, key)
        if type(value) in (str, dict, list, tuple):  # the context, for one, is still to be a context
            setattr(record, key, _masked_item(key, value))


def _mask_exception(record: logging.LogRecord) -> None:
    """Put one that says the same without passwords in the place of an exception that shows one.

    To mask the text alone would do for logging's own formatter; oslo.log's make theirs from the exception.
    """
    if record.exc_text:  # by the formatter of another handler
        record.exc_text = masked(record.exc_text)
    if record.exc_info and record.exc_info[1] is not None:
        if any(_shows(error) for error in _chain(record.exc_info[1])):
            stand_in = _stand_in(record.exc_info[1])
            record.exc_info = (type(stand_in), stand_in, record.exc_info[2])
    elif record.levelno >= logging.WARNING:
        # oslo.log puts the text of the exception that is being handled behind a message that came without one
        handled = sys.exc_info()[1]
        if handled is not None and _shows(handled):
            stand_in = _called_like(handled, _StandIn)(masked(str(handled)))
            record.exc_info = (type(stand_in), stand_in, None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Go through all that a traceback of this error may show."""
    waiting, known = [error], {id(error)}
    for each in waiting:
        yield each
        members = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        for other in (each.__cause__, each.__context__, *members):
            if other is not None and id(other) not in known:
                known.add(id(other))
                waiting.append(other)


def _shows(error: BaseException) -> bool:
    texts = [str(error), *map(str, getattr(error, "__notes__", ()))]
    return any(masked(text) != text for text in texts)


class _StandIn(Exception):
    """Says what an exception says, without passwords, and is called as it is. Lives as long as its record."""

    def __str__(self) -> str:
        return str(self.args[0])


class _GroupStandIn(BaseExceptionGroup[BaseException]):
    """Does so for a group of exceptions."""

    def __str__(self) -> str:
        return self.message


def _stand_in(error: BaseException) -> BaseException:
    """Make a stand-in of an exception with all that has led to it."""
    made: dict[int, BaseException] = {}
    for each in _chain(error):
        _make(each, made)
    for each in _chain(error):
        stand_in = made[id(each)]
        stand_in.__traceback__ = each.__traceback__
        stand_in.__cause__ = each.__cause__ and made[id(each.__cause__)]
        stand_in.__context__ = each.__context__ and made[id(each.__context__)]
        stand_in.__suppress_context__ = each.__suppress_context__
        for note in getattr(each, "__notes__", ()):
            stand_in.add_note(masked(str(note)))
    return made[id(error)]


def _make(error: BaseException, made: dict[int, BaseException]) -> BaseException:
    """Make a stand-in of an exception alone, unless it is made already; of a group, with its members."""
    if id(error) not in made:
        text = masked(str(error))
        if isinstance(error, BaseExceptionGroup):
            members = [_make(member, made) for member in error.exceptions]
            made[id(error)] = _called_like(error, _GroupStandIn)(text, members)
        else:
            made[id(error)] = _called_like(error, _StandIn)(text)
    return made[id(error)]


def _called_like(error: BaseException, base: type[BaseException]) -> type[BaseException]:
    kind = type(error)
    return type(kind.__name__, (base,), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})
