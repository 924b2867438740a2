# SPDX-License-Identifier: Apache-2.0
"""The options that the code has -> an entry for each: the directive ``cellmw-options``."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, ClassVar

from oslo_config import cfg
from sphinx.util.docutils import SphinxDirective

from cellmw import conf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from docutils import nodes
    from sphinx.application import Sphinx


class Options(SphinxDirective):
    """Show the options of one group that cellmw goes by, each under its name: ``.. cellmw-options:: cellmw``."""

    required_arguments = 1

    _TYPES: ClassVar[dict[type[cfg.Opt], str]] = {
        cfg.BoolOpt: "true or false",
        cfg.DictOpt: "pairs of a name and a value with a colon between, separated by commas",
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
    groups = dict(conf.list_opts())
    if group != conf.API_DATABASE:
        return groups[group]
    return [opt for opt in groups[group] if opt.name in {"connection", *conf._ENGINE_OPTIONS}]


def _bounds(opt: cfg.Opt) -> str:
    least, most = getattr(opt.type, "min", None), getattr(opt.type, "max", None)
    return (f", at least {least:g}" if least is not None else "") + (f", at most {most:g}" if most is not None else "")


def _default(opt: cfg.Opt) -> str:
    shown: dict[type, Callable[..., str]] = {bool: lambda value: str(value).lower(), list: ", ".join}
    if opt.default in (None, "", [], {}):
        return "not set"
    return f"``{shown.get(type(opt.default), str)(opt.default)}``"


def setup(app: Sphinx) -> dict[str, bool]:
    """Let Sphinx know of the directive."""
    app.add_directive("cellmw-options", Options)
    return {"parallel_read_safe": True}
