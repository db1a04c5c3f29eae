"""Aggregators: how the server of a federation combines what its clients trained."""
