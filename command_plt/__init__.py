"""The command `plt`: a file for each of its subcommands."""
