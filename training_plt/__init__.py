# SPDX-License-Identifier: Apache-2.0
"""A folder for each training command; `data`, `trainer` and `command` are what they share."""
