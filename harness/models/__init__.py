"""Base models and LoRA adapters: sources, loading, merging, and the modules of a decoder."""
