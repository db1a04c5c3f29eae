"""Provenance: what produced an artifact but is not its identity. No environment variables, no tokens."""

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
    """Times one attempt, and tells afterwards what it ran on."""

    def __init__(self) -> None:
        """Start."""
        self.started = now()
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall seconds since the start."""
        return round(time.perf_counter() - self._start, 3)

    def provenance(self, *, device: str) -> dict[str, Any]:
        """Return the provenance of what was done since the start."""
        return {
            **of_process(),
            "device": device,
            "started": self.started,
            "finished": now(),
            "seconds": self.seconds,
            **peaks(),
        }


def now() -> str:
    """Return the time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@cache
def of_process() -> dict[str, Any]:
    """Return what is the same for every stage of this process: code, versions, host and command line."""
    return {
        "code": code(Path(__file__).parents[1]),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "argv": redacted(sys.argv),
    }


def code(package: Path) -> dict[str, Any] | None:
    """Return the commit of a package and whether its files differ from it; None if it is not run from a checkout."""
    checkout = package.parent
    if not (checkout / ".git").exists():
        return None
    commit = _git(checkout, "rev-parse", "HEAD")
    changes = _git(checkout, "status", "--porcelain", "--", package.name)
    return None if commit is None or changes is None else {"commit": commit, "dirty": bool(changes)}


@cache
def source_digest(allow: tuple[str, ...] = ()) -> str:
    """Return the digest of the package's source files: two processes that agree on it run the same code.

    Args:
        allow: prefixes of the classes that a stage may be made of; the source files of their packages count too.
    """
    package = Path(__file__).parents[1]
    whole = hashlib.sha256()
    names = sorted({prefix.partition(".")[0] for prefix in allow} - {package.name})
    for place in (package, *(place for name in names for place in _sources(name))):
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            whole.update(f"{path.relative_to(place.parent)}\n".encode())
            whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


def _sources(name: str) -> list[Path]:
    """Return the folders, or the file, of a top-level module; nothing if it is not there."""
    found = find_spec(name)
    if found is None:
        return []
    places = found.submodule_search_locations or ([found.origin] if found.origin else [])
    return [Path(place) for place in places]


def redacted(arguments: Iterable[str]) -> list[str]:
    """Return a command line without what looks like a token: by its name, by its form, or as a login in a URL."""
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


def peaks() -> dict[str, int]:
    """Return the most memory that this process has used so far: stages that share a process share its peak."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if (on_gpu := gpu.peak_bytes()) is not None:
        found["gpu_peak_bytes"] = on_gpu
    return found
