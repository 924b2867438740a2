# SPDX-License-Identifier: Apache-2.0
"""A JSON or YAML file -> the cells, in place of the API database's records of them; and cells -> such a file.

It checks the form of the records and nothing behind it: what stands for a URL is taken as it is.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import threading
import unicodedata
import uuid
from typing import TYPE_CHECKING, Any

import yaml

from cellmw import forks, urls
from cellmw.cell import Cell
from cellmw.credentials import is_encrypted, is_reference
from cellmw.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cellmw.deadline import Deadline

LOG = logging.getLogger(__name__)

FORMATS = ("json", "yaml")
"""What a file can be written as. When it is read its content tells."""

_FIELDS = ("id", "uuid", "name", "transport_url", "database_connection", "disabled")

_DEFAULTS = {"name": None, "disabled": False}

_LARGEST_ID = 2**31 - 1
"""What fits into the columns of the API database that refer to a cell."""

_LONGEST_NAME = 255

_DEEPEST = 3
"""How deep a field is: in a cell, in the list, in the document."""

_UNTAGGED = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}

_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")

_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}

_SHOWABLE = re.compile(r"[\w.-]{1,64}")

_OTHERS = 0o007


class CellsFile:
    """The file that the cells are read from. Lives as long as the process; shared by all threads.

    It stands where a :class:`~cellmw.store.Store` stands for whoever wants nothing but cells.
    """

    def __init__(self, path: str) -> None:
        """Read the file.

        :raises ConfigError: if it can't be read, or its content is not of the right form
        """
        self._path = path
        self._cells: list[Cell] = []
        self._seen: object = None
        self._broken: object = None
        self._is_open_to_all = False
        self.begin_anew()
        forks.follow(self)
        try:
            self._read_if_changed()
        except OSError as error:
            raise ConfigError(_cannot_be_read(path, error)) from error

    def begin_anew(self) -> None:
        """Go on, in a child process, with what was read."""
        self._reading = threading.Lock()

    def check(self, ref: object = None) -> None:
        """Let everybody look for a cell: a file keeps nobody waiting."""

    def list_cells(self, deadline: Deadline | None = None) -> list[Cell]:
        """Return every cell, by id, as the file has them now, or as it had them before somebody broke it.

        :param deadline: as the store takes one; it is not looked at
        """
        with self._reading:
            self._keep_up()
            return list(self._cells)

    def __repr__(self) -> str:
        return f"<CellsFile {self._path}>"

    def _keep_up(self) -> None:
        """Follow the file where that is possible; the log says when it begins to be impossible, and when it is over."""
        try:
            if not self._read_if_changed():
                return
        except OSError as error:
            # not seen: the next attempt may succeed on the same file
            self._seen = None
            self._stay(None, _cannot_be_read(self._path, error))
        except ConfigError as error:
            self._stay(self._seen, str(error))
        else:
            if self._broken is not None:
                LOG.info("%s can be read again: the cells are as it has them", self._path)
            self._broken = None

    def _stay(self, *broken: object) -> None:
        """Leave the cells as they were, and say so where that is news: of another file, or for another reason."""
        if broken != self._broken:
            LOG.warning("the cells stay as they were: %s", broken[-1])
        self._broken = broken

    def _read_if_changed(self) -> bool:
        """Take over what the file says, and return whether it is another than the one that was seen last."""
        # asked before it is read: what is written meanwhile is a change that is yet to be seen
        found = os.stat(self._path)
        if _state(found) == self._seen:
            return False
        if not stat.S_ISREG(found.st_mode):
            self._seen = _state(found)
            raise ConfigError(f"{self._path}: this is no file")
        with open(self._path, "rb") as file:
            content = file.read()
        self._seen = _state(found)
        self._cells = _named(self._path, content)
        self._look_at_mode(found.st_mode)
        return True

    def _look_at_mode(self, mode: int) -> None:
        was_open = self._is_open_to_all
        self._is_open_to_all = bool(mode & _OTHERS) and any(_shows_password(cell) for cell in self._cells)
        if self._is_open_to_all and not was_open:
            LOG.warning("%s has passwords in it, and everybody on this host can get at it: chmod 640", self._path)


def read(path: str) -> list[Cell]:
    """Return the cells of a file, by id.

    :raises ConfigError: if it can't be read, or its content is not of the right form
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise ConfigError(_cannot_be_read(path, error)) from error
    return _named(path, content)


