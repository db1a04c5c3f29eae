"""What all tests share."""

from pathlib import Path

import pytest
from hypothesis import settings

# Deterministic, and without a stopwatch: the machine may be busy.
settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")

SLURM = Path(__file__).parent / "slurm"


def pytest_itemcollected(item: pytest.Item) -> None:
    """With `--dist loadgroup` one process takes each file as a whole, and one takes all that needs the one Slurm."""
    item.add_marker(pytest.mark.xdist_group("slurm" if SLURM in item.path.parents else item.path.stem))
