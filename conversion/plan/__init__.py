"""What will be written: a config, and where each tensor comes from."""
