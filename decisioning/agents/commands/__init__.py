"""The commands of the terminal, a file a group."""
