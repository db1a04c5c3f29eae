"""Classes that moved: where an import path of an earlier version leads now.

Stores and configurations of users name classes by import path. A module or a class that moves within the package gets a
line here, for as long as such paths shall go on working.
"""

MOVED: dict[str, str] = {}
"""Dotted path of a module or a class -> its path now. A module's line holds for everything in it."""


def current(path: str) -> str:
    """Return where a dotted path leads now; the path itself if nothing of it has moved."""
    # A class that moved twice has two lines; no path may be visited twice.
    for _ in range(len(MOVED) + 1):
        head, tail = path, ""
        while head and head not in MOVED:
            head, _, last = head.rpartition(".")
            tail = f".{last}{tail}"
        if not head:
            break
        path = MOVED[head] + tail
    return path
