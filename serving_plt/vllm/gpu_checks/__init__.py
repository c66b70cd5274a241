# SPDX-License-Identifier: Apache-2.0
"""What `check_on_gpu` checks: a file for each part."""
