# SPDX-License-Identifier: Apache-2.0
"""Train a looped model from scratch, or go on with a saved one."""
