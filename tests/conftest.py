# SPDX-License-Identifier: Apache-2.0
"""Imports, before any test, the libraries that warn of themselves while they are imported.

In a test every warning is an error. What these say is not about us: oslo.messaging imports oslo.service, which imports
the deprecated eventlet, and WebOb imports the deprecated cgi.
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import oslo_messaging  # noqa: F401
    import webob  # noqa: F401
