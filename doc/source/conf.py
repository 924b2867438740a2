# SPDX-License-Identifier: Apache-2.0
"""How Sphinx builds the manual, and the ``cellmw-options`` directive, which shows the options that the code has."""

from __future__ import annotations

import textwrap
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, ClassVar

from oslo_config import cfg
from sphinx.util.docutils import SphinxDirective

from cellmw import conf as cellmw_conf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from docutils import nodes
    from sphinx.application import Sphinx

project = "cellmw"
author = "cellmw contributors"
project_copyright = author
release = version = version_of("cellmw")

extensions = ["sphinx.ext.autodoc"]
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


class Options(SphinxDirective):
    """Show the options of one group that cellmw goes by, each under its name: ``.. cellmw-options:: cellmw``."""

    required_arguments = 1

    _TYPES: ClassVar[dict[type[cfg.Opt], str]] = {
        cfg.BoolOpt: "true or false",
        cfg.FloatOpt: "a number",
        cfg.IntOpt: "a whole number",
        cfg.ListOpt: "values, separated by commas",
        cfg.StrOpt: "text",
    }

    def run(self) -> list[nodes.Node]:
        """Write what there is to say about each option as reStructuredText, and have that parsed."""
        group = self.arguments[0]
        text = "\n".join(line for opt in _used_opts(group) for line in self._entry(group, opt))
        return self.parse_text_to_nodes(text)

    def _entry(self, group: str, opt: cfg.Opt) -> Iterator[str]:
        yield f".. confval:: [{group}] {opt.name}"
        yield f"   :type: {self._TYPES[type(opt)]}{_bounds(opt)}"
        yield f"   :default: {_default(opt)}"
        yield ""
        yield from textwrap.indent(textwrap.dedent(opt.help).strip(), "   ").splitlines()
        yield ""
        for value, meaning in (getattr(opt.type, "choices", None) or {}).items():
            yield f"   * ``{value}``: {meaning}"
        yield ""


def _used_opts(group: str) -> list[cfg.Opt]:
    """Return the options of this group that do something: [api_database] has all of oslo.db's, for other services."""
    groups = dict(cellmw_conf.list_opts())
    if group != cellmw_conf.API_DATABASE:
        return groups[group]
    used = {"connection", *(opt.name for opt in groups[cellmw_conf.CELL_DATABASE])}
    return [opt for opt in groups[group] if opt.name in used]


def _bounds(opt: cfg.Opt) -> str:
    least, most = getattr(opt.type, "min", None), getattr(opt.type, "max", None)
    return (f", at least {least:g}" if least is not None else "") + (f", at most {most:g}" if most is not None else "")


def _default(opt: cfg.Opt) -> str:
    shown: dict[type, Callable[..., str]] = {bool: lambda value: str(value).lower(), list: ", ".join}
    if opt.default is None or opt.default == "":
        return "not set"
    return f"``{shown.get(type(opt.default), str)(opt.default)}``"


def setup(app: Sphinx) -> dict[str, bool]:
    """Let Sphinx know of the directive."""
    app.add_directive("cellmw-options", Options)
    return {"parallel_read_safe": True}
