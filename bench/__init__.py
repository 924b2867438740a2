# SPDX-License-Identifier: Apache-2.0
"""What the speed claims of the documentation are measured with."""

import warnings

# oslo.messaging imports oslo.service, which imports eventlet wherever that is installed; nothing of it runs here.
warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
