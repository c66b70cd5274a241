"""Checks of a written folder: its tensors, its logits, its distance to the source."""
