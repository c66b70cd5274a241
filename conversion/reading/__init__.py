"""Reading a source: its files, its config, its generation settings."""
