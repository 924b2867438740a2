# SPDX-License-Identifier: Apache-2.0
"""The history in git -> the release notes: reno's directive ``release-notes``, for copies without a history, too.

reno finds in git's history which note belongs to which release. A shallow clone has a part of it only, and an unpacked
archive has none: the manual is then built without the notes, and says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from docutils import nodes
from dulwich.errors import NotGitRepository
from reno.sphinxext import ReleaseNotesDirective

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_NONE = "This copy of the manual was made without the history of cellmw, and so without its release notes."


class ReleaseNotes(ReleaseNotesDirective):
    """Show the release notes, or why there are none."""

    def run(self) -> list[nodes.Node]:
        """Let reno write them."""
        try:
            return super().run()
        except (KeyError, NotGitRepository):  # a commit is not there, or no commit is
            return [nodes.paragraph("", _NONE)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Let Sphinx know of the directive."""
    app.add_directive("release-notes", ReleaseNotes)
    return {"parallel_read_safe": True}
