# SPDX-License-Identifier: Apache-2.0
"""The checks of `check_on_gpu`: a file for each part."""
