# SPDX-License-Identifier: Apache-2.0
"""vLLM's server of a PLT under load."""
