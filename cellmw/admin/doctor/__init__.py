# SPDX-License-Identifier: Apache-2.0
"""The deployment as it is now -> what is wrong with it, and what to do about each of these things.

Who asks all at once is ``examination``, by ``probe``; the other modules are one kind of check each.
Nothing is changed, but that a queue and an exchange are made at each broker, and removed.
"""

from __future__ import annotations

from cellmw.admin.doctor.examination import CHECKS, Diagnosis, Examination
from cellmw.admin.doctor.finding import NO_CELL, Finding, Severity

__all__ = ["CHECKS", "NO_CELL", "Diagnosis", "Examination", "Finding", "Severity"]
