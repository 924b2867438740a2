# SPDX-License-Identifier: Apache-2.0
"""A small compute service in two cells: how little a service writes to be cell-aware.

``python -m examples.compute.demo`` runs it. In the order of a request: ``context.py`` (who asks), cellmw's filter
(which cell), ``controllers.py`` (what is asked), ``scheduler.py`` (the one place where a cell is chosen), ``worker.py``
(what runs in a cell) and ``models.py`` (what a cell's database holds). The rest is the demo: ``deployment.py`` sets it
all up, in a folder or at the ``places.py`` that were given, ``part.py`` and ``process.py`` run it in one process or in
several, and ``witness.py`` looks from outside at what happened.
"""

import warnings

# oslo.messaging imports oslo.service, which imports eventlet wherever that is installed; nothing of it runs here.
warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
