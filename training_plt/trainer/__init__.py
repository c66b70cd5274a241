# SPDX-License-Identifier: Apache-2.0
"""What Trainer lacks: its arguments and callbacks, and what it must know of loops, gates and scales."""
