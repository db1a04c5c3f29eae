"""Sweeps: running them from override lists, their records, status, retry, cancel and garbage collection."""
