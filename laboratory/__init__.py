# SPDX-License-Identifier: Apache-2.0
"""Measurements of a PLT: its costs, its learning, its healing, and its server. Only in a checkout."""
