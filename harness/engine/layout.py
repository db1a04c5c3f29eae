"""The layout of a store. The only module that builds paths within a store."""

import os
from collections.abc import Iterator
from pathlib import Path

MANIFEST = "manifest.json"
SPEC = "spec.json"
FOLDERS = ("artifacts", "work", "claims", "specs", "attempts", "sweeps")
"""Folders created in every writable store; ``jobs``, ``compiled``, ``replies`` and ``damaged`` only on demand."""


class StoreLayout:
    """Paths of one store; performs no writes.

    Args:
        root: the folder of the store.
    """

    def __init__(self, root: Path) -> None:
        """Keep the root."""
        self.root = root

    @property
    def artifacts(self) -> Path:
        """The folder of artifacts: ``artifacts/KIND/KEY/``, complete with their manifest."""
        return self.root / "artifacts"

    def artifact(self, kind: str, key: str) -> Path:
        """Return the path of a stage's artifact, whether or not it exists."""
        return self.artifacts / kind / key

    def manifest(self, kind: str, key: str) -> Path:
        """Return the path of an artifact's manifest."""
        return self.artifact(kind, key) / MANIFEST

    def find(self, key: str) -> Path:
        """Return the folder of the artifact with a key; a path that does not exist if there is none."""
        return next(self.artifacts.glob(f"*/{key}"), self.artifacts / "*" / key)

    def manifests(self, kind: str = "*") -> Iterator[Path]:
        """Return the manifests of the complete artifacts of a kind, or of all."""
        return self.artifacts.glob(f"{kind}/*/{MANIFEST}")

    def folders_by_key(self) -> dict[str, Path]:
        """Return every artifact folder by key, from one listing per kind instead of a search per key."""
        kinds = [Path(kind.path) for kind in _scan(self.artifacts) if kind.is_dir()]
        return {entry.name: Path(entry.path) for kind in kinds for entry in _scan(kind)}

    @property
    def specs(self) -> Path:
        """The folder of frozen specs."""
        return self.root / "specs"

    def spec(self, key: str) -> Path:
        """Return the frozen spec of a planned stage; its artifact holds a copy (``SPEC``)."""
        return self.specs / f"{key}.json"

    @property
    def attempts(self) -> Path:
        """The folder of the records of attempts."""
        return self.root / "attempts"

    def attempts_of(self, key: str) -> Path:
        """Return the path of a stage's attempt record, one line per attempt."""
        return self.attempts / f"{key}.jsonl"

    @property
    def works(self) -> Path:
        """The folder of the work folders."""
        return self.root / "work"

    def work(self, key: str) -> Path:
        """Return the folder that survives a killed attempt of a stage."""
        return self.works / key

    @property
    def claims(self) -> Path:
        """The folder of claims (lock files), one per key."""
        return self.root / "claims"

    @property
    def sweeps(self) -> Path:
        """The folder of sweep records."""
        return self.root / "sweeps"

    def sweep(self, sweep: str) -> Path:
        """Return the record of a sweep."""
        return self.sweeps / f"{sweep}.json"

    @property
    def jobs(self) -> Path:
        """The folder of submissions: ``jobs/SWEEP/SUBMISSION/`` with scripts, logs and the job log."""
        return self.root / "jobs"

    @property
    def compiled(self) -> Path:
        """The compiler's cache, ``compiled/USER_ID/``, shared by all jobs of a user; it can be deleted at any time."""
        return self.root / "compiled"

    @property
    def replies(self) -> Path:
        """Replies of judges behind a service, and what they cost, shared by all jobs; it can be deleted at any time."""
        return self.root / "replies"

    @property
    def damaged(self) -> Path:
        """Where damaged artifacts are set aside."""
        return self.root / "damaged"


def _scan(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
