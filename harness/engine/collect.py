"""Collect: what of a store no sweep names any more, and removing it."""

import os
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from harness.engine.files import writing
from harness.engine.manifest import NAME as MANIFEST
from harness.engine.store import Store


class Garbage(NamedTuple):
    """A folder that nobody needs: what it is, where, and how many bytes it holds."""

    what: str
    path: Path
    size: int


def unneeded(store: Store, needed: Collection[str], *, seconds: float) -> Iterator[Garbage]:
    """Find what can go: artifacts and work folders of keys that nobody needs, and damaged artifacts that lie aside.

    Args:
        store: the store.
        needed: keys that a sweep names, or that a job or a process works on.
        seconds: how long a folder must have been left alone.
    """
    latest = time.time() - seconds
    for what, pattern in (("artifact", "artifacts/*/*"), ("work", "work/*"), ("damaged", "damaged/*")):
        for folder in sorted(store.root.glob(pattern)):
            if folder.name.partition("-")[0] in needed and what != "damaged":
                continue
            files = [path.stat() for path in folder.rglob("*") if path.is_file()]
            if max((file.st_mtime for file in files), default=folder.stat().st_mtime) <= latest:
                yield Garbage(what, folder, sum(file.st_size for file in files))


def remove(store: Store, garbage: Garbage) -> None:
    """Remove a folder; what is half removed never looks like an artifact.

    Raises:
        StoreError: the store cannot be written.
    """
    with writing(garbage.path):
        # An artifact without its manifest is none.
        (garbage.path / MANIFEST).unlink(missing_ok=True)
        trash = store.root / "damaged" / f".{garbage.path.name}-{time.time_ns()}"
        trash.parent.mkdir(exist_ok=True)
        os.replace(garbage.path, trash)
        shutil.rmtree(trash)
