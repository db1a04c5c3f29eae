"""Provenance: code, versions, host and resources of a run; not identity. No environment variables, no tokens."""

import hashlib
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.engine import gpu

PACKAGES = (
    "harness",
    "accelerate",
    "filelock",
    "hydra-core",
    "numpy",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)
REDACTED = "<redacted>"
_SECRET_NAME = re.compile(r"(?:token|secret|password|passwd|key|credentials?)$", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"(?:hf|ghp|gho|github_pat|sk|wandb_v1|glpat)[_-][A-Za-z0-9_-]{8,}")
_URL_LOGIN = re.compile(r"://[^/@\s]+@")


class Stopwatch:
    """Measures the wall time of an attempt, and returns its provenance."""

    def __init__(self) -> None:
        """Start."""
        self.started = now()
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall seconds since the start."""
        return round(time.perf_counter() - self._start, 3)

    def provenance(self, *, device: str) -> dict[str, Any]:
        """Return the provenance of the run since the start."""
        return {
            **process_provenance(),
            "device": device,
            "started": self.started,
            "finished": now(),
            "seconds": self.seconds,
            **peak_memory(),
        }


def now() -> str:
    """Return the current time in UTC, ISO 8601, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@cache
def process_provenance() -> dict[str, Any]:
    """Return the provenance that all stages of this process share: code, versions, host and command line."""
    return {
        "code": git_state(Path(__file__).parents[1]),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "argv": redacted(sys.argv),
    }


def git_state(package: Path) -> dict[str, Any] | None:
    """Return the git commit of a package and whether its files are modified; None outside of a checkout."""
    checkout = package.parent
    if not (checkout / ".git").exists():
        return None
    commit = _git(checkout, "rev-parse", "HEAD")
    changes = _git(checkout, "status", "--porcelain", "--", package.name)
    return None if commit is None or changes is None else {"commit": commit, "dirty": bool(changes)}


@cache
def source_digest(allow: tuple[str, ...] = ()) -> str:
    """Return a digest of the package's source files: processes with the same digest run the same code.

    Args:
        allow: prefixes of the classes that stages may use; the source files of their packages are included.
    """
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    names = sorted({prefix.partition(".")[0] for prefix in allow} - {package.name})
    for source in (package, *(source for name in names for source in _sources(name))):
        for path in sorted(source.rglob("*.py")) if source.is_dir() else [source]:
            digest.update(f"{path.relative_to(source.parent)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _sources(name: str) -> list[Path]:
    """Return the folders, or the file, of a top-level module; empty if it is not installed."""
    found = find_spec(name)
    if found is None:
        return []
    folders = found.submodule_search_locations or ([found.origin] if found.origin else [])
    return [Path(source) for source in folders]


def redacted(arguments: Iterable[str]) -> list[str]:
    """Return a command line with secrets redacted, found by option name, by token format, or as a login in a URL."""
    cleaned: list[str] = []
    secret_follows = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if secret_follows:
            cleaned.append(REDACTED)
            secret_follows = False
        elif equals and _SECRET_NAME.search(name):
            cleaned.append(f"{name}={REDACTED}")
        else:
            cleaned.append(_URL_LOGIN.sub(f"://{REDACTED}@", _SECRET_VALUE.sub(REDACTED, argument)))
            secret_follows = argument.startswith("--") and not equals and bool(_SECRET_NAME.search(argument))
    return cleaned


def _git(checkout: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def peak_memory() -> dict[str, int]:
    """Return the peak memory of this process so far, in bytes; stages in one process share its peak."""
    # ru_maxrss is in KiB on Linux, in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if (on_gpu := gpu.peak_bytes()) is not None:
        found["gpu_peak_bytes"] = on_gpu
    return found
