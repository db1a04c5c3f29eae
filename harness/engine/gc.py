"""Collect: what of a store no sweep names any more, and removing it."""

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harness.engine.build import STAGE
from harness.engine.claim import claimed
from harness.engine.files import is_full, read_json, writing
from harness.engine.layout import MANIFEST
from harness.engine.store import Store
from harness.errors import StoreError


class Garbage(NamedTuple):
    """A folder that nobody needs: what it is, where, and how many bytes it holds."""

    what: str
    path: Path
    size: int


class Needed:
    """The keys that somebody needs at the moment of the question: sweeps, jobs and processes, and what those read.

    Once something cannot be read that names keys, every key may be needed.

    Args:
        store: the store.
        queued: keys of stages whose jobs are in the queue.
    """

    def __init__(self, store: Store, *, queued: Collection[str]) -> None:
        """Read no record yet."""
        self._store = store
        self.damage: dict[str, None] = {}
        """What could not be read so far, a sentence each."""
        self._queued = with_ancestors(store, queued, self._met)
        self._worked_on: tuple[set[str], set[str]] = (set(), set())
        self._named: dict[tuple[str, int], set[str]] = {}

    def __contains__(self, key: str) -> bool:
        return any(key in keys for keys in self._groups()) or bool(self.damage)

    def keys(self) -> set[str]:
        """Return all of them that are known, as of now."""
        return set().union(*self._groups())

    def _groups(self) -> Iterator[set[str]]:
        yield self._queued
        now = claimed(self._store.claims)
        if now != self._worked_on[0]:
            self._worked_on = now, with_ancestors(self._store, now, self._met)
        yield self._worked_on[1]
        yield from self._sweeps()

    def _sweeps(self) -> Iterator[set[str]]:
        for path in self._store.layout.sweeps.glob("[!.]*.json"):
            version = path.stem, path.stat().st_mtime_ns
            if version not in self._named:
                if why := unreadable(self._store, path.stem):
                    self._met(why)
                self._named[version] = set() if why else named(self._store.read_sweep(path.stem))
            yield self._named[version]

    def _met(self, why: str) -> None:
        self.damage[why] = None


def named(record: Mapping[str, Any]) -> set[str]:
    """Return the keys of a sweep's record; one of an earlier version names those of its cells only."""
    return {*record.get("stages", {}), *(key for cell in record["cells"] for key in cell["keys"].values() if key)}


def unreadable(store: Store, sweep: str) -> str:
    """Say why the record of a sweep cannot be read, in a sentence; empty if it can."""
    try:
        named(store.read_sweep(sweep))
    except StoreError as error:
        return str(error)
    except (KeyError, TypeError, AttributeError):
        return f"The store cannot be read: the record of `{sweep}` is damaged."
    return ""


def with_ancestors(store: Store, keys: Collection[str], damaged: Callable[[str], None]) -> set[str]:
    """Return keys and those of all that they read, as far as their specs can be read; tell which cannot."""
    found: set[str] = set()
    left = list(keys)
    while left:
        key = left.pop()
        if key not in found:
            found.add(key)
            try:
                left += _parents(store, key)
            except StoreError as error:
                damaged(str(error))
    return found


def _parents(store: Store, key: str) -> list[str]:
    # Its class may be one that only its own sweep allows to be built.
    path = store.layout.spec(key)
    if not path.exists():
        return []
    return list(_stages_in(read_json(path)))


def _stages_in(data: object) -> Iterator[str]:
    if isinstance(data, Mapping) and STAGE in data:
        yield str(data[STAGE])
    elif isinstance(data, Mapping | list):
        for part in data.values() if isinstance(data, Mapping) else data:
            yield from _stages_in(part)


def unneeded(store: Store, needed: Collection[str], *, seconds: float) -> Iterator[Garbage]:
    """Find what can go: artifacts and work folders of keys that nobody needs, and damaged artifacts that lie aside.

    Args:
        store: the store.
        needed: keys that must stay.
        seconds: how long a folder must have been left alone.
    """
    latest = time.time() - seconds
    layout = store.layout
    found = (("artifact", layout.artifacts, "*/*"), ("work", layout.works, "*"), ("damaged", layout.damaged, "*"))
    for what, parent, pattern in found:
        for folder in sorted(parent.glob(pattern)):
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
        trash = store.layout.damaged / f".{garbage.path.name}-{time.time_ns()}"
        try:
            trash.parent.mkdir(exist_ok=True)
            os.replace(garbage.path, trash)
        except OSError as error:
            if not is_full(error):
                raise
            # There is no room for another name: it goes where it lies.
            trash = garbage.path
        shutil.rmtree(trash)
