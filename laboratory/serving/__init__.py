# SPDX-License-Identifier: Apache-2.0
"""The costs of a PLT's loops in vLLM: `python -m laboratory.serving`."""
