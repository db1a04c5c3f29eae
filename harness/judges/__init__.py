"""Judges, one module per judge."""
