"""Judges that are published language models: each reads a prompt in its model card's format and writes a verdict."""
