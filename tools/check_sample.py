# SPDX-License-Identifier: Apache-2.0
"""The options of the code, and the sample configuration file -> an exit code: 1 where they have come apart.

Says what differs, and changes nothing. ``make sample`` writes the file.
"""

from __future__ import annotations

import difflib
import sys
import tempfile
from pathlib import Path

from oslo_config import generator

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "etc/cellmw/cellmw-config-generator.conf"
SAMPLE = ROOT / "etc/cellmw/cellmw.conf.sample"


def main() -> int:
    """Print the difference and the way out of it, if there is one."""
    expected = _generated().splitlines()
    there = SAMPLE.read_text().splitlines() if SAMPLE.exists() else []
    name = str(SAMPLE.relative_to(ROOT))
    difference = list(difflib.unified_diff(there, expected, name, "the options", lineterm=""))
    if difference:
        print(*difference, "", f"{name} is not what the options make: run `make sample`, and commit it.", sep="\n")
    return 1 if difference else 0


def _generated() -> str:
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder, "sample")
        generator.main(["--config-file", str(CONFIG), "--output-file", str(sample)])
        return sample.read_text()


if __name__ == "__main__":
    sys.exit(main())
