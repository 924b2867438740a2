# SPDX-License-Identifier: Apache-2.0
"""Cells that nobody closes before the process ends."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cellmw.cell import Cell
    from cellmw.store import Store

_PROGRAM = """
import os, sys
from oslo_config import cfg
from cellmw import conf as options, deploy
from cellmw.handles import Handles

close, parent = Handles.close, os.getpid()

def reporting_close(self):
    print("closed in", "parent" if os.getpid() == parent else "child", flush=True)
    close(self)

Handles.close = reporting_close
conf = cfg.ConfigOpts()
conf([], project="cellmw", default_config_files=[], default_config_dirs=[])
options.register_opts(conf)
conf.set_override("connection", sys.argv[1], options.API_DATABASE)
cells = deploy.cells(conf)
with cells.lease(int(sys.argv[2])):
    pass
print("ends", flush=True)
"""


def _output(store: Store, cell: Cell, more: str = "") -> list[str]:
    url = store.engine.url.render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROGRAM + more, url, str(cell.id)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_closed_at_exit(store: Store, cell1: Cell) -> None:
    """What is open when the process ends is closed, and no thread of ours keeps it from ending."""
    assert _output(store, cell1) == ["ends", "closed in parent"]


def test_closed_once(store: Store, cell1: Cell) -> None:
    """What was closed before is left alone."""
    assert _output(store, cell1, "cells.close()") == ["ends", "closed in parent"]


def test_child_closes_nothing(store: Store, cell1: Cell) -> None:
    """A child that was forked since, and ends as a process does, closes nothing of its parent's."""
    more = "if os.fork() == 0: sys.exit()\nos.wait()"
    assert _output(store, cell1, more) == ["ends", "closed in parent"]
