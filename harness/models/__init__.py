"""Base models and adapters: sources, loading, merging, and the parts of a decoder."""
