"""Surroundings: what an attempt of a stage finds besides its code, so that a change of them can be told later.

An attempt that failed by a bug notes what it left behind. As long as nobody touched that, nor the artifacts that the
stage reads, the next attempt with the same code meets the same.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from harness.engine.layout import MANIFEST
from harness.engine.manifest import files_in
from harness.engine.store import Store

WORK = "work"


def surroundings(store: Store, key: str, inputs: Iterable[str]) -> dict[str, str]:
    """Return a short text for the work folder of a stage and for each artifact that it reads, by its key.

    The text is another when the folder was removed, a checkpoint in it changed, or the artifact was made again. What is
    in the files is not read.
    """
    found = {WORK: _work(store.work(key))}
    for parent in inputs:
        found[parent] = _stamp(store.find(parent) / MANIFEST)
    return found


def _work(folder: Path) -> str:
    try:
        # The log and the curve lie in the folder itself and grow with each attempt; checkpoints lie in subfolders.
        kept = [(str(path.relative_to(folder)), _stamp(path)) for path in files_in(folder) if path.parent != folder]
        return hashlib.sha256(json.dumps([folder.stat().st_ino, kept]).encode()).hexdigest()[:16]
    except OSError:
        return ""


def _stamp(path: Path) -> str:
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{found.st_size}-{found.st_mtime_ns}"
