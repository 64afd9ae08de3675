"""The options, their sources, and the command line."""
