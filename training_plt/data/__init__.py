# SPDX-License-Identifier: Apache-2.0
"""Texts, their tokenizer, and how they are packed."""
