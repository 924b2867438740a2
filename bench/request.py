# SPDX-License-Identifier: Apache-2.0
"""What the filter adds to a request: one JSON line per figure, in microseconds, medians of interleaved repeats.

Every figure is the time of a bare WSGI app behind something, less that of the bare app alone; the context is in the
environ already, as it is in a pipeline. Repeats of all of them take turns, so that a machine whose speed drifts slows
all of them alike: read the ratios.

The databases of the uncached figures are SQLite in a temporary folder, and MariaDB and PostgreSQL where they answer.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import threading
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

from oslo_config import cfg
from sqlalchemy import select

from cellmw import conf as options
from cellmw import deploy
from cellmw.context import RequestContext
from cellmw.filter import CellFilter
