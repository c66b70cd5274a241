# SPDX-License-Identifier: Apache-2.0
"""What measures a PLT: its costs, what it learns, its healing, and its server. Only in a checkout."""
