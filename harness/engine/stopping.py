"""Stopping at a good moment: a long stage asks, where it can be resumed, whether it should."""


def never() -> bool:
    """Say that it should not."""
    return False
