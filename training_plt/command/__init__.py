# SPDX-License-Identifier: Apache-2.0
"""How the commands read their arguments, refuse what cannot run, load models, and say what they made."""
