# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a saved PLT on chats."""
