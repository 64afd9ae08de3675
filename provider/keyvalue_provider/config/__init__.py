"""Options, where they come from, and the command line."""
