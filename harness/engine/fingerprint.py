"""Fingerprints of what an attempt depends on besides its code: the work folder and the input artifacts.

An attempt that fails with a bug records them. While they and the code are unchanged, the next attempt would fail in the
same way.
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


def fingerprints(store: Store, key: str, inputs: Iterable[str]) -> dict[str, str]:
    """Return a fingerprint of a stage's work folder (``WORK``) and of each artifact that it reads, by key.

    It changes if the folder is removed, a checkpoint in it changes, or an artifact is recomputed. File contents are not
    read, only their size and modification time.
    """
    result = {WORK: _work_fingerprint(store.work(key))}
    for parent in inputs:
        result[parent] = _stamp(store.find(parent) / MANIFEST)
    return result


def _work_fingerprint(folder: Path) -> str:
    try:
        # The log and the curve, at the top level, grow with each attempt; checkpoints are in subfolders.
        stamps = [(str(path.relative_to(folder)), _stamp(path)) for path in files_in(folder) if path.parent != folder]
        return hashlib.sha256(json.dumps([folder.stat().st_ino, stamps]).encode()).hexdigest()[:16]
    except OSError:
        return ""


def _stamp(path: Path) -> str:
    try:
        info = os.stat(path)
    except OSError:
        return ""
    return f"{info.st_size}-{info.st_mtime_ns}"
