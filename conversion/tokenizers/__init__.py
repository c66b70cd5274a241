"""Tokenizers of a source: copied or rebuilt."""
