"""Garbage collection: finds and removes what no sweep in the store refers to."""

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from harness.engine.claim import live_claims
from harness.engine.files import is_full, read_json, writing
from harness.engine.layout import MANIFEST
from harness.engine.spec import stages_in
from harness.engine.store import Store
from harness.errors import StoreError


class Garbage(NamedTuple):
    """A folder that is not needed: its type, path, and size in bytes."""

    what: str
    path: Path
    size: int


class Needed:
    """The keys in use at the time of the query: by sweeps, queued jobs and running processes, with all ancestors.

    If a record that names keys cannot be read, every key counts as needed.

    Args:
        store: the store.
        queued: keys of stages with a job in the queue.
    """

    def __init__(self, store: Store, *, queued: Collection[str]) -> None:
        """Read the specs of queued stages; sweep records are read on demand."""
        self._store = store
        self.damage: dict[str, None] = {}
        """Messages about files that could not be read so far."""
        self._queued = with_ancestors(store, queued, self._add_damage)
        self._claimed: tuple[set[str], set[str]] = (set(), set())
        self._by_sweep: dict[tuple[str, int], set[str]] = {}

    def __contains__(self, key: str) -> bool:
        return any(key in keys for keys in self._groups()) or bool(self.damage)

    def keys(self) -> set[str]:
        """Return all keys known to be needed now."""
        return set().union(*self._groups())

    def _groups(self) -> Iterator[set[str]]:
        yield self._queued
        live = live_claims(self._store.claims)
        if live != self._claimed[0]:
            self._claimed = live, with_ancestors(self._store, live, self._add_damage)
        yield self._claimed[1]
        yield from self._sweeps()

    def _sweeps(self) -> Iterator[set[str]]:
        for path in self._store.layout.sweeps.glob("[!.]*.json"):
            version = path.stem, path.stat().st_mtime_ns
            if version not in self._by_sweep:
                if problem := record_problem(self._store, path.stem):
                    self._add_damage(problem)
                self._by_sweep[version] = set() if problem else keys_of_record(self._store.read_sweep(path.stem))
            yield self._by_sweep[version]

    def _add_damage(self, problem: str) -> None:
        self.damage[problem] = None


def keys_of_record(record: Mapping[str, Any]) -> set[str]:
    """Return the keys in a sweep's record; records of earlier versions contain only those of cells."""
    return {*record.get("stages", {}), *(key for cell in record["cells"] for key in cell["keys"].values() if key)}


def record_problem(store: Store, sweep: str) -> str:
    """Return why the record of a sweep cannot be read; empty if it can."""
    try:
        keys_of_record(store.read_sweep(sweep))
    except StoreError as error:
        return str(error)
    except (KeyError, TypeError, AttributeError):
        return f"The store cannot be read: the record of `{sweep}` is damaged."
    return ""


def with_ancestors(store: Store, keys: Collection[str], damaged: Callable[[str], None]) -> set[str]:
    """Return keys and those of all their ancestors; call ``damaged`` for each spec that cannot be read."""
    found: set[str] = set()
    pending = list(keys)
    while pending:
        key = pending.pop()
        if key not in found:
            found.add(key)
            try:
                pending += _parents(store, key)
            except StoreError as error:
                damaged(str(error))
    return found


def _parents(store: Store, key: str) -> list[str]:
    # Read without building the stage: its class may only be allowed in its own sweep.
    path = store.layout.spec(key)
    if not path.exists():
        return []
    return list(stages_in(read_json(path)))


def find_garbage(store: Store, needed: Collection[str], *, seconds: float) -> Iterator[Garbage]:
    """Find artifacts and work folders of unneeded keys, and what needed ones have left behind.

    These are damaged artifacts that were set aside, and checkpoints of stored stages, left by a process that was killed
    after it had stored the artifact.

    Args:
        store: the store.
        needed: keys to keep.
        seconds: minimum time since the last modification of a folder.
    """
    latest = time.time() - seconds
    layout = store.layout
    claimed = live_claims(store.claims)
    found = (("artifact", layout.artifacts, "*/*"), ("work", layout.works, "*"), ("damaged", layout.damaged, "*"))
    for what, parent, pattern in found:
        for folder in sorted(parent.glob(pattern)):
            if folder.name.partition("-")[0] not in needed or what == "damaged":
                yield from _old(what, folder, latest)
            elif what == "work" and folder.name not in claimed and (layout.find(folder.name) / MANIFEST).exists():
                for checkpoint in sorted(path for path in folder.iterdir() if path.is_dir()):
                    yield from _old("checkpoint", checkpoint, latest)


def _old(what: str, folder: Path, latest: float) -> Iterator[Garbage]:
    """Yield a folder in which nothing was modified later; nothing if another process has removed it meanwhile."""
    with suppress(FileNotFoundError):
        files = [path.stat() for path in folder.rglob("*") if path.is_file()]
        if max((file.st_mtime for file in files), default=folder.stat().st_mtime) <= latest:
            yield Garbage(what, folder, sum(file.st_size for file in files))


def remove(store: Store, garbage: Garbage) -> None:
    """Remove a folder; a partly removed one is never mistaken for an artifact.

    Raises:
        StoreError: the store cannot be written.
    """
    with writing(garbage.path):
        # Without its manifest, an artifact is incomplete.
        (garbage.path / MANIFEST).unlink(missing_ok=True)
        trash = store.layout.damaged / f".{garbage.path.name}-{time.time_ns()}"
        try:
            trash.parent.mkdir(exist_ok=True)
            os.replace(garbage.path, trash)
        except OSError as error:
            if not is_full(error):
                raise
            # No space for a new directory entry: remove it in place.
            trash = garbage.path
        shutil.rmtree(trash)