def as_text(cells: Iterable[Cell], form: str) -> str:
    """Return the text of a file with these cells, secrets included: for such a file, never for showing it.

    :param form: one of :data:`FORMATS`
    :raises CellMisconfigured: if a cell lacks one of its URLs
    :raises ConfigError: if a cell has what no file may have
    """
    records = [
        {
            "id": cell.id,
            "uuid": cell.uuid,
            "name": cell.name,
            "transport_url": cell.reveal_transport_url(),
            "database_connection": cell.reveal_database_connection(),
            "disabled": cell.disabled,
        }
        for cell in cells
    ]
    if form == "json":
        text = json.dumps({"cells": records}, indent=2, ensure_ascii=False) + "\n"
    else:
        text = yaml.safe_dump({"cells": records}, sort_keys=False, allow_unicode=True)
    _parsed(text)
    return text


class _Fields(list[tuple[Any, Any]]):
    """A mapping as it was written: what is there twice is there twice."""


def _state(found: os.stat_result) -> tuple[int, ...]:
    """Return what is another where the file is another. The ctime tells of a chmod, too, and of a copy as old."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _cannot_be_read(path: str, error: OSError) -> str:
    return f"{path}: it can't be read: {error.strerror}"


def _shows_password(cell: Cell) -> bool:
    stored = (cell.reveal_transport_url(), cell.reveal_database_connection())
    plain = (text for text in stored if not is_encrypted(text) and not is_reference(text))
    return any(urls.mask(text) != text for text in plain)


def _named(path: str, content: bytes) -> list[Cell]:
    try:
        return _parsed(_decoded(content))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
    # not from within: that error holds the whole content
    raise ConfigError(f"line {line} is not UTF-8")


def _parsed(text: str) -> list[Cell]:
    """Return the cells of a text; the first thing that is wrong with it is raised, and no value is quoted for it."""
    document = _document(text)
    if not isinstance(document, _Fields):
        raise ConfigError("it has to be a mapping with the key cells")
    records = _fields(document, "at the top", ("cells",), {})["cells"]
    if not isinstance(records, list) or isinstance(records, _Fields):
        raise ConfigError("cells has to be a list")
    taken: dict[tuple[str, object], str] = {}
    cells = [_cell(record, number, taken) for number, record in enumerate(records, 1)]
    return sorted(cells, key=lambda cell: cell.id)


def _document(text: str) -> Any:
    """Read JSON or YAML. Where it is neither, what got further into it tells best where the mistake is."""
    places = []
    # PyYAML can't do for both: no tab may begin a line, and one character that is escaped as two stays two
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text, object_pairs_hook=_Fields)
        except json.JSONDecodeError as error:
            places.append((error.lineno, error.colno))
        except (ValueError, RecursionError):
            pass
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        places.append((before.count("\n") + 1, len(before) - before.rfind("\n")))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        places += [(mark.line + 1, mark.column + 1)] if mark else []
    except (yaml.YAMLError, RecursionError):
        pass
    else:
        return _value(node, 0)
    # not from within: those errors quote the line
    raise ConfigError(f"it is neither JSON nor YAML{_place(*max(places)) if places else ''}")


def _place(line: int, column: int) -> str:
    return f" in line {line}, column {column}"


def _value(node: yaml.Node | None, depth: int) -> Any:
    """Make the value of a node by the rules of JSON: ``no`` and ``2026-01-01`` are text, as they are in YAML 1.2."""
    if node is None:
        return None
    place = _place(node.start_mark.line + 1, node.start_mark.column + 1)
    if node.tag not in _UNTAGGED:
        raise ConfigError(f"there is a tag{place}: tags are not understood")
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if depth == _DEEPEST:
        raise ConfigError(f"there is more than one value{place}")
    if isinstance(node, yaml.MappingNode):
        return _Fields((_value(key, _DEEPEST), _value(value, depth + 1)) for key, value in node.value)
    return [_value(item, depth + 1) for item in node.value]


def _scalar(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    if node.style is not None:
        return text  # it is in quotes
    if _NUMBER.fullmatch(text):
        return int(text)
    return _WORDS.get(text, text)


def _cell(record: Any, number: int, taken: dict[tuple[str, object], str]) -> Cell:
    """Make a cell of its record.

    :param taken: what only one cell can have -> the one that has it
    """
    where = f"cell no. {number}"
    if not isinstance(record, _Fields):
        raise ConfigError(f"{where}: it has to be a mapping of its fields")
    written = dict(record)
    where += next((f" ({name})" for name in (written.get("name"), written.get("uuid")) if _is_showable(name)), "")
    cell = Cell(**_checked(_fields(record, where, _FIELDS, _DEFAULTS), where))
    for field, value in _unshared(cell):
        if (field, value) in taken:
            raise ConfigError(f"{where}: {field} is that of {taken[field, value]}, too")
        taken[field, value] = where
    return cell


def _fields(written: _Fields, where: str, known: tuple[str, ...], defaults: dict[str, Any]) -> dict[str, Any]:
    names = [name for name, _ in written]
    for name in names:
        if name not in known:
            shown = name if _is_showable(name) else "a key"
            raise ConfigError(f"{where}: {shown} is none of the fields that there are: {', '.join(known)}")
        if names.count(name) > 1:
            raise ConfigError(f"{where}: {name} is there twice")
    for name in known:
        if name not in names and name not in defaults:
            raise ConfigError(f"{where}: {name} is missing")
    return defaults | dict(written)


def _is_showable(name: object) -> bool:
    """Whether it can be shown without a doubt: whoever mixes up the lines of a file may have put a URL there."""
    return isinstance(name, str) and _SHOWABLE.fullmatch(name) is not None


def _checked(values: dict[str, Any], where: str) -> dict[str, Any]:
    # type() and not isinstance(), for which True is a number
    if type(values["id"]) is not int or not 0 < values["id"] <= _LARGEST_ID:
        raise ConfigError(f"{where}: id has to be a whole number from 1 to {_LARGEST_ID}")
    if not _is_uuid(values["uuid"]):
        raise ConfigError(f"{where}: uuid has to be a uuid in lower case, with its hyphens")
    for field in ("name", "transport_url", "database_connection"):
        _check_text(values[field], field, where)
    if type(values["disabled"]) is not bool:
        raise ConfigError(f"{where}: disabled has to be true or false")
    return values


def _is_uuid(value: object) -> bool:
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False


def _check_text(value: object, field: str, where: str) -> None:
    is_name = field == "name"
    if value is None and is_name:
        return
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {field} has to be text{': put it into quotes' if is_name else ''}")
    if not value and not is_name:
        raise ConfigError(f"{where}: {field} is empty")
    if len(value) > _LONGEST_NAME and is_name:
        raise ConfigError(f"{where}: {field} is longer than {_LONGEST_NAME} characters")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise ConfigError(f"{where}: {field} has a line break or another control character in it")


def _unshared(cell: Cell) -> list[tuple[str, object]]:
    """Return what no other cell may have."""
    unshared: list[tuple[str, object]] = [
        ("id", cell.id),
        ("uuid", cell.uuid),
        ("database_connection", cell.reveal_database_connection()),
    ]
    return [*unshared, ("transport_url", cell.reveal_transport_url())] if cell.has_transport else unshared
