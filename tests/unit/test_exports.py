# SPDX-License-Identifier: Apache-2.0
"""What the package shows to the outside: its names and its entry points."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata, resources
from typing import Any

import pytest
from paste.deploy import loadwsgi

import cellmw
from cellmw import cell, cells, conf, context, filter, memory, rpc  # noqa: A004 - the module is called so

FACE = {
    "Cell": cell.Cell,
    "CellFilter": filter.CellFilter,
    "Cells": cells.Cells,
    "ClientRouter": rpc.ClientRouter,
    "RequestContext": context.RequestContext,
}


def test_all_is_sorted() -> None:
    """The names of the package are sorted, and are these."""
    assert cellmw.__all__ == sorted(FACE)


@pytest.mark.parametrize("name", sorted(FACE))
def test_name_is_the_real_thing(name: str) -> None:
    """Each name is the class from the module that defines it."""
    assert getattr(cellmw, name) is FACE[name]


def test_star_import() -> None:
    """A star import brings the package's names and nothing else."""
    names: dict[str, Any] = {}
    exec("from cellmw import *", names)
    assert names.keys() - {"__builtins__"} == FACE.keys()


def test_unknown_name() -> None:
    """A name that the package does not have is an AttributeError, as for every module."""
    with pytest.raises(AttributeError, match="'cellmw' has no attribute 'Cel'"):
        _ = cellmw.Cel  # type: ignore[attr-defined]


def test_import_is_light() -> None:
    """Importing the package, or its options, does not import oslo.messaging or SQLAlchemy's ORM."""
    script = "import sys, cellmw, cellmw.conf; print(*[name for name in sys.modules if name.startswith('oslo_messag')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_import_starts_nothing() -> None:
    """Importing every module of the core starts no thread."""
    script = "import threading, cellmw.filter, cellmw.rpc, cellmw.database; print(threading.active_count())"
    command = [sys.executable, "-W", "ignore", "-c", script]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("oslo.config.opts", "cellmw", conf.list_opts),
        ("oslo.messaging.drivers", "memory", memory.MemoryDriver),
    ],
)
def test_entry_points(group: str, name: str, value: object) -> None:
    """The package brings its options and its in-memory queue to oslo by entry points."""
    (entry_point,) = metadata.entry_points(group=group, name=name)
    assert entry_point.load() is value


def test_paste_entry_point() -> None:
    """PasteDeploy finds the filter as egg:cellmw#cells."""
    found = loadwsgi.loadcontext(loadwsgi.FILTER, "egg:cellmw#cells")
    assert found.object == filter.CellFilter.factory


def test_console_script() -> None:
    """The package brings the command cellmw-manage."""
    (entry_point,) = metadata.entry_points(group="console_scripts", name="cellmw-manage")
    assert entry_point.value == "cellmw.cmd.manage:main"


def test_package_is_typed() -> None:
    """Type checkers find that the package has types."""
    assert resources.files("cellmw").joinpath("py.typed").is_file()
