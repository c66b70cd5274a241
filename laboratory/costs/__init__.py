"""What a PLT costs next to plain and looped models of its size: `plt bench`."""
