"""Attacks, one module per attack."""
