"""A manifest: an artifact's files with hashes, and their provenance. An artifact is complete if it has one."""

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.engine.files import open_regular, read_json
from harness.engine.layout import MANIFEST
from harness.errors import DamagedArtifact, StoreError, UnreadableFile


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Expected size and hash of a file in an artifact.

    Attributes:
        size: bytes.
        sha256: hash of the content, in hexadecimal digits.
    """

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path, *, durable: bool = False) -> "FileRecord":
        """Return the record of a regular file, after syncing the file to disk if ``durable``.

        Raises:
            UnreadableFile: it is not a regular file, or cannot be read.
            OSError: syncing failed.
        """
        with open_regular(path, limit=sys.maxsize) as stream:
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
        facts: JSON values that the stage reported, such as counts.
        provenance: commit, versions, host, times and memory; not part of identity.
        seconds: wall time of the attempt that finished the stage.
        origin: key of the first ancestor, for most stages the base model; empty without parents. Stages of the same
            kind and origin have about the same cost.
    """

    key: str
    kind: str
    files: Mapping[str, FileRecord]
    facts: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    origin: str = ""

    def json(self) -> dict[str, Any]:
        """Return the manifest as stored JSON."""
        return asdict(self)

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> "Manifest":
        """Return the manifest from stored JSON."""
        files = {name: FileRecord(**record) for name, record in data["files"].items()}
        return cls(**{**data, "files": files})

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Return the manifest of an artifact.

        Raises:
            DamagedArtifact: the manifest is invalid.
            StoreError: there is no manifest.
        """
        path = folder / MANIFEST
        if not os.path.lexists(path):
            raise StoreError(f"`{folder}` is not a complete artifact: it has no manifest. Run the stage to make it.")
        try:
            return cls.of_json(read_json(path))
        except UnreadableFile as error:
            raise damaged_artifact(folder, f"`{MANIFEST}` is unreadable ({error})") from None
        except (KeyError, TypeError, AttributeError):
            raise damaged_artifact(folder, f"`{MANIFEST}` is not a manifest") from None

    def verify(self, folder: Path) -> None:
        """Compare every file of an artifact with its record.

        Raises:
            DamagedArtifact: a file is missing, truncated or altered.
        """
        for name, expected in self.files.items():
            if problem := difference(folder / name, expected):
                raise damaged_artifact(folder, f"`{name}` {problem}")


def difference(path: Path, expected: FileRecord) -> str:
    """Describe how a file differs from its record; empty if it does not."""
    try:
        size = path.stat().st_size
        # A different size needs no hash.
        found = FileRecord.of(path) if size == expected.size else FileRecord(size=size, sha256="")
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except UnreadableFile as error:
        return f"cannot be read ({error})"
    if found.size != expected.size:
        return f"has {found.size} bytes; expected {expected.size}"
    return "" if found == expected else "was altered: its sha256 differs from the recorded one"


def files_in(folder: Path) -> list[Path]:
    """Return the files of a folder and its subfolders, in a stable order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damaged_artifact(folder: Path, problem: str) -> DamagedArtifact:
    """Return the error for an artifact that does not match its manifest."""
    return DamagedArtifact(
        f"The artifact `{folder}` is damaged: {problem}. `harness retry` sets it aside and recomputes it."
    )
