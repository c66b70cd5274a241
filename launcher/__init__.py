"""The `transformers` command, for PLT too: `plt-transformers`."""
