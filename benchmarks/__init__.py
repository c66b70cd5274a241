"""What a PLT costs beside plain and looped models of its size: `plt-bench`."""
