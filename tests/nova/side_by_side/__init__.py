# SPDX-License-Identifier: Apache-2.0
"""Each command of ``cell_v2`` in each case, by nova-manage and by cellmw-manage, on the same databases.

The cases are data: ``cells.py``, ``hosts.py``, ``instances.py`` and ``first_cell.py`` have them, ``case.py`` says what
one is, and ``table.py`` collects them. The tests in ``test_side_by_side_*.py`` run them, by means of ``bench.py``, and
the manual shows them, by means of ``doc/ext/side_by_side.py``: so it can't say what no test has seen.
"""
