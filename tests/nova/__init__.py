# SPDX-License-Identifier: Apache-2.0
"""The filter in the pipeline of a real Nova: its own api-paste.ini, its own controllers, its own command.

These tests have an environment of their own (``make test-nova``), because Nova brings its own versions of what cellmw
uses. What is not Nova's is stood in for by three files: ``authtoken.py`` for Keystone's filter, ``neighbours.py`` for
the services that Nova asks, ``worker.py`` for nova-compute. A process has one Nova configuration, so each run is for
one deployment, which ``deployment.py`` makes: ``pytest tests/nova --deployment sqlite`` or ``servers``.

``side_by_side`` has cellmw-manage beside nova-manage: the cases there are those in the manual.
"""
