# SPDX-License-Identifier: Apache-2.0
"""What an operator does to a deployment, and wants to know of it, as functions; ``cmd`` takes them to a terminal.

Each returns what it has found or done. None prints anything.
"""

from __future__ import annotations
