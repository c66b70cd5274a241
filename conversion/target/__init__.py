"""The folder that is written: its place, its weights, its card."""
