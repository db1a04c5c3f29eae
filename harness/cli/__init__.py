"""The command line: verbs, progress, and the only printing."""
