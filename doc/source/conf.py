# SPDX-License-Identifier: Apache-2.0
"""How Sphinx builds the manual."""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import version as version_of
from pathlib import Path

# what is generated: the options and the commands from the code, the release notes from git, cases from the tests
_EXT = Path(__file__).resolve().parent.parent / "ext"
sys.path.insert(0, str(_EXT))

project = "cellmw"
author = "cellmw contributors"
project_copyright = author
release = version = version_of("cellmw")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.graphviz",
    "cellmw_commands",
    "cellmw_options",
    "cellmw_releases",
    "side_by_side",
]
html_theme = "alabaster"
html_theme_options = {
    "description": "Routes each API request to the database and message queue of its instance's cell",
    "fixed_sidebar": True,
    "page_width": "1100px",
    "sidebar_width": "240px",
}

# A line in the manual can be typed as it is printed: no dash or quote becomes another one.
smartquotes = False

# The diagrams have their looks from here. They are drawn by the machine's own Graphviz or, where it has none, by the
# one that comes with the docs extra.
graphviz_output_format = "svg"
graphviz_dot, graphviz_dot_args = "dot", []
if shutil.which(graphviz_dot) is None:
    graphviz_dot, graphviz_dot_args = sys.executable, [str(_EXT / "dot.py")]
_FONT = "fontname=Helvetica,Arial,sans-serif"
_INK = "#3e4349"
graphviz_dot_args += [
    *(f"-{scope}{attribute}" for scope in "GNE" for attribute in (_FONT, "fontsize=11", f"fontcolor={_INK}")),
    *("-Gbgcolor=transparent", "-Gpad=0.1", "-Gnodesep=0.35", "-Granksep=0.5", "-Gcolor=#a9b4bf"),
    *("-Nshape=box", "-Nstyle=rounded,filled", "-Nfillcolor=white", "-Nheight=0.4", "-Nmargin=0.14,0.06"),
    *("-Earrowsize=0.7", f"-Ecolor={_INK}", f"-Ncolor={_INK}"),
]

autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
autodoc_default_options = {"exclude-members": "__init__, __new__"}
# what a module imports for its annotations only is not there at run time; the signatures say it in words
python_use_unqualified_type_names = True
