# SPDX-License-Identifier: Apache-2.0
"""Measuring: rows, sizes, and models that take turns."""
