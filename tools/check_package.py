# SPDX-License-Identifier: Apache-2.0
"""The tree -> an sdist and a wheel in ``dist``, and an exit code: 1 where one of them lacks something.

The wheel is made from the sdist, as an index or a distribution would make it. It is then installed, without what it
requires, into a folder of its own, and asked for its entry points there. pbr packs what git knows of: a new file takes
part once it is added.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
RENO_CACHE = ROOT / "releasenotes/notes/reno.cache"

IN_THE_SDIST = {
    "LICENSE",
    "README.rst",
    "cellmw/py.typed",
    "cellmw/store/migrations/script.py.mako",
    "doc/source/index.rst",
    "etc/api-paste.ini",
    "etc/cellmw/cellmw.conf.sample",
    "releasenotes/notes/reno.cache",
    "setup.cfg",
    "tests/conftest.py",
    "tox.ini",
}
"""Some of what whoever packs or changes cellmw needs: one for each way to get lost."""

NOT_INSTALLED = {"etc/cellmw/cellmw-config-generator.conf"}
"""What is in ``etc`` for whoever works on cellmw."""

INSTALLED = """
import importlib.metadata, sys
import cellmw
assert cellmw.__file__.startswith(sys.argv[1]), cellmw.__file__
entry_points = importlib.metadata.distribution("cellmw").entry_points
assert {(entry_point.group, entry_point.name) for entry_point in entry_points} >= {
    ("console_scripts", "cellmw-manage"),
    ("console_scripts", "cellmw-status"),
    ("oslo.config.opts", "cellmw"),
    ("oslo.messaging.drivers", "memory"),
    ("paste.filter_factory", "cells"),
}, entry_points
for entry_point in entry_points:
    entry_point.load()
"""
"""What has to work where the wheel is installed."""


def main() -> int:
    """Build both, and print what is wrong with them."""
    shutil.rmtree(DIST, ignore_errors=True)
    try:
        _run("-m", "build", "--no-isolation", "--outdir", str(DIST), str(ROOT))
    finally:
        # reno would go by its cache, which belongs into the sdist, instead of by git
        RENO_CACHE.unlink(missing_ok=True)
    (sdist,), (wheel,) = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    wrong = [*_wrong_in(_files_of_sdist(sdist), _files_of_wheel(wheel)), *_wrong_when_installed(wheel)]
    print(*wrong or [f"{sdist.name} and {wheel.name} are complete"], sep="\n")
    return 1 if wrong else 0


def _wrong_in(sdist: set[str], wheel: set[str]) -> Iterator[str]:
    yield from (f"the sdist lacks {name}" for name in sorted(IN_THE_SDIST - sdist))
    code = {name for name in sdist if name.startswith("cellmw/")}
    etc = {name for name in sdist if name.startswith("etc/")} - NOT_INSTALLED
    installed = {f"etc/cellmw/{PurePosixPath(name).name}" for name in etc}
    yield from (f"the wheel lacks {name}" for name in sorted(code - wheel))
    yield from (f"the wheel lacks {name}: list it in setup.cfg, data_files" for name in sorted(installed - wheel))
    yield from (f"the wheel has {name}, which is no part of the package" for name in sorted(wheel - code - installed))


def _files_of_sdist(sdist: Path) -> set[str]:
    """Return the names without the folder that all of them are in."""
    with tarfile.open(sdist) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


def _files_of_wheel(wheel: Path) -> set[str]:
    """Return the names as they are when installed, without the wheel's own records."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    return {name.partition(".data/data/")[2] or name for name in names}


def _wrong_when_installed(wheel: Path) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        _run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, str(wheel))
        scripts = [[f"{folder}/bin/{script}", "--help"] for script in ("cellmw-manage", "cellmw-status")]
        for arguments in (["-c", INSTALLED, folder], *scripts):
            done = _run(*arguments, check=False, cwd=folder, env=os.environ | {"PYTHONPATH": folder})
            if done.returncode:
                yield f"the wheel does not work where it is installed:\n{done.stderr}"


def _run(*arguments: str, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    """Run Python; where that has to succeed and does not, say what it said."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, **options)
    if check and done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}")
    return done


if __name__ == "__main__":
    sys.exit(main())
