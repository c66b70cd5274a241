# SPDX-License-Identifier: Apache-2.0
"""Which way of healing a converted loop is best: `python -m laboratory.healing`."""
