# SPDX-License-Identifier: Apache-2.0
"""What the speed claims of the documentation are measured with."""
