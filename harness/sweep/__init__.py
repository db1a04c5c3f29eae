"""Sweeps: from override lists to cells, a plan and its run; status, retry, cancel and garbage collection."""
