"""The costs of a PLT next to plain and looped models of its size: `plt bench`."""
