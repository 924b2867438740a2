# SPDX-License-Identifier: Apache-2.0
"""Request path -> instance uuid, or None where the path names no instance.

Only the path is looked at, and it is never changed. Whether the instance exists is the next station's question.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cellmw.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed.wsgi import WSGIEnvironment

_UUID = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_VERSION = r"v[0-9]+(?:\.[0-9]+)?"
_ANY_SEGMENT = "[^/]+"


class Routes:
    """The templates of the paths that name an instance. Lives as long as the filter; immutable.

    A template is matched on whole segments from the start of the path, and what follows it belongs to the instance:
    ``/servers/{instance_uuid}`` matches ``/servers/UUID/action`` and not ``/servers/UUIDx``.
    """

    def __init__(self, templates: Sequence[str]) -> None:
        """Compile the templates.

        :raises ConfigError: if one of them can't be understood, or if there is none
        """
        if not templates:
            raise ConfigError("routes: there has to be at least one template, as in /servers/{instance_uuid}")
        # one pattern for all of them: a path that names no instance is the common case, and is done after one match
        self._match = re.compile(rf"(?:{'|'.join(map(_prefix_pattern, templates))})/({_UUID})(?=/|\Z)").match

    def instance_uuid(self, environ: WSGIEnvironment) -> str | None:
        """Return the uuid that the request's PATH_INFO names, in lower case, or None."""
        try:
            path = environ["PATH_INFO"]
        except KeyError:  # which is how a server may say that it is empty
            return None
        found = self._match(path)
        if found is None or not (path.isascii() or _is_utf8(path)):
            return None
        return found[1].lower()


def _prefix_pattern(template: str) -> str:
    """Turn what stands in front of the uuid into a pattern."""
    if not template.startswith("/"):
        raise ConfigError(f"routes: {template!r} does not begin with a slash")
    *prefix, last = template[1:].split("/")
    if last != "{instance_uuid}" or last in prefix:
        raise ConfigError(
            f"routes: {template!r} does not end with its only {{instance_uuid}}; what follows that in a path belongs "
            "to the instance, whatever it is"
        )
    return "".join(f"/{_segment_pattern(segment, template)}" for segment in prefix)


def _segment_pattern(segment: str, template: str) -> str:
    if placeholder := re.fullmatch(r"\{([a-z_]+)\}", segment):
        return _VERSION if placeholder[1] == "version" else _ANY_SEGMENT
    if not segment or "{" in segment or "}" in segment:
        raise ConfigError(f"routes: {template!r} has a segment that is neither a word nor a {{name}}: {segment!r}")
    # as PATH_INFO has it
    return re.escape(segment.encode().decode("latin-1"))


def _is_utf8(path: str) -> bool:
    """Tell whether the path's bytes, which WSGI hands over decoded as latin-1, are UTF-8."""
    try:
        path.encode("latin-1").decode()
    except UnicodeError:
        return False
    return True
