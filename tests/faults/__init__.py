# SPDX-License-Identifier: Apache-2.0
"""Cells under change, failure and load."""
