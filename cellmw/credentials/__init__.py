# SPDX-License-Identifier: Apache-2.0
"""What stands in a cell's record -> the URL: decrypted, or looked up where the record only says where it is."""
