# SPDX-License-Identifier: Apache-2.0
"""A comparison of ways to heal a converted loop: `python -m laboratory.healing`."""
