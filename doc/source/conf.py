# SPDX-License-Identifier: Apache-2.0
"""How Sphinx builds the manual."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

# what is generated: the options and the commands from the code, the release notes from git
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ext"))

project = "cellmw"
author = "cellmw contributors"
project_copyright = author
release = version = version_of("cellmw")

extensions = ["sphinx.ext.autodoc", "cellmw_commands", "cellmw_options", "cellmw_releases"]
html_theme = "alabaster"
html_theme_options = {
    "description": "Routes each API request to the database and message queue of its instance's cell",
    "fixed_sidebar": True,
    "page_width": "1100px",
    "sidebar_width": "240px",
}

# A line in the manual can be typed as it is printed: no dash or quote becomes another one.
smartquotes = False

autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
autodoc_default_options = {"exclude-members": "__init__, __new__"}
# what a module imports for its annotations only is not there at run time; the signatures say it in words
python_use_unqualified_type_names = True
