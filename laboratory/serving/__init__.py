# SPDX-License-Identifier: Apache-2.0
"""What the loops of a PLT cost in vLLM: `python -m laboratory.serving`."""
