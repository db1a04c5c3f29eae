"""A manifest: the list of an artifact's files, and how they came to be. An artifact is complete if it has one."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import DamagedArtifact

NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """What a file of an artifact must be.

    Attributes:
        size: bytes.
        sha256: of the content, in hexadecimal digits.
    """

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path, *, durable: bool = False) -> "FileRecord":
        """Return the record of a file as it is, after forcing it to disk if it shall be durable."""
        with path.open("rb") as stream:
            if durable:
                os.fsync(stream.fileno())
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return cls(size=stream.tell(), sha256=digest)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The manifest of an artifact.

    Attributes:
        key: the key of the stage that wrote the artifact.
        kind: the name of the stage.
        files: every file of the artifact, by its path relative to the artifact's folder.
        facts: what the stage counted.
        provenance: commit, versions, host, times and memory: what produced the artifact but is not its identity.
        seconds: wall time of the attempt that finished the stage.
        origin: key of the first ancestor, the base model of a stage that has one; empty without parents. Stages of one
            kind and origin cost about the same.
    """

    key: str
    kind: str
    files: Mapping[str, FileRecord]
    facts: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    origin: str = ""

    def json(self) -> dict[str, Any]:
        """Return the manifest as it is written."""
        return asdict(self)

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> "Manifest":
        """Return the manifest that was written."""
        files = {name: FileRecord(**record) for name, record in data["files"].items()}
        return cls(**{**data, "files": files})

    def verify(self, folder: Path) -> None:
        """Compare every file of an artifact with its record.

        Raises:
            DamagedArtifact: a file is missing, truncated or altered.
        """
        for name, expected in self.files.items():
            path = folder / name
            try:
                size = path.stat().st_size
                found = FileRecord.of(path) if size == expected.size else FileRecord(size=size, sha256="")
            except OSError as error:
                raise damaged(folder, f"`{name}` cannot be read ({error.strerror})") from None
            if found.size != expected.size:
                raise damaged(folder, f"`{name}` has {found.size} bytes; expected {expected.size}")
            if found != expected:
                raise damaged(folder, f"`{name}` was altered: its sha256 is not that of the manifest")


def files_in(folder: Path) -> list[Path]:
    """Return the files of a folder and its subfolders, in a stable order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damaged(folder: Path, problem: str) -> DamagedArtifact:
    """Return the error for an artifact that is not what its manifest says."""
    return DamagedArtifact(
        f"The artifact `{folder}` is damaged: {problem}. `harness retry` sets it aside and makes it again."
    )
