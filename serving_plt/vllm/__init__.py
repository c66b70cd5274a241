# SPDX-License-Identifier: Apache-2.0
"""The plugin for vLLM, and what checks and demonstrates it."""
