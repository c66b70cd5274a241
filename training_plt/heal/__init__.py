# SPDX-License-Identifier: Apache-2.0
"""Train a converted checkpoint until it is as good as its source."""
