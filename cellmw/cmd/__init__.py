# SPDX-License-Identifier: Apache-2.0
"""The console commands. Whatever they import, what they print is theirs alone."""

from __future__ import annotations

import warnings

# oslo.messaging imports oslo.service, which imports eventlet, which warns of itself
warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
