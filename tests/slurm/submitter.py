"""Submits a sweep of toys as a process of its own: argument is the store."""

import sys
from pathlib import Path

# The toy stages, this folder's own modules, and the house.
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "engine"), str(HERE), str(HERE.parents[1])]

from sites import Toys, ToySite  # noqa: E402
from toys import Add, Number  # noqa: E402

from harness.errors import Interrupted  # noqa: E402


def toys(root: Path) -> Toys:
    """A number and an array of three that add to it."""
    base = Number(value=5.0)
    return Toys(root, [Add(parent=base, amount=float(step)) for step in range(3)], ToySite(requeues=0))


if __name__ == "__main__":
    try:
        toys(Path(sys.argv[1])).submit()
    except Interrupted as error:
        sys.exit(f"interrupted: {error}")
